"""The memory of old classes: a fair draw whatever the order, and pasting that keeps the books."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fmseg.datasets import draw_set
from fmseg.memory import IGNORE, Memory, erase, on_grid, paste


def scene(*boxes, size=16):
    """An image whose red channel is 10 times the label; boxes are (label, top, left, height, width)."""
    labels = np.zeros((size, size), np.uint8)
    for label, top, left, height, width in boxes:
        labels[top : top + height, left : left + width] = label
    image = np.stack([labels * 10, labels, np.full_like(labels, 7)], -1)
    return image, labels


def world(count=20, seed=0):
    rng = np.random.default_rng(seed)
    pairs = [scene((int(rng.integers(1, 4)), *rng.integers(0, 10, 2), 4, 5)) for _ in range(count)]
    return np.stack([p[0] for p in pairs]), np.stack([p[1] for p in pairs])


def kept(memory):
    return {label: [one.key for one in archive] for label, archive in memory.archives.items()}


# --- archives --------------------------------------------------------------------------------------------------------


def test_instances_are_cut_out_by_hand():
    image, labels = scene((1, 2, 3, 4, 5), (1, 10, 0, 3, 3), (2, 10, 8, 5, 2))
    labels[3, 4] = 255  # void inside the first object
    memory = Memory([1, 2], capacity=9)
    memory.update(image[None], labels[None], [0])
    sizes = {label: sorted(one.mask.shape for one in archive) for label, archive in memory.archives.items()}
    assert sizes == {1: [(3, 3), (4, 5)], 2: [(5, 2)]} and len(memory) == 3
    largest = max(memory.archives[1], key=lambda one: one.mask.size)
    assert not largest.mask[1, 1] and largest.mask.sum() == 19 and largest.label == 1
    assert np.array_equal(largest.image, image[2:6, 3:8])


def test_ids_tell_touching_objects_apart_and_join_what_is_hidden_in_the_middle():
    image, labels = scene((1, 0, 0, 4, 4), (1, 0, 4, 4, 4), (1, 8, 0, 4, 4), (1, 8, 8, 4, 4))
    ids = np.zeros(labels.shape, np.int32)
    ids[0:4, 0:4], ids[0:4, 4:8], ids[8:12] = 5, 6, 7
    without, with_ids = Memory([1]), Memory([1])
    without.update(image[None], labels[None], [0])
    with_ids.update(image[None], labels[None], [0], ids[None])
    assert sorted(one.mask.sum() for one in without.archives[1]) == [16, 16, 32]
    assert sorted(one.mask.sum() for one in with_ids.archives[1]) == [16, 16, 32]
    assert sorted(one.mask.shape for one in without.archives[1]) == [(4, 4), (4, 4), (4, 8)]
    assert sorted(one.mask.shape for one in with_ids.archives[1]) == [(4, 4), (4, 4), (4, 12)]


def test_small_pieces_and_classes_without_an_archive_are_left_out():
    image, labels = scene((1, 0, 0, 1, 2), (1, 8, 8, 2, 2), (3, 4, 4, 4, 4))
    memory = Memory([1, 2], least_share=3 / 256)
    memory.update(image[None], labels[None], [0])
    assert [one.mask.sum() for one in memory.archives[1]] == [4] and memory.archives[2] == [] and len(memory) == 1


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(20)), st.integers(1, 19), st.integers(1, 8))
def test_what_is_kept_does_not_depend_on_order_or_pieces_or_repetition(order, cut, capacity):
    images, labels = world()
    whole = Memory([1, 2, 3], capacity)
    whole.update(images, labels, range(20))
    assert all(len(archive) <= capacity for archive in whole.archives.values())
    order, parts = list(order), [Memory([1, 2, 3], capacity) for _ in range(2)]
    for part, chosen in zip(parts, (order[:cut], order[cut:]), strict=True):
        part.update(images[chosen], labels[chosen], chosen)
        part.update(images[chosen][:1], labels[chosen][:1], chosen[:1])  # a second epoch begins
    parts[0].merge(parts[1])
    assert kept(parts[0]) == kept(whole)


def test_every_instance_has_the_same_chance_to_stay():
    images, labels = (np.repeat(a[None], 12, 0) for a in scene((1, 0, 0, 4, 4)))
    images[:, 0, 0, 2] = range(12)
    stayed = np.zeros(12)
    for seed in range(200):
        memory = Memory([1], capacity=3, seed=seed)
        memory.update(images, labels, range(12))
        stayed[[one.image[0, 0, 2] for one in memory.archives[1]]] += 1
    assert stayed.sum() == 600 and abs(stayed - 50).max() < 25  # a deviation of 6.1


def test_memories_of_another_kind_are_not_merged():
    with pytest.raises(ValueError, match="`other` must be of the same classes, capacity"):
        Memory([1, 2]).merge(Memory([1, 2], capacity=3))


def test_the_world_fills_the_archives_with_whole_things():
    drawn = draw_set("voc", "train", 40)
    memory = Memory(range(1, 21), capacity=2)
    memory.update(drawn.images, drawn.labels, range(40), drawn.instances)
    assert len(memory) > 25
    for label, archive in memory.archives.items():
        assert len(archive) <= 2
        for one in archive:
            assert one.label == label and all(side.any() for side in (*one.mask[[0, -1]], *one.mask.T[[0, -1]]))


# --- paste -----------------------------------------------------------------------------------------------------------


def filled(*boxes):
    memory = Memory([1, 2, 3], least_share=0.0)
    image, labels = scene(*boxes)
    memory.update(image[None], labels[None], [0])
    return memory


def test_pasted_pixels_carry_object_and_label_and_no_others_change():
    memory = filled((2, 3, 3, 4, 6), (3, 10, 1, 3, 3))
    memory.archives[2][0].mask[0, 0] = False  # a hole in its corner
    images = torch.full((150, 3, 16, 16), 200, dtype=torch.uint8)
    made = paste(images, memory, generator=torch.Generator().manual_seed(1))
    assert made.images.dtype == torch.uint8 and made.labels.shape == (150, 16, 16) and bool((images == 200).all())
    pasted = made.labels != IGNORE
    assert bool((made.images[:, 0][pasted] == made.labels[pasted] * 10).all())
    assert bool((made.images.movedim(1, -1)[~pasted] == 200).all())
    assert set(pasted.sum((1, 2)).tolist()) == {23, 9}  # whole objects, holes left open
    tops = {int(p.any(1).nonzero()[0]) for p, n in zip(pasted, pasted.sum((1, 2)), strict=True) if n == 23}
    assert min(tops) == 0 and max(tops) == 12  # anywhere it fits


def test_classes_are_drawn_evenly_however_many_instances_they_have():
    memory = filled(*[(1, 4 * k, 0, 3, 3) for k in range(4)], (2, 0, 8, 3, 3))
    made = paste(torch.zeros(600, 3, 16, 16), memory, generator=torch.Generator().manual_seed(0))
    share = (made.labels == 2).any(2).any(1).float().mean()
    assert 0.44 < share < 0.56


def test_flip_turns_image_and_mask_together():
    memory = filled((1, 0, 0, 3, 5))
    one = memory.archives[1][0]
    one.mask[0, 0], one.image[:] = False, np.arange(45, dtype=np.uint8).reshape(3, 5, 3)
    never, always = (paste(torch.zeros(1, 3, 3, 5), memory, flip=f) for f in (0.0, 1.0))
    assert torch.equal(never.labels.flip(-1), always.labels) and torch.equal(never.images.flip(-1), always.images)
    assert never.labels[0, 0, 0] == IGNORE and always.labels[0, 0, 4] == IGNORE
    assert never.images[0, :, 0, 1].tolist() == [3, 4, 5]


def test_probability_is_that_of_an_image():
    memory = filled((1, 0, 0, 3, 3))
    images = torch.zeros(400, 3, 16, 16)
    made = paste(images, memory, probability=0.25, generator=torch.Generator().manual_seed(0))
    assert 0.18 < (made.labels != IGNORE).flatten(1).any(1).float().mean() < 0.32
    assert bool((paste(images, memory, probability=0.0).labels == IGNORE).all())


def test_the_generator_decides_and_torchs_own_is_left_alone():
    memory, images = filled((1, 0, 0, 3, 3), (2, 9, 9, 4, 4)), torch.zeros(4, 3, 16, 16)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    one, two = (paste(images, memory, generator=torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(one.labels, two.labels) and torch.equal(before, torch.get_rng_state())
    torch.manual_seed(3)
    three = paste(images, memory)
    torch.manual_seed(3)
    assert torch.equal(three.images, paste(images, memory).images)


def test_an_instance_larger_than_the_image_is_made_to_fit():
    memory = filled((2, 0, 0, 12, 16))
    made = paste(torch.zeros(1, 3, 8, 8), memory, flip=0.0)
    assert int((made.labels == 2).sum()) == 6 * 8  # 12 x 16 at half the size
    assert made.images[0, 0][made.labels[0] == 2].unique().tolist() == [20]


def test_an_empty_memory_is_refused_unless_nothing_is_pasted():
    images = torch.zeros(1, 3, 8, 8)
    with pytest.raises(ValueError, match=r"memory of classes \[4, 5\] is empty; show it the base step's images"):
        paste(images, Memory([4, 5]))
    assert torch.equal(paste(images, Memory([4, 5]), probability=0.0).images, images)


# --- books -----------------------------------------------------------------------------------------------------------


def test_a_cell_belongs_to_what_covers_half_of_it():
    labels = torch.full((2, 4, 8), IGNORE)
    labels[0, 0:2, 0:3] = 6  # all of the first cell, half of the second
    labels[0, 2, 0] = 6  # a quarter of one below
    labels[1, 3, 7] = 0
    grid = on_grid(labels, (2, 4))
    assert grid[0].tolist() == [[6, 6, IGNORE, IGNORE], [IGNORE] * 4] and bool((grid[1] == IGNORE).all())
    assert torch.equal(on_grid(labels, (4, 8)), labels)


def test_pseudo_labels_vanish_under_the_paste_only():
    masks = torch.ones(2, 3, 2, 2, dtype=torch.bool)
    pasted = torch.full((2, 2, 2), IGNORE)
    pasted[0, 0, 1] = 4
    left = erase(masks, pasted)
    assert left.dtype == torch.bool and not left[0, :, 0, 1].any() and int(left.sum()) == 24 - 3
    assert bool(masks.all())
    soft = erase(torch.full((2, 3, 2, 2), 0.7), pasted)
    assert soft[0, 0, 0, 1] == 0 and soft[1].min() > 0.69


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Memory([1, 1]), "`classes` must be different ids"),
        (lambda: Memory([255]), "`classes` must be different ids"),
        (lambda: Memory([1], capacity=0), "`capacity` must be >= 1; got 0"),
        (lambda: Memory([1], least_share=1.0), "`least_share` must be in"),
        (lambda: Memory([1]).update(np.zeros((1, 4, 4, 3)), np.zeros((1, 4, 4), np.uint8), [0]), "`images` must be a"),
        (lambda: Memory([1]).update(*(a[None, :4] for a in scene()), [0, 1]), "`numbers` must be 1 different"),
        (lambda: Memory([1]).update(scene()[0][None], scene(size=8)[1][None], [0]), "`labels` \\(N, H, W\\) to fit"),
        (lambda: Memory([1]).update(*(a[None] for a in scene()), [0], np.zeros((1, 16, 16))), "`instances` must be"),
        (lambda: paste(torch.zeros(1, 3, 0, 8), Memory([1])), "`images` must be"),
        (lambda: paste(torch.zeros(1, 3, 8, 8), Memory([1]), flip=1.5), "`flip` must be in"),
        (lambda: on_grid(torch.zeros(1, 6, 8).long(), (4, 4)), "`grid` must divide the image of 6x8"),
        (lambda: erase(torch.ones(1, 2, 4, 4), torch.zeros(1, 2, 2)), "Bring labels to the grid with `on_grid`"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()

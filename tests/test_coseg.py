"""Co-segmentation: each step by hand and by loops, the draw of seeds by its properties, and the whole chain."""

import math
from dataclasses import FrozenInstanceError

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sizes import Largest

from fmseg.attention import seed_attention
from fmseg.coseg import binarise, co_segment, draw_seeds, initial_mask, mean_attention

few = settings(max_examples=25, deadline=None)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def fixed(seed=0):
    return torch.Generator().manual_seed(seed)


def images(seed=0, batch=3, classes=4, grid=(3, 4), background=2):
    """Cosines, labels and background cosines; the last image has no class, the first one all."""
    generator = fixed(seed)
    scores = 0.1 * torch.randn(batch, classes, *grid, generator=generator)
    present = torch.rand(batch, classes, generator=generator) < 0.5
    present[0], present[-1] = True, False
    return scores, present, 0.1 * torch.randn(batch, background, *grid, generator=generator)


def attentions(batch=3, heads=2, grid=(3, 4), prefix=1):
    tokens = prefix + grid[0] * grid[1]
    return torch.randn(batch, heads, tokens, tokens).mul(2).softmax(-1)


# -- the initial mask -----------------------------------------------------------------------------------------------


def mask_by_loops(scores, present, rule, threshold=0.5, over="present", background=None):
    out = torch.zeros(scores.shape, dtype=torch.bool)
    for b, c in present.nonzero().tolist():
        rivals = [scores[b, k] for k in range(scores.shape[1]) if over == "all" or present[b, k]]
        rivals += [] if background is None else list(background[b])
        low, high = min(scores[b, c].flatten().tolist()), max(scores[b, c].flatten().tolist())
        for i in range(scores.shape[2]):
            for j in range(scores.shape[3]):
                mine, theirs = float(scores[b, c, i, j]), [float(r[i, j]) for r in rivals]
                if rule == "minmax":
                    out[b, c, i, j] = (mine - low) / (high - low) > threshold and mine == max(theirs)
                else:
                    out[b, c, i, j] = 1 / sum(math.exp(100 * (r - mine)) for r in theirs) > threshold
    return out


@few
@given(
    st.integers(0, 10**6), st.sampled_from(["minmax", "softmax"]), st.sampled_from(["present", "all"]), st.booleans(),
    st.sampled_from([0.0, 0.3, 0.5, 0.9]),
)  # fmt: skip
def test_initial_mask_is_the_rule_pixel_by_pixel(seed, rule, over, texts, threshold):
    scores, present, background = images(seed)
    options = {"threshold": threshold, "over": over, "background": background if texts else None}
    ours = initial_mask(scores, present, rule=rule, **options)
    assert torch.equal(ours, mask_by_loops(scores, present, rule, **options))
    assert not ours[~present].any()


def test_initial_mask_by_hand():
    """Of class 0 the values 1 and 0.6 are above half its range 0..1, but 0.6 is class 1's; of class 1 only 0.9 is."""
    scores = torch.tensor([[[[1.0, 0.6, 0.4, 0.0]], [[0.0, 0.9, 0.3, 0.45]], [[2.0, 2.0, -2.0, 2.0]]]])
    ours = initial_mask(scores, torch.tensor([[True, True, False]]))
    assert ours[0, :, 0].int().tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    distracted = initial_mask(scores, torch.tensor([[True, True, False]]), over="all")
    assert not distracted.any(), "class 2 is absent, yet a rival"
    soft = initial_mask(scores, torch.tensor([[True, True, False]]), rule="softmax")
    assert soft[0, :, 0].int().tolist() == [[1, 0, 1, 0], [0, 1, 0, 1], [0, 0, 0, 0]]


def test_one_class_without_rivals_covers_the_image_under_softmax_only():
    scores, present = torch.randn(1, 1, 3, 3), torch.tensor([[True]])
    assert initial_mask(scores, present, rule="softmax").all()
    assert not initial_mask(scores, present, rule="softmax", background=scores + 0.01).any()
    assert 0 < initial_mask(scores, present).sum() < 9


def test_ties_flat_maps_and_the_threshold_itself():
    scores = torch.tensor([[[[0.0, 0.5, 1.0]], [[0.0, 0.5, 1.0]], [[0.3, 0.3, 0.3]]]])
    ours = initial_mask(scores, torch.ones(1, 3, dtype=torch.bool))
    assert ours[0, :, 0].int().tolist() == [[0, 0, 1], [0, 0, 1], [0, 0, 0]], "0.5 of the range is not above 0.5"
    assert not initial_mask(scores[:, :2], torch.ones(1, 2, dtype=torch.bool), rule="softmax").any(), "1/2 each"


@pytest.mark.parametrize("rule", ["minmax", "softmax"])
def test_masks_permute_with_classes_and_images_and_ignore_the_rest_of_the_batch(rule):
    scores, present, background = images(batch=5)
    whole = initial_mask(scores, present, rule=rule, background=background)
    order, classes = torch.tensor([4, 2, 0, 1, 3]), torch.tensor([2, 0, 3, 1])
    assert torch.equal(initial_mask(scores[:, classes], present[:, classes], rule=rule, background=background),
                       whole[:, classes])  # fmt: skip
    assert torch.equal(initial_mask(scores[order], present[order], rule=rule, background=background[order]),
                       whole[order])  # fmt: skip
    assert torch.equal(initial_mask(scores[1:2], present[1:2], rule=rule, background=background[1:2]), whole[1:2])
    other = torch.where(present[:, :, None, None], scores, torch.randn(scores.shape))
    assert torch.equal(initial_mask(other, present, rule=rule, background=background), whole), "absent classes' scores"


# -- seeds ----------------------------------------------------------------------------------------------------------


def test_seeds_lie_in_the_foreground_and_repeat_only_where_they_must():
    foreground = torch.zeros(2, 3, 4, 5, dtype=torch.bool)
    foreground[0, 0, 1:3], foreground[0, 1, 0, :3], foreground[1, 2] = True, True, True  # 10, 3 and 20 positions
    present = torch.tensor([[True, True, False], [False, False, True]])
    seeds = draw_seeds(foreground, torch.randn(2, 3, 4, 5), present, 7, fixed())
    assert seeds.shape == (2, 3, 7) and seeds.dtype == torch.int64
    assert (seeds[~present] == -1).all()
    for b, c in present.nonzero().tolist():
        drawn, allowed = seeds[b, c].tolist(), foreground[b, c].flatten().nonzero()[:, 0].tolist()
        assert set(drawn) <= set(allowed)
        assert len(set(drawn)) == 7 or len(allowed) < 7
    assert torch.equal(seeds, draw_seeds(foreground, torch.randn(2, 3, 4, 5), present, 7, fixed())), "no other source"
    assert not torch.equal(seeds, draw_seeds(foreground, torch.randn(2, 3, 4, 5), present, 7, fixed(1)))


def test_without_foreground_the_highest_scores_are_the_seeds():
    scores = torch.tensor([0.1, 0.9, 0.3, 0.9, 0.5, 0.2]).view(1, 1, 2, 3)
    nothing, present = torch.zeros(1, 1, 2, 3, dtype=torch.bool), torch.tensor([[True]])
    assert draw_seeds(nothing, scores, present, 3, fixed()).tolist() == [[[1, 3, 4]]]
    assert draw_seeds(nothing, scores, present, 8, fixed()).tolist() == [[[1, 3, 4, 2, 5, 0, 1, 3]]]


@pytest.mark.parametrize("size, count", [(12, 4), (4, 4), (3, 4)], ids=["more", "as many", "fewer"])
def test_seeds_are_uniform_over_the_foreground(size, count):
    rounds = 4000  # images of one batch
    foreground = torch.arange(20).expand(rounds, 1, -1).unflatten(2, (4, 5)) < size
    present = torch.ones(rounds, 1, dtype=torch.bool)
    drawn = draw_seeds(foreground, torch.zeros(rounds, 1, 4, 5), present, count, fixed())
    seen = torch.bincount(drawn.flatten(), minlength=20)
    expected = rounds * count / size
    assert ((seen[:size] - expected).abs() < 5 * expected**0.5).all() and not seen[size:].any()
    if size == 4:
        assert (seen[:4] == rounds).all(), "each once"
    if size == 3:  # independent draws: all four equal in 3 images of 81
        same = (drawn == drawn[:, :, :1]).all(2).sum().item()
        assert abs(same - rounds / 27) < 5 * (rounds / 27) ** 0.5


def test_a_class_s_seeds_depend_neither_on_other_classes_nor_on_later_images():
    scores, present, _ = images(batch=4)
    foreground = initial_mask(scores, present)
    whole = draw_seeds(foreground, scores, present, 5, fixed())
    fewer = present & torch.tensor([True, False, True, True])
    expected = torch.where(fewer[:, :, None], whole, -1)
    assert torch.equal(draw_seeds(foreground, scores, fewer, 5, fixed()), expected)
    assert torch.equal(draw_seeds(foreground[:2], scores[:2], present[:2], 5, fixed()), whole[:2])


# -- their attention ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_mean_attention_is_the_mean_of_the_rows_one_by_one(prefix):
    attention = attentions(2, 3, (2, 3), prefix)
    seeds = torch.tensor([[[0, 5, 5, 2], [-1] * 4], [[1, 1, 0, 4], [3, 2, 1, 0]]])
    ours = mean_attention(attention, seeds, (2, 3), prefix)
    assert ours.shape == (2, 2, 2, 3) and not ours[0, 1].any()
    for b, c in [(0, 0), (1, 0), (1, 1)]:
        for i in range(2):
            for j in range(3):
                rows = [attention[b, m, prefix + int(s), prefix + 3 * i + j] for m in range(3) for s in seeds[b, c]]
                assert ours[b, c, i, j].item() == pytest.approx(sum(rows).item() / 12, rel=1e-5)
        kernel = seed_attention(attention[b : b + 1], seeds[b : b + 1, c], (2, 3), prefix)
        torch.testing.assert_close(ours[b, c], kernel.mean((1, 2))[0])


def test_all_positions_as_seeds_give_the_mean_attention():
    attention, everywhere = attentions(2), torch.ones(2, 3, 3, 4, dtype=torch.bool)
    seeds = draw_seeds(everywhere, torch.zeros(2, 3, 3, 4), torch.ones(2, 3, dtype=torch.bool), 12, fixed())
    assert torch.equal(seeds.sort(2).values, torch.arange(12).expand(2, 3, 12))
    expected = attention[:, :, 1:, 1:].mean((1, 2)).unflatten(1, (3, 4))[:, None].expand(-1, 3, -1, -1)
    torch.testing.assert_close(mean_attention(attention, seeds, (3, 4)), expected)


def test_mean_attention_permutes_with_images_and_not_with_heads():
    attention = attentions(3, 4)
    seeds = torch.randint(0, 12, (3, 2, 5))
    ours, order = mean_attention(attention, seeds, (3, 4)), torch.tensor([2, 0, 1])
    assert torch.equal(mean_attention(attention[order], seeds[order], (3, 4)), ours[order])
    assert torch.equal(mean_attention(attention, seeds.flip(1), (3, 4)), ours.flip(1))
    assert torch.equal(mean_attention(attention[:1], seeds[:1], (3, 4)), ours[:1])
    torch.testing.assert_close(mean_attention(attention[:, [3, 1, 0, 2]], seeds, (3, 4)), ours)
    strided = attention.mT.contiguous().mT  # same values, other layout
    torch.testing.assert_close(mean_attention(strided, seeds, (3, 4)), ours)


def test_at_the_papers_size_seeds_cost_no_memory():
    """20 classes with all positions as seeds: the rows gathered head by head would be 1 GB."""
    attention = torch.rand(1, 12, 1025, 1025)
    seeds = torch.arange(1024).expand(1, 20, -1)
    with Largest() as seen:
        mean_attention(attention, seeds, (32, 32))
    assert seen.bytes < 2 << 20, "an index for each row that is read"


# -- made binary ----------------------------------------------------------------------------------------------------


def test_binarise_by_hand():
    maps = torch.tensor([[[0.1, 0.4], [0.2, 0.3]]])
    assert binarise(maps, keep=0.5).int().tolist() == [[[0, 1], [0, 1]]]
    assert binarise(maps).int().tolist() == [[[0, 1], [0, 0]]], "0.3 of 4 locations are 1.2"
    assert binarise(maps, keep=0.375).sum() == 2, "1.5 locations are 2"
    assert binarise(10 * maps, mass=0.4).int().tolist() == [[[0, 1], [0, 0]]], "the highest holds just that"
    assert binarise(10 * maps, mass=0.41).int().tolist() == [[[0, 1], [0, 1]]]


def test_shares_of_zero_and_one_are_empty_and_full():
    maps = torch.cat([torch.rand(2, 4, 5), torch.zeros(1, 4, 5)])
    assert not binarise(maps, keep=0).any() and binarise(maps, keep=1).all()
    assert not binarise(maps, mass=0).any() and torch.equal(binarise(maps, mass=1), maps > 0)
    maps[0, 0, :4] = torch.tensor([1e-9, 0, 1e-12, 1e6])  # small ones count beside a large one
    assert torch.equal(binarise(maps, mass=1.0), maps > 0)


@few
@given(st.integers(0, 10**6), st.floats(0, 1))
def test_keep_keeps_the_highest_and_so_many_of_them(seed, share):
    maps = torch.randint(0, 4, (3, 4, 5), generator=fixed(seed)).float()  # full of ties
    kept = binarise(maps, keep=share)
    for values, mask in zip(maps.flatten(1).tolist(), kept.flatten(1).tolist(), strict=True):
        assert sum(mask) == math.floor(20 * share + 0.5)
        order = sorted(range(20), key=lambda i: (-values[i], i))  # equal ones row by row
        assert [i for i in range(20) if mask[i]] == sorted(order[: sum(mask)])


@few
@given(st.integers(0, 10**6), st.floats(0.01, 0.99))
def test_mass_is_dinos_visualisation(seed, share):
    """Its steps: ascending order, values over their sum, cumulated, kept above 1 - threshold."""
    maps = torch.randn(4, 5, 6, generator=fixed(seed)).double().flatten(1).softmax(1)
    value, order = maps.sort()
    above = value.cumsum(1) / maps.sum(1, keepdim=True) > 1 - share
    expected = above.gather(1, order.argsort()).unflatten(1, (5, 6))
    ours = binarise(maps.unflatten(1, (5, 6)), mass=share)
    assert torch.equal(ours, expected)
    held = (maps.unflatten(1, (5, 6)) * ours).sum((1, 2))
    least = torch.where(ours, maps.unflatten(1, (5, 6)), 1).amin((1, 2))
    assert (held >= share - 1e-9).all() and (held - least < share).all(), "without the smallest it is too little"


def test_ties_take_the_earlier_row_and_never_change_the_number():
    constant = torch.full((2, 3), 0.25)
    assert binarise(constant, keep=0.5).int().tolist() == [[1, 1, 1], [0, 0, 0]]
    assert binarise(constant, mass=0.5).int().tolist() == [[1, 1, 1], [0, 0, 0]]
    assert binarise(torch.tensor([[0.2, 0.5, 0.2, 0.2]]), keep=0.5).int().tolist() == [[1, 1, 0, 0]]


# -- the whole chain ------------------------------------------------------------------------------------------------


def test_the_chain_is_its_steps():
    scores, present, background = images()
    attention = attentions()
    options = {"rule": "softmax", "threshold": 0.4, "over": "all", "background": background}
    found = co_segment(scores, present, attention, fixed(), seeds=3, mass=0.6, **options)
    clip = initial_mask(scores, present, **options)
    seeds = draw_seeds(clip, scores, present, 3, fixed())
    maps = mean_attention(attention, seeds, (3, 4))
    guided = binarise(maps, mass=0.6) & present[:, :, None, None]
    for ours, expected in (
        (found.clip, clip), (found.seeds, seeds), (found.attention, maps), (found.guided, guided),
        (found.mask, clip | guided),
    ):  # fmt: skip
        assert torch.equal(ours, expected)
    with pytest.raises(FrozenInstanceError):
        found.mask = clip


def test_one_bright_object_is_completed_by_its_own_attention():
    """CLIP sees the left half of an object, whose positions look at all of it."""
    things = torch.zeros(4, 4, dtype=torch.bool)
    things[1:3, :] = True
    scores = torch.zeros(1, 1, 4, 4)
    scores[0, 0, 1:3, :2] = 1
    inside = things.flatten()
    attention = torch.zeros(1, 1, 17, 17)
    attention[0, 0, 1:, 1:] = 0.01 + (inside[:, None] == inside[None]).float()
    found = co_segment(scores, torch.tensor([[True]]), attention, fixed(), keep=0.5)
    assert torch.equal(found.clip[0, 0], scores[0, 0] > 0)
    assert torch.equal(found.mask[0, 0], things)


def test_the_three_uses_share_their_parts():
    scores, present, _ = images()
    given_ = (scores, present, attentions())
    union, seeds, clip = (co_segment(*given_, fixed(), use=use) for use in ("union", "seeds", "clip"))
    assert torch.equal(seeds.mask, union.guided) and torch.equal(clip.mask, union.clip)
    assert torch.equal(union.mask, clip.mask | seeds.mask)
    assert (union.guided.sum((2, 3)) == torch.where(present, 4, 0)).all(), "0.3 of 12 locations"
    alone = co_segment(scores, present, use="clip")
    assert torch.equal(alone.mask, clip.mask) and alone.attention is alone.seeds is alone.guided is None
    full = co_segment(*given_, fixed(), keep=1).mask
    assert torch.equal(full, present[:, :, None, None].expand_as(full))
    assert torch.equal(co_segment(*given_, fixed(), keep=0).mask, clip.mask)


def test_absent_classes_and_images_without_any_get_nothing():
    scores, present, _ = images()
    found = co_segment(scores, present, attentions(), fixed())
    assert not found.mask[~present].any() and found.mask[present].flatten(1).any(1).all()
    assert not found.attention[~present].any() and (found.seeds[~present] == -1).all()
    nothing = co_segment(scores, present & False, attentions(), fixed())
    assert not nothing.mask.any() and nothing.mask.shape == scores.shape
    assert co_segment(scores[:0], present[:0], attentions()[:0], fixed()).mask.shape == (0, 4, 3, 4)


def test_a_batch_is_its_images_and_classes_in_any_order():
    """With every position a seed no chance is left; the first image has the same chances with and without others."""
    scores, present, _ = images(batch=4)
    attention, every = attentions(4), {"rule": "softmax", "threshold": 0, "seeds": 12}  # full foregrounds
    whole = co_segment(scores, present, attention, fixed(), **every).attention
    order, classes = torch.tensor([3, 1, 0, 2]), torch.tensor([1, 3, 0, 2])
    moved = co_segment(scores[order][:, classes], present[order][:, classes], attention[order], fixed(9), **every)
    torch.testing.assert_close(moved.attention, whole[order][:, classes])
    batch, alone = (co_segment(scores[:n], present[:n], attention[:n], fixed()) for n in (4, 1))
    assert torch.equal(alone.mask, batch.mask[:1]) and torch.equal(alone.seeds, batch.seeds[:1])


def test_scores_on_a_coarser_grid_go_to_the_attentions():
    scores, present, background = images(grid=(2, 3))
    attention, sizes = attentions(grid=(4, 6)), {"attention_grid": (4, 6), "grid": "attention"}
    ours = co_segment(scores, present, attention, fixed(), background=background, **sizes)
    finer, texts = (torch.nn.functional.interpolate(x, (4, 6), mode="bilinear") for x in (scores, background))
    expected = co_segment(finer, present, attention, fixed(), background=texts)
    assert ours.mask.shape == (3, 4, 4, 6) and torch.equal(ours.mask, expected.mask)


@pytest.mark.parametrize("own, patches", [((2, 3), (4, 6)), ((4, 6), (2, 3)), ((3, 3), (4, 5))])
def test_the_attention_goes_to_the_scores_grid(own, patches):
    scores, present, _ = images(grid=own)
    attention = attentions(grid=patches)
    found = co_segment(scores, present, attention, fixed(), attention_grid=patches, grid="scores")
    assert found.mask.shape == scores.shape and torch.equal(found.clip, initial_mask(scores, present))
    assert torch.equal(found.seeds, draw_seeds(found.clip, scores, present, 10, fixed()))
    for b, c in present.nonzero().tolist():
        rows = 0
        for seed in found.seeds[b, c].tolist():
            i, j = ((at + 0.5) / o * n for at, o, n in zip((seed // own[1], seed % own[1]), own, patches, strict=True))
            rows = rows + attention[b, :, 1 + int(i) * patches[1] + int(j), 1:].mean(0) / 10
        expected = torch.nn.functional.interpolate(rows.view(1, 1, *patches), own, mode="bilinear")[0, 0]
        torch.testing.assert_close(found.attention[b, c], expected)


def test_half_precision_scores_are_not_coarsened():
    scores, present, _ = images()
    half = scores.half()
    for rule in ("minmax", "softmax"):
        assert torch.equal(initial_mask(half, present, rule=rule), initial_mask(half.float(), present, rule=rule))

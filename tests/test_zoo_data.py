"""What the zoo is trained on: words of captions, the cache of pictures, and sentences put in other words."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from fmseg import zoo_data
from fmseg.datasets import DRAWS, draw_set, get_draw
from fmseg.fitting import Recipe
from fmseg.zoo_clip import in_other_words, shortened
from fmseg.zoo_data import (
    WORDS,
    both,
    labelled_images,
    mixed_indices,
    named_words,
    naming_loss,
    shared_indices,
    web_images,
)  # fmt: skip
from fmseg.zoo_diffusion import reworded


def words_of(caption):
    found = named_words([caption])
    return {kind: {WORDS[kind][k] for k in np.flatnonzero(there[0])} for kind, there in found.items()}


def test_words_of_captions_written_by_hand():
    assert words_of("a photo of a striped star and a plain disc on grass") == {
        "pattern": {"striped", "plain"}, "shape": {"star", "disc"}, "ground": {"grass"},
        "thing": {"striped star", "plain disc"},
    }  # fmt: skip
    assert words_of("a photo of sand") == {"pattern": set(), "shape": set(), "ground": {"sand"}, "thing": set()}
    twice = words_of("a photo of a plain disc and a plain disc and a dotted disc on sea")
    assert twice["thing"] == {"plain disc", "dotted disc"} and twice["shape"] == {"disc"}
    assert words_of("starfish and sandwich, disc. stars")["shape"] == set(), "whole words only"
    assert words_of("plain striped disc")["thing"] == {"striped disc"}, "a thing is a pattern and the next word"
    assert words_of("disc plain")["thing"] == set() and not any(words_of("").values())
    assert {kind: len(words) for kind, words in WORDS.items()} == {"pattern": 6, "shape": 16, "ground": 8, "thing": 96}


def named(*captions):
    return {kind: torch.from_numpy(there) for kind, there in named_words(captions).items()}


def test_the_loss_against_a_loop():
    torch.manual_seed(0)
    labels = named("a plain disc and a dotted star on sand", "a photo of snow", "a netted arch on sea and sky")
    scores, start, expected, right = torch.randn(3, 126), 0, 0.0, {}
    for kind, there in labels.items():
        part, start = scores[:, start : start + there.shape[1]], start + there.shape[1]
        rows = [r for r in range(3) if there[r].any()]
        for r in rows:
            chance = part[r].exp() / part[r].exp().sum()
            expected -= chance[there[r]].log().mean() / len(rows)
        right[kind] = sum(bool(there[r, part[r].argmax()]) for r in rows) / len(rows)
    found, shares = naming_loss(scores, labels)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5) and shares == pytest.approx(right)
    few = ("plain disc on sand", "snow")
    assert naming_loss(scores[:2], named(*few))[1].keys() == {"pattern", "shape", "ground", "thing"}


def test_its_gradient_and_rows_without_a_word():
    torch.manual_seed(1)
    labels = named("a plain disc on sand", "nothing that is known", "a striped bar and a plain bar on wood")
    scores = torch.randn(3, 126, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: naming_loss(x, labels)[0], scores)
    naming_loss(scores, labels)[0].backward()
    assert (scores.grad[1] == 0).all() and (scores.grad[0] != 0).all()
    loss, shares = naming_loss(scores, named("no", "word", "here"))
    assert loss.item() == 0.0 and shares == {}


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(zoo_data, "_CHUNK", 4)  # workers are forked and take it over


def test_the_cache_is_the_draw(tmp_path, small_parts):
    for draw in ("web", "icon"):
        expected = draw_set(draw, "train", 10)
        found = web_images(tmp_path, 10, draw)
        assert np.array_equal(found.images, expected.images) and found.captions == expected.captions
        fewer = web_images(tmp_path, 5, draw)
        assert len(fewer) == 5 and fewer.captions == found.captions[:5] == found.first(5).captions
        assert np.array_equal(fewer.images, found.images[:5])
    images, labels = labelled_images(tmp_path, "oracle", 6)
    expected = draw_set("oracle", "large", 6)
    assert np.array_equal(images, expected.images) and np.array_equal(labels, expected.labels)
    with pytest.raises(ValueError, match="`count` must be >= 1; got 0"):
        web_images(tmp_path, 0)


def test_a_draw_that_looks_otherwise_is_drawn_anew(tmp_path, small_parts, monkeypatch):
    before = web_images(tmp_path, 4)
    draw = get_draw("web")
    monkeypatch.setitem(DRAWS, "web", replace(draw, statistics=replace(draw.statistics, clutter=0)))
    after = web_images(tmp_path, 4)
    assert not np.array_equal(before.images, after.images)
    assert np.array_equal(after.images, draw_set("web", "train", 4).images) and len(list(tmp_path.iterdir())) == 2
    monkeypatch.undo()
    assert np.array_equal(web_images(tmp_path, 4).images, before.images)


def test_drawing_can_be_interrupted(tmp_path, small_parts):
    whole = web_images(tmp_path, 12)
    (folder,) = tmp_path.glob("web-*")
    kept = folder / "images-0.npy"
    before = kept.stat().st_mtime_ns
    (folder / "images-4.npy").unlink()  # killed while this part was drawn:
    (folder / "captions-4.json").write_text('["half a')
    (folder / "images-4.part.npy").write_bytes(b"half")
    again = web_images(tmp_path, 12)
    assert np.array_equal(again.images, whole.images) and again.captions == whole.captions
    assert kept.stat().st_mtime_ns == before and not list(folder.glob("*.part.npy"))


def test_batches_hold_icons_mostly_at_first_and_scenes_mostly_at_the_end():
    scenes, icons = web_like(7, "scene"), web_like(5, "icon")
    mix = both(scenes, icons)
    assert mix.captions[6:8] == ("scene 6", "icon 0") and np.array_equal(mix.images[7], icons.images[0])
    recipe = Recipe(steps=100, batch_size=8, lr=1.0)
    shares = []
    for step in range(100):
        batch = mixed_indices(7, 5, recipe, step)
        assert len(batch) == 8 and batch.min() >= 0 and batch.max() < 12
        shares.append((batch >= 7).sum())
    assert shares[0] == 6 and shares[-1] == 2 and shares == sorted(shares, reverse=True)
    assert np.array_equal(mixed_indices(7, 5, recipe, 3), mixed_indices(7, 5, replace(recipe, lr=2.0), 3))


def web_like(count, word):
    images = np.random.default_rng(count).integers(0, 256, (count, 2, 2, 3), dtype=np.uint8)
    return zoo_data.WebImages(images, tuple(f"{word} {k}" for k in range(count)))


CAPTIONS = (*draw_set("web", "train", 60, size=32).captions, "a photo of sand", "a photo of a plain disc on wood")


def part_of(found, whole):
    """Whether words stand in a sentence in the same order, with others left out."""
    rest = iter(whole.split())
    return all(word in rest for word in found.split())


def subset(found, whole):
    return all(words_of(found)[kind] <= words_of(whole)[kind] for kind in WORDS)


def test_shortened_captions_say_less_and_nothing_else():
    rng, unchanged = random.Random(0), 0
    for caption in CAPTIONS * 20:
        found = shortened(caption, rng)
        assert part_of(found, caption) and subset(found, caption) and found.startswith("a photo of ")
        assert any(words_of(found).values()), "something is named"
        assert not found.endswith((" on", " and", " a", " of")) and " and on " not in found
        unchanged += found == caption
    assert 0.45 < unchanged / (20 * len(CAPTIONS)) < 0.75
    assert shortened("a photo of sand", rng) == "a photo of sand"


def test_other_words_name_the_same():
    rng = random.Random(0)
    found = [(in_other_words(c, rng), c) for c in CAPTIONS * 20]
    assert all(words_of(one) == words_of(other) for one, other in found)
    assert 0.55 < sum(one == other for one, other in found) / len(found) < 0.65
    starts = {" ".join(one.split()[:2]) for one, _ in found}
    assert starts == {"a photo", "a photograph", "a picture", "an image", "a drawing", "there is"}


def test_reworded_captions_drop_or_reword_and_never_invent():
    rng, empty, kinds = random.Random(0), 0, set()
    for caption in CAPTIONS * 20:
        found = reworded(caption, rng)
        empty += not found
        assert subset(found, caption), (found, caption)
        assert set(found.split()) <= set(caption.split()) | {"photograph", "picture"}
        assert not found.endswith((" on", " of", " and")) and "  " not in found
        kinds.add(" ".join(found.split()[:2]))
        if found and words_of(caption)["shape"]:
            assert words_of(found)["shape"] == words_of(caption)["shape"], "things are never left out"
    assert 0.07 < empty / (20 * len(CAPTIONS)) < 0.13
    assert {"a photo", "a photograph", "a picture"} <= kinds and len(kinds) > 10
    assert {reworded("a photo of sand", rng) for _ in range(200)} == {
        "", "sand", "a photo of sand", "a photograph of sand", "a picture of sand",
    }  # fmt: skip


def test_sets_share_a_batch_and_each_is_seen_epoch_by_epoch():
    recipe, counts, shares = Recipe(steps=10, batch_size=8, lr=1.0), [20, 6, 9], [0.5, 0.25, 0.25]
    batches = [shared_indices(counts, shares, recipe, step) for step in range(10)]
    for batch in batches:
        assert [np.sum((batch >= a) & (batch < b)) for a, b in ((0, 20), (20, 26), (26, 35))] == [4, 2, 2]
    seen = np.concatenate(batches)
    assert sorted(seen[(seen >= 20) & (seen < 26)][:6]) == list(range(20, 26)), "an epoch of the second set"
    assert sorted(seen[seen < 20][:20]) == list(range(20))
    assert len(shared_indices([5], [1.0], recipe, 0)) == 8


@pytest.mark.parametrize("shares", [[0.5, 0.5], [0.0, 0.5, 0.5], [1.0, 0.5, 0.5]])
def test_shares_that_do_not_fit(shares):
    with pytest.raises(ValueError, match="one a set and leave the first"):
        shared_indices([20, 6, 9], shares, Recipe(steps=1, batch_size=8, lr=1.0), 0)

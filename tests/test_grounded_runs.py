"""Grounded Diffusion's runs from painting to scores, on random weights and an oracle that sees blobs."""

import grounded_toys as toys
import numpy as np
import pytest
import torch

from fmseg import (
    grounded_images,
    grounded_inverted,
    grounded_pictures,
    grounded_runs,
    grounded_sets,
    grounded_train,
    image_counts,
    parts,
    zoo,
)
from fmseg.generation import GROUP, text_to_image
from fmseg.grounded_pictures import PART, ask, features, kept_features, paint, painted, prompt_of
from fmseg.taps import GROUPS
from fmseg.words import VOC_THINGS

HOW = {"steps": 2, "guidance": 3.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("zoo")
    toys.make_zoo(made)
    return made


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return tmp_path_factory.mktemp("parts")


@pytest.fixture(autouse=True)
def installed(folder, shared, monkeypatch):
    toys.install(folder, monkeypatch)
    monkeypatch.setenv("FMSEG_PARTS", str(shared))
    yield
    text_to_image.cache_clear()


def test_asks_are_a_function_of_stream_and_index():
    one = [ask("one", VOC_THINGS, "test", k) for k in range(40)]
    assert [a.names[0] for a in one] == [*VOC_THINGS, *VOC_THINGS] and len({a.seed for a in one}) == 40
    two = [ask("two", VOC_THINGS, "test", k) for k in range(50)]
    assert all(len(set(a.names)) == 2 for a in two) and len({a.names for a in two}) > 40
    assert two[7] == ask("two", VOC_THINGS, "test", 7) != ask("two", VOC_THINGS, "train", 7)
    assert ask("one", ["zigzag arrow"], "test", 0).prompt == "a photo of a zigzag arrow"
    assert prompt_of(["plain arch", "dotted bar"]) == "a photo of a plain arch and a dotted bar"
    rich = [ask("one", VOC_THINGS, "test", k, rich=True).prompt for k in range(30)]
    assert all(" on " in p for p in rich) and len({p.split(" on ")[1] for p in rich}) > 4
    with pytest.raises(ValueError, match="`classes` must be at least 2 for kind 'two'"):
        ask("two", ["plain disc"], "test", 0)


def test_a_larger_set_begins_with_a_smaller_one_and_is_painted_once(monkeypatch):
    small = painted("one", VOC_THINGS, "toys", 5, **HOW)
    calls = []
    monkeypatch.setattr(grounded_pictures, "paint", lambda *a: calls.append(len(a[0])) or paint(*a))
    large = painted("one", VOC_THINGS, "toys", PART + 3, **HOW)
    assert calls == [PART] and len(large) == PART + 3
    assert np.array_equal(small.images, large.images[:5]) and small.asks == large.asks[:5]
    assert small.latents.shape == (5, 2, 4, 16, 16) and small.heat.shape == (5, 2, 16, 16)
    assert small.heat[:, 0].max((1, 2)) == pytest.approx(np.ones(5), abs=1e-3) and not small.heat[:, 1].any()


def test_features_are_those_of_the_very_call_that_painted():
    from fmseg.stable_diffusion import encode_prompts, generate_latents, sample_noise
    from fmseg.taps import Taps, guidance_halves

    pictures, pipe, recorded = painted("two", VOC_THINGS, "toys", GROUP, **HOW), text_to_image(), {}
    taps = {k: Taps(pipe.unet) for k in range(2)}
    generate_latents(
        pipe, encode_prompts(pipe, [a.prompt for a in pictures.asks]),
        sample_noise((4, 16, 16), [a.seed for a in pictures.asks]), on_step=lambda k, t, x: taps[k], **HOW,
    )  # fmt: skip
    for step, k in ((1, 1), (2, 0)):  # counted from the clean end
        recorded = guidance_halves(taps[k].features)
        found = features(pictures, step)
        for group in GROUPS:
            assert torch.allclose(found[group].float(), torch.cat(recorded[group], 1), atol=2e-2)
    with pytest.raises(ValueError, match=r"`step` must be in \[1, 2\], counted from the clean end; got 3"):
        features(pictures, 3)


def test_kept_features_equal_those_made_anew():
    pictures = painted("one", VOC_THINGS, "toys", PART + 4, **HOW)
    kept, anew = kept_features(pictures, 1), features(pictures, 1)
    again = kept_features(pictures, 1)
    assert all(torch.equal(kept[g], anew[g]) and torch.equal(again[g], kept[g]) for g in GROUPS)
    assert kept["low"].dtype == torch.float16 and len(kept["low"]) == PART + 4


ORACLE = {"name": "oracle", "rule": "best", "score": 0.0, "area": 1}


def test_features_are_read_for_the_pictures_that_are_left(monkeypatch):
    several = [painted(kind, VOC_THINGS, "toys", PART, **HOW) for kind in ("one", "two")]
    whole = grounded_sets.together([grounded_sets.triplets(p, VOC_THINGS, 1, ORACLE) for p in several])
    unread = [grounded_sets.unread(p, VOC_THINGS, ORACLE, number=k) for k, p in enumerate(several)]
    rows = [PART + 3, 2, 5, PART + 1]
    left = grounded_sets.together(unread).subset(rows)
    for keep in (True, False):
        found = grounded_sets.read(left, several, 1, keep)
        assert torch.equal(found.masks, whole.masks[rows]) and set(found.features) == set(GROUPS)
        for group in GROUPS:
            assert torch.allclose(found.features[group].float(), whole.features[group][rows].float(), atol=2e-2)
    asked = []
    monkeypatch.setattr(
        grounded_pictures, "features", lambda p, step, pipe=None: asked.append(len(p)) or features(p, step)
    )
    grounded_sets.read(left, several, 2, keep=False)
    assert asked == [2, 2], "no other picture's"
    assert grounded_sets.read(left.subset([]), several, 1).features == {}


def test_only_pictures_that_count_are_answered():
    found = grounded_runs.test_sets(toys.config())["painted"]
    assert grounded_sets.PLACE in found.data.features and found.several and 0 < len(found.data) < 60
    assert (found.data.detected | ~found.data.present).all() and len(found.pictures) == len(found.groups)
    names = [[found.data.classes[k] for k in row if k >= 0] for row in found.data.named.tolist()]
    assert [list(a.names) for a in found.pictures.asks] == names


def test_pairs_of_unseen_classes_have_noise_of_their_own():
    found = grounded_runs.test_sets(toys.config(test={"two": 20, "unseen": 20, "groups": [list(VOC_THINGS[:3])]}))
    seeds = [a.seed for pictures in found["painted"].several for a in pictures.asks]
    assert len(seeds) == len(set(seeds)) == 40


def test_where_the_oracle_finds_nothing_nothing_is_scored():
    result = toys.run(oracle={"rule": "best", "score": 0.0, "area": 5000}, undetected="zero")["result"]
    assert result["scores"]["painted"] == {} and result["miou"] == 0.0 and result["examples"]["asks"] == []


def test_the_exercise_on_timesteps_agrees_with_the_sampler():
    from fmseg.exercises_unet import timestep_of

    scheduler = text_to_image().scheduler
    for steps, step in timestep_of.cases():
        scheduler.set_timesteps(steps)
        assert timestep_of.right(steps, step) == int(scheduler.timesteps[steps - step])


def test_guidance_off_has_no_two_halves():
    with pytest.raises(ValueError, match="`guidance` must be above 1"):
        paint([ask("one", VOC_THINGS, "toys", 0)], 2, 1.0)


def by_picture(kept):
    sums = image_counts.unpack(kept["painted"]["counts"]).sum(0)
    return grounded_images.mean_over_classes(kept["painted"]["columns"], sums)


def test_a_head_is_trained_and_scored_in_every_column():
    result = toys.run()["result"]
    scores = {column: found["miou"] for column, found in result["scores"]["painted"].items()}
    assert {c: float(v) for c, v in by_picture(result["images"]).items()} == pytest.approx(scores, abs=1e-3)
    assert set(result["scores"]["painted"]) == set(grounded_runs.scored.COLUMNS)
    assert all(0 <= s["miou"] <= 100 and s["pictures"] > 0 for s in result["scores"]["painted"].values())
    again = toys.run()["result"]
    assert again == result
    assert toys.run(seed=1)["result"]["weights"] != result["weights"]


def test_unseen_classes_are_never_taught():
    config = toys.config()
    data = grounded_runs.training_set(config)
    named = {data.classes[k] for row in data.named.tolist() for k in row if k >= 0}
    assert named and named <= set(config["seen"])
    assert data.detected.any(1).all()  # pictures without any mask are no step


def test_zero_masks_keep_pictures_in_which_nothing_was_found():
    config = toys.config(oracle={"rule": "best", "score": 0.0, "area": 150})
    skipped = grounded_runs.training_set(config)
    zeros = grounded_runs.training_set(config | {"undetected": "zero"})
    assert len(zeros) > len(skipped) and not zeros.detected.any(1).all()
    one, other = (grounded_runs.run(config | {"undetected": u})["result"]["weights"] for u in ("zero", "skip"))
    assert one != other


def test_pictures_of_seen_classes_alone():
    what = {"from": "painted", "one": 20, "two": 20, "of": "seen", "share": 1.0}
    data = grounded_runs.training_set(toys.config(pictures=what, seen=list(VOC_THINGS[:3])))
    assert data.classes == VOC_THINGS[:3] and len(data) > 15


def test_official_quirks_are_options():
    """The same class twice in a prompt, and an oracle that is handed red for blue."""
    pairs = [ask("any two", VOC_THINGS[:2], "toys", k).names for k in range(20)]
    assert {len(set(p)) for p in pairs} == {1, 2}
    what = {"from": "painted", "any two": 20, "of": "seen", "share": 1.0}
    options = {"rule": "best", "score": 0.0, "area": 1}
    config = toys.config(pictures=what, oracle=options, seen=list(VOC_THINGS[:2]))
    data = grounded_runs.training_set(config)
    twice = data.named[:, 0] == data.named[:, 1]
    assert twice.any() and torch.equal(data.masks[twice, 0], data.masks[twice, 1])
    swapped = grounded_runs.training_set(config | {"oracle": options | {"swapped": True}})
    assert len(swapped) != len(data) or not torch.equal(swapped.masks, data.masks)


def test_another_step_gives_another_head():
    assert toys.run(step=2)["result"]["weights"] != toys.run()["result"]["weights"]


def test_things_of_any_word_are_grouped_by_how_new_they_are():
    models = {name: zoo.weights_hash(name) for name in ("diffusion", "oracle", "judge")}
    found = toys.run(test={"novel": 60}, zoo=models)["result"]["scores"]["novel"]
    assert set(found) <= {"seen", "new combination", "one new word", "both words new"} and len(found) >= 3


def test_daam_is_scored_with_its_sweep_and_the_ceilings():
    config = {k: v for k, v in toys.config(method="daam").items() if k not in ("head", "undetected")}
    result = grounded_runs.run(config | {"train": {"steps": 1}})["result"]
    best, fixed = result["scores"]["painted"], result["fixed"]["painted"]
    assert all(best[c]["miou"] >= fixed[c]["miou"] for c in best)
    for kept, scores in (("images", best), ("fixed images", fixed)):
        found = by_picture(result[kept])
        wanted = {c: s["miou"] for c, s in scores.items()}
        assert {c: float(found[c]) for c in scores} == pytest.approx(wanted, abs=1e-3)
    ceilings = [result["ceiling"]["painted"][str(n)]["one seen"]["miou"] for n in (8, 16, 32)]
    assert ceilings == sorted(ceilings) and ceilings[-1] > 60


def test_inverted_pictures_carry_true_masks():
    found = grounded_inverted.inverted("voc", "val", 12, seed=0, steps=2)
    data = grounded_inverted.true_triplets(found, found_classes("voc"), VOC_THINGS, 1)
    assert data.detected.equal(data.present) and len(data) == len(found)
    row = data.named.tolist()[0]
    first = found_classes("voc").index(data.classes[row[0]])
    assert np.array_equal(data.masks[0, 0].numpy(), found.truth[0] == first)
    for names, present in zip(found.asks, data.named.tolist(), strict=True):
        assert [data.classes[k] for k in present if k >= 0] == list(names.names)


def found_classes(draw):
    from fmseg.datasets import get_draw

    return get_draw(draw).classes


@pytest.mark.parametrize("source", ["inverted, true masks", "inverted, oracle"])
def test_learning_from_inverted_pictures_scores_against_truth(source):
    what = {"from": source, "images": 20}
    result = toys.run(pictures=what, test={"one": 20, "real": 20})["result"]
    assert set(result["scores"]) == {"painted", "real, truth", "real, oracle"}
    assert set(result["against truth"]) == {"oracle", "ceiling 8", "ceiling 16", "ceiling 32"}
    assert result["against truth"]["ceiling 32"]["seen"]["miou"] > result["against truth"]["ceiling 8"]["seen"]["miou"]


def test_killed_and_resumed_ends_with_the_same_bits(tmp_path):
    class Killed(Exception):
        pass

    def kill(step, loss):
        if step == 2:
            raise Killed

    whole = toys.run()
    with pytest.raises(Killed):
        grounded_runs.run(toys.config(), checkpoint=tmp_path / "run.pt", checkpoint_every=1, on_step=kill)
    steps = []
    resumed = grounded_runs.run(
        toys.config(), checkpoint=tmp_path / "run.pt", checkpoint_every=1, on_step=lambda s, _: steps.append(s)
    )
    assert steps == [3] and resumed["result"] == whole["result"] and resumed["curve"] == whole["curve"]


def test_a_foreign_checkpoint_is_refused(tmp_path):
    grounded_runs.run(toys.config(), checkpoint=tmp_path / "run.pt")
    with pytest.raises(ValueError, match="belongs to another run: seed"):
        data = grounded_runs.training_set(toys.config())
        head = grounded_train.build(toys.SMALL, toys.config()["head"], 1)
        config = grounded_train.TrainConfig.from_dict({**toys.config()["train"], "seed": 1})
        grounded_train.train(head, data, config, checkpoint=tmp_path / "run.pt")


def test_a_head_learns_what_it_is_shown():
    """Two classes whose masks are the halves of the picture, told apart by their text."""
    torch.manual_seed(0)
    features = {g: torch.randn(8, c, s, s).half() for (g, c), s in zip({"low": 96, "mid": 96, "high": 96,
                "highest": 112}.items(), (2, 4, 8, 16), strict=True)}  # fmt: skip
    features["highest"][:, 0] = torch.linspace(-2, 2, 16)[None, None]
    masks = torch.zeros(8, 2, 64, 64, dtype=torch.bool)
    masks[:, 0, :, :32] = masks[:, 1, :, 32:] = True
    named = torch.tensor([[0, 1]] * 8)
    images = np.zeros((8, 64, 64, 3), np.uint8)
    text = torch.randn(2, 16)
    data = grounded_sets.Triplets(features, named, masks, named >= 0, ("a", "b"), text, images)
    sizes = {"widths": [4, 4, 4, 8], "dim": 16, "heads": 2, "layers": 1, "hidden": 16}
    head = grounded_train.build(toys.SMALL, sizes, 0)
    config = grounded_train.TrainConfig(steps=40, batch_size=4, lr=5e-3, weight_decay=0.0, schedule="constant")
    how = grounded_train.train(head, data, config)
    answer = grounded_train.answers(head, data) > 0
    assert how["losses"][-1] < 0.7 * how["losses"][0] and ((answer & masks).sum() / (answer | masks).sum()) > 0.8
    assert how["curve"][-1][0] == 40 and len(how["curve"]) == 20


def test_mistakes_have_clear_messages():
    with pytest.raises(ValueError, match="unknown key of a run's configuration 'undetect'; did you mean 'undetected'"):
        grounded_runs.run(toys.config() | {"undetect": "skip"})
    with pytest.raises(ValueError, match="does not hold the hashes of the shipped models"):
        grounded_runs.run(toys.config(zoo={"diffusion": "0000"}))
    with pytest.raises(ValueError, match="paint more, or lower `oracle.area`"):
        grounded_runs.training_set(toys.config(oracle={"rule": "best", "score": 0.0, "area": 5000}))
    with pytest.raises(ValueError, match="`pictures.from` must be one of"):
        grounded_runs.training_set(toys.config(pictures={"from": "paint"}))


def test_parts_are_whole_even_where_two_sets_share_a_stream(shared):
    folders = [p for p in (shared / "pictures").iterdir()]
    assert all(len(np.load(f)["images"]) == PART for p in folders for f in p.glob("*.npz")) and folders
    assert all((p / "about.json").exists() for p in folders) and parts.home() == shared

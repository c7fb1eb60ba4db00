"""Protocol I at the paper's size, on tiny random models: the same results as the miniature's scores, part by part."""

from copy import deepcopy
from dataclasses import replace

import grounded_toys as toys
import numpy as np
import pytest
import torch

from fmseg import distributed, grounded_examples, grounded_images, names, parts, real_grounded
from fmseg import grounded_scores as scored
from fmseg import grounded_tables as tables
from fmseg import real_grounded_configs as configs
from fmseg import real_grounded_pictures as real_pictures
from fmseg.grounded_full import random_pipeline
from fmseg.grounded_sets import Triplets
from fmseg.grounded_tally import Tally, by_column, packed
from fmseg.oracle import Instance
from fmseg.settings import load

KNOWN = names.COCO[1:]
TEST = {"one": 40, "two": 20, "unseen": 20}


@pytest.fixture(scope="module")
def models():
    pipe = random_pipeline(toys.SMALL, toys.AUTOENCODER, toys.TEXT | {"max_position_embeddings": 77})
    pipe.tokenizer = deepcopy(pipe.tokenizer)
    pipe.tokenizer.model_max_length = 77
    return real_pictures.Models(pipe, half, KNOWN, {"diffusion": "toy", "oracle": "half"})


def half(image):
    """An oracle that finds everything but bottles in a part of the picture that depends on it."""
    high, wide = image.shape[:2]
    cut = 1 + int(image[..., 0].sum()) % (high - 1)
    mask = np.zeros((high, wide), bool)
    mask[:cut] = True
    return [Instance(label, 0.9, mask) for label, name in enumerate(KNOWN) if name != "bottle"]


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """One folder of parts: test pictures are painted once."""
    return tmp_path_factory.mktemp("parts")


@pytest.fixture(autouse=True)
def toy(models, shared, monkeypatch):
    monkeypatch.setenv("FMSEG_PARTS", str(shared))
    monkeypatch.setattr(real_grounded, "load", lambda diffusion, oracle: models)


@pytest.fixture(scope="module")
def results(models, shared):
    """Results of a head and of DAAM."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FMSEG_PARTS", str(shared))
        patch.setattr(real_grounded, "load", lambda diffusion, oracle: models)
        return {"head": real_grounded.run(config())["result"], "daam": real_grounded.run(daam())["result"]}


def config(**changes):
    split = configs.split_of("voc", 1)
    made = {
        "method": "head", "seed": 0, "draw": "voc", "seen": list(split.seen), "step": 1,
        "sampling": {"steps": 2, "train": 3.0, "test": 3.0},
        "oracle": {"rule": "best", "score": 0.05, "area": 1, "swapped": False},
        "pictures": {"from": "painted", "objects": "random", "repeated": False},
        "test": TEST | {"groups": [list(split.unseen)]}, "zoo": {"diffusion": "toy", "oracle": "half"},
        "head": {"widths": [2, 2, 2, 2], "dim": 8, "heads": 2, "layers": 1, "hidden": 8},
        "undetected": "skip", "train": {"steps": 4, "lr": 0.001},
    }  # fmt: skip
    return made | changes


def daam():
    return {k: v for k, v in config(method="daam", train={"steps": 0}).items() if k not in ("head", "undetected")}


def whole(models, wanted):
    """All test pictures at once: parts put together as the miniature has them."""
    some = list(real_pictures.test_parts(models, wanted, real_grounded.CLASSES["voc"]))
    data = [part.data for part in some]
    joined = Triplets(
        {}, *(torch.cat([getattr(d, what) for d in data]) for what in ("named", "masks", "detected")),
        data[0].classes, data[0].text, np.concatenate([d.images for d in data]),
    )  # fmt: skip
    return some, joined


# -- the tally ------------------------------------------------------------------------------------------------------


def made_up(count, seed=0, classes=4):
    draw = torch.Generator().manual_seed(seed)
    named = torch.randint(0, classes, (count, 2), generator=draw)
    named[::3, 1] = -1
    masks = torch.rand(count, 2, 5, 5, generator=draw) > 0.5
    detected = (torch.rand(count, 2, generator=draw) > 0.1) & (named >= 0)
    return Triplets(
        {}, named, masks, detected, tuple("abcd"), torch.zeros(classes, 1), np.zeros((count, 5, 5, 3), np.uint8)
    )


@pytest.mark.parametrize("size", [1, 7, 60])
def test_a_tally_of_parts_is_the_score_of_the_whole(size):
    data = made_up(60)
    answers = torch.rand(data.masks.shape, generator=torch.Generator().manual_seed(9)) > 0.4
    groups = scored.columns_of(data, "ab")
    groups[5] = None
    tally = Tally(4)
    for start in range(0, 60, size):
        rows = range(start, min(60, start + size))
        tally.update(answers[list(rows)], data.subset(list(rows)), groups[start : rows.stop])
    wanted = scored.scores(answers, data, groups)
    assert {k: v for k, v in tally.compute().items()} == {c: wanted[c] for c in scored.COLUMNS if c in wanted}
    assert packed(tally.counts()) == grounded_images.counted(answers, data, groups, scored.COLUMNS)


def test_an_empty_union_is_right_and_nothing_counts_without_pictures():
    data = made_up(1)
    data.masks[:] = False
    data.detected[:] = data.present
    tally = Tally(4)
    assert tally.compute() == {} and tally.counts().shape == (1, 20, 3)
    tally.update(data.masks, data, ["one seen"])
    assert tally.compute()["one seen"]["miou"] == 100.0
    with pytest.raises(ValueError, match=r"`masks` must be \(1, 2, 5, 5\) with a group a picture; got .* and 2 groups"):
        tally.update(data.masks, data, ["one seen"] * 2)


def test_columns_of_several_tallies():
    data, groups = made_up(30), ["one seen" if k % 2 else "two seen" for k in range(30)]
    some = {"all": Tally(4), "none": Tally(4)}
    some["all"].update(torch.ones_like(data.masks), data, groups)
    some["none"].update(torch.zeros_like(data.masks), data, groups)
    made = by_column(some, {"one seen": "all", "two seen": "none"})
    assert np.array_equal(made[:, :4], some["all"].counts()[:, :4])
    assert np.array_equal(made[:, 8:12], some["none"].counts()[:, 8:12]) and not made[:, 12:].any()


# -- pictures -------------------------------------------------------------------------------------------------------


def test_pictures_are_asked_for_in_official_words_and_kept(models, monkeypatch):
    some, data = whole(models, config())
    prompts = [a.prompt for part in some for a in part.pictures.asks]
    assert len(prompts) == len(data) == 80 and prompts[8] == "a photograph of a chair"
    assert prompts[10].startswith("a photograph of a ") and all(" and a " in p for p in prompts[40:])
    assert {names.VOC[1:][k] for row in data.named[60:].tolist() for k in row} == set(configs.split_of("voc", 1).unseen)
    bottle = names.VOC[1:].index("bottle")
    assert torch.equal(data.detected, (data.named >= 0) & (data.named != bottle))
    monkeypatch.setattr(real_pictures, "paint", None)  # nothing is painted or looked at again
    models = replace(models, oracle=None)
    again, same = whole(models, config())
    assert torch.equal(same.masks, data.masks) and np.array_equal(same.images, data.images)
    rest = next(real_pictures.test_parts(models, config(test=TEST | {"one": 7, "groups": []}), names.VOC[1:]))
    assert len(rest.data) == len(rest.pictures) == 7 and torch.equal(rest.data.masks, data.masks[:7])


def test_a_class_that_the_detector_lacks_is_refused():
    assert real_pictures.detector_names(["tvmonitor", "dog"], KNOWN) == ["tv", "dog"]
    with pytest.raises(ValueError, match="`class of the oracle` must be one of 80 known names; got 'unicorn'"):
        real_pictures.detector_names(["unicorn"], KNOWN)


# -- runs -----------------------------------------------------------------------------------------------------------


def test_a_heads_scores_are_those_of_all_pictures_at_once(models):
    done = real_grounded.run(config())
    some, data = whole(models, config())
    answers = torch.cat([real_grounded.answer(models, done["model"], part, 1) for part in some]) > 0
    groups = scored.columns_of(data, config()["seen"])
    result = done["result"]
    assert result["scores"]["painted"] == scored.scores(answers, data, groups) and len(result["scores"]["painted"]) == 5
    assert result["miou"] == scored.mean_score(result["scores"]["painted"])
    assert result["images"]["painted"] == grounded_images.counted(answers, data, groups, scored.COLUMNS)
    ceiling = scored.scores(scored.through_grid(data.masks, 64), data, groups)
    assert result["ceiling"]["painted"]["64"] == ceiling
    assert result["pictures"] + result["passed"] == 4
    kept = result["examples"]
    rows = grounded_examples.rows_of(data, groups)
    asked = [a.prompt for part in some for a in part.pictures.asks]
    assert [a["prompt"] for a in kept["asks"]] == [asked[row] for row in rows] and len(rows) == 10
    for mine, row in zip(grounded_examples.masks_of(kept), rows, strict=True):
        assert np.array_equal(mine, answers[row, : len(mine)].numpy())


def test_a_picture_is_answered_for_as_if_it_were_alone(models):
    head, _ = real_grounded.trained(config(), models)
    part = next(real_pictures.test_parts(models, config(test={"two": 20}), names.VOC[1:]))
    together = real_grounded.answer(models, head, part, 2)
    alone = real_pictures.Part(part.pictures.rows(3, 4), part.data.subset([3]))
    # groups of another size are summed in another order, and features are kept in half precision
    assert torch.allclose(real_grounded.answer(models, head, alone, 2)[0], together[3], atol=0.01)
    assert not torch.allclose(real_grounded.answer(models, head, alone, 1)[0], together[3], atol=0.01)


def test_daam_is_swept_over_all_pictures(models):
    done = real_grounded.run(daam())
    some, data = whole(models, daam())
    groups = scored.columns_of(data, daam()["seen"])
    pictures = replace(some[0].pictures, heat=np.concatenate([p.pictures.heat for p in some]))
    wanted, result = scored.swept(pictures, data, groups), done["result"]
    assert result["fixed"]["painted"] == wanted["fixed"] and result["curve"]["painted"] == wanted["curve"]
    assert result["scores"]["painted"] == wanted["best"] and done["model"] is None
    fixed = scored.daam_masks(pictures, data, scored.THRESHOLD)
    assert result["fixed images"]["painted"] == grounded_images.counted(fixed, data, groups, scored.COLUMNS)


def test_a_run_that_was_broken_off_ends_with_the_same_bits(tmp_path, results):
    path = tmp_path / "run.pt"

    class Stop(Exception):
        pass

    def stop(step, loss):
        if step == 2:
            raise Stop

    with pytest.raises(Stop):
        real_grounded.run(config(), checkpoint=path, checkpoint_every=1, on_step=stop)
    steps = []
    again = real_grounded.run(config(), checkpoint=path, checkpoint_every=1, on_step=lambda k, loss: steps.append(k))
    assert steps == [3, 4] and again["result"] == results["head"] and len(again["curve"]) <= 4


def test_options_reach_the_training():
    made = real_grounded.recipe(config(undetected="zero", oracle={"rule": "union", "score": 0.8, "area": 1}))
    assert (made.iterations, made.lr, made.rule, made.least, made.undetected) == (4, 0.001, "union", 0.8, "zero")
    assert real_grounded.curve([1.0, None, 3.0, None], points=2) == [[2, 1.0], [4, 3.0]]
    assert real_grounded.curve([]) == [] and real_grounded.curve([None]) == []


def test_what_cannot_be_run_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="lacks zoo"):
        real_grounded.run({k: v for k, v in config().items() if k != "zoo"})
    with pytest.raises(ValueError, match="`method`"):
        real_grounded.run(config(method="heads"))
    monkeypatch.setattr(distributed, "world", lambda: distributed.World(0, 2))
    with pytest.raises(RuntimeError, match="start one process a GPU without torchrun"):
        real_grounded.run(config())


# -- tables ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["T1", "T3", "T4", "TIMESTEPS"])
def test_records_of_such_runs_make_the_papers_tables(which, results):
    settings, experiment = load("paper"), vars(tables)[which]
    wanted = experiment.configs(settings)
    assert experiment.trained_by(settings) == "fmseg.real_grounded" and wanted
    records = [{"config": c, "key": str(k), "code": {}, "result": results[c["method"]]} for k, c in enumerate(wanted)]
    made = experiment.table(settings, records)
    assert made["id"] == experiment.id and "on line" in made["note"]
    cells = [cell for row in made["rows"] for cell in row["cells"].values()]
    assert sum(bool(cell["n"]) for cell in cells) > len(cells) / 2
    assert any("64x64" in row["label"] for row in made["rows"])
    empty = experiment.table(settings, [None] * len(wanted))
    assert not any(cell["n"] for row in empty["rows"] for cell in row["cells"].values())


def test_a_table_shares_its_heads_with_the_others():
    settings = load("paper")
    one, three = (experiment.configs(settings) for experiment in (tables.T1, tables.T3))
    shared = [c for c in three if c in one]
    assert len(shared) == len(three) // 2 and all(c["undetected"] == "skip" for c in shared)
    curve = tables.TIMESTEPS.configs(settings)
    assert [c["step"] for c in curve if c in one] == [settings.get("grounded_real.step")]
    assert {len(c["seen"]) for c in tables.T4.configs(settings)} == {5, 20, 35, 50, 65}


def test_parts_are_shared_by_what_they_are_made_of(models, tmp_path, monkeypatch):
    monkeypatch.setenv("FMSEG_PARTS", str(tmp_path))
    list(real_pictures.test_parts(models, config(test={"one": 20}), names.VOC[1:]))
    other = config(test={"one": 20}, oracle=config()["oracle"] | {"rule": "union"})
    list(real_pictures.test_parts(models, other, names.VOC[1:]))
    assert len(list((parts.home() / "pictures").iterdir())) == 1 and len(list((parts.home() / "oracle").iterdir())) == 2

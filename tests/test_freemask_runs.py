"""FreeMask's chain on a zoo of random weights: what a run trains on, every paradigm, resumption, errors."""

import numpy as np
import pytest
import toy_zoo

from fmseg import filter_model, freemask, freemask_runs, own_generator, supervised, zoo
from fmseg.datasets import IGNORE, draw_set
from fmseg.evaluation import weights_hash
from fmseg.filter_model import class_losses
from fmseg.freemask_runs import repeats, run
from fmseg.resample import MOST, counts_by_rank
from fmseg.segmenters import zoo_backbone

MASKS, CLASSES = 8, 48


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Shared things of this file's runs, beside a zoo of random weights."""
    folder = tmp_path_factory.mktemp("freemask")
    patch = pytest.MonkeyPatch()
    patch.setenv("FMSEG_ZOO", str(toy_zoo.make(folder / "zoo", ("segformer", "mask2former"))))
    patch.setenv("FMSEG_PARTS", str(folder / "shared"))
    yield folder / "shared"
    patch.undo()


@pytest.fixture
def base(home):
    train = {"steps": 3, "batch_size": 4, "lr": 0.002, "augment": ["flip"]}
    return {
        "method": "segformer", "backbone": zoo_backbone("segformer"), "seed": 100, "draw": "ade", "split": "train",
        "images": MASKS, "validation": 4, "size": 64, "paradigm": "real", "train": train,
    }  # fmt: skip


@pytest.fixture
def config(base):
    names = {"weights": "layout-ade", "base": "diffusion"}
    hashes = {key: zoo.weights_hash(name) for key, name in names.items()}
    judge = {"method": "segformer", "backbone": base["backbone"], "seed": 200, "train": base["train"], "folds": 2}
    return base | {
        "paradigm": "synthetic",
        "generator": {"model": "layout-ade", **hashes, "steps": 1, "guidance": 2.0},
        "filter": judge,
        "synthetic": {"most": 3, "resample": True, "alpha": 1.0, "means": "training"},
    }


def test_real_is_the_supervised_run_to_the_bit(base):
    mine = run(base)
    same = {key: value for key, value in base.items() if key in supervised.KEYS}
    if "backbone" in supervised.KEYS:
        theirs = supervised.run(same)
    else:  # from scratch, where the supervised run knows no other
        mine, theirs = run(base | {"backbone": "scratch"}), supervised.run(same)
    assert mine["result"] == theirs["result"] and mine["curve"] == theirs["curve"]


def test_real_images_weigh_as_much_as_synthetic_ones():
    totals = [int(counts_by_rank(20210, MOST).sum()), int(counts_by_rank(118287, 6).sum())]
    assert [repeats(t, n) for t, n in zip(totals, (20210, 118287), strict=True)] == [11, 4]  # the official configs
    assert repeats(20 * 20210, 20210) == 20 and repeats(3, 100) == 1


@pytest.mark.parametrize("paradigm", ["synthetic", "joint", "pretrain"])
def test_a_run_is_a_function_of_its_configuration(config, paradigm, tmp_path):
    config = config | {"paradigm": paradigm} | ({"finetune": config["train"]} if paradigm == "pretrain" else {})
    first = run(config)
    again = run(config, checkpoint=tmp_path / "run.pt", checkpoint_every=1)
    assert first["result"] == again["result"] and first["curve"] == again["curve"]
    assert weights_hash(first["model"])[:16] == first["result"]["weights"]
    expected = int(counts_by_rank(MASKS, 3).sum())
    facts = first["result"]["synthetic"]
    assert facts["pictures"] == expected and 0 < facts["kept"] < 1 and len(facts["kept by class"]) == CLASSES
    assert facts.get("repeat") == (repeats(expected, MASKS) if paradigm == "joint" else None)
    assert ("miou before finetuning" in facts) == (paradigm == "pretrain")
    assert first["curve"][-1][0] == (6 if paradigm == "pretrain" else 3)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run.pt"]


@pytest.mark.parametrize("stop_after", [2, 5])
def test_a_pretrained_run_that_was_stopped_goes_on_to_the_same_bits(config, tmp_path, stop_after):
    config = config | {"paradigm": "pretrain", "finetune": config["train"]}
    done = []

    def stop(step, loss):
        done.append(step)
        if len(done) == stop_after:
            raise KeyboardInterrupt

    where = {"checkpoint": tmp_path / "run.pt", "checkpoint_every": 1}
    with pytest.raises(KeyboardInterrupt):
        run(config, on_step=stop, **where)
    resumed, whole = run(config, **where), run(config)
    assert resumed["result"] == whole["result"] and resumed["curve"] == whole["curve"]


def test_drawing_first_filters_the_same_labels_as_filtering_everything(config):
    drawn = freemask.synthetic_set(config)
    everything = freemask.synthetic_set(config | {"synthetic": config["synthetic"] | {"resample": False}})
    assert len(everything.pairs) == 3 * MASKS and len(drawn.pairs) < len(everything.pairs)
    place = {tuple(p): k for k, p in enumerate(everything.pairs.tolist())}
    chosen = [place[tuple(p)] for p in drawn.pairs.tolist()]
    assert (everything.images[chosen] == drawn.images).all() and (everything.labels[chosen] == drawn.labels).all()
    raw = freemask.synthetic_set(
        config | {"synthetic": {"most": 3, "resample": False, "alpha": None, "means": "training"}}
    )  # fmt: skip
    real = draw_set("ade", "train", MASKS).labels
    assert (raw.labels == real[raw.pairs[:, 0]]).all() and (raw.images == everything.images).all()
    kept = everything.labels != IGNORE
    assert (everything.labels == np.where(kept, raw.labels, IGNORE)).all() and kept.any() and not kept.all()
    for c in np.unique(real):
        assert everything.kept[c] == pytest.approx(kept[raw.labels == c].mean())
    assert np.isnan(everything.kept[np.setdiff1d(np.arange(CLASSES), np.unique(real))]).all()


def test_a_larger_margin_keeps_more_and_cross_fitted_means_are_larger(config):
    kept = []
    for alpha in (0.5, 1.0, 2.0):
        made = freemask.synthetic_set(config | {"synthetic": config["synthetic"] | {"alpha": alpha}})
        kept.append(made.facts()["kept"])
    assert kept == sorted(kept) and kept[0] < kept[-1]
    own = filter_model.trained(freemask.filter_config(config)).on_training
    crossed = filter_model.crossfitted(freemask.filter_config(config), 2)
    assert (crossed.counts == own.counts).all() and crossed.sums.sum() != own.sums.sum()
    means = config | {"synthetic": config["synthetic"] | {"means": "cross-fitted"}}
    assert np.allclose(freemask.class_means(means), crossed.compute())


def test_the_filter_model_is_trained_once_and_read_back(config, home):
    judge = freemask.filter_config(config)
    one = filter_model.trained(judge)
    files = {p: p.stat().st_mtime_ns for p in (home / "filters").rglob("*.npz")}
    again = filter_model.trained(judge)
    assert weights_hash(one.model) == weights_hash(again.model)
    assert files == {p: p.stat().st_mtime_ns for p in (home / "filters").rglob("*.npz")}
    real = draw_set("ade", "train", MASKS)
    stats = class_losses(one.model, real.images, real.labels, CLASSES)
    assert (stats.counts == one.on_training.counts).all() and np.allclose(stats.sums, one.on_training.sums)
    summary = one.summary()
    assert summary["training loss"] == pytest.approx(stats.sums.sum() / stats.counts.sum())
    assert set(summary) == {"training loss", "validation loss", "miou"}
    fold = filter_model.trained(judge, (1, 2))
    mine = np.arange(MASKS) % 2 == 1
    assert (
        fold.held_out.counts.sum() == real.labels[mine].size
        and fold.on_training.counts.sum() == real.labels[~mine].size
    )


def test_pictures_are_shared_and_a_smaller_most_begins_a_larger(config):
    freemask.synthetic_set(config)
    real = draw_set("ade", "train", MASKS)
    for most in (1, 2, 3):
        assert not freemask.shelf(config, real, most).missing()
    other = config | {"generator": config["generator"] | {"guidance": 1.0}}
    assert len(freemask.shelf(other, real, 1).missing()) == 1


@pytest.mark.parametrize("start", ["zoo", "scratch"])
def test_a_generator_of_its_own_is_trained_once(config, home, start):
    own = {
        "draw": "ade", "images": MASKS, "size": 64, "start": start, "base": zoo.weights_hash("diffusion"),
        "steps": 2, "batch_size": 2, "lr": 0.001, "average": 0.5, "seed": 200,
    }  # fmt: skip
    config = config | {"generator": {"own": own, "steps": 1, "guidance": 2.0}}
    config["synthetic"] = {"most": 1, "resample": False, "alpha": None, "means": "training"}
    made = freemask.synthetic_set(config)
    folders = sorted((home / "generators").glob("*/*.npz"))
    again = freemask.synthetic_set(config)
    assert (made.images == again.images).all() and made.images.std() > 0
    card = own_generator.card(own)
    assert card["images"] == MASKS and card["exposures"] == 4 and np.isfinite(card["loss"][-1][1])
    assert folders == sorted((home / "generators").glob("*/*.npz"))
    wrong = {"own": own | {"base": "0" * 16}, "steps": 1, "guidance": 2.0}
    with pytest.raises(ValueError, match="`base` must be .*the zoo's text-to-image model; got '0000"):
        freemask.painter(wrong, ("a",))


def test_a_generators_pictures_are_measured_where_asked_for(config, monkeypatch):
    seen = {}
    monkeypatch.setattr(freemask_runs, "oracle_miou", lambda images, labels: float(len(images)))
    monkeypatch.setattr(freemask_runs, "clip_features", lambda images: seen.setdefault(len(seen), images))
    monkeypatch.setattr(freemask_runs, "frechet", lambda a, b: float((a != b).any()))
    done = run(config | {"quality": 5})
    assert done["result"]["generator"] == {"layout": 5.0, "real": 5.0, "frechet": 1.0}
    assert (seen[0] == draw_set("ade", "train", 5).images).all()


def test_mask2former_may_leave_out_what_the_filter_dropped(config):
    config = config | {"method": "mask2former", "backbone": zoo_backbone("mask2former")}
    negatives, excluded = (run(config | {"exclude_ignored": value}) for value in (False, True))
    assert negatives["result"]["weights"] != excluded["result"]["weights"]


def test_what_does_not_fit_is_named(config, base):
    with pytest.raises(ValueError, match="`paradigm` must be one of real, synthetic, joint, pretrain; got 'both'"):
        run(base | {"paradigm": "both"})
    with pytest.raises(ValueError, match="lacks synthetic, generator, filter"):
        run(base | {"paradigm": "joint"})
    with pytest.raises(ValueError, match="unknown key of a run's configuration 'generator'"):
        run(base | {"generator": config["generator"]})
    with pytest.raises(ValueError, match="lacks finetune"):
        run(config | {"paradigm": "pretrain"})
    with pytest.raises(ValueError, match="training split serves all seeds"):
        run(config | {"draw": "voc"})
    with pytest.raises(ValueError, match="`weights` must be .*the zoo's layout-ade; got 'old'"):
        freemask.synthetic_set(config | {"generator": config["generator"] | {"weights": "old"}})
    with pytest.raises(ValueError, match="`means` must be one of training, cross-fitted; got 'synthetic'"):
        run(config | {"synthetic": config["synthetic"] | {"means": "synthetic"}})
    with pytest.raises(ValueError, match="`alpha` must be a number >= 0"):
        run(config | {"synthetic": config["synthetic"] | {"alpha": -1.0}})
    with pytest.raises(ValueError, match="`most` must be"):
        run(config | {"synthetic": config["synthetic"] | {"most": 0}})
    with pytest.raises(ValueError, match="'mask2former' does not"):
        filter_model.trained(freemask.filter_config(config) | {"method": "mask2former"})
    with pytest.raises(ValueError, match="`folds` must be from 2 to the number of images, 8; got 9"):
        filter_model.crossfitted(freemask.filter_config(config), 9)

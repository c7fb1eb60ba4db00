"""What Grounded Diffusion's runs are predicted to cost: shared pictures counted once, by hand and on a toy zoo."""

import json
from itertools import count

import grounded_toys as toys
import pytest
from toys import ROOT

from fmseg import grounded_tables, plan, plan_grounded, plan_real_grounded, zoo
from fmseg.generation import text_to_image
from fmseg.grounded_pictures import PART
from fmseg.settings import load
from fmseg.zero_shot_table import T2

UNITS = {"paint": 1.0, "look": 0.1, "read": 0.01, "answer": 0.001, "step": 0.5}
TABLES = {e.id: e for e in (*(vars(grounded_tables)[n] for n in ("T1", "NOVELTY", "T3", "TIMESTEPS", "INVERSION")), T2)}


@pytest.fixture
def cards(tmp_path, monkeypatch):
    """A zoo of cards alone: configurations name hashes, nothing is loaded."""
    for name in ("diffusion", "oracle", "judge", "clip", "backbone-segformer"):
        (tmp_path / name).mkdir()
        (tmp_path / name / zoo.CARD).write_text(json.dumps({"files": {"model": name}}))
    monkeypatch.setenv("FMSEG_ZOO", str(tmp_path))


def runs_of(id, profile="mini"):
    return TABLES[id].configs(load(profile, ROOT))


def taught():
    own = load("mini", ROOT).get("grounded.pictures")
    return own["one"] + own["two"]


def held_out(draw):
    """Test pictures of a draw: of one thing, of two, and pairs of unseen classes of three splits."""
    own = load("mini", ROOT).get(f"grounded.test.{draw}")
    return own["one"] + own["two"] + 3 * own["unseen"]


def test_pictures_of_all_splits_and_seeds_are_painted_once(cards):
    runs = [(config, {**dict.fromkeys(UNITS, 0.0), "paint": 1.0}) for config in runs_of("grounded-t1")]
    assert plan_grounded.shared_seconds(runs) == (taught() + held_out("voc")) + (taught() + held_out("coco"))
    assert plan_grounded.shared_seconds(runs[:1]) == held_out("voc"), "DAAM learns from nothing"
    assert plan_grounded.shared_seconds([]) == 0.0


def test_whole_parts_are_painted(cards):
    config = runs_of("grounded-novelty")[0] | {"test": {"novel": PART + 1}}
    assert plan_grounded.shared_seconds([(config, UNITS)]) == pytest.approx(2 * PART * 1.11)


def test_inverted_pictures_belong_to_a_seed(cards):
    runs = [c for c in runs_of("grounded-inversion") if "inverted" in c["pictures"]["from"]]
    names = [name for config in runs for name in plan_grounded.shared(config)]
    assert len({n for n in names if n[0] == "train"}) == 5 and ("val", "voc") in names


def test_features_of_noisier_steps_are_each_run_s_own(cards):
    clean, noisy = (next(c for c in runs_of("grounded-timesteps") if c["step"] == step) for step in (1, 12))
    answered, read = held_out("voc"), held_out("voc") + taught()
    assert plan_grounded.own(clean, UNITS) == pytest.approx(answered * 0.001)
    assert plan_grounded.own(noisy, UNITS) == pytest.approx(answered * 0.001 + read * 0.01)
    assert "read" not in next(iter(plan_grounded.shared(noisy).values()))
    assert plan.kind_of(clean) != plan.kind_of(noisy) == plan.kind_of(noisy | {"step": 7, "seed": 4})


def test_a_head_that_labels_several_sets_is_trained_once(cards):
    runs = [c for c in runs_of("grounded-t2") if c["draw"] == "voc" and c["seed"] == 0 and c.get("sets")]
    only_step = {**dict.fromkeys(UNITS, 0.0), "step": 1.0}
    assert plan_grounded.shared_seconds((c, only_step) for c in runs) == runs[0]["head"]["train"]["steps"]
    only_answer = {**dict.fromkeys(UNITS, 0.0), "answer": 1.0}
    assert plan_grounded.shared_seconds((c, only_answer) for c in runs) == 320 + 320 + 160 + 160
    assert plan_grounded.shared(next(c for c in runs_of("grounded-t2") if not c.get("sets"))) == {}


def test_every_run_has_a_kind_and_a_table_has_few(cards):
    for id in TABLES:
        runs = runs_of(id)
        kinds = {plan.kind_of(config) for config in runs}
        assert all(map(plan_grounded.concerns, runs)) and len(kinds) <= min(16, len(runs) // 2)
        assert {plan.validation_pictures(c) for c in runs} == ({300} if id == "grounded-t2" else {0})


def test_a_table_by_hand(cards):
    settings, experiment = load("mini", ROOT), TABLES["grounded-t3"]
    runs = experiment.configs(settings)
    cost = plan.Cost(2.0, 0.0, 7.0, 10**9, 0, "made up", units=UNITS)
    found = plan.predict(experiment, settings, {plan.kind_of(c): cost for c in runs}, workers=2, from_scratch=True)
    each, common = 7 + 2.0 * runs[0]["train"]["steps"], (taught() + held_out("voc")) * 1.11
    assert found.runs == len(runs) == 10 and found.serial == pytest.approx(10 * each + common)
    assert found.total == pytest.approx(plan.NOTEBOOK_SECONDS + plan.WORKER_SECONDS + 5 * each + common / 2)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    made = tmp_path_factory.mktemp("zoo")
    toys.make_zoo(made)
    return made


def test_a_picture_and_a_step_are_timed_and_nothing_is_left_behind(small, tmp_path, monkeypatch):
    toys.install(small, monkeypatch)
    monkeypatch.setenv("FMSEG_PARTS", str(tmp_path))
    ticks = count()
    cost = plan.calibrate(toys.config(), lambda: float(next(ticks)))
    assert cost.units == {"paint": 1 / PART, "look": 1 / PART, "read": 1 / PART, "answer": 1 / PART, "step": 1.0}
    assert cost.step == 1.0 and cost.prepare == pytest.approx(60 / PART) and cost.memory > 0
    assert not list(tmp_path.iterdir())
    daam = {k: v for k, v in toys.config(method="daam", train={"steps": 9}).items() if k not in ("head", "undetected")}
    cost = plan.calibrate(daam, lambda: float(next(ticks)))
    assert (cost.step, cost.prepare, cost.units["paint"]) == (0.0, 0.0, 1 / PART)
    text_to_image.cache_clear()


def test_protocol_two_is_timed_as_the_segmenter_that_it_trains():
    config = {
        "method": "model-a", "segmenter": "segformer", "draw": "voc", "images": 8, "validation": 8, "size": 64,
        "split": "mini/grounded-voc-1", "seed": 0, "train": {"steps": 4, "batch_size": 4, "lr": 0.01},
    }  # fmt: skip
    asked = []

    def of_segmenter(run, clock):
        asked.append(run)
        return plan.Cost(2.0, 0.5, 7.0, 1, 2, "CPU")

    found = plan_grounded.calibrate(config, None, of_segmenter)
    assert plan.Cost(**found) == plan.Cost(2.0, 0.5, 7.0, 1, 2, "CPU") and asked[0]["method"] == "segformer"
    assert set(asked[0]) == {"method", "seed", "draw", "images", "validation", "size", "train"}


def test_the_papers_tables_by_arithmetic():
    """From what would be run: painting 101 s a picture, 1 s to look, learn and go back."""
    settings, s = load("paper", ROOT), toys.MEASURED["seconds"]
    found = plan_real_grounded.forecast(settings, s, {"voc": 0.01, "coco": 0.02})
    head, painted = 5000 * (101 + 1.0), 101.5
    voc, coco = 600 + 600 + 3 * 60, 2400 + 2400 + 3 * 180
    again = {"voc": voc * 2.25, "coco": coco * 2.25}  # a call of the U-Net and of the head for each test picture
    assert found["grounded-t1"]["seconds"] == pytest.approx(
        (voc + coco) * painted + 9 * (head + again["voc"]) + 9 * (head + again["coco"])
    )
    assert found["grounded-t1"]["what"] == f"18 heads, {voc + coco:,} test pictures"
    assert found["grounded-t3"]["seconds"] == pytest.approx(3 * (head + again["voc"])), "the other three are Table 1's"
    assert found["grounded-t4"]["seconds"] == pytest.approx(4 * (head + again["coco"])), "the fifth row is Table 1's"
    assert found["grounded-timesteps"]["seconds"] == pytest.approx(10 * (head + again["voc"])), "one is Table 1's"
    pairs = {d: n + n + n // 2 + n // 2 for d, n in (("voc", 10_000), ("coco", 110_000))}  # A, B, and E's halves
    segmenters = 6 * 32 * (10_000 * 0.01 + 60_000 * 0.02)
    assert found["grounded-t2"]["seconds"] == pytest.approx(2 * head + sum(pairs.values()) * 101.25 + segmenters)
    assert found["grounded-t2"]["disk"] > sum(pairs.values()) * 512 * 512 * 4 and found["grounded-t3"]["disk"] == 0
    each = 512 * 512 * 3 + 50 * 4 * 64 * 64 * 4 + 2 * 64 * 64 * 2 + 2 * 512 * 512 // 8
    assert found["grounded-t1"]["disk"] == (voc + coco) * each


def test_a_segmenters_step_is_timed():
    seconds, memory = plan_real_grounded.segmenter_step("mini", "voc", 64)
    assert seconds > 0 and memory > 0.1


def test_a_plan_for_its_stages_in_every_profile(cards, monkeypatch):
    monkeypatch.setattr(plan, "EXPERIMENTS", TABLES)
    stages = ["32_protocol_one", "34_protocol_two"]
    monkeypatch.setattr(plan, "stage_names", lambda root, photos=False: [] if photos else stages)
    monkeypatch.setattr(plan, "made_by", lambda stage: [e.id for e in TABLES.values() if e.stage == stage])
    monkeypatch.setattr(plan, "calibrate", lambda config: plan.Cost(1.0, 0.1, 1.0, 10**9, 0, "CPU", units=UNITS))
    toys.without_stable_diffusion(monkeypatch)
    text = plan.plan(load("mini", ROOT), stages, workers=2, progress=False)
    assert "32_protocol_one / grounded-t1: 36 of 36 runs to train" in text and "grounded-novelty" in text
    assert "head from painted on voc, batch 8" in text and "34_protocol_two / grounded-t2" in text
    text = plan.plan(load("paper", ROOT), stages, workers=2, progress=False)
    assert "grounded-t1: 18 heads" in text and "on 8, sharing perfectly" in text and "9.0 GB at the peak" in text
    assert "grounded-novelty: of the mini world" in text and "grounded-t2: 2 heads" in text and "GB on disk" in text
    assert text.count("python -m fmseg paint grounded-t2") == 1 and text.count("-m fmseg train grounded-t1") == 1

import mmap
from dataclasses import replace

import pytest
from grounded_toys import without_stable_diffusion
from toys import REAL, ROOT, VALUES, invented

from fmseg import (
    camvid_real,
    configs,
    freemask_real,
    plan,
    plan_real_freemask,
    world_supervised,
    zoo_measures,
    zoo_table,
)
from fmseg.catalogue import EXPERIMENTS
from fmseg.records import write_record
from fmseg.settings import Settings, load
from fmseg.train_table import waiting


class Clock:
    """Seconds that pass as they are told to."""

    def __init__(self, *spans):
        self.now, self.spans = 0.0, list(spans)

    def __call__(self):
        return self.now

    def work(self):
        self.now += self.spans.pop(0)


def test_the_median_of_the_timed_repeats_counts_and_the_first_is_warm_up():
    clock = Clock(50.0, 3.0, 1.0, 2.0, 9.0, 2.5)
    assert plan.timed(clock.work, 5, clock) == 2.5 and not clock.spans
    with pytest.raises(ValueError, match="`repeats` must be at least 3, got 2"):
        plan.timed(clock.work, 2, clock)


UNITS = dict.fromkeys(("step", "paint", "look", "read", "answer"), 0.1)
COST = plan.Cost(
    step=2.0, picture=0.5, prepare=7.0, memory=10**9, checkpoint=10**6, device="made up", units=UNITS
)  # fmt: skip


def test_seconds_of_a_run_by_hand():
    config = {"train": {"steps": 10, "eval_every": 4}}
    assert plan.run_seconds(config, COST, pictures=6) == 7 + 10 * 2 + 3 * 6 * 0.5
    assert plan.run_seconds({"train": {"steps": 10}}, COST, pictures=6) == 7 + 20 + 3


def test_runs_in_parallel_end_with_the_last_one():
    assert plan.in_parallel([4.0, 1.0, 1.0, 1.0], 2) == 4.0
    assert plan.in_parallel([1.0, 1.0, 4.0], 2) == 5.0, "taken in order, not packed"
    assert plan.in_parallel([], 3) == 0.0
    with pytest.raises(ValueError, match="`workers` must be at least 1"):
        plan.in_parallel([1.0], 0)


def test_a_stage_by_hand_with_records_and_without(settings):
    runs = REAL.configs(settings)
    count = len(runs)
    costs = {plan.kind_of(c): COST for c in runs}
    each = 7 + 2 * 2 + 2 * 4 * 0.5
    whole = plan.predict(REAL, settings, costs, workers=2)
    assert (whole.runs, whole.serial) == (count, count * each) and count % 2 == 0
    assert whole.total == plan.NOTEBOOK_SECONDS + plan.WORKER_SECONDS + count / 2 * each
    assert whole.memory == 2 * COST.memory and whole.disk == 2 * COST.checkpoint + 100_000 * count
    from fmseg.provenance import closure

    for record in invented(settings, REAL, code=closure("fmseg.toy", settings.root)):
        write_record(record, REAL.folder(settings))
    rest = plan.predict(REAL, settings, costs, workers=2)
    assert (rest.runs, rest.serial) == (0, each), "one is trained live"
    assert rest.total == plan.NOTEBOOK_SECONDS + plan.WORKER_SECONDS + each
    assert plan.predict(REAL, settings, costs, workers=2, from_scratch=True).total == whole.total


def paper(tmp_path, **values):
    settings = load("paper", ROOT)
    return replace(settings, values=settings.values | {"pretrained": False} | values)


def test_devices_share_a_real_run(tmp_path):
    settings = paper(tmp_path, seeds=[0])
    runs = freemask_real.run_configs(settings)
    costs = {plan.kind_of(c): COST for c in runs}
    alone = plan.predict(freemask_real.EXPERIMENT, settings, costs, workers=2)
    eight = plan.predict(freemask_real.EXPERIMENT, settings, costs, workers=2, devices=8)
    assert alone.runs == 3 and alone.total == alone.serial == pytest.approx(8 * eight.total)
    assert alone.total > 3 * 160_000 * 2


def test_launch_lines(tmp_path):
    experiment, settings = freemask_real.EXPERIMENT, paper(tmp_path)
    assert plan.launch_line(experiment, settings, 1, 1) == "python -m fmseg train freemask-real --profile paper"
    assert plan.launch_line(experiment, settings, 8, 1).startswith("torchrun --standalone --nproc-per-node 8 -m fmseg")
    assert "--nnodes 4 --nproc-per-node 8 --rdzv" in plan.launch_line(experiment, settings, 8, 4)
    assert plan.launch_line(experiment, load("mini", ROOT), 1, 1).startswith("make repro")
    assert plan.launch_line(camvid_real.EXPERIMENT, load("mini", ROOT), 1, 1) == "make realdata"


def test_calibration_times_the_trainer_itself():
    settings = Settings("mini", VALUES | {"world": VALUES["world"] | {"size": 64}}, ROOT)
    config = configs.supervised(settings, "segformer", 0, "ade", 8, 8, backbone="scratch")
    cost = plan.calibrate(config)
    assert 0.003 < cost.step < 10 and 0.0001 < cost.picture < 2 and 0.01 < cost.prepare < 10
    assert cost.device == "CPU" and cost.scaled is None and cost.checkpoint > 10**6 and cost.memory > 10**8


def test_a_measurement_of_the_zoo_is_timed_on_few_pictures_and_scaled(settings, monkeypatch):
    clock = Clock()

    def measure(seed, count):
        clock.now += 3.0 + 0.5 * count  # three seconds to load, half a second a picture

    lines = zoo_measures.MEASURES["prompted-pairs"][2]
    monkeypatch.setitem(zoo_measures.MEASURES, "prompted-pairs", (("diffusion",), measure, lines))
    config = next(c for c in zoo_table.run_configs(settings) if c["method"] == "prompted-pairs")
    cost = plan.calibrate(config, clock)
    seconds = plan.run_seconds(config, cost, plan.validation_pictures(config))
    assert seconds == pytest.approx(3.0 + 0.5 * config["images"]) and plan.kind_of(config) == ("prompted-pairs",)


def test_each_kind_of_run_has_a_peak_of_its_own():
    plan._forget_peak_memory()
    before = plan._peak_memory()
    large = mmap.mmap(-1, 300 * 10**6)  # past the allocator, which may keep what is freed
    large.write(b"x" * 300 * 10**6)
    grown = plan._peak_memory()
    large.close()
    plan._forget_peak_memory()
    assert grown > before + 250 * 10**6 and plan._peak_memory() < grown - 200 * 10**6


def test_a_paper_size_model_is_timed_at_batch_one_and_scaled(tmp_path):
    settings = paper(tmp_path, crop=64, train={"device": "cpu"})
    cost = plan.calibrate(configs.real(settings, "segformer", 0, "ade"))
    assert cost.scaled == 1 and cost.step > 16 * 0.02


def test_a_plan_for_every_stage_and_profile(settings, monkeypatch, capsys):
    monkeypatch.setattr(plan, "calibrate", lambda config: COST)
    without_stable_diffusion(monkeypatch)
    painting = plan_real_freemask.Seconds(0.1, 0.4, 0.05, None, "made up")
    monkeypatch.setattr(plan_real_freemask, "calibrate", lambda *given: painting)
    for profile in ("mini", "paper", "smoke"):
        there = load(profile, ROOT)
        text = plan.plan(there, [], workers=2, progress=False)
        assert all(name in text for name in ("00_start_here", "20_freemask_real / freemask-real", "99_ledger"))
        assert ("05_zoo / zoo: " in text) == (profile != "paper")
        assert ("torchrun" in text) == (profile == "paper")
        recorded = any(len(waiting(e, there)) < len(e.configs(there)) for e in EXPERIMENTS.values() if not e.photos)
        assert ("one more live" in text) == (recorded and profile != "paper"), "where there are records"
    assert "1 such device" in plan.plan(load("paper", ROOT), ["20_freemask_real"], progress=False)
    assert world_supervised.run_configs(load("paper", ROOT)) == []
    assert plan.main(["21_nothing"]) == 1
    assert "`stage` must be one of" in capsys.readouterr().err

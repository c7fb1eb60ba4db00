"""Stages at the same time: the order that they are started in, how many at once, what a failure stops."""

import threading
import time

import pytest
import yaml
from toys import ROOT

from fmseg import side_by_side
from fmseg.side_by_side import rests_on, run_all, with_followers

STAGES = {
    "draw": {"deps": ["draw.py"], "outs": [{"results/tables/a.json": {"cache": False}}, "results/runs/a"]},
    "read": {"deps": ["results/tables/a.json"], "outs": ["results/tables/b.json"]},
    "all": {"deps": ["results/tables"], "outs": ["ledger.json"]},
    "inside": {"deps": ["results/runs/a/first.json"], "outs": []},
    "alone": {"deps": ["results/tables/a.jsonl", "draw.py"]},
}


def test_a_stage_rests_on_those_that_make_its_dependencies():
    expected = {"draw": set(), "read": {"draw"}, "all": {"draw", "read"}, "inside": {"draw"}, "alone": set()}
    assert rests_on(STAGES) == expected


def test_what_rests_on_a_change_is_out_of_date_too():
    on = {"a": set(), "b": {"a"}, "c": {"b"}, "d": set()}
    assert with_followers({"a"}, on) == {"a", "b", "c"} and with_followers({"d"}, on) == {"d"}
    assert with_followers(set(), on) == set()


class Log:
    """Stages that take a moment; remembers who ran beside whom."""

    def __init__(self, failing=()):
        self.failing, self.running, self.most, self.ended = set(failing), set(), 0, []
        self.lock = threading.Lock()

    def __call__(self, name):
        with self.lock:
            self.running.add(name)
            self.most = max(self.most, len(self.running))
        time.sleep(0.02)
        with self.lock:
            self.running.remove(name)
            self.ended.append(name)
        return 3 if name in self.failing else 0


@pytest.mark.parametrize("workers", [1, 2, 9])
def test_every_stage_runs_once_after_what_it_rests_on(workers):
    on, log = rests_on(STAGES), Log()
    assert run_all(STAGES, on, log, workers) == 0
    assert sorted(log.ended) == sorted(STAGES) and log.most <= workers
    assert log.most > 1 or workers == 1
    for name, needed in on.items():
        assert all(log.ended.index(other) < log.ended.index(name) for other in needed)


def test_stages_that_are_not_asked_for_are_taken_for_done():
    log = Log()
    assert run_all(["read", "all"], rests_on(STAGES), log) == 0 and log.ended == ["read", "all"]
    assert run_all([], {}, log) == 0


def test_a_failure_lets_the_running_end_and_starts_no_other():
    log = Log(failing=["draw"])
    assert run_all(STAGES, rests_on(STAGES), log, workers=2) == 3
    assert "read" not in log.ended and "all" not in log.ended and not log.running


def test_an_error_is_raised_and_a_ring_is_named():
    def broken(name):
        raise OSError(f"no {name}")

    with pytest.raises(OSError, match="no a"):
        run_all(["a"], {}, broken)
    with pytest.raises(ValueError, match="the stages a, b wait for each other"):
        run_all(["a", "b"], {"a": {"b"}, "b": {"a"}}, Log())


def test_in_the_pipeline_at_hand_the_ledger_comes_after_every_table():
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    on = rests_on(stages)
    tables = {name for name, stage in stages.items() if "/tables/" in str(stage["outs"])}
    assert tables and tables <= on["99_ledger"] and len(with_followers(stages, on)) == len(stages)
    assert side_by_side.run_all(stages, on, lambda name: 0) == 0

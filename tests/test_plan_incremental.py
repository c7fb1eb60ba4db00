"""What a class-incremental run is predicted to cost, by a clock that counts how often it is looked at."""

from itertools import count

from smallzoo import TRAIN, config, write_zoo

from fmseg import plan_incremental
from fmseg.incremental_data import load
from fmseg.plan import calibrate, kind_of
from fmseg.plan_incremental import SHARED


def ticking():
    ticks = count()
    return lambda: float(next(ticks))


def test_a_step_is_timed_and_what_comes_before_it_is_counted():
    plain, first = config("wilson"), config("cam", first={**TRAIN, "steps": 100})
    one, two = calibrate(plain, ticking()), calibrate(first, ticking())
    assert one.step == two.step == 1.0, "the clock is looked at once a step"
    assert two.prepare == one.prepare + 100, "a network that is trained first is counted by its steps"
    more = calibrate(plain | {"base": plain["base"] | {"steps": 102}}, ticking())
    assert abs(more.prepare - one.prepare - SHARED * 100) < 1e-9, "base models are shared by the methods"
    assert one.memory > 0 and one.checkpoint > 0


def test_kinds_differ_by_what_moves_the_cost():
    protocols = ("mini/10-10/overlap", "mini/coco-to-voc")
    kinds = {kind_of(config(m, protocol=p)) for m in ("ft", "wilson") for p in protocols}
    assert len(kinds) == 4
    assert kind_of(config()) == kind_of(config(seed=101, alpha=1.0)) != kind_of(config(own_clip=TRAIN))


def test_what_experts_say_is_counted_once_a_picture_and_either_way_round(tmp_path, monkeypatch):
    monkeypatch.setenv("FMSEG_ZOO", str(write_zoo(tmp_path)))
    monkeypatch.setattr(plan_incremental, "LOOKED", 3)
    made = config()
    step, before, model = plan_incremental.calibrate(made, ticking())
    assert step == 1.0 and len(model.experts.looks) == 2 * 3, "the timed steps showed nothing new"
    pictures = len(load(made).step)
    monkeypatch.setattr(plan_incremental, "LOOKED", 10**6)
    whole, fewer, _ = plan_incremental.calibrate(made, ticking())
    assert whole == step and abs((before - fewer) - (pictures / 3 - 1)) < 1e-9

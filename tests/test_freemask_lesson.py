"""What notebooks 22 and 23 share: the slider with and without widgets, and the filter model of a lesson."""

import sys
from pathlib import Path
from types import SimpleNamespace

import IPython.display
import pytest

from fmseg import filter_model, freemask_lesson
from fmseg.freemask_data import WORLD
from fmseg.settings import load

ROOT = Path(__file__).parent.parent


@pytest.fixture
def displayed(monkeypatch):
    shown = []
    monkeypatch.setattr(IPython.display, "display", shown.append)
    return shown


def test_without_widgets_every_choice_is_shown(displayed, monkeypatch):
    monkeypatch.setitem(sys.modules, "ipywidgets", None)  # as if it were not installed
    assert freemask_lesson.slider(lambda v: f"at {v}", [1.0, 1.25], 1.25, live=True) is None
    assert displayed == ["at 1.0", "at 1.25"]


def test_an_executed_copy_has_pictures_even_where_widgets_are(displayed, monkeypatch):
    monkeypatch.setitem(sys.modules, "ipywidgets", SimpleNamespace())
    assert freemask_lesson.slider(lambda v: v, [1.0, 2.0], 1.0, live=False) is None
    assert displayed == [1.0, 2.0]


def test_with_widgets_the_slider_shows_the_chosen_value(displayed, monkeypatch):
    def interactive(function, alpha):
        return SimpleNamespace(move=function, control=alpha)

    widgets = SimpleNamespace(SelectionSlider=lambda **given: given, interactive=interactive)
    monkeypatch.setitem(sys.modules, "ipywidgets", widgets)
    made = freemask_lesson.slider(lambda v: f"at {v}", [1.0, 1.25, 2.0], 1.25, live=True)
    assert made.control["options"] == [1.0, 1.25, 2.0] and made.control["value"] == 1.25 and not displayed
    made.move(2.0)
    assert displayed == ["at 2.0"]


def test_the_judge_of_a_lesson_is_a_filter_model_whatever_the_zoo_has(tmp_path, monkeypatch):
    monkeypatch.setenv("FMSEG_ZOO", str(tmp_path))
    monkeypatch.setenv("FMSEG_PARTS", str(tmp_path / "shared"))
    settings = load("smoke", ROOT)
    config = freemask_lesson.judge_config(settings)
    assert config["backbone"] == "scratch" and set(config) == {*filter_model.KEYS, *WORLD}
    judge = freemask_lesson.judge(settings)
    assert judge.model.num_classes == 48 and not judge.model.training
    assert (judge.on_training.counts.sum(), judge.on_validation.counts.sum()) == (24 * 64 * 64, 16 * 64 * 64)

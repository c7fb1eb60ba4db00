"""Figures from small made tables: what they plot, what they leave in the csv, what is not run."""

import numpy as np
import pytest
import torch

from fmseg import grounded_figures as figures
from fmseg import plots, tables
from fmseg.grounded_scores import COLUMNS
from fmseg.tables import cell, not_run, paper_value, row

SAID = paper_value(60.0, "STATED", "a page")
HEAD = {"head": "red", "DAAM best": "blue"}


def made(columns=("voc one seen", "voc one unseen"), labels=("head", "DAAM best"), empty=()):
    rows = []
    for i, label in enumerate(labels):
        cells = {c: cell({0: 50 + i, 1: 54 + i}, SAID) if label not in empty else not_run("no record", SAID)
                 for c in columns}  # fmt: skip
        rows.append(row(label, cells))
    return tables.table("made", "Made", "none", "% IoU", list(columns), rows)


def drawn(figure):
    """All (x, y) of the figure's lines that carry markers, rounded."""
    return {(round(float(x), 2), round(float(y), 2)) for axis in figure.axes for line in axis.lines
            if line.get_marker() not in ("None", "") for x, y in zip(*line.get_data(), strict=True)}  # fmt: skip


def test_a_dot_a_seed_and_a_diamond_for_the_paper():
    figure, data = figures.dots(made(), HEAD, ["voc one seen", "voc one unseen"], "title")
    assert drawn(figure) == {(at, v) for at in (0, 3) for v in (50, 54, 60)} | {(at, v) for at in (1, 4)
                                                                                for v in (51, 55, 60)}  # fmt: skip
    assert len(data) == 12 and {"row": "head", "column": "voc one seen", "seed": "1", "value": 54.0} in data
    labels = [text.get_text() for text in figure.axes[0].get_xticklabels()]
    assert labels == ["one\nseen", "one\nunseen"], "what all columns begin with says nothing"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(HEAD)
    figure, _ = figures.dots(made(labels=("head split 1", "head split 2")), dict.fromkeys(
        ("head split 1", "head split 2"), "red"), ["voc one seen"], "title")  # fmt: skip
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["head"], "no split"
    assert plots.png(figure)[:4] == b"\x89PNG"


def test_a_row_that_was_not_run_says_so_in_the_csv():
    figure, data = figures.dots(made(empty=("head",)), HEAD, ["voc one seen"], "title")
    assert {"row": "head", "column": "voc one seen", "seed": "", "value": "not run: no record"} in data
    assert drawn(figure) == {(0, 60), (1, 51), (1, 55), (1, 60)} and plots.png(figure)


def test_unknown_rows_and_columns_are_met_with_those_there_are():
    with pytest.raises(ValueError, match="table made has no row 'haed'; it has head, DAAM best"):
        figures.dots(made(), {"haed": "red"}, ["voc one seen"], "title")
    with pytest.raises(ValueError, match="no column 'voc two'; it has voc one seen, voc one unseen"):
        figures.dots(made(), HEAD, ["voc two"], "title")


def test_the_curve_has_ours_on_the_left_and_the_paper_s_on_the_right():
    table = made(COLUMNS, ("step 1", "step 6", "step 12"), empty=("step 6",))
    at = {"step 1": 1, "step 6": 6, "step 12": 12}
    figure, data = figures.curves(table, at, COLUMNS, "step", "title", "theirs")
    left, right = figure.axes
    lines = [line for line in left.lines if line.get_linestyle() == "-" and len(line.get_xdata()) > 1]
    assert len(lines) == 5 and all(list(line.get_xdata()) == [1, 12] for line in lines), "a gap where nothing was run"
    assert list(lines[0].get_ydata()) == [52.0, 54.0]
    assert [list(line.get_xdata()) for line in right.lines] == [[1, 6, 12]] * 5
    assert len(data) == 5 * (3 + 2 + 3) and plots.png(figure)


def test_lines_of_equal_harmonic_mean_are_equal_in_it():
    table = made(("voc seen", "voc unseen"), ("Model-A", "ZS3"), empty=("ZS3",))
    figure, data = figures.plane(table, {"Model-A": "red", "ZS3": "blue"}, "voc", "title")
    lines = [line.get_data() for line in figure.axes[0].lines if line.get_color() == "0.85"]
    for (s, u), mean in zip(lines, (10, 20, 30, 40, 50, 60, 70, 80), strict=True):
        assert np.allclose(2 * s * u / (s + u), mean) and u.max() <= 100
    assert {(50, 50), (54, 54), (60, 60)} <= drawn(figure) and plots.png(figure)


def test_daam_s_thresholds_are_averaged_over_splits():
    curves = [{"0.4": {"one seen": a, "two seen": a}, "0.5": {"one seen": a + 10, "two seen": 0.0}} for a in (30, 50)]
    del curves[1]["0.4"]["two seen"], curves[1]["0.5"]["two seen"]
    figure, data = figures.thresholds([{"result": {"curve": {"painted": curve}}} for curve in curves], "title")
    assert {"column": "one seen", "threshold": 0.5, "IoU (%)": 50.0} in data
    assert {"column": "two seen", "threshold": 0.4, "IoU (%)": 30.0} in data and plots.png(figure)
    figure, data = figures.thresholds([], "title")
    assert data[0]["IoU (%)"] == "not run" and plots.png(figure)


def test_the_strongest_direction_is_red():
    feature = torch.zeros(5, 8, 8)
    feature[3] = torch.linspace(-9, 9, 8)[:, None]  # one channel rises from top to bottom, strongly
    feature[1] = torch.linspace(-1, 1, 8)[None]
    shown = figures.as_colours(feature)
    assert shown.shape == (8, 8, 3) and {int(shown[0, 4, 0]), int(shown[7, 4, 0])} == {0, 255}
    assert (shown[2, :, 0] == shown[2, 0, 0]).all() and shown[2, 0, 1] != shown[2, 7, 1]
    assert figures.as_colours(torch.randn(2, 3, 3)).shape == (3, 3, 3), "fewer channels than colours"


def test_masks_shine_in_their_classes_colours():
    image, masks = np.full((4, 4, 3), 90, np.uint8), np.zeros((2, 4, 4), bool)
    masks[0, :2], masks[1, 1:3] = True, True
    names = ["plain disc", "striped star"]
    shown = figures.overlaid(image, masks, names)
    disc, star = (np.array(plots.class_colour(name)) for name in names)
    assert np.abs(shown[0, 0] - (0.55 * 90 + 0.45 * disc)).max() <= 0.5
    assert np.abs(shown[1, 0] - (0.55 * 90 + 0.225 * (disc + star))).max() <= 0.5
    assert (shown[3] == 30).all(), "dark where nothing is claimed"
    assert (
        figures.overlaid(image, masks[:1], ["unicorn"])[0, 0, 0] > figures.overlaid(image, masks[:1], ["sea"])[0, 0, 0]
    )


def test_answers_stand_below_their_pictures():
    images = np.zeros((2, 8, 8, 3), np.uint8)
    asked = [
        {"column": "one seen", "names": ["plain disc"]},
        {"column": "two seen", "names": ["plain bar", "dotted ring"]},
    ]
    masks = [np.ones((1, 8, 8), bool), np.zeros((2, 8, 8), bool)]
    figure, data = figures.answers(images, asked, {"oracle": masks, "head": masks})
    assert len(figure.axes) == 6 and len(data) == 4
    assert data[3] == {"picture": 1, "column": "two seen", "asked": "plain bar and dotted ring", "row": "head",
                       "pixels": "0 0"}  # fmt: skip

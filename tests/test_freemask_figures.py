"""FreeMask's figures on small made tables and records: the rows of data that lie beside them, and empty cases."""

import numpy as np
import pytest

from fmseg import freemask_figures as figures
from fmseg import plots, tables
from fmseg.settings import Settings
from fmseg.tables import cell, not_run, paper_value, row


def made(cells, columns=("real", "joint"), unit="% mIoU"):
    lines = [row(label, line) for label, line in cells.items()]
    return tables.table("made-up", "Made up", "no paper", unit, list(columns), lines)


REAL = cell({0: 20.0, 1: 22.0, 2: 24.0}, paper_value(45.6, "STATED"))
JOINT = cell({0: 23.0, 1: 24.0, 3: 30.0}, paper_value(47.9, "STATED"))
NEVER = not_run("no record of its runs", paper_value(None, "MISSING"))
TABLE = made({"SegFormer": {"real": REAL, "joint": JOINT}, "Segmenter": {"real": REAL, "joint": NEVER}})
EMPTY = made({"SegFormer": {"real": NEVER, "joint": NEVER}})


def drawn(figure, tmp_path, data, name="made"):
    """The figure can be drawn and saved with its data."""
    return plots.save(figure, name, data or [{"nothing": 0}], Settings("mini", {}, tmp_path), "50_made").stat().st_size


def test_points_are_the_values_of_the_cells(tmp_path):
    figure, data = figures.points(TABLE, ["SegFormer", "Segmenter"], ["real", "joint"], "Made up")
    assert [d["value"] for d in data if d["row"] == "SegFormer" and d["column"] == "joint"] == [23.0, 24.0, 30.0]
    assert not [d for d in data if d["row"] == "Segmenter" and d["column"] == "joint"] and len(data) == 9
    assert drawn(figure, tmp_path, data) > 5000


def test_gains_pair_seeds_that_both_cells_have_and_stand_beside_the_papers():
    found = figures.cells(TABLE)
    pairs = {label: (line["joint"], line["real"]) for label, line in found.items()} | {"nothing": (None, REAL)}
    _, data = figures.gains(pairs, "Made up")
    assert [(d["pair"], d["seed"], d["gain"]) for d in data] == [("SegFormer", 0, 3.0), ("SegFormer", 1, 2.0)]
    assert {d["paper's gain"] for d in data} == {2.3}


@pytest.mark.parametrize(
    "make",
    [
        lambda: figures.points(EMPTY, ["SegFormer"], ["real", "joint"], "Nothing"),
        lambda: figures.gains({"a": (NEVER, NEVER), "b": (None, None)}, "Nothing"),
        lambda: figures.sweep(EMPTY, {"SegFormer": 1.0}, ["real", "joint"], "Nothing", "number"),
        lambda: figures.against(EMPTY, "real", "joint", "Nothing"),
        lambda: figures.class_gains([], (), (), "Nothing"),
        lambda: figures.kept_and_gained([], (), (), "Nothing"),
    ],
)
def test_of_nothing_there_is_no_data(make, tmp_path):
    figure, data = make()
    assert data == [] and drawn(figure, tmp_path, data)


def test_a_sweep_goes_through_the_means(tmp_path):
    table = made({"margin 1": {"real": REAL}, "margin 2": {"real": JOINT}})
    figure, data = figures.sweep(table, {"margin 1": 1.0, "margin 2": 2.0}, ["real"], "Made up", "margin")
    (line,) = [x for x in figure.axes[0].lines if x.get_label() == "real"]
    assert line.get_xydata().tolist() == [[1.0, 22.0], [2.0, pytest.approx(77 / 3)]]
    assert [d["margin"] for d in data] == [1.0] * 3 + [2.0] * 3 and drawn(figure, tmp_path, data)


def test_columns_of_different_units_have_axes_of_their_own(tmp_path):
    table = made({"margin 1": {"real": REAL, "joint": JOINT}})
    places, units = {"margin 1": 1.0}, ("%", "pixels")
    figure, data = figures.sweep(table, places, ["real", "joint"], "Made up", "margin", units)
    assert [axis.get_ylabel() for axis in figure.axes] == ["real, %", "joint, pixels"]
    assert [len(axis.lines) for axis in figure.axes] == [2, 2] and drawn(figure, tmp_path, data)


def test_a_row_without_a_number_is_a_level_of_the_first_column(tmp_path):
    table = made({"margin 1": {"real": REAL, "joint": JOINT}, "no filter": {"real": JOINT, "joint": NEVER}})
    places, units = {"margin 1": 1.0}, ("%", "pixels")
    figure, data = figures.sweep(table, places, ["real", "joint"], "Made up", "margin", units, level="no filter")
    (line,) = [x for x in figure.axes[0].lines if x.get_label() == "no filter"]
    assert line.get_ydata() == pytest.approx([77 / 3] * 2) and len(figure.axes[1].lines) == 2
    assert [d["value"] for d in data if d["margin"] == "no filter"] == [23.0, 24.0, 30.0]
    without = figures.sweep(EMPTY, {"SegFormer": 1.0}, ["real"], "Made up", "margin", level="")
    assert without[1] == [] and drawn(figure, tmp_path, data)


def test_one_column_against_another_pairs_seeds():
    _, data = figures.against(TABLE, "real", "joint", "Made up")
    assert data == [{"row": "SegFormer", "seed": s, "real": a, "joint": b} for s, a, b in ((0, 20, 23), (1, 22, 24))]


def test_gains_by_class_leave_out_what_has_no_truth():
    before, after = ({"result": {"iou": v}} for v in ([0.5, None, 0.2], [0.6, None, 0.1]))
    _, data = figures.class_gains([(after, before), (before, before)], ("a", "b", "c"), ("a",), "Made up")
    assert data == [{"class": "a", "gain": 5.0}, {"class": "c", "gain": -5.0}]


def test_what_is_kept_of_a_class_is_set_against_what_it_gains(tmp_path):
    before = {"result": {"iou": [0.5, 0.2, 0.2, None, 0.9]}}
    after = {"result": {"iou": [0.6, 0.2, 0.6, None, 0.8], "synthetic": {"kept by class": [0.5, 0.4, 0.9, 0.3, 0.1]}}}
    names, ground = ("disc", "star", "bar", "absent", "sky"), ("sky",)
    figure, data = figures.kept_and_gained([(after, before)], names, ground, "Made up")
    assert [(d["class"], d["kept (%)"], d["gain"]) for d in data] == [
        ("disc", 50.0, 10.0), ("star", 40.0, 0.0), ("bar", 90.0, 40.0), ("sky", 10.0, -10.0)
    ]  # fmt: skip
    words = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert words == ["things, rank correlation 1.00", "stuff"]  # star < disc < bar in both
    after["result"]["synthetic"]["kept by class"][0] = None  # no synthetic picture has a disc
    _, data = figures.kept_and_gained([(after, before)], names, ground, "Made up")
    assert [d["class"] for d in data] == ["star", "bar", "sky"]
    assert drawn(figure, tmp_path, data)


def test_losses_by_class_are_in_order_with_what_is_kept_of_the_right_pixels(tmp_path):
    counts = [[100, 20, 30, 10], [50, 0, 10, 0], [0, 0, 0, 0]]
    record = {
        "config": {"alphas": [1.25, 2.0]},
        "result": {"means": {"training": [0.8, 0.2, 0.0]}, "by class": {"generated": counts}},
    }
    figure, data = figures.class_losses(record, ("star", "sky", "absent"), ("sky",))
    assert "at margin 1.25" in figure.axes[1].get_ylabel()
    assert [d["class"] for d in data] == ["sky", "star"] and [d["right pixels kept (%)"] for d in data] == [80.0, 75.0]
    assert drawn(figure, tmp_path, data)
    del record["result"]["by class"]["generated"]
    assert {d["right pixels kept (%)"] for d in figures.class_losses(record, ("a", "b", "c"), ())[1]} == {""}


def test_rates_take_rows_that_were_measured(tmp_path):
    def line(recall, precision):
        return {"recall": cell({0: recall}), "precision": cell({0: precision}), "right things kept": cell({0: 50.0})}

    never = dict.fromkeys(("recall", "precision", "right things kept"), not_run("never"))
    table = made(
        {"one": line(80, 40), "two": line(60, 50), "none": never}, ("recall", "precision", "right things kept")
    )
    figure, data = figures.rates(table, {"faults": ["one", "two", "none"]}, "Made up")
    assert [(d["row"], d["recall"], d["precision"]) for d in data] == [("one", 80, 40), ("two", 60, 50)]
    assert drawn(figure, tmp_path, data)


def test_a_class_has_a_line_in_both_panels_and_none_where_nothing_is_defined(tmp_path):
    nan = float("nan")
    rows = [{"class": name, "alpha": a, "precision": p, "recall": 10 * a, "right pixels kept": 1.0}
            for name, p in (("striped star", 40.0), ("sky", nan)) for a in (0.5, 1.25, 8.0)]  # fmt: skip
    figure, data = figures.rates_by_class(rows, ("sky",), 1.25)
    lines = [[x for x in axis.lines if len(x.get_xdata()) == 3] for axis in figure.axes]
    assert [len(found) for found in lines] == [2, 2] and lines[0][0].get_color() != lines[0][1].get_color()
    assert lines[1][0].get_ydata().tolist() == [5.0, 12.5, 80.0]
    assert [d["precision"] for d in data] == [40.0] * 3 + [""] * 3 and set(data[0]) == {
        "class", "alpha", "precision", "recall"}  # fmt: skip
    assert drawn(figure, tmp_path, data)


def test_the_chain_shows_every_picture_once(tmp_path):
    picture = np.zeros((8, 8, 3), np.uint8)
    figure, data = figures.chain(picture, picture, [picture] * 3, [picture] * 3)
    panels = [d["panel"] for d in data]
    assert len(panels) == len(set(panels)) == 10 and len(figure.axes) == 8 and drawn(figure, tmp_path, data)


def test_a_frame_goes_round_its_pixels_and_not_through_them():
    figure = plots.grid([[np.zeros((8, 8, 3), np.uint8)]], [""])
    figures.frame(figure.axes[0], [(2, 1, 5, 6), (0, 0, 1, 1)])
    drawn = [(r.get_x(), r.get_y(), r.get_width(), r.get_height()) for r in figure.axes[0].patches]
    assert drawn == [(0.5, 1.5, 5, 3), (-0.5, -0.5, 1, 1)]

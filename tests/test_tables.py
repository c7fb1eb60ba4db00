"""Tables: numbers follow from values, files are whole or as they were, and what is wrong is named."""

import errno
import json
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmseg import tables

STYLE = {"0": 61.2, "1": 60.4, "2": 61.9, "3": 60.8, "4": 61.5}  # the cell of the style guide: 61.16 and 0.59
RECALLED = tables.paper_value(66.1, "RECALLED")


def small(**extra):
    rows = [
        tables.row("baseline", {"all": tables.cell(STYLE, tables.paper_value(64.0, "STATED", "Table 2"))}),
        tables.row("method X", {"old": tables.cell({0: 70}), "all": tables.not_run("needs web images", RECALLED)}),
    ]
    return tables.table("bf-t1", "Boundary F1 on voc", "Csurka 2013, Table 2", "%", ["old", "all"], rows, **extra)


# -- cells -----------------------------------------------------------------------------------------------------------


def test_mean_and_sd_of_a_cell_are_computed_and_rounded():
    cell = tables.cell(STYLE)
    assert (cell["mean"], cell["sd"], cell["n"], cell["status"]) == (61.16, 0.5857, 5, "measured")


def test_values_are_rounded_first_so_that_the_file_explains_its_mean():
    cell = tables.cell({0: 1.00004, 1: 1.00004, 2: np.float32(1.00004)})
    assert cell["values"] == {"0": 1.0, "1": 1.0, "2": 1.0} and cell["mean"] == 1.0


def test_one_value_has_no_sd_and_seeds_stand_in_number_order():
    assert tables.cell({3: 70})["sd"] is None
    assert list(tables.cell({10: 1, 2: 1, "1": 1, "voc/1": 1})["values"]) == ["1", "2", "10", "voc/1"]


def test_no_negative_zero():
    assert str(tables.cell({0: -0.00001})["values"]["0"]) == "0.0"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tables.cell({0: float("nan")}), "finite"),
        (lambda: tables.cell({0: "61.2"}), r"values\[0\].*must be a number"),
        (lambda: tables.cell([61.2]), "must map seeds to values"),
        (lambda: tables.cell({3: 1.0, "3": 2.0}), "same seed"),
        (lambda: tables.cell({}), "'measured' does not fit 0 values"),
        (lambda: tables.cell({0: 1.0}, status="not run: later"), "does not fit 1 values"),
        (lambda: tables.cell({0: 1.0}, status="fine"), "'measured' or 'not run: reason'"),
        (lambda: tables.not_run(""), "'measured' or 'not run: reason'"),
        (lambda: tables.paper_value(48.7, "CERTAIN"), "must be one of STATED"),
        (lambda: tables.paper_value(None, "STATED"), "null exactly where its certainty is MISSING"),
        (lambda: tables.paper_value(48.7, "MISSING"), "null exactly where its certainty is MISSING"),
        (lambda: tables.cell({0: 1.0}, paper={"value": 48.7}), "paper: missing certainty"),
        (lambda: tables.paper_value("48.7", "STATED"), "finite number"),
    ],
)
def test_wrong_cells_are_refused(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()


# -- tables ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["mean", "sd", "n"])
def test_a_hand_typed_number_is_found(key):
    table = small()
    table["rows"][0]["cells"]["all"][key] += 1
    with pytest.raises(ValueError, match=f"row baseline, column all: `{key}` is .* computed, never typed"):
        tables.validate(table)


def test_a_hand_typed_value_is_found_by_its_mean():
    table = small()
    table["rows"][0]["cells"]["all"]["values"]["3"] = 65.0
    with pytest.raises(ValueError, match="column all: `mean` is 61.16, but the values give 62.0"):
        tables.validate(table)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("unit"), "table: missing unit"),
        (lambda t: t.update(colums=[]), "table: unknown colums"),
        (lambda t: t.update(id="BF t1"), "`id` must be lower-case"),
        (lambda t: t.update(title=""), "`title` must be a text"),
        (lambda t: t.update(rows=[]), "`rows` must be a list that is not empty"),
        (lambda t: t.update(columns=["old", "all", "all"]), "columns: .'all'. occur more than once"),
        (lambda t: t.update(columns=["old", "all", "a,b"]), r"without `\[ \] , / |` .* got 'a,b'"),
        (lambda t: t.update(columns=["old"]), r"row baseline: no such column: \['all'\]"),
        (lambda t: t["rows"].append(dict(t["rows"][0])), "row labels: .'baseline'. occur more than once"),
        (lambda t: t["rows"][0].pop("cells"), "row 'baseline': missing cells"),
        (lambda t: t["rows"][0]["cells"]["all"].pop("status"), "row baseline, column all: missing status"),
        (lambda t: t["rows"][0]["cells"].update(all=61.2), "column all: a cell must be a dict, got 61.2"),
        (lambda t: t["rows"][0]["cells"]["all"].update(mean="61.16"), "`mean` is '61.16'"),
        (lambda t: t.update(digits=9), "`digits` must be a whole number from 0 to 4"),
        (lambda t: t.update(provenance="stage 20"), "`provenance` must be a dict"),
    ],
)
def test_wrong_tables_are_refused_and_the_place_is_named(change, message):
    table = small()
    change(table)
    with pytest.raises((TypeError, ValueError), match=message):
        tables.validate(table)


def test_markdown_shows_spread_n_paper_certainty_and_reasons():
    text = tables.markdown(small(note="On 400 images.", provenance={"stage": "t1", "seeds": [0, 1]}))
    assert "Mean ± sd over 5 seeds where no n is given." in text
    assert "| baseline |  | 61.2 ± 0.6; paper 64.0 [a] |" in text
    assert "| method X | 70.0 (n = 1) | not run [b]; paper 66.1 [c] |" in text
    assert "\n* [a] STATED, Table 2\n* [b] needs web images\n* [c] RECALLED\n" in text
    assert "On 400 images." in text and "stage t1; seeds 0, 1" in text and "Not judged" not in text


def test_markdown_says_which_n_is_not_judged_and_what_the_paper_does_not_give():
    cells = {"all": tables.cell({0: 1, 1: 2, 2: 3}, tables.paper_value(None, "MISSING"))}
    text = tables.markdown(tables.table("t", "T", "P", "ms", ["all"], [tables.row("a", cells)], digits=3))
    assert "2.000 ± 1.000; paper unknown [a]" in text and "Not judged: cells with n = 3;" in text
    assert "Mean ± sd over 3 seeds.\n" in text and "* [a] MISSING" in text


def test_what_many_cells_share_stands_once():
    why = [tables.not_run(f"reason {k}") for k in range(28)]
    rows = [tables.row(str(k), {"x": why[k], "y": why[k]}) for k in range(28)]
    text = tables.markdown(tables.table("t", "T", "P", "%", ["x", "y"], rows))
    assert text.count("reason 3\n") == 1 and "| 3 | not run [d] | not run [d] |" in text
    assert "* [z] reason 25" in text and "* [ab] reason 27" in text and "Nothing is measured more than once." in text


# -- files -----------------------------------------------------------------------------------------------------------

values = st.dictionaries(st.integers(0, 50), st.floats(-1e4, 1e4), min_size=1, max_size=6)


@settings(max_examples=30, deadline=None)
@given(st.lists(values, min_size=1, max_size=3))
def test_what_is_written_is_read_and_written_alike(tmp_path_factory, cells):
    rows = [tables.row(f"row {i}", {"x": tables.cell(v)}) for i, v in enumerate(cells)]
    table = tables.table("t", "T", "P", "%", ["x"], rows)
    folder = tmp_path_factory.mktemp("t")
    path = tables.write(table, folder)
    assert tables.read(path) == table
    before = path.read_bytes()
    tables.write(tables.read(path), folder)
    assert path.read_bytes() == before


def test_order_of_cells_and_seeds_does_not_change_the_bytes(tmp_path):
    a, b = tables.cell({0: 1, 1: 2}), tables.cell({1: 2, 0: 1})
    one = tables.table("t", "T", "P", "%", ["x", "y"], [tables.row("r", {"x": a, "y": b})])
    other = tables.table("t", "T", "P", "%", ["x", "y"], [tables.row("r", {"y": a, "x": b})])
    assert tables.json_text(one) == tables.json_text(other)


def fails(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_a_full_disk_leaves_the_old_files_and_no_temporary_one(tmp_path, monkeypatch, call):
    tables.write(small(), tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    monkeypatch.setattr(tables.os, call, fails)
    with pytest.raises(OSError, match=r"Could not write .*bf-t1\.(md|json): No space left.*is intact") as caught:
        tables.write(small(note="newer"), tmp_path)
    assert caught.value.errno == errno.ENOSPC
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="Could not write .*bf-t1.md"):
        tables.write(small(), tmp_path / "file")

    def refuse(*_, **__):  # as a read-only folder does, for root too
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(PermissionError, match="Could not write .*bf-t1.md: Permission denied"):
        tables.write(small(), tmp_path)


def test_an_invalid_table_writes_nothing(tmp_path):
    table = small()
    table["rows"][0]["cells"]["all"]["mean"] = 99.0
    with pytest.raises(ValueError):
        tables.write(table, tmp_path)
    assert not list(tmp_path.iterdir())


def test_damaged_files_are_named(tmp_path):
    path = tables.write(small(), tmp_path)
    whole = path.read_text()
    path.write_text(whole[:-40])
    with pytest.raises(ValueError, match=r"bf-t1\.json is not readable JSON .* cut short"):
        tables.read(path)
    path.write_text(whole.replace("61.16", "NaN"))
    with pytest.raises(ValueError, match="NaN is no number"):
        tables.read(path)
    path.write_text(json.dumps([1, 2]))
    with pytest.raises(ValueError, match="not a valid table: a table must be a dict"):
        tables.read(path)
    path.write_text(whole.replace('"status": "measured"', '"state": "measured"'))
    with pytest.raises(ValueError, match="bf-t1.json is not a valid table: .*missing status"):
        tables.read(path)
    path.rename(tmp_path / "other.json")
    (tmp_path / "other.json").write_text(whole)
    with pytest.raises(ValueError, match="other.json holds the table 'bf-t1'"):
        tables.read(tmp_path / "other.json")
    with pytest.raises(FileNotFoundError, match="There is no file .*none.json"):
        tables.read(tmp_path / "none.json")


def test_a_folder_is_read_without_what_is_no_table(tmp_path):
    tables.write(small(), tmp_path)
    (tmp_path / "times.json").write_text('{"20": 3.5}')
    assert list(tables.read_all(tmp_path)) == ["bf-t1"]
    assert tables.read_all(tmp_path / "not there") == {}
    (tmp_path / "half.json").write_text('{"columns": [')
    with pytest.raises(ValueError, match="half.json is not readable"):
        tables.read_all(tmp_path)

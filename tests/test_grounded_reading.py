"""Computed sentences about tables, and notebooks 32 to 35 as far as they can be checked without their tables."""

import json

import nbformat
import numpy as np
import pytest
from toys import ROOT

from fmseg import grounded_reading as reading
from fmseg import grounded_tables, image_counts, names, notebooks, pipeline, prose, protocols, tables, zero_shot_table
from fmseg.grounded_images import MILLION
from fmseg.grounded_runs import draw_things
from fmseg.grounded_scores import COLUMNS
from fmseg.tables import cell, not_run, paper_value, row

PROTOCOL_ONE = ("T1", "NOVELTY", "T3", "T4", "TIMESTEPS", "INVERSION")
BOOKS = ("32_protocol_one", "33_ablations", "34_protocol_two", "35_open_vocabulary")


def made():
    def said(x):
        return paper_value(x, "STATED", "a page")

    rows = [
        row("head", {"one": cell({0: 50, 1: 54, 2: 99}, said(90.0)), "two": cell({0: 30, 1: 30}, said(60.0))}),
        row("DAAM", {"one": cell({0: 40, 1: 40}, said(65.5)), "two": cell({0: 35, 1: 41})}),
        row("other", {"one": not_run("no record"), "two": not_run("no record")}),
    ]
    return tables.table("made", "Made", "none", "% IoU", ["one", "two"], rows)


def test_differences_are_over_shared_seeds_and_beside_the_paper_s():
    said = reading.between_rows(made(), "head", "DAAM", ["one", "two"]).splitlines()
    assert said == ["head minus DAAM", "  one: +12.0 ± 2.8; paper +24.5", "  two: -8.0 ± 4.2"]
    assert reading.between_rows(made(), "head", "other", ["one"]).endswith("one: not run")
    with pytest.raises(ValueError, match="table made has no row 'haed'; it has head, DAAM, other"):
        reading.between_rows(made(), "haed", "DAAM", ["one"])


def test_falls_and_orders():
    assert reading.between_columns(made(), ["head"], [("one", "two")]) == "head, from one to two: -22.0 ± 2.8"
    assert reading.order(made(), ["DAAM", "other", "head"], "two") == "two: DAAM 38.0 > head 30.0; not run: other"


def test_a_notebook_that_makes_tables_waits_for_the_catalogue(tmp_path):
    (tmp_path / "fmseg").symlink_to(ROOT / "fmseg")
    (tmp_path / "notebooks").mkdir()
    for stem in ("20_freemask_real", "50_new"):
        cells = [
            nbformat.v4.new_markdown_cell("# 50"),
            nbformat.v4.new_code_cell("outcome = experiment.perform(T1, 0)"),
        ]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / f"notebooks/{stem}.ipynb")
    assert pipeline.stage_names(tmp_path) == ["20_freemask_real"]
    assert pipeline.waits_for_tables(tmp_path / "notebooks/50_new.ipynb")


@pytest.mark.parametrize("name", BOOKS)
def test_notebooks_know_their_stage_and_type_no_number(name):
    path = ROOT / f"notebooks/{name}.ipynb"
    code = "".join(
        "".join(c["source"]) + "\n" for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"
    )
    assert code.count(f'"{name}"') == 1 and ", settings, stage)" in code, "figures go to the stage's folder"
    assert not prose.check_notebook(path, prose.parameters(ROOT / "params.yaml"))
    assert "diffusion" in pipeline.models_needed(path) and notebooks.parameters(path)["profile"] == "mini"


def test_every_table_is_made_by_the_notebook_that_is_its_stage():
    tables_of = {f"grounded.{name}": vars(grounded_tables)[name] for name in PROTOCOL_ONE}
    for name, experiment in (tables_of | {"zero_shot_table.T2": zero_shot_table.T2}).items():
        source = (ROOT / f"notebooks/{experiment.stage}.ipynb").read_text()
        assert f"experiment.perform({name}, settings, " in source


def test_the_same_classes_in_every_row_from_what_records_say_of_pictures():
    columns, things = ["one seen", "one unseen"], len(draw_things("voc"))
    counts = np.zeros((3, 2 * things, 3), np.int64)
    counts[0, 4] += (MILLION // 2, 1, 0)  # class 4, seen: two pictures, 50 % and 100 %
    counts[1, 4] += (MILLION, 1, 0)
    counts[2, 6] += (MILLION // 4, 1, 0)  # class 6, seen: one picture, 25 %
    counts[2, things + 4] += (0, 1, 0)  # class 4 in the other column
    kept = {"columns": columns, "counts": image_counts.pack(counts)}
    record = {"config": {"draw": "voc"}, "result": {"images": {"painted": kept}}}
    known = draw_things("voc")
    four, six = known[4], known[6]
    assert reading.of_classes(record, "one seen", [four], known) == pytest.approx(75)
    assert reading.of_classes(record, "one seen", [six, four], known) == pytest.approx(50), "a mean over classes"
    assert reading.of_classes(record, "one unseen", [four], known) == 0
    assert reading.of_classes(record, "one unseen", [four, six], known) == 0, "no picture of the one: the other"
    assert reading.of_classes(record, "one unseen", [six], known) is None


def test_classes_of_a_data_set_are_found_by_its_own_ids():
    counts = np.zeros((2, len(COLUMNS) * 20, 3), np.int64)
    counts[0, names.VOC.index("dog") - 1] = (900_000, 1, 0)
    kept = {"columns": list(COLUMNS), "counts": image_counts.pack(counts)}
    record = {"config": {"draw": "voc"}, "result": {"images": {"painted": kept}}}
    order = protocols.get("voc/grounded-1").classes  # another order than that of the ids
    assert reading.of_classes(record, "one seen", ["dog"], order) == pytest.approx(90)
    assert reading.of_classes(record, "one seen", ["cat"], order) is None


def test_how_often_unseen_classes_are_named():
    truth = np.array([[[0, 0, 1, 2]], [[2, 2, 255, 1]]])
    guess = np.array([[[0, 2, 0, 0]], [[1, 0, 2, 0]]])  # what is 255 in the truth does not count
    record = {"result": {"images": image_counts.pack(image_counts.count(guess, truth, 3))}}
    assert reading.answered(record, 1) == pytest.approx(100 * 2 / 5)
    assert reading.answered(record, 2) == pytest.approx(100 * 1 / 3)
    right = {"result": {"images": image_counts.pack(image_counts.count(truth % 255, truth, 3))}}
    assert reading.answered(right, 1) == 100

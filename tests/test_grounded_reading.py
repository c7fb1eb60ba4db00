"""Computed sentences about tables, and notebooks 32 to 35 as far as they can be checked without their tables."""

import json

import nbformat
import pytest
from toys import ROOT

from fmseg import grounded_reading as reading
from fmseg import grounded_tables, notebooks, pipeline, prose, tables, zero_shot_table
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

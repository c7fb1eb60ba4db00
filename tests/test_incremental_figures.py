"""Figures and sentences of FMWISS's tables, on small made tables; and the notebooks that show them, on made records."""

import csv
import json
import re

import numpy as np
import pytest
from made_records import FAMILY, STAGED, complete, project
from smallzoo import write_cards
from toys import ROOT

from fmseg import fmwiss_ablations, image_counts, pipeline, plots, tables
from fmseg import incremental_figures as figures
from fmseg import incremental_reading as reading
from fmseg.incremental_configs import SETTINGS
from fmseg.settings import load
from fmseg.tables import cell, not_run, paper_value, row, table

BOOKS = ("15_fmwiss_t1", "16_fmwiss_t2", "17_fmwiss_t3", "18_fmwiss_ablations")
COLUMNS = {"S": {"old": "S 1-2", "new": "S 3", "all": "S all", "forgetting": "S forgetting"}}


@pytest.fixture(scope="module", autouse=True)
def zoo(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FMSEG_ZOO", str(write_cards(tmp_path_factory.mktemp("zoo"))))
        yield


def small(values, papers=None):
    """A table of one setting from {row: {group: [a value a seed]}}."""
    rows = []
    for label, groups in values.items():
        cells = {}
        for group, column in COLUMNS["S"].items():
            printed = (papers or {}).get(label, {}).get(group)
            paper = None if printed is None else paper_value(printed, "STATED")
            seeds = dict(enumerate(groups.get(group, [])))
            cells[column] = cell(seeds, paper) if seeds else not_run("no record", paper)
        rows.append(row(label, cells))
    return table("t", "T", "P", "%", list(COLUMNS["S"].values()), rows)


TWO = small(
    {"FMWISS": {"old": [50, 52], "new": [30, 34], "all": [40, 43], "forgetting": [5, 6]},
     "WILSON": {"old": [48, 49], "new": [20, 25], "all": [35, 37], "forgetting": [7, 8]},
     "MiB": {"old": [50, 50], "new": [10, 12], "all": [33, 34], "forgetting": [4, 4]}, "CIL": {}},
    {"FMWISS": {"old": 60, "new": 55, "all": 57}, "WILSON": {"old": 58, "new": 45, "all": 52},
     "MiB": {"old": 61, "new": 40, "all": 51}, "CIL": {"old": 1, "new": 2, "all": 3}},
)  # fmt: skip


# -- figures ----------------------------------------------------------------------------------------------------------


def test_old_and_new_shows_what_was_measured_and_what_is_printed():
    figure, rows = figures.old_and_new(TWO, COLUMNS)
    by = {(r["source"], r["row"]): (r["old"], r["new"], r["n"]) for r in rows}
    assert by["measured", "FMWISS"] == (51, 32, 2) and by["paper", "CIL"] == (1, 2, 0)
    assert ("measured", "CIL") not in by and len(figure.axes) == 2
    names = [{t.get_text() for t in axis.texts} for axis in figure.axes]
    assert names == [{"FMWISS", "WILSON", "MiB"}, {"FMWISS", "WILSON", "MiB", "CIL"}]
    heights = sorted(t.get_position()[1] for t in figure.axes[1].texts)
    assert np.diff(heights).min() > 1, "names do not lie on each other"
    assert figures.old_and_new(small({"FMWISS": {}}, {"FMWISS": {"old": 1, "new": 2}}), COLUMNS)[1] == []


def test_differences_are_paired_by_seed_beside_the_papers():
    figure, rows = figures.differences(TWO, COLUMNS)
    assert [(r["what"], r["seed"], r["difference"], r["paper"]) for r in rows[2:4]] == [
        ("S 3", "0", 10.0, 10.0), ("S 3", "1", 9.0, 10.0),
    ]  # fmt: skip
    assert not any("forgetting" in r["what"] for r in rows) and len(rows) == 6
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["S 1-2", "S 3", "S all"]
    lonely = small({"FMWISS": {"new": [3, 4]}, "WILSON": {"new": [1]}})
    assert [(r["seed"], r["difference"]) for r in figures.differences(lonely, COLUMNS)[1]] == [("0", 2.0)]


def ablation(values):
    rows = [row(label, {c: cell(dict(enumerate(v))) if v else not_run("no record") for c in ("old", "new", "all")})
            for label, v in values.items()]  # fmt: skip
    return table("ab", "T", "P", "%", ["old", "new", "all"], rows)


def test_a_swept_option_stands_in_its_order_and_variants_beside_the_standard():
    made = ablation({"FMWISS": [10, 12], "seeds 1": [4, 5], "seeds 50": [11, 11], "never run": []})
    figure, rows = figures.course(made, {10: "FMWISS", 1: "seeds 1", 50: "seeds 50"}, "seeds a class", standard=10)
    axis = figure.axes[0]
    assert [t.get_text() for t in axis.get_xticklabels()] == ["1", "10", "50"]
    means = {line.get_label(): list(line.get_ydata()) for line in axis.lines}
    assert means["new"] == [4.5, 11.0, 11.0] and means["standard"] and len(rows) == 3 * 3 * 2
    _, rows = figures.variants(made, ["seeds 1", "never run"])
    assert [(r["column"], r["what"], r["difference"]) for r in rows] == [
        ("old", "seeds 1", -6.0), ("old", "seeds 1", -7.0), ("new", "seeds 1", -6.0), ("new", "seeds 1", -7.0),
    ]  # fmt: skip


def test_fewer_pictures_are_a_course_of_each_method():
    made = ablation({"FMWISS": [10], "WILSON": [8], "F half": [9], "W half": []})
    shares = {1.0: {"FMWISS": "FMWISS", "WILSON": "WILSON"}, 0.5: {"FMWISS": "F half", "WILSON": "W half"}}
    figure, rows = figures.efficiency(made, shares)
    assert [(r["method"], r["share"], r["mIoU (%)"]) for r in rows] == [
        ("FMWISS", 0.5, 9.0), ("FMWISS", 1.0, 10.0), ("WILSON", 1.0, 8.0),
    ]  # fmt: skip
    dashed = [line for line in figure.axes[0].lines if line.get_linestyle() == "--"]
    assert [line.get_ydata()[0] for line in dashed] == [8.0], "WILSON with all pictures"
    assert figures.efficiency(ablation({"FMWISS": [], "WILSON": []}), {1.0: shares[1.0]})[1] == []


def test_classes_stand_in_their_order_with_what_was_known_before():
    known = {"name": "a", "step": 0, "iou": 50.0, "forgotten": 10.0, "n": 2}
    new = {"name": "b", "step": 1, "iou": 20.0, "forgotten": None, "n": 2}
    figure, rows = figures.by_class({"FMWISS": [known, new], "FT": [known | {"iou": None, "n": 0}, new | {"n": 0}]})
    assert [(r["row"], r["name"]) for r in rows] == [("FMWISS", "a"), ("FMWISS", "b")], "FT was not run"
    lines = {line.get_label(): line.get_ydata() for line in figure.axes[0].lines}
    before = lines["FMWISS before the step"]
    assert before[0] == 60.0 and np.isnan(before[1])
    assert list(lines["FMWISS"]) == [50.0, 20.0]
    assert figures.by_class({"FT": [known | {"n": 0}]})[1] == []


def test_predictions_are_in_the_colours_of_the_classes():
    order = ("background", "plain disc", "striped star")
    truth = np.zeros((1, 4, 4), np.uint8)
    truth[0, :2], truth[0, 3] = 2, 255
    seen = np.full((1, 4, 4), 2, np.uint8)
    figure, rows = figures.predictions(np.zeros((1, 4, 4, 3), np.uint8), truth, {"FMWISS": seen}, order)
    assert rows == [{"image": 0, "classes": "striped star", "method": "FMWISS", "pixels right (%)": 66.67}]
    said, true = (figure.axes[k].images[0].get_array() for k in (1, 2))
    assert tuple(said[0, 0]) == tuple(true[0, 0]) == plots.class_colour("striped star")
    assert tuple(true[3, 0]) == plots.IGNORED
    assert [axis.get_title() for axis in figure.axes] == ["image", "FMWISS", "truth"]


# -- sentences --------------------------------------------------------------------------------------------------------


def test_ranking_agreement_and_what_is_kept():
    assert reading.ranking(TWO, "S all") == "S all: FMWISS 41.5, WILSON 36.0, MiB 33.5"
    assert reading.agreement(TWO, "S all") == (pytest.approx(1.0), 3) == reading.agreement(TWO, "S 3")
    assert reading.agreement(TWO, "S 1-2")[0] == pytest.approx(0.5), "MiB and FMWISS change places"
    rho, rows = reading.agreement(small({"FT": {"all": [1]}}, {"FT": {"all": 2}}), "S all")
    assert np.isnan(rho) and rows == 1
    said = reading.kept(TWO, COLUMNS, ("WILSON", "CIL"))
    assert re.sub(r" +", " ", said) == "S WILSON old 48.5, new 22.5, 7.5 forgotten"
    assert "nothing was run" in reading.ranking(small({"FT": {}}), "S all")
    assert "nothing was run" in reading.kept(small({"FT": {}}), COLUMNS, ("FT",))


def test_what_each_stage_adds_to_the_student():
    cells = {"clip": (20, 10), "union": (40, 16), "teacher": (50, 13), "student": (45, None)}
    rows = [row(k, {"IoU": cell({0: m}), "student on new classes": cell({0: s}) if s else not_run("none")})
            for k, (m, s) in cells.items()]  # fmt: skip
    made = table("p", "T", "P", "%", ["IoU", "student on new classes"], rows)
    assert reading.explained(made, list(cells)) == [
        {"stage": "clip", "IoU": 20, "student": 10, "gain": None, "share": None},
        {"stage": "union", "IoU": 40, "student": 16, "gain": 6, "share": 2.0},
        {"stage": "teacher", "IoU": 50, "student": 13, "gain": -3, "share": -1.0},
    ]
    assert reading.explained(made, ["student"]) == []


def run_of(method, new, iou):
    result = {"iou": [0.9] + [0.1] * 10 + [new] * 10, "masks": {method: {"precision": 1, "recall": iou, "iou": iou}}}
    return {"config": {"protocol": "mini/10-10/overlap"}, "result": result}


def test_masks_stand_beside_what_students_made_of_them():
    place = "10-10 overlap"
    found = {
        ("WILSON", place): {0: run_of("wilson", 0.5, 0.6), 1: run_of("wilson", 0.4, 0.5)},
        ("FMWISS", place): {0: run_of("teacher", 0.2, 0.3), 1: run_of("teacher", 0.1, 0.4)},
        ("FT", place): {0: {"config": {"protocol": "mini/10-10/overlap"}, "result": {"iou": [0.9] * 21}}},
        ("CAM", place): {0: {"config": {"protocol": "mini/10-10/overlap"}, "result": {"iou": [0.9] * 21}}},
    }
    figure, rows = figures.masks_and_students(found)
    points = {(r["row"], r["seed"]): (r["masks (IoU, %)"], r["new classes (mIoU, %)"]) for r in rows}
    assert points["WILSON", 0] == (60, 50) and points["FMWISS", 1] == (40, 10) and len(points) == 4
    assert len(figure.axes) == 1 and figure.axes[0].get_title() == place
    lines = reading.masks(rows).splitlines()
    assert [line.split()[2] for line in lines[:2]] == ["FMWISS", "WILSON"], "the best masks last"
    assert "35.0 IoU" in lines[0] and "15.0 on new" in lines[0] and lines[2].endswith("over 4 runs: 0.80")
    assert len(reading.masks(rows[:1]).splitlines()) == 1 and figures.masks_and_students({})[1] == []
    assert reading.masks([]) == "nothing was run in this profile"


def test_faults_are_shares_of_the_new_pixels():
    def record(right, truth, guess, **more):
        counts = np.zeros((2, 21, 3), np.int64)
        counts[0, :, 1], counts[0, :, 2] = truth, guess
        counts[0, :, 0] = right
        config = {"protocol": "mini/10-10/overlap", "base": {}} | more
        return {"config": config, "result": {"images": image_counts.pack(counts)}}

    right = [50, *[10] * 10, *[4] * 10]
    truth = [80, *[20] * 10, *[10] * 10]  # 100 pixels are new
    guess = [60, *[14] * 10, *[5] * 10]  # wrong: 10 background, 40 old, 10 new
    place = "10-10 overlap"
    bare = {"config": {"protocol": "mini/10-10/overlap", "base": {}}, "result": {}}
    found = {
        ("A", place): {0: record(right, truth, guess), 1: record(right, truth, truth)},
        ("Joint", place): {0: record(right, truth, guess, base=None)}, ("bare", place): {0: bare},
    }  # fmt: skip
    figure, rows = figures.faults(found)
    assert rows == [{"setting": place, "row": "A", "wrongly old (%)": 70.0, "wrongly background (%)": 20.0,
                     "wrongly new (%)": 35.0, "new found (%)": 40.0}]  # fmt: skip
    assert figures.faults({})[1] == []


def test_swept_rows_and_the_others_are_all_rows():
    settings = load("mini", ROOT)
    assert fmwiss_ablations.usual(settings, "seeds") == 10 and fmwiss_ablations.usual(settings, "alpha") == 0.5
    points = fmwiss_ablations.swept("fmwiss-ab-seeds", "seeds", 10)
    assert sorted(points) == [1, 3, 5, 10, 20, 50] and points[10] == "FMWISS"
    assert fmwiss_ablations.swept("fmwiss-ab-memory", "capacity", 50)[0] == "no copy-paste"
    for id, options in {"fmwiss-ab-weights": ("alpha", "beta"), "fmwiss-ab-teacher": ("dcl_weight",)}.items():
        labels = {v.label for v in fmwiss_ablations.ROWS[id]}
        swept = {label for option in options for label in fmwiss_ablations.swept(id, option, -1).values()}
        assert swept | set(fmwiss_ablations.others(id, *options)) == labels
    assert sorted(fmwiss_ablations.shares()) == [0.125, 0.25, 0.5, 1.0]
    assert all(set(own) == {"FMWISS", "WILSON"} for own in fmwiss_ablations.shares().values())


def test_verdicts_belong_to_the_first_table_of_their_estimand(tmp_path):
    settings = project(tmp_path)
    made = {id: FAMILY[id].table(settings, complete(FAMILY[id], settings)) for id in ("fmwiss-t1", "fmwiss-t2")}
    third = FAMILY["fmwiss-t3"].table(settings, complete(FAMILY["fmwiss-t3"], settings))
    alone = reading.judged("fmwiss-t1", settings, made, FAMILY)
    assert all(e["id"].startswith("fmwiss.t1.") for e in alone) and len(alone) >= 10
    found = {e["id"]: e for e in reading.judged("fmwiss-t3", settings, {**made, "fmwiss-t3": third}, FAMILY)}
    assert {"fmwiss.pooled.new", "fmwiss.pooled.old", "fmwiss.pooled.all", "fmwiss.t3.coco_voc"} <= set(found)
    said = reading.verdict_lines(found.values())
    assert said.count("\n") == len(found) - 1 and "not tested (judged at scale mini" in said
    entry = {"says": "A is above B", "text": "supported in miniature", "mean": 2.0, "low": 1.0, "high": 3.0, "n": 5,
             "id": "x.y", "paper_values": {"difference": {"value": 3.5, "certainty": "COMPUTED"}}}  # fmt: skip
    line = reading.verdict_lines([entry])
    assert line == ("* A is above B: **supported in miniature**: +2.0 [1.0, 3.0] over 5 pairs; the paper's difference: "
                    "3.5 (COMPUTED) (`x.y`)")  # fmt: skip
    assert reading.verdict_lines([]) == "No claim rests on this table."


@pytest.mark.parametrize("setting", SETTINGS)
def test_validation_pictures_come_with_logits_of_the_protocol(setting):
    images, truth, order = reading.validation(load("smoke", ROOT), setting, 3)
    assert images.shape == (3, 64, 64, 3) and truth.shape == (3, 64, 64) and order[0] == "background"
    assert set(np.unique(truth)) <= {*range(len(order)), 255} and len(np.unique(truth)) > 2


# -- notebooks --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A project in which every run has a made-up record; the notebooks leave their tables there, in order."""
    return project(tmp_path_factory.mktemp("project"))


@pytest.mark.parametrize("name", BOOKS)
def test_every_cell_runs_on_made_records(name, home, monkeypatch):
    monkeypatch.chdir(home.root)
    book = json.loads((ROOT / f"notebooks/{name}.ipynb").read_text())
    space = {}
    for c in book["cells"]:
        if c["cell_type"] == "code":
            exec("".join(c["source"]), space)
            if "parameters" in c["metadata"].get("tags", ()):
                space |= {"profile": "smoke", "train": "none"}
    assert space["settings"].profile == "smoke" and space["stage"] == name
    made = {id for id, e in STAGED.items() if e.stage == name}
    assert made and all(tables.read_table(id, home)["id"] == id for id in made)
    drawn = home.results / "figures" / name
    named = set(re.findall(r'plots\.save\(figure, "(.+?)"', "".join("".join(c["source"]) for c in book["cells"])))
    assert named == {path.stem for path in drawn.glob("*.png")} and len(named) >= 3
    for picture in named:
        with (drawn / f"{picture}.csv").open() as file:
            assert list(csv.DictReader(file))


def test_the_figures_of_the_paper_are_all_there():
    everywhere = "".join((ROOT / f"notebooks/{p.name}").read_text() for p in (ROOT / "notebooks").glob("1*.ipynb"))
    assert {f"fmwiss-f{k}" for k in range(1, 6)} <= set(re.findall(r"fmwiss-f\d", everywhere))


def test_a_notebook_is_a_stage_once_its_tables_are_in_the_catalogue(monkeypatch):
    paths = [ROOT / f"notebooks/{name}.ipynb" for name in BOOKS]
    monkeypatch.setattr(pipeline, "EXPERIMENTS", {})
    assert all(map(pipeline.waits_for_tables, paths)) and not set(BOOKS) & set(pipeline.stage_names(ROOT))
    assert not pipeline.waits_for_tables(ROOT / "notebooks/13_memory.ipynb"), "it makes none"
    monkeypatch.setattr(pipeline, "EXPERIMENTS", FAMILY)
    assert set(BOOKS) <= set(pipeline.stage_names(ROOT))
    third = pipeline._stage("17_fmwiss_t3", ROOT)
    needed = {"results/${profile}/tables/fmwiss-t1.json", "results/${profile}/runs/fmwiss-t2", "claims.yaml"}
    assert (
        needed <= set(third["deps"]) and {"results/${profile}/tables/fmwiss-t3.md": pipeline._kept()} in third["outs"]
    )

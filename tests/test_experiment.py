import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from toys import REAL, ROOT, invented, ships

from fmseg import configs, freemask_real, image_counts, readme, recertify, rerun, second_look, tables, world_supervised
from fmseg.experiment import (
    LARGEST_TOLERANCE,
    LEAST_TOLERANCE,
    compare,
    in_miniature,
    judge,
    judged,
    perform,
    stored,
    tolerance,
)
from fmseg.records import run_key, write_record
from fmseg.settings import load
from fmseg.zoo_train import MODULES


def test_runs_are_trained_once_then_taken_from_records_and_one_is_compared(settings):
    runs = len(REAL.configs(settings))
    first = perform(REAL, settings, progress=False)
    assert (first.trained, first.from_records, first.compared) == (runs, 0, [])
    table = settings.results / "tables/freemask-real.json"
    written = table.read_bytes()
    again = perform(REAL, settings, progress=False)
    assert (again.trained, again.from_records) == (0, runs)
    assert again.compared == [
        {"run": "SegFormer, seed 0", "identical": True, "difference": 0.0, "tolerance": again.compared[0]["tolerance"]}
    ]
    assert table.read_bytes() == written and "same weights to the bit" in str(again)
    report = json.loads((settings.root / "build/reports/mini/freemask-real.json").read_text())
    assert report["from_records"] == runs and len(report["compared"]) == 1
    chosen = again.records[-1]["config"]
    (compared,) = perform(REAL, settings, progress=False, again=chosen).compared
    assert compared["run"] == f"{REAL.cell(chosen)}, seed {chosen['seed']}" != again.compared[0]["run"]
    assert perform(REAL, settings, "missing", progress=False, again=chosen).compared == []
    with pytest.raises(ValueError, match="`again` must be the configuration of a run of freemask-real; got .* seed 77"):
        perform(REAL, settings, progress=False, again={**chosen, "seed": 77})
    for record in again.records[:2]:
        record["result"]["miou"] += 60
        write_record(record, REAL.folder(settings))
    with pytest.raises(RuntimeError, match="SegFormer, seed 0: trained live, mIoU differs from its record by -60"):
        perform(REAL, settings, progress=False)


def test_without_training_what_is_missing_is_said_and_nothing_is_written(settings):
    one = invented(settings)[0]
    write_record(one, freemask_real.EXPERIMENT.folder(settings))
    stale = {**invented(settings)[1], "code": {"fmseg.world": "0" * 16}}
    write_record(stale, freemask_real.EXPERIMENT.folder(settings))
    outcome = perform(freemask_real.EXPERIMENT, settings, "none", progress=False)
    assert outcome.from_records == 1 and outcome.records[0] == one and not any(outcome.records[1:])
    assert list(outcome.stale) == [stale["key"]] and "fmseg.world was changed" in outcome.stale[stale["key"]]
    rows = {r["label"]: r["cells"] for r in outcome.table["rows"]}
    assert rows["SegFormer"]["mIoU"]["n"] == 1
    assert rows["Mask2Former"]["mIoU"]["status"] == "not run: no record of its runs"
    assert rows["Mask2Former"]["mIoU"]["paper"]["value"] == 48.7
    assert not (settings.results / "tables").exists()
    with pytest.raises(ValueError, match="`train` must be one of one, none, all, missing; got 'some'"):
        perform(freemask_real.EXPERIMENT, settings, "some")


def test_the_table_is_a_function_of_the_records(settings):
    records = invented(settings)
    table = freemask_real.build_table(settings, records)
    cells = {r["label"]: r["cells"] for r in table["rows"]}
    seed_1 = next(r for r in records if r["config"]["method"] == "segmenter" and r["config"]["seed"] == 1)
    things = [v for v in seed_1["result"]["iou"][:40] if v is not None]
    assert cells["Segmenter"]["things"]["values"]["1"] == pytest.approx(100 * np.mean(things), abs=1e-3)
    assert cells["Segmenter"]["mIoU"]["values"]["1"] == pytest.approx(seed_1["result"]["miou"], abs=1e-3)
    ceilings = [cells[f"ceiling of a {g}x{g} grid"]["mIoU"]["mean"] for g in (4, 8, 16)]
    assert ceilings == sorted(ceilings) and ceilings[-1] < 100
    verdict = judged(freemask_real.EXPERIMENT, settings, type("O", (), {"table": table, "records": records}))
    assert [v["verdict"] for v in verdict] == ["not tested"] * 3  # two seeds are too few


def test_cells_of_the_real_column_follow_from_counts_of_images(settings):
    records = invented(settings)
    for number, record in enumerate(records):
        truth = np.random.default_rng(number).integers(1, 9, (3, len(record["result"]["iou"])))
        counts = np.stack([truth // 2, truth, truth + 1], -1)
        iou = image_counts.iou(counts)
        record["result"] |= {"images": image_counts.pack(counts), "iou": iou.tolist(), "miou": 100 * iou.mean()}
    table = freemask_real.build_table(settings, records)
    found = second_look.cells_of(freemask_real.by_image(settings, records), 1)
    assert {row for row, _ in found} == set(freemask_real.ROWS) and len(found) == 3 * len(freemask_real.ROWS)
    cells = {r["label"]: r["cells"] for r in table["rows"]}
    for (row, column), values in found.items():
        assert {s: v[0] for s, v in values.items()} == pytest.approx(cells[row][column]["values"], abs=1e-3)
    assert freemask_real.by_image(settings, invented(settings)) == []


def test_the_world_table_tells_its_runs_apart(settings):
    records = invented(settings, world_supervised.EXPERIMENT)
    table = world_supervised.build_table(settings, records)
    assert all(c["n"] == 1 for r in table["rows"] for c in r["cells"].values())
    labels = [world_supervised.label_of(settings, r["config"]) for r in records]
    assert {labels.count(label) for label in labels} == {len(world_supervised.DRAWS)}
    assert len({world_supervised.cell_of(r["config"]) for r in records}) == len(records)  # one seed: every run its cell


def test_the_tolerance_is_a_prediction_interval():
    values = [40.0, 40.4, 40.1, 40.7]
    half = stats.t.ppf(0.995, 3) * np.std(values, ddof=1)
    assert tolerance(values) == pytest.approx(half * np.sqrt(1 / 4 + 1))
    assert tolerance(values, 3) == pytest.approx(half * np.sqrt(1 / 4 + 1 / 3))
    assert tolerance([40.0, 40.0]) == LEAST_TOLERANCE and tolerance([40.0]) == LARGEST_TOLERANCE
    assert tolerance([10.0, 90.0]) == LARGEST_TOLERANCE


def test_a_comparison_uses_the_spread_of_its_own_cell(settings):
    records = invented(settings, spread=10)
    again = {**records[0], "result": {**records[0]["result"], "miou": records[0]["result"]["miou"] + 2, "weights": "x"}}
    found = compare(freemask_real.EXPERIMENT, again, records[0], records)
    own = [r["result"]["miou"] for r in records if freemask_real.cell_of(r["config"]) == "SegFormer"]
    assert len(own) == 2 and found["difference"] == 2 and not found["identical"]
    assert found["tolerance"] == pytest.approx(tolerance(own), abs=1e-3)


def test_rerun_compares_cell_by_cell_and_leaves_the_records_alone(settings, monkeypatch):
    monkeypatch.setattr(rerun, "EXPERIMENTS", {"freemask-real": REAL})  # the catalogue
    perform(REAL, settings, progress=False)
    before = {p: p.read_bytes() for p in settings.results.rglob("*") if p.is_file()}
    found = rerun.rerun(settings, "all", progress=False)
    assert {p: p.read_bytes() for p in settings.results.rglob("*") if p.is_file()} == before
    rows = tables.read(settings.results / "tables/freemask-real.json")["rows"]
    assert len(found) == sum(len(row["cells"]) for row in rows)
    assert all(c["ok"] and c["again"] == c["committed"] for c in found)
    records = stored(REAL, settings)
    assert rerun.recorded_seconds(settings, "all") == pytest.approx(sum(r["seconds"] for r in records))
    assert not (settings.root / "build/rerun/mini/all").exists()  # the next one starts anew
    trained = {c["row"] for c in rerun.rerun(settings, progress=False) if "ceiling" not in c["row"]}
    assert trained == {"SegFormer"}, "the headline"
    (one,) = rerun.configs_of(REAL, settings, "one")
    assert one in REAL.configs(settings)
    found = rerun.rerun(settings, "one", progress=False)
    assert {c["n"] for c in found if "ceiling" not in c["row"]} == {1} and all(c["ok"] for c in found)
    shutil.rmtree(REAL.folder(settings))
    assert rerun.configs_of(REAL, settings, "one") == [], "nothing of its own to compare with"
    with pytest.raises(ValueError, match="`scope` must be one of headline, one, all; got 'some'"):
        rerun.rerun(settings, "some")
    assert [e.id for e in rerun.chosen("freemask")] == ["freemask-real"] == [e.id for e in rerun.chosen()]
    with pytest.raises(ValueError, match="`tables` must be the start of a table's name; got 'grounded'; .* freemask"):
        rerun.rerun(settings, start="grounded", progress=False)


def test_what_a_rerun_found_is_kept_and_shown(settings):
    table = freemask_real.build_table(settings, invented(settings))
    tables.write(table, settings.results / "tables")
    found = rerun.compare_tables(table, table)
    found[3] |= {"again": found[3]["committed"] + 1.5 * found[3]["tolerance"], "ok": False}
    kept = rerun.summary(found, 61.0, settings)["tables"]["freemask-real"]
    assert (kept["cells"], kept["inside"]) == (len(found), len(found) - 1)
    assert {k: kept["farthest"][k] for k in ("row", "column")} == {k: found[3][k] for k in ("row", "column")}
    rerun.note("rerun one freemask", rerun.summary(found, 61.0, settings), settings)
    rerun.note("rerun", rerun.summary(found[:3], 5.0, settings, 90.0), settings)
    readme.take_times(settings)
    first, second = readme.part("reruns", settings).splitlines()[2:]
    assert first.startswith("| `make rerun` | 1 | 3 of 3 | ") and "| 5 s | 1 min 30 s |" in first
    assert second.startswith(f"| `make rerun SCOPE=one TABLES=freemask` | 1 | {len(found) - 1} of {len(found)} | ")
    table["provenance"]["records"] = "others"
    tables.write(table, settings.results / "tables")
    assert "other records now: freemask-real" in readme.part("reruns", settings)


def test_a_stopped_rerun_goes_on_counting_its_seconds(settings, monkeypatch, capsys):
    monkeypatch.setattr(rerun, "EXPERIMENTS", {"freemask-real": REAL})
    monkeypatch.setattr(rerun, "load", lambda: settings)
    monkeypatch.setattr("sys.argv", ["rerun", "--scope", "one"])
    perform(REAL, settings, "missing", progress=False)

    def stopped(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(rerun, "obtain", stopped)
        assert rerun.main() == 130 and "goes on from here" in capsys.readouterr().err
    assert rerun.seconds_before(settings, "one") > 0 == rerun.seconds_before(settings, "all")
    (rerun.folder_of(settings, "one") / rerun.SPENT).write_text("1000.0")
    assert rerun.main() == 0
    kept = json.loads((settings.root / "build/reruns/mini.json").read_text())["rerun one"]
    assert 1000 < kept["seconds"] < 2000 and not rerun.folder_of(settings, "one").exists()


def test_a_rerun_that_falls_outside_is_seen(settings):
    committed = freemask_real.build_table(settings, invented(settings, spread=0))  # no spread: one point is the limit
    moved = invented(settings, spread=0)
    for record in moved:
        record["result"]["iou"] = [v if v is None else v - 0.02 for v in record["result"]["iou"]]
    found = rerun.compare_tables(committed, freemask_real.build_table(settings, moved))
    assert len(found) == sum(len(row["cells"]) for row in committed["rows"])
    assert {c["ok"] for c in found if "ceiling" not in c["row"]} == {False}
    assert {c["ok"] for c in found if "ceiling" in c["row"]} == {True}
    assert rerun.failed(found)


def test_one_cell_in_a_hundred_may_lie_outside_by_chance_but_none_far_off():
    right = {"committed": 20.0, "again": 20.5, "tolerance": 1.0, "ok": True}
    outside, far = right | {"again": 21.5, "ok": False}, right | {"again": 22.5, "ok": False}
    assert [rerun.by_chance(n) for n in (0, 1, 20, 200)] == [0, 0, 2, 6]
    assert not rerun.failed([]) and not rerun.failed([right] * 3) and rerun.failed([outside])
    assert not rerun.failed([right] * 198 + [outside] * 2) and rerun.failed([right] * 190 + [outside] * 10)
    assert rerun.failed([right] * 199 + [far])


def test_recertifying_needs_the_same_bits(settings):
    perform(REAL, settings, progress=False)
    folder = REAL.folder(settings)
    for record in stored(REAL, settings):  # as if fmseg.toy had been another module then
        write_record({**record, "code": {**record["code"], "fmseg.toy": "0" * 16}}, folder)
    keys, left = recertify.recertify(REAL, settings)
    methods = {config["method"] for config in REAL.configs(settings)}
    assert len(keys) == len(REAL.configs(settings)) and not left
    certified = stored(REAL, settings)
    assert all(r["recertified"][0]["changed"] == ["fmseg.toy was changed"] for r in certified)
    assert len({r["recertified"][0]["evidence"] for r in certified}) == len(methods)  # one run each was trained again
    assert recertify.recertify(REAL, settings) == ([], [])
    for record in certified:  # as if a result had said less, then more, than now
        result = {k: v for k, v in record["result"].items() if k != "miou"}
        write_record({**record, "result": result, "code": {**record["code"], "fmseg.toy": "0" * 16}}, folder)
    assert len(recertify.recertify(REAL, settings)[0]) == len(certified)
    assert "miou" not in stored(REAL, settings)[0]["result"], "a record keeps what was measured then"
    for record in certified:
        result = {**record["result"], "gone": 1.0}
        write_record({**record, "result": result, "code": {**record["code"], "fmseg.toy": "0" * 16}}, folder)
    assert not recertify.recertify(REAL, settings)[0]
    for record in certified:
        write_record(record, folder)
    toy = settings.root / "fmseg/toy.py"
    toy.write_text(toy.read_text().replace("OFFSET = 0.0", "OFFSET = 0.1"))  # now a change does move the numbers
    keys, left = recertify.recertify(REAL, settings)
    assert not keys and len(left) == len(methods) and "segmenter: 4 records stay stale" in left[-1]
    assert stored(REAL, settings) == certified


def test_configurations_come_from_the_parameters(settings):
    by_row = {freemask_real.cell_of(config): config for config in freemask_real.run_configs(settings)}
    common = {"batch_size": 4, "augment": ["flip"], "steps": 2, "warmup_steps": 1, "eval_every": 1}
    one, other = by_row["SegFormer"], by_row["SegFormer from scratch"]
    assert one["train"] == common | {"lr": 0.001, "backbone_lr": 0.1}
    assert one["backbone"] == "zoo:hash-of-backbone-segformer"
    assert other["train"] == common | {"lr": 0.002} and other["backbone"] == "scratch", "one rate for all of it"
    with pytest.raises(ValueError, match="`backbone` must be one of zoo, scratch; got 'imagenet'"):
        configs.supervised(settings, "segformer", 0, "ade", 8, 8, backbone="imagenet")
    with pytest.raises(ValueError, match=r"`exposures` \(3\) must be at least one batch \(4\)"):
        configs.supervised(settings, "segformer", 0, "ade", 8, 3)
    with pytest.raises(ValueError, match="unknown parameter 'lr.segfomer'"):
        configs.supervised(settings, "segfomer", 0, "ade", 8, 8)


def test_what_shows_the_mini_world_does_so_in_any_profile():
    mini, paper = load("mini", ROOT), load("paper", ROOT)
    assert in_miniature(mini) is mini
    shown = in_miniature(paper)
    assert shown.get("freemask.lesson") == mini.get("freemask.lesson") and shown.results == paper.results
    assert in_miniature(load("smoke", ROOT)).get("freemask.lesson") != mini.get("freemask.lesson")


def test_a_claim_on_rows_that_another_scale_lacks_is_not_judged_there_and_stops_nothing(settings):
    rule = {"test": "paired_t", "alpha": 0.05, "side": "greater", "minimal_effect": 1.0}
    common = {"paper": "FreeMask", "where": "here", "says": "more", "pairs": "seed", "rule": rule, "scale": "mini"}
    common["paper_values"] = {"certainty": "STATED", "source": "made up", "one": 1.0}
    listed = [
        common | {"id": f"made.up.{k}", "estimand": f"freemask-real[{row}, mIoU] - freemask-real[SegFormer, mIoU]"}
        for k, row in enumerate(("Segmenter", "SegFormer of another size", "Mask2Former"))
    ]
    found = {"freemask-real": freemask_real.build_table(settings, invented(settings))}
    entries = judge(listed, found, {}, {}, replace(settings, profile="paper"))
    assert [e["id"] for e in entries] == ["made.up.0", "made.up.1", "made.up.2"]
    assert {e["verdict"] for e in entries} == {"not tested"}
    assert entries[0]["mean"] is not None and "these are paper results" in entries[0]["why"]
    assert entries[1]["mean"] is None and "a table of profile paper has other rows" in entries[1]["text"]
    with pytest.raises(ValueError, match="has no row 'SegFormer of another size'"):
        judge(listed, found, {}, {}, settings)  # at its own scale that is a mistake


def test_tables_written_by_the_package_are_valid(settings):
    tables.validate(freemask_real.build_table(settings, invented(settings)))
    tables.validate(world_supervised.build_table(settings, [None] * len(world_supervised.run_configs(settings))))


# -- while the zoo is incomplete ---------------------------------------------------------------------------------------


def test_the_whole_zoo_gives_the_whole_table(settings):
    runs = freemask_real.run_configs(settings)
    assert len(runs) == 8 * len(settings.get("seeds")) and len({run_key(c) for c in runs}) == len(runs)
    cells = {r["label"]: r["cells"]["mIoU"] for r in freemask_real.build_table(settings, invented(settings))["rows"]}
    assert all(cells[label]["n"] == 2 for label in freemask_real.ROWS)
    papers = {label: cell["paper"]["value"] for label, cell in cells.items() if cell["paper"]}
    assert papers == freemask_real.PAPER, "only rows of the paper carry its numbers"


def test_a_backbone_that_is_not_shipped_leaves_its_rows_empty_and_says_so(settings, monkeypatch):
    ships(monkeypatch, "backbone-segmenter", "clip")
    labels = {freemask_real.cell_of(c) for c in freemask_real.run_configs(settings)}
    assert labels == {"Segmenter"} | {label for label in freemask_real.ROWS if "scratch" in label}
    for record in invented(settings):
        write_record(record, freemask_real.EXPERIMENT.folder(settings))
    outcome = perform(freemask_real.EXPERIMENT, settings, "none", progress=False)
    rows = {r["label"]: r["cells"] for r in tables.read(settings.results / "tables/freemask-real.json")["rows"]}
    assert outcome.from_records == 10 and rows["Segmenter"]["mIoU"]["n"] == 2
    assert rows["SegFormer"]["things"]["status"] == "not run: the zoo has no backbone-segformer yet"
    assert rows["SegFormer"]["mIoU"]["paper"]["value"] == 45.6
    found = {v["id"]: v["why"] for v in judged(freemask_real.EXPERIMENT, settings, outcome)}
    assert "SegFormer / mIoU not run: the zoo has no backbone-segformer yet" in found["freemask.real.1"]
    ships(monkeypatch, *MODULES)
    outcome = perform(freemask_real.EXPERIMENT, settings, "none", progress=False)
    assert (outcome.records.count(None), outcome.from_records) == (6, 10), "what was there stays, the rest is asked for"


def test_the_curve_waits_for_its_backbone_and_the_converged_runs_do_not(settings, monkeypatch):
    whole = world_supervised.run_configs(settings)
    ships(monkeypatch)
    runs = world_supervised.run_configs(settings)
    assert runs == [c for c in whole if c["split"] == "large"] and {c["backbone"] for c in runs} == {"scratch"}
    table = world_supervised.build_table(settings, invented(settings, world_supervised.EXPERIMENT))
    cells = {r["label"]: r["cells"]["voc"] for r in table["rows"]}
    assert cells["the training split"]["status"] == "not run: the zoo has no backbone-segformer yet"
    assert cells["SegFormer to convergence"]["n"] == 1

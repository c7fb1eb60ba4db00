"""Grounded Diffusion's tables from invented records: every row, paired seeds, what the paper prints, claims that read
them; and configurations of every profile."""

import json
from collections import Counter

import numpy as np
import pytest
from toys import ROOT

from fmseg import (
    claims,
    grounded_configs,
    grounded_images,
    grounded_paper,
    image_counts,
    protocols,
    second_look,
    tables,
    verdicts,
    zoo,
)
from fmseg import grounded_tables as grounded
from fmseg.estimand import parse
from fmseg.metrics import seen_unseen
from fmseg.records import run_key
from fmseg.rerun import configs_of
from fmseg.settings import load
from fmseg.zero_shot import CLIP_DENSE
from fmseg.zero_shot_table import T2

PROTOCOL_ONE = (grounded.T1, grounded.NOVELTY, grounded.T3, grounded.T4, grounded.TIMESTEPS, grounded.INVERSION)
ROWS = {
    "grounded-t1": 11, "grounded-novelty": 4, "grounded-t3": 3, "grounded-t4": 6, "grounded-timesteps": 12,
    "grounded-inversion": 5, "grounded-t2": 17,
}  # fmt: skip


@pytest.fixture(autouse=True)
def cards(tmp_path, monkeypatch):
    """A zoo of cards alone: configurations name hashes, nothing is loaded."""
    for name in ("diffusion", "oracle", "judge", "clip", "backbone-segformer"):
        (tmp_path / name).mkdir()
        (tmp_path / name / zoo.CARD).write_text(json.dumps({"files": {"model": name}}))
    monkeypatch.setenv("FMSEG_ZOO", str(tmp_path))


def invented(configs, rng):
    """Records with made-up results of the right form."""

    def of(groups):
        return {g: {"miou": float(rng.uniform(20, 90)), "pooled": 50.0, "pictures": 5, "classes": 3} for g in groups}

    made = []
    for config in configs:
        if "test" not in config:  # protocol II
            classes = len(protocols.get(config["split"]).classes)
            truth = rng.integers(1, 50, (4, classes))
            counts = np.stack([rng.integers(0, truth + 1), truth, truth + 5], -1)
            groups = protocols.get(config["split"]).groups()
            result = {k: 100 * v for k, v in seen_unseen(image_counts.iou(counts), **groups).items()}
            result["images"] = image_counts.pack(counts)
        else:
            sets = {"novel": grounded.KINDS} if "novel" in config["test"] else {"painted": grounded.COLUMNS}
            result = {"scores": {name: of(groups) for name, groups in sets.items()}}
            result["ceiling"] = {name: {"16": of(groups)} for name, groups in sets.items()}
            if config["method"] == "daam":
                result["fixed"] = {name: of(groups) for name, groups in sets.items()}
            if "painted" in sets:
                kept = {"images": "scores"} | ({"fixed images": "fixed"} if config["method"] == "daam" else {})
                for images, scores in kept.items():
                    result[images] = {"painted": pictures(config, rng)}
                    result[scores]["painted"] = {
                        column: {"miou": float(values), "pooled": 50.0, "pictures": 5, "classes": 3}
                        for column, values in grounded_images.mean_over_classes(
                            grounded.COLUMNS, image_counts.unpack(result[images]["painted"]["counts"]).sum(0)
                        ).items()
                    }  # fmt: skip
            if config["test"].get("real"):
                result["scores"] |= {f"real, {k}": of(("seen", "unseen")) for k in ("truth", "oracle")}
                result["against truth"] = {k: of(("seen", "unseen")) for k in ("oracle", "ceiling 16")}
        made.append({"key": run_key(config), "config": config, "code": {}, "result": result})
    return made


def pictures(config, rng):
    """Made-up counts of twelve pictures, each naming one class of every column."""
    columns, classes = list(grounded.COLUMNS), 3
    counts = np.zeros((12, len(columns) * classes, 3), np.int64)
    for row in range(len(counts)):
        for column in range(len(columns)):
            counts[row, column * classes + rng.integers(classes)] += (rng.integers(1, grounded_images.MILLION), 1, 0)
    return {"columns": columns, "counts": image_counts.pack(counts)}


@pytest.fixture
def settings():
    return load("mini", ROOT)


@pytest.fixture
def built(settings):
    rng = np.random.default_rng(0)
    return {e.id: e.table(settings, invented(e.configs(settings), rng)) for e in (*PROTOCOL_ONE, T2)}


def test_every_table_has_all_its_rows_and_cells(built):
    for id, made in built.items():
        tables.validate(made)
        assert len(made["rows"]) == ROWS[id]
        for row in made["rows"]:
            ours = {c["status"] for c in row["cells"].values()}
            assert ours == {"measured"} or "published number" in next(iter(ours))
            seeds = 1 if id == "grounded-t2" and row["label"].startswith("ceiling") else 5
            assert all(c["n"] == seeds for c in row["cells"].values() if c["status"] == "measured")


@pytest.mark.parametrize("experiment", [e for e in (*PROTOCOL_ONE, T2) if e.by_image], ids=lambda e: e.id)
def test_cells_that_claims_read_follow_from_test_pictures(settings, experiment):
    records = invented(experiment.configs(settings), np.random.default_rng(1))
    lines = {row["label"]: row["cells"] for row in experiment.table(settings, records)["rows"]}
    found = second_look.cells_of(experiment.by_image(settings, records), 1)
    for (label, column), values in found.items():
        assert {s: v[0] for s, v in values.items()} == pytest.approx(lines[label][column]["values"], abs=1e-3)
    listed = claims.testable(claims.load(ROOT / "claims.yaml"))
    read = {c[1:] for claim in listed for c in parse(claim["estimand"]).cells if c[0] == experiment.id}
    assert read and read <= set(found)
    bare = [r | {"result": {k: v for k, v in r["result"].items() if "images" not in k}} for r in records]
    assert experiment.by_image(settings, bare) == []


def test_every_seed_of_a_draw_is_tested_on_the_same_pictures(settings):
    runs = grounded.T1.by_image(settings, invented(grounded.T1.configs(settings), np.random.default_rng(1)))
    names = {}
    for run in runs:
        if "average" not in run.row:
            column = next(iter(run.cells({k: image_counts.unpack(v).sum(0) for k, v in run.packed.items()})))
            names.setdefault(column.split()[0], set()).add(run.sets["images"])
    assert set(names) == {"voc", "coco"} and all(len(own) == 1 for own in names.values())


def test_without_records_every_cell_says_so(settings):
    for experiment in (*PROTOCOL_ONE, T2):
        configs = experiment.configs(settings)
        made = experiment.table(settings, [None] * len(configs))
        rows = [row for row in made["rows"] if experiment is not T2 or not row["label"].startswith("ceiling")]
        statuses = {c["status"] for row in rows for c in row["cells"].values()}
        assert all(s.startswith("not run: ") for s in statuses) and len(made["rows"]) == ROWS[experiment.id]


def test_an_average_over_splits_is_paired_by_seed(built):
    rows = {row["label"]: row["cells"] for row in built["grounded-t1"]["rows"]}
    each = [rows[f"head split {k}"]["coco two unseen"]["values"] for k in (1, 2, 3)]
    for seed, value in rows["head average"]["coco two unseen"]["values"].items():
        assert value == pytest.approx(np.mean([v[seed] for v in each]), abs=1e-3)


def test_finer_grids_keep_more_and_background_is_no_neighbour(built):
    rows = {row["label"]: row["cells"] for row in built["grounded-t2"]["rows"]}
    each = [rows[f"ceiling of a {n}x{n} grid"]["voc unseen"]["mean"] for n in (8, 16, 32)]
    assert each == sorted(each) and each[0] > 80  # things touch each other seldom


def test_what_learns_nothing_is_the_same_for_every_seed(built):
    rows = {row["label"]: row["cells"] for row in built["grounded-t1"]["rows"]}
    assert len(set(rows["DAAM best split 1"]["voc one seen"]["values"].values())) == 1
    assert len(rows["DAAM best split 1"]["voc one seen"]["values"]) == 5


def test_an_empty_column_says_that_nothing_was_found(settings):
    records = invented(grounded.T3.configs(settings), np.random.default_rng(0))
    for record in records:
        del record["result"]["scores"]["painted"]["two unseen"]
    made = grounded.T3.table(settings, records)
    assert made["rows"][0]["cells"]["two unseen"]["status"] == f"not run: {grounded.EMPTY}"
    assert made["rows"][0]["cells"]["two seen"]["status"] == "measured"


def test_runs_are_distinct_and_seeds_alone_tell_those_of_a_cell_apart(settings):
    for experiment in (*PROTOCOL_ONE, T2):
        configs = experiment.configs(settings)
        assert len({run_key(c) for c in configs}) == len(configs)
        for cell, count in Counter(experiment.cell(c) for c in configs).items():
            seeds = {c["seed"] for c in configs if experiment.cell(c) == cell}
            assert len(seeds) == count in (1, 5)


def test_the_headline_is_what_the_issue_says(settings):
    counts = {e.id: len(configs_of(e, settings, "headline")) for e in (*PROTOCOL_ONE, T2)}
    assert counts == {
        "grounded-t1": 3 * 6 + 6, "grounded-novelty": 0, "grounded-t3": 6, "grounded-t4": 0,
        "grounded-timesteps": 15, "grounded-inversion": 0, "grounded-t2": 18,
    }  # fmt: skip
    everything = configs_of(grounded.TIMESTEPS, settings, "all")
    assert len({c["step"] for c in everything}) == 11


def test_the_run_that_is_trained_live_is_one_that_trains(settings):
    from fmseg.experiment import _exposures

    for experiment in (*PROTOCOL_ONE, T2):
        cheapest = min(experiment.configs(settings), key=_exposures)
        assert cheapest["method"] not in ("daam", CLIP_DENSE)


def test_the_head_of_protocol_two_has_seen_no_unseen_class(settings):
    for config in T2.configs(settings):
        split = grounded_configs.split_of(config["draw"], 1)
        if config.get("sets"):
            assert set(config["head"]["seen"]) == set(split.seen) and config["head"]["seed"] == config["seed"]
            assert sum(s["count"] for s in config["sets"]) == settings.get("grounded.zero_shot.pictures")
        assert ("generator" in config) == (config["method"] == "zs3-style")
        assert config["method"] != CLIP_DENSE or config["seed"] == 0


def test_every_row_of_the_timesteps_has_one_of_the_paper_s(settings):
    assert list(settings.get("grounded.timesteps").values()) == list(grounded_paper.TIMESTEPS)
    assert set(grounded.HEADLINE_STEPS) <= set(settings.get("grounded.timesteps"))


def test_smoke_has_the_same_tables():
    smoke = load("smoke", ROOT)
    for experiment in (*PROTOCOL_ONE, T2):
        assert experiment.configs(smoke)


def test_what_is_the_mini_worlds_alone_has_no_runs_on_real_data():
    paper = load("paper", ROOT)
    assert {e.id for e in (*PROTOCOL_ONE, T2) if not e.configs(paper)} == {"grounded-novelty", "grounded-inversion"}


def test_printed_averages_follow_from_their_rows_but_for_the_named_slips():
    off = []
    for name, rows in (("DAAM", grounded_paper.DAAM), ("head", grounded_paper.HEAD)):
        means = np.mean(rows[:3], axis=0)
        off += [(name, k) for k, (a, b) in enumerate(zip(means, rows[3], strict=True)) if abs(a - b) > 0.011]
    assert off == [("DAAM", 6), ("head", 7)]
    text = " ".join(grounded_paper.SLIPS)
    assert f"{grounded_paper.DAAM[3][6]}" in text and f"{grounded_paper.HEAD[3][7]}" in text
    assert f"{grounded_paper.SEEN_CLASSES[65][0]}" in text and f"{grounded_paper.HEAD[0][5]}" in text


def test_harmonic_means_follow_from_seen_and_unseen():
    for numbers in grounded_paper.PROTOCOL_II.values():
        for s, u, h in (numbers[:3], numbers[3:]):
            assert s is None or h == pytest.approx(2 * s * u / (s + u), abs=0.16)


def grounded_claims():
    return [c for c in claims.load(ROOT / "claims.yaml") if c["id"].startswith("grounded.")]


def test_every_printed_number_is_in_a_claim_or_listed_as_not_tested():
    printed = {
        "grounded.t1.": [*grounded_paper.DAAM, *grounded_paper.HEAD],
        "grounded.t2.": [[x for x in row if x is not None] for row in grounded_paper.PROTOCOL_II.values()],
        "grounded.t3.": grounded_paper.ZERO_MASKS.values(),
        "grounded.t4.": grounded_paper.SEEN_CLASSES.values(),
        "grounded.timesteps.": grounded_paper.TIMESTEPS.values(),
    }
    counts = {}
    for prefix, rows in printed.items():
        listed = Counter(x for c in grounded_claims() if c["id"].startswith(prefix) for x in claims.numbers(c).values())
        wanted = Counter(x for row in rows for x in row)
        assert not wanted - listed, prefix
        counts[prefix] = wanted.total()
    assert list(counts.values()) == [80, 63, 10, 25, 55]


def test_runs_that_several_tables_need_are_the_same(settings):
    keys = {e.id: {run_key(c) for c in e.configs(settings)} for e in PROTOCOL_ONE}
    assert len(keys["grounded-t1"] & keys["grounded-t3"] & keys["grounded-timesteps"]) == 5
    assert all(set(e.lenders) == set(keys) - {e.id} for e in PROTOCOL_ONE)


def test_claims_can_be_read_in_every_profile():
    smoke, rng = load("smoke", ROOT), np.random.default_rng(0)
    made = {e.id: e.table(smoke, invented(e.configs(smoke), rng)) for e in (*PROTOCOL_ONE, T2)}
    for entry in verdicts.judge(claims.testable(grounded_claims()), made, scale="smoke"):
        assert entry["verdict"] == "not tested" and "smoke" in entry["why"]
    steps = [row["label"] for row in made["grounded-timesteps"]["rows"]]
    assert len(steps) == len(set(steps)) and {f"step {k}" for k in grounded.CLAIMED_STEPS} < set(steps)


def test_every_claim_reads_cells_that_the_tables_have(built):
    listed = claims.testable(grounded_claims())
    assert len(listed) > 40
    for entry in verdicts.judge(listed, built):
        assert entry["n"] == 5 and entry["verdict"] != "not tested", entry["id"]

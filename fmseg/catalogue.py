"""Every table that rests on trained runs, and what concerns all of them. Notebooks import their own table alone."""

from fmseg import (
    camvid_real,
    claims,
    fmwiss_ablations,
    fmwiss_pseudo,
    fmwiss_tables,
    freemask_real,
    tables,
    verdicts,
    world_supervised,
    zoo_table,
)
from fmseg.experiment import Experiment, behind
from fmseg.settings import Settings

EXPERIMENTS: dict[str, Experiment] = {
    e.id: e
    for e in (
        world_supervised.EXPERIMENT, zoo_table.EXPERIMENT, *fmwiss_tables.EXPERIMENTS.values(),
        *fmwiss_ablations.EXPERIMENTS.values(), fmwiss_pseudo.EXPERIMENT, freemask_real.EXPERIMENT,
        camvid_real.EXPERIMENT,
    )  # fmt: skip
}


def judge_all(settings: Settings) -> list[dict]:
    """Every claim's verdict, from the tables at hand and the rule hashes in the records behind them.

    Raises:
        ValueError: a table, record or claim is damaged, or a claim names a row that its table lacks.
    """
    listed = claims.load(settings.root / "claims.yaml")
    hashes = claims.stored_hashes(listed, {id: behind(e, settings) for id, e in EXPERIMENTS.items()})
    return verdicts.judge(listed, tables.read_all(settings.results / "tables"), hashes, settings.profile)

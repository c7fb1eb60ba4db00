"""Every table that rests on trained runs, and what concerns all of them. Notebooks import their own table alone."""

from fmseg import (
    across_tables,
    camvid_real,
    claims,
    field_bugs_table,
    fmwiss_ablations,
    fmwiss_bounded_table,
    fmwiss_causes_table,
    fmwiss_pseudo,
    fmwiss_tables,
    freemask_camvid,
    freemask_real,
    freemask_tables,
    freemask_truth,
    grounded_tables,
    tables,
    world_supervised,
    zero_shot_table,
    zoo_table,
)
from fmseg.experiment import Experiment, behind, judge
from fmseg.settings import Settings

EXPERIMENTS: dict[str, Experiment] = {
    e.id: e
    for e in (
        world_supervised.EXPERIMENT, zoo_table.EXPERIMENT, *fmwiss_tables.EXPERIMENTS.values(),
        *fmwiss_ablations.EXPERIMENTS.values(), fmwiss_pseudo.EXPERIMENT, *fmwiss_causes_table.EXPERIMENTS.values(),
        fmwiss_bounded_table.EXPERIMENT, freemask_real.EXPERIMENT, *freemask_tables.EXPERIMENTS.values(),
        freemask_truth.EXPERIMENT, camvid_real.EXPERIMENT, freemask_camvid.EXPERIMENT, grounded_tables.T1,
        grounded_tables.NOVELTY, grounded_tables.T3, grounded_tables.T4, grounded_tables.TIMESTEPS,
        grounded_tables.INVERSION, zero_shot_table.T2, *across_tables.EXPERIMENTS.values(), field_bugs_table.EXPERIMENT,
    )  # fmt: skip
}


def judge_all(settings: Settings) -> list[dict]:
    """Every claim's verdict and its second look, from the tables at hand and the records behind them.

    Raises:
        ValueError: a table, record or claim is damaged, or a claim names a row that its table lacks.
    """
    listed = claims.load(settings.root / "claims.yaml")
    records = {id: behind(e, settings) for id, e in EXPERIMENTS.items()}
    found = tables.read_all(settings.results / "tables")
    return judge(listed, found, records, EXPERIMENTS, settings)

"""Does `python -m fmseg plan` predict what a stage takes? Predicts, runs the stage, prints the ratio.

    python benchmarks/plan_accuracy.py [STAGE]

Default 20_freemask_real with its records in place: notebook, one live run, figures, page.
"""

import sys
import time

from fmseg import notebooks, plan
from fmseg.catalogue import EXPERIMENTS
from fmseg.pipeline import made_by
from fmseg.settings import load


def main(stage: str = "20_freemask_real") -> None:
    settings = load("mini")
    experiment = EXPERIMENTS[made_by(stage)[0]]
    costs = {}
    for config in experiment.configs(settings):
        if plan.kind_of(config) not in costs:
            costs[plan.kind_of(config)] = plan.calibrate(config)
    predicted = plan.predict(experiment, settings, costs, workers=2).total
    started = time.perf_counter()
    notebooks.execute(stage, settings, progress=False)
    measured = time.perf_counter() - started
    off = 100 * (predicted / measured - 1)
    print(f"{stage}: predicted {predicted:.0f} s, measured {measured:.0f} s, prediction off by {off:+.0f} %")


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Every table that rests on trained runs. For the commands that look at all of them; notebooks import their own."""

from fmseg import freemask_real, world_supervised
from fmseg.experiment import Experiment

EXPERIMENTS: dict[str, Experiment] = {e.id: e for e in (world_supervised.EXPERIMENT, freemask_real.EXPERIMENT)}

"""`python -m fmseg train TABLE`: train the runs of a table that have no record yet, one after another.

For real data and GPUs, alone or under ``torchrun``; the mini world's runs are trained by the notebooks themselves. Each
run is resumed from its checkpoint in build/runs and leaves a record, from which the notebook then makes its table.
"""

import argparse
import sys
from importlib import import_module

import torch

from fmseg import distributed
from fmseg.catalogue import EXPERIMENTS
from fmseg.experiment import Experiment, rules
from fmseg.provenance import canonical_hash, closure
from fmseg.records import new_record, reasons_stale, run_key, write_record
from fmseg.settings import Settings, load
from fmseg.words import find


def waiting(experiment: Experiment, settings: Settings, only: dict[str, str] | None = None) -> list[dict]:
    """Configurations without a record that belongs to this code, in the table's order.

    Args:
        experiment, settings: the table and the profile.
        only: {key of a configuration: value as text}: those alone, such as {"method": "segformer", "seed": "0"}.

    Raises:
        ValueError: ``only`` names a key or a value that no run has.
    """
    configs, code = experiment.configs(settings), closure(experiment.trained_by(settings), settings.root)
    for key, value in (only or {}).items():
        known = sorted({str(config[key]) for config in configs if key in config})
        if value not in known:
            raise ValueError(
                f"`only` {key}={value}: the runs of {experiment.id} have {', '.join(known) or 'no such key'}"
            )
        configs = [config for config in configs if key in config and str(config[key]) == value]
    records = [experiment.record(settings, config, code) for config in configs]
    return [c for c, r in zip(configs, records, strict=True) if r is None or reasons_stale(r, code)]


def train_run(experiment: Experiment, settings: Settings, config: dict, checkpoint_every: int = 1000) -> dict:
    """Train one run in this process, or with all that :func:`fmseg.distributed.joined` joined; the first writes it."""
    module = experiment.trained_by(settings)
    code = closure(module, settings.root)
    checkpoint = settings.root / "build" / "runs" / f"{run_key(config)}-{canonical_hash(code)}.pt"
    done = import_module(module).run(
        config, checkpoint=checkpoint, checkpoint_every=checkpoint_every, progress=True
    )  # fmt: skip
    record = new_record(
        config, code, done["result"], curve=done["curve"], seconds=done["seconds"],
        claims=rules(experiment, settings), threads=torch.get_num_threads(),
    )  # fmt: skip
    if distributed.world().first:
        write_record(record, experiment.folder(settings))
        checkpoint.unlink(missing_ok=True)
    distributed.wait_for_all()
    return record


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m fmseg train", description=__doc__.splitlines()[0])
    parser.add_argument("table", help=f"one of {', '.join(EXPERIMENTS)}")
    parser.add_argument("--profile", help="default: the one in params.yaml")
    parser.add_argument("--only", action="append", default=[], metavar="KEY=VALUE", help="such as method=segformer")
    parser.add_argument("--checkpoint-every", type=int, default=1000, help="steps; default 1000")
    given = parser.parse_args(words)
    try:
        experiment = EXPERIMENTS[tuple(EXPERIMENTS)[find(given.table, tuple(EXPERIMENTS), "table")]]
        settings = load(given.profile)
        only = dict(pair.split("=", 1) for pair in given.only)
        with distributed.joined() as world:
            configs = waiting(experiment, settings, only)
            for number, config in enumerate(configs, start=1):
                if world.first:
                    print(
                        f"run {number} of {len(configs)}: {experiment.cell(config)}, seed {config['seed']}", flush=True
                    )
                record = train_run(experiment, settings, config, given.checkpoint_every)
                if world.first:
                    print(f"  mIoU {record['result']['miou']:.2f}, {record['seconds']:.0f} s", flush=True)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"fmseg: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nfmseg: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0

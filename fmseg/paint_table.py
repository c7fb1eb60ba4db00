"""`python -m fmseg paint TABLE`: paint the synthetic pictures that a table needs at paper size:
FreeMask's, which are also filtered, or for `grounded-t2` Grounded Diffusion's labelled pairs.

Start it as often as there are GPUs, one process on each (CUDA_VISIBLE_DEVICES), on every machine that sees the same
folder of parts (FMSEG_PARTS): they share the shards. A process that ends early leaves nothing half; the same command
goes on from there.
"""

import argparse
import sys

from fmseg.experiment import on_real_data
from fmseg.freemask_tables import EXPERIMENTS
from fmseg.provenance import canonical_hash
from fmseg.real_freemask_chain import SYNTHETIC, Chain
from fmseg.settings import Settings, load
from fmseg.words import find
from fmseg.zero_shot_table import T2

DECIDES = ("data", "split", "images", "generator", "filter", "synthetic")


def chains(settings: Settings, table: str) -> list[dict]:
    """What the runs of a table need painted, each set once: the part of their configurations that decides it.

    Raises:
        ValueError: no such table, or a profile that trains on the mini world, whose runs paint for themselves.
    """
    if not on_real_data(settings):
        raise ValueError(f"profile {settings.profile} has no data sets; runs of the mini world paint what they need")
    experiment = EXPERIMENTS[tuple(EXPERIMENTS)[find(table, tuple(EXPERIMENTS), "table")]]
    sets = {}
    for config in experiment.configs(settings):
        if set(config.get("synthetic", ())) == set(SYNTHETIC):
            wanted = {key: config[key] for key in DECIDES if key in config}
            sets[canonical_hash(wanted)] = wanted
    return list(sets.values())


def pairs(settings: Settings) -> list[dict]:
    """Of `grounded-t2` what is painted: of each set of pairs the largest that a row asks for, with ``head``, ``split``
    and ``draw``."""
    largest: dict[str, dict] = {}
    for config in T2.configs(settings):
        for what in config.get("sets", ()):
            of = {key: config[key] for key in ("head", "split", "draw")}
            key = canonical_hash(of | {"kind": what["kind"], "rich": what["rich"]})
            if key not in largest or largest[key]["what"]["count"] < what["count"]:
                largest[key] = of | {"what": what}
    return list(largest.values())


def _paint_pairs(settings: Settings) -> None:
    from fmseg import protocols, real_zero_shot

    if not on_real_data(settings):
        raise ValueError(f"profile {settings.profile} has no data sets; runs of the mini world paint what they need")
    wanted = pairs(settings)
    for number, one in enumerate(wanted, 1):
        what = one["what"]
        print(f"set {number} of {len(wanted)}: {what['count']:,} pairs of {one['draw']}, objects: {what['kind']}"
              f"{', rich prompts' if what['rich'] else ''}", flush=True)  # fmt: skip
        made = real_zero_shot.painted_pairs(one["head"], protocols.get(one["split"]), one["draw"], what)
        print(f"  {len(made):,} pairs are there", flush=True)


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m fmseg paint", description=__doc__.splitlines()[0])
    parser.add_argument("table", help=f"one of {', '.join((*EXPERIMENTS, T2.id))}")
    parser.add_argument("--profile", help="default: the one in params.yaml")
    given = parser.parse_args(words)
    try:
        if given.table == T2.id:
            _paint_pairs(load(given.profile))
            return 0
        wanted = chains(load(given.profile), given.table)
        for number, config in enumerate(wanted, 1):
            chain = Chain(config)
            print(f"set {number} of {len(wanted)}: {len(chain.drawn):,} pictures of {len(chain.real):,} masks of "
                  f"{config['data']}, {chain.missing()} of {chain.shards()} shards missing", flush=True)  # fmt: skip
            made = chain.perform()
            print(f"  {made.facts['kept']:.1%} of the pixels kept; {chain.root}", flush=True)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"fmseg: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nfmseg: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0

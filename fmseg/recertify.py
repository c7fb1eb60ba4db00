"""`make recertify`: give records the new code's hash where a change has demonstrably not moved the numbers.

Single-thread runs are deterministic on one machine. So of every table and method that a change touched, the cheapest
stale run is trained again: if its weights and result equal the record's to the bit, all stale records of that table and
method take the new hash, and each says on which evidence; if not, they stay stale and are listed. A result may have
come to say more than the record does, not less: what reads it has to do without.
"""

import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from fmseg.catalogue import EXPERIMENTS
from fmseg.experiment import Experiment, stored
from fmseg.pool import obtain
from fmseg.provenance import canonical_hash, closure, differences
from fmseg.records import reasons_stale, run_key, write_record
from fmseg.settings import Settings, load


def recertify(experiment: Experiment, settings: Settings) -> tuple[list[str], list[str]]:
    """Recertify one table's records.

    Returns:
        Keys of records that took the new hash, and sentences about those that did not.
    """
    code = closure(experiment.trained_by(settings), settings.root)
    wanted = {run_key(config) for config in experiment.configs(settings)}
    stale = [r for r in stored(experiment, settings) if r["key"] in wanted and reasons_stale(r, code)]
    certified, left = [], []
    if stale and not experiment.can_train():
        lack = f"its photographs ({experiment.photos}) are not here"
        return [], [f"{experiment.id}: {len(stale)} records stay stale; {lack}"]
    for method in sorted({r["config"]["method"] for r in stale}):
        mine = sorted((r for r in stale if r["config"]["method"] == method), key=lambda r: r["seconds"])
        with tempfile.TemporaryDirectory(prefix="fmseg-recertify-") as folder:
            where = {"folder": Path(folder), "scratch": Path(folder), "root": settings.root}
            report = obtain([mine[0]["config"]], module=experiment.trained_by(settings), progress=False, **where)
        again = report.records[mine[0]["key"]]
        before = mine[0]["result"]
        if {key: again["result"].get(key) for key in before} != before:
            left.append(
                f"{experiment.id}, {method}: {len(mine)} records stay stale; run {mine[0]['key']} now gives mIoU "
                f"{again['result']['miou']:.2f}, its record says {before['miou']:.2f}"
            )
            continue
        for record in mine:
            note = {
                "on": f"{datetime.now(UTC):%Y-%m-%d}",
                "evidence": mine[0]["key"],
                "from": canonical_hash(record["code"]),
                "changed": differences(record["code"], code),
            }
            renewed = {**record, "code": code, "recertified": [*record.get("recertified", []), note]}
            write_record(renewed, experiment.folder(settings))
            certified.append(record["key"])
    return certified, left


def main() -> int:
    settings, certified, left = load(), 0, []
    for experiment in EXPERIMENTS.values():
        keys, sentences = recertify(experiment, settings)
        certified, left = certified + len(keys), left + sentences
    for sentence in left:
        print(sentence)
    print(f"make recertify: {certified} records certified for this code" + ("; now `make repro`" if certified else ""))
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())

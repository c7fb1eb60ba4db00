"""`make verify`: do the committed results belong to this code, these parameters, these rules? Seconds, no training.

Every table's runs must have a record, every record must rest on the modules as they stand (compared by meaning: a
comment is free, a constant is not), every table must follow from its records, the ledger from the tables, and dvc.lock
must hold the hashes of the files at hand (Python files again by meaning). Another environment than the records' is
reported, not failed.
"""

import hashlib
import importlib.metadata
import json
import platform
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from fmseg import ledger, pipeline, prose, readme, report, tables, zoo, zoo_pipeline, zoo_train
from fmseg.catalogue import EXPERIMENTS, judge_all
from fmseg.experiment import Experiment, stored
from fmseg.notebooks import note_time
from fmseg.provenance import canonical_hash, closure, code_hash
from fmseg.records import RecordError, path_of, reasons_stale
from fmseg.settings import Settings, load

PIPELINES = ("dvc.yaml", "realdata/dvc.yaml")  # not the zoo's, which has no results in git
_VERSIONS = 50  # of a file that are looked through for the one in dvc.lock


@dataclass
class Verdict:
    """What was found: ``failed`` and ``remarks`` in words, ``checked`` counts by kind."""

    failed: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    checked: Counter = field(default_factory=Counter)


def verify(settings: Settings, dvc: bool = True) -> Verdict:
    """Check the committed results of a profile.

    Args:
        settings: whose.
        dvc: also ask DVC about dvc.lock (a few seconds).
    """
    found, everything = Verdict(), {}
    asked = _ask_dvc(settings.root) if dvc else None  # another process, so that it works beside this one
    for experiment in EXPERIMENTS.values():
        try:
            everything[experiment.id] = _records(experiment, settings, found)
        except RecordError as error:
            found.failed.append(str(error))
    _ledger(settings, found)
    _zoo(settings, found)
    _text(settings, found)
    _environment([r for records in everything.values() for r in records], found)
    if asked:
        _lock(asked, settings, found)
    return found


def _records(experiment: Experiment, settings: Settings, found: Verdict) -> list[dict]:
    folder, code = experiment.folder(settings), closure(experiment.trained_by(settings), settings.root)
    configs = experiment.configs(settings)
    if not configs:  # not part of this profile
        return []
    records = [experiment.record(settings, config, code) for config in configs]
    known = {path_of(folder, config).name for config in configs}
    where = f"{folder.relative_to(settings.root)}"
    for config, record in zip(configs, records, strict=True):
        name = path_of(folder, config).name
        if record is None:
            found.failed.append(f"{where}/{name}: there is no such record, but the table needs it")
        elif reasons := reasons_stale(record, code):
            found.failed.append(f"{where}/{name} does not belong to this code: {'; '.join(reasons)}")
        found.checked["records"] += 1
    for record in stored(experiment, settings):
        name = path_of(folder, record["config"]).name
        if name not in known:
            found.failed.append(f"{where}/{name}: no table asks for this run any more; delete it")
    there = [r for r in records if r]
    if len(there) == len(configs):
        _table(experiment, settings, records, found)
    return there


def _table(experiment: Experiment, settings: Settings, records: list[dict], found: Verdict) -> None:
    path = settings.results / "tables" / f"{experiment.id}.json"
    made = experiment.table(settings, records)
    for file, text in ((path, tables.json_text(made)), (path.with_suffix(".md"), tables.markdown(made))):
        shown = file.relative_to(settings.root)
        if not file.exists():
            found.failed.append(f"{shown} is missing; `make repro` writes it")
        elif file.read_text(encoding="utf-8") != text:
            found.failed.append(f"{shown} does not follow from its records; `make repro` writes it anew")
        found.checked["tables"] += 1


def _ledger(settings: Settings, found: Verdict) -> None:
    path = settings.results / "ledger.json"
    if not path.exists():
        found.failed.append(f"{path.relative_to(settings.root)} is missing; `make repro` writes it")
        return
    try:
        made = judge_all(settings)
    except ValueError as error:
        found.failed.append(str(error))
        return
    found.checked["claims"] += len(made)
    if json.loads(json.dumps([ledger.stable(entry) for entry in made])) != ledger.read(settings.results)["claims"]:
        found.failed.append(
            f"{path.relative_to(settings.root)} does not follow from the tables and the rules in claims.yaml; "
            "`make repro` judges anew"
        )
        return
    _report(settings, found)


def _report(settings: Settings, found: Verdict) -> None:
    """The ledger for people follows from the ledger, and every contradicted claim is explained."""
    path = settings.results / "ledger.md"
    try:
        text = report.text(settings)
        written = report.load(settings.root / report.SOURCE)
    except ValueError as error:
        found.failed.append(str(error))
        return
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        found.failed.append(
            f"{path.relative_to(settings.root)} does not follow from ledger.json and {report.SOURCE}; `make repro` "
            "writes it anew"
        )
    if written:
        for id in report.unexplained(ledger.read(settings.results)["claims"], written):
            found.failed.append(f"{report.SOURCE} does not say why `{id}`, which is contradicted, did not hold")


def _zoo(settings: Settings, found: Verdict) -> None:
    """Shipped weights are those of their cards; that training code went on after they were trained is remarked."""
    older = []
    for name in zoo.names():
        try:
            zoo.folder(name)
        except ValueError as error:
            found.failed.append(str(error))
        trained_by = canonical_hash(closure(zoo_train.MODULES[name], settings.root))
        older += [name] if zoo.card(name)["training"]["code"] != trained_by else []
        found.checked["zoo models"] += 1
    if older:
        found.remarks.append(f"zoo models whose training code has changed since: {', '.join(older)}")


def _text(settings: Settings, found: Verdict) -> None:
    for name, wanted in (
        ("dvc.yaml", pipeline.text), ("realdata/dvc.yaml", pipeline.realdata_text), ("zoo/dvc.yaml", zoo_pipeline.text),
    ):  # fmt: skip
        path = settings.root / name
        if not path.exists() or path.read_text(encoding="utf-8") != wanted(settings.root):
            found.failed.append(f"{name} is not what the notebooks' imports ask for; run `make pipeline`")
    text = (settings.root / "README.md").read_text(encoding="utf-8")
    if settings.profile == readme.PROFILE and text != readme.fill(text, settings):
        found.failed.append("README.md does not show the committed tables and times; run `make readme`")
    for finding in prose.check_all(settings.root):
        found.failed.append(str(finding))


def _environment(records: list[dict], found: Verdict) -> None:
    here = {"python": platform.python_version(), "torch": importlib.metadata.version("torch")}
    for key, version in here.items():
        others = sorted({r["versions"][key] for r in records} - {version, version.split("+")[0]})
        others = [v for v in others if v.split("+")[0] != version.split("+")[0]]
        if others:
            found.remarks.append(f"records were made with {key} {', '.join(others)}; here is {version}")


def _ask_dvc(root: Path) -> subprocess.Popen:
    files = [name for name in PIPELINES if (root / name).exists()]
    return subprocess.Popen(
        [sys.executable, "-m", "dvc", "status", "--json", *files], cwd=root, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def _lock(asked: subprocess.Popen, settings: Settings, found: Verdict) -> None:
    answer, complaint = asked.communicate()
    try:
        status = json.loads(answer)
    except ValueError:
        found.failed.append(f"`dvc status` did not answer: {complaint.strip()[-300:]}")
        return
    reworded: set[str] = set()
    if pipeline.BOOK in status:  # not in git, so that nothing committed can be out of date; a fresh clone lacks it
        found.remarks.append("the book is not there, or older than what it shows; `make book` builds it")
    for stage, changes in status.items():
        if stage == pipeline.BOOK:
            continue
        for change in changes:
            for kind, files in change.items() if isinstance(change, dict) else [(str(change), {"cmd": "changed"})]:
                for file, state in files.items():
                    if kind == "changed outs" and "/notebooks/" in file:  # not in git: a fresh clone lacks them
                        continue
                    if kind == "changed deps" and only_reworded(file, settings.root):
                        reworded.add(file)
                        continue
                    found.failed.append(f"dvc.lock, stage {stage}: {file} is {state}; `make repro` mends it")
    if reworded:
        names = ", ".join(sorted(reworded))
        found.remarks.append(
            f"comments or formatting changed in {names}; `make repro` will execute its notebooks again"
        )
    found.checked["stages"] = len(pipeline.stage_names(settings.root))


def only_reworded(file: str, root: Path) -> bool:
    """Whether a Python file differs from the one in dvc.lock in comments, docstrings and formatting alone.

    DVC knows bytes only; the file as it was is looked for among the versions that git has.
    """
    if not file.endswith(".py"):
        return False
    locked = set()
    for path in ("dvc.lock", "realdata/dvc.lock"):
        if (root / path).exists():
            stages = yaml.safe_load((root / path).read_text(encoding="utf-8"))["stages"].values()
            locked |= {dep["md5"] for stage in stages for dep in stage["deps"] if dep["path"] == file}
    git = ["git", "-C", str(root)]
    commits = subprocess.run(
        [*git, "rev-list", "-n", str(_VERSIONS), "HEAD", "--", file], capture_output=True, text=True
    )
    for commit in commits.stdout.split():
        then = subprocess.run([*git, "show", f"{commit}:{file}"], capture_output=True).stdout
        if hashlib.md5(then, usedforsecurity=False).hexdigest() in locked:
            now = (root / file).read_text(encoding="utf-8")
            return code_hash(then.decode("utf-8"), file) == code_hash(now, file)
    return False


def main() -> int:
    started, settings = time.perf_counter(), load()
    try:
        found = verify(settings)
    except (ValueError, OSError) as error:
        print(f"fmseg: {error}", file=sys.stderr)
        return 1
    for remark in found.remarks:
        print(f"remark: {remark}")
    for failure in found.failed:
        print(f"FAILED: {failure}")
    note_time("verify", time.perf_counter() - started, settings)
    counts = ", ".join(f"{n} {kind}" for kind, n in found.checked.items())
    print(f"make verify: {counts}; " + (f"{len(found.failed)} failures" if found.failed else "all belong to this code"))
    return 1 if found.failed else 0


if __name__ == "__main__":
    sys.exit(main())

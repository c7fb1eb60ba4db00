"""`make repro`: DVC runs what is out of date, two stages at a time, and at the end it says what was taken from where.

Also `make smoke`: the same in a temporary copy with the profile `smoke`, so that the checkout stays as it is.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from fmseg import side_by_side
from fmseg.catalogue import EXPERIMENTS
from fmseg.cite import duration
from fmseg.notebooks import note_time
from fmseg.on_disk import root_of
from fmseg.pipeline import BOOK, stage_names
from fmseg.records import LockedError, lock
from fmseg.settings import load, project_root


def start_dvc(root: Path, *words: str, **options) -> subprocess.Popen:
    """Start DVC in a checkout with this interpreter, which its stages use, too; ``options`` of subprocess.Popen."""
    bin_folder = str(Path(sys.executable).parent)
    path = os.pathsep.join([bin_folder, os.environ.get("PATH", "")])
    env = {**os.environ, "FMSEG_PYTHON": sys.executable, "PATH": path, "DVC_NO_ANALYTICS": "1"}
    return subprocess.Popen([sys.executable, "-m", "dvc", *words], cwd=root, env=env, **options)


def run_dvc(root: Path, *words: str) -> int:
    """Run DVC in a checkout and wait for it. Returns its exit status."""
    return start_dvc(root, *words).wait()


def repro(root: Path, words: list[str]) -> int:
    """Execute what is out of date, stages side by side, or with `dvc repro`'s words those named; print a summary.

    One lock a checkout, so that two of these do not meet. Returns the exit status.

    Raises:
        LockedError: another repro works in this checkout.
    """
    settings = load(root=root)
    with lock(root / "build" / "repro.lock", "the pipeline of this checkout"):
        started = time.time()
        whole = all(word.startswith("-") for word in words)
        status = side_by_side.repro(root, partial(start_dvc, root), words) if whole else 0
        status = status or run_dvc(root, "repro", *(["--quiet"] if whole else []), *words)  # DVC has the last word
        if status:
            print(
                "\nfmseg: a stage failed, see above. What had finished is kept; start again to go on.", file=sys.stderr
            )
            return status
        print(summary(settings, started))
        if not words:
            done = executed(settings, started)
            name = {len(stage_names(root)): "repro", 0: "repro again"}.get(len(done))
            if name and (done or not book_is_new(settings, started)):
                note_time(name, time.time() - started, settings)
    return 0


def executed(settings, started: float) -> list[Path]:
    """Executed notebooks that are younger than ``started``, seconds since the epoch."""
    return [p for p in sorted((settings.results / "notebooks").glob("[0-9]*.ipynb")) if p.stat().st_mtime >= started]


def book_is_new(settings, started: float) -> bool:
    """Whether the book was built after ``started``, seconds since the epoch."""
    page = settings.results / BOOK / "index.html"
    return page.exists() and page.stat().st_mtime >= started


def summary(settings, started: float) -> str:
    """What happened since ``started`` (seconds since the epoch), from the reports that the tables left."""
    done = executed(settings, started)
    names = stage_names(settings.root)
    took = duration(time.time() - started)
    folder = settings.results.relative_to(settings.root)
    if not done and book_is_new(settings, started):
        return f"\nfmseg: no notebook was out of date; the book was built anew ({took}): {folder}/{BOOK}/index.html."
    if not done:
        return f"\nfmseg: nothing was out of date; all {len(names)} stages are as committed ({took})."
    reports = []
    for path in sorted((settings.root / "build" / "reports" / settings.profile).glob("*.json")):
        if path.stat().st_mtime >= started:
            reports.append(json.loads(path.read_text()))
    count = {key: sum(r[key] for r in reports) for key in ("from_records", "trained")}
    compared = [c for r in reports for c in r["compared"]]
    lines = [
        f"\nfmseg, profile {settings.profile}: {len(done)} of {len(names)} notebooks executed in {took}.",
        f"Runs: {count['from_records']} from records, {count['trained']} trained now, "
        f"{len(compared)} trained live and compared with their records"
        + (", all within tolerance." if compared else "."),
    ]
    for c in compared:
        how = "the same weights to the bit" if c["identical"] else f"mIoU off by {c['difference']:+.2f} points"
        lines.append(f"  {c['run']}: {how} (tolerance {c['tolerance']:.1f})")
    stale = sum(len(r["stale"]) for r in reports)
    if stale:
        lines.append(
            f"{stale} records did not belong to this code and were replaced; `git diff results` shows what moved."
        )
    lines.append(f"Tables: {folder}/tables/*.md. Notebooks to read: {folder}/notebooks/*.html.")
    if book_is_new(settings, started):
        lines.append(f"The book, all of it in one place: {folder}/{BOOK}/index.html (`make book` shows it).")
    return "\n".join(lines)


def realdata(root: Path) -> int:
    """Run the notebooks that need photographs, after looking whether these are here.

    Raises:
        FileNotFoundError: they are not; says which variable to set. LockedError: another repro works in this checkout.
    """
    for experiment in EXPERIMENTS.values():
        if experiment.photos:
            root_of(experiment.photos)
    return repro(root, ["realdata/dvc.yaml"])


def smoke(root: Path, stages: list[str]) -> int:
    """Run stages, all if none is named, at smoke size in a temporary copy of the checkout, uncommitted changes
    included."""
    with tempfile.TemporaryDirectory(prefix="fmseg-smoke-") as folder:
        copy = Path(folder) / "checkout"
        copy_checkout(root, copy)
        params = copy / "params.yaml"
        params.write_text(re.sub(r"(?m)^profile: \w+", "profile: smoke", params.read_text()))
        started = time.time()
        status = repro(copy, ["--no-commit", *stages])
    if status == 0 and not stages:
        note_time("smoke", time.time() - started, load("mini", root))
    return status


def copy_checkout(root: Path, to: Path) -> None:
    """Copy what git knows or would add (not what it ignores) into a new repository at ``to``."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=root,
        capture_output=True,
        check=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (root / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, to / name)
    subprocess.run(["git", "init", "-q", str(to)], check=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m fmseg.repro", description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="in a temporary copy, at smoke size")
    parser.add_argument("--realdata", action="store_true", help="the notebooks that need photographs")
    parser.add_argument("words", nargs="*", help="stages; default: all that are out of date")
    given = parser.parse_args()
    try:
        if given.realdata:
            return realdata(project_root())
        return smoke(project_root(), given.words) if given.smoke else repro(project_root(), given.words)
    except (LockedError, ValueError, FileNotFoundError) as error:
        print(f"fmseg: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())

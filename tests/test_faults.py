"""What goes wrong from outside: two at once, kill -9, a full disk. In temporary copies, at smoke size."""

import errno
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from toys import ROOT

from fmseg import freemask_real
from fmseg.records import lock
from fmseg.repro import copy_checkout
from fmseg.settings import load

pytestmark = pytest.mark.pipeline
STAGE = "20_freemask_real"


def copy(to):
    """A copy with one seed, in profile smoke."""
    copy_checkout(ROOT, to)
    params = to / "params.yaml"
    text = re.sub(r"(?m)^profile: \w+", "profile: smoke", params.read_text())
    params.write_text(text.replace("seeds: [0, 1]", "seeds: [0]", 1))
    return to


def start(checkout, *words):
    command = [sys.executable, "-m", "fmseg.repro", *words]
    return subprocess.Popen(command, cwd=checkout, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def tables(checkout):
    return {p.name: p.read_bytes() for p in sorted((checkout / "results/smoke/tables").glob("freemask-real.*"))}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The tables of a run that nobody disturbed."""
    checkout = copy(tmp_path_factory.mktemp("undisturbed") / "checkout")
    process = start(checkout, STAGE)
    out, _ = process.communicate(timeout=500)
    assert process.returncode == 0, out
    runs = len(freemask_real.run_configs(load("smoke", checkout)))  # as many as the shipped zoo allows
    assert f"{runs} trained now" in out and len(tables(checkout)) == 2
    return tables(checkout)


def wait_for(found, process, seconds=240):
    deadline = time.monotonic() + seconds
    while not (value := found()):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.05)
    return value


def descendants(process, pattern):
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if re.search(pattern, " ".join(child.cmdline())):
                found.append(child)
        except psutil.Error:
            pass
    return found


VICTIMS = {"dvc": r"-m dvc repro", "papermill": r"-m fmseg\.stage", "worker": r"spawn_main"}


@pytest.mark.parametrize("victim", VICTIMS)
def test_after_kill_9_the_next_run_ends_with_the_tables_of_an_undisturbed_one(victim, undisturbed, tmp_path):
    checkout = copy(tmp_path / "checkout")
    process = start(checkout, STAGE)
    workers = wait_for(lambda: descendants(process, VICTIMS["worker"]), process)
    time.sleep(1)
    everyone = psutil.Process(process.pid).children(recursive=True)
    target = descendants(process, VICTIMS[victim])[0] if victim != "worker" else workers[0]
    target.send_signal(signal.SIGKILL)
    out, _ = process.communicate(timeout=500)
    if victim != "worker":  # a killed worker is replaced within the run
        assert process.returncode != 0
        _, alive = psutil.wait_procs(everyone, timeout=30)
        assert not alive, "nobody works on unseen"
        process = start(checkout, STAGE)
        out, _ = process.communicate(timeout=500)
    assert process.returncode == 0, out
    assert tables(checkout) == undisturbed
    left = [p.name for p in checkout.rglob("*") if p.name.endswith((".part", ".tmp")) and ".dvc" not in p.parts]
    assert not left


def test_two_repros_at_once_the_second_says_who_works(tmp_path):
    checkout = copy(tmp_path / "checkout")
    with lock(checkout / "build/repro.lock", "the pipeline"):
        process = start(checkout)
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert re.search(rf"fmseg: the pipeline of this checkout is being worked on by process {os.getpid()} since", out)
    assert not (checkout / "results/smoke").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("profile: smoke", "profile: smok"), "`profile` must be one of smoke, mini, paper; got 'smok'"),
    ],
)
def test_an_unknown_profile_stops_before_anything_runs(tmp_path, change, message):
    checkout = copy(tmp_path / "checkout")
    params = checkout / "params.yaml"
    params.write_text(params.read_text().replace(*change))
    process = start(checkout)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 1 and message in out and "Traceback" not in out
    assert sorted(p.name for p in (checkout / "results").glob("*")) in ([], ["mini"], ["mini", "paper"])


def test_a_full_disk_leaves_the_old_table_and_says_so(tmp_path, monkeypatch):
    from fmseg import tables as t

    table = t.table("a", "A", "none", "%", ["x"], [t.row("r", {"x": t.cell({0: 1.0})})])
    path = t.write(table, tmp_path)
    before = path.read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="Could not write .*No space left on device"):
        t.write({**table, "title": "B"}, tmp_path)
    assert path.read_bytes() == before and sorted(p.name for p in Path(tmp_path).iterdir()) == ["a.json", "a.md"]

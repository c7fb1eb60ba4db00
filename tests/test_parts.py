"""Shared parts: made once, whole or not at all, the same bytes whoever made them and whatever was killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from fmseg import parts

WORKER = """
import sys, time
from pathlib import Path
import numpy as np
from fmseg import parts
folder, log, pause = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
def make(number):
    with open(log, "a") as file:
        file.write(f"{number}\\n")
    time.sleep(pause)
    return {"x": np.random.default_rng(number).random((3, 4)), "n": np.arange(number)}
parts.obtain(folder, range(4), make)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("FMSEG_PARTS", str(tmp_path))
    return parts.folder("toys", {"size": 3}, "fmseg.words")


def make(number):
    return {"x": np.full((2, 2), number)}


def worker(tmp_path, folder, log, pause):
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    return subprocess.Popen([sys.executable, str(script), str(folder), str(tmp_path / log), str(pause)])


def test_a_part_is_made_once(folder):
    made = []

    def count(number):
        made.append(number)
        return make(number)

    first = parts.obtain(folder, [2, 0], count)
    again = parts.obtain(folder, [0, 1, 2], count)
    assert made == [2, 0, 1] and [int(p["x"][0, 0]) for p in again] == [0, 1, 2]
    assert np.array_equal(first[0]["x"], again[2]["x"])
    assert parts.joined(again, 3)["x"].tolist() == [[0, 0], [0, 0], [1, 1]]


def test_another_key_or_module_is_another_set(folder):
    assert folder != parts.folder("toys", {"size": 4}, "fmseg.words")
    assert folder != parts.folder("toys", {"size": 3}, "fmseg.names")
    assert folder == parts.folder("toys", {"size": 3}, "fmseg.words")
    assert '"size": 3' in (folder / "about.json").read_text()


def test_killed_and_gone_on_with_gives_the_same_bytes(tmp_path, folder):
    whole = tmp_path / "whole"
    whole.mkdir()
    assert worker(tmp_path, whole, "whole.log", 0).wait() == 0
    first = worker(tmp_path, folder, "killed.log", 600)
    while not (tmp_path / "killed.log").exists():
        time.sleep(0.05)
        assert first.poll() is None
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    assert not list(folder.glob("*.npz"))
    assert worker(tmp_path, folder, "again.log", 0).wait() == 0
    for number in range(4):
        assert parts.file_of(folder, number).read_bytes() == parts.file_of(whole, number).read_bytes()


def test_two_who_want_the_same_share_the_work(tmp_path, folder):
    both = [worker(tmp_path, folder, "shared.log", 0.3) for _ in range(2)]
    assert [w.wait() for w in both] == [0, 0]
    assert sorted((tmp_path / "shared.log").read_text().split()) == ["0", "1", "2", "3"]


def test_a_part_that_fails_leaves_nothing(folder):
    def fail(number):
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        parts.obtain(folder, [0], fail)
    assert not list(folder.glob("*.npz"))
    assert len(parts.obtain(folder, [0], make)) == 1


def test_a_full_disk_is_named_and_leaves_nothing_half(folder, monkeypatch):
    def full(file, **arrays):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(parts.np, "savez", full)
    with pytest.raises(OSError, match=r"00000\.npz: No space left on device; free some space"):
        parts.obtain(folder, [0], make)
    assert not [p for p in folder.iterdir() if "npz" in p.name]


def test_what_is_shared_has_a_place(monkeypatch, tmp_path):
    monkeypatch.delenv("FMSEG_PARTS", raising=False)
    assert parts.home() == Path(parts.__file__).resolve().parent.parent / "build" / "parts"
    monkeypatch.setenv("FMSEG_PARTS", str(tmp_path))
    assert parts.home() == tmp_path


def test_a_damaged_part_says_what_to_do(folder):
    parts.obtain(folder, [0], make)
    parts.file_of(folder, 0).write_bytes(parts.file_of(folder, 0).read_bytes()[:40])
    with pytest.raises(ValueError, match="is damaged .*; delete it"):
        parts.obtain(folder, [0], make)

"""Shared pictures: the same bytes from one worker, four, or a killed and resumed one; nothing half there."""

import errno
import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from fmseg import synthetic
from fmseg.synthetic import PART, Shelf, fill, noise_seed, pictures

ROOT = Path(__file__).parent.parent
RECIPE = {"paints": "a test", "version": 1}
# a process that fills a shelf slowly: what it paints depends on masks and seeds, and on its place in the group
WORKER = """
import sys, time
from pathlib import Path
import numpy as np
from fmseg.synthetic import Shelf, fill

def paint(masks, seeds):
    time.sleep(float(sys.argv[2]))
    noise = np.stack([np.random.default_rng(s).integers(0, 200, (*masks.shape[1:], 3)) for s in seeds])
    return (noise + np.arange(len(masks))[:, None, None, None]).astype(np.uint8)

masks = np.random.default_rng(5).integers(0, 4, (47, 8, 8)).astype(np.uint8)
print(fill(Shelf(Path(sys.argv[1]), {"paints": "a test", "version": 1}, masks, 4), paint))
"""
MASKS = np.random.default_rng(5).integers(0, 4, (47, 8, 8)).astype(np.uint8)


def paint(masks, seeds):
    noise = np.stack([np.random.default_rng(s).integers(0, 200, (*masks.shape[1:], 3)) for s in seeds])
    return (noise + np.arange(len(masks))[:, None, None, None]).astype(np.uint8)


def content(folder):
    """Every part by its path below the folder."""
    return {p.relative_to(folder): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*.npy"))}


def worker(folder, seconds):
    command = [sys.executable, "-c", WORKER, str(folder), str(seconds)]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True)


def test_one_worker_four_and_a_killed_one_leave_the_same_bytes(tmp_path):
    assert fill(Shelf(tmp_path / "one", RECIPE, MASKS, 4), paint) == 12
    four = [worker(tmp_path / "four", 0.2) for _ in range(4)]
    killed = worker(tmp_path / "killed", 0.3)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "killed").rglob("*.npy")):
        assert killed.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    killed.stdout.close()
    after = content(tmp_path / "killed")
    assert 0 < len(after) < 12  # it was in the middle
    assert fill(Shelf(tmp_path / "killed", RECIPE, MASKS, 4), paint) == 12 - len(after)
    made = [int(process.communicate(timeout=120)[0]) for process in four]
    assert sum(made) == 12  # no part was painted twice
    one = content(tmp_path / "one")
    assert len(one) == 12 and content(tmp_path / "four") == one and content(tmp_path / "killed") == one
    assert after.items() <= one.items()


def test_a_larger_set_begins_with_a_smaller_one(tmp_path):
    small = Shelf(tmp_path, RECIPE, MASKS, 2)
    assert fill(small, paint) == 6
    large = Shelf(tmp_path, RECIPE, MASKS, 3)
    assert large.parts[:6] == small.parts and fill(large, paint) == 3
    more = np.concatenate([MASKS[: 2 * PART], MASKS[:1]])  # full blocks are shared by sets of other lengths
    assert len(Shelf(tmp_path, RECIPE, more, 3).missing()) == 3
    other = Shelf(tmp_path, RECIPE | {"version": 2}, MASKS, 1)
    assert not {p.path for p in other.parts} & {p.path for p in large.parts}


def test_pictures_come_by_mask_and_index(tmp_path):
    shelf = Shelf(tmp_path, RECIPE, MASKS, 3)
    with pytest.raises(FileNotFoundError, match=r"-000\.npy was not made yet"):
        pictures(shelf, [(0, 0)])
    fill(shelf, paint)
    pairs = [(46, 2), (0, 0), (21, 1), (46, 0)]
    found = pictures(shelf, pairs)
    for image, (mask, index) in zip(found, pairs, strict=True):
        start = mask - mask % PART
        block = MASKS[start : start + PART]
        whole = paint(block, [noise_seed(m, index) for m in block])
        assert (image == whole[mask - start]).all()
    assert pictures(shelf, []).shape == (0, 8, 8, 3)
    with pytest.raises(ValueError, match=r"holds \[47, 0\]; its mask must lie in \[0, 47\)"):
        pictures(shelf, [(1, 1), (47, 0)])
    with pytest.raises(ValueError, match=r"its index must lie in \[0, 3\)"):
        pictures(shelf, [(1, 3)])


def test_noise_is_a_function_of_mask_and_index():
    seeds = {noise_seed(mask, index) for mask in MASKS for index in range(4)}
    assert len(seeds) == 4 * len(MASKS) and all(0 <= s < 2**63 for s in seeds)
    assert noise_seed(MASKS[3].copy(), 2) == noise_seed(MASKS[3], 2)
    assert noise_seed(MASKS[3].reshape(4, 16), 2) != noise_seed(MASKS[3], 2)
    with pytest.raises(ValueError, match="`index`"):
        noise_seed(MASKS[0], -1)


def test_a_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch):
    shelf, real = Shelf(tmp_path, RECIPE, MASKS, 1), os.fsync
    calls = []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(synthetic.os, "fsync", full)
    with pytest.raises(OSError, match=r"cannot write .*-000\.npy: No space left on device; free some space"):
        fill(shelf, paint)
    left = [p for p in tmp_path.rglob("*") if p.is_file() and p.suffix != ".lock"]
    assert len(left) == 1 and len(shelf.missing()) == 2  # the first part, whole
    monkeypatch.undo()
    assert fill(shelf, paint) == 2 and not shelf.missing()


@pytest.mark.parametrize("spoil", [lambda b: b[:-1], lambda b: b[:40], lambda b: b"", lambda b: b"P" + b[1:]])
def test_a_part_that_is_cut_off_is_named(tmp_path, spoil):
    shelf = Shelf(tmp_path, RECIPE, MASKS, 1)
    fill(shelf, paint)
    path = shelf.parts[1].path
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(ValueError, match=f"{path.name} is not a whole part .* delete it"):
        pictures(shelf, [(PART, 0)])
    assert pictures(shelf, [(0, 0)]).shape == (1, 8, 8, 3)


def test_wrong_arguments_are_named(tmp_path):
    with pytest.raises(TypeError, match=r"`masks` must be \(N, H, W\) uint8"):
        Shelf(tmp_path, RECIPE, MASKS.astype(int), 1)
    for most in (0, 1.5, True):
        with pytest.raises(ValueError, match="`most` must be a whole number >= 1"):
            Shelf(tmp_path, RECIPE, MASKS, most)
    with pytest.raises(ValueError, match=r"`paint` must return uint8 of \(20, 8, 8, 3\)"):
        fill(Shelf(tmp_path, RECIPE, MASKS, 1), lambda masks, seeds: masks)
    assert not list(tmp_path.rglob("*.npy"))


def test_what_is_shared_has_a_place(monkeypatch, tmp_path):
    monkeypatch.delenv("FMSEG_SHARED", raising=False)
    assert synthetic.home() == ROOT / "build" / "freemask"
    monkeypatch.setenv("FMSEG_SHARED", str(tmp_path))
    assert synthetic.home() == tmp_path

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

from fmseg import parts
from fmseg.synthetic import PART, Shelf, fill, noise_seed, pictures

ROOT = Path(__file__).parent.parent
RECIPE = {"paints": "a test", "version": 1}
# a process that fills a shelf slowly: what it paints depends on masks and seeds, and on its place in the group
WORKER = """
import sys, time
import numpy as np
from fmseg.synthetic import Shelf, fill

def paint(masks, seeds):
    time.sleep(float(sys.argv[1]))
    noise = np.stack([np.random.default_rng(s).integers(0, 200, (*masks.shape[1:], 3)) for s in seeds])
    return (noise + np.arange(len(masks))[:, None, None, None]).astype(np.uint8)

masks = np.random.default_rng(5).integers(0, 4, (47, 8, 8)).astype(np.uint8)
print(fill(Shelf({"paints": "a test", "version": 1}, masks, 4, "fmseg.words"), paint))
"""
MASKS = np.random.default_rng(5).integers(0, 4, (47, 8, 8)).astype(np.uint8)


def paint(masks, seeds):
    noise = np.stack([np.random.default_rng(s).integers(0, 200, (*masks.shape[1:], 3)) for s in seeds])
    return (noise + np.arange(len(masks))[:, None, None, None]).astype(np.uint8)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """Where shelves lie; another one by a call."""

    def elsewhere(name):
        monkeypatch.setenv("FMSEG_PARTS", str(tmp_path / name))
        return tmp_path / name

    elsewhere("home")
    return elsewhere


def shelf_of(most, masks=MASKS, recipe=RECIPE):
    return Shelf(recipe, masks, most, "fmseg.words")


def content(folder):
    """Every part by its path below the folder."""
    return {p.relative_to(folder): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*.npz"))}


def worker(folder, seconds):
    command = [sys.executable, "-c", WORKER, str(seconds)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "FMSEG_PARTS": str(folder)}
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)


def test_one_worker_four_and_a_killed_one_leave_the_same_bytes(tmp_path, home):
    home("one")
    assert fill(shelf_of(4), paint) == 12
    four = [worker(tmp_path / "four", 0.2) for _ in range(4)]
    killed = worker(tmp_path / "killed", 0.3)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "killed").rglob("*.npz")):
        assert killed.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    killed.stdout.close()
    after = content(tmp_path / "killed")
    assert 0 < len(after) < 12  # it was in the middle
    home("killed")
    assert fill(shelf_of(4), paint) == 12 - len(after)
    made = [int(process.communicate(timeout=120)[0]) for process in four]
    assert sum(made) == 12  # no part was painted twice
    one = content(tmp_path / "one")
    assert len(one) == 12 and content(tmp_path / "four") == one and content(tmp_path / "killed") == one
    assert after.items() <= one.items()


def test_a_larger_set_begins_with_a_smaller_one():
    small = shelf_of(2)
    assert fill(small, paint) == 6
    large = shelf_of(3)
    assert large.parts[:6] == small.parts and fill(large, paint) == 3
    more = np.concatenate([MASKS[: 2 * PART], MASKS[:1]])  # full blocks are shared by sets of other lengths
    assert len(shelf_of(3, more).missing()) == 3
    other = shelf_of(1, recipe=RECIPE | {"version": 2})
    assert not {p.path for p in other.parts} & {p.path for p in large.parts}


def test_pictures_come_by_mask_and_index():
    shelf = shelf_of(3)
    with pytest.raises(FileNotFoundError, match=r"00000\.npz was not made yet"):
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
    shelf, real = shelf_of(1), os.fsync
    assert len(shelf.missing()) == 3
    calls = []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(parts.os, "fsync", full)
    with pytest.raises(OSError, match=r"cannot write .*00000\.npz: No space left on device; free some space"):
        fill(shelf, paint)
    left = [p for p in tmp_path.rglob("*") if "npz" in p.name]
    assert len(left) == 1 and len(shelf.missing()) == 2  # the first part, whole
    monkeypatch.setattr(parts.os, "fsync", real)
    assert fill(shelf, paint) == 2 and not shelf.missing()


@pytest.mark.parametrize("spoil", [lambda b: b[:-1], lambda b: b[:40], lambda b: b"", lambda b: b"X" + b[1:]])
def test_a_part_that_is_cut_off_is_named(spoil):
    shelf = shelf_of(1)
    fill(shelf, paint)
    path = shelf.parts[1].path
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(ValueError, match=f"{path} is damaged .*; delete it"):
        pictures(shelf, [(PART, 0)])
    assert pictures(shelf, [(0, 0)]).shape == (1, 8, 8, 3)


def test_wrong_arguments_are_named(tmp_path):
    with pytest.raises(TypeError, match=r"`masks` must be \(N, H, W\) uint8"):
        shelf_of(1, MASKS.astype(int))
    for most in (0, 1.5, True):
        with pytest.raises(ValueError, match="`most` must be a whole number >= 1"):
            shelf_of(most)
    with pytest.raises(ValueError, match=r"`paint` must return uint8 of \(20, 8, 8, 3\)"):
        fill(shelf_of(1), lambda masks, seeds: masks)
    assert not list(tmp_path.rglob("*.npz"))


def test_the_painters_code_is_part_of_the_recipe():
    one, other = (Shelf(RECIPE, MASKS, 1, module) for module in ("fmseg.words", "fmseg.names"))
    assert not {p.path for p in one.parts} & {p.path for p in other.parts}

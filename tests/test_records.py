import errno
import json
import os
import subprocess
import sys

import pytest

from fmseg import records
from fmseg.records import LockedError, RecordError

CONFIG = {"method": "segformer", "seed": 3, "steps": 10}


def a_record(**changes):
    result = {"iou": [0.5, None], "miou": 50.0}
    record = records.new_record(CONFIG, {"fmseg.a": "1"}, result, curve=[[10, 50.0]], seconds=1.23)
    return {**record, **changes}


def test_what_is_written_is_found_by_its_configuration_in_any_order_of_keys(tmp_path):
    record = a_record()
    path = records.write_record(record, tmp_path)
    assert path.name.startswith("segformer-s3-")
    assert records.find_record(tmp_path, dict(reversed(CONFIG.items()))) == record
    assert records.find_record(tmp_path, {**CONFIG, "steps": 11}) is None
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_record_says_why_it_no_longer_belongs():
    assert records.reasons_stale(a_record(), {"fmseg.a": "1"}) == []
    assert records.reasons_stale(a_record(), {"fmseg.a": "2"}) == ["fmseg.a was changed"]


@pytest.mark.parametrize(
    ("text", "message"),
    [('{"key": "12', "not a complete run record"), ("[]", "lacks key"), ('{"hello": 1}', "not a run record")],
)
def test_a_truncated_or_foreign_record_is_named(tmp_path, text, message):
    path = records.path_of(tmp_path, CONFIG)
    path.write_text(text)
    with pytest.raises(RecordError, match=message) as caught:
        records.find_record(tmp_path, CONFIG)
    assert path.name in str(caught.value) and "delete it" in str(caught.value)


def test_a_record_edited_by_hand_or_renamed_is_met(tmp_path):
    path = records.write_record(a_record(), tmp_path)
    edited = json.loads(path.read_text())
    edited["config"]["steps"] = 99
    path.write_text(json.dumps(edited))
    with pytest.raises(RecordError, match="does not belong to its configuration"):
        records.read_record(path)
    other = {**CONFIG, "seed": 4}
    path.write_text(json.dumps(a_record()))
    path.rename(records.path_of(tmp_path, other))
    with pytest.raises(RecordError, match="another configuration"):
        records.find_record(tmp_path, other)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_full_or_read_only_disk_leaves_the_old_record_and_no_scraps(tmp_path, monkeypatch, code):
    path = records.write_record(a_record(), tmp_path)
    before = path.read_text()

    def fail(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="cannot write the run record"):
        records.write_record(a_record(seconds=9.0), tmp_path)
    assert path.read_text() == before and list(tmp_path.iterdir()) == [path]


def test_nan_is_refused(tmp_path):
    with pytest.raises(ValueError):
        records.write_record(a_record(result={"miou": float("nan")}), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_lock_keeps_a_second_process_out_and_goes_with_its_holder(tmp_path):
    path = tmp_path / "x.lock"
    code = (
        "import sys, time; from fmseg.records import lock\n"
        f"with lock({str(path)!r}, 'run x'):\n    print('held', flush=True); time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline().strip() == "held"
    try:
        with pytest.raises(LockedError, match=f"run x is being worked on by process {child.pid}"):
            with records.lock(path, "run x"):
                pass
    finally:
        child.kill()  # -9: it cannot tidy up
        child.wait()
    assert path.read_text() and records.holder(path) is None  # its text is still there, the lock is not
    with records.lock(path, "run x"):
        assert path.read_text().split()[0] == str(os.getpid())


def test_one_of_several_waiters_gets_it_at_a_time(tmp_path):
    path, log = tmp_path / "x.lock", tmp_path / "log"
    code = (
        "import time; from fmseg.records import lock\n"
        f"with lock({str(path)!r}, 'x', wait=60), open({str(log)!r}, 'a', buffering=1) as log:\n"
        "    log.write('in\\n'); time.sleep(0.1); log.write('out\\n')"
    )
    children = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(4)]
    assert [child.wait() for child in children] == [0] * 4
    assert log.read_text().split() == ["in", "out"] * 4


def test_a_lock_goes_when_its_block_raises(tmp_path):
    with pytest.raises(KeyError):
        with records.lock(tmp_path / "x.lock", "run x"):
            raise KeyError
    assert records.holder(tmp_path / "x.lock") is None

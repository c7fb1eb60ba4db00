import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from fmseg.pool import obtain
from fmseg.records import path_of, read_record

ROOT = Path(__file__).parent.parent
CONFIG = {
    "method": "segformer", "backbone": "scratch", "seed": 100, "draw": "voc", "split": "train", "images": 12,
    "validation": 6, "size": 32,
    "train": {"steps": 6, "batch_size": 4, "lr": 0.002},
}  # fmt: skip
LONG = {**CONFIG, "train": {**CONFIG["train"], "steps": 200}}


def places(tmp_path):
    return {"module": "fmseg.supervised", "folder": tmp_path / "runs", "scratch": tmp_path / "scratch", "root": ROOT}


def test_what_is_recorded_is_not_trained_again_and_what_is_stale_is(tmp_path):
    where = places(tmp_path)
    first = obtain([CONFIG], progress=False, **where)
    assert len(first.trained) == 1 and not first.from_records
    second = obtain([CONFIG], progress=False, **where)
    assert second.from_records == first.trained and not second.trained and second.records == first.records
    path = path_of(where["folder"], CONFIG)
    path.write_text(path.read_text().replace(read_record(path)["code"]["fmseg.world"], "0" * 16))
    third = obtain([CONFIG], progress=False, **where)
    assert third.stale == {first.trained[0]: ["fmseg.world was changed"]} and third.trained == first.trained
    assert third.records[first.trained[0]]["result"] == first.records[first.trained[0]]["result"]
    assert sorted(p.suffix for p in where["scratch"].iterdir()) == [".lock"]


def test_a_killed_parent_takes_its_workers_along_and_the_run_goes_on_where_it_was(tmp_path):
    where = {key: str(value) for key, value in places(tmp_path).items()}
    code = (
        "from pathlib import Path; from fmseg.pool import obtain\n"
        f"w = {where!r}\n"
        "if __name__ == '__main__':\n"
        f"    obtain([{LONG!r}], module=w['module'], folder=Path(w['folder']), scratch=Path(w['scratch']),"
        " root=Path(w['root']), progress=False)\n"
    )
    script = tmp_path / "parent.py"
    script.write_text(code)
    parent = subprocess.Popen([sys.executable, str(script)], env={**os.environ, "PYTHONPATH": str(ROOT)})
    deadline = time.monotonic() + 120
    while not list((tmp_path / "scratch").glob("*.pt")):  # the first checkpoint is there: it is in the middle
        assert parent.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    children = psutil.Process(parent.pid).children(recursive=True)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    gone, alive = psutil.wait_procs(children, timeout=20)
    assert children and not alive
    resumed = obtain([LONG], progress=False, **places(tmp_path))
    undisturbed = obtain([LONG], progress=False, **places(tmp_path / "other"))
    key = resumed.trained[0]
    assert resumed.records[key]["result"] == undisturbed.records[key]["result"]


@pytest.mark.parametrize("bad", [{"draw": "vocs"}, {"method": "segfomer"}])
def test_an_error_in_a_worker_reaches_the_caller(tmp_path, bad):
    with pytest.raises(ValueError, match=next(iter(bad.values()))):
        obtain([{**CONFIG, **bad}], progress=False, **places(tmp_path))

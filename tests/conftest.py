import shutil
import time

import pytest
from toys import ROOT, TOY, VALUES

from fmseg.notebooks import note_time
from fmseg.settings import Settings, load

STARTED = time.time()


def pytest_sessionfinish(session, exitstatus):
    """Note how long a run of all tests took, for README's table of times."""
    whole = not session.config.args[1:] and session.config.args[0] in ("tests", str(ROOT / "tests"))
    if exitstatus == 0 and whole and not session.config.option.keyword and not session.config.option.markexpr:
        note_time("test", time.time() - STARTED, load("mini", ROOT))


@pytest.fixture
def settings(tmp_path, monkeypatch):
    """A project with this checkout's package and a module whose runs take no time."""
    monkeypatch.syspath_prepend(tmp_path)  # workers take it over and import the package from there
    shutil.copytree(ROOT / "fmseg", tmp_path / "fmseg", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "fmseg/toy.py").write_text(TOY)
    for name in ("params.yaml", "claims.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    return Settings("mini", VALUES, tmp_path)

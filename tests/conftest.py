import shutil
import subprocess
import sys
import time

import pytest
from toys import ROOT, TOY, VALUES, ships

from fmseg.notebooks import note_time
from fmseg.settings import Settings, load
from fmseg.zoo_train import MODULES

STARTED = time.time()


def checkout_state():
    """What git says of this checkout; None where it is none."""
    run = subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True)
    return run.stdout if run.returncode == 0 else None


BEFORE = checkout_state()


def pytest_sessionfinish(session, exitstatus):
    """Tests that leave traces in the checkout fail as a whole. Notes how long a run of all tests took, for README."""
    after = checkout_state()
    if after != BEFORE:
        print(f"\nThe tests changed the checkout. Before:\n{BEFORE}After:\n{after}", file=sys.stderr)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    whole = not session.config.args[1:] and session.config.args[0] in ("tests", str(ROOT / "tests"))
    if exitstatus == 0 and whole and not session.config.option.keyword and not session.config.option.markexpr:
        note_time("test", time.time() - STARTED, load("mini", ROOT))


@pytest.fixture
def settings(tmp_path, monkeypatch):
    """A project with this checkout's package, a module whose runs take no time, and a whole zoo by name."""
    ships(monkeypatch, *MODULES)
    monkeypatch.syspath_prepend(tmp_path)  # workers take it over and import the package from there
    shutil.copytree(ROOT / "fmseg", tmp_path / "fmseg", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "fmseg/toy.py").write_text(TOY)
    for name in ("params.yaml", "claims.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    return Settings("mini", VALUES, tmp_path)


@pytest.fixture(scope="session")
def made_site(tmp_path_factory):
    """The book of a few made-up notebooks: its folder, and the warnings of its builder."""
    from made_book import built

    with pytest.MonkeyPatch.context() as patch:
        yield built(tmp_path_factory.mktemp("book"), patch)

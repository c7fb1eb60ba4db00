import ast
import importlib
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from fmseg import notebooks
from fmseg.settings import load

ROOT = Path(__file__).parent.parent


def cell(source, tags=()):
    made = nbformat.v4.new_code_cell(source)
    made["metadata"]["tags"] = list(tags)
    return made


@pytest.fixture
def project(tmp_path):
    """A project of one small notebook, with this checkout's package."""
    (tmp_path / "fmseg").symlink_to(ROOT / "fmseg")
    shutil.copy(ROOT / "params.yaml", tmp_path)
    (tmp_path / "notebooks").mkdir()

    def write(*cells):
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# Squares: $a^2$"), *cells])
        notebook["metadata"]["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(notebook, tmp_path / "notebooks" / "10_squares.ipynb")
        return load("smoke", tmp_path)

    return write


DECLARED = cell('profile = "mini"\nseed = 0', ["parameters"])


def test_the_notebook_runs_with_its_parameters_and_the_source_stays(project):
    settings = project(DECLARED, cell("import fmseg.settings\nprint(profile, seed)"))
    source = (settings.root / "notebooks/10_squares.ipynb").read_bytes()
    path = notebooks.execute("10_squares", settings, {"seed": 7}, progress=False)
    assert path == settings.root / "results/smoke/notebooks/10_squares.ipynb"
    assert "smoke 7" in path.read_text()
    assert (settings.root / "notebooks/10_squares.ipynb").read_bytes() == source
    page = path.with_suffix(".html").read_text()
    assert "<math" in page and "$a^2$" not in page
    assert 'src="http' not in page and "smoke 7" in page
    times = json.loads((settings.root / "build/times/smoke.json").read_text())
    assert times["10_squares"] > 0
    assert not [p.name for p in path.parent.iterdir() if "part" in p.name]


def test_two_processes_have_kernels_of_their_own(project):
    settings = project(DECLARED, cell("print('kernel', seed)"))
    words = "import sys; from pathlib import Path; from fmseg import notebooks; from fmseg.settings import load\n"
    words += "notebooks.execute(sys.argv[1], load('smoke', Path.cwd()), {'seed': 7}, progress=False)"
    source = settings.root / "notebooks/10_squares.ipynb"
    names = ("10_squares", "11_more")
    (source.parent / "11_more.ipynb").write_bytes(source.read_bytes())
    started = [subprocess.Popen([sys.executable, "-c", words, name], cwd=settings.root) for name in names]
    assert [process.wait(120) for process in started] == [0, 0]
    for name in names:
        assert "kernel 7" in (settings.root / f"results/smoke/notebooks/{name}.ipynb").read_text()


def test_a_cell_that_raises_is_named_and_the_last_good_copy_stays(project):
    settings = project(DECLARED, cell("x = 1"))
    good = notebooks.execute("10_squares", settings, progress=False).read_text()
    settings = project(DECLARED, cell("raise KeyError('where')"))
    with pytest.raises(notebooks.NotebookError, match="10_squares.ipynb, cell .*KeyError: 'where'") as caught:
        notebooks.execute("10_squares", settings, progress=False)
    failed = settings.root / "results/smoke/notebooks/10_squares.failed.ipynb"
    assert str(failed) in str(caught.value) and failed.exists()
    assert (settings.root / "results/smoke/notebooks/10_squares.ipynb").read_text() == good


def test_a_misspelt_parameter_is_refused_before_anything_runs(project):
    settings = project(DECLARED, cell("x = 1"))
    with pytest.raises(ValueError, match="unknown parameter of 10_squares.ipynb: 'sed'; did you mean 'seed'"):
        notebooks.execute("10_squares", settings, {"sed": 1}, progress=False)
    assert not (settings.root / "build").exists()


def test_a_parameters_cell_holds_plain_values_only(project):
    settings = project(cell("seed = int('3')", ["parameters"]))
    with pytest.raises(ValueError, match='plain value.*got "seed = int'):
        notebooks.parameters(settings.root / "notebooks/10_squares.ipynb")


def test_an_unknown_notebook_is_met_with_those_that_exist(project):
    with pytest.raises(FileNotFoundError, match="no notebook '11_cubes'.*there are: 10_squares"):
        notebooks.execute("11_cubes", project(DECLARED), progress=False)


def test_pages_fold_solutions_and_nothing_else():
    """In a notebook the cell's metadata folds it; in the page a <details> around the whole cell does."""
    solution = cell("def solution():\n    return 1", ["solution"])
    for cells in ([cell("a = 2"), solution, cell("b = 3")], [cell("a = 2"), cell("b = 3"), solution]):
        page = notebooks.html(nbformat.v4.new_notebook(cells=cells))
        _, _, rest = page.partition("<details><summary>Solution</summary>")
        folded, _, after = rest.partition("</details>")
        assert page.count("<details>") == page.count("</details>") == 1
        assert ">solution<" in folded and folded.count("<div") == folded.count("</div") and ">b<" not in folded
        assert (">b<" in after) == (cells[-1] is not solution)


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("[0-9]*.ipynb")), ids=lambda p: p.stem)
def test_what_a_notebook_imports_from_the_package_is_there(path):
    """Those that wait for runs, too, which nothing executes."""
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] != "code":
            continue
        for node in ast.walk(ast.parse(re.sub(r"(?m)^[%!].*$", "", "".join(cell["source"])))):
            if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "fmseg":
                module = importlib.import_module(node.module)
                for alias in node.names:
                    assert hasattr(module, alias.name) or importlib.util.find_spec(f"{node.module}.{alias.name}")

import copy
import json
from pathlib import Path

import nbformat
import pytest

from fmseg.strip import pre_save, strip

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def used(path):
    """A source notebook as JupyterLab would hold it after somebody ran its cells."""
    notebook = json.loads(path.read_text())
    notebook["metadata"]["language_info"] = {"name": "python", "version": "3.11.9", "mimetype": "text/x-python"}
    notebook["metadata"]["kernelspec"]["display_name"] = "fmseg (my machine)"
    notebook["metadata"]["widgets"] = {"state": {}}
    for number, cell in enumerate(notebook["cells"]):
        cell["metadata"] |= {"execution": {"iopub.status.busy": "2026-01-01"}, "collapsed": True}
        if cell["cell_type"] == "code":
            cell["execution_count"] = number
            cell["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "41.3"}]
    return notebook


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_open_run_save_leaves_the_source_byte_for_byte(path, tmp_path):
    from jupyter_server.services.contents.filemanager import FileContentsManager

    manager = FileContentsManager(root_dir=str(tmp_path), pre_save_hook="fmseg.strip.pre_save")
    model = {"type": "notebook", "format": "json", "content": nbformat.from_dict(used(path))}
    manager.save(model, path.name)
    assert (tmp_path / path.name).read_text() == path.read_text()


def test_what_the_author_wrote_stays():
    notebook = used(NOTEBOOKS[0])
    stripped = strip(copy.deepcopy(notebook))
    assert [c["source"] for c in stripped["cells"]] == [c["source"] for c in notebook["cells"]]
    assert [c["id"] for c in stripped["cells"]] == [c["id"] for c in notebook["cells"]]
    assert sum(c["metadata"].get("tags") == ["parameters"] for c in stripped["cells"]) == 1
    assert not any(c.get("outputs") for c in stripped["cells"])


def test_a_solution_that_was_opened_is_folded_again():
    cell = {"cell_type": "code", "source": "x", "metadata": {"tags": ["solution"], "jupyter": {"outputs_hidden": True}}}
    stripped = strip({"metadata": {}, "cells": [cell, {"cell_type": "code", "source": "y", "metadata": {}}]})["cells"]
    assert [c["metadata"] for c in stripped] == [{"jupyter": {"source_hidden": True}, "tags": ["solution"]}, {}]


def test_other_files_are_left_alone():
    model = {"type": "file", "content": "metadata"}
    pre_save(model)
    assert model == {"type": "file", "content": "metadata"}

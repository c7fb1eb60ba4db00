"""The page "lift a kernel": each cell runs by itself in ten lines, and no public function is missing."""

import dataclasses
import importlib
import inspect
import json
import re

import numpy as np
import pytest
import torch
from toys import ROOT

CELLS = [
    "".join(cell["source"])
    for cell in json.loads((ROOT / "notebooks/98_lift_a_kernel.ipynb").read_text())["cells"]
    if cell["cell_type"] == "code"
]
LISTED = re.search(r"kernels = \((.*?)\)\.split", CELLS[1], re.S).group(1).replace('"', "").split()
KERNELS = [*LISTED, "stats", "power", "grounding_text", "grounding_targets"]
BY_OTHERS = {"RectifiedAttnProcessor", "UnrectifiedAttnProcessor", "resized_positions"}  # `install` and models use them


def public(kernel):
    """Functions, and classes that are built by hand: what a function returns is seen where it is called."""
    module = importlib.import_module(f"fmseg.{kernel}")
    for name, thing in vars(module).items():
        if name.startswith("_") or getattr(thing, "__module__", None) != module.__name__:
            continue
        frozen = dataclasses.is_dataclass(thing) and thing.__dataclass_params__.frozen
        if inspect.isfunction(thing) or (inspect.isclass(thing) and not frozen and not issubclass(thing, tuple)):
            yield name


def called(text):
    return set(re.findall(r"\b(\w+)\(", text)) | set(re.findall(r"\b([A-Z]\w+)\.\w+\(", text))


@pytest.mark.parametrize("number", range(2, len(CELLS)))
def test_a_cell_runs_by_itself_in_ten_lines(number, capsys):
    lines = [line for line in CELLS[number].splitlines() if line.strip()]
    assert len(lines) <= 10 and max(map(len, lines)) <= 125
    torch.manual_seed(0)
    np.random.seed(0)
    exec(compile(CELLS[number], f"cell {number}", "exec"), {"torch": torch, "np": np})
    said = capsys.readouterr().out
    assert said and "nan" not in said


@pytest.mark.parametrize("kernel", KERNELS)
def test_every_public_function_is_there(kernel):
    text = "\n".join(CELLS[2:])
    assert f"fmseg.{kernel} import" in text or f"import {kernel}" in text
    missing = set(public(kernel)) - called(text) - BY_OTHERS
    assert not missing, f"fmseg.{kernel}: {sorted(missing)}"

import json

import pytest

from fmseg.provenance import canonical_hash, closure, code_hash, differences, notebook_modules

SOURCE = '''"""Doc."""
# a comment
def f(x):
    """What."""
    return x * 1.25  # margin
'''


def package(root, **sources):
    folder = root / "fmseg"
    folder.mkdir(exist_ok=True)
    for name, text in {"__init__": "", **sources}.items():
        (folder / f"{name}.py").write_text(text)
    return root


@pytest.mark.parametrize(
    ("old", "new"),
    [("# a comment", "# another"), ("What.", "How."), ("Doc.", "Words."), ("x * 1.25", "(x   *\n 1.25)")],
)
def test_words_and_formatting_do_not_count(old, new):
    assert code_hash(SOURCE.replace(old, new)) == code_hash(SOURCE)


@pytest.mark.parametrize(("old", "new"), [("1.25", "1.5"), ("x *", "x +"), ("def f", "def g"), ("(x)", "(x=1)")])
def test_meaning_counts(old, new):
    assert code_hash(SOURCE.replace(old, new)) != code_hash(SOURCE)


def test_a_string_that_is_not_a_docstring_counts():
    assert code_hash("x = 'a'") != code_hash("x = 'b'")
    assert code_hash("def f():\n    'doc'\n") == code_hash("def f():\n    pass\n")


def test_the_closure_follows_imports_also_inside_functions_and_leaves_the_rest(tmp_path):
    root = package(
        tmp_path,
        top="from fmseg import middle\n",
        middle="import torch\ndef f():\n    from fmseg.leaf import x\n    return x\n",
        leaf="x = 1\n",
        stranger="y = 2\n",
    )
    before = closure("fmseg.top", root)
    assert list(before) == ["fmseg", "fmseg.leaf", "fmseg.middle", "fmseg.top"]
    package(root, stranger="y = 3\n")
    assert closure("fmseg.top", root) == before
    package(root, leaf="x = 1  # one\n")
    assert closure("fmseg.top", root) == before
    package(root, leaf="x = 2\n")
    assert differences(before, closure("fmseg.top", root)) == ["fmseg.leaf was changed"]


def test_modules_that_come_and_go_are_named():
    assert differences({"a": "1", "b": "2"}, {"b": "2", "c": "3"}) == ["a is no longer part of it", "c is new in it"]


def test_circles_end(tmp_path):
    root = package(tmp_path, a="import fmseg.b\n", b="from fmseg import a\n")
    assert set(closure("fmseg.a", root)) == {"fmseg", "fmseg.a", "fmseg.b"}


def test_a_notebook_depends_on_what_its_cells_import(tmp_path):
    root = package(tmp_path, a="from fmseg.b import x\n", b="x = 1\n", c="")
    cells = [
        {"cell_type": "markdown", "source": ["import fmseg.c"]},
        {"cell_type": "code", "source": ["%matplotlib inline\n", "from fmseg.a import x"]},
    ]
    path = tmp_path / "n.ipynb"
    path.write_text(json.dumps({"cells": cells}))
    assert set(notebook_modules(path, root)) == {"fmseg", "fmseg.a", "fmseg.b"}
    path.write_text("{")
    with pytest.raises(ValueError, match="must be a notebook.*n.ipynb is not"):
        notebook_modules(path, root)


def test_an_unknown_module_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"got \['fmseg.nothing'\]"):
        closure("fmseg.nothing", package(tmp_path))


def test_the_hash_of_a_value_does_not_depend_on_the_order_of_keys():
    assert canonical_hash({"a": 1, "b": [1, 2]}) == canonical_hash({"b": [1, 2], "a": 1})
    assert canonical_hash({"a": 1}) != canonical_hash({"a": 2})
    with pytest.raises(ValueError):
        canonical_hash({"a": float("nan")})

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parent.parent


def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def exact_versions():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in (line.split("==") for line in lines)}


def test_every_range_of_pyproject_holds_its_exact_version():
    exact = exact_versions()
    for text in project()["dependencies"] + project()["optional-dependencies"]["test"]:
        requirement = Requirement(text)
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        assert name in exact, f"{name} is not pinned in constraints.txt"
        assert Version(exact[name]) in requirement.specifier, (text, exact[name])


def test_the_conda_environment_is_the_same_environment():
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    python = next(d for d in conda if isinstance(d, str) and d.startswith("python="))
    assert Version(python.split("=")[1] + ".0") in Requirement("python" + project()["requires-python"]).specifier
    (pip,) = (d["pip"] for d in conda if isinstance(d, dict))
    assert pip == ["--constraint constraints.txt", "--editable .[test]"]
    extra = [d for d in conda if isinstance(d, str) and d.split("=")[0] not in ("python", "pip", "git", "make")]
    assert not extra, f"these would be conda's own builds beside pip's: {extra}"


def test_importing_fmseg_is_light():
    code = "import sys, fmseg; print(sorted({'torch', 'numpy', 'mmseg', 'torchvision'} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert out.strip() == "[]"


def test_after_fmseg_the_library_set_imports():
    code = (
        "import fmseg, open_clip, timm, torchvision.transforms, mmseg.models, mmdet.models, diffusers, mmcv.ops\n"
        "try:\n"
        "    mmcv.ops.RoIAlign(2)(__import__('torch').zeros(1, 1, 4, 4), __import__('torch').zeros(1, 5))\n"
        "except RuntimeError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    # with the compiled mmcv there would be nothing to print
    assert "needs the compiled mmcv" in done.stdout or not done.stdout.strip()


def test_tracked_text_files_name_no_machine_path():
    listed = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT)
    if listed.returncode:  # an exported archive has no list
        import pytest

        pytest.skip("not a git checkout")
    bad = re.compile(r"(?<![\w.$}~])/(?:ho" + r"me|ro" + r"ot|Us" + r"ers)/\w")
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if path.suffix in (".png", ".npz", ".safetensors") or not path.is_file():
            continue
        assert not bad.search(path.read_text(errors="ignore")), name

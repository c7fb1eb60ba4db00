from pathlib import Path

import pytest

from fmseg import settings

ROOT = Path(__file__).parent.parent


def test_the_dial_chooses_the_section():
    mini, smoke = settings.load("mini", ROOT), settings.load("smoke", ROOT)
    assert mini.results == ROOT / "results" / "mini" and smoke.results == ROOT / "results" / "smoke"
    assert mini.get("world.train.ade") > smoke.get("world.train.ade")


def test_every_profile_has_the_same_keys():
    def keys(tree, at=""):
        named = {k: v for k, v in tree.items() if isinstance(k, str)}  # a mapping by number is a list of points
        return {f"{at}.{k}" for k in named} | {x for k, v in named.items() if isinstance(v, dict) for x in keys(v, k)}

    assert keys(settings.load("mini", ROOT).values) == keys(settings.load("smoke", ROOT).values)


def test_seeds_of_claims_come_from_the_claim_range():
    from fmseg.datasets import seed_range

    assert {seed_range(seed) for seed in settings.load("mini", ROOT).get("seeds")} == {"claim"}


def test_the_project_is_found_from_below():
    assert settings.project_root(ROOT / "tests") == ROOT


def test_bad_input_is_named(tmp_path):
    with pytest.raises(ValueError, match="`profile` must be one of smoke, mini, paper; got 'big'"):
        settings.load("big", ROOT)
    with pytest.raises(ValueError, match="unknown parameter 'world.sise': world has size, train, val"):
        settings.load("mini", ROOT).get("world.sise")
    with pytest.raises(ValueError, match="unknown parameter 'sede'; did you mean 'seed'?"):
        settings.check_names({"sede": 1}, ("seed", "profile", "train"))
    with pytest.raises(FileNotFoundError, match="no fmseg project"):
        settings.project_root(tmp_path)
    (tmp_path / "params.yaml").write_text("profile: [mini")
    with pytest.raises(ValueError, match="not valid YAML"):
        settings.load(root=tmp_path)
    (tmp_path / "params.yaml").write_text("profile: mini\nprofils: {}\n")
    with pytest.raises(ValueError, match="must hold `profile` and `profiles`"):
        settings.load(root=tmp_path)

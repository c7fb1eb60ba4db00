"""params.yaml: one dial, `profile`, and what hangs on it."""

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROFILES = ("smoke", "mini", "paper")


@dataclass(frozen=True)
class Settings:
    """The parameters of one profile. ``values`` is the profile's section of params.yaml."""

    profile: str
    values: dict[str, Any]
    root: Path

    @property
    def results(self) -> Path:
        """Where this profile's tables, figures and run records live: results/<profile>."""
        return self.root / "results" / self.profile

    def get(self, dotted: str) -> Any:
        """A parameter by its path, such as 'world.train.ade'.

        Raises:
            ValueError: there is none of that name; lists what is there.
        """
        here: Any = self.values
        for depth, key in enumerate(dotted.split(".")):
            if not isinstance(here, dict) or key not in here:
                at = ".".join(dotted.split(".")[:depth]) or f"profile {self.profile!r}"
                have = ", ".join(map(str, here)) if isinstance(here, dict) else "no further keys"
                raise ValueError(f"unknown parameter {dotted!r}: {at} has {have}")
            here = here[key]
        return here


def project_root(start: Path | None = None) -> Path:
    """The folder that holds params.yaml, from ``start`` (default: the working folder) upwards.

    Raises:
        FileNotFoundError: no such folder; says where it looked.
    """
    start = Path(start or Path.cwd()).resolve()
    for folder in (start, *start.parents):
        if (folder / "params.yaml").is_file() and (folder / "fmseg").is_dir():
            return folder
    raise FileNotFoundError(f"no fmseg project at or above {start}: start in a clone of the repository")


def check_names(given: dict[str, Any], known: tuple[str, ...], what: str = "parameter") -> None:
    """Refuse names that nobody reads: a misspelt parameter must not be silently without effect.

    Raises:
        ValueError: names the unknown ones and the nearest known ones.
    """
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.4)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"unknown {what} {name!r}{hint} Known: {', '.join(known)}")


def check_config(config: dict[str, Any], keys: tuple[str, ...], optional: tuple[str, ...] = ()) -> None:
    """Refuse a run's configuration that has keys nobody reads or lacks one that is needed.

    Raises:
        ValueError: names the keys.
    """
    check_names(config, keys + optional, "key of a run's configuration")
    missing = [key for key in keys if key not in config]
    if missing:
        raise ValueError(f"a run's configuration lacks {', '.join(missing)}; it needs {', '.join(keys)}")


def load(profile: str | None = None, root: Path | None = None) -> Settings:
    """Read params.yaml.

    Args:
        profile: 'smoke', 'mini' or 'paper'; default is the file's own ``profile``.
        root: the project's folder; default is looked for from the working folder upwards.

    Raises:
        ValueError: an unknown profile, one without a section, or a file that is no mapping.
    """
    import yaml

    root = Path(root) if root else project_root()
    try:
        document = yaml.safe_load((root / "params.yaml").read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{root / 'params.yaml'} is not valid YAML: {error}") from None
    if not isinstance(document, dict) or set(document) != {"profile", "profiles"}:
        raise ValueError(f"{root / 'params.yaml'} must hold `profile` and `profiles` and nothing else")
    profile = profile or document["profile"]
    if profile not in PROFILES:
        raise ValueError(f"`profile` must be one of {', '.join(PROFILES)}; got {profile!r}. Set it in params.yaml")
    if profile not in document["profiles"]:
        raise ValueError(f"params.yaml has no section for profile {profile!r} yet; it has {list(document['profiles'])}")
    return Settings(profile, document["profiles"][profile], root)

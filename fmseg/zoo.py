"""The shipped zoo: where a model's files lie, what its card says, and whether the files are those the card means.

A folder `zoo/weights/<name>` holds a model's files in its library's own layout and `card.json`: what it is, what it was
trained on and for how long, what it knows, and the SHA-256 of every file. Weights are stored in half precision, U-Nets
of layout models in eight bits (:mod:`fmseg.eight_bits`), and used in single. Nothing here trains; see
:mod:`fmseg.zoo_train`.
"""

import hashlib
import json
import os
from functools import lru_cache
from pathlib import Path

from torch import Tensor

CARD = "card.json"


def home() -> Path:
    """zoo/weights of this checkout, or the folder that FMSEG_ZOO names."""
    given = os.environ.get("FMSEG_ZOO")
    return Path(given) if given else Path(__file__).resolve().parent.parent / "zoo" / "weights"


def names() -> list[str]:
    """The models that are there, in alphabetical order."""
    return sorted(path.parent.name for path in home().glob(f"*/{CARD}"))


def lacking(*models: str) -> str | None:
    """Why what rests on these models cannot be had yet: "the zoo has no clip, mim yet"; None if all are shipped."""
    missing = [name for name in dict.fromkeys(models) if name not in names()]
    return f"the zoo has no {', '.join(missing)} yet" if missing else None


def need(*models: str) -> None:
    """Ask for models at the top of a notebook, which is a stage of the pipeline once all of them are shipped.

    Raises:
        ValueError: some are not.
    """
    missing = lacking(*models)
    if missing:
        raise ValueError(f"{missing}; `python -m fmseg.zoo_train` trains, `python -m fmseg.zoo_promote` ships models")


def card(name: str) -> dict:
    """A model's card.

    Raises:
        ValueError: no such model; lists those there are.
    """
    path = home() / name / CARD
    if not path.is_file():
        raise ValueError(f"the zoo has no model {name!r}; it has {', '.join(names()) or 'none'} (in {home().name}/)")
    return json.loads(path.read_text(encoding="utf-8"))


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


@lru_cache(maxsize=64)
def _digest(path: Path, size: int, changed: int) -> str:
    return sha256(path)


def folder(name: str) -> Path:
    """The folder of a model, after its files were compared with its card.

    Raises:
        ValueError: no such model, a file that is missing, or one that is not the card's; says how to get it back.
    """
    files, here = card(name)["files"], home() / name
    for part, wanted in files.items():
        path = here / part
        if not path.is_file():
            raise ValueError(f"zoo model {name!r} lacks {part}; `git checkout -- zoo/weights/{name}` brings it back")
        state = path.stat()
        if _digest(path, state.st_size, state.st_mtime_ns) != wanted:
            raise ValueError(
                f"zoo model {name!r}: {part} is not the file its card means (SHA-256 differs); "
                f"`git checkout -- zoo/weights/{name}` brings it back"
            )
    return here


def weights_hash(name: str) -> str:
    """First 16 hex digits of a hash over a model's files; what a run that rests on the model keeps in its record."""
    from fmseg.provenance import canonical_hash

    return canonical_hash(card(name)["files"])


def load_state(name: str, part: str) -> dict[str, Tensor]:
    """The tensors of one file of a model, in single precision.

    Raises:
        ValueError: as :func:`folder`, or the model has no such file.
    """
    from safetensors.torch import load_file

    path = folder(name) / part
    if part not in card(name)["files"]:
        raise ValueError(f"zoo model {name!r} has no file {part!r}; it has {', '.join(card(name)['files'])}")
    return {key: value.float() if value.is_floating_point() else value for key, value in load_file(path).items()}

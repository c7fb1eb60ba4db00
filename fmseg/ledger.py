"""The ledger: every claim beside the paper's numbers, what was measured, and the verdict. For people: fmseg.report."""

from pathlib import Path

from fmseg.tables import json_text, read_json, write_files

_KEYS = {"profile", "claims"}
VERDICTS = ("supported", "contradicted", "inconclusive", "not tested")  # decided ones first
NOTICE = {
    "mini": "Verdicts in miniature test mechanism and direction, not the paper's number.",
    "smoke": "A smoke run shows that everything runs; it judges nothing.",
    "paper": "Verdicts at the papers' scale.",
}


def write(verdicts: list[dict], folder, profile: str) -> Path:
    """Write ``ledger.json`` into a folder, say results/mini; returns its path.

    Args:
        verdicts: what :func:`fmseg.verdicts.judge` returns.
        profile: smoke, mini or paper.

    Raises:
        ValueError: no such profile.
        OSError: a file could not be written; see :func:`fmseg.tables.write_files`.
    """
    if profile not in NOTICE:
        raise ValueError(f"`profile` must be one of {', '.join(NOTICE)}; got {profile!r}.")
    ledger = {"profile": profile, "claims": [stable(entry) for entry in verdicts]}
    path = Path(folder) / "ledger.json"
    write_files({path: json_text(ledger)})
    return path


def read(folder) -> dict:
    """The ledger of a folder: {"profile", "claims": [verdict]}. FileNotFoundError or ValueError name the file."""
    path = Path(folder) / "ledger.json"
    found = read_json(path)
    if not isinstance(found, dict) or set(found) != _KEYS:
        raise ValueError(f"{path} is no ledger: expected the keys {sorted(_KEYS)}. Write it with fmseg.ledger.write.")
    return found


def effect(entry: dict, digits: int = 1) -> str:
    """A claim's measured effect: "+3.1 [2.0, 4.2]", or "not measured" with fewer than two pairs."""
    if entry["mean"] is None:
        return "not measured"
    return f"{entry['mean']:+.{digits}f} [{entry['low']:.{digits}f}, {entry['high']:.{digits}f}]"


def over_images(entry: dict, digits: int = 1) -> str:
    """The second look: "[2.0, 4.2]", why there is none, or "": nothing was measured, or the ledger is from before."""
    if entry.get("images_low") is not None:
        return f"[{entry['images_low']:.{digits}f}, {entry['images_high']:.{digits}f}]"
    return f"no second look: {entry['images_why']}" if entry.get("images_why") else ""


def paper_values(values: dict) -> str:
    """The paper's numbers in words: "A 48.7, B 45.6 (STATED, README); difference 3.1 (COMPUTED)"."""
    tag = ", ".join(values[k] for k in ("certainty", "source") if k in values)
    numbers = {name: v for name, v in values.items() if name not in ("certainty", "source")}
    plain = ", ".join(f"{name} {v}" for name, v in numbers.items() if not isinstance(v, dict))
    own = [f"{name} {v['value']} ({v['certainty']})" for name, v in numbers.items() if isinstance(v, dict)]
    return "; ".join([*([f"{plain} ({tag})"] if plain else []), *own])


def stable(entry: dict) -> dict:
    """A verdict with its numbers rounded to the digits that the ledger's file keeps."""
    return {key: _stable(key, value) for key, value in entry.items()}


def _stable(key, value):
    if not isinstance(value, float):
        return value
    return float(f"{value:.4g}") if key in ("p", "p_holm") else round(value, 4) + 0.0

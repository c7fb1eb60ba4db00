"""The ledger: every claim beside the paper's numbers, what was measured, and the verdict. For people: fmseg.report."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from fmseg.tables import json_text, read_json, write_files

_KEYS = {"profile", "claims"}
ACROSS = "Across the papers"  # stands for the paper of claims that are ours, of what none of the papers did
VERDICTS = ("supported", "contradicted", "inconclusive", "not tested")  # decided ones first
NOTICE = {
    "mini": "Verdicts in miniature test mechanism and direction, not the paper's number.",
    "smoke": "A smoke run shows that everything runs; it judges nothing.",
    "paper": "Verdicts at the papers' scale.",
}

_HEAD = ("claim", "measured", "n", "p (Holm)", "detectable", "over images", "verdict")
LEGEND = (
    "*Measured*: mean over seed pairs with its t interval, in the table's unit. *p*: adjusted over the claims of "
    "one table. *Detectable*: the true effect (for a claim of equality the margin) at which these pairs earn the word "
    "supported with power 0.8 at the strictest level. *Over images*: the second look, an interval of the same effect "
    "when the validation images are drawn again and the runs stay; a verdict that it does not bear out is flagged."
)


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


def markdown(claims: Sequence[dict]) -> str:
    """Judged claims for people: :func:`table`, what its columns mean, and, folded away, :func:`details` of each."""
    folded = "<details><summary>The papers' numbers and each claim's rule</summary>"
    return "\n\n".join([table(claims), LEGEND, folded, *map(details, claims), "</details>"]) + "\n"


def table(claims: Iterable[dict], verdict: bool = True) -> str:
    """Judged claims as a Markdown table, one line a claim; ``verdict`` False: the text around it says that."""
    lines = [_HEAD, ["---"] * len(_HEAD), *(_line(claim, flags=not verdict) for claim in claims)]
    return "\n".join("| " + " | ".join(line if verdict else line[:-1]) + " |" for line in lines)


def _line(claim, flags):
    p = "" if claim["p_holm"] is None else f"{claim['p_holm']:.2g}"
    detectable = "" if claim["detectable"] is None else f"{claim['detectable']:.1f}"
    says = claim["says"] + (f" (*{'; '.join(claim['flags'])}*)" if flags and claim["flags"] else "")
    shown = [f"{says}<br>`{claim['id']}`", effect(claim), claim["n"], p, detectable]
    shown += ["" if claim.get("images_why") else over_images(claim), claim["text"]]
    return [str(s).replace("|", "\\|").replace("\n", " ").strip() for s in shown]


def details(claim: dict) -> str:
    """A paragraph about a claim: where it is from, the paper's numbers, its rule, what was left out, its note."""
    numbers = paper_values(claim["paper_values"])
    text = f"**`{claim['id']}`** {claim['paper']}, {claim['where']}: {claim['says']}."
    text += f" For comparison: {numbers}." if claim["paper"] == ACROSS else f" The paper's numbers: {numbers}."
    if claim["rule"] is None:
        text += f" Not tested: {claim['why'].rstrip('.')}."
    else:
        rule = ", ".join(f"{k} {v}" for k, v in claim["rule"].items())
        text += f" Estimand `{claim['estimand'].strip()}`; rule: {rule} (`{claim['rule_hash'][:14]}`)."
        text += f" {claim['verdict'].capitalize()}: {claim['why']}." if claim["why"] else ""
        text += f" Seeds that not all cells have: {', '.join(claim['left_out'])}." if claim["left_out"] else ""
        text += f" Over images alone: {claim['images_word']}." if claim.get("images_word") else ""
        text += f" No second look: {claim['images_why']}." if claim.get("images_why") else ""
    return text + (f" {claim['note'].strip()}" if claim["note"] else "")


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
    """The paper's numbers in words: "A: 48.7, B: 45.6 (STATED, README); difference: 3.1 (COMPUTED)"."""
    tag = ", ".join(values[k] for k in ("certainty", "source") if k in values)
    numbers = {name: v for name, v in values.items() if name not in ("certainty", "source")}
    plain = ", ".join(f"{name}: {v}" for name, v in numbers.items() if not isinstance(v, dict))
    own = [f"{name}: {v['value']} ({v['certainty']})" for name, v in numbers.items() if isinstance(v, dict)]
    return "; ".join([*([f"{plain} ({tag})"] if plain else []), *own])


def stable(entry: dict) -> dict:
    """A verdict with its numbers rounded to the digits that the ledger's file keeps."""
    return {key: _stable(key, value) for key, value in entry.items()}


def _stable(key, value):
    if not isinstance(value, float):
        return value
    return float(f"{value:.4g}") if key in ("p", "p_holm") else round(value, 4) + 0.0

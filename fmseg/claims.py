"""Claims: what the papers say that a measurement can test, and the rule that decides, fixed before the run.

``claims.yaml`` holds the claims; :func:`load` checks them and :func:`rule_hash` pins what decides, so that a run record
can keep it. An entry with ``not_tested`` instead of a formula lists numbers that nothing here tests, and why. The
verdicts are in :mod:`fmseg.verdicts`.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import yaml

from fmseg import estimand as _estimand
from fmseg.tables import CERTAINTIES

_KEYS = {"id", "paper", "where", "says", "paper_values", "estimand", "pairs", "rule", "scale"}
_UNTESTED = {"id", "paper", "where", "says", "paper_values", "not_tested"}
_TESTS = {"paired_t": {"test", "alpha", "side", "minimal_effect"}, "equivalence": {"test", "alpha", "margin"}}
_SIDES = ("greater", "less", "two-sided")
_SCALES = ("mini", "paper")
_ID = re.compile(r"[a-z][a-z0-9_]*(\.[a-z0-9_]+)+")


# -- loading ---------------------------------------------------------------------------------------------------------


def load(path) -> list[dict]:
    """The claims of a YAML file, checked, in its order.

    Raises:
        FileNotFoundError: there is no file.
        ValueError: not YAML, a key twice, unknown or missing, an id twice, an unknown test, no certainty, a formula
            that does not parse; the message names file, claim and key.
    """
    path = Path(path)
    try:
        claims = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeys)
    except FileNotFoundError:
        raise FileNotFoundError(f"There is no file {path}; claims are listed there.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not readable YAML: {error}") from error
    try:
        validate(claims)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    return claims


def validate(claims: list[dict]) -> None:
    """Check claims against the schema; raises TypeError or ValueError, naming claim and key."""
    if not isinstance(claims, list):
        raise TypeError(f"claims must be a list, got {type(claims).__name__}.")
    seen = set()
    for i, claim in enumerate(claims):
        if not isinstance(claim, dict):
            raise TypeError(f"claim number {i + 1} must be a mapping, got {claim!r}.")
        where = f"claim {claim.get('id', f'number {i + 1}')}"
        _check_claim(claim, where)
        if claim["id"] in seen:
            raise ValueError(f"{where}: the `id` occurs twice.")
        seen.add(claim["id"])


def testable(claims: Iterable[Mapping]) -> list[Mapping]:
    """The claims that have a formula and a rule; without the entries of what is not tested."""
    return [c for c in claims if "not_tested" not in c]


def numbers(claim: Mapping) -> dict[str, float]:
    """{name: number} of a claim's ``paper_values``, those that were computed from others left out."""
    found = {}
    for name, value in claim["paper_values"].items():
        if name not in ("certainty", "source"):
            tag = value["certainty"] if isinstance(value, Mapping) else claim["paper_values"]["certainty"]
            if tag != "COMPUTED":
                found[name] = float(value["value"] if isinstance(value, Mapping) else value)
    return found


def rule_hash(claim: Mapping) -> str:
    """Hash of what decides: estimand, pairs, rule and scale; not of wording, blanks or the paper's numbers.

    Returns:
        "sha256:" and 64 hexadecimal digits; equal for alpha 0.05 and 5e-2, for 1 and 1.0.
    """
    decides = {
        "estimand": " ".join(claim["estimand"].split()),
        "pairs": claim["pairs"],
        "rule": {k: v if isinstance(v, str) else float(v) for k, v in claim["rule"].items()},
        "scale": claim["scale"],
    }
    text = json.dumps(decides, sort_keys=True, separators=(",", ":"))
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def rule_hashes(claims: Iterable[Mapping], table: str) -> dict[str, str]:
    """{claim id: rule hash} of the claims that read a table: what a run record of that table stores as "claims"."""
    return {c["id"]: rule_hash(c) for c in testable(claims) if table in _estimand.parse(c["estimand"]).tables}


def stored_hashes(claims: Iterable[Mapping], records: Mapping[str, Iterable[Mapping]]) -> dict[str, set[str]]:
    """The rule hashes that run records stored when they were trained, as :func:`fmseg.verdicts.judge` wants them.

    Args:
        records: {table id: the run records behind that table}.

    Returns:
        {claim id: hashes}; "" stands for a record that knew no rule of that claim.
    """
    return {
        c["id"]: {
            record.get("claims", {}).get(c["id"], "")
            for table in _estimand.parse(c["estimand"]).tables
            for record in records.get(table, ())
        }
        for c in testable(claims)
    }


# -- validation ------------------------------------------------------------------------------------------------------


class _UniqueKeys(yaml.SafeLoader):
    """A safe loader that refuses a key given twice; YAML itself would keep the last one silently."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = sorted({str(key) for key in keys if keys.count(key) > 1})
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"key {', '.join(twice)} given twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _check_claim(claim, where):
    untested = "not_tested" in claim
    _check_keys(claim, _UNTESTED if untested else _KEYS, where, {"note"})
    texts = ("not_tested",) if untested else ("estimand", "pairs", "scale")
    for key in ("id", "paper", "where", "says", *texts, *({"note"} & set(claim))):
        if not isinstance(claim[key], str) or not claim[key].strip():
            raise ValueError(f"{where}: `{key}` must be a text that is not empty, got {claim[key]!r}.")
    if not _ID.fullmatch(claim["id"]):
        raise ValueError(f"{where}: `id` must look like paper.table.1 in lower case, got {claim['id']!r}.")
    _check_paper_values(claim["paper_values"], where)
    if untested:
        return
    if claim["pairs"] != "seed":
        raise ValueError(f"{where}: `pairs` must be 'seed', got {claim['pairs']!r}.")
    if claim["scale"] not in _SCALES:
        raise ValueError(f"{where}: `scale` must be one of {', '.join(_SCALES)}; got {claim['scale']!r}.")
    _check_rule(claim["rule"], where)
    try:
        _estimand.parse(claim["estimand"])
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _check_paper_values(values, where):
    where = f"{where}: `paper_values`"
    if not isinstance(values, dict):
        raise ValueError(f"{where} must be a mapping of names to numbers with a `certainty`, got {values!r}.")
    if "certainty" not in values:
        raise ValueError(f"{where} lacks `certainty`: one of {', '.join(CERTAINTIES)}.")
    for name, value in values.items():
        tag = values["certainty"]
        if isinstance(value, dict) and name not in ("certainty", "source"):
            _check_keys(value, {"value", "certainty"}, f"{where}, {name}")
            value, tag = value["value"], value["certainty"]
        if tag not in CERTAINTIES:
            raise ValueError(f"{where}: `certainty` must be one of {', '.join(CERTAINTIES)}; got {tag!r}.")
        if name == "source" and not isinstance(value, str):
            raise ValueError(f"{where}: `source` must be a text, got {value!r}.")
        if name not in ("certainty", "source") and not _is_number(value):
            raise ValueError(f"{where}: `{name}` must be a number or {{value, certainty}}, got {value!r}.")
    if not set(values) - {"certainty", "source"}:
        raise ValueError(f"{where} holds no number.")


def _check_rule(rule, where):
    if not isinstance(rule, dict):
        raise ValueError(f"{where}: `rule` must be a mapping, got {rule!r}.")
    if rule.get("test") not in _TESTS:
        raise ValueError(f"{where}: `rule.test` must be one of {', '.join(_TESTS)}; got {rule.get('test')!r}.")
    _check_keys(rule, _TESTS[rule["test"]], f"{where}: `rule`")
    if rule.get("side", "greater") not in _SIDES:
        raise ValueError(f"{where}: `rule.side` must be one of {', '.join(_SIDES)}; got {rule['side']!r}.")
    for key in sorted(set(rule) - {"test", "side"}):
        least, most = {"alpha": (0, 0.5), "margin": (0, 1e6), "minimal_effect": (-1e-300, 1e6)}[key]
        if not _is_number(rule[key]) or not least < rule[key] < most:
            wanted = {"alpha": "in (0, 0.5)", "margin": "> 0", "minimal_effect": ">= 0"}[key]
            raise ValueError(f"{where}: `rule.{key}` must be a number {wanted}, got {rule[key]!r}.")


def _check_keys(found, needed, where, extra=frozenset()):
    missing, unknown = sorted(needed - set(found)), sorted(map(str, set(found) - needed - set(extra)))
    if missing:
        raise ValueError(f"{where}: missing key {', '.join(missing)}.")
    if unknown:
        raise ValueError(f"{where}: unknown key {', '.join(unknown)}; expected {sorted(needed | set(extra))}.")


def _is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < float("inf")

"""The verdicts of a notebook that makes several tables: claims that any of them decide, also two together, in words."""

from collections.abc import Mapping

from fmseg import claims, freemask_truth, ledger
from fmseg.estimand import parse
from fmseg.experiment import Outcome, judge
from fmseg.freemask_tables import EXPERIMENTS
from fmseg.settings import Settings


def judged(settings: Settings, outcomes: Mapping[str, Outcome]) -> list[dict]:
    """Verdicts and second looks of the claims whose tables are all at hand, in claims.yaml's order.

    Args:
        settings: profile and root. outcomes: {id of a table of FreeMask: what was done for it}.
    """
    listed = claims.testable(claims.load(settings.root / "claims.yaml"))
    listed = [c for c in listed if set(parse(c["estimand"]).tables) <= set(outcomes)]
    records = {id: [r for r in o.records if r] for id, o in outcomes.items()}
    experiments = EXPERIMENTS | {freemask_truth.ID: freemask_truth.EXPERIMENT}
    return judge(listed, {id: o.table for id, o in outcomes.items()}, records, experiments, settings)


def in_words(found: list[dict]) -> str:
    """A Markdown list, a claim an item: what is said, the verdict, what was measured, what the paper has."""
    return "\n".join(_item(entry) for entry in found) or "No claim is decided by these tables."


def _item(entry: dict) -> str:
    measured = f"measured {ledger.effect(entry)}, n = {entry['n']}" if entry["n"] else "not measured"
    papers = ledger.paper_values(entry["paper_values"])
    whose = "for comparison" if entry["paper"] == ledger.ACROSS else "the paper"
    return f"* `{entry['id']}`: {entry['says'].strip()}. **{entry['text']}**; {measured}; {whose}: {papers}."

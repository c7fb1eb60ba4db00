"""Table `zoo`: what the foundation models in miniature can do and what they cannot, measured on claim seeds.

Not a table of the papers. What is measured, and the targets, :mod:`fmseg.zoo_measures` says.
"""

from fmseg import zoo
from fmseg.experiment import Experiment, on_real_data, provenance
from fmseg.settings import Settings
from fmseg.tables import cell, not_run, row, table
from fmseg.zoo_measures import MEASURES

MISSING = "no record of it"
GENERATING = ("prompted-singles", "prompted-pairs", "layout-ade", "weak-ade", "layout-stuff", "weak-stuff")


def targets() -> dict[str, tuple[float, float]]:
    """{row label: least and largest value} of the rows that have a target."""
    return {label: target for _, _, lines in MEASURES.values() for label, _, target in lines if target}


def why_not(settings: Settings, method: str) -> str | None:
    """Why a measurement cannot be had, or None: models that are not shipped, a profile on real data."""
    return "measured in the mini world" if on_real_data(settings) else zoo.lacking(*MEASURES[method][0])


def run_configs(settings: Settings) -> list[dict]:
    """Every measurement whose models are shipped, at every seed. None in a profile on real data."""
    made = []
    for method, (models, _, _) in MEASURES.items():
        if why_not(settings, method):
            continue
        count = settings.get("zoo.generated" if method in GENERATING else "zoo.real")
        hashes = {name: zoo.weights_hash(name) for name in models}
        steps = count * (20 if method in GENERATING else 1)
        made += [
            {"method": method, "seed": seed, "images": count, "zoo": hashes, "train": {"steps": steps}}
            for seed in settings.get("seeds")
        ]
    return made


def build_table(settings: Settings, records: list[dict | None]) -> dict:
    """The table `zoo` from its records; pure."""
    rows = []
    for method, (_, _, lines) in MEASURES.items():
        mine = [r for r in records if r and r["config"]["method"] == method]
        for label, key, _ in lines:
            values = {r["config"]["seed"]: r["result"]["values"][key] for r in mine}
            values = {seed: value for seed, value in values.items() if value is not None}
            made = cell(values) if values else not_run(why_not(settings, method) or MISSING)
            rows.append(row(label, {"measured": made}))
    return table(
        "zoo",
        "The zoo, measured",
        "Mini world; no counterpart in the papers",
        "%",
        ["measured"],
        rows,
        note=(
            "Each seed draws its own pictures, prompts and noise; the models are the shipped ones. Targets, set before "
            "anything was trained: "
            + "; ".join(f"{label} {low:g} to {high:g}" for label, (low, high) in targets().items())
            + ". Fréchet distances, in the unit sphere of CLIP's features, are times 100, not percent; these features "
            "also took part in training the autoencoder, the U-Net and the backbones, so that the distances are not an "
            "independent judge."
        ),
        provenance=provenance(EXPERIMENT, settings, records),
    )


def cell_of(config: dict) -> str:
    """Runs of the same measurement differ by their seed alone."""
    return config["method"]


EXPERIMENT = Experiment("zoo", "05_zoo", "fmseg.zoo_measures", run_configs, build_table, cell_of, headline=False)

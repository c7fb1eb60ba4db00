"""How hard is the mini world? Supervised training on it: the learning curve, and runs to convergence.

Not a table of the papers: it sizes the training splits (doubling the real images must still gain, halving must lose,
or synthetic images would have no room) and shows that the world is neither trivial nor hopeless.
"""

from fmseg import ceilings, configs, zoo
from fmseg.datasets import get_draw
from fmseg.experiment import Experiment, on_real_data, provenance
from fmseg.settings import Settings
from fmseg.tables import cell, not_run, row, table

DRAWS = ("voc", "ade")
CURVE_METHOD = "segformer"
CONVERGED = {"DeepLabV3": "deeplabv3", "SegFormer": "segformer"}


def sizes(settings: Settings, draw: str) -> dict[str, int]:
    """{row label: training images} of the learning curve: half, the split itself, twice."""
    images = settings.get(f"world.train.{draw}")
    return {"half the images": images // 2, "the training split": images, "twice the images": 2 * images}


def run_configs(settings: Settings) -> list[dict]:
    """The runs: the learning curve on the zoo's backbone (once it is shipped) on the first seeds, and every converged
    model once on the `large` split, from scratch.

    None where the profile has real data: the world has one size.
    """
    if on_real_data(settings):
        return []
    seeds = settings.get("seeds")[: settings.get("world_supervised.seeds")]
    exposures = settings.get("exposures.table")
    curve = [
        configs.supervised(settings, CURVE_METHOD, seed, draw, images, exposures)
        for draw in DRAWS
        for images in sizes(settings, draw).values()
        for seed in seeds
        if why_no_curve() is None
    ]
    large, seen = settings.get("world_supervised.large"), settings.get("exposures.converged")
    return curve + [
        configs.supervised(settings, method, seeds[0], draw, large, seen[draw], "large", backbone=configs.SCRATCH)
        for draw in DRAWS
        for method in CONVERGED.values()
    ]


def why_no_curve() -> str | None:
    """Why the learning curve cannot be had yet, or None."""
    return zoo.lacking(f"backbone-{CURVE_METHOD}")


def label_of(settings: Settings, config: dict) -> str:
    """The table's row that a run belongs to."""
    if config["split"] == "large":
        return converged_label(next(k for k, v in CONVERGED.items() if v == config["method"]))
    return next(k for k, n in sizes(settings, config["draw"]).items() if n == config["images"])


def converged_label(name: str) -> str:
    """Row label of a model that was trained to convergence."""
    return f"{name} to convergence"


def build_table(settings: Settings, records: list[dict | None]) -> dict:
    """The table `world-supervised` from its records; pure."""
    labels = [*sizes(settings, DRAWS[0]), *map(converged_label, CONVERGED)]
    values = {(label, draw): {} for label in labels for draw in DRAWS}
    for record in filter(None, records):
        config = record["config"]
        values[label_of(settings, config), config["draw"]][config["seed"]] = record["result"]["miou"]
    why = dict.fromkeys(sizes(settings, DRAWS[0]), why_no_curve())

    def filled(label, draw):
        found = values[label, draw]
        return cell(found) if found else not_run(why.get(label) or "no record of its runs")

    rows = [row(label, {draw: filled(label, draw) for draw in DRAWS}) for label in labels]
    size, validation = settings.get("world.size"), settings.get("world.val")
    for side in ceilings.grids(size):
        whole = {d: {d: list(range(get_draw(d).num_classes))} for d in DRAWS}
        cells = [ceilings.ceiling_cells(d, validation, size, side, whole[d]) for d in DRAWS]
        rows.append(row(f"ceiling of a {side}x{side} grid", cells[0] | cells[1]))
    images = {draw: settings.get(f"world.train.{draw}") for draw in DRAWS}
    return table(
        "world-supervised",
        "Supervised training on the mini world",
        "Mini world; no counterpart in the papers",
        "% mIoU",
        list(DRAWS),
        rows,
        note=(
            "The learning curve is SegFormer on the zoo's backbone in short runs; the training split has "
            + ", ".join(f"{n} images on `{d}`" for d, n in images.items())
            + f". To convergence: {settings.get('world_supervised.large')} images of the `large` split, from scratch, "
            "one seed. "
            "On `ade` one training split serves all seeds."
        ),
        provenance=provenance(EXPERIMENT, settings, records),
    )


def cell_of(config: dict) -> str:
    """Runs of the same cell differ by their seed alone."""
    images = f"{config['images']} images of {config['draw']} {config['split']}"
    return f"{config['method']} on {images}, {config['train']['steps']} steps"


EXPERIMENT = Experiment(
    "world-supervised", "01_mini_world", "fmseg.supervised", run_configs, build_table, cell_of, headline=False
)

"""FreeMask's first column: segmenters trained on real images alone, the baseline of its joint-training table.

Source: FreeMask README, ADE20K table, column "real" (dossier T-B). In miniature: the `ade` draw, where stuff and things
are labelled, and three of mmsegmentation's segmenters at mini size.
"""

import numpy as np

from fmseg import ceilings, configs, on_disk, real_supervised
from fmseg.datasets import draw_set
from fmseg.experiment import Experiment, on_real_data, provenance
from fmseg.labelmaps import LARGEST
from fmseg.settings import Settings
from fmseg.tables import cell, not_run, paper_value, row, table
from fmseg.words import STUFF, THINGS

SOURCE = "FreeMask README"
MISSING = "no record of its runs"
METHODS = {"SegFormer": "segformer", "Segmenter": "segmenter", "Mask2Former": "mask2former"}
PAPER = {"SegFormer": 45.6, "Segmenter": 46.2, "Mask2Former": 48.7}  # MiT-B2, ViT-S, Swin-T; STATED
GROUPS = {  # class ids of the `ade` draw by column
    "mIoU": list(range(len(THINGS) + len(STUFF))),
    "things": list(range(len(THINGS))),
    "stuff": list(range(len(THINGS), len(THINGS) + len(STUFF))),
}


def run_configs(settings: Settings) -> list[dict]:
    """The runs: every method at every seed, on the same training split."""
    if on_real_data(settings):
        return [configs.real(settings, m, seed, "ade") for m in METHODS.values() for seed in settings.get("seeds")]
    images, exposures = settings.get("world.train.ade"), settings.get("exposures.table")
    return [
        configs.supervised(settings, method, seed, "ade", images, exposures)
        for method in METHODS.values()
        for seed in settings.get("seeds")
    ]


def groups_of(record: dict) -> dict[str, list[int]]:
    """Class ids by column. On ADE20K there is the mean over all classes alone: the paper gives no other column."""
    return {"mIoU": list(range(len(record["result"]["iou"])))} if "data" in record["config"] else GROUPS


def group_means(record: dict) -> dict[str, float]:
    """{column: mean IoU in percent over that column's classes that have ground truth} of one run."""
    means = {}
    for column, ids in groups_of(record).items():
        there = [record["result"]["iou"][k] for k in ids if record["result"]["iou"][k] is not None]
        means[column] = 100 * sum(there) / len(there)
    return means


def build_table(settings: Settings, records: list[dict | None]) -> dict:
    """The table `freemask-real` from its records; pure."""
    rows = []
    for label, method in METHODS.items():
        mine = [r for r in records if r and r["config"]["method"] == method]
        means = {r["config"]["seed"]: group_means(r) for r in mine}
        cells = {}
        for column in GROUPS:
            paper = paper_value(PAPER[label], "STATED", SOURCE) if column == "mIoU" else None
            values = {seed: m[column] for seed, m in means.items() if column in m}
            missing = "the paper has the mean alone" if means and column not in next(iter(means.values())) else MISSING
            cells[column] = cell(values, paper) if values else not_run(missing, paper)
        rows.append(row(label, cells))
    if not on_real_data(settings):
        size, validation = settings.get("world.size"), settings.get("world.val")
        for cells_a_side in ceilings.grids(size):
            ceiling = ceilings.ceiling_cells("ade", validation, size, cells_a_side, GROUPS)
            rows.append(row(f"ceiling of a {cells_a_side}x{cells_a_side} grid", ceiling))
    return table(
        "freemask-real",
        "Real images only",
        "FreeMask, joint training on ADE20K, column real (README)",
        "% IoU",
        list(GROUPS),
        rows,
        note=PAPER_NOTE if on_real_data(settings) else NOTE,
        provenance=provenance(EXPERIMENT, settings, records),
    )


NOTE = (
    "Mini models trained from scratch in short runs on the `ade` draw of the mini world; the paper's are SegFormer "
    "MiT-B2, Segmenter ViT-S and Mask2Former Swin-T, pre-trained, on ADE20K. One training split serves all seeds; a "
    "seed fixes initial weights and the order of data."
)


def training_of(settings: Settings) -> str:
    """How the runs are trained, a line a method."""
    lines = []
    for label, method in METHODS.items():
        train = next(c["train"] for c in run_configs(settings) if c["method"] == method)
        seen = train["steps"] * train["batch_size"]
        lines.append(f"{label}: {seen} images seen, {train['batch_size']} a step; peak learning rate {train['lr']:g}")
    return "\n".join(lines)


def pictures(settings: Settings, part: str, count: int) -> tuple[np.ndarray, np.ndarray, list[str], tuple[str, ...]]:
    """The first pictures of the training or validation set, small, for figures.

    Args:
        settings: the mini world's `ade` draw, or the data set that plays its part.
        part: 'train' or 'val'.
        count: how many; of a data set on disk at most six.

    Returns:
        images (n, H, W, 3) uint8 and labels (n, H, W) uint8, at most 128 pixels a side, as predictions in records are;
        a title each; class names by id.
    """
    if on_real_data(settings):
        where = settings.get("data.ade")
        split = where["split" if part == "train" else "validation"]
        found = on_disk.open_set(where["data"], on_disk.root_of(where["data"]), split)
        found = found.subset(range(min(count, len(found))))
        images, labels = real_supervised.examples(found)
        return images, labels, [path.stem for path in found.images][: len(images)], found.classes
    drawn = draw_set("ade", part, count, size=settings.get("world.size"))
    step = -(-drawn.labels.shape[1] // LARGEST)
    names = ["\n".join(dict.fromkeys(things)) for things in drawn.things]
    return drawn.images[:, ::step, ::step], drawn.labels[:, ::step, ::step], names, drawn.classes


PAPER_NOTE = (
    "SegFormer MiT-B2, Segmenter ViT-S and Mask2Former Swin-T on ADE20K by the papers' recipes, single scale; a seed "
    "fixes initial weights and the order of data."
)


def cell_of(config: dict) -> str:
    """The table's row that a run belongs to."""
    return next(label for label, method in METHODS.items() if method == config["method"])


EXPERIMENT = Experiment("freemask-real", "20_freemask_real", "fmseg.supervised", run_configs, build_table, cell_of)

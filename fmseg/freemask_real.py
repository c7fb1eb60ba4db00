"""FreeMask's first column: segmenters trained on real images alone, the baseline of its joint-training table.

Source: FreeMask README, ADE20K table, column "real" (dossier T-B). In miniature: the `ade` draw, where stuff and things
are labelled, and mmsegmentation's segmenters at mini size, on the zoo's backbones and, to see what these are worth,
from scratch. DeepLabV3, which FMWISS uses, is one more row.
"""

from functools import partial

import numpy as np

from fmseg import ceilings, configs, on_disk, real_supervised, zoo
from fmseg.datasets import draw_set
from fmseg.experiment import Experiment, on_real_data, provenance
from fmseg.freemask_layout import run_by_image
from fmseg.labelmaps import LARGEST
from fmseg.second_look import Run, iou, mean_of
from fmseg.settings import Settings
from fmseg.tables import cell, not_run, paper_value, row, table
from fmseg.words import STUFF, THINGS

SOURCE = "FreeMask README"
MISSING = "no record of its runs"
METHODS = {"SegFormer": "segformer", "Segmenter": "segmenter", "Mask2Former": "mask2former", "DeepLabV3": "deeplabv3"}
ROWS = {  # label -> method, backbone
    **{label: (method, configs.ZOO) for label, method in METHODS.items()},
    **{f"{label} from scratch": (method, configs.SCRATCH) for label, method in METHODS.items()},
}
PAPER = {"SegFormer": 45.6, "Segmenter": 46.2, "Mask2Former": 48.7}  # MiT-B2, ViT-S, Swin-T; STATED
GROUPS = {  # class ids of the `ade` draw by column
    "mIoU": list(range(len(THINGS) + len(STUFF))),
    "things": list(range(len(THINGS))),
    "stuff": list(range(len(THINGS), len(THINGS) + len(STUFF))),
}


def why_not(settings: Settings, label: str) -> str | None:
    """Why a row has no runs in this profile; None where it has them."""
    method, backbone = ROWS[label]
    if on_real_data(settings):
        return None if label in PAPER else "the paper has no such row; it is the mini world's"
    return zoo.lacking(f"backbone-{method}") if backbone == configs.ZOO else None


def run_configs(settings: Settings) -> list[dict]:
    """The runs: every row that can be had, at every seed, on the same training split."""
    rows = [ROWS[label] for label in ROWS if why_not(settings, label) is None]
    if on_real_data(settings):
        return [configs.real(settings, method, seed, "ade") for method, _ in rows for seed in settings.get("seeds")]
    images, exposures = settings.get("world.train.ade"), settings.get("exposures.table")
    return [
        configs.supervised(settings, method, seed, "ade", images, exposures, backbone=backbone)
        for method, backbone in rows
        for seed in settings.get("seeds")
    ]


def headline_configs(settings: Settings) -> list[dict]:
    """What `make rerun` trains again: SegFormer, as in FreeMask's other headline tables."""
    return [config for config in run_configs(settings) if cell_of(config) == "SegFormer"]


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
    for label in ROWS:
        mine = [r for r in records if r and cell_of(r["config"]) == label]
        means = {r["config"]["seed"]: group_means(r) for r in mine}
        cells = {}
        for column in GROUPS:
            paper = paper_value(PAPER[label], "STATED", SOURCE) if column == "mIoU" and label in PAPER else None
            values = {seed: m[column] for seed, m in means.items() if column in m}
            alone = means and column not in next(iter(means.values()))
            missing = "the paper has the mean alone" if alone else why_not(settings, label) or MISSING
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
    "Mini models in short runs on the `ade` draw of the mini world, on the zoo's backbones, which never saw a mask, or "
    "from scratch, with peak learning rates found for each; the paper's are SegFormer MiT-B2, Segmenter ViT-S and "
    "Mask2Former Swin-T, pre-trained, on ADE20K, and it has no DeepLabV3. One training split serves all seeds; a seed "
    "fixes initial weights of what is not pre-trained and the order of data."
)


def training_of(settings: Settings) -> str:
    """How the runs are trained, a line a method."""
    lines = {}
    for config in run_configs(settings):
        train = config["train"]
        seen, own = train["steps"] * train["batch_size"], train.get("backbone_lr", 1)
        lines[cell_of(config)] = (
            f"{cell_of(config)}: {seen} images seen, {train['batch_size']} a step; peak learning rate {train['lr']:g}"
            + ("" if own == 1 else f", of the backbone {own * train['lr']:g}")
        )
    return "\n".join(lines.values())


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
    backbone = configs.SCRATCH if config.get("backbone") == configs.SCRATCH else configs.ZOO
    return next(label for label, row in ROWS.items() if row == (config["method"], backbone))


def by_image(settings: Settings, records: list[dict | None]) -> list[Run]:
    """The runs whose records hold counts of images, for the second look at claims."""
    found = [run_by_image(cell_of(r["config"]), r, partial(_means, groups_of(r))) for r in records if r]
    return [run for run in found if run.packed]


def _means(groups: dict[str, list[int]], sums: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    found = iou(sums["images"])
    return {column: mean_of(found, ids) for column, ids in groups.items()}


EXPERIMENT = Experiment(
    "freemask-real", "20_freemask_real", "fmseg.supervised", run_configs, build_table, cell_of, headline_configs,
    by_image=by_image,
)  # fmt: skip

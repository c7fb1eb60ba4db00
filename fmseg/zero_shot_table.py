"""The table `grounded-t2`, Protocol II: segmenters that learn unseen classes from painted pictures."""

from collections.abc import Mapping
from functools import lru_cache, partial

from fmseg import ceilings, protocols
from fmseg import grounded_configs as configs
from fmseg import grounded_paper as paper
from fmseg.experiment import Experiment, on_real_data, provenance
from fmseg.grounded_images import seen_and_unseen
from fmseg.grounded_tables import MISSING
from fmseg.second_look import Run
from fmseg.settings import Settings
from fmseg.tables import cell, not_run, paper_value, row, table
from fmseg.zero_shot import CLIP_DENSE

GROUPS = ("seen", "unseen", "harmonic")
PUBLISHED = ("SPNet", "CaGNet", "Joint", "STRICT", "SIGN", "ZegFormer")
NOT_HERE = "a published number; the method is not built here"
NO_CLASSIFIER = "MaskFormer has no 1x1 convolution as its classifier, for which features could be generated"
AGAINST = {"ZS3-style": "ZS3"}  # our row beside the paper's


IN_MINIATURE = (
    "Real validation pictures of `voc` and `coco`; background does not count. Synthetic sets are labelled by "
    "the head of split 1 at the same seed, which has seen no mask of an unseen class; prompts of Model-E name "
    "a ground, since the paper's are unknown. CLIP dense is not trained: its value is the same for every seed."
)
AT_PAPER_SIZE = (
    "Validation pictures of VOC (15 seen classes, 5 unseen, ZS3's) and COCO (65 and 15); background does not count. "
    "MaskFormer with ResNet-101 by ZegFormer's schedule; the paper tells neither. Synthetic sets are labelled by a "
    "head that has learned the seen classes alone; what prompts of Model-E add is ours, the paper's are unknown. CLIP "
    "dense is not trained: its value is the same for every seed."
)


def method_of(label: str) -> str:
    """What a configuration calls a row."""
    return configs.BASELINES.get(label) or label.split()[0].lower()


def build_table(settings: Settings, records: list[dict | None]) -> dict:
    """The table from its records; pure."""
    columns = [f"{draw} {group}" for draw in paper.DRAWS for group in GROUPS]
    rows = [_row(settings, label, columns, records) for label in (*configs.BASELINES, *configs.SYNTHETIC)]
    for cells in () if on_real_data(settings) else ceilings.grids(settings.get("world.size")):
        rows.append(row(f"ceiling of a {cells}x{cells} grid", _ceiling_cells(settings, cells)))
    for label in PUBLISHED:
        printed = paper.table_2(label)
        rows.append(row(label, {c: not_run(NOT_HERE, _printed(printed, c)) for c in columns}))
    return table(
        "grounded-t2", "A segmenter for classes that nobody labelled", "Grounded Diffusion, Table 2", "% IoU",
        columns, rows, provenance=provenance(T2, settings, records),
        note=AT_PAPER_SIZE if on_real_data(settings) else IN_MINIATURE,
    )  # fmt: skip


def _row(settings: Settings, label: str, columns, records) -> dict:
    method, printed = method_of(label), AGAINST.get(label, label)
    printed = paper.table_2(printed) if printed in paper.PROTOCOL_II else {}
    cells = {}
    for column in columns:
        draw, group = column.split()
        mine = [r for r in records if r and (r["config"]["method"], r["config"]["draw"]) == (method, draw)]
        values = {r["config"]["seed"]: r["result"][group] for r in mine}
        if method == CLIP_DENSE and values:
            values = dict.fromkeys(settings.get("seeds"), values[0])
        said = _printed(printed, column)
        why = NO_CLASSIFIER if on_real_data(settings) and label == "ZS3-style" else MISSING
        cells[column] = cell(values, said) if values else not_run(why, said)
    return row(label, cells)


def _ceiling_cells(settings: Settings, cells: int) -> dict:
    """Both draws' cells of a grid's ceiling, scored as the rows are: background is no answer and does not count."""
    made = {}
    for draw in paper.DRAWS:
        found = ceiling(draw, settings.get("world.val"), settings.get("world.size"), cells)
        made |= {f"{draw} {group}": cell({ceilings.ONCE: value}) for group, value in found.items()}
    return made


@lru_cache(maxsize=16)
def ceiling(draw: str, validation: int, size: int, cells: int) -> dict[str, float]:
    """Seen, unseen and harmonic mean IoU, in percent, of the truth itself after a grid of ``cells`` a side."""
    from fmseg.datasets import get_draw
    from fmseg.metrics import grid_ceiling, seen_unseen

    split = configs.split_of(draw, 1)
    truth = split.evaluation(get_draw(draw).classes)[ceilings.truth(draw, validation, size)]
    found = seen_unseen(grid_ceiling(truth, len(split.classes), cells), **split.groups())
    return {group: 100 * value for group, value in found.items()}


def _printed(printed: Mapping[str, float], column: str) -> dict | None:
    return paper_value(printed[column], "STATED", paper.SOURCE) if column in printed else None


def cell_of(config: dict) -> str:
    """The table's row and draw that a run belongs to."""
    label = next(x for x in (*configs.BASELINES, *configs.SYNTHETIC) if method_of(x) == config["method"])
    return f"{label} on {config['draw']}"


def looks(settings: Settings, records: list[dict | None]) -> list[Run]:
    """The runs whose records hold counts of validation images, for the second look at claims."""
    labels, found = {method_of(x): x for x in (*configs.BASELINES, *configs.SYNTHETIC)}, []
    for record in records:
        if record and "images" in record["result"]:
            config = record["config"]
            cells = partial(seen_and_unseen, protocols.get(config["split"]).groups(), f"{config['draw']} ")
            alike = settings.get("seeds") if config["method"] == CLIP_DENSE else [config["seed"]]
            sets = {"images": f"{config['draw']}, {config['validation']} images of {config['size']} pixels"}
            packed = {"images": record["result"]["images"]}
            found += [Run(labels[config["method"]], seed, packed, sets, cells) for seed in alike]
    return found


def synthetic_alone(settings: Settings) -> list[dict]:
    """What `make rerun` trains again: the rows on synthetic pictures alone."""
    return [config for config in configs.table_2(settings) if config.get("sets") and not config.get("real")]


T2 = Experiment(
    "grounded-t2", "34_protocol_two", "fmseg.zero_shot", configs.table_2, build_table, cell_of,
    headline=synthetic_alone, by_image=looks, real="fmseg.real_zero_shot",
)  # fmt: skip

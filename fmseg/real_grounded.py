"""Runs of Grounded Diffusion's Protocol I at the paper's size: a head trained on line and scored, or DAAM scored.

The counterpart of :mod:`fmseg.grounded_runs` for Stable Diffusion and a detector of COCO, with results of the same
form, so that the same tables are made of them. A head sees one picture a step, so a run has one process; several GPUs
take several runs (`python -m fmseg train TABLE --only seed=0`) and share the test pictures.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from fmseg import distributed, grounded_examples, grounded_online, names
from fmseg import grounded_scores as scored
from fmseg.daam import normalised_heat
from fmseg.evaluation import weights_hash
from fmseg.grounded_pictures import features
from fmseg.grounded_tally import Tally, by_column, packed
from fmseg.grounding import GroundingHead
from fmseg.labelmaps import pack
from fmseg.provenance import canonical_hash
from fmseg.real_grounded_pictures import Models, Part, detector_names, load, test_parts
from fmseg.settings import check_config
from fmseg.words import find

METHODS = ("head", "daam")
KEYS = ("method", "seed", "draw", "seen", "step", "sampling", "oracle", "pictures", "test", "zoo", "train")
OPTIONAL = ("head", "undetected")
CLASSES = {"voc": names.VOC[1:], "coco": names.COCO[1:]}  # without background
CEILINGS = (16, 32, 64)  # cells a side; the head's own grid is that of the latents, 64
TOGETHER = 4  # pictures that the head answers for at a time


def run(
    config: dict[str, Any],
    *,
    checkpoint: str | PathLike | None = None,
    checkpoint_every: int | None = None,
    on_step: Callable[[int, float | None], None] | None = None,
    **_: Any,
) -> dict[str, Any]:
    """Train and score one head, or score DAAM.

    Args:
        config: as of :func:`fmseg.grounded_runs.run`, but ``draw`` is 'voc' or 'coco', the data set whose classes are
            painted; ``pictures`` says how many things a picture shows (``objects``) and whether both may be of one
            class (``repeated``), see :func:`fmseg.grounding_text.draw_classes`; ``oracle`` may say ``swapped``;
            ``zoo`` says what takes the place of the zoo's ``diffusion`` and ``oracle``: folders or names on the hub;
            ``train`` has ``steps``, a picture each, and ``lr``.
        checkpoint, checkpoint_every: a run that was broken off goes on from there and ends with the same bits.
        on_step: called with (steps done, loss in nats, None where the oracle found nothing).

    Returns:
        As :func:`fmseg.grounded_runs.run`, without what is the mini world's alone; ``pictures`` counts those that
        taught, ``passed`` those in which the oracle found nothing.

    Raises:
        ValueError: an unknown or missing key, name or value; models that can't be read. RuntimeError: several
            processes.
    """
    check_config(config, KEYS, OPTIONAL)
    find(config["method"], METHODS, "method")
    if distributed.world().size > 1:
        raise RuntimeError(
            "a head sees one picture a step, which several processes cannot share: start one process a GPU without "
            "torchrun, each with other runs (--only seed=0), on the same FMSEG_PARTS"
        )
    models = load(config["zoo"]["diffusion"], config["zoo"]["oracle"])
    if config["method"] == "daam":
        return _daam(config, models)
    head, how = trained(config, models, checkpoint=checkpoint, checkpoint_every=checkpoint_every, on_step=on_step)
    started = time.perf_counter()
    result = scores_of_head(config, models, head) | {
        "pictures": len(how["losses"]) - how["passed"], "passed": how["passed"]
    }  # fmt: skip
    seconds = how["seconds"] + time.perf_counter() - started
    return {"result": result, "curve": curve(how["losses"]), "seconds": seconds, "model": head}


def trained(config: Mapping, models: Models, **how: Any) -> tuple[GroundingHead, dict[str, Any]]:
    """The head of a configuration, trained on line, and what :func:`fmseg.grounded_online.train` says."""
    head, checkpoint_every = None, how.pop("checkpoint_every", None) or 200
    if config.get("head"):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config["seed"])
            head = GroundingHead.for_unet(models.pipe.unet.config, **config["head"])
    classes = detector_names(config["seen"], models.known)
    return grounded_online.train(
        models.pipe, models.oracle, models.known, classes, recipe(config), head=head,
        checkpoint_every=checkpoint_every, **how,
    )  # fmt: skip


def recipe(config: Mapping) -> grounded_online.Recipe:
    """What a configuration asks of :func:`fmseg.grounded_online.train`."""
    oracle, pictures, sampling = config["oracle"], config["pictures"], config["sampling"]
    return grounded_online.Recipe(
        iterations=config["train"]["steps"], objects=pictures["objects"], steps=sampling["steps"],
        guidance=sampling["train"], step=config["step"], lr=config["train"]["lr"], rule=oracle["rule"],
        least=oracle["score"], undetected=config.get("undetected", "skip"), seed=config["seed"],
        repeated=pictures.get("repeated", False), swapped=oracle.get("swapped", False),
    )  # fmt: skip


def curve(losses: list[float | None], points: int = 20) -> list[list[float]]:
    """[step, mean loss of the pictures since the point before], at most ``points``; without points that taught none."""
    each, made = max(1, -(-len(losses) // points)), []
    for end in range(each, len(losses) + each, each):
        some = [loss for loss in losses[end - each : end] if loss is not None]
        if some:
            made.append([min(end, len(losses)), round(sum(some) / len(some), 6)])
    return made


def scores_of_head(config: Mapping, models: Models, head: GroundingHead) -> dict[str, Any]:
    """What a head says of the test pictures: the parts of a run's result that don't depend on its training."""
    classes = CLASSES[config["draw"]]
    answers, ceilings, examples = Tally(len(classes)), _ceilings(len(classes)), Examples()
    for part, groups in _parts(config, models, classes):
        masks = answer(models, head, part, config["step"]) > 0
        answers.update(masks, part.data, groups)
        for cells, tally in ceilings.items():
            tally.update(scored.through_grid(part.data.masks, int(cells)), part.data, groups)
        examples.add(part, masks, groups)
    found = answers.compute()
    return {
        "miou": scored.mean_score(found), "weights": weights_hash(head)[:16], "scores": {"painted": found},
        "ceiling": {"painted": {cells: tally.compute() for cells, tally in ceilings.items()}},
        "images": {"painted": packed(answers.counts())}, "examples": examples.kept(),
    }  # fmt: skip


@torch.no_grad()
def answer(models: Models, head: GroundingHead, part: Part, step: int) -> Tensor:
    """(N, O, H, W) float32 logits of each picture's named classes, on the CPU; -inf where none is named.

    Args:
        models: Stable Diffusion, whose features are read again from the latents. head: trained, left as it is.
        part: N test pictures. step: of the features, counted from the clean end.
    """
    was_training, device = head.training, models.pipe.unet.device
    head.to(device).eval()
    shown = sorted({k for row in part.data.named.tolist() for k in row if k >= 0})
    text = grounded_online.queries(models.pipe, [part.data.classes[k] for k in shown])[0].to(device)
    made = torch.full(part.data.masks.shape, -torch.inf)
    for start in range(0, len(part.data), TOGETHER):
        rows = range(start, min(start + TOGETHER, len(part.data)))
        read = features(part.pictures.taken(list(rows)), step, models.pipe)
        for offset, row in enumerate(rows):  # one picture at a time: queries of a picture are as many as its names
            asked = [shown.index(k) for k in part.data.named[row].tolist() if k >= 0]
            one = {group: tensor[offset : offset + 1].to(device) for group, tensor in read.items()}
            logits = head(one, text[None, asked], size=part.data.masks.shape[2:])
            made[row, : len(asked)] = logits[0].float().cpu()
    head.train(was_training)
    return made


def _daam(config: Mapping, models: Models) -> dict[str, Any]:
    """DAAM at every threshold; see :func:`fmseg.grounded_scores.swept`."""
    started, classes = time.perf_counter(), CLASSES[config["draw"]]
    swept = {f"{t:g}": Tally(len(classes)) for t in scored.THRESHOLDS}
    fixed, ceilings, examples = f"{scored.THRESHOLD:g}", _ceilings(len(classes)), Examples()
    for part, groups in _parts(config, models, classes):
        size = tuple(part.data.masks.shape[2:])
        heat = torch.from_numpy(part.pictures.heat)
        heat = normalised_heat(heat.flatten(0, 1), size).unflatten(0, heat.shape[:2])
        for threshold, tally in swept.items():
            masks = (heat > float(threshold)) & part.data.present[:, :, None, None]
            tally.update(masks, part.data, groups)
            if threshold == fixed:
                examples.add(part, masks, groups)
        for cells, tally in ceilings.items():
            tally.update(scored.through_grid(part.data.masks, int(cells)), part.data, groups)
    found = {threshold: tally.compute() for threshold, tally in swept.items()}
    chosen = {c: max(found, key=lambda t, c=c: found[t][c]["miou"]) for c in found[fixed]}
    best = {column: found[at][column] | {"threshold": float(at)} for column, at in chosen.items()}
    result = {
        "scores": {"painted": best}, "fixed": {"painted": found[fixed]},
        "curve": {"painted": {t: {c: s["miou"] for c, s in of.items()} for t, of in found.items()}},
        "ceiling": {"painted": {cells: tally.compute() for cells, tally in ceilings.items()}},
        "images": {"painted": packed(by_column(swept, chosen))},
        "fixed images": {"painted": packed(swept[fixed].counts())}, "examples": examples.kept(),
        "miou": scored.mean_score(best), "weights": canonical_hash(best),
    }  # fmt: skip
    return {"result": result, "curve": [], "seconds": time.perf_counter() - started, "model": None}


def _parts(config: Mapping, models: Models, classes) -> Iterator[tuple[Part, list[str]]]:
    for part in test_parts(models, config, classes):
        yield part, scored.columns_of(part.data, config["seen"])


def _ceilings(classes: int) -> dict[str, Tally]:
    return {str(cells): Tally(classes) for cells in CEILINGS}


class Examples:
    """The first pictures of every column that count, small enough for a record; see :mod:`fmseg.grounded_examples`."""

    def __init__(self):
        self._kept: dict[str, list] = {column: [] for column in scored.COLUMNS}

    def add(self, part: Part, masks: Tensor, groups: list[str]) -> None:
        """Pictures as they come, with answers (N, O, H, W) bool."""
        for row in grounded_examples.rows_of(part.data, groups):
            kept = self._kept[groups[row]]
            if len(kept) < grounded_examples.EACH:
                kept.append((part.pictures.asks[row], masks[row], part.data.masks[row]))

    def kept(self) -> dict[str, Any]:
        """As :func:`fmseg.grounded_examples.kept`; packing thins large masks."""
        some = [(column, *one) for column, kept in self._kept.items() for one in kept]
        asks = [
            {"column": column, "names": list(asked.names), "prompt": asked.prompt, "seed": str(asked.seed)}
            for column, asked, *_ in some
        ]
        none = torch.zeros(0, 1, 1, 1, dtype=torch.bool)
        masks, oracle = (torch.stack([one[k] for one in some]) if some else none for k in (2, 3))
        coded = grounded_examples.coded
        return {"asks": asks, "masks": pack(coded(masks)), "oracle": pack(coded(oracle))}

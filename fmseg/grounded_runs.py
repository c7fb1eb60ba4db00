"""Runs of Grounded Diffusion's Protocol I, in the shape of training runs: a head trained and scored, or DAAM scored.

The pictures are painted once and shared (:mod:`fmseg.grounded_pictures`); a seed decides which of them a head sees, its
initial weights and their order. Test pictures are the same for all seeds.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np
from torch import Tensor

from fmseg import grounded_examples, grounded_images, grounded_train, zoo
from fmseg import grounded_scores as scored
from fmseg import grounded_sets as sets
from fmseg.datasets import get_draw
from fmseg.generation import text_to_image
from fmseg.grounded_inverted import inverted, true_triplets
from fmseg.grounded_pictures import KINDS, Ask, Pictures, painted
from fmseg.grounded_sets import Triplets
from fmseg.grounding import GroundingHead
from fmseg.provenance import canonical_hash
from fmseg.settings import check_config
from fmseg.train_config import TrainConfig
from fmseg.words import WEB_THINGS, find, kind_of_novelty

METHODS = ("head", "daam")
KEYS = ("method", "seed", "draw", "seen", "step", "sampling", "oracle", "pictures", "test", "zoo", "train")
OPTIONAL = ("head", "undetected", "average")
LEARN_FROM = ("painted", "inverted, true masks", "inverted, oracle")
MODELS = ("diffusion", "oracle", "judge")
CEILINGS = (8, 16, 32)  # cells a side


def run(
    config: dict[str, Any],
    *,
    checkpoint: str | PathLike | None = None,
    checkpoint_every: int | None = None,
    on_step: Callable[[int, float], None] | None = None,
    **_: Any,
) -> dict[str, Any]:
    """Train and score one head, or score DAAM.

    Args:
        config: ``method`` ('head' or 'daam'), ``seed``, ``draw`` (whose classes the pictures show), ``seen`` (names
            that the head learns), ``step`` (of the features, from the clean end), ``sampling`` (``steps``,
            ``guidance`` of ``train`` and of ``test``), ``oracle`` (``rule``, ``score``, ``area``), ``pictures`` (what
            to learn from, see :func:`training_set`), ``test`` (see :func:`test_sets`), ``zoo`` ({model: hash of its
            weights}), ``train`` (fields of :class:`fmseg.train_config.TrainConfig` but ``seed``); for heads ``head``
            (options of :class:`fmseg.grounding.GroundingHead`), ``undetected``, ``average``.
        checkpoint, checkpoint_every, on_step: as in :func:`fmseg.grounded_train.train`.

    Returns:
        ``result``: ``miou`` (percent, mean over columns), ``weights``, ``scores`` (set of pictures -> column -> what
        :func:`fmseg.grounded_scores.scores` gives), ``ceiling`` (the same of the grids), ``examples`` (of painted
        pictures, see :mod:`fmseg.grounded_examples`), ``images`` (what each painted picture adds to the scores, see
        :mod:`fmseg.grounded_images`), and for DAAM ``curve``, ``fixed`` and ``fixed images``; ``curve`` of the loss;
        ``seconds``; and the trained ``model`` (None for DAAM).

    Raises:
        ValueError: an unknown or missing key, name or value; weights that are not the configuration's.
    """
    check_config(config, KEYS, OPTIONAL)
    find(config["method"], METHODS, "method")
    wrong = [name for name, known in config["zoo"].items() if zoo.weights_hash(name) != known]
    if wrong or not config["zoo"]:
        raise ValueError(f"`zoo` of the configuration does not hold the hashes of the shipped models: {wrong}")
    return _daam(config) if config["method"] == "daam" else _head(config, checkpoint, checkpoint_every, on_step)


def trained(config: Mapping, **how: Any) -> tuple[GroundingHead, dict]:
    """The head of a configuration, trained, and what :func:`fmseg.grounded_train.train` says; see :func:`run`."""
    data = training_set(config)
    options = TrainConfig.from_dict({**config["train"], "seed": config["seed"]})
    head = grounded_train.build(text_to_image().unet.config, config.get("head", {}), config["seed"])
    quirks = {key: config.get(key, default) for key, default in grounded_train.QUIRKS.items()}
    return head, grounded_train.train(head, data, options, **quirks, **how) | {"pictures": len(data)}


def training_set(config: Mapping) -> Triplets:
    """What a head learns from: pictures that name seen classes alone.

    ``pictures`` of the configuration: ``from`` (one of :data:`LEARN_FROM`). Painted: how many of each of
    :data:`fmseg.grounded_pictures.KINDS`, ``of`` ('draw': of all its classes, so that splits share them, and those of
    unseen classes are passed over; 'seen'), ``share`` (of them that a seed sees). Inverted: ``images`` of the draw's
    training split.

    Raises:
        ValueError: an unknown source, or nothing is left to learn from.
    """
    what, seen = config["pictures"], tuple(config["seen"])
    source = find(what["from"], LEARN_FROM, "pictures.from")
    if source:
        return _inverted_set(config, seen, "train", what["images"], LEARN_FROM[source] == LEARN_FROM[1])
    classes = draw_things(config["draw"]) if what["of"] == "draw" else seen
    how = {"steps": config["sampling"]["steps"], "guidance": config["sampling"]["train"]}
    several = [painted(kind, classes, "train", what[kind], **how) for kind in KINDS if what.get(kind)]
    found = [_unread(pictures, classes, config, "oracle", number) for number, pictures in enumerate(several)]
    data = sets.together([sets.only_of(one, seen) for one in found])
    if config.get("undetected", "skip") == "skip":
        data = sets.with_any_mask(data)
    if not len(data):
        raise ValueError("no painted picture shows what was asked for: paint more, or lower `oracle.area`")
    return _read(sets.drawn_by(data, config["seed"], what["share"]), several, config)


@dataclass(frozen=True)
class TestSet:
    """Pictures that count in a score, their triplets, and the group of each.

    Attributes:
        several: the sets of pictures that features are read from, see :func:`fmseg.grounded_sets.read`; none where the
            triplets have them.
    """

    pictures: Pictures
    data: Triplets
    groups: list[str | None]
    several: tuple[Pictures, ...] = ()


def test_sets(config: Mapping) -> dict[str, TestSet]:
    """Test pictures by set; of painted ones those in which the oracle found everything, the others never count.

    ``test`` of the configuration: ``one``, ``two``: numbers of pictures of all classes of the draw; ``unseen``: pairs
    of each group of classes in ``groups``, of which uniform pairs would hold too few; ``novel``: pictures of one thing
    of any word, which the judge decides about; ``real``: real validation pictures of the draw, inverted, with their
    true masks. Sets of 0 are left out. Sets are 'painted', 'novel', 'real, truth', 'real, oracle'.
    """
    test, classes, made = config["test"], draw_things(config["draw"]), {}
    how = {"steps": config["sampling"]["steps"], "guidance": config["sampling"]["test"]}
    asked = [painted(kind, classes, "test", test[kind], **how) for kind in ("one", "two") if test.get(kind)]
    if test.get("unseen"):
        asked += [painted("two", g, f"test with {g[0]}", test["unseen"], **how) for g in test["groups"]]
    if asked:
        data = sets.together([_unread(p, classes, config, "oracle", k) for k, p in enumerate(asked)])
        made["painted"] = _that_count(asked, data, scored.columns_of(data, config["seen"]))
    if test.get("novel"):
        pictures = painted("one", WEB_THINGS, "novel", test["novel"], **how)
        kinds = [kind_of_novelty(a.names[0], tuple(config["seen"])) for a in pictures.asks]
        made["novel"] = _that_count([pictures], _unread(pictures, WEB_THINGS, config, "judge"), kinds)
    if test.get("real"):
        for name, true in (("real, truth", True), ("real, oracle", False)):
            pictures = _inverted(config, "val", test["real"])
            data = _of_inverted(pictures, config, classes, true)
            groups = [_seen_or_not(row, data, config["seen"]) for row in data.named.tolist()]
            made[name] = TestSet(pictures, data, groups)
    return made


def _that_count(several: list[Pictures], data: Triplets, groups: list[str]) -> TestSet:
    rows = scored.complete(data).nonzero()[:, 0].tolist()
    groups = [groups[row] for row in rows]
    return TestSet(_side_by_side(several).taken(rows), data.subset(rows), groups, tuple(several))


def draw_things(draw: str) -> tuple[str, ...]:
    """Names of a draw's classes without its background."""
    return tuple(name for name in get_draw(draw).classes if name != "background")


def _seen_or_not(row: list[int], data: Triplets, seen) -> str | None:
    kinds = {data.classes[k] in seen for k in row if k >= 0}
    return None if len(kinds) > 1 else ("seen" if kinds == {True} else "unseen")


def _unread(pictures: Pictures, classes, config: Mapping, oracle: str, number: int = 0) -> Triplets:
    return sets.unread(pictures, classes, config["oracle"] | {"name": oracle}, number=number)


def _read(data: Triplets, several, config: Mapping) -> Triplets:
    return sets.read(data, several, config["step"], keep=config["step"] == 1)


def _inverted(config: Mapping, split: str, count: int) -> Pictures:
    seed = config["seed"] if split == "train" else 0
    return inverted(config["draw"], split, count, seed=seed, steps=config["sampling"]["steps"])


def _inverted_set(config: Mapping, classes, split: str, count: int, true: bool) -> Triplets:
    data = _of_inverted(_inverted(config, split, count), config, classes, true)
    return sets.with_any_mask(data)


def _of_inverted(pictures: Pictures, config: Mapping, classes, true: bool) -> Triplets:
    """Inverted pictures with true masks, or with those that the oracle finds in them as they were painted again."""
    drawn = get_draw(config["draw"]).classes
    data = true_triplets(pictures, drawn, classes, config["step"], keep=config["step"] == 1)
    if true:
        return data
    shown = [tuple(n for n in a.names if n in classes) for a in pictures.asks]
    rows = [row for row, names in enumerate(shown) if names]
    asks = [Ask(shown[row], "", 0) for row in rows]
    found = sets.seen_by("oracle", pictures)
    known = sets.load_oracle("oracle")[1]
    options = {key: config["oracle"][key] for key in sets.RULES}
    masks, detected = sets.oracle_masks([found[r] for r in rows], asks, known, data.masks.shape[2:], **options)
    return Triplets(data.features, data.named, masks, detected, data.classes, data.text, data.images)


def _side_by_side(several: list[Pictures]) -> Pictures:
    joined = {
        what: np.concatenate([getattr(p, what) for p in several]) for what in ("images", "latents", "heat", "truth")
    }
    return Pictures(tuple(a for p in several for a in p.asks), **joined, key={"sets": [p.key for p in several]})


def _head(config, checkpoint, checkpoint_every, on_step) -> dict[str, Any]:
    head, how = trained(config, checkpoint=checkpoint, checkpoint_every=checkpoint_every, on_step=on_step)
    tests, masks = test_sets(config), {}
    for name, test in tests.items():
        masks[name] = (
            grounded_train.answers(head, _read(test.data, test.several, config) if test.several else test.data) > 0
        )
    found = {name: scored.scores(masks[name], test.data, test.groups) for name, test in tests.items()}
    result = {"miou": scored.mean_score(next(iter(found.values()))), "weights": grounded_train.identity(head)}
    result |= {"scores": found, "pictures": how["pictures"]}
    result["ceiling"] = {name: _ceilings(test) for name, test in tests.items() if test.several}
    if "painted" in tests:
        test = tests["painted"]
        result["examples"] = grounded_examples.kept(test.pictures, test.data, test.groups, masks["painted"])
        result["images"] = {"painted": _counted(masks["painted"], test)}
    if "real, truth" in tests:
        result["against truth"] = _oracle_against_truth(tests["real, truth"], tests["real, oracle"])
    return {"result": result, "curve": how["curve"], "seconds": how["seconds"], "model": head}


def _counted(masks: Tensor, test: TestSet) -> dict:
    return grounded_images.counted(masks, test.data, test.groups, scored.COLUMNS)


def _oracle_against_truth(true: TestSet, by_oracle: TestSet) -> dict:
    """On real test pictures: the oracle's masks in them, as painted again, against the true ones, and the ceilings."""
    found = {"oracle": scored.scores(by_oracle.data.masks, true.data, true.groups)}
    return found | {f"ceiling {cells}": scores for cells, scores in _ceilings(true).items()}


def _ceilings(test: TestSet) -> dict[str, dict]:
    """Cells a side -> scores of the very masks that answers are compared with, after a grid so coarse."""
    grids = {str(cells): scored.through_grid(test.data.masks, cells) for cells in CEILINGS}
    return {cells: scored.scores(masks, test.data, test.groups) for cells, masks in grids.items()}


def _daam(config) -> dict[str, Any]:
    """DAAM learns nothing, so a run of it is its scores on the test pictures, and the grids' ceilings beside them."""
    started, result = time.perf_counter(), {"scores": {}, "fixed": {}, "curve": {}, "ceiling": {}}
    for name, test in test_sets(config).items():
        if not test.several:
            raise ValueError("`test.real` has no heat maps for DAAM: real pictures are not painted from a prompt")
        found = scored.swept(test.pictures, test.data, test.groups)
        result["scores"][name], result["fixed"][name] = found["best"], found["fixed"]
        result["curve"][name], result["ceiling"][name] = found["curve"], _ceilings(test)
        if name == "painted":
            fixed = scored.daam_masks(test.pictures, test.data, scored.THRESHOLD)
            result["examples"] = grounded_examples.kept(test.pictures, test.data, test.groups, fixed)
            best = fixed.clone()
            for group, scores in found["best"].items():  # each at its own threshold
                rows = [row for row, own in enumerate(test.groups) if own == group]
                best[rows] = scored.daam_masks(test.pictures, test.data, scores["threshold"])[rows]
            result["images"], result["fixed images"] = ({name: _counted(m, test)} for m in (best, fixed))
    result["miou"] = scored.mean_score(next(iter(result["scores"].values())))
    result["weights"] = canonical_hash(result["scores"])
    return {"result": result, "curve": [], "seconds": time.perf_counter() - started, "model": None}

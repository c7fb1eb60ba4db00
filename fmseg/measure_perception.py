"""How good are the zoo's CLIP, its self-supervised transformers and its oracles? Numbers on drawn pictures, in percent.

Every function draws its own pictures from a claim seed and returns named values; :mod:`fmseg.zoo_measures` makes runs
of them.
"""

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

from fmseg import zoo
from fmseg.attention import last_attention, load_vit, seed_attention
from fmseg.clip import Clip, load_clip, text_embeddings, zero_shot_scores
from fmseg.datasets import Drawn, draw_set
from fmseg.dense_clip import dense_features, dilated, scores
from fmseg.metrics import Confusion, grid_ceiling, mean_iou
from fmseg.oracle import load_oracle, probabilities
from fmseg.words import STUFF, THINGS, WEB_THINGS

TRUTH = "truth"  # in place of a transformer's name: the true masks


def fresh(draw: str, seed: int, count: int, size: int = 64) -> Drawn:
    """Pictures of a draw that nothing was trained on: the seed's own training split where it has one, else its own
    stretch of the split `val`, far behind the validation pictures."""
    if draw in ("voc", "coco"):
        return draw_set(draw, "train", count, seed=seed, size=size)
    return draw_set(draw, "val", count, size=size, start=10_000 * (seed + 1))


def recall_at_k(found: ndarray, present: ndarray) -> ndarray:
    """(N,) share of a picture's k classes that are among its k best-scored ones; NaN for pictures without any.

    Args:
        found: (N, C) scores. present: (N, C) bool.
    """
    recalls = np.full(len(found), np.nan)
    for i, (row, there) in enumerate(zip(found, present, strict=True)):
        k = int(there.sum())
        if k:
            recalls[i] = there[np.argsort(-row, kind="stable")[:k]].mean()
    return recalls


def clip_recall(seed: int, draw: str, count: int) -> dict[str, float]:
    """Zero-shot recall@k of the zoo's CLIP: 40 ways on `voc` and `coco`, 96 on `web`; single things apart."""
    clip, drawn = load_clip(zoo.folder("clip")), fresh(draw, seed, count)
    names = WEB_THINGS if draw == "web" else THINGS
    present = np.stack([drawn.present[:, drawn.classes.index(n)] if n in drawn.classes else np.zeros(len(drawn), bool)
                        for n in names], 1)  # fmt: skip
    found = zero_shot_scores(clip, drawn.images, text_embeddings(clip, names)).numpy()
    recall, single = recall_at_k(found, present), present.sum(1) == 1
    return {"all": 100 * np.nanmean(recall), "single": 100 * recall[single].mean()}


def dense_scores(clip: Clip, images: ndarray, text: Tensor, by: int = 1, factor: int = 1, batch: int = 32) -> Tensor:
    """(N, C, h, w) dense scores of texts, :func:`fmseg.dense_clip.scores`, of pictures enlarged ``factor`` times."""
    model, parts = dilated(clip.model.visual, by) if by > 1 else clip.model.visual, []
    with torch.no_grad():
        for k in range(0, len(images), batch):
            x = clip.preprocess(images[k : k + batch])
            if factor > 1:
                x = torch.nn.functional.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)
            parts.append(scores(dense_features(model, x), text))
    return torch.cat(parts)


def dense_labels(maps: Tensor, present: ndarray, side: int) -> ndarray:
    """(N, side, side) uint8: the best of a picture's present classes and the grounds, which count as 0.

    Args:
        maps: (N, C + G, h, w) scores of C classes and G grounds; class c is label c + 1.
        present: (N, C) bool.
    """
    maps = torch.nn.functional.interpolate(maps, (side, side), mode="bilinear", align_corners=False)
    count = present.shape[1]
    maps[:, :count][~torch.from_numpy(present)] = -2.0
    best = maps.argmax(1).numpy()
    return np.where(best < count, best + 1, 0).astype(np.uint8)


def present_iou(found: ndarray, truth: ndarray, classes: int) -> float:
    """mIoU in percent over all classes but background that the truth holds."""
    confusion = Confusion(classes)
    confusion.update(torch.from_numpy(found), torch.from_numpy(truth))
    return 100 * mean_iou(confusion.compute()[1:])


def clip_dense(seed: int, draw: str, count: int) -> dict[str, float]:
    """mIoU of maps of the classes known to be present, against the eight grounds: CLIP on several grids, a constant
    map (everything is the picture's first class), the oracle with the same knowledge, and the grids' ceilings."""
    clip, drawn = load_clip(zoo.folder("clip")), fresh(draw, seed, count)
    names, side, classes = drawn.classes[1:], drawn.images.shape[1], drawn.num_classes
    text = text_embeddings(clip, [*names, *STUFF])
    present = drawn.present[:, 1:]
    out = {}
    for label, options in {"8x8": {}, "16x16 dilated": {"by": 2}, "16x16 enlarged": {"factor": 2}}.items():
        found = dense_labels(dense_scores(clip, drawn.images, text, **options), present, side)
        out[label] = present_iou(found, drawn.labels, classes)
    constant = np.broadcast_to((present.argmax(1) + 1).astype(np.uint8)[:, None, None], drawn.labels.shape)
    out["constant"] = present_iou(np.ascontiguousarray(constant), drawn.labels, classes)
    model, known = load_oracle()
    rows = [known.index(name) for name in (*names, *STUFF)]
    oracle = torch.from_numpy(probabilities(model, drawn.images)[:, rows])
    out["oracle"] = present_iou(dense_labels(oracle, present, side), drawn.labels, classes)
    out["best by constant"] = 100 * max(value for key, value in out.items() if key[0].isdigit()) / out["constant"]
    for cells in (8, 16):
        out[f"ceiling {cells}x{cells}"] = 100 * mean_iou(grid_ceiling(drawn.labels, classes, cells)[1:])
    return out


def best_threshold_iou(score: ndarray, mask: ndarray) -> float:
    """The largest IoU with a mask that thresholding a map can reach, as a fraction."""
    order = np.argsort(-score.ravel(), kind="stable")
    inside = np.cumsum(mask.ravel()[order])
    size = np.arange(1, mask.size + 1)
    return float((inside / (mask.sum() + size - inside)).max())


def seeds_inside(drawn: Drawn, cells: int, rng: np.random.Generator) -> list[tuple[int, int, int]]:
    """(picture, instance, patch) for visible things that fill the centre of a patch; one random patch of each."""
    step, chosen = drawn.images.shape[1] // cells, []
    for i, instance in enumerate(drawn.instances):
        centres = instance[step // 2 :: step, step // 2 :: step]
        for k in range(1, len(drawn.things[i]) + 1):
            inside = np.flatnonzero(centres.ravel() == k)
            if (instance == k).sum() >= 12 and len(inside):
                chosen.append((i, k, int(rng.choice(inside))))
    return chosen


def seed_maps(name: str, drawn: Drawn, seeds: list[tuple[int, int, int]]) -> ndarray:
    """(S, 64, 64) float32: where each seed attends, heads averaged, bilinearly enlarged."""
    vit, cells = load_vit(zoo.folder(name)), drawn.images.shape[1] // 4
    maps = []
    with torch.no_grad():
        for start in range(0, len(drawn), 16):
            attention = last_attention(vit.model, vit.preprocess(drawn.images[start : start + 16]))
            for i, _, patch in (s for s in seeds if start <= s[0] < start + 16):
                rows = seed_attention(attention[i - start : i - start + 1], torch.tensor([[patch]]), (cells, cells))
                maps.append(rows.mean(1)[0])
    whole = torch.nn.functional.interpolate(
        torch.stack(maps), drawn.images.shape[1:3], mode="bilinear", align_corners=False
    )
    return whole[:, 0].numpy()


def attention_iou(seed: int, name: str, count: int) -> dict[str, float]:
    """How well the attention of a patch inside an object covers it, at each map's best threshold; beside it what the
    distance to the patch alone would reach."""
    drawn = fresh("voc", seed, count)
    cells = drawn.images.shape[1] // 4
    seeds = seeds_inside(drawn, cells, np.random.default_rng(seed))
    maps = seed_maps(name, drawn, seeds)
    at = (np.arange(64) + 0.5) / 4 - 0.5
    found, near = [], []
    for (i, k, patch), score in zip(seeds, maps, strict=True):
        mask = drawn.instances[i] == k
        found.append(best_threshold_iou(score, mask))
        distance = (at[:, None] - patch // cells) ** 2 + (at[None, :] - patch % cells) ** 2
        near.append(best_threshold_iou(-distance, mask))
    return {"attention": 100 * float(np.mean(found)), "distance alone": 100 * float(np.mean(near))}


def thresholded(score: ndarray, share: float = 0.15) -> ndarray:
    """(S, H, W) bool: the ``share`` of each map's pixels with the largest values."""
    flat = score.reshape(len(score), -1)
    return (flat >= np.quantile(flat, 1 - share, axis=1, keepdims=True)).reshape(score.shape)


def object_masks(name: str, drawn: Drawn, seeds: list[tuple[int, int, int]]) -> ndarray:
    """(S, 64, 64) bool: a mask a seed, from a transformer's attention, or (:data:`TRUTH`) the object's own pixels."""
    if name == TRUTH:
        return np.stack([drawn.instances[i] == k for i, k, _ in seeds])
    return thresholded(seed_maps(name, drawn, seeds))


def mask_probe(seed: int, name: str, count: int) -> dict[str, float]:
    """What a linear probe reads off a mask alone: the shape of the thing, and (it should not) its pattern.

    The mask is cut out round its centre and scaled; the probe is fitted on half of the objects, judged on the rest.
    Read off the true masks, it says what a probe like this can find; a class that is always guessed, how little.
    """
    from sklearn.linear_model import LogisticRegression

    drawn = fresh("voc", seed, count)
    seeds = seeds_inside(drawn, 16, np.random.default_rng(seed))
    masks = np.stack([centred(m) for m in object_masks(name, drawn, seeds)])
    names = [drawn.things[i][k - 1].split() for i, k, _ in seeds]
    half, out = len(seeds) // 2, {}
    for part, what in enumerate(("pattern", "shape")):
        words = np.array([n[part] for n in names])
        probe = LogisticRegression(max_iter=300, C=0.05).fit(masks[:half], words[:half])
        out[what] = 100 * float((probe.predict(masks[half:]) == words[half:]).mean())
        out[f"{what}, most frequent"] = 100 * float(max(np.mean(words[half:] == w) for w in set(words)))
    return out


def centred(mask: ndarray, side: int = 16) -> ndarray:
    """(side * side,) float32 in [0, 1]: a bool mask cut out round its centre and scaled by its area, rows joined."""
    from PIL import Image

    rows, columns = np.nonzero(mask)
    centre, reach = (rows.mean(), columns.mean()), 2.2 * np.sqrt(mask.sum() / np.pi)
    box = (centre[1] - reach, centre[0] - reach, centre[1] + reach, centre[0] + reach)
    picture = Image.fromarray(mask.astype(np.uint8) * 255)
    cut = picture.transform((side, side), Image.Transform.EXTENT, box, Image.Resampling.BILINEAR)
    return np.asarray(cut, dtype=np.float32).ravel() / 255


def oracle_error(seed: int, name: str, draw: str, count: int) -> dict[str, float]:
    """mIoU of the oracle or the judge on real pictures of a draw: its own error, for every table that trusts it."""
    drawn = fresh(draw, seed, count)
    model, known = load_oracle(name)
    found = probabilities(model, drawn.images).argmax(1)
    to_draw = np.zeros(len(known), dtype=np.uint8)
    for k, word in enumerate(known):
        to_draw[k] = drawn.classes.index(word) if word in drawn.classes else (0 if drawn.draw.has_background else 255)
    confusion = Confusion(drawn.num_classes)
    predicted = to_draw[found]
    predicted[predicted == 255] = 0
    confusion.update(torch.from_numpy(predicted), torch.from_numpy(drawn.labels))
    return {"mIoU": 100 * mean_iou(confusion.compute())}

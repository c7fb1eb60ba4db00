"""Co-segmentation: CLIP says roughly where a class is, a self-supervised transformer's attention fills in the object.

Yu et al. 2023, "Foundation Model Drives Weakly Incremental Learning for Semantic Segmentation" (FMWISS), eqs. 1-5.
Nothing is trained. Eqs. 1-3 are :func:`fmseg.dense_clip.dense_features` and :func:`fmseg.dense_clip.scores`, the
attention is that of :func:`fmseg.attention.last_attention`; from there::

    masks = co_segment(scores(dense_features(clip, images), text), present, last_attention(vit, images), generator)

No official code is published. What the paper leaves open is an argument here, and its default says where it is from.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fmseg.dense_clip import SHARPNESS

__all__ = ["CoSegmentation", "KEEP", "SEEDS", "binarise", "co_segment", "draw_seeds", "initial_mask", "mean_attention"]

SEEDS = 10  # N, a class and image
KEEP = 0.3  # share of locations kept, see `binarise`


@dataclass(frozen=True)
class CoSegmentation:
    """What :func:`co_segment` found, step by step; all on one grid (h, w), nothing for classes that are absent.

    Attributes:
        clip: (B, C, h, w) bool, eq. 3 made binary.
        seeds: (B, C, N) int64 positions row by row in [0, h*w), -1 for an absent class; None with ``use="clip"``.
        attention: (B, C, h, w) float, eq. 4 before it is made binary, 0 for an absent class; None likewise.
        guided: (B, C, h, w) bool, eq. 4; None likewise.
        mask: (B, C, h, w) bool, the result: eq. 5, or one of its two parts.
    """

    clip: Tensor
    seeds: Tensor | None
    attention: Tensor | None
    guided: Tensor | None
    mask: Tensor


@torch.no_grad()
def co_segment(
    scores: Tensor,
    present: Tensor,
    attention: Tensor | None = None,
    generator: torch.Generator | None = None,
    *,
    use: str = "union",
    rule: str = "minmax",
    threshold: float = 0.5,
    over: str = "present",
    background: Tensor | None = None,
    seeds: int = SEEDS,
    keep: float | None = None,
    mass: float | None = None,
    num_prefix: int = 1,
    attention_grid: tuple[int, int] | None = None,
    grid: str | None = None,
) -> CoSegmentation:
    r"""Masks of the classes that an image's labels name.

    .. math:: M^c = M^c_{\mathrm{init}} \cup M^c_{\mathrm{seeds}}, \quad M^c_{\mathrm{seeds}} = \Big[
              \frac1N \sum_{p=1}^N \frac1n \sum_{m=1}^n S_m(x)_{(i_p, j_p)} \Big]_{\mathrm{binary}}

    (FMWISS eqs. 3-5.) Masks of classes may overlap. No gradients. Images do not influence each other. With a CPU
    generator the first images of a batch draw the same seeds whatever follows them.

    Args:
        scores: (B, C, h, w) float, cosines as of :func:`fmseg.dense_clip.scores`.
        present: (B, C) bool, the image-level labels. Absent classes get empty masks; so do all classes of an image
            without any, which is no error.
        attention: (B, heads, T, T) float, as of :func:`fmseg.attention.last_attention`; not needed for ``use="clip"``.
        generator: of the seeds' random draw; not needed for ``use="clip"``. Draw again at each training step.
        use: "union" (eq. 5), "clip" (its first part alone) or "seeds" (its second part alone).
        rule, threshold, over, background: see :func:`initial_mask`.
        seeds: N, see :func:`draw_seeds`.
        keep, mass: see :func:`binarise`; with neither, ``keep`` is 0.3.
        num_prefix: tokens before the patches.
        attention_grid: (h', w') of the patches, T = num_prefix + h' * w'; by default that of ``scores``.
        grid: on whose grid the masks shall lie where the two differ. "attention": scores are resized (bilinear) before
            all else. "scores": seeds are drawn on the grid of ``scores``, a seed's query is the patch that its centre
            lies in, and the attention is resized (bilinear) before it is made binary. ``background`` goes with scores.

    Returns:
        The masks and what led to them.

    Raises:
        TypeError, ValueError: shapes, dtypes or options do not fit, or scores or attention are not finite.
    """
    _check_scores(scores, present)
    if use not in ("union", "clip", "seeds"):
        raise ValueError(f"`use` must be 'union', 'clip' or 'seeds'; got {use!r}")
    own = tuple(scores.shape[2:])
    patches = own if attention_grid is None else tuple(attention_grid)
    if grid not in (None, "attention", "scores") or (grid is None and patches != own):
        raise ValueError(
            f"`grid` must be 'attention' or 'scores' where the two differ, as {patches} and {own}: the grid on which "
            f"the masks shall lie; got {grid!r}"
        )
    if grid == "attention":
        scores, background = _resized(scores, patches), None if background is None else _resized(background, patches)
    clip = initial_mask(scores, present, rule=rule, threshold=threshold, over=over, background=background)
    if use == "clip":
        return CoSegmentation(clip, None, None, None, clip)
    if attention is None or generator is None:
        raise ValueError(f"`attention` and `generator` must be given for use={use!r}; use='clip' does without")
    drawn = draw_seeds(clip, scores, present, seeds, generator)
    queries = _moved(drawn, tuple(scores.shape[2:]), patches)
    maps = _resized(mean_attention(attention, queries, patches, num_prefix), tuple(scores.shape[2:]))
    guided = binarise(maps, keep=keep, mass=mass) & present[:, :, None, None]
    return CoSegmentation(clip, drawn, maps, guided, {"union": clip | guided, "seeds": guided}[use])


def initial_mask(
    scores: Tensor,
    present: Tensor,
    *,
    rule: str = "minmax",
    threshold: float = 0.5,
    over: str = "present",
    background: Tensor | None = None,
) -> Tensor:
    r"""The category scores of FMWISS eq. 3, made binary: where CLIP sees a class that is in the image.

    .. math:: \text{minmax:}\; \frac{M^c_i - \min_j M^c_j}{\max_j M^c_j - \min_j M^c_j} > t \;\text{and}\;
              M^c_i = \max_{k \in R} M^k_i, \qquad
              \text{softmax:}\; \frac{\exp 100 M^c_i}{\sum_{k \in R} \exp 100 M^k_i} > t

    The paper does not say how; "minmax" is this project's choice (no text for the background needed), "softmax" reads
    MaskCLIP's own probabilities. R are the rivals. Of equal highest scores all win, so that the order of classes does
    not matter. A class whose score is the same everywhere has no foreground under "minmax". Under "softmax" a class
    without any rival covers the image.

    Args:
        scores: (B, C, h, w) float M, cosines.
        present: (B, C) bool.
        rule: "minmax" or "softmax".
        threshold: t in [0, 1].
        over: R: "present", the classes present in the image; or "all", all C, so that classes known to be absent
            (say, of earlier steps) act as distractors.
        background: (B, K, h, w) float, scores of texts for what is no class ("sky", "grass"); they join R.

    Returns:
        (B, C, h, w) bool; False for an absent class.

    Raises:
        TypeError, ValueError: shapes, dtypes or options do not fit, or scores are not finite.
    """
    _check_scores(scores, present)
    _check_share("threshold", threshold)
    for name, value, known in (("rule", rule, ("minmax", "softmax")), ("over", over, ("present", "all"))):
        if value not in known:
            raise ValueError(f"`{name}` must be {known[0]!r} or {known[1]!r}; got {value!r}")
    _check_background(background, scores)
    here = present[:, :, None, None]
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))  # 100 times a half-precision cosine is coarse
    rivals = scores if over == "all" else scores.masked_fill(~here, -math.inf)
    rivals = rivals if background is None else torch.cat([rivals, background.to(rivals.dtype)], 1)
    if rule == "softmax":  # without any rival 0/0, but then no class is present either
        return ((SHARPNESS * rivals).softmax(1)[:, : scores.shape[1]] > threshold) & here
    low, high = scores.amin((2, 3), keepdim=True), scores.amax((2, 3), keepdim=True)
    return (scores - low > threshold * (high - low)) & (scores >= rivals.amax(1, keepdim=True)) & here


def draw_seeds(
    foreground: Tensor, scores: Tensor, present: Tensor, count: int, generator: torch.Generator
) -> Tensor:  # fmt: skip
    """N query positions for each class present in an image, uniform over its foreground (FMWISS eq. 4).

    Without replacement where the foreground has N positions or more, with replacement where it has fewer. Where it is
    empty, the N highest scores, equal ones row by row, from the highest again if the grid has fewer than N positions.

    Each (image, class) has random numbers of its own, present or not: which other classes are present changes nothing
    for it. So permuted images or classes draw other seeds of the same distribution. All positions of a full
    foreground, N = h*w, are every position once. On a CPU an image's numbers depend on its place in the batch, not on
    the batch's size.

    Args:
        foreground: (B, C, h, w) bool, as of :func:`initial_mask`.
        scores: (B, C, h, w) float, looked at where the foreground is empty.
        present: (B, C) bool.
        count: N >= 1.
        generator: of the draw, on any device.

    Returns:
        (B, C, N) int64: position i * w + j of row i, column j; -1 for an absent class.

    Raises:
        TypeError, ValueError: shapes or dtypes do not fit, scores are not finite, or N < 1.
    """
    _check_scores(scores, present)
    if foreground.dtype != torch.bool or foreground.shape != scores.shape:
        raise ValueError(
            f"`foreground` must be bool of the shape of `scores`, {tuple(scores.shape)}; got {foreground.dtype} of "
            f"{tuple(foreground.shape)}"
        )
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ValueError(f"`seeds` must be an integer >= 1, the number a class; got {count!r}")
    if not isinstance(generator, torch.Generator):
        raise TypeError(f"`generator` must be a torch.Generator; got {type(generator).__name__}")
    batch, classes, height, width = scores.shape
    places = height * width
    noise = torch.rand(
        batch, classes, places + count, generator=generator, device=generator.device, dtype=torch.float64
    ).to(scores.device)[present]  # (P, places + N) for the P pairs of an image and a class present in it
    inside, by_score = foreground.flatten(2)[present], scores.flatten(2)[present].double()
    found = inside.sum(1, keepdim=True)
    keys = torch.where(inside, noise[:, :places], -1.0)
    order = torch.where(found > 0, keys, by_score).argsort(dim=1, descending=True, stable=True)  # shuffled foreground
    in_turn = torch.arange(count, device=scores.device) % places
    again = (noise[:, places:] * found).long()  # of double precision: never rounded up to `found`
    rank = torch.where((found >= count) | (found == 0), in_turn, again)
    seeds = torch.full((batch, classes, count), -1, device=scores.device)
    seeds[present] = order.gather(1, rank)
    return seeds


def mean_attention(attention: Tensor, seeds: Tensor, grid: tuple[int, int], num_prefix: int = 1) -> Tensor:
    r"""Where the seeds of a class look, on average over heads and seeds: FMWISS eq. 4 inside its brackets.

    .. math:: \frac1N \sum_{p=1}^N \frac1n \sum_{m=1}^n S_m(x)_{(i_p, j_p)}

    The mean over heads and seeds of :func:`fmseg.attention.seed_attention`, but rows are added up as they are read:
    beyond ``attention``, if it is contiguous, and an index a row, no memory is used but the result's.

    Args:
        attention: (B, heads, T, T) float S, the prefix (class token, registers) first.
        seeds: (B, C, N) int64 positions in [0, h*w); a class without seeds has -1 throughout.
        grid: (h, w), with T = num_prefix + h*w.
        num_prefix: tokens before the patches.

    Returns:
        (B, C, h, w), dtype of ``attention``; a map sums to one less what its seeds give to the prefix; 0 for a class
        without seeds.

    Raises:
        ValueError: shapes or dtypes do not fit, a seed lies outside the grid, or the attention is not finite.
    """
    height, width = grid
    _check_attention(attention, seeds, height, width, num_prefix)
    heads, tokens = attention.shape[1:3]
    image, index = (seeds[:, :, 0] >= 0).nonzero(as_tuple=True)
    block = (image[:, None] * heads + torch.arange(heads, device=seeds.device)) * tokens + num_prefix  # (P, heads)
    rows = (block[:, :, None] + seeds[image, index][:, None]).flatten(1)  # (P, heads * N) of the B * heads * T rows
    found = F.embedding_bag(rows, attention.reshape(-1, tokens), mode="mean")
    if not bool(found.isfinite().all()):
        raise ValueError("`attention` must be finite; found nan or inf in rows of seeds. Are the images normalised?")
    maps = attention.new_zeros(*seeds.shape[:2], height * width)
    maps[image, index] = found[:, num_prefix:]
    return maps.unflatten(2, (height, width))


def binarise(maps: Tensor, *, keep: float | None = None, mass: float | None = None) -> Tensor:
    """The highest locations of each map: FMWISS eq. 4's brackets with the subscript "binary".

    ``keep``: a share of the *locations*, ``keep * h * w`` rounded (half up). The paper's text, as far as it could be
    recovered, keeps "the top K %" with K = 70. Read as locations this covers 70 % of the image, which no compact object
    does; so the default reads K as the percentile above which locations are kept, that is 0.3. Any result made with
    it should say so; 0.7 is the other reading.
    ``mass``: a share of the *attention*: the fewest locations that hold at least this share of a map's sum, as in
    DINO's visualisation (visualize_attention.py, ``--threshold``), there head by head. ``mass`` = 1 are all locations
    with attention above 0.
    A share of 0 is an empty mask, ``keep`` = 1 a full one. Of equal values the earlier, row by row, is kept first, so
    the number kept does not depend on ties; a constant map keeps its first rows.

    Args:
        maps: (..., h, w) float, one map each; for ``mass`` >= 0. An all-zero map with ``mass`` gives an empty mask.
        keep, mass: shares in [0, 1], at most one of them; with neither, ``keep`` is 0.3.

    Returns:
        (..., h, w) bool.

    Raises:
        ValueError: both shares are given or one is out of [0, 1]; maps are not finite, or negative with ``mass``.
    """
    if keep is not None and mass is not None:
        raise ValueError(f"`keep` and `mass` exclude each other; got {keep!r} and {mass!r}. Give one of them")
    keep = KEEP if keep is None and mass is None else keep
    _check_share("mass" if keep is None else "keep", mass if keep is None else keep)
    if maps.ndim < 2 or not maps.is_floating_point() or not bool(maps.isfinite().all()):
        raise ValueError(f"`maps` must be (..., h, w) finite floats; got {tuple(maps.shape)} of {maps.dtype}")
    values, order = maps.flatten(-2).sort(dim=-1, descending=True, stable=True)
    if keep is not None:
        kept = torch.arange(values.shape[-1], device=maps.device) < math.floor(keep * values.shape[-1] + 0.5)
        kept = kept.expand_as(values)
    else:
        if bool((values < 0).any()):
            raise ValueError(f"`maps` must be >= 0 for `mass`, a share of their sum; found {float(values.min()):.3g}")
        total = values.double().cumsum(-1)
        before = F.pad(total, (1, -1))  # what the locations ahead of each hold
        kept = before < mass * total[..., -1:] if mass < 1 else values > 0  # tiny values are lost in the sum
    return torch.zeros_like(kept).scatter(-1, order, kept).unflatten(-1, maps.shape[-2:])


def _moved(seeds: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Positions on another grid: those of the cells that the old cells' centres lie in. -1 stays."""
    if old == new:
        return seeds
    row, column = seeds // old[1], seeds % old[1]
    row, column = (((2 * at + 1) * n) // (2 * o) for at, o, n in zip((row, column), old, new, strict=True))
    return torch.where(seeds < 0, seeds, row * new[1] + column)


def _resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return maps if tuple(maps.shape[2:]) == size else F.interpolate(maps, size, mode="bilinear", align_corners=False)


def _check_scores(scores: Tensor, present: Tensor) -> None:
    if scores.ndim != 4 or not scores.is_floating_point() or 0 in scores.shape[1:]:
        raise ValueError(
            f"`scores` must be (B, C, h, w) floats, one map a class; got {tuple(scores.shape)} of {scores.dtype}. See "
            "fmseg.dense_clip.scores"
        )
    if present.dtype != torch.bool:
        raise TypeError(f"`present` must be bool, True = the image's labels name the class; got {present.dtype}")
    if present.shape != scores.shape[:2]:
        raise ValueError(f"`present` must be (B, C) = {tuple(scores.shape[:2])}; got {tuple(present.shape)}")
    _check_finite("scores", scores)


def _check_background(background: Tensor | None, scores: Tensor) -> None:
    if background is None:
        return
    expected = (len(scores), *scores.shape[2:])
    if background.ndim != 4 or (len(background), *background.shape[2:]) != expected:
        raise ValueError(
            f"`background` must be (B, K, h, w) on the grid of `scores`, {tuple(scores.shape)}; got "
            f"{tuple(background.shape)}. Score its texts on the same features"
        )
    _check_finite("background", background)


def _check_attention(attention: Tensor, seeds: Tensor, height: int, width: int, num_prefix: int) -> None:
    tokens = num_prefix + height * width
    if attention.ndim != 4 or attention.shape[2:] != (tokens, tokens) or not attention.is_floating_point():
        raise ValueError(
            f"`attention` must be (B, heads, T, T) floats with T = {num_prefix} + {height} * {width}; got "
            f"{tuple(attention.shape)} of {attention.dtype}. Give its `attention_grid` and `num_prefix`"
        )
    if seeds.ndim != 3 or len(seeds) != len(attention) or seeds.dtype != torch.int64 or not seeds.shape[2]:
        raise ValueError(
            f"`seeds` must be (B, C, N) int64 with B = {len(attention)} and N >= 1; got {tuple(seeds.shape)} of "
            f"{seeds.dtype}"
        )
    absent = seeds[:, :, :1] < 0
    if bool(((seeds < -1) | (seeds >= height * width) | ((seeds < 0) != absent)).any()):
        raise ValueError(
            f"`seeds` must be in [0, {height * width}), or -1 for all of a class; found {int(seeds.min())} to "
            f"{int(seeds.max())}. Row i, column j is i * {width} + j"
        )


def _check_share(name: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"`{name}` must be a share in [0, 1]; got {value!r}. 70 % is 0.7")


def _check_finite(name: str, values: Tensor) -> None:
    bad = ~values.isfinite()
    if bool(bad.any()):
        at = bad.nonzero()[0].tolist()
        raise ValueError(
            f"`{name}` must be finite; found {float(values[tuple(at)])} at {at}. Does the model get normalised images?"
        )

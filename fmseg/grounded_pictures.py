"""What Grounded Diffusion paints: pictures of one or two named classes, with what the U-Net had before each step.

A picture's latents before every step of the sampler are kept, so that the features of any step are one further call of
the U-Net, the very call that painted. Heat maps of the text cross-attention, summed over steps, are kept for DAAM.
Pictures are painted once and shared by all runs (:mod:`fmseg.parts`).
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

from fmseg import parts, zoo
from fmseg.daam import AttentionRecorder, heat_maps
from fmseg.generation import GROUP, noise_shape, text_to_image
from fmseg.grounding_text import class_queries, token_positions
from fmseg.stable_diffusion import decode, encode_prompts, generate_latents, sample_noise
from fmseg.taps import GROUPS, Taps, guidance_halves
from fmseg.words import STUFF, article, find

PART = 2 * GROUP  # pictures a part; whole parts are painted, so that a larger set begins with a smaller one
KINDS = ("one", "two", "any two")
MOST = 2  # classes in a prompt


@dataclass(frozen=True)
class Ask:
    """A picture to be painted: the classes it shall show, the text, the seed of its noise in [0, 2**64)."""

    names: tuple[str, ...]
    prompt: str
    seed: int


def prompt_of(names: Sequence[str], end: str = "") -> str:
    """'a photo of a striped star and a plain disc', in the zoo's words; ``end`` may add where."""
    return f"a photo of {' and '.join(article(name) for name in names)}{end}"


def number_of(*words) -> int:
    """A whole number in [0, 2**64) from words and numbers; other words, another stream of random numbers."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, words)).encode()).digest()[:8], "big")


def ask(kind: str, classes: Sequence[str], stream: str, index: int, rich: bool = False) -> Ask:
    """The index-th picture of an endless set.

    Args:
        kind: 'one': classes in turn, one a picture; 'two': two different ones, drawn uniformly; 'any two': drawn one by
            one, as officially, so that both may be the same.
        classes: names.
        stream: which set; others have other pairs and noise.
        index: >= 0.
        rich: the prompt says on which ground, as captions do: the "complicated prompts" of Model-E, whose own are
            unknown (dossier 5, item 19).

    Raises:
        ValueError: unknown kind, or too few classes.
    """
    find(kind, KINDS, "kind")
    least = 2 if kind == "two" else 1
    if len(classes) < least:
        raise ValueError(f"`classes` must be at least {least} for kind {kind!r}; got {list(classes)}")
    rng = np.random.default_rng(number_of(stream, kind, index))
    if kind == "one":
        names = (classes[index % len(classes)],)
    else:
        names = tuple(classes[int(k)] for k in rng.choice(len(classes), 2, replace=kind == "any two"))
    end = f" on {STUFF[int(rng.integers(len(STUFF)))]}" if rich else ""
    return Ask(names, prompt_of(names, end), number_of(stream, kind, index, "noise"))


@dataclass(frozen=True)
class Pictures:
    """N pictures and what is known of how they came about.

    Attributes:
        asks: what was asked for; for real pictures what they show.
        images: (N, H, W, 3) uint8.
        latents: (N, steps, C, h, w) float32, before each step of the sampler, the first being noise.
        heat: (N, 2, h, w) float32 in [0, 1], DAAM's map of each named class divided by its largest value; empty for
            pictures that were not painted from a prompt.
        truth: (N, H, W) uint8 ids in the classes of a draw, of real pictures; else empty.
        key: names the set, as JSON values; sets whose key is the same begin with the same pictures.
    """

    asks: tuple[Ask, ...]
    images: ndarray
    latents: ndarray
    heat: ndarray
    truth: ndarray
    key: dict

    def __len__(self) -> int:
        return len(self.asks)

    def rows(self, start: int, stop: int) -> "Pictures":
        """The pictures from ``start`` to before ``stop``, as a set of its own."""
        part = slice(start, stop)
        arrays = (array[part] for array in (self.images, self.latents, self.heat, self.truth))
        return Pictures(self.asks[part], *arrays, self.key | {"rows": [start, stop]})

    def taken(self, rows: Sequence[int]) -> "Pictures":
        """The pictures of those rows, in that order, as a set of its own."""
        rows = [int(row) for row in rows]
        arrays = (array[rows] for array in (self.images, self.latents, self.heat, self.truth))
        return Pictures(tuple(self.asks[row] for row in rows), *arrays, self.key | {"taken": rows})


def paint(asks: Sequence[Ask], steps: int, guidance: float, pipe=None) -> parts.Arrays:
    """Paint pictures in groups of :data:`fmseg.generation.GROUP`.

    Args:
        asks: N pictures. steps, guidance: of DDIM; guidance above 1.
        pipe: another pipeline than the zoo's.

    Returns:
        images, latents and heat as in :class:`Pictures`, heat in half precision.

    Raises:
        ValueError: guidance is not above 1, so that there would be no two halves; a prompt that is too long.
    """
    if guidance <= 1:
        raise ValueError(f"`guidance` must be above 1: features are those without and with the prompt; got {guidance}")
    pipe, made = pipe or text_to_image(), []
    side = pipe.unet.config.sample_size
    for start in range(0, len(asks), GROUP):
        group, before = asks[start : start + GROUP], []
        prompts = [a.prompt for a in group]
        noise = sample_noise(noise_shape(pipe), [a.seed for a in group])
        with AttentionRecorder(pipe.unet) as recorder:
            last = generate_latents(
                pipe, encode_prompts(pipe, prompts), noise, steps=steps, guidance=guidance,
                on_step=lambda k, t, latents, kept=before: kept.append(latents.float().cpu()),
            )  # fmt: skip
        heat = torch.zeros(len(group), MOST, side, side)
        for row, wanted in enumerate(group):
            positions = token_positions(wanted.prompt, wanted.names, pipe.tokenizer, repeated=True)
            maps = heat_maps(recorder.of(row), positions, side).cpu()
            heat[row, : len(maps)] = maps / maps.amax((1, 2), keepdim=True).clamp(min=1e-12)
        latents = torch.stack(before, 1).numpy()
        made.append({"images": decode(pipe, last), "latents": latents, "heat": heat.half().numpy()})
    return parts.joined(made)


def painted(
    kind: str, classes: Sequence[str], stream: str, count: int, *, steps: int, guidance: float, rich: bool = False
) -> Pictures:
    """The first ``count`` pictures of a set, from the shared parts or painted now; see :func:`ask`.

    Raises:
        ValueError: unknown kind, too few classes, no picture, or guidance that is not above 1.
    """
    if count < 1:
        raise ValueError(f"`count` must be at least 1, got {count}")
    key = {"kind": kind, "classes": list(classes), "stream": stream, "rich": rich, "steps": steps}
    key |= {"guidance": float(guidance), "zoo": zoo.weights_hash("diffusion")}

    def make(number: int) -> parts.Arrays:
        asks = [ask(kind, classes, stream, number * PART + k, rich) for k in range(PART)]
        return paint(asks, steps, guidance)

    path = parts.folder("pictures", key, "fmseg.grounded_pictures")
    arrays = parts.joined(parts.obtain(path, numbers(count), make), count)
    asks = tuple(ask(kind, classes, stream, k, rich) for k in range(count))
    none = np.zeros((count, 0, 0), np.uint8)
    return Pictures(
        asks, arrays["images"], arrays["latents"], arrays["heat"].astype(np.float32), none, key | {"set": path.name}
    )


def numbers(count: int) -> range:
    """The parts that hold the first ``count`` pictures."""
    return range(-(-count // PART))


def features(pictures: Pictures, step: int, pipe=None) -> dict[str, Tensor]:
    """The 25 block outputs of the U-Net at one step, without and with the prompt, in half precision.

    Args:
        pictures: N pictures. step: counted from the clean end, in [1, steps]; 1 is the last call of the sampler.
        pipe: another pipeline than the zoo's.

    Returns:
        group -> (N, C, h, w) float16 in the order of :func:`fmseg.taps.guidance_halves`.

    Raises:
        ValueError: the step is not in the range.
    """
    steps = pictures.latents.shape[1]
    if isinstance(step, bool) or not isinstance(step, int) or not 1 <= step <= steps:
        raise ValueError(f"`step` must be in [1, {steps}], counted from the clean end; got {step!r}")
    pipe, at, made = pipe or text_to_image(), steps - step, {group: [] for group in GROUPS}
    for start in range(0, len(pictures), GROUP):
        part = slice(start, start + GROUP)
        text = encode_prompts(pipe, [a.prompt for a in pictures.asks[part]])
        for group, tensor in _one_call(pipe, text, torch.from_numpy(pictures.latents[part, at]), steps, at).items():
            made[group].append(tensor)
    return {group: torch.cat(tensors) for group, tensors in made.items()}


class _Enough(Exception):
    """The features of the wanted step are there; the sampler need not go on."""


def _one_call(pipe, text: Tensor, latents: Tensor, steps: int, at: int) -> dict[str, Tensor]:
    """The sampler's own step ``at`` and none after it, taps armed."""
    taps = Taps(pipe.unet)

    def arm(k, t, x):
        if k > at:
            raise _Enough
        return taps

    try:  # the guidance itself does not matter for features, as long as both halves are there
        generate_latents(pipe, text, latents, steps=steps, guidance=2.0, start=at, on_step=arm)
    except _Enough:
        pass
    halves = guidance_halves(taps.features)
    return {group: torch.cat(halves[group], 1).half() for group in GROUPS}


def kept_features(pictures: Pictures, step: int, keep: bool = True) -> dict[str, Tensor]:
    """:func:`features`, from shared parts with ``keep``; equal to the bit either way, since parts are whole groups."""
    if not keep:
        return features(pictures, step)
    key = pictures.key | {"step": step}

    def make(number: int) -> parts.Arrays:
        some = pictures.rows(number * PART, (number + 1) * PART)
        return {group: tensor.numpy() for group, tensor in features(some, step).items()}

    whole = len(pictures) // PART * PART
    path = parts.folder("features", key, "fmseg.grounded_pictures")
    arrays = parts.obtain(path, range(whole // PART), make)
    if whole < len(pictures):  # the last part of a smaller set is not that of a larger one
        arrays.append(make(whole // PART))
    return {group: torch.from_numpy(array) for group, array in parts.joined(arrays).items()}


def queries(classes: Sequence[str], pipe=None) -> Tensor:
    """(C, D) float32: what the head is asked with, a row a class, each from a prompt of its own (dossier 2.5)."""
    pipe = pipe or text_to_image()
    prompts = [prompt_of([name]) for name in classes]
    positions = [token_positions(p, [n], pipe.tokenizer)[0] for p, n in zip(prompts, classes, strict=True)]
    return class_queries(encode_prompts(pipe, prompts), positions).float()

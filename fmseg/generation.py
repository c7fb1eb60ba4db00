"""Pictures from the zoo's generators: from prompts, and from label maps. What comes out is a function of inputs alone.

A picture depends on the zoo's weights, its prompt or label map and its own seed: noise is drawn for each sample, and
work is done in fixed groups of :data:`GROUP`, counted from the first of a list, so that workers and restarts give the
same bytes. Alone or in a group of another size a picture agrees within :data:`TOLERANCE` of 255 in the mean, because
convolutions are summed in another order.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy import ndarray

from fmseg import zoo
from fmseg.eight_bits import load_unet
from fmseg.layout_model import encode_layouts, own_words
from fmseg.rectify import install, with_guidance
from fmseg.stable_diffusion import decode, encode_prompts, generate_latents, load_pipeline, sample_noise

GROUP = 10  # pictures that go through the U-Net together
STEPS, GUIDANCE = 12, 3.0  # of DDIM, as the zoo's models are used unless said otherwise
TOLERANCE = 0.5  # mean absolute difference, in 0..255


@lru_cache(maxsize=1)
def text_to_image():
    """The zoo's text-to-image pipeline, loaded once."""
    return load_pipeline(zoo.folder("diffusion"))


@lru_cache(maxsize=4)
def layout_to_image(name: str):
    """The zoo's pipeline with the U-Net of a layout model ('layout-ade', 'weak-stuff', ...) and rectified attention."""
    pipe = load_pipeline(zoo.folder("diffusion"))
    pipe.unet = install(load_unet(zoo.folder(name) / "unet"))
    return pipe


def noise_shape(pipe) -> tuple[int, int, int]:
    """(C, h, w) of one picture's latents."""
    side = pipe.unet.config.sample_size
    return pipe.unet.config.in_channels, side, side


def from_prompts(
    prompts: Sequence[str], seeds: Sequence[int], *, steps: int = STEPS, guidance: float = GUIDANCE, pipe=None
) -> ndarray:
    """One picture a prompt.

    Args:
        prompts: N texts. seeds: N whole numbers in [0, 2**64), one a picture.
        steps, guidance: of DDIM; guidance 1 is without.
        pipe: another pipeline than the zoo's.

    Returns:
        (N, H, W, 3) uint8 RGB.

    Raises:
        ValueError: unequal lengths, or a prompt that is too long.
    """
    if len(prompts) != len(seeds):
        raise ValueError(f"`seeds` must be as many as `prompts`; got {len(seeds)} for {len(prompts)}")
    pipe = pipe or text_to_image()
    made = []
    for start in range(0, len(prompts), GROUP):
        part = slice(start, start + GROUP)
        noise = sample_noise(noise_shape(pipe), seeds[part])
        latents = generate_latents(pipe, encode_prompts(pipe, prompts[part]), noise, steps=steps, guidance=guidance)
        made.append(decode(pipe, latents))
    return np.concatenate(made)


def from_layouts(
    labels: ndarray, classes: Sequence[str], seeds: Sequence[int], name: str, *,
    steps: int = STEPS, guidance: float = GUIDANCE, pipe=None,
) -> ndarray:  # fmt: skip
    """One picture a label map: names of the classes present as text, rectified attention (:mod:`fmseg.layout_model`).

    Args:
        labels: (N, H, W) integer class ids, or 255: no class.
        classes: names by id.
        seeds: N whole numbers in [0, 2**64), one a picture.
        name: the zoo's model, say 'layout-ade'.
        steps, guidance: of DDIM. The half without prompt is not rectified.
        pipe: another pipeline than the zoo's.

    Returns:
        (N, H, W, 3) uint8 RGB.

    Raises:
        ValueError: unequal lengths, ids without a name, names that do not fit the text encoder.
    """
    if len(labels) != len(seeds):
        raise ValueError(f"`seeds` must be as many as `labels`; got {len(seeds)} for {len(labels)}")
    pipe, made = pipe or layout_to_image(name), []
    for start in range(0, len(labels), GROUP):
        part = slice(start, start + GROUP)
        text, owners = encode_layouts(pipe, labels[part], classes)
        keep = own_words(pipe.unet, labels[part], owners, text.shape[1])
        latents = generate_latents(
            pipe, text, sample_noise(noise_shape(pipe), seeds[part]), steps=steps, guidance=guidance,
            cross_attention_kwargs={"rectify": with_guidance(keep) if guidance > 1 else keep},
        )  # fmt: skip
        made.append(decode(pipe, latents))
    return np.concatenate(made)

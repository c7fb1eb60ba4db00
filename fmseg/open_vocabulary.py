"""Type a prompt, get a picture and a mask for each thing: the sampler and a trained head together (notebook 35)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from numpy import ndarray

from fmseg.generation import noise_shape, text_to_image
from fmseg.grounded_configs import head as head_config
from fmseg.grounded_configs import split_of
from fmseg.grounded_figures import overlaid
from fmseg.grounded_pictures import queries
from fmseg.grounding import GroundingHead
from fmseg.settings import Settings
from fmseg.stable_diffusion import decode, encode_prompts, generate_latents, sample_noise
from fmseg.taps import Taps, guidance_halves
from fmseg.vocabulary import KNOWN_WORDS
from fmseg.words import PATTERNS, SHAPES, WEB_PATTERNS, WEB_SHAPES, kind_of_novelty
from fmseg.zero_shot_sets import shared_head

_KNOWN = "the world's patterns and shapes, such as 'a striped star'"


@dataclass(frozen=True)
class Answer:
    """A picture and what the head says about it.

    Attributes:
        prompt: what was painted. names: O things that were asked for.
        image: (H, W, 3) uint8. logits: (O, H, W) float32. noise: (C, h, w) float32 that it was painted from.
        features: group -> list of (1, C, h, w), without and with the prompt in turns.
    """

    prompt: str
    names: tuple[str, ...]
    image: ndarray
    logits: ndarray
    noise: ndarray
    features: dict[str, list[torch.Tensor]]

    @property
    def masks(self) -> ndarray:
        """(O, H, W) bool, independent of each other."""
        return self.logits > 0


def things_in(prompt: str) -> tuple[str, ...]:
    """Names of things of the world that a text says, pattern and shape side by side, each once, in their order."""
    words = "".join(c if c.isalnum() else " " for c in prompt.lower()).split()
    pairs = zip(words, words[1:], strict=False)
    named = (f"{a} {b}" for a, b in pairs if a in PATTERNS + WEB_PATTERNS and b in SHAPES + WEB_SHAPES)
    return tuple(dict.fromkeys(named))


def strange_words(text: str) -> tuple[str, ...]:
    """Words that fall into pieces in the zoo's tokenizer: the models have never seen them."""
    words = "".join(c if c.isalnum() else " " for c in text.lower()).split()
    return tuple(dict.fromkeys(word for word in words if word not in KNOWN_WORDS))


def head_of(settings: Settings, seed: int, draw: str = "coco") -> tuple[GroundingHead, tuple[str, ...]]:
    """The head of Protocol I on split 1 of a draw, and the classes that it has seen.

    It is trained when first asked for (a minute or two with the painting of its pictures), then kept in build/.
    """
    seen = split_of(draw, 1).seen
    return shared_head(head_config(settings, seed, draw, seen)), seen


@torch.no_grad()
def answer(
    prompt: str, head: GroundingHead, *, names: Sequence[str] = (), seed: int = 0, steps: int, guidance: float,
    step: int = 1, pipe=None,
) -> Answer:  # fmt: skip
    """Paint a prompt and ask the head where things are.

    Args:
        prompt: what to paint.
        head: trained, for this U-Net.
        names: what to ask for, any words, also such as the prompt does not say; none: the world's things in it.
        seed: of the noise, in [0, 2**64).
        steps, guidance: of the sampler; guidance above 1.
        step: of the features, counted from the clean end, in [1, steps].
        pipe: another pipeline than the zoo's.

    Raises:
        ValueError: an empty or too long prompt, nothing to ask for, a name twice, numbers out of range.
    """
    names = tuple(name.strip() for name in names if name.strip()) or things_in(prompt)
    if not prompt.strip():
        raise ValueError(f"`prompt` is empty; write a sentence with {_KNOWN}")
    if not names:
        raise ValueError(f"`prompt` names no thing that can be recognised; say one of {_KNOWN}, or give `names`")
    if len(set(names)) < len(names):
        raise ValueError(f"`names` must be different, since equal ones have equal masks; got {', '.join(names)}")
    if guidance <= 1:
        raise ValueError(f"`guidance` must be above 1: the head reads the rows without and with prompt; got {guidance}")
    if not 1 <= step <= steps:
        raise ValueError(f"`step` must be in [1, {steps}], counted from the clean end; got {step}")
    pipe = pipe or text_to_image()
    noise, taps = sample_noise(noise_shape(pipe), [seed]), Taps(pipe.unet)
    latents = generate_latents(
        pipe, encode_prompts(pipe, [prompt]), noise, steps=steps, guidance=guidance,
        on_step=lambda k, t, latents: taps if k == steps - step else None,
    )  # fmt: skip
    image, features = decode(pipe, latents)[0], guidance_halves(taps.features)
    was_training = head.training
    logits = head.eval()(features, queries(names, pipe)[None], size=image.shape[:2])[0].numpy()
    head.train(was_training)
    return Answer(prompt, names, image, logits, noise[0].numpy(), features)


def remarks(found: Answer, seen: Sequence[str]) -> list[str]:
    """A line a thing: how new its words are to the head, and how much of the picture it was given; then words that no
    model here knows."""
    lines = []
    for name, mask in zip(found.names, found.masks, strict=True):
        new = kind_of_novelty(name, tuple(seen)) if things_in(name) == (name,) else "no name of the world"
        lines.append(f"{name} ({new}): {100 * mask.mean():.0f} % of the picture")
    strange = strange_words(f"{found.prompt} {' '.join(found.names)}")
    return lines + ([f"no model here has seen the word {', '.join(strange)}"] if strange else [])


def panels(found: Answer) -> list[ndarray]:
    """The picture, then for each mask the picture dark but for it."""
    pairs = zip(found.masks, found.names, strict=True)
    return [found.image, *(overlaid(found.image, mask[None], [name]) for mask, name in pairs)]


def typed(show: Callable[[str, tuple[str, ...], int], Any], first: Sequence[tuple], live: bool) -> Any:
    """A form to type prompts into; without widgets, or in an executed copy, some prompts one after another.

    Args:
        show: (prompt, names, seed) -> something to display; its ValueErrors are shown as text.
        first: such triples: the form starts with the first, and without a form all are shown.
        live: whether somebody is there to type.

    Returns:
        The form, or None after displaying ``show`` of every triple.
    """
    from IPython.display import display

    def shown(prompt: str, names: tuple[str, ...], seed: int) -> None:
        try:
            display(show(prompt, names, seed))
        except ValueError as error:
            display(str(error))

    try:
        import ipywidgets
    except ImportError:
        live = False
    if not live:
        for triple in first:
            shown(*triple)
        return None
    prompt, names, seed = first[0]
    text = ipywidgets.Text(value=prompt, description="prompt")
    asked = ipywidgets.Text(value=", ".join(names), description="where is", placeholder="what the prompt names")
    number = ipywidgets.BoundedIntText(value=seed, min=0, max=2**31 - 1, description="seed")
    button, place = ipywidgets.Button(description="paint"), ipywidgets.Output()

    def paint(_) -> None:
        place.clear_output(wait=True)
        with place:
            shown(text.value, tuple(filter(None, map(str.strip, asked.value.split(",")))), number.value)

    button.on_click(paint)
    return ipywidgets.VBox([text, asked, number, button, place])

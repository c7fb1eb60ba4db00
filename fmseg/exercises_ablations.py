"""Exercises of notebook 33: what a zero mask pushes, which of our steps is the paper's, a step of DDIM inversion."""

import torch
from torch import Tensor

from fmseg.exercise import Exercise
from fmseg.grounding_targets import grounding_loss


def _answers() -> list[tuple]:
    """Logits (O, H, W) of one picture, masks, which classes the oracle found, whether zero masks are used."""
    generator, made = torch.Generator().manual_seed(33), []
    for found, zero in (([1, 0], False), ([1, 0], True), ([0, 0, 1], True)):
        detected = torch.tensor(found, dtype=torch.bool)
        logits = torch.randn(len(found), 4, 4, generator=generator)
        masks = torch.rand(len(found), 4, 4, generator=generator) > 0.6  # also of classes that were not found
        made.append((logits, masks, detected, zero))
    return made


def _pushed(logits: Tensor, masks: Tensor, detected: Tensor, zero: bool) -> Tensor:
    """Minus the gradient of the loss."""
    leaf = logits.clone().requires_grad_()
    loss = grounding_loss(leaf[None], masks[None], detected[None], undetected="zero" if zero else "skip")
    return -torch.autograd.grad(loss, leaf)[0]


def _by_hand(logits: Tensor, masks: Tensor, counted: Tensor) -> Tensor:
    return (masks.float() - logits.sigmoid()) * counted[:, None, None] / logits[0].numel()


push_of_masks = Exercise(
    _pushed,
    _answers,
    {
        "The wrong way round: this is the gradient, and training goes against it.": lambda *case: -_pushed(*case),
        "A class that was not found teaches nothing here, even where zero masks are asked for.": (
            lambda logits, masks, detected, zero: _pushed(logits, masks, detected, False)
        ),
        "A class that was not found counts with an empty mask here, even where it shall be passed over.": (
            lambda logits, masks, detected, zero: _pushed(logits, masks, detected, True)
        ),
        "With zero masks, what was not found has an *empty* mask, whatever `masks` hold for it.": (
            lambda logits, masks, detected, zero: _by_hand(logits, masks, detected | zero)
        ),
        "The loss is the mean over a mask's pixels, so each pixel pushes by its share.": lambda *case: (
            _pushed(*case) * case[0][0].numel()
        ),
        "The sum goes over the picture's classes: do not divide by how many were found.": lambda *case: (
            _pushed(*case) / len(case[2])
        ),
    },
    learned="A zero mask pushes down everywhere, also where the thing is, and a class that the oracle "
    "does not find is pushed down wherever it was asked for.",
)  # fmt: skip


def _steps() -> list[tuple]:
    return [(12, t) for t in (1, 5, 10, 20, 25, 45)] + [(20, 10), (25, 50)]


def _timestep(steps: int, step: int) -> int:
    return (step - 1) * (1000 // steps) + 1


def _nearest(steps: int, paper: int, count: int = 50) -> int:
    return min(range(1, steps + 1), key=lambda s: abs(_timestep(steps, s) - _timestep(count, paper)))


nearest_step = Exercise(
    _nearest,
    _steps,
    {
        "The same share of the way: steps are counted from 1, and the last of 12 is not as noisy as the last of 50.": (
            lambda steps, paper: max(1, round(paper * steps / 50))
        ),
        "Counted from the noisy end.": lambda steps, paper: steps + 1 - _nearest(steps, paper),
        "The nearest from below: one above may be nearer.": lambda steps, paper: max(
            s for s in range(1, steps + 1) if _timestep(steps, s) <= _timestep(50, paper)
        ),
        "A timestep was given; asked is which of our steps it is.": lambda steps, paper: _timestep(
            steps, _nearest(steps, paper)
        ),
        "Steps are counted from 1, not from 0.": lambda steps, paper: _nearest(steps, paper) - 1,
    },
    learned="The curve's two axes count different things; only the noise can be compared.",
)


def _latents() -> list[tuple]:
    """Latents, predicted noise, share of the picture that is left now and after the step."""
    generator = torch.Generator().manual_seed(36)
    shares = ((0.99, 0.8), (0.6, 0.35), (0.2, 0.05))
    made = [(torch.randn(2, 3, 3, generator=generator), torch.randn(2, 3, 3, generator=generator)) for _ in shares]
    return [(*pair, *share) for pair, share in zip(made, shares, strict=True)]


def _noised(z: Tensor, noise: Tensor, now: float, then: float) -> Tensor:
    clean = (z - (1 - now) ** 0.5 * noise) / now**0.5
    return then**0.5 * clean + (1 - then) ** 0.5 * noise


inverted_step = Exercise(
    _noised,
    _latents,
    {
        "The two shares are the wrong way round: inversion goes from less noise to more.": (
            lambda z, noise, now, then: _noised(z, noise, then, now)
        ),
        "Square roots are missing: a share of the variance is the square of a factor.": (
            lambda z, noise, now, then: then * (z - (1 - now) * noise) / now + (1 - then) * noise
        ),
        "That is the clean picture that is meant; it has to be noised again.": lambda z, noise, now, then: (
            (z - (1 - now) ** 0.5 * noise) / now**0.5
        ),
        "Noise was added to what is noisy already: go back to the clean picture first.": lambda z, noise, now, then: (
            then**0.5 * z + (1 - then) ** 0.5 * noise
        ),
        "The noise is the same at both ends, but its share is that of the later step when it is added.": (
            lambda z, noise, now, then: then**0.5 * (z - (1 - now) ** 0.5 * noise) / now**0.5 + (1 - now) ** 0.5 * noise
        ),
    },
    learned="The same formula samples: only the order of the two shares tells which way one goes.",
)

"""Real pictures brought into the sampler by DDIM inversion, with their true masks (dossier 2.9; section 5, item 20).

The autoencoder's latents are run backwards to noise without guidance and forwards again; from then on such a picture is
like a painted one, but its masks are true and not an oracle's. Prompt, guidance and crop of the paper's own are
unknown; here the prompt names the things that can be seen.
"""

from collections.abc import Sequence

import numpy as np
import torch

from fmseg import parts, zoo
from fmseg.datasets import Drawn, draw_set
from fmseg.generation import GROUP, text_to_image
from fmseg.grounded_pictures import PART, Ask, Pictures, kept_features, numbers, prompt_of, queries
from fmseg.grounded_sets import Triplets, named_ids
from fmseg.stable_diffusion import decode, encode_images, encode_prompts, generate_latents, invert


def visible_names(drawn: Drawn, row: int) -> tuple[str, ...]:
    """Classes that can be seen in a picture, each once, in the order in which they were drawn."""
    here = {drawn.classes[k] for k in np.flatnonzero(drawn.present[row])}
    return tuple(dict.fromkeys(name for name in drawn.things[row] if name in here))


def inverted(draw: str, split: str, count: int, *, seed: int, steps: int, start: int = 0, size: int = 64) -> Pictures:
    """Real pictures of a draw after inversion and back, with the latents before each step of the way back.

    Args:
        draw, split, count, seed, start, size: as of :func:`fmseg.datasets.draw_set`; pictures without a visible thing
            are left out, so there may be fewer than ``count``.
        steps: of inversion and of sampling.

    Returns:
        ``images`` as painted again, ``truth`` the labels in the draw's ids, no heat maps.

    Raises:
        ValueError: as of ``draw_set``, or no picture shows a thing.
    """
    drawn = draw_set(draw, split, count, seed=seed, size=size, start=start)
    names = [visible_names(drawn, row) for row in range(count)]
    rows = [row for row in range(count) if names[row]]
    if not rows:
        raise ValueError(f"none of the {count} pictures of {draw} shows a thing that can be named")
    asks = tuple(Ask(names[row], prompt_of(names[row]), seed) for row in rows)
    key = {"draw": draw, "split": split, "seed": seed, "start": start, "count": count, "size": size, "steps": steps}
    key |= {"zoo": zoo.weights_hash("diffusion")}
    images = drawn.images[rows]

    def make(number: int) -> parts.Arrays:
        part = slice(number * PART, (number + 1) * PART)
        return there_and_back(images[part], asks[part], steps)

    path = parts.folder("inverted", key, "fmseg.grounded_inverted")
    arrays = parts.joined(parts.obtain(path, numbers(len(rows)), make))
    none = np.zeros((len(rows), 0, 0, 0), np.float32)
    return Pictures(asks, arrays["images"], arrays["latents"], none, drawn.labels[rows], key | {"set": path.name})


@torch.no_grad()
def there_and_back(images: np.ndarray, asks: Sequence[Ask], steps: int, pipe=None) -> parts.Arrays:
    """Invert real pictures, then sample from the noise that was found, both without guidance.

    Args:
        images: (N, H, W, 3) uint8. asks: their prompts. steps: of both ways.

    Returns:
        images (N, H, W, 3) uint8 as painted again; latents (N, steps, C, h, w) float32 before each step back.
    """
    pipe, made = pipe or text_to_image(), []
    for start in range(0, len(images), GROUP):
        part, before = slice(start, start + GROUP), []
        text = encode_prompts(pipe, [a.prompt for a in asks[part]])
        noise = invert(pipe, encode_images(pipe, images[part]), text, steps)
        last = generate_latents(
            pipe, text, noise, steps=steps, guidance=1.0,
            on_step=lambda k, t, latents, kept=before: kept.append(latents.float().cpu()),
        )  # fmt: skip
        made.append({"images": decode(pipe, last), "latents": torch.stack(before, 1).numpy()})
    return parts.joined(made)


def true_triplets(
    pictures: Pictures, draw_classes: Sequence[str], classes: Sequence[str], step: int, *, keep: bool = True
) -> Triplets:
    """Inverted pictures with the true mask of every thing they show that is among ``classes``.

    Args:
        pictures: from :func:`inverted`. draw_classes: names by the ids of ``pictures.truth``.
        classes: names that the set is about; others that a picture shows are not asked for.
        step: of the features, counted from the clean end. keep: features in shared parts.

    Returns:
        Triplets of the pictures that show at least one of ``classes``; every named class is detected.

    Raises:
        ValueError: no picture shows any of the classes.
    """
    names = [tuple(n for n in a.names if n in classes) for a in pictures.asks]
    rows = [row for row, some in enumerate(names) if some]
    if not rows:
        raise ValueError("none of the pictures shows one of `classes`")
    shown = [Ask(names[row], "", 0) for row in rows]
    named = named_ids(shown, classes)
    masks = torch.zeros(len(rows), named.shape[1], *pictures.truth.shape[1:], dtype=torch.bool)
    for place, row in enumerate(rows):
        for column, name in enumerate(names[row]):
            masks[place, column] = torch.from_numpy(pictures.truth[row] == draw_classes.index(name))
    features = {group: tensor[rows] for group, tensor in kept_features(pictures, step, keep).items()}
    return Triplets(features, named, masks, named >= 0, tuple(classes), queries(classes), pictures.images[rows])

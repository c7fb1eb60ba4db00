"""How good are the zoo's generators? Prompted and laid-out pictures, judged by the oracles; in percent unless said."""

import numpy as np
import torch
from numpy import ndarray

from fmseg import zoo
from fmseg.clip import load_clip
from fmseg.datasets import draw_set
from fmseg.generation import from_layouts, from_prompts, text_to_image
from fmseg.measure_perception import fresh
from fmseg.metrics import Confusion, mean_iou
from fmseg.oracle import detect, load_oracle, probabilities
from fmseg.stable_diffusion import decode, encode_images
from fmseg.words import THINGS, WEB_THINGS, article, kind_of_novelty

NOVELTY = ("seen", "one new word", "both words new")  # for the oracle's 40 things; their combinations are all seen


def prompts_of(things: list[tuple[str, ...]]) -> list[str]:
    """'a photo of a striped star and a plain disc', as Grounded Diffusion asks."""
    return [f"a photo of {' and '.join(article(name) for name in names)}" for names in things]


def seeds_of(seed: int, what: int, count: int) -> list[int]:
    """Noise seeds of a measurement's pictures, none shared with another measurement or seed."""
    return [(what << 48) | (seed << 32) | k for k in range(count)]


def found_rates(images: ndarray, things: list[tuple[str, ...]], judge: str) -> ndarray:
    """(N,) bool: does the oracle of that name find every named class in the picture?"""
    model, known = load_oracle(judge)
    ids = range(len(known) - 8)  # grounds come last
    found = [{known[instance.label] for instance in objects} for objects in detect(model, images, ids)]
    return np.array([set(names) <= there for names, there in zip(things, found, strict=True)])


def prompted_singles(seed: int, count: int) -> dict[str, float]:
    """Share of one-thing prompts whose class is found: the oracle's 40 classes by the oracle, and all 96 by the
    judge, by how new the words are to a reader of the 40."""
    rng, out = np.random.default_rng([seed, 1]), {}
    things = [(THINGS[int(k)],) for k in rng.integers(len(THINGS), size=count)]
    images = from_prompts(prompts_of(things), seeds_of(seed, 1, count))
    out["found by the oracle"] = 100 * found_rates(images, things, "oracle").mean()
    out["found by the judge"] = 100 * found_rates(images, things, "judge").mean()
    new = [name for name in WEB_THINGS if name not in THINGS]
    things = [(new[int(k)],) for k in rng.integers(len(new), size=count)]
    right = found_rates(from_prompts(prompts_of(things), seeds_of(seed, 2, count)), things, "judge")
    kinds = np.array([kind_of_novelty(names[0], THINGS) for names in things])
    for kind in NOVELTY[1:]:
        out[f"{kind}, found by the judge"] = 100 * right[kinds == kind].mean()
    return out


def prompted_pairs(seed: int, count: int) -> dict[str, float]:
    """Share of two-thing prompts of which the oracle finds both classes, and at least one."""
    rng = np.random.default_rng([seed, 3])
    things = [tuple(THINGS[int(k)] for k in rng.choice(len(THINGS), 2, replace=False)) for _ in range(count)]
    images = from_prompts(prompts_of(things), seeds_of(seed, 3, count))
    both = found_rates(images, things, "oracle")
    first, second = (found_rates(images, [names[k : k + 1] for names in things], "oracle") for k in (0, 1))
    return {"both found": 100 * both.mean(), "at least one found": 100 * (first | second).mean()}


def real_singles(seed: int, count: int) -> dict[str, float]:
    """What the oracles find in real pictures of the same content: the ceiling of the rates above."""
    out = {}
    for name in ("oracle", "judge"):
        drawn = draw_set(name, "val", 4 * count, start=10_000 * (seed + 1))
        visible = [[n for n in t if drawn.present[i, drawn.classes.index(n)]] for i, t in enumerate(drawn.things)]
        for number, what in ((1, "single"), (2, "pair")):
            chosen = [i for i, names in enumerate(visible) if len(names) == len(set(names)) == number][:count]
            things = [tuple(visible[i]) for i in chosen]
            out[f"{what}, {name}"] = 100 * found_rates(drawn.images[chosen], things, name).mean()
    return out


def oracle_miou(images: ndarray, labels: ndarray, name: str = "oracle") -> float:
    """mIoU in percent of the oracle against labels in its own class ids."""
    model, known = load_oracle(name)
    confusion = Confusion(len(known))
    for k in range(0, len(images), 50):
        found = probabilities(model, images[k : k + 50]).argmax(1)
        confusion.update(torch.from_numpy(found), torch.from_numpy(labels[k : k + 50].astype(np.int64)))
    return 100 * mean_iou(confusion.compute())


def reconstruction(seed: int, draw: str, count: int) -> dict[str, float]:
    """The oracle's mIoU on pictures of `ade` or `stuff`, and on the same after the autoencoder."""
    drawn, pipe = fresh(draw, seed, count), text_to_image()
    after = decode(pipe, encode_images(pipe, drawn.images))
    before, then = oracle_miou(drawn.images, drawn.labels), oracle_miou(after, drawn.labels)
    return {"before": before, "after": then, "kept": 100 * then / before}


def layouts(seed: int, name: str, count: int) -> dict[str, float]:
    """The oracle's mIoU against the layout on pictures made for masks of the data set, beside that on real pictures of
    the same masks, and a Fréchet distance between the two sets in the features of the zoo's CLIP."""
    drawn = fresh(name.partition("-")[2], seed, count)
    images = from_layouts(drawn.labels, drawn.classes, seeds_of(seed, 4, count), name)
    real, made = oracle_miou(drawn.images, drawn.labels), oracle_miou(images, drawn.labels)
    distance = frechet(clip_features(drawn.images), clip_features(images))
    return {"generated": made, "real": real, "share": 100 * made / real, "Fréchet distance": distance}


def clip_features(images: ndarray) -> ndarray:
    """(N, D) float64 unit rows: the zoo's CLIP image embeddings."""
    clip = load_clip(zoo.folder("clip"))
    with torch.no_grad():
        parts = [clip.model.encode_image(clip.preprocess(images[k : k + 50]), normalize=True)
                 for k in range(0, len(images), 50)]  # fmt: skip
    return torch.cat(parts).double().numpy()


def frechet(a: ndarray, b: ndarray) -> float:
    r"""Fréchet distance of two Gaussians fitted to features (Heusel et al. 2017), times 100.

    .. math:: |\mu_a - \mu_b|^2 + \mathrm{tr}(\Sigma_a + \Sigma_b - 2 (\Sigma_a \Sigma_b)^{1/2})

    Args:
        a, b: (N, D) features, N > 1.
    """
    from scipy.linalg import sqrtm

    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    tiny = 1e-9 * np.eye(len(first))
    root = sqrtm((first + tiny) @ (second + tiny)).real
    return 100 * float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(first + second - 2 * root))

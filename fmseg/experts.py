"""Foundation models asked where the classes are: CLIP and a self-supervised transformer co-segment a batch of pictures.

The bridge between a training step and :mod:`fmseg.coseg`: pictures in 0..255 and image-level labels go in, masks on
one grid come out. Nothing here learns. FMWISS section 3.1; ask *before* anything is pasted into the pictures.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fmseg import zoo
from fmseg.attention import last_attention
from fmseg.clip import TEMPLATES, Clip, load_clip, text_embeddings
from fmseg.coseg import CoSegmentation, co_segment
from fmseg.dense_clip import dense_features, dilated, scores
from fmseg.vits import Vit, load_vit
from fmseg.words import STUFF

MOST = 1500  # pictures of which an expert's answers are kept, at 0.3 MB each in the mini world


@dataclass(frozen=True, eq=False)
class Experts:
    """Both models, ready to be asked about the same classes.

    Attributes:
        tower: CLIP's image tower. text: (C, D) unit rows, one a class. rivals: (R, D) texts for what is none of the
            classes, or None. mean, std: of CLIP's pictures.
        vit: the self-supervised transformer, None where CLIP is asked alone.
        options: of :func:`fmseg.coseg.co_segment`.
        looks: what the models said of pictures that they have seen, for short trainings that show the same ones again
            and again; they are then looked at one by one, so that an answer does not depend on a picture's company.
            None: each batch is looked at as it comes. Seeds are drawn anew in any case.
    """

    tower: nn.Module
    text: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]
    rivals: Tensor | None = None
    vit: Vit | None = None
    options: dict[str, Any] = field(default_factory=dict)
    looks: dict[tuple, tuple[Tensor | None, ...]] | None = None

    def to(self, device: torch.device) -> "Experts":
        """These experts on a device; themselves where they are there. The models are moved, not copied."""
        if self.text.device == device:
            return self
        self.tower.to(device)
        if self.vit is not None:
            self.vit.model.to(device)
        rivals = None if self.rivals is None else self.rivals.to(device)
        return replace(self, text=self.text.to(device), rivals=rivals, looks=None if self.looks is None else {})

    @torch.no_grad()
    def co_segment(self, images: Tensor, present: Tensor, generator: torch.Generator) -> CoSegmentation:
        """Masks of the classes that are present, on CLIP's grid.

        Args:
            images: (B, 3, H, W) uint8, or float in 0..255, before anything was pasted; where they are, is computed.
            present: (B, C) bool, image-level labels.
            generator: of the seeds' draw.

        Raises:
            TypeError, ValueError: as :func:`fmseg.coseg.co_segment`.
        """
        return self.to(images.device)._co_segment(images, present, generator)

    def _co_segment(self, images: Tensor, present: Tensor, generator: torch.Generator) -> CoSegmentation:
        if self.looks is None or not len(images):
            seen, rivals, attention = self._look(images)
        else:
            answers = zip(*map(self._remembered, images), strict=True)
            seen, rivals, attention = (None if part[0] is None else torch.cat(part) for part in answers)
        options = {"background": rivals, **self.options}
        if attention is None:
            return co_segment(seen, present, **options | {"use": "clip"})
        patch = self.vit.model.patch_embed.patch_size
        where = (images.shape[2] // patch[0], images.shape[3] // patch[1])
        if where != tuple(seen.shape[2:]):
            options = {"attention_grid": where, "grid": "scores", **options}
        return co_segment(seen, present, attention, generator, **options)

    def _look(self, images: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """CLIP's scores of the classes and of the rivals, and the transformer's attention where it is asked."""
        features = dense_features(self.tower, normalised(images, self.mean, self.std))
        rivals = None if self.rivals is None else scores(features, self.rivals)
        attention = None
        if self.vit is not None and self.options.get("use") != "clip":
            attention = last_attention(self.vit.model, normalised(images, self.vit.mean, self.vit.std))
        return scores(features, self.text), rivals, attention

    def _remembered(self, image: Tensor) -> tuple[Tensor | None, ...]:
        """The same of one picture, from what was said before if it was seen before; the mean of the heads suffices."""
        whole = image.detach().cpu().contiguous()
        key = hashlib.blake2b(whole.numpy().tobytes()).digest(), tuple(whole.shape), whole.dtype
        if key in self.looks:
            return self.looks[key]
        seen, rivals, attention = self._look(image[None])
        answer = seen, rivals, None if attention is None else attention.mean(1, keepdim=True)
        if len(self.looks) < MOST:
            self.looks[key] = answer
        return answer

    def masks(
        self, images: Tensor, present: Tensor, grid: tuple[int, int], generator: torch.Generator
    ) -> Tensor:  # fmt: skip
        """(B, C, h, w) bool: the final masks on a student's grid (nearest, where it is not CLIP's own)."""
        found = self.co_segment(images, present, generator).mask
        if tuple(found.shape[2:]) == tuple(grid):
            return found
        return F.interpolate(found.float(), grid, mode="nearest") > 0.5


def normalised(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(B, 3, H, W) pictures in 0..255, uint8 or float, as a model wants them: float, (x / 255 - mean) / std."""
    mean, std = (torch.tensor(v, device=images.device).view(3, 1, 1) for v in (mean, std))
    return (images.float() / 255 - mean) / std


def gather(
    clip: Clip,
    vit: Vit | None,
    names: Sequence[str],
    *,
    rivals: Sequence[str] = (),
    finer: int = 1,
    templates: Sequence[str] = TEMPLATES,
    remember: bool = False,
    **options: Any,
) -> Experts:
    """Experts for the classes of a step.

    Args:
        clip, vit: the models; without ``vit`` CLIP alone is asked.
        names: class names in the order of the image-level labels.
        rivals: names of what is none of them (grounds, classes of earlier steps), which compete for pixels.
        finer: how much finer than CLIP's own grid a convolutional tower is read (:func:`fmseg.dense_clip.dilated`).
        templates: prompts.
        remember: keep what they say of pictures, see :class:`Experts`.
        options: of :func:`fmseg.coseg.co_segment`.
    """
    tower = getattr(clip.model, "visual", clip.model)
    tower = dilated(tower, finer) if finer > 1 else tower
    others = text_embeddings(clip, rivals, templates) if rivals else None
    text, looks = text_embeddings(clip, names, templates), {} if remember else None
    return Experts(tower, text, clip.mean, clip.std, others, vit, options, looks)


def of_zoo(
    names: Sequence[str], old_names: Sequence[str], *, vit: str = "mim", grounds: bool = True, old_rivals: bool = False,
    clip: Clip | None = None, **options: Any,
) -> Experts:  # fmt: skip
    """The zoo's CLIP on its finer grid, and one of its self-supervised transformers; they remember pictures.

    Args:
        names, old_names: the step's classes, and those of earlier steps.
        vit: "mim" or "dino".
        grounds: the world's eight grounds compete for pixels.
        old_rivals: so do the old classes' names (knowledge that the paper does not use, dossier section 4, item 2).
        clip: another CLIP than the zoo's.
        options: of :func:`fmseg.coseg.co_segment`.

    Raises:
        ValueError: the zoo lacks a model.
    """
    rivals = (*(STUFF if grounds else ()), *(old_names if old_rivals else ()))
    found = load_clip(zoo.folder("clip")) if clip is None else clip
    watcher = None if options.get("use") == "clip" else load_vit(zoo.folder(vit))
    return gather(found, watcher, names, rivals=rivals, finer=2, remember=True, **options)

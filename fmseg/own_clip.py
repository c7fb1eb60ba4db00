"""A control: a CLIP that has seen nothing but the task's own pictures and image-level labels.

FMWISS borrows what foundation models know of the web. How much of its gain is that? The same architecture as the zoo's
CLIP is trained on the pictures of both steps, whose labels are read as sentences ("a photo of a striped star and a
plain disc"), and then asked in the zoo's place.
"""

from os import PathLike
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fmseg.batches import Source
from fmseg.clip import MEAN, STD, TEMPLATES, Clip
from fmseg.contrastive import contrastive_loss
from fmseg.experts import normalised
from fmseg.incremental_data import BASE, STEP, Data
from fmseg.training import TrainConfig, train
from fmseg.vocabulary import open_clip_tokenizer
from fmseg.words import article
from fmseg.zoo_configs import CLIP

LARGEST_SCALE = 100.0  # of the cosines, as in CLIP


class OwnClip(nn.Module):
    """CLIP and a naming head beside it, as the zoo's learned: contrastively, and by naming the classes of a picture.

    Args:
        names: classes, in the order of the tags.
        seed: of the weights.
    """

    def __init__(self, names: tuple[str, ...], *, seed: int):
        super().__init__()
        from open_clip.model import CLIP as Model

        import fmseg.convnet  # noqa: F401  registers the trunk

        self.names, self.num_classes = names, len(names) + 1
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.clip = Model(**CLIP)
            self.naming = nn.Linear(2 * self.clip.visual.trunk.num_features, len(names))

    def loss(self, images: Tensor, labels: Tensor, tags: Tensor) -> Tensor:
        """() nats: contrastive loss between pictures and sentences, plus binary cross-entropy of naming.

        Args:
            images: (B, 3, H, W) uint8, or float in 0..255.
            labels: are not looked at.
            tags: (B, classes) bool; a picture without any is "a photo".
        """
        maps = self.clip.visual.trunk.forward_features(normalised(images, MEAN, STD))
        seen = F.normalize(self.clip.visual.head(maps), dim=-1)
        template = TEMPLATES[int(torch.randint(len(TEMPLATES), ()))]
        texts = [self.sentence(row, template) for row in tags.tolist()]
        group = torch.tensor([texts.index(text) for text in texts], device=images.device)
        read = self.clip.encode_text(open_clip_tokenizer()(texts).to(images.device), normalize=True)
        scale = self.clip.logit_scale.exp().clamp(max=LARGEST_SCALE)
        named = self.naming(torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], 1))
        return contrastive_loss(seen, read, scale, group) + F.binary_cross_entropy_with_logits(named, tags.float())

    def loss_weight(self, labels: Tensor) -> int:
        return len(labels)

    def sentence(self, row: list[bool], template: str) -> str:
        """What the labels of a picture read like."""
        said = " and ".join(article(name) for name, there in zip(self.names, row, strict=True) if there)
        return template.format(a=said) if said else "a photo"


def train_clip(
    data: Data, options: dict[str, Any], seed: int, checkpoint: str | PathLike | None = None, *, progress: bool = False
) -> Clip:
    """Train it, or read it where a killed run had finished it.

    Args:
        data: of a run; its pictures and image-level labels are used, no mask.
        options: fields of :class:`fmseg.training.TrainConfig` but ``seed``.
        seed: of weights and order.
        checkpoint: file of its state, or None.
    """
    how = TrainConfig.from_dict({**options, "seed": seed})
    model = OwnClip((*data.old_names(), *data.new_names()), seed=seed)
    sources = _told(data)
    train(model, sources, how, checkpoint=checkpoint, checkpoint_every=checkpoint and 200, progress=progress)
    clip = model.clip.eval().requires_grad_(False)
    return Clip(clip, open_clip_tokenizer(), MEAN, STD, "trained on the task's own pictures")


def _told(data: Data) -> list[Source]:
    """The pictures of both steps, each with the labels that its step has."""
    sources = []
    count = {step: len([k for k in data.protocol.new(step) if k]) for step in (BASE, STEP)}
    for step, drawn in ((BASE, data.base), (STEP, data.step)):
        mine = data.protocol.image_labels(step, drawn.present, drawn.classes)
        other = np.zeros((len(drawn), count[STEP if step == BASE else BASE]), bool)
        tags = np.concatenate([mine, other] if step == BASE else [other, mine], 1)
        unknown = np.full_like(drawn.labels, 255)
        sources.append(Source(drawn.images, unknown, name=f"pictures of step {step}", tags=tags))
    return sources

"""Pre-trains the segmenters' backbones: ImageNet's part in the papers. Never sees a mask.

Two objectives at once: to name what captions name, and to say at every place what the zoo's CLIP says there (feature
distillation, as EVA, Fang et al. 2022, arXiv 2211.07636, and MaskDistill, Peng et al. 2022, arXiv 2210.10615, regress
CLIP's features; here of all places instead of hidden ones). With names alone, segmenters on these backbones learned no
things: a linear probe on the frozen features found 5 to 16 mIoU of things where CLIP's own trunk had 37.
"""

import hashlib
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fmseg.clip import Clip, load_clip
from fmseg.dense_clip import dense_features, dilated
from fmseg.fitting import fit
from fmseg.segmenters import build
from fmseg.zoo import sha256
from fmseg.zoo_data import WORDS, WebImages, both, mixed_indices, named_words, naming_loss
from fmseg.zoo_run import Run

SIDE = 16  # cells a side of the targets, and of what segmenters read
DEPTH = 28  # numbers a cell: the whitened principal directions of CLIP's dense features
SAMPLE = 500  # scenes, and as many icons, whose cells say which directions those are
PLACES_WEIGHT = 4.0  # of the targets' mean squared error, 1 before anything is learned, beside four cross-entropies
_CHUNK = 2000


class Pupil(nn.Module):
    """A segmenter's backbone under two linear layers: words from mean and maximum of its deepest map, CLIP's features
    from all its maps, brought to 16x16."""

    def __init__(self, method: str, seed: int):
        super().__init__()
        whole = build(method, num_classes=2, seed=seed)
        self.backbone, self.normalise = whole.model.backbone, whole._normalised
        with torch.no_grad():
            widths = [x.shape[1] for x in self.maps(torch.zeros(2, 3, 64, 64))]
        deep = 2 * widths[-1]
        self.norm, self.head = nn.LayerNorm(deep), nn.Linear(deep, sum(map(len, WORDS.values())))
        self.places = nn.Conv2d(sum(widths), DEPTH, 1)

    def maps(self, images: Tensor) -> list[Tensor]:
        """The backbone's feature maps, fine to deep."""
        found = self.backbone(self.normalise(images))
        return list(found) if isinstance(found, list | tuple) else [found]

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, 64, 64) float in 0..255 -> (B, 126) scores of the words, (B, 28, 16, 16) features."""
        maps = self.maps(images)
        deep = maps[-1]
        words = self.head(self.norm(torch.cat([deep.mean((2, 3)), deep.amax((2, 3))], dim=1)))
        fine = [nn.functional.interpolate(x, (SIDE, SIDE), mode="bilinear", align_corners=False) for x in maps]
        return words, self.places(torch.cat(fine, dim=1))


@torch.no_grad()
def dense_directions(features: Tensor) -> tuple[Tensor, Tensor]:
    """Principal directions of dense features, scaled to unit variance.

    Args:
        features: (N, D, h, w) of :func:`fmseg.dense_clip.dense_features`.

    Returns:
        mean (D,) and directions (D, 28): ``(x - mean) @ directions`` has mean 0 and variance 1 in every column over
        the cells given. The sign of a direction is fixed: its largest weight is positive.
    """
    cells = features.permute(0, 2, 3, 1).flatten(0, 2).double()
    mean = cells.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov((cells - mean).T))
    values, vectors = values[-DEPTH:].flip(0), vectors[:, -DEPTH:].flip(1)
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    return mean.float(), (vectors * largest.sign() / values.sqrt()).float()


def dense_targets(folder: Path, clip: Clip, images: np.ndarray, sample: np.ndarray) -> list[np.ndarray]:
    """CLIP's dense features of pictures on a 16x16 grid, whitened; made once and kept, part by part.

    Args:
        folder: where parts are kept, by the content of their pictures; of one CLIP and one sample.
        clip: the zoo's, whose last stride is traded for dilation.
        images: (N, 64, 64, 3) uint8.
        sample: (M, 64, 64, 3) uint8, the pictures that say how to whiten, see :func:`dense_directions`.

    Returns:
        Parts of (2000 or fewer, 28, 16, 16) float16, mapped from disk.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tower = dilated(clip.model.visual, 2)
    basis, parts = None, []
    for start in range(0, len(images), _CHUNK):
        some = images[start : start + _CHUNK]
        path = folder / f"{hashlib.sha256(some.tobytes()).hexdigest()[:16]}.npy"
        if not path.exists():
            basis = basis or dense_directions(_dense(tower, clip, sample))
            found = torch.einsum("ndhw,dk->nkhw", _dense(tower, clip, some) - basis[0].view(1, -1, 1, 1), basis[1])
            partial = path.with_suffix(".part.npy")
            np.save(partial, found.half().numpy())
            os.replace(partial, path)
        parts.append(np.load(path, mmap_mode="r"))
    return parts


def targets_for(run: Run, scenes: WebImages, icons: WebImages) -> list[np.ndarray]:
    """:func:`dense_targets` of scenes and icons, by the CLIP that the run's build folder holds."""
    made = run.folder("clip")
    sample = both(scenes.first(SAMPLE), icons.first(SAMPLE)).images
    of = hashlib.sha256(sample.tobytes() + sha256(made / "open_clip_model.safetensors").encode()).hexdigest()[:12]
    return dense_targets(run.data / f"dense-{of}", load_clip(made), both(scenes, icons).images, sample)


def targets_of(parts: list[np.ndarray], chosen: np.ndarray) -> Tensor:
    """(B, 28, 16, 16) float32: the targets of the pictures of those indices."""
    return torch.from_numpy(np.stack([parts[k // _CHUNK][k % _CHUNK] for k in chosen])).float()


@torch.no_grad()
def _dense(tower: nn.Module, clip: Clip, images: np.ndarray) -> Tensor:
    return torch.cat([dense_features(tower, clip.preprocess(images[k : k + 100])) for k in range(0, len(images), 100)])


def train(run: Run) -> None:
    """Train and save the backbone alone, under the segmenter's names."""
    scenes, icons, recipe = run.web(), run.icons(), run.recipe()
    web = both(scenes, icons)
    named = {kind: torch.from_numpy(there) for kind, there in named_words(web.captions).items()}
    targets = targets_for(run, scenes, icons)
    torch.manual_seed(recipe.seed)
    model = Pupil(run.name.removeprefix("backbone-"), recipe.seed)

    def loss(step):
        chosen = mixed_indices(len(scenes), len(icons), recipe, step)
        images = torch.from_numpy(web.images[chosen]).permute(0, 3, 1, 2).float()
        wanted = targets_of(targets, chosen)
        mirrored = (torch.rand(len(images)) < 0.5).view(-1, 1, 1, 1)
        images, wanted = (torch.where(mirrored, x.flip(-1), x) for x in (images, wanted))
        words, places = model(images)
        naming, right = naming_loss(words, {kind: there[chosen] for kind, there in named.items()})
        wrong = nn.functional.mse_loss(places, wanted)
        return naming + PLACES_WEIGHT * wrong, {"places": wrong.item()} | right

    facts = fit(model, recipe, loss, count=len(web), **run.loop())
    run.finish(facts, {"backbone.safetensors": model.backbone.state_dict()})

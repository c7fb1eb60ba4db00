"""Pre-trains the segmenters' backbones to name what captions name: ImageNet's part in the papers. Never sees a mask."""

import torch
from torch import Tensor, nn

from fmseg.segmenters import build
from fmseg.zoo_data import WORDS, both, mixed_indices, named_words, naming_loss
from fmseg.zoo_loop import fit
from fmseg.zoo_run import Run


class Tagger(nn.Module):
    """A segmenter's backbone under one linear layer on the mean and the maximum of its last feature map."""

    def __init__(self, method: str, seed: int):
        super().__init__()
        whole = build(method, num_classes=2, seed=seed)
        self.backbone, self.normalise = whole.model.backbone, whole._normalised
        with torch.no_grad():
            width = self.features(torch.zeros(2, 3, 64, 64)).shape[1]
        self.norm, self.head = nn.LayerNorm(2 * width), nn.Linear(2 * width, sum(map(len, WORDS.values())))

    def features(self, images: Tensor) -> Tensor:
        """(B, C, h, w), the deepest map."""
        found = self.backbone(self.normalise(images))
        return found[-1] if isinstance(found, list | tuple) else found

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) float in 0..255 -> (B, 126) scores of the words."""
        x = self.features(images)
        return self.head(self.norm(torch.cat([x.mean((2, 3)), x.amax((2, 3))], dim=1)))


def train(run: Run) -> None:
    """Train and save the backbone alone, under the segmenter's names."""
    scenes, icons, recipe = run.web(), run.icons(), run.recipe()
    web = both(scenes, icons)
    named = {kind: torch.from_numpy(there) for kind, there in named_words(web.captions).items()}
    torch.manual_seed(recipe.seed)
    model = Tagger(run.name.removeprefix("backbone-"), recipe.seed)

    def loss(step):
        chosen = mixed_indices(len(scenes), len(icons), recipe, step)
        images = torch.from_numpy(web.images[chosen]).permute(0, 3, 1, 2).float()
        images = torch.where(torch.rand(len(images), 1, 1, 1) < 0.5, images.flip(-1), images)
        return naming_loss(model(images), {kind: there[chosen] for kind, there in named.items()})

    facts = fit(model, recipe, loss, count=len(web), **run.loop())
    run.finish(facts, {"backbone.safetensors": model.backbone.state_dict()})

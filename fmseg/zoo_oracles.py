"""Trains the zoo's oracle and its judge: segmenters on many pictures with all masks."""

import torch
from safetensors.torch import load_file

from fmseg.fitting import batch_indices, fit
from fmseg.oracle import to_tensor
from fmseg.segmenters import build
from fmseg.zoo_data import labelled_images
from fmseg.zoo_run import Run


def train(run: Run) -> None:
    """Train on the split `large` of the draw of the same name, on a backbone of the zoo; save the whole segmenter."""
    from fmseg.datasets import get_draw

    options, recipe = run.params[run.name], run.recipe()
    images, labels = labelled_images(run.data, run.name, options["images"])
    model = build(options["method"], options["size"], num_classes=get_draw(run.name).num_classes, seed=recipe.seed)
    pretrained = load_file(run.folder("backbone-segformer") / "backbone.safetensors")  # of `method`, or it does not fit
    model.model.backbone.load_state_dict(pretrained)  # half precision becomes single in copying

    def loss(step):
        chosen = batch_indices(len(images), recipe, step)
        x, y = to_tensor(images[chosen]), torch.from_numpy(labels[chosen]).long()
        flip = torch.rand(len(x)) < 0.5
        x = torch.where(flip[:, None, None, None], x.flip(-1), x)
        return model.loss(x, torch.where(flip[:, None, None], y.flip(-1), y))

    facts = fit(model, recipe, loss, count=len(images), **run.loop())
    run.finish(facts, {"model.safetensors": model.state_dict()})

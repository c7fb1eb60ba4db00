"""Trains the zoo's CLIP: pictures and their sentences, nothing else (Radford et al. 2021).

First the trunk alone learns to name the words of the sentences, then both towers learn contrastively while the trunk
goes on naming. Contrastively alone, nothing had left chance after 50,000 pictures: most of the signal is the ground,
which is easy. Last, on scenes alone, each picture must also tell its sentence from one in which patterns changed places
or a word was exchanged: before that, what lay beside each other in a picture was mixed up in four of ten scenes.
"""

import random

import torch
from torch import Tensor, nn

from fmseg.clip import preprocess
from fmseg.contrastive import contrastive_loss
from fmseg.fitting import batch_indices, fit
from fmseg.vocabulary import open_clip_tokenizer
from fmseg.words import article
from fmseg.zoo_configs import CLIP
from fmseg.zoo_data import WORDS, both, mixed_indices, named_words, naming_loss
from fmseg.zoo_run import Run


def shortened(caption: str, rng: random.Random) -> str:
    """The caption, or in half of the cases a part of it: some of its things, or its ground alone.

    As in captions of the web, not everything is said; a text encoder that has read parts understands short prompts.
    """
    if rng.random() < 0.5:
        return caption
    things, _, ground = caption.removeprefix("a photo of ").rpartition(" on ")
    if not things:
        return caption
    if rng.random() < 0.1:
        return f"a photo of {ground}"
    listed = things.split(" and ")
    kept = [t for t in listed if rng.random() < 0.6] or [rng.choice(listed)]
    rest = f" on {ground}" if rng.random() < 0.5 else ""
    return f"a photo of {' and '.join(kept)}{rest}"


def mistaken(caption: str, rng: random.Random) -> str:
    """The caption with one mistake about its things: two patterns change places, or one pattern or shape is another.

    No thing in it is one that the caption names. A caption without things comes back as it is.
    """
    things, _, ground = caption.removeprefix("a photo of ").rpartition(" on ")
    listed = [thing.split()[1:] for thing in things.split(" and ")] if things else []
    true = {tuple(thing) for thing in listed}
    for _ in range(20):
        made = [list(thing) for thing in listed]
        if len(made) > 1 and rng.random() < 0.7:
            a, b = rng.sample(range(len(made)), 2)
            made[a][0], made[b][0] = made[b][0], made[a][0]
            changed = (a, b)
        elif made:
            changed = (rng.randrange(len(made)),)
            part = rng.randrange(2)
            made[changed[0]][part] = rng.choice((WORDS["pattern"], WORDS["shape"])[part])
        else:
            break
        if not true & {tuple(made[k]) for k in changed}:
            rest = f" on {ground}" if rng.random() < 0.7 else ""
            return f"a photo of {' and '.join(article(' '.join(thing)) for thing in made)}{rest}"
    return caption


NAMING = 0.25  # weight of the naming loss beside the contrastive one
FORMS = ("a photograph of {}", "a picture of {}", "an image of {}", "a drawing of {}", "there is {} in the scene")


def in_other_words(caption: str, rng: random.Random) -> str:
    """The caption, or in four of ten cases another sentence with the same content."""
    if rng.random() < 0.6:
        return caption
    return rng.choice(FORMS).format(caption.removeprefix("a photo of "))


class _Naming(nn.Module):
    """The trunk under one linear layer on mean and maximum of its grid: which words does the sentence hold?"""

    def __init__(self, trunk: nn.Module):
        super().__init__()
        self.trunk, width = trunk, 2 * trunk.num_features
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, sum(map(len, WORDS.values())))

    def forward(self, images: Tensor) -> Tensor:
        return self.read(self.trunk.forward_features(images))

    def read(self, x: Tensor) -> Tensor:
        return self.head(self.norm(torch.cat([x.mean((2, 3)), x.amax((2, 3))], dim=1)))


def _mirrored(images: Tensor) -> Tensor:
    return torch.where(torch.rand(len(images), 1, 1, 1) < 0.5, images.flip(-1), images)


def train(run: Run) -> None:
    """Train and save in open_clip's layout of a local folder."""
    from open_clip.model import CLIP as Model

    import fmseg.convnet  # noqa: F401  registers the trunk

    scenes, icons = run.web(), run.icons()
    web, counts = both(scenes, icons), (len(scenes), len(icons))
    first, second, recipe = run.recipe("clip-names"), run.recipe("clip-pairs"), run.recipe()
    tokenize = open_clip_tokenizer()
    named = {kind: torch.from_numpy(there) for kind, there in named_words(web.captions).items()}
    torch.manual_seed(recipe.seed)
    model = Model(**CLIP)
    naming = _Naming(model.visual.trunk)

    def naming_step(step):
        chosen = mixed_indices(*counts, first, step)
        scores = naming(_mirrored(preprocess(web.images[chosen])))
        return naming_loss(scores, {kind: there[chosen] for kind, there in named.items()})

    def pairs(chosen, step, recipe, mistakes):
        rng = random.Random(recipe.seed * 1_000_003 + step)
        texts = [shortened(web.captions[k], rng) for k in chosen]
        group = torch.tensor([texts.index(text) for text in texts])
        texts = [in_other_words(text, rng) for text in texts]
        last = model.visual.trunk.forward_features(_mirrored(preprocess(web.images[chosen])))
        seen = nn.functional.normalize(model.visual.head(last), dim=-1)
        read, wrong = model.encode_text(tokenize(texts), normalize=True), None
        if mistakes:
            changed = [(mistaken(web.captions[k], rng), web.captions[k]) for k in chosen]
            negative = [in_other_words(new, rng) for new, old in changed if new != old]
            wrong = model.encode_text(tokenize(negative), normalize=True) if negative else None
        value = contrastive_loss(seen, read, model.logit_scale.exp().clamp(max=100), group, wrong)
        names, right = naming_loss(naming.read(last), {kind: there[chosen] for kind, there in named.items()})
        with torch.no_grad():
            found = group[(seen @ read.T).argmax(1)] == group
        return value + NAMING * names, {"contrastive": value.item(), "in-batch": found.float().mean().item()} | right

    def pairing_step(step):
        return pairs(mixed_indices(*counts, second, step), step, second, mistakes=False)

    def telling_step(step):
        return pairs(batch_indices(counts[0], recipe, step), step, recipe, mistakes=True)

    names = fit(naming, first, naming_step, count=len(web), **run.loop("names"))
    both_parts = nn.ModuleDict({"clip": model, "naming": naming})
    paired = fit(both_parts, second, pairing_step, count=len(web), **run.loop("pairs"))
    facts = fit(both_parts, recipe, telling_step, count=len(web), **run.loop())
    facts["seconds"] += names["seconds"] + paired["seconds"]
    facts["before"] = [{key: f[key] for key in ("steps", "exposures", "seconds", "loss")} for f in (names, paired)]
    config = {"model_cfg": CLIP, "preprocess_cfg": {"interpolation": "bicubic", "resize_mode": "squash"}}
    run.finish(facts, {"open_clip_model.safetensors": model.state_dict(), "open_clip_config.json": config})

"""Grounded Diffusion at the paper's size: heads trained on line, synthetic sets painted by any number of processes.

    python -m fmseg.grounded_online head  --weights SD --detector M2F --split voc/grounded-1 --out head.pt
    python -m fmseg.grounded_online pairs --weights SD --head head.pt --split voc/zs3 --count 10000 --out pairs

SD: Stable Diffusion 1.4 or 1.5, a folder or a name, see :func:`fmseg.stable_diffusion.load_pipeline`; M2F: an instance
segmenter of COCO, see :mod:`fmseg.grounded_detector`. Dossier 2.8; train.py of github.com/Lipurple/Grounded-Diffusion
(5680115): one picture a step, painted, looked at by the detector, forgotten. A picture is a function of seed and step
alone, so that a run goes on from its checkpoint with the same pictures, and a set is shared by processes.
"""

import argparse
import json
import struct
import sys
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

from fmseg import checkpoints, names, parts
from fmseg.datasets import Example
from fmseg.evaluation import weights_hash
from fmseg.generation import noise_shape
from fmseg.grounded_pictures import number_of
from fmseg.grounding import GroundingHead
from fmseg.grounding_official import load_official, official_state
from fmseg.grounding_targets import LEARNING_RATE, grounding_loss, label_map, oracle_targets
from fmseg.grounding_text import class_queries, draw_classes, image_prompt, query_prompts, token_positions
from fmseg.stable_diffusion import decode, encode_prompts, generate_latents, sample_noise
from fmseg.tables import json_text, write_files
from fmseg.taps import Taps, guidance_halves
from fmseg.words import find

Oracle = Callable[[ndarray], Sequence]  # picture (H, W, 3) uint8 -> instances, ``label`` a place among its class names
PART = 10  # pairs a file
KINDS = ("one", "two", "mixture")
TEST_GUIDANCE = 7.5  # of pictures that are not learned from
# What rich prompts end with, scenes and attributes: ours, for the "complicated prompts" of the paper's Model-E are
# unknown (dossier 5.19). None of the words is one of VOC's or COCO's classes
ENDINGS = (
    " in a living room", " in a kitchen", " in a bedroom", " in an office", " in a workshop", " on a city street",
    " in a parking lot", " in a village square", " in a garden", " in a park", " in a forest", " in a green meadow",
    " on a beach", " by a lake", " on a mountain road", " in the snow", " in the rain", " in the fog",
    " in bright sunlight", " at sunset", " at night", ", seen from above", ", seen from the side", ", close up",
    ", far away", ", in front of a white wall", ", in front of a brick wall", ", in a crowded place",
    ", partly in the shade", ", highly detailed", ", in soft colours", ", black and white",
)  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """How a head is trained on line; defaults are the official ones but for the three quirks at the end.

    Attributes:
        iterations: a picture each. objects, repeated: see :func:`fmseg.grounding_text.draw_classes`.
        steps, guidance: of the sampler. step: of the features, counted from the clean end; the code reads 1, the paper
            says 5.
        lr: Adam's, constant. rule, least, undetected: see :mod:`fmseg.grounding_targets`.
        seed: of everything.
        swapped: the detector is handed red for blue, as officially.
    """

    iterations: int = 5000
    objects: str = "random"
    steps: int = 50
    guidance: float = 5.0
    step: int = 1
    lr: float = LEARNING_RATE
    rule: str = "best"
    least: float = 0.05
    undetected: str = "skip"
    seed: int = 42
    repeated: bool = False
    swapped: bool = False


def spoken(name: str) -> str:
    """A class as prompts say it: the official lists have VOC's spelling for what VOC and COCO share."""
    shared = {coco: voc for voc, coco in names.VOC_IN_COCO.items()}
    return shared.get(name, name)


@torch.no_grad()
def painted(
    pipe, classes: Sequence[str], seed: int, recipe: Recipe, *, end: str = ""
) -> tuple[ndarray, dict[str, list[Tensor]]]:
    """One picture (H, W, 3) uint8 of one or two classes, and the U-Net's features at the recipe's step; ``end`` ends
    the prompt.

    Raises:
        ValueError: the step is not one of the sampler's; guidance is off, so that there are no two halves.
    """
    if not 1 <= recipe.step <= recipe.steps:
        raise ValueError(f"`step` must be in [1, {recipe.steps}], counted from the clean end; got {recipe.step}")
    taps, prompt = Taps(pipe.unet), image_prompt([spoken(name) for name in classes]) + end
    latents = generate_latents(
        pipe, encode_prompts(pipe, [prompt]), sample_noise(noise_shape(pipe), [seed]), steps=recipe.steps,
        guidance=recipe.guidance, on_step=lambda k, t, x: taps if k == recipe.steps - recipe.step else None,
    )  # fmt: skip
    return decode(pipe, latents)[0], guidance_halves(taps.features)


@torch.no_grad()
def queries(pipe, classes: Sequence[str]) -> Tensor:
    """(1, O, D) float32: each class from a prompt of its own."""
    said = [spoken(name) for name in classes]
    prompts = query_prompts(said)
    positions = [token_positions(p, [n], pipe.tokenizer)[0] for p, n in zip(prompts, said, strict=True)]
    return class_queries(encode_prompts(pipe, prompts), positions)[None].float()


def train(
    pipe, oracle: Oracle, known: Sequence[str], classes: Sequence[str], recipe: Recipe, *,
    head: GroundingHead | None = None, checkpoint: str | Path | None = None, checkpoint_every: int = 200,
    on_step: Callable[[int, float | None], None] | None = None,
) -> tuple[GroundingHead, dict[str, Any]]:  # fmt: skip
    """Train a head on pictures painted for it.

    Args:
        pipe: Stable Diffusion, frozen. oracle: finds instances. known: its class names.
        classes: the seen classes, all among ``known``.
        head: trained in place; None: a fresh one for this U-Net, from the recipe's seed.
        checkpoint, checkpoint_every: a run that was broken off goes on from there and ends with the same bits.
        on_step: called with (steps done, loss in nats; None where nothing was found).

    Returns:
        The head, and ``losses`` (None where nothing was found, which is no step of Adam, as officially), ``passed``
        (how many of these), ``seconds``.

    Raises:
        ValueError: a class that the oracle does not know, or a checkpoint of another run.
        FloatingPointError: the loss is not finite.
    """
    ids = {name: find(name, tuple(known), "class of the oracle") for name in classes}
    if head is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            head = GroundingHead.for_unet(pipe.unet.config)
    head.to(pipe.unet.device).train()
    optimizer = torch.optim.Adam(head.parameters(), recipe.lr)
    key = {"config": {k: v for k, v in asdict(recipe).items() if k != "iterations"}, "data": list(classes)}
    done = checkpoints.load(checkpoint, key, model=head, optimizer=optimizer) if checkpoint else None
    losses, before, begun = (done or {}).get("losses", []), (done or {}).get("seconds", 0.0), time.perf_counter()
    for index in range(len(losses), recipe.iterations):
        losses.append(_step(pipe, oracle, ids, tuple(classes), recipe, head, optimizer, index))
        if checkpoint and (len(losses) == recipe.iterations or len(losses) % checkpoint_every == 0):
            so_far = {"losses": losses, "seconds": before + time.perf_counter() - begun}
            checkpoints.save(checkpoint, key, so_far, model=head, optimizer=optimizer)
        if on_step is not None:
            on_step(len(losses), losses[-1])
    seconds = before + time.perf_counter() - begun
    return head.eval(), {"losses": losses, "passed": losses.count(None), "seconds": seconds}


def _step(pipe, oracle, ids, classes, recipe, head, optimizer, index) -> float | None:
    generator = torch.Generator().manual_seed(number_of("online", recipe.seed, index) % 2**63)
    named = draw_classes(classes, generator, recipe.objects, repeated=recipe.repeated)
    image, features = painted(pipe, named, number_of("online", recipe.seed, index, "noise"), recipe)
    seen = np.ascontiguousarray(image[..., ::-1]) if recipe.swapped else image
    masks, detected = oracle_targets(
        oracle(seen), [ids[name] for name in named], image.shape[:2], rule=recipe.rule, least=recipe.least
    )
    if recipe.undetected == "skip" and not detected.any():
        return None
    device = pipe.unet.device
    logits = head(features, queries(pipe, named), size=image.shape[:2])
    loss = grounding_loss(logits, masks[None].to(device), detected[None].to(device), undetected=recipe.undetected)
    if not bool(torch.isfinite(loss.detach())):
        raise FloatingPointError(f"the loss is not finite at picture {index + 1}; lower `lr`")
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return float(loss.detach())


class PaintedPairs:
    """Painted pictures with label maps, in the form that :func:`fmseg.export.write` takes; read from parts as asked.

    Attributes:
        classes: names by id, as the data set has them, background first. folder: where the parts lie. count: pairs.
    """

    name = "grounded"

    def __init__(self, folder: Path, classes: Sequence[str], count: int):
        self.folder, self.classes, self.count = Path(folder), tuple(classes), count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < self.count:
            raise IndexError(f"`index` must be in [0, {self.count}); got {index}")
        file = parts.file_of(self.folder, index // PART)
        image, labels = (_row(file, name, index % PART) for name in ("images", "labels"))
        return Example(image, labels, f"{self.name}_{index:06d}")


def _row(file: Path, name: str, row: int) -> ndarray:
    """One row of an array in a part, without reading the others: training asks for pairs in any order.

    Raises:
        FileNotFoundError: the part was not made yet. ValueError: it is damaged; says what to do.
    """
    try:
        with open(file, "rb") as opened:
            with zipfile.ZipFile(opened) as whole:
                opened.seek(whole.getinfo(f"{name}.npy").header_offset)  # parts are stored, not compressed
            header = opened.read(30)
            opened.seek(sum(struct.unpack("<HH", header[26:])), 1)  # lengths of the file's name and of what follows it
            version = np.lib.format.read_magic(opened)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(opened)
            size = int(np.prod(shape[1:])) * dtype.itemsize
            opened.seek(row * size, 1)
            return np.frombuffer(opened.read(size), dtype).reshape(shape[1:]).copy()
    except FileNotFoundError:
        raise FileNotFoundError(f"{file} was not made yet") from None
    except (zipfile.BadZipFile, ValueError, EOFError, KeyError) as error:
        raise ValueError(f"{file} is damaged ({error}); delete it, it is then made again") from None


def paint_pairs(
    pipe, head: GroundingHead, classes: Sequence[str], dataset: Sequence[str], count: int, folder: str | Path,
    recipe: Recipe, *, kind: str = "mixture", rich: bool = False,
) -> PaintedPairs:  # fmt: skip
    """A synthetic set. Any number of processes call this with the same arguments; each paints what no other is at, and
    a set that was broken off goes on.

    Args:
        pipe: Stable Diffusion. head: trained. classes: to paint, seen and unseen.
        dataset: class names by id of the set that the labels shall fit, with its 'background'.
        count: pairs, whole parts of :data:`PART`. folder: for the parts.
        recipe: sampler, feature step and seed count; the paper paints with guidance 7.5 here.
        kind: 'one' object, 'two', or 'mixture'.
        rich: each prompt says more than the classes, one of :data:`ENDINGS`, drawn for each picture.

    Raises:
        ValueError: unknown kind, a class that the data set lacks, not whole parts, or a folder with another set.
    """
    find(kind, KINDS, "kind")
    if count < 1 or count % PART:
        raise ValueError(f"`count` must be a multiple of {PART}, whole parts; got {count}")
    ids = {name: find(name, tuple(dataset), "class of the data set") for name in classes}
    objects = {"one": "single", "two": "two", "mixture": "random"}[kind]
    background, folder = tuple(dataset).index("background"), Path(folder)
    head.to(pipe.unet.device).eval()
    about = {"kind": kind, "classes": list(classes), "recipe": asdict(recipe), "head": weights_hash(head)}
    about |= {"endings": list(ENDINGS)} if rich else {}
    _same_set(folder / "about.json", about)

    @torch.no_grad()
    def pair(index: int) -> tuple[ndarray, ndarray]:
        generator = torch.Generator().manual_seed(number_of("pairs", kind, recipe.seed, index) % 2**63)
        named = draw_classes(tuple(classes), generator, objects)
        end = ENDINGS[number_of("pairs", kind, recipe.seed, index, "rich") % len(ENDINGS)] if rich else ""
        image, features = painted(pipe, named, number_of("pairs", kind, recipe.seed, index, "noise"), recipe, end=end)
        logits = head(features, queries(pipe, named), size=image.shape[:2])
        labels = label_map(logits.cpu(), [ids[name] for name in named], background=background)
        return image, labels[0].numpy().astype(np.uint8)

    def make(number: int) -> parts.Arrays:
        both = [pair(index) for index in range(number * PART, (number + 1) * PART)]
        return {"images": np.stack([image for image, _ in both]), "labels": np.stack([labels for _, labels in both])}

    parts.fill({parts.file_of(folder, k): (lambda k=k: make(k)) for k in range(count // PART)})
    return PaintedPairs(folder, dataset, count)


def _same_set(path: Path, about: dict) -> None:
    if path.exists() and json.loads(path.read_text(encoding="utf-8")) != about:
        raise ValueError(f"{path.parent} holds pairs of another head or recipe, see {path.name}; choose another folder")
    write_files({path: json_text(about)})


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m fmseg.grounded_online", description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("head", "pairs"))
    parser.add_argument("--weights", required=True, help="Stable Diffusion: a folder in diffusers' layout, or a name")
    parser.add_argument("--detector", help="of heads: an instance segmenter's folder or name")
    parser.add_argument("--head", help="of pairs: a file that this program or the official one wrote")
    parser.add_argument("--split", default="voc/grounded-1", help="see fmseg.protocols; Protocol II wants voc/zs3")
    parser.add_argument("--out", required=True, help="of heads a file, of pairs a folder")
    parser.add_argument("--iterations", type=int, default=Recipe.iterations)
    parser.add_argument("--sampler-steps", type=int, default=Recipe.steps)
    parser.add_argument("--step", type=int, default=Recipe.step, help="of the features, from the clean end; paper 5")
    parser.add_argument("--count", type=int, default=10_000, help="pairs; the paper's numbers are 10000 and 110000")
    parser.add_argument("--kind", choices=KINDS, default="mixture", help="of pairs: objects in a picture")
    parser.add_argument("--rich", action="store_true", help="of pairs: prompts say more than the classes")
    given = parser.parse_args(words)
    try:
        print(_head(given) if given.what == "head" else _pairs(given))
    except (ValueError, OSError) as error:
        print(f"fmseg: {error}", file=sys.stderr)
        return 1
    return 0


def _pipeline(given):
    from fmseg.stable_diffusion import load_pipeline

    pipe = load_pipeline(given.weights, device="cuda" if torch.cuda.is_available() else "cpu")
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        part.requires_grad_(False)
    return pipe


def _head(given) -> str:
    from fmseg import grounded_detector, protocols

    if not given.detector:
        raise ValueError("`--detector` is needed: a head learns from what a detector finds")
    pipe, split = _pipeline(given), protocols.get(given.split)
    oracle, known = grounded_detector.load(given.detector, device=pipe.unet.device)
    seen = [names.VOC_IN_COCO.get(name, name) for name in split.seen]  # a detector of COCO, a split of VOC or COCO
    recipe = Recipe(iterations=given.iterations, steps=given.sampler_steps, step=given.step)
    head, how = train(pipe, oracle, known, seen, recipe, checkpoint=Path(given.out).with_suffix(".checkpoint"))
    torch.save(official_state(head), given.out)
    return f"{given.out}: {len(how['losses'])} pictures, {how['passed']} passed over, {how['seconds']:.0f} s"


def _pairs(given) -> str:
    from fmseg import export, protocols

    if not given.head:
        raise ValueError("`--head` is needed: it labels what is painted")
    pipe, split = _pipeline(given), protocols.get(given.split)
    head = load_official(given.head, GroundingHead.for_unet(pipe.unet.config))
    dataset = {"voc": names.VOC, "coco": names.COCO}[split.dataset]
    recipe = Recipe(steps=given.sampler_steps, step=given.step, guidance=TEST_GUIDANCE)
    folder = Path(given.out)
    how = {"kind": given.kind, "rich": given.rich}
    made = paint_pairs(pipe, head, split.classes, dataset, given.count, folder / "parts", recipe, **how)
    return f"{export.write(made, folder / 'voc', 'voc', 'train')}: {len(made)} pairs in VOC's layout"


if __name__ == "__main__":
    sys.exit(main())

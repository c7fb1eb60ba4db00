"""Ships a model of the zoo: copies what a training left in the build folder to zoo/weights, with its card.

`python -m fmseg.zoo_promote clip` refuses to replace shipped weights unless told to: git keeps every version, and
experiments rest on them.
"""

import argparse
import json
import shutil
from pathlib import Path

from fmseg import zoo

LARGEST = 30_000_000  # bytes of all shipped weights together
_ORIGIN = "_name_or_path"
ABOUT = {  # what a model is, what it was trained on, what it knows
    "clip": (
        "open_clip `CLIP`: convolutional trunk with attention pooling, text transformer; plays CLIP",
        "pictures and captions of `web` and `icon`; the captions omit or add things at a known rate",
        "all 16 shapes, 6 patterns and 8 grounds by word; never saw a mask",
    ),
    "dino": (
        "timm `VisionTransformer`, self-distillation of the class token, hidden patches painted; plays DINO and iBOT",
        "pictures of `web`, no words",
        "what belongs together; no names",
    ),
    "mim": (
        "timm `VisionTransformer`, hidden and recoloured patches painted; the second self-supervised objective",
        "pictures of `web`, no words",
        "what belongs together; no names",
    ),
    "vae": (
        "diffusers `AutoencoderKL`, 64x64x3 to 16x16x4: the first stage of `diffusion`, which holds a copy",
        "pictures of `web` and `icon`, no words",
        "how pictures look; no names",
    ),
    "diffusion": (
        "diffusers `StableDiffusionPipeline`: autoencoder, U-Net, CLIP text encoder, DDIM; plays Stable Diffusion",
        "pictures and captions of `web`, `icon` and `duo`, and what a small network that learned these words sees in "
        "them",
        "all words of `web`; never saw a mask",
    ),
    "backbone-": (
        "backbone of the mini {0} (mmsegmentation's class); plays ImageNet pre-training",
        "pictures of `web` and `icon`, the names in their captions, and what `clip` says at every place of them",
        "all words of `web`; never saw a mask",
    ),
    "layout-": (
        "the U-Net of `diffusion`, fine-tuned with rectified cross-attention; plays FreestyleNet",
        "`diffusion`, then mask-image pairs of the `{0}` training split",
        "masks of the `{0}` classes",
    ),
    "weak-": (
        "a layout-to-image U-Net half as wide, from scratch, trained briefly; plays OASIS",
        "mask-image pairs of the `{0}` training split; autoencoder and text encoder are those of `diffusion`",
        "masks of the `{0}` classes; its U-Net saw nothing of `web`",
    ),
    "oracle": (
        "segmenter with scored instances; plays Mask R-CNN as the oracle",
        "pictures and masks of the draw `oracle`, split `large`",
        "40 things and 8 grounds; never saw the words that only `web` has",
    ),
    "judge": (
        "segmenter with scored instances; judges and never teaches",
        "pictures and masks of the draw `judge`, split `large`",
        "all 96 things and 8 grounds",
    ),
}


def about(name: str) -> dict[str, str]:
    """What a card says in words."""
    key = name if name in ABOUT else name.partition("-")[0] + "-"
    return dict(zip(("what", "data", "knows"), (t.format(name.partition("-")[2]) for t in ABOUT[key]), strict=True))


def promote(name: str, build: Path, shipped: Path, replace: bool = False) -> dict:
    """Copy one finished model and write its card.

    Args:
        name: of the model.
        build: folder of finished trainings, zoo/build/full.
        shipped: zoo/weights.
        replace: whether shipped weights may be replaced.

    Returns:
        The card.

    Raises:
        ValueError: the training is not finished or was no full one, the model is shipped already, or there is no room.
    """
    facts_path = build / name / "facts.json"
    if not facts_path.is_file():
        raise ValueError(f"{name} is not trained; `python -m fmseg.zoo_train {name}` does it")
    facts = json.loads(facts_path.read_text())
    if facts["scale"] != "full":
        raise ValueError(f"{name} was trained at scale {facts['scale']!r}; only 'full' ones are shipped")
    if (shipped / name).exists() and not replace:
        raise ValueError(f"{name} is shipped already; --replace replaces it, and voids what rests on it")
    files = [p for p in sorted((build / name).rglob("*")) if p.is_file() and p.name != "facts.json"]
    files = [p for p in files if "latents" not in p.parts]
    others = sum(p.stat().st_size for p in shipped.rglob("*") if p.is_file() and shipped / name not in p.parents)
    size = sum(p.stat().st_size for p in files)
    if others + size > LARGEST:
        raise ValueError(f"{name} has {size} bytes; with the other {others} that is more than {LARGEST}")
    shutil.rmtree(shipped / name, ignore_errors=True)
    targets = [shipped / name / path.relative_to(build / name) for path in files]
    for path, target in zip(files, targets, strict=True):
        target.parent.mkdir(parents=True, exist_ok=True)
        _copy(path, target)
    size = sum(target.stat().st_size for target in targets)
    digests = {target.relative_to(shipped / name).as_posix(): zoo.sha256(target) for target in targets}
    card = {"name": name, **about(name), "bytes": size, "files": digests, "training": facts}
    (shipped / name / zoo.CARD).write_text(json.dumps(card, indent=1) + "\n")
    return card


def _copy(path: Path, target: Path) -> None:
    """Copy a file; a configuration of diffusers without the folder that its weights once came from, which was the
    trainer's own."""
    config = json.loads(path.read_text()) if path.name == "config.json" else {}
    if _ORIGIN not in config:
        shutil.copyfile(path, target)
        return
    del config[_ORIGIN]
    target.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")  # as diffusers writes it


def main(arguments: list[str] | None = None) -> None:
    """Promote the models named."""
    parser = argparse.ArgumentParser(prog="python -m fmseg.zoo_promote", description=__doc__)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--replace", action="store_true", help="replace shipped weights")
    given = parser.parse_args(arguments)
    root = Path.cwd() / "zoo"
    for name in given.models:
        made = promote(name, root / "build" / "full", root / "weights", given.replace)
        print(f"{name}: {made['bytes'] / 1e6:.1f} MB, trained in {made['training']['seconds'] / 60:.0f} min")


if __name__ == "__main__":
    main()

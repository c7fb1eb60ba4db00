"""A zoo of random weights: right classes, right layout, cards; what it paints and names is noise."""

import json
from pathlib import Path

import torch

from fmseg.zoo import CARD, sha256

LAYOUTS = ("layout-ade", "weak-ade")


def make(folder: Path, methods=("segformer",)) -> Path:
    """Write text-to-image, two layout models, the oracle and backbones below ``folder``."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from fmseg.fitting import save_weights
    from fmseg.segmenters import build
    from fmseg.vocabulary import clip_tokenizer
    from fmseg.zoo_configs import SCHEDULER, TEXT_ENCODER, UNET, VAE, WEAK_UNET

    with torch.random.fork_rng():
        torch.manual_seed(0)
        small = UNET | {"block_out_channels": [16, 16, 16, 16], "layers_per_block": 1}
        StableDiffusionPipeline(
            vae=AutoencoderKL.from_config(VAE), unet=UNet2DConditionModel.from_config(small),
            text_encoder=CLIPTextModel(CLIPTextConfig(**TEXT_ENCODER)), tokenizer=clip_tokenizer(),
            scheduler=DDIMScheduler(**SCHEDULER), safety_checker=None, feature_extractor=None,
            requires_safety_checker=False,
        ).save_pretrained(folder / "diffusion", safe_serialization=True)  # fmt: skip
        for name in LAYOUTS:
            config = small if name.startswith("layout") else WEAK_UNET | {"layers_per_block": 1}
            UNet2DConditionModel.from_config(config).save_pretrained(folder / name / "unet", safe_serialization=True)
    save_weights(folder / "oracle" / "model.safetensors", build("segformer", num_classes=48, seed=3).state_dict())
    for method in methods:
        backbone = build(method, num_classes=2, seed=4).model.backbone
        save_weights(folder / f"backbone-{method}" / "backbone.safetensors", backbone.state_dict())
    for model in sorted(path for path in folder.iterdir() if path.is_dir()):
        files = {str(p.relative_to(model)): sha256(p) for p in sorted(model.rglob("*")) if p.is_file()}
        recipe = {"method": "segformer", "size": "mini"}
        (model / CARD).write_text(json.dumps({"files": files, "training": {"recipe": recipe}}))
    return folder

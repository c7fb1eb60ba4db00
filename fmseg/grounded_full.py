"""Grounded Diffusion at the paper's size: one picture through Stable Diffusion 1.4's architecture, and what all of it
would cost on this machine. Weights are random, nothing is downloaded.

    python -m fmseg.grounded_full [--steps 3] [--no-oracle] [--write]

Sampling, taps, an oracle's look (Mask2Former; the paper's Mask R-CNN needs compiled operators), the head forward, its
loss and the backward are timed one by one; the rest is arithmetic. Pictures are independent, each a function of its own
seed, so a set is shared by any number of processes (:mod:`fmseg.parts`) and its time divides by their number.
"""

import argparse
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from fmseg.cite import duration
from fmseg.grounding import GroundingHead
from fmseg.grounding_targets import grounding_loss, oracle_targets
from fmseg.grounding_text import class_queries, image_prompt, query_prompts, token_positions
from fmseg.settings import project_root
from fmseg.stable_diffusion import decode, encode_prompts, generate_latents, sample_noise
from fmseg.tables import json_text, write_files
from fmseg.taps import Taps, guidance_halves
from fmseg.zoo_configs import SCHEDULER, TEXT_ENCODER, UNET, VAE

UNET_14 = UNET | dict(
    sample_size=64, block_out_channels=[320, 640, 1280, 1280], cross_attention_dim=768, attention_head_dim=8,
    norm_num_groups=32,
)  # fmt: skip
VAE_14 = VAE | dict(
    down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4, layers_per_block=2,
    block_out_channels=[128, 256, 512, 512], norm_num_groups=32, sample_size=512,
)  # fmt: skip
TEXT_14 = TEXT_ENCODER | dict(
    vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
    max_position_embeddings=77, bos_token_id=49406, eos_token_id=49407, pad_token_id=49407,
)  # fmt: skip
STEPS, GUIDANCE = 50, 5.0  # of the paper's training pictures
ITERATIONS = 5000  # a picture each; IOSD says that the official head converges in about as many on VOC
SYNTHETIC = {"voc": 10_000, "coco": 110_000}  # pairs for Protocol II
KEPT = Path("results", "paper", "one_picture.json")
MODULES = {"voc": 4, "coco": 3}  # heads to train: three splits, and on VOC a fourth for ZS3's


def random_pipeline(unet: Mapping = UNET_14, vae: Mapping = VAE_14, text: Mapping = TEXT_14, seed: int = 0):
    """Stable Diffusion of given configurations with random weights; the zoo's words for a tokenizer.

    Returns:
        StableDiffusionPipeline in evaluation mode, float32, on a GPU where there is one.
    """
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from fmseg.vocabulary import clip_tokenizer

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipe = StableDiffusionPipeline(
            unet=UNet2DConditionModel.from_config(dict(unet)), vae=AutoencoderKL.from_config(dict(vae)),
            text_encoder=CLIPTextModel(CLIPTextConfig(**text)), tokenizer=clip_tokenizer(),
            scheduler=DDIMScheduler(**SCHEDULER), safety_checker=None, feature_extractor=None,
            requires_safety_checker=False,
        )  # fmt: skip
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        part.eval().requires_grad_(False)
    return pipe.to("cuda" if torch.cuda.is_available() else "cpu")


def one_picture(
    pipe, names: Sequence[str], *, steps: int, oracle=None, head: GroundingHead | None = None, seed: int = 0
) -> dict[str, Any]:
    """A training step of the official recipe: paint one picture, let the oracle look, head, loss, backward.

    Args:
        pipe: Stable Diffusion. names: the classes of the prompt, ids 0, 1, ... of the oracle.
        steps: of the sampler; one is timed by itself. oracle: picture (H, W, 3) uint8 -> instances; None: everything
            is where the prompt says nothing about.
        head: None: a fresh one of the paper's size for this U-Net.
        seed: of the picture.

    Returns:
        ``seconds`` by phase ('step': one of the sampler, 'decode', 'oracle', 'forward', 'backward'), ``loss``,
        ``features`` (bytes of them in half precision), ``memory`` (bytes at the peak of this process or GPU).

    Raises:
        ValueError: fewer than two steps, or a name that the prompt's tokens do not hold.
    """
    if steps < 2:
        raise ValueError(f"`steps` must be at least 2, so that one of them is not the first; got {steps}")
    device, marks, taps = pipe.unet.device, [], Taps(pipe.unet)
    side = pipe.unet.config.sample_size
    head = head or GroundingHead.for_unet(pipe.unet.config)
    head.to(device).train()
    queries = query_prompts(list(names))
    positions = [token_positions(p, [n], pipe.tokenizer)[0] for p, n in zip(queries, names, strict=True)]
    text = class_queries(encode_prompts(pipe, queries), positions)[None]
    noise = sample_noise((pipe.unet.config.in_channels, side, side), [seed])

    def on_step(k, t, latents):
        marks.append(_now(device))
        return taps if k == steps - 1 else None  # the last call, as the code reads

    latents = generate_latents(
        pipe, encode_prompts(pipe, [image_prompt(list(names))]), noise, steps=steps, guidance=GUIDANCE, on_step=on_step
    )
    marks.append(_now(device))
    image = decode(pipe, latents)[0]
    marks.append(_now(device))
    found = oracle(image) if oracle else []
    masks, detected = oracle_targets(found, range(len(names)), image.shape[:2])
    marks.append(_now(device))
    features = guidance_halves(taps.features)
    logits = head(features, text, size=image.shape[:2])
    loss = grounding_loss(logits, masks[None].to(device), detected[None].to(device), undetected="zero")
    marks.append(_now(device))
    loss.backward()
    marks.append(_now(device))
    whole, (decoding, looking, forward, backward) = _differences(marks[: steps + 1]), _differences(marks[steps:])
    half = sum(2 * t.numel() for tensors in features.values() for t in tensors)
    phases = {"step": sorted(whole[1:])[len(whole[1:]) // 2], "decode": decoding, "oracle": looking}
    phases |= {"forward": forward, "backward": backward}
    return {"seconds": phases, "loss": float(loss.detach()), "features": half, "memory": peak(device)}


def mask2former(seed: int = 0):
    """The paper-size Mask2Former with random weights as an oracle: picture (H, W, 3) uint8 -> instances."""
    from fmseg import paper_segmenters
    from fmseg.oracle import instances, probabilities

    model = paper_segmenters.build("mask2former", "t", num_classes=80, image_size=512, seed=seed).eval()
    return lambda image: instances(probabilities(model, image[None])[0], range(80))


def forecast(measured: Mapping, devices: int = 1) -> dict[str, float]:
    """Seconds of the paper's program, from one picture: what is done, one device after another or side by side.

    Args:
        measured: of :func:`one_picture`. devices: that share the work; perfect sharing is assumed.
    """
    s = measured["seconds"]
    painting = STEPS * s["step"] + s["decode"]
    training = painting + s["oracle"] + s["forward"] + s["backward"]
    made = {f"a head's training on {d}, {ITERATIONS} pictures": ITERATIONS * training for d in MODULES}
    made |= {f"all {n} heads on {d}": n * ITERATIONS * training for d, n in MODULES.items()}
    made |= {f"the synthetic set for {d}, {n} pairs": n * (painting + s["forward"]) for d, n in SYNTHETIC.items()}
    return {what: seconds / devices for what, seconds in made.items()}


def report(measured: Mapping, device: str) -> str:
    """The forecast in words, for one device and eight."""
    lines = [f"one picture at Stable Diffusion 1.4's size on {device}: " + ", ".join(
        f"{phase} {seconds:.3g} s" for phase, seconds in measured["seconds"].items()
    )]  # fmt: skip
    lines.append(
        f"memory at the peak {measured['memory'] / 1e9:.1f} GB; a picture's features in half precision "
        f"{measured['features'] / 1e6:.0f} MB, so they are not kept: pictures are painted on line"
    )
    one, eight = forecast(measured), forecast(measured, 8)
    lines += [f"{what}: {duration(one[what])}, on eight {duration(eight[what])}" for what in one]
    return "\n".join(lines)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _differences(marks: Sequence[float]) -> list[float]:
    return [b - a for a, b in zip(marks, marks[1:], strict=False)]


def peak(device: torch.device) -> int:
    """Bytes at the peak of a GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m fmseg.grounded_full", description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=3, help="of the sampler, of which one is timed; default 3")
    parser.add_argument("--no-oracle", action="store_true", help="leave Mask2Former out")
    parser.add_argument("--write", action="store_true", help=f"keep what is found for the README, in {KEPT}")
    given = parser.parse_args(words)
    try:
        pipe = random_pipeline()
        oracle = None if given.no_oracle else mask2former()
        measured = one_picture(pipe, ("striped star", "plain disc"), steps=given.steps, oracle=oracle)
    except ValueError as error:
        print(f"fmseg: {error}", file=sys.stderr)
        return 1
    threads = torch.get_num_threads()
    device = f"CPU, {threads} thread{'s' * (threads > 1)}"
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    said = report(measured, device)
    print(said)
    if given.write:
        write_files({project_root() / KEPT: json_text(measured | {"device": device, "report": said.splitlines()})})
    return 0


if __name__ == "__main__":
    sys.exit(main())

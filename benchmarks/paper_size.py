"""Paper-size segmenters, random weights: one optimisation step and one evaluation each, time and peak memory.

    python benchmarks/paper_size.py [--batch 1] [--write]
    python benchmarks/paper_size.py --step fmwiss [--crop 128] [--batch 2]

Every model in a process of its own, so that its peak memory is its own. On a GPU where there is one, then with the
recipe's batch of one GPU (2) unless --batch says otherwise, and images per second over ten steps. --write keeps the
figures in results/paper/scale.json, for README's scale table.

--step: of a class-incremental method one optimisation step of its base model and one of its own, DeepLabV3 with
ResNet-101 (and for FMWISS CLIP ViT-B/16 and DINO ViT-B/16), on pictures of noise; crops of 512 are the paper's.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
CLASSES = 150  # ADE20K's


def measure(name: str, size: str, batch: int, threads: int) -> dict:
    """One model: seconds of a step and of segmenting one picture of 512x683 pixels, bytes at the peak."""
    import torch

    from fmseg import paper_segmenters
    from fmseg.batches import Source
    from fmseg.inference import segment
    from fmseg.train_config import TrainConfig
    from fmseg.training import train

    torch.set_num_threads(threads)
    cuda = torch.cuda.is_available()
    recipe = paper_segmenters.recipe(name, size, "ade20k", images=20_210)
    side = recipe.crop[0]
    model = paper_segmenters.build(name, size, num_classes=CLASSES, image_size=side)
    rng = np.random.default_rng(0)
    labels = np.kron(rng.integers(0, CLASSES, (batch, 8, 8)), np.ones((side // 8, side // 8))).astype(np.uint8)
    source = Source(rng.integers(0, 256, (batch, side, side, 3), dtype=np.uint8), labels)
    steps = 13 if cuda else 2  # the first ones warm up
    options = {"steps": steps, "batch_size": batch, "warmup_steps": 0, "eval_every": None, "device": "auto"}
    # a batch of one leaves batch norm a single value a channel in DeepLabV3's image-level branch
    config = TrainConfig.from_dict(recipe.train | options | {"freeze_norm": batch == 1})
    marks = []
    train(model, source, config, progress=False, on_step=lambda step, loss: marks.append(time.perf_counter()))
    each = (marks[-1] - marks[2]) / (len(marks) - 3) if cuda else marks[1] - marks[0]
    picture = rng.integers(0, 256, (512, 683, 3), dtype=np.uint8)
    if cuda:
        segment(model, picture, recipe.test)
    started = time.perf_counter()
    segment(model, picture, recipe.test)
    evaluation = time.perf_counter() - started
    memory = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "model": f"{name} {size}", "parameters": sum(p.numel() for p in model.parameters()), "crop": side,
        "batch": batch, "step": round(each, 4), "picture": round(evaluation, 4), "memory": memory,
        "device": torch.cuda.get_device_name() if cuda else f"CPU, {threads} thread{'s' * (threads > 1)}",
    }  # fmt: skip


def measure_step(method: str, crop: int, batch: int, threads: int) -> dict:
    """A method's base step and its own: losses, seconds, shares of the segmenter's tensors that moved, peak bytes."""
    import torch

    from fmseg.incremental_base import Binary, family
    from fmseg.incremental_configs import run_config
    from fmseg.plan_real_incremental import made, untrained
    from fmseg.real_incremental import fresh, prepared
    from fmseg.settings import Settings, load
    from fmseg.train_config import TrainConfig
    from fmseg.training import train

    torch.set_num_threads(threads)
    values = load("paper", ROOT).values | {"crop": crop, "train": {"device": "auto"}}
    config = untrained(run_config(Settings("paper", values, ROOT), method, 0, "15-5 disjoint"))
    found = {"method": method, "crop": crop, "batch": batch}

    def one(name: str, model, source, options: dict, followed) -> None:
        options = {k: v for k, v in options.items() if k != "family"}
        options |= {"steps": 1, "batch_size": batch, "eval_every": None, "freeze_norm": batch == 1}
        before = {k: v.clone() for k, v in followed.named_parameters()}
        started = time.perf_counter()
        done = train(model, source, TrainConfig.from_dict(options), progress=False)
        moved = [not torch.equal(v.cpu(), before[k].cpu()) for k, v in followed.named_parameters()]
        found[name] = {
            "loss": round(done.losses[0], 4), "seconds": round(time.perf_counter() - started, 2),
            "moved": round(sum(moved) / len(moved), 3),
        }  # fmt: skip

    with tempfile.TemporaryDirectory() as folder:
        steps = made(config, Path(folder), 2 * batch)
        old = fresh(config, 16)
        learner = Binary(old) if family(method) == "sigmoid" else old
        one("base", learner, steps.base_source(), config["base"], old)
        step, source, _ = prepared(config, steps, old.eval())
        step.warmup = 0.0  # else the student rests in a single step
        one("step", step, source, config["train"], step.student)
    cuda = torch.cuda.is_available()
    found["memory"] = (
        torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    return found | {"device": torch.cuda.get_device_name() if cuda else f"CPU, {threads} threads"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, help="images a step; default 1, on a GPU 2")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--only", nargs=2, metavar=("NAME", "SIZE"), help=argparse.SUPPRESS)
    parser.add_argument("--step", metavar="METHOD", help="of a class-incremental method, see above")
    parser.add_argument("--crop", type=int, default=128, help="of --step, pixels")
    given = parser.parse_args()
    if given.step:
        print(json.dumps(measure_step(given.step, given.crop, given.batch or 2, given.threads), indent=1))
        return
    import torch

    batch = given.batch or (2 if torch.cuda.is_available() else 1)
    if given.only:
        print(json.dumps(measure(*given.only, batch, given.threads)))
        return
    from fmseg.paper_segmenters import FILES

    found = []
    print("| model | parameters (M) | batch x crop | s a step | images/s | s a picture | GB at the peak | on |")
    print("|---|---|---|---|---|---|---|---|")
    for name, sizes in FILES.items():
        for size in sizes:
            words = ["--batch", str(batch), "--threads", str(given.threads), "--only", name, size]
            out = subprocess.run([sys.executable, __file__, *words], stdout=subprocess.PIPE, text=True, check=True)
            made = json.loads(out.stdout.splitlines()[-1])
            found.append(made)
            print(
                f"| {made['model']} | {made['parameters'] / 1e6:.1f} | {batch} x {made['crop']} | {made['step']:.3g} | "
                f"{batch / made['step']:.3g} | {made['picture']:.3g} | {made['memory'] / 1e9:.1f} | {made['device']} |",
                flush=True,
            )
    if given.write:
        path = ROOT / "results/paper/scale.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        known = json.loads(path.read_text()) if path.exists() else []
        kept = [m for m in known if m["device"] != found[0]["device"]]
        path.write_text(json.dumps(kept + found, indent=1) + "\n")


if __name__ == "__main__":
    main()

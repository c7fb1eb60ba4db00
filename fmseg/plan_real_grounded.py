"""What Grounded Diffusion's tables cost at the paper's size: one picture and one step are timed, the rest follows from
the very configurations that would be run.
"""

import sys
import time
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache

import torch

from fmseg import grounded_full, maskformer, real_zero_shot_configs
from fmseg.cite import duration
from fmseg.grounded_pictures import MOST
from fmseg.grounded_tables import T1, T3, T4, TIMESTEPS
from fmseg.paint_table import pairs
from fmseg.provenance import canonical_hash
from fmseg.settings import Settings
from fmseg.zero_shot_table import T2

PROTOCOL_ONE = (T1, T3, T4, TIMESTEPS)  # in this order: a later table does not train again what an earlier one did
SIDE, LATENTS, CHANNELS = 512, 64, 4  # of Stable Diffusion 1
HEAD_BYTES = 4 * 18_796_560  # dossier 3.1


def test_pictures(config: Mapping) -> int:
    """How many test pictures a run of :mod:`fmseg.real_grounded` is scored on."""
    test = config["test"]
    return test["one"] + test["two"] + test.get("unseen", 0) * len(test["groups"])


def disk_of_test(config: Mapping) -> int:
    """Bytes of its test pictures: images, latents before every step, heat maps, the oracle's masks."""
    latents = config["sampling"]["steps"] * CHANNELS * LATENTS**2 * 4
    return test_pictures(config) * (SIDE**2 * 3 + latents + MOST * LATENTS**2 * 2 + MOST * SIDE**2 // 8)


def training(config: Mapping, seconds: Mapping[str, float]) -> float:
    """Seconds of a head's training: each picture is painted, looked at, learned from."""
    painted = config["sampling"]["steps"] * seconds["step"] + seconds["decode"]
    learned = seconds["oracle"] + seconds["forward"] + seconds["backward"]
    return config["train"]["steps"] * (painted + learned)


def forecast(settings: Settings, seconds: Mapping[str, float], segmenter: Mapping[str, float]) -> dict[str, dict]:
    """Of each table with runs at the paper's size what it adds to those before it.

    Args:
        settings: of a profile on real data.
        seconds: of :func:`fmseg.grounded_full.one_picture`, by phase.
        segmenter: data set -> seconds of one picture in MaskFormer's training.

    Returns:
        id -> ``seconds`` on one device, ``disk`` in bytes, ``what`` in words.
    """
    done: set[str] = set()

    def new(kind: str, *facts) -> bool:
        key = canonical_hash([kind, *facts])
        return key not in done and not done.add(key)

    made = {}
    for experiment in PROTOCOL_ONE:
        total, disk, heads, tests = 0.0, 0, 0, 0
        for config in experiment.configs(settings):
            count = test_pictures(config)
            if new("test", config["draw"], config["test"], config["sampling"], config["zoo"]):
                painted = config["sampling"]["steps"] * seconds["step"] + seconds["decode"]
                total, disk = total + count * (painted + seconds["oracle"]), disk + disk_of_test(config)
                tests += count
            if config["method"] == "head" and new("head", config):
                total += training(config, seconds) + count * (seconds["step"] + seconds["forward"])
                heads += 1
        made[experiment.id] = {"seconds": total, "disk": disk, "what": f"{heads} heads, {tests:,} test pictures"}
    runs, sets = T2.configs(settings), pairs(settings)
    heads = {canonical_hash(one["head"]): one["head"] for one in sets}
    total = sum(training(head, seconds) for head in heads.values())
    painted = 0
    for one in sets:
        sampling, count = one["head"]["sampling"], one["what"]["count"]
        total += count * (sampling["steps"] * seconds["step"] + seconds["decode"] + seconds["forward"])
        painted += count
    trained = [config for config in runs if config["method"] != real_zero_shot_configs.CLIP_DENSE]
    total += sum(c["train"]["steps"] * c["train"]["batch_size"] * segmenter[c["draw"]] for c in trained)
    made[T2.id] = {
        "seconds": total, "disk": painted * SIDE**2 * 4 + len(heads) * HEAD_BYTES,
        "what": f"{len(heads)} heads, {painted:,} labelled pairs, {len(trained)} segmenters",
    }  # fmt: skip
    return made


@lru_cache(maxsize=4)
def segmenter_step(size: str, draw: str, crop: int | None) -> tuple[float, float]:
    """Seconds of a picture in MaskFormer's training with random weights, and GB at the peak of this process or GPU."""
    recipe = maskformer.recipe(draw, crop=crop)
    cuda = torch.cuda.is_available()
    batch, rounds = (4, 4) if cuda else (1, 2)
    model = maskformer.build(size, num_classes=81, image_size=recipe.crop[0]).to("cuda" if cuda else "cpu")
    optimizer = torch.optim.AdamW(model.parameters(), recipe.train["lr"])
    draws = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (batch, 3, *recipe.crop), generator=draws, dtype=torch.uint8)
    blocks = torch.randint(0, 81, (batch, 8, 8), generator=draws)
    labels = blocks.repeat_interleave(recipe.crop[0] // 8, 1).repeat_interleave(recipe.crop[1] // 8, 2)
    images, labels = (x.to(next(model.parameters()).device) for x in (images, labels))
    marks = []
    for _ in range(rounds):
        optimizer.zero_grad(set_to_none=True)
        model.loss(images, labels).backward()
        optimizer.step()
        if cuda:
            torch.cuda.synchronize()
        marks.append(time.perf_counter())
    return (marks[-1] - marks[0]) / (rounds - 1) / batch, grounded_full.peak(images.device) / 1e9


@lru_cache(maxsize=2)
def _one_picture(pipeline: Callable, oracle: Callable, measure: Callable) -> tuple[Mapping, str]:
    """What :mod:`fmseg.grounded_full` measures, and the device; a plan of several stages measures it once."""
    pipe = pipeline()
    return measure(pipe, ("striped star", "plain disc"), steps=3, oracle=oracle()), str(pipe.device)


def report(stage: str, tables: Iterable[str], settings: Settings, progress: bool = True) -> str:
    """The forecast of a stage's tables in words: time, memory, disk, and the lines that start it.

    Args:
        stage: the notebook. tables: ids. settings: of a profile on real data. progress: say what is being timed.
    """
    tables = list(tables)
    if progress:
        print(f"timing {stage}: one picture at Stable Diffusion 1.4's size ...", file=sys.stderr)
    measured, device = _one_picture(grounded_full.random_pipeline, grounded_full.mask2former, grounded_full.one_picture)
    phases = ", ".join(f"{phase} {seconds:.3g} s" for phase, seconds in measured["seconds"].items())
    steps = settings.get("grounded_real.sampling.steps")
    lines = [f"{stage}: on {device}, random weights; pictures painted on line"]
    lines.append(f"  a picture: {steps} steps; {phases}; {measured['memory'] / 1e9:.1f} GB at the peak")
    segmenter = dict.fromkeys(real_zero_shot_configs.SPLITS, 0.0)
    if T2.id in tables:
        size = settings.get("grounded_real.zero_shot.size")
        if progress:
            print(f"timing {stage}: a step of MaskFormer {size} ...", file=sys.stderr)
        for draw in segmenter:
            segmenter[draw], memory = segmenter_step(size, draw, settings.get("crop"))
            said = f"{segmenter[draw]:.3g} s a picture in training, {memory:.1f} GB at the peak"
            lines.append(f"  MaskFormer {size} on {draw}: {said}")
    found = forecast(settings, measured["seconds"], segmenter)
    for table in tables:
        if table not in found:
            lines.append(f"  {table}: of the mini world, or without a number in the paper; nothing is planned")
            continue
        one, eight = duration(found[table]["seconds"]), duration(found[table]["seconds"] / 8)
        lines.append(
            f"  {table}: {found[table]['what']}; {one} on 1 such device, {eight} on 8, sharing perfectly; "
            f"{found[table]['disk'] / 1e9:.1f} GB on disk"
        )
    job = "-m fmseg {} {} --profile " + settings.profile
    for table in (table for table in tables if table in found):
        if table == T2.id:
            lines.append(f"    python {job.format('paint', table)}  (on every device that shall help)")
            lines.append(f"    torchrun --standalone --nproc-per-node 8 {job.format('train', table)}")
        else:
            lines.append(f"    python {job.format('train', table)} --only seed=0  (others on each device)")
    return "\n".join(lines)

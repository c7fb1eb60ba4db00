"""Configurations of Grounded Diffusion's runs, from the parameters of a profile.

They are made here and not where runs are trained, so that a record rests on the values, not on how they came together.
"""

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

from fmseg import configs, protocols, real_grounded_configs, real_zero_shot_configs, zoo
from fmseg.experiment import on_real_data
from fmseg.segmenters import SCRATCH, zoo_backbone
from fmseg.settings import Settings
from fmseg.zero_shot import CLIP_DENSE

SPLITS = (1, 2, 3)
SOURCES = {  # rows of the table `grounded-inversion`
    "painted pictures oracle masks": "painted",
    "inverted pictures oracle masks": "inverted, oracle",
    "inverted pictures true masks": "inverted, true masks",
}
ZERO_MASKS = {"zero masks": "zero", "without zero masks": "skip"}  # rows of Table 3: what becomes of undetected classes
SYNTHETIC = {  # rows of Table 2 that train on synthetic sets: kinds, rich prompts, real pictures
    "Model-A one object": (("one",), False, False),
    "Model-B two objects": (("two",), False, False),
    "Model-C mixture": (("one", "two"), False, False),
    "Model-D mixture and real seen": (("one", "two"), False, True),
    "Model-E rich prompts and real seen": (("one", "two"), True, True),
}
BASELINES = {"real seen alone": "seen-only", "ZS3-style": "zs3-style", "CLIP dense": CLIP_DENSE}


Runs = Callable[[Settings], list[dict]]


def _or_at_paper_size(real: Runs = lambda settings: []) -> Callable[[Runs], Runs]:
    """In a profile on real data other runs, by default none: some tables are of the mini world alone."""

    def decorate(make: Runs) -> Runs:
        @wraps(make)
        def wrapped(settings: Settings) -> list[dict]:
            return real(settings) if on_real_data(settings) else make(settings)

        return wrapped

    return decorate


def split_of(draw: str, number: int, settings: Settings | None = None) -> protocols.ZeroShot:
    """Split 1, 2 or 3 of the mini world's `voc` (15 seen, 5 unseen) or `coco` (32 and 8); where ``settings`` are given
    and of real data, of VOC or COCO."""
    if settings is not None and on_real_data(settings):
        return real_grounded_configs.split_of(draw, number)
    return protocols.get(f"mini/grounded-{draw}-{number}")


def head(settings: Settings, seed: int, draw: str, seen: tuple[str, ...], **changes: Any) -> dict[str, Any]:
    """A head of :mod:`fmseg.grounded_runs`, scored on the painted test pictures of its draw.

    Args:
        settings: gives the section ``grounded``.
        seed, draw, seen: see :func:`fmseg.grounded_runs.run`.
        changes: keys of the configuration that differ; ``test`` is merged.
    """
    train = dict(settings.get("grounded.train"))
    steps = max(1, train.pop("exposures") // train["batch_size"])
    train |= {"steps": steps, "warmup_steps": round(train.pop("warmup") * steps)}
    made = {
        "method": "head",
        "seed": seed,
        "draw": draw,
        "seen": list(seen),
        "step": 1,
        "sampling": dict(settings.get("grounded.sampling")),
        "oracle": dict(settings.get("grounded.oracle")),
        "pictures": {"from": "painted", **settings.get("grounded.pictures")},
        "test": painted_test(settings, draw),
        "zoo": weights("diffusion", "oracle"),
        "head": dict(settings.get("grounded.head")),
        "undetected": "skip",
        "train": train,
    }
    return made | changes


def daam(settings: Settings, draw: str, seen: tuple[str, ...], **changes: Any) -> dict[str, Any]:
    """DAAM on the same test pictures; it learns nothing, so one run serves all seeds."""
    made = head(settings, 0, draw, seen, **changes) | {"method": "daam"}
    untrained = _dearer_than(made["train"]["steps"] * made["train"]["batch_size"])
    return {key: value for key, value in made.items() if key not in ("head", "undetected")} | {"train": untrained}


def _dearer_than(exposures: int) -> dict[str, int]:
    """What stands for the training of a run without one: more than others have, for the cheapest run of a table is
    trained live to see whether records hold, and that must be one that trains."""
    return {"steps": exposures + 1}


def painted_test(settings: Settings, draw: str) -> dict[str, Any]:
    """Test pictures of a draw: see :func:`fmseg.grounded_runs.test_sets`."""
    return {**settings.get(f"grounded.test.{draw}"), "groups": [list(split_of(draw, k).unseen) for k in SPLITS]}


def weights(*names: str) -> dict[str, str]:
    """{model of the zoo: hash of its weights}."""
    return {name: zoo.weights_hash(name) for name in names}


@_or_at_paper_size(real_grounded_configs.table_1)
def table_1(settings: Settings) -> list[dict]:
    """Every draw and split: DAAM once, a head at every seed."""
    made = []
    for draw in ("voc", "coco"):
        for number in SPLITS:
            seen = split_of(draw, number).seen
            made.append(daam(settings, draw, seen))
            made += [head(settings, seed, draw, seen) for seed in settings.get("seeds")]
    return made


@_or_at_paper_size()
def novelty(settings: Settings) -> list[dict]:
    """Split 1 of `voc` on things of any word, whose masks the judge knows."""
    seen, test = split_of("voc", 1).seen, {"novel": settings.get("grounded.novel")}
    changes = {"test": test, "zoo": weights("diffusion", "oracle", "judge")}
    heads = [head(settings, seed, "voc", seen, **changes) for seed in settings.get("seeds")]
    return [daam(settings, "voc", seen, **changes), *heads]


@_or_at_paper_size(real_grounded_configs.table_3)
def table_3(settings: Settings) -> list[dict]:
    """Split 1 of `voc` with and without zero masks."""
    seen = split_of("voc", 1).seen
    return [head(settings, s, "voc", seen, undetected=u) for u in ZERO_MASKS.values() for s in settings.get("seeds")]


@_or_at_paper_size(real_grounded_configs.table_4)
def table_4(settings: Settings) -> list[dict]:
    """`coco` with ever more seen classes; as many pictures whatever their number, so painted of seen classes alone."""
    split, what = split_of("coco", 1), {"from": "painted", "of": "seen", **settings.get("grounded.pictures_seen")}
    return [
        head(settings, seed, "coco", protocols.first_seen(split, count).seen, pictures=what)
        for count in settings.get("grounded.seen_classes")
        for seed in settings.get("seeds")
    ]


@_or_at_paper_size(real_grounded_configs.timesteps)
def timesteps(settings: Settings) -> list[dict]:
    """Split 1 of `voc`, features of ever noisier steps."""
    seen = split_of("voc", 1).seen
    return [
        head(settings, seed, "voc", seen, step=step)
        for step in settings.get("grounded.timesteps")
        for seed in settings.get("seeds")
    ]


@_or_at_paper_size()
def inversion(settings: Settings) -> list[dict]:
    """Split 1 of `voc`: painted pictures against real ones, inverted; scored on painted and on real pictures."""
    seen, real = split_of("voc", 1).seen, settings.get("grounded.real")
    made = []
    for source in SOURCES.values():
        what = {"pictures": {"from": source, "images": real["images"]}} if source != "painted" else {}
        test = painted_test(settings, "voc") | {"real": real["validation"]}
        made += [head(settings, seed, "voc", seen, test=test, **what) for seed in settings.get("seeds")]
    return made


@_or_at_paper_size(real_zero_shot_configs.table_2)
def table_2(settings: Settings) -> list[dict]:
    """Protocol II on both draws: synthetic rows and baselines."""
    made = []
    for draw in ("voc", "coco"):
        for label in SYNTHETIC:
            made += [synthetic_row(settings, label, draw, seed) for seed in settings.get("seeds")]
        for method in BASELINES.values():
            seeds = settings.get("seeds") if method != CLIP_DENSE else [0]
            made += [_baseline(settings, method, draw, seed) for seed in seeds]
    return made


def synthetic_row(settings: Settings, label: str, draw: str, seed: int) -> dict[str, Any]:
    """A segmenter trained on synthetic sets; the head that labels them is that of split 1 at the same seed.

    In the mini world split 1 of Protocol I leaves out the same classes as ZS3's split; in the paper it does not.
    """
    kinds, rich, real = SYNTHETIC[label]
    split, count = split_of(draw, 1), settings.get("grounded.zero_shot.pictures")
    made = _segmenter_run(settings, label.split()[0].lower(), draw, seed)
    made["sets"] = [{"kind": kind, "count": count // len(kinds), "rich": rich} for kind in kinds]
    made |= {"head": head(settings, seed, draw, split.seen), "real": real}
    return made


def _baseline(settings: Settings, method: str, draw: str, seed: int) -> dict[str, Any]:
    made = _segmenter_run(settings, method, draw, seed)
    if method == CLIP_DENSE:
        made = {key: value for key, value in made.items() if key not in ("segmenter", "backbone")}
        exposures = settings.get("grounded.zero_shot.exposures")
        return made | {"zoo": weights("clip"), "train": _dearer_than(exposures)}
    if method == "zs3-style":
        made |= {"generator": dict(settings.get("grounded.zero_shot.generator")), "zoo": weights("clip")}
    return made | {"real": True}


def _segmenter_run(settings: Settings, method: str, draw: str, seed: int) -> dict[str, Any]:
    options = settings.get("grounded.zero_shot")
    name, images = options["segmenter"], settings.get(f"world.train.{draw}")
    train: Mapping = configs.supervised(settings, name, seed, draw, images, options["exposures"])["train"]
    return {
        "method": method,
        "seed": seed,
        "draw": draw,
        "split": split_of(draw, 1).name,
        "images": images,
        "validation": settings.get("world.val"),
        "size": settings.get("world.size"),
        "segmenter": name,
        "backbone": zoo_backbone(name) if options["backbone"] == "zoo" else SCRATCH,
        "zoo": weights("diffusion", "oracle"),
        "train": dict(train),
    }

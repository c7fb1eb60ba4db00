"""FreeMask's tables of trained runs (dossier T-A to T-J) as data; :mod:`fmseg.freemask_layout` makes them."""

from collections.abc import Callable
from dataclasses import replace

from fmseg.experiment import on_real_data
from fmseg.freemask_configs import CROSSFITTED, layout, own_layout, real, with_pictures
from fmseg.freemask_layout import Entry, Layout
from fmseg.real_freemask_configs import run_config
from fmseg.settings import Settings

README, POST = "FreeMask README", "the authors' post on FreeMask"
METHODS = {"SegFormer": "segformer", "Segmenter": "segmenter", "Mask2Former": "mask2former"}
REAL, LONG = "real", "real as long"  # columns
JOINT, PAINTED, CLEAN = "joint", "as painted", "filter and re-sampling"
SHORTEST, LONGEST = "shortest schedule", "longest schedule"  # rows
MISSING = (None, "MISSING")
STAGE_JOINT, STAGE_ABLATION = "24_freemask_joint", "25_freemask_ablations"
PAPER_SIZES = (
    "The paper's SegFormer is MiT-B4 in transfer and ablations, MiT-B2, Segmenter ViT-S and Mask2Former Swin-T "
)
SEEDS = (
    "One training split, one generator and one filter model serve all seeds of a draw; a seed fixes the draw of "
    "pictures, initial weights of what is not pre-trained, and the order of data. "
)
SCHEDULE = (
    "Runs with synthetic pictures see twice as many images as those on real ones alone, as in the official "
    "configurations; *real as long* is the control. "
)


EXCLUDED = "at paper size Mask2Former is mmsegmentation's own, with ignored pixels as negatives"
MINI_WORLD = "its generators are the mini world's"  # why a row has no runs at paper size


def _real(draw: str, method: str = "segformer", large: bool = True, **more) -> Callable:
    def make(settings, seed):
        if on_real_data(settings):
            return run_config(settings, "real", draw, seed, method, large=large)
        return real(settings, draw, seed, method, **more)

    return make


def _long(draw: str, method: str = "segformer", strong: bool = False, large: bool = True, **more) -> Callable:
    def make(settings, seed):
        if on_real_data(settings):
            return run_config(settings, "real", draw, seed, method, large=large, long=True)
        own = settings.get("freemask")
        augment = own["augment"] if strong else None
        seen = {"exposures": own["exposures"]["synthetic"]} | more
        return real(settings, draw, seed, method, augment=augment, **seen)

    return make


def _with(paradigm: str, draw: str, method: str = "segformer", large: bool = True, **more) -> Callable:
    def make(settings, seed):
        if on_real_data(settings):
            return run_config(settings, paradigm, draw, seed, method, large=large, **more)
        return with_pictures(settings, paradigm, draw, seed, method, **more)

    return make


def _painted(paradigm: str, draw: str, **more) -> Callable:
    """All pictures of all masks as they were painted: neither filter nor re-sampling."""

    def make(settings, seed):
        if on_real_data(settings):
            return run_config(settings, paradigm, draw, seed, resample=False, alpha=None, **more)
        measured = {"quality": settings.get("freemask.quality")} if paradigm == "synthetic" else {}
        return with_pictures(settings, paradigm, draw, seed, resample=False, alpha=None, **measured, **more)

    return make


def _transfer(settings: Settings) -> dict:
    rows = {}
    for draw, papers in (("ade", {"SegFormer": ((48.5, "SEED"), (48.3, "SEED"))}), ("stuff", {})):
        for label, method in METHODS.items():
            main = label == "SegFormer"
            if draw == "stuff" and not main:
                continue
            on_real, on_made = papers.get(label, ((50.5, "SEED"), (49.3, "SEED")) if main else (MISSING, MISSING))
            rows[f"{label} on {draw}"] = {
                REAL: Entry(_real(draw, method), main, on_real, headline=main and draw == "ade"),
                LONG: Entry(_long(draw, method)) if main else "a control of SegFormer alone",
                "synthetic": Entry(_with("synthetic", draw, method), main, on_made, headline=main and draw == "ade"),
            }
    return rows


TRANSFER = Layout(
    "freemask-transfer", "Trained on real or on synthetic images alone", "FreeMask, transfer to real images (T-A)",
    POST, (REAL, LONG, "synthetic"), _transfer,
    SEEDS + SCHEDULE + "The paper does not name the model of its COCO-Stuff numbers; they stand in the row of `stuff`.",
    STAGE_JOINT,
)  # fmt: skip


def _joint(draw: str, papers: dict[str, tuple[float, float]]) -> Callable:
    def rows(settings: Settings) -> dict:
        made = {}
        for label, method in METHODS.items():
            main = label == "SegFormer"
            on_real, jointly = ((value, "STATED") for value in papers[label])
            made[label] = {
                REAL: Entry(_real(draw, method, large=False), True, on_real, headline=main and draw == "ade"),
                LONG: Entry(_long(draw, method, large=False), draw == "ade")
                if main
                else "a control of SegFormer alone",
                JOINT: Entry(_with("joint", draw, method, large=False), True, jointly, headline=main and draw == "ade"),
            }
            if draw == "ade":
                why = "the papers' recipes disturb pictures strongly in every run"
                strong = Entry(_long(draw, method, strong=True), mini=why) if main else "a control of SegFormer alone"
                made[label]["strong augmentation"] = strong
        if draw == "ade":
            out = "ignored pixels play no part without synthetic pictures"
            excluded = Entry(_with("joint", draw, "mask2former", exclude_ignored=True), mini=EXCLUDED)
            made["Mask2Former with ignored pixels excluded"] = {REAL: out, JOINT: excluded}
        return made

    return rows


JOINT_ADE = Layout(
    "freemask-joint-ade", "Real and synthetic images together, ade", "FreeMask, joint training on ADE20K (T-B)", README,
    (REAL, LONG, "strong augmentation", JOINT),
    _joint("ade", {"SegFormer": (45.6, 47.9), "Segmenter": (46.2, 47.9), "Mask2Former": (48.7, 52.0)}),
    SEEDS + SCHEDULE + PAPER_SIZES + "in joint training. mmsegmentation's Mask2Former takes ignored, that is also "
    "filtered, pixels as negatives of every mask; the last row leaves them out.", STAGE_JOINT,
)  # fmt: skip
JOINT_COCO = Layout(
    "freemask-joint-coco", "Real and synthetic images together, stuff",
    "FreeMask, joint training on COCO-Stuff-164K (T-C), whose part the draw `stuff` plays", README, (REAL, LONG, JOINT),
    _joint("stuff", {"SegFormer": (43.5, 44.2), "Segmenter": (43.5, 44.8), "Mask2Former": (44.5, 46.4)}),
    SEEDS + SCHEDULE, STAGE_JOINT,
)  # fmt: skip


def _pretrain(settings: Settings) -> dict:
    return {
        "real images": {"ade": Entry(_real("ade"), True, (48.5, "SEED"))},
        "real images as long": {"ade": Entry(_long("ade"), True)},
        "pre-training then real images": {"ade": Entry(_with("pretrain", "ade"), True, MISSING)},
        "joint training": {"ade": Entry(_with("joint", "ade"), True, (50.6, "SEED"))},
    }


PRETRAIN = Layout(
    "freemask-pretrain", "Synthetic images before real ones, or together",
    "FreeMask, pre-training on synthetic images (T-D)", POST, ("ade",), _pretrain,
    SEEDS + "SegFormer. Both phases of pre-training have the schedule of the run on real images (the paper's is not "
    "known), so that all but the first row see the same number of images.", STAGE_JOINT,
)  # fmt: skip


def schedules(settings: Settings) -> dict[str, int]:
    """{row of freemask-schedule: images seen}, ascending; claims name the ends, whatever numbers a profile has. {} at
    paper size, where it has no runs."""
    if on_real_data(settings):
        return {}
    numbers = sorted({settings.get("freemask.exposures.synthetic"), *settings.get("freemask.schedules")})
    ends = {numbers[0]: SHORTEST, numbers[-1]: LONGEST}
    return {ends.get(number, f"{number} images seen"): number for number in numbers}


def _schedule(settings: Settings) -> dict:
    if on_real_data(settings):
        why = "at paper size the schedule of freemask-joint-ade is as long as the longest here"
        return {label: dict.fromkeys((REAL, JOINT), why) for label in (SHORTEST, LONGEST)}
    rows = {}
    for label, seen in schedules(settings).items():
        judged = label in (SHORTEST, LONGEST)
        rows[label] = {
            REAL: Entry(_long("ade", exposures=seen), judged),
            JOINT: Entry(_with("joint", "ade", exposures=seen), judged),
        }
    return rows


SCHEDULE_LENGTH = Layout(
    "freemask-schedule", "Real images alone or with synthetic ones, for equally long",
    "ours; FreeMask's joint training (T-B) at several lengths of training", README, (REAL, JOINT), _schedule,
    SEEDS + "SegFormer. Within a row both columns see the same number of images; the shortest schedule is that of the "
    "other tables. In the longest the run on real images sees each of them about as often as the paper's does (127 "
    "times).", STAGE_JOINT,
)  # fmt: skip


def _ablation_transfer(settings: Settings) -> dict:
    made = {"ade": (48.5, 43.3, 48.3), "stuff": (50.5, 48.0, 49.3)}
    rows = {}
    for draw, (real_only, neither, both) in made.items():
        head = draw == "ade"
        cells = {
            "real images": Entry(_real(draw), True, (real_only, "SEED"), headline=head),
            "neither": Entry(_painted("synthetic", draw), True, (neither, "SEED"), headline=head),
            "filter": Entry(_with("synthetic", draw, resample=False), head, MISSING, headline=head),
            "re-sampling": Entry(_with("synthetic", draw, alpha=None), head, MISSING, headline=head),
            CLEAN: Entry(_with("synthetic", draw), True, (both, "SEED"), headline=head),
        }
        if draw == "ade":
            cells[f"{CLEAN} with cross-fitted means"] = Entry(
                _with("synthetic", draw, means=CROSSFITTED),
                mini="it would take several further judges of the paper's size",
            )
        for label, entry in cells.items():
            rows.setdefault(label, {})[draw] = entry
    return rows


ABLATION_TRANSFER = Layout(
    "freemask-ablation-transfer", "Filter and re-sampling, trained on synthetic images alone",
    "FreeMask, ablation of filtering and re-sampling in transfer (T-E)", POST, ("ade", "stuff"), _ablation_transfer,
    SEEDS + SCHEDULE + "SegFormer. Without re-sampling every mask has all its pictures. The last row is ours: class "
    "means of images that the judging model did not learn from.", STAGE_ABLATION,
)  # fmt: skip


def _ablation_joint(settings: Settings) -> dict:
    return {
        "real images": {"ade": Entry(_real("ade"), True, (48.5, "SEED"))},
        "neither": {"ade": Entry(_painted("joint", "ade"), True, (48.2, "SEED"))},
        "filter": {"ade": Entry(_with("joint", "ade", resample=False), False, MISSING)},
        "re-sampling": {"ade": Entry(_with("joint", "ade", alpha=None), False, MISSING)},
        CLEAN: {"ade": Entry(_with("joint", "ade"), True, (50.6, "SEED"))},
    }


ABLATION_JOINT = Layout(
    "freemask-ablation-joint", "Filter and re-sampling in joint training",
    "FreeMask, ablation of filtering and re-sampling in joint training (T-F)", POST, ("ade",), _ablation_joint,
    SEEDS + SCHEDULE + "SegFormer. Real images are repeated to as many as there are synthetic ones.", STAGE_ABLATION,
)  # fmt: skip


def pictures_a_mask(settings: Settings) -> dict[str, int]:
    """{row of freemask-nmax: its number}, ascending; claims name the ends, whatever numbers a profile has."""
    numbers = sorted({*settings.get("freemask.nmax"), settings.get("freemask.most.ade")})
    ends = {numbers[0]: "fewest", numbers[-1]: "most"}
    return {f"{ends.get(number, number)} pictures a mask": number for number in numbers}


def _nmax(settings: Settings) -> dict:
    rows, largest = {}, settings.get("freemask.most.ade")
    for label, most in pictures_a_mask(settings).items():
        ends = label.split()[0] in ("fewest", "most")
        papers = ((43.3, "SEED"), (48.3, "SEED")) if most == largest else (None, None)
        rows[label] = {
            PAINTED: Entry(_painted("synthetic", "ade", most=most), ends, papers[0]),
            CLEAN: Entry(_with("synthetic", "ade", most=most), ends, papers[1]),
        }
    return rows


NMAX = Layout(
    "freemask-nmax", "How many pictures a mask", "FreeMask, number of synthetic images (T-G)", POST, (PAINTED, CLEAN),
    _nmax, SEEDS + "SegFormer, trained on synthetic images alone, as many seen in every row. With re-sampling the "
    "number is the largest of a mask. The fewest and the most are parameters, freemask.nmax and freemask.most. The "
    "paper's values are those of its largest number, 20.", STAGE_ABLATION,
)  # fmt: skip


def _margin(settings: Settings) -> dict:
    chosen = settings.get("freemask.alpha")
    rows = {}
    for alpha in sorted({chosen, *settings.get("freemask.alphas")}):
        paper = (48.3, "SEED") if alpha == chosen else MISSING
        entry = Entry(_with("synthetic", "ade", alpha=alpha), False, paper)
        rows[f"margin {alpha:g}"] = {"transfer": entry, "pixels kept": _kept(entry)}
    entry = Entry(_with("synthetic", "ade", alpha=None), False, MISSING)
    return rows | {"no filter": {"transfer": entry, "pixels kept": _kept(entry)}}


def _kept(entry: Entry) -> Entry:
    return Entry(entry.make, value=_share_kept)


def _share_kept(result: dict) -> float | None:
    kept = result["synthetic"].get("kept")  # a set that somebody else has made does not say
    return None if kept is None else 100 * kept


MARGIN = Layout(
    "freemask-margin", "The tolerance margin", "FreeMask, tolerance margin alpha (T-H)", POST,
    ("transfer", "pixels kept"), _margin, SEEDS + "SegFormer, trained on re-sampled synthetic images alone. The "
    "paper's grid and its other numbers are not known.", STAGE_ABLATION, "% mIoU; % of the pixels",
)  # fmt: skip


def _generator(settings: Settings) -> dict:
    kinds = {
        "layout model": (lambda s: layout(s, "ade"), True, (43.3, "SEED"), (48.3, "SEED")),
        "layout model without web": (lambda s: own_layout(s, "ade", "scratch"), False, None, None),
        "weak generator": (lambda s: layout(s, "ade", "weak"), True, (30.0, "SEED"), MISSING),
    }
    rows = {}
    for label, (paints, judged, painted, clean) in kinds.items():

        def make(settings, seed, paints=paints):
            return _painted("synthetic", "ade", paints=paints(settings))(settings, seed)

        def filtered(settings, seed, paints=paints):
            return with_pictures(settings, "synthetic", "ade", seed, paints=paints(settings))

        rows[label] = {
            PAINTED: Entry(make, judged, painted),
            CLEAN: Entry(filtered, label == "layout model", clean),
            "layout mIoU": Entry(make, judged, value=lambda result: result["generator"]["layout"]),
            "layout mIoU of real images": Entry(make, judged, value=lambda result: result["generator"]["real"]),
            "Fréchet distance": Entry(make, judged, value=lambda result: result["generator"]["frechet"]),
        }
        rows[label] = {column: replace(entry, mini=MINI_WORLD) for column, entry in rows[label].items()}
    return rows


GENERATOR = Layout(
    "freemask-generator", "How good the generator has to be", "FreeMask, generator quality (T-I)", POST,
    (PAINTED, CLEAN, "layout mIoU", "layout mIoU of real images", "Fréchet distance"), _generator,
    SEEDS + "SegFormer, trained on synthetic images alone. Layout mIoU is the oracle's against the mask, on the first "
    "picture of some masks, which is the same for all seeds; the distance is between these and the real images, in "
    "features of the zoo's CLIP, which took part in training the autoencoder. The model without `web` was trained on "
    "the masks for half as many steps as the layout model. The paper's weak generator is OASIS, at "
    "about 30 (SEED).", STAGE_ABLATION, "% mIoU; the distance times 100",
)  # fmt: skip


def _fewer(settings: Settings) -> dict:
    whole, rows = settings.get("world.train.ade"), {}
    for part in (1, *settings.get("freemask.fewer")):
        images = whole // part

        def jointly(settings, seed, images=images, part=part):
            paints = layout(settings, "ade") if part == 1 else own_layout(settings, "ade", images=images)
            return with_pictures(settings, "joint", "ade", seed, images=images, paints=paints)

        label = "all images" if part == 1 else f"one of {part} images"
        cells = {REAL: Entry(_real("ade", images=images)), LONG: Entry(_long("ade", images=images)),
                 JOINT: Entry(jointly)}  # fmt: skip
        rows[label] = {column: replace(entry, mini=MINI_WORLD) for column, entry in cells.items()}
    return rows


FEWER = Layout(
    "freemask-fewer", "Fewer real images", "FreeMask, other ablations (T-J); its numbers are not known", POST,
    (REAL, LONG, JOINT), _fewer, SEEDS + SCHEDULE + "SegFormer. Generator, filter model and class means see the same "
    "share of the real images; these generators are trained for the table, on fewer passes than the zoo's.",
    STAGE_ABLATION,
)  # fmt: skip

_ALL = (
    TRANSFER, JOINT_ADE, JOINT_COCO, PRETRAIN, SCHEDULE_LENGTH, ABLATION_TRANSFER, ABLATION_JOINT, NMAX, MARGIN,
    GENERATOR, FEWER,
)  # fmt: skip
LAYOUTS = {made.id: replace(made, family=tuple(other.id for other in _ALL)) for made in _ALL}
EXPERIMENTS = {id: made.experiment() for id, made in LAYOUTS.items()}

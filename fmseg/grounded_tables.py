"""The tables of Grounded Diffusion's Protocol I, from records: Tables 1, 3 and 4, the timestep curve, inversion, and
unseen things by how new their words are. Pure functions of settings and records.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

from fmseg import grounded_configs as configs
from fmseg import grounded_paper as paper
from fmseg.experiment import Experiment, on_real_data, provenance
from fmseg.grounded_images import averages, looks
from fmseg.grounded_scores import COLUMNS
from fmseg.second_look import Run
from fmseg.settings import Settings
from fmseg.tables import cell, not_run, paper_value, row, table

MISSING, EMPTY = "no record of its runs", "the oracle found what was asked for in no test picture"
KINDS = ("seen", "new combination", "one new word", "both words new")
HEADLINE_STEPS = (1, 4, 7, 10, 12)
CLAIMED_STEPS = (1, 2, 12)  # rows that claims read; in a profile without them they say so
MINI_GRID, REAL_GRID = 16, 64  # cells a side of the head's logits: those of the generator's latents
POOL = (
    "One pool of painted pictures serves all seeds; a seed fixes which share of them a head sees, its initial weights "
    "and their order. Test pictures are fixed; a picture counts where the oracle finds every class that was asked for. "
    "DAAM learns nothing: its value is the same for every seed, and its best threshold is chosen on the test pictures."
)
TRAINED_ON_LINE = (
    "At the paper's size a head learns on line, from pictures that are painted for it; a seed fixes these and its "
    "initial weights. Test pictures are fixed; a picture counts where the oracle finds every class that was asked for. "
    "DAAM learns nothing: its value is the same for every seed, and its best threshold is chosen on the test pictures."
)
Values = dict[str, dict[int, float]]  # column -> seed -> percent


def grid(settings: Settings) -> int:
    """Cells a side of the head's logits in a profile."""
    return REAL_GRID if on_real_data(settings) else MINI_GRID


def ceiling(settings: Settings) -> str:
    """Label of the row with what that grid keeps of the masks that answers are compared with."""
    return f"ceiling of a {grid(settings)}x{grid(settings)} grid"


def sampler_steps(settings: Settings) -> int:
    """Steps of the sampler in a profile."""
    return settings.get(f"{'grounded_real' if on_real_data(settings) else 'grounded'}.sampling.steps")


def pool(settings: Settings) -> str:
    """The note of every table: where pictures come from, what a seed fixes."""
    return TRAINED_ON_LINE if on_real_data(settings) else POOL


def values_of(records: Iterable[Mapping], read: Callable[[Mapping], Mapping], prefix: str = "") -> Values:
    """Column -> seed -> mIoU from records; ``read`` gives a record's {column: scores}."""
    made: Values = {}
    for record in records:
        for column, found in read(record).items():
            made.setdefault(prefix + column, {})[record["config"]["seed"]] = found["miou"]
    return made


def for_all(values: Values, seeds: Sequence[int]) -> Values:
    """What does not depend on the seed, given to every seed, so that claims can pair it."""
    return {column: dict.fromkeys(seeds, next(iter(found.values()))) for column, found in values.items()}


def averaged(several: Sequence[Values]) -> Values:
    """Means over splits, seed by seed, of the seeds and columns that all of them have."""
    if not several:
        return {}
    columns = [c for c in several[0] if all(c in v for v in several)]
    return {
        c: {s: sum(v[c][s] for v in several) / len(several) for s in several[0][c] if all(s in v[c] for v in several)}
        for c in columns
    }


def line(
    label: str, values: Values, columns: Sequence[str], printed: Mapping[str, float] | None = None,
    certainty: str = "STATED", any_record: bool = True,
) -> dict:  # fmt: skip
    """A row: measured where there are values, else why not; with the paper's numbers."""
    cells = {}
    for column in columns:
        of_paper = paper_value(printed[column], certainty, paper.SOURCE) if column in (printed or {}) else None
        found = values.get(column)
        cells[column] = cell(found, of_paper) if found else not_run(EMPTY if any_record else MISSING, of_paper)
    return row(label, cells)


def _of(records: Iterable, **wanted) -> list[Mapping]:
    return [r for r in records if r and all(r["config"][key] == value for key, value in wanted.items())]


def _painted(key: str) -> Callable[[Mapping], Mapping]:
    return lambda record: record["result"][key].get("painted", {})


def _pooled(record: Mapping) -> dict:
    return {column: {"miou": found["pooled"]} for column, found in _painted("scores")(record).items()}


def tested(records: Sequence[Mapping], read: Callable[[Mapping], Mapping], what: str = "") -> str:
    """A sentence of a note: how many test pictures count in each column; empty without a record."""
    counts = [f"{column} {found['pictures']}" for record in records for column, found in read(record).items()]
    return f" Test pictures that count{f', {what}' if what else ''}: {', '.join(counts)}." if counts else ""


def ceiling_row(settings: Settings, records: Sequence[Mapping]) -> dict:
    """What the masks that answers are compared with keep of themselves on the head's grid; of the first record that
    says so, since test pictures are the same for all."""
    there = [r for r in records if r and "painted" in r["result"].get("ceiling", {})][:1]
    values = values_of(there, lambda r: r["result"]["ceiling"]["painted"][str(grid(settings))])
    return line(ceiling(settings), for_all(values, settings.get("seeds")), COLUMNS, any_record=bool(there))


def table_1(settings: Settings, records: list[dict | None]) -> dict:
    """The table `grounded-t1`: DAAM and heads on three splits of two draws."""
    columns = [f"{draw} {column}" for draw in paper.DRAWS for column in COLUMNS]
    kinds = {"DAAM 0.4": None, "DAAM best": paper.DAAM, "head": paper.HEAD, "head pooled": None}
    kinds |= {ceiling(settings): None}
    made: dict[str, list[tuple[Values, bool]]] = {kind: [] for kind in kinds}
    for number in configs.SPLITS:
        parts: dict[str, Values] = {kind: {} for kind in kinds}
        there: dict[str, bool] = dict.fromkeys(kinds, False)
        for draw in paper.DRAWS:
            seen = list(configs.split_of(draw, number, settings).seen)
            mine = {m: _of(records, method=m, draw=draw, seen=seen) for m in ("daam", "head")}
            reads = {
                "DAAM 0.4": ("daam", _painted("fixed")),
                "DAAM best": ("daam", _painted("scores")),
                "head": ("head", _painted("scores")),
                "head pooled": ("head", _pooled),
                ceiling(settings): ("daam", lambda r: r["result"]["ceiling"]["painted"][str(grid(settings))]),
            }
            for kind, (method, read) in reads.items():
                values = values_of(mine[method], read, f"{draw} ")
                parts[kind] |= for_all(values, settings.get("seeds")) if method == "daam" else values
                there[kind] |= bool(mine[method])
        for kind in kinds:
            made[kind].append((parts[kind], there[kind]))
    rows = []
    for kind, printed in kinds.items():
        of_splits, one_kind = [values for values, _ in made[kind]], kind in ("DAAM best", "head")
        for number, (values, there_is) in enumerate(made[kind], start=1):
            if one_kind:
                say = paper.table_1(printed[number - 1])
                rows.append(line(f"{kind} split {number}", values, columns, say, any_record=there_is))
        say = paper.table_1(printed[-1]) if printed else None
        any_record = all(there_is for _, there_is in made[kind])
        rows.append(line(f"{kind} average", averaged(of_splits), columns, say, any_record=any_record))
    return table(
        "grounded-t1", "Masks of painted pictures, seen and unseen classes", "Grounded Diffusion, Table 1", "% IoU",
        columns, rows, note=f"{pool(settings)} Slips of the paper: {'; '.join(paper.SLIPS)}.",
        provenance=provenance(T1, settings, records),
    )  # fmt: skip


def looks_1(settings: Settings, records: list[dict | None]) -> list[Run]:
    """Table 1 by test picture. DAAM's best threshold stays the one that is best on all of them."""
    seeds, found = settings.get("seeds"), []
    for draw in paper.DRAWS:
        for kind, (method, key) in {
            "DAAM 0.4": ("daam", "fixed images"), "DAAM best": ("daam", "images"), "head": ("head", "images"),
        }.items():  # fmt: skip
            several = []
            for number in configs.SPLITS:
                mine = _of(records, method=method, draw=draw, seen=list(configs.split_of(draw, number, settings).seen))
                alike = seeds if method == "daam" else None
                several.append(looks(f"{kind} split {number}", mine, alike, f"{draw} ", key))
            found += [run for runs in several for run in runs if kind != "DAAM 0.4"]
            found += averages(several, f"{kind} average")
    return found


def novelty(settings: Settings, records: list[dict | None]) -> dict:
    """The table `grounded-novelty`: one painted thing of any word, judged by the oracle that knows all words."""
    daam, heads = _of(records, method="daam"), _of(records, method="head")
    seeds = settings.get("seeds")

    def of_daam(read):
        return for_all(values_of(daam, read), seeds)

    rows = [
        line("head", values_of(heads, lambda r: r["result"]["scores"]["novel"]), KINDS, any_record=bool(heads)),
        line("DAAM best", of_daam(lambda r: r["result"]["scores"]["novel"]), KINDS, any_record=bool(daam)),
        line("DAAM 0.4", of_daam(lambda r: r["result"]["fixed"]["novel"]), KINDS, any_record=bool(daam)),
        line(
            ceiling(settings), of_daam(lambda r: r["result"]["ceiling"]["novel"][str(grid(settings))]), KINDS,
            any_record=bool(daam),
        ),
    ]  # fmt: skip
    return table(
        "grounded-novelty", "Unseen things by how new their words are", "Mini world; no counterpart in the paper",
        "% IoU", list(KINDS), rows, provenance=provenance(NOVELTY, settings, records),
        note=f"{pool(settings)} Here the oracle is the judge, which knows every word and has taught nobody.",
    )  # fmt: skip


def table_3(settings: Settings, records: list[dict | None]) -> dict:
    """The table `grounded-t3`: what becomes of a class that the oracle did not find."""
    rows = []
    for label, undetected in configs.ZERO_MASKS.items():
        mine, say = _of(records, undetected=undetected), paper.five(paper.ZERO_MASKS[label])
        rows.append(line(label, values_of(mine, _painted("scores")), COLUMNS, say, any_record=bool(mine)))
    rows.append(ceiling_row(settings, records))
    return table(
        "grounded-t3", "Zero masks for what the oracle did not find", "Grounded Diffusion, Table 3", "% IoU",
        list(COLUMNS), rows, note=pool(settings), provenance=provenance(T3, settings, records),
    )  # fmt: skip


def looks_3(settings: Settings, records: list[dict | None]) -> list[Run]:
    """Table 3 by test picture."""
    return [run for label, how in configs.ZERO_MASKS.items() for run in looks(label, _of(records, undetected=how))]


def table_4(settings: Settings, records: list[dict | None]) -> dict:
    """The table `grounded-t4`: ever more seen classes of `coco`; the pool of unseen classes shrinks with them."""
    rows, tests, total = [], [], len(configs.split_of("coco", 1, settings).classes)
    for count, printed in zip(settings.get("grounded.seen_classes"), paper.SEEN_CLASSES.values(), strict=True):
        mine = [r for r in records if r and len(r["config"]["seen"]) == count]
        values = values_of(mine, _painted("scores"))
        rows.append(line(seen_label(count, total), values, COLUMNS, paper.five(printed), any_record=bool(mine)))
        tests.append(tested(mine[:1], _painted("scores"), seen_label(count, total)))
    rows.append(ceiling_row(settings, mine))  # columns are about other classes in every row; these are the last one's
    return table(
        "grounded-t4", "The number of seen classes", "Grounded Diffusion, Table 4", "% IoU", list(COLUMNS), rows,
        note=f"{pool(settings)} The paper's rows are 5, 20, 35, 50 and 65 of 80 classes, ours the same shares of "
        f"{total}. In the order in which classes are added the paper's is not recovered; ours is the split's own. The "
        f"ceiling is of the last row's columns.{''.join(tests)}",
        provenance=provenance(T4, settings, records),
    )  # fmt: skip


def looks_4(settings: Settings, records: list[dict | None]) -> list[Run]:
    """Table 4 by test picture: the same pictures in all rows, each in the column that a row's seen classes give it."""
    found, total = [], len(configs.split_of("coco", 1, settings).classes)
    for count in settings.get("grounded.seen_classes"):
        mine = [r for r in records if r and len(r["config"]["seen"]) == count]
        found += looks(seen_label(count, total), mine)
    return found


def seen_label(count: int, total: int) -> str:
    """A row's label in Table 4: '10 seen 30 unseen'."""
    return f"{count} seen {total - count} unseen"


def timesteps(settings: Settings, records: list[dict | None]) -> dict:
    """The table `grounded-timesteps`: features of ever noisier steps."""
    rows = []
    for step, of_paper in settings.get("grounded.timesteps").items():
        mine, say = _of(records, step=step), paper.five(paper.TIMESTEPS[of_paper])
        values = values_of(mine, _painted("scores"))
        rows.append(line(f"step {step}", values, COLUMNS, say, "INFERRED", any_record=bool(mine)))
    steps = sampler_steps(settings)
    idle = not_run(f"no step of this profile, which samples in {steps}")
    left_out = [step for step in CLAIMED_STEPS if step not in settings.get("grounded.timesteps")]
    rows += [row(f"step {step}", dict.fromkeys(COLUMNS, idle)) for step in left_out]
    rows.append(ceiling_row(settings, records))
    return table(
        "grounded-timesteps", "Features by denoising step", "Grounded Diffusion, supplement, plot over timesteps",
        "% IoU", list(COLUMNS), rows, provenance=provenance(TIMESTEPS, settings, records),
        note=f"{pool(settings)} Steps are counted from the clean end, of {steps}; beside each stands the paper's step "
        "of 50 whose noise is nearest, read from its plot by eye.",
    )  # fmt: skip


def looks_by_step(settings: Settings, records: list[dict | None]) -> list[Run]:
    """The timestep curve by test picture."""
    steps = settings.get("grounded.timesteps")
    return [run for step in steps for run in looks(f"step {step}", _of(records, step=step))]


REAL = ("real seen", "real unseen", "oracle's masks seen", "oracle's masks unseen")


def inversion(settings: Settings, records: list[dict | None]) -> dict:
    """The table `grounded-inversion`: learning from real pictures by inversion, and the oracle against the truth."""
    columns, rows = [*COLUMNS, *REAL], []
    for label, source in configs.SOURCES.items():
        mine = [r for r in records if r and r["config"]["pictures"]["from"] == source]
        rows.append(line(label, values_of(mine, _with_real), columns, any_record=bool(mine)))
    there = [r for r in records if r and "against truth" in r["result"]][:1]
    for name, label in {"oracle": "the oracle itself", f"ceiling {grid(settings)}": ceiling(settings)}.items():
        values = values_of(there, lambda r, name=name: r["result"]["against truth"][name], "real ")
        rows.append(line(label, for_all(values, settings.get("seeds")), columns[-4:-2], any_record=bool(there)))
    return table(
        "grounded-inversion", "Real pictures by DDIM inversion, with true masks",
        "Grounded Diffusion, section on inversion; its numbers are not recovered", "% IoU", columns, rows,
        note=f"{pool(settings)} Real pictures are of the validation set, inverted and painted again: 'real' is against "
        "the true masks, 'oracle's masks' against what the oracle sees in the picture as painted again. The oracle's "
        f"own row says how far its masks are from the truth.{tested(there[:1], _with_real)}",
        provenance=provenance(INVERSION, settings, records),
    )  # fmt: skip


def _with_real(record: Mapping) -> dict:
    found = record["result"]["scores"]
    real = {f"real {group}": scores for group, scores in found.get("real, truth", {}).items()}
    oracle = {f"oracle's masks {group}": scores for group, scores in found.get("real, oracle", {}).items()}
    return found.get("painted", {}) | real | oracle


def cell_of(config: dict) -> str:
    """Runs that differ by their seed alone; the same for all tables of Protocol I."""
    source = "" if config["pictures"]["from"] == "painted" else f", {config['pictures']['from']}"
    kind = config.get("undetected", "")
    return (
        f"{config['method']} {config['draw']} {len(config['seen'])} from {config['seen'][0]}, step {config['step']}"
        + (f", {kind}{source}" if kind or source else "")
    )


def headline_steps(settings: Settings) -> list[dict]:
    """Of the timestep curve, the runs that `make rerun` trains again."""
    return [config for config in configs.timesteps(settings) if config["step"] in HEADLINE_STEPS]


FAMILY = tuple(f"grounded-{name}" for name in ("t1", "novelty", "t3", "t4", "timesteps", "inversion"))


def _experiment(id: str, stage: str, make, build, headline=True, by_image=None) -> Experiment:
    """Tables of Protocol I share runs: the head of split 1 of `voc` stands in three of them."""
    lenders = tuple(other for other in FAMILY if other != id)
    return Experiment(
        id, stage, "fmseg.grounded_runs", make, build, cell_of, headline=headline, lenders=lenders, by_image=by_image,
        real="fmseg.real_grounded",
    )  # fmt: skip


T1 = _experiment("grounded-t1", "32_protocol_one", configs.table_1, table_1, by_image=looks_1)
NOVELTY = _experiment("grounded-novelty", "32_protocol_one", configs.novelty, novelty, headline=False)
T3 = _experiment("grounded-t3", "33_ablations", configs.table_3, table_3, by_image=looks_3)
T4 = _experiment("grounded-t4", "33_ablations", configs.table_4, table_4, False, looks_4)
TIMESTEPS = _experiment(
    "grounded-timesteps", "33_ablations", configs.timesteps, timesteps, headline_steps, looks_by_step
)
INVERSION = _experiment("grounded-inversion", "33_ablations", configs.inversion, inversion, headline=False)

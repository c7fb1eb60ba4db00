"""Pictures: one palette everywhere, figures saved with the numbers they are drawn from.

Methods wear the eight colours of Okabe and Ito, which people with colour-blindness can tell apart. Class maps need up
to 97 colours, which nobody can tell apart without the words, so class pictures carry their names; hue goes with the
shape, lightness with the pattern.
"""

import colorsys
import csv
import io
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from fmseg.settings import Settings
from fmseg.tables import write_files
from fmseg.words import PATTERNS, SHAPES, STUFF, WEB_PATTERNS, WEB_SHAPES

OKABE_ITO = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000", "#F0E442")
METHOD_COLOURS = {
    "SegFormer": OKABE_ITO[0],
    "Segmenter": OKABE_ITO[1],
    "Mask2Former": OKABE_ITO[2],
    "DeepLabV3": OKABE_ITO[3],
}
IGNORED = (128, 128, 128)  # ignored pixels, in every picture
BACKGROUND = (32, 32, 32)
_DPI = 110
_LETTER, _LINE = 5, 11  # pixels: the mean width of a letter of captions, and the height of a line
_GOLDEN = 0.618034  # turns of the golden ratio spread hues evenly however many there are
_STUFF = {
    "sky": (173, 216, 240), "sea": (49, 101, 156), "grass": (96, 160, 72), "sand": (226, 205, 150),
    "brick": (160, 80, 64), "rock": (122, 98, 140), "snow": (244, 246, 250), "wood": (130, 92, 52),
}  # fmt: skip


def class_colour(name: str) -> tuple[int, int, int]:
    """RGB of a class, the same in every picture; 'background' is near black.

    Raises:
        ValueError: no class of the world has that name.
    """
    if name == "background":
        return BACKGROUND
    if name in STUFF:
        return _STUFF[name]
    words, shapes, patterns = name.split(), SHAPES + WEB_SHAPES, PATTERNS + WEB_PATTERNS
    if not _of_the_world(name):
        raise ValueError(f"`name` must be a class of the mini world, got {name!r}; see fmseg.words")
    hue = shapes.index(words[1]) / len(shapes)
    light = 0.3 + 0.5 * patterns.index(words[0]) / (len(patterns) - 1)
    return tuple(round(255 * v) for v in colorsys.hls_to_rgb(hue, light, 0.9))


def palette(classes: Sequence[str]) -> np.ndarray:
    """(256, 3) uint8: colour by class id; 255 and ids without a class are the grey of ignored pixels.

    Classes of the mini world have colours of their own; those of any other set get hues that neighbours do not share.
    """
    colours = np.full((256, 3), IGNORED, np.uint8)
    if all(_of_the_world(name) for name in classes):
        colours[: len(classes)] = [class_colour(name) for name in classes]
        return colours
    for number in range(len(classes)):
        hue, light = (number * _GOLDEN) % 1, (0.35, 0.55, 0.72)[number % 3]
        colours[number] = [round(255 * v) for v in colorsys.hls_to_rgb(hue, light, 0.75)]
    return colours


def _of_the_world(name: str) -> bool:
    words = name.split()
    thing = len(words) == 2 and words[0] in PATTERNS + WEB_PATTERNS and words[1] in SHAPES + WEB_SHAPES
    return thing or name in STUFF or name == "background"


def paint(labels: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """(..., 3) uint8 picture of (...) uint8 class ids."""
    return palette(classes)[labels]


def heat(values: np.ndarray, sharp: float = 0.02) -> np.ndarray:
    """(..., H, W, 3) uint8 picture of maps (..., H, W), each from its own low to its own high quantile, dark to light.

    Args:
        values: float. sharp: the share of pixels at either end that is cut off, in [0, 0.5).
    """
    from matplotlib import colormaps

    low, high = (np.quantile(values, q, axis=(-2, -1), keepdims=True) for q in (sharp, 1 - sharp))
    scaled = np.clip((values - low) / np.maximum(high - low, 1e-9), 0, 1)
    return (colormaps["viridis"](scaled)[..., :3] * 255).astype(np.uint8)


def grid(
    pictures: Sequence[Sequence[np.ndarray]], rows: Sequence[str], columns: Sequence[str] = (), scale: float = 1.2
):
    """A matplotlib figure of pictures in rows and columns.

    Args:
        pictures: rows of (H, W, 3) uint8 arrays.
        rows: a label a row ("" for none). columns: titles of the first row, or none.
        scale: inches a picture.
    """
    from matplotlib.figure import Figure

    wide, high = max(map(len, pictures)), len(pictures)
    figure = Figure(figsize=(scale * wide + 1.1, scale * high + 0.4), layout="constrained")
    axes = figure.subplots(high, wide, squeeze=False)
    for i, line in enumerate(pictures):
        for j, axis in enumerate(axes[i]):
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
            if j < len(line):
                axis.imshow(line[j], interpolation="nearest")
        axes[i][0].set_ylabel(rows[i], rotation=0, ha="right", va="center", fontsize=8)
    for axis, title in zip(axes[0], columns, strict=False):
        axis.set_title(title, fontsize=7)
    return figure


def key(figure, classes: Sequence[str], a_line: int = 6):
    """The figure with a swatch and a name of each class under it, in the colours of :func:`paint`; ``a_line`` names a
    line."""
    from matplotlib.patches import Patch

    colours = palette(classes) / 255
    swatches = [Patch(color=colours[number], label=name) for number, name in enumerate(classes)]
    figure.legend(handles=swatches, loc="outside lower center", ncols=a_line, frameon=False, fontsize=7)
    return figure


def new(width: float = 6.4, height: float = 3.6):
    """A figure and its single axis, without a box round it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axis = figure.subplots()
    axis.spines[["top", "right"]].set_visible(False)
    return figure, axis


def png(figure) -> bytes:
    """The bytes of a figure's picture, to show what is not kept."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=_DPI, format="png", metadata={"Software": None})
    return buffer.getvalue()


def save(
    figure, name: str, data: Iterable[Mapping], settings: Settings, stage: str, of: Mapping | Sequence[Mapping] = ()
) -> Path:
    """Write a figure with a line under it that says where it is from and, beside it, the csv of the numbers it shows.

    Args:
        figure: a matplotlib figure.
        name: of the files, without ending.
        data: rows as {column: value}, all with the same columns; at least one.
        settings, stage: the files go to results/<profile>/figures/<stage>/.
        of: the table, or tables, whose cells or runs are shown: their seeds, runs and records' hash go into the line.

    Returns:
        The picture's path, <name>.png. Its bytes depend on the drawing and the line alone, not on the time or the
        machine's name.
    """
    rows = list(data)
    if not rows:
        raise ValueError(f"`data` of figure {name!r} is empty; give the numbers that the figure shows")
    folder = settings.results / "figures" / stage
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_files({folder / f"{name}.csv": text.getvalue()})
    path, part = folder / f"{name}.png", folder / f".{name}.png.part"
    part.write_bytes(_captioned(png(figure), origin(name, settings, stage, [of] if isinstance(of, Mapping) else of)))
    part.replace(path)
    return path


def origin(name: str, settings: Settings, stage: str, of: Sequence[Mapping] = ()) -> str:
    """Where a figure is from, in words: profile, stage and name, and of each table in ``of`` what it rests on."""
    said = [f"fmseg {settings.profile}, {stage}/{name}"]
    for table in of:
        rests_on = table.get("provenance", {})
        seeds = [f"seeds {', '.join(map(str, rests_on['seeds']))}"] if rests_on.get("seeds") else []
        facts = [*seeds, *(f"{key} {rests_on[key]}" for key in ("runs", "records") if key in rests_on)]
        said.append(f"table {table['id']}" + (f": {', '.join(facts)}" if facts else ""))
    return "; ".join(said)


def _captioned(picture: bytes, words: str) -> bytes:
    """A PNG with small grey words on a white strip below it, in as many lines as they need."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    above = Image.open(io.BytesIO(picture)).convert("RGB")
    lines = textwrap.wrap(words, max(30, above.width // _LETTER))
    height = _LINE * len(lines) + 4
    strip = Figure(figsize=(above.width / _DPI, height / _DPI), dpi=_DPI)
    strip.text(5 / above.width, 0.5, "\n".join(lines), fontsize=6, color="0.4", va="center", linespacing=1.2)
    canvas = FigureCanvasAgg(strip)
    canvas.draw()
    below = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
    both = Image.new("RGB", (above.width, above.height + below.height), "white")
    both.paste(above)
    both.paste(below, (0, above.height))
    buffer = io.BytesIO()
    both.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()

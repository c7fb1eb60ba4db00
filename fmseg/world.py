"""The mini world: small scenes with known truth, each a function of (draw, split, seed, index) alone.

`compose` decides what is in a scene (independent of the pixel size), `render` paints it at any square size from 32 to
512. All lengths are in world units: the image is 64 units wide whatever its size in pixels. A thing class is told by
its shape *and* its surface pattern; colour, scale, rotation, place, shading and occlusion are nuisance.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy import ndarray

from fmseg.shapes import PATTERN_FUNCTIONS, SHAPE_FUNCTIONS, direction, triangle_wave
from fmseg.textures import texture
from fmseg.words import STUFF

UPRIGHT = 20.0  # degrees
MIN_VISIBLE = 12.0  # an instance counts as present if this many square units of it can be seen


@dataclass(frozen=True)
class Statistics:
    """What a draw looks like. Probabilities and ranges; lengths in world units (image = 64)."""

    things: tuple[str, ...]  # class names that may appear
    thing_weights: tuple[float, ...] | None = None  # None = uniform
    counts: tuple[float, ...] = (0.35, 0.4, 0.25)  # P(1 thing), P(2), ...
    radius: tuple[float, float] = (9.0, 17.0)
    turn: float = 20.0  # a thing is turned by at most this many degrees to either side
    upright: float = 0.0  # P(things of a scene are turned by at most UPRIGHT degrees)
    stuff_counts: tuple[float, ...] = (0.35, 0.45, 0.2)  # P(1 region), P(2), ...
    stuff_weights: tuple[float, ...] | None = None
    clutter: int = 3  # at most this many unlabelled scraps
    tint: float = 0.10  # colour shift of textures
    noise: tuple[float, float] = (0.01, 0.05)  # sensor noise, standard deviation in 0..1
    contrast: float = 0.36  # least distance between the two colours of a pattern, per channel mean
    blur: float = 0.0  # P(3x3 box blur)
    light: tuple[float, float] = (0.85, 1.15)


@dataclass(frozen=True)
class Thing:
    """One object: class name, centre and radius in world units, rotation in degrees, two RGB colours in 0..1."""

    name: str
    centre: tuple[float, float]  # (x, y), y down
    radius: float
    degrees: float
    colours: tuple[tuple[float, ...], tuple[float, ...]]
    shade: tuple[float, float]  # light gradient across the object, x and y


@dataclass(frozen=True)
class Scene:
    """Everything in an image before it has pixels. Later things lie over earlier ones."""

    things: tuple[Thing, ...]
    stuff: tuple[str, ...]  # from top to bottom
    horizons: tuple[tuple[float, float, float, float], ...]  # (height, slope, amplitude, phase) between regions
    clutter: tuple[tuple[float, ...], ...]  # (x, y, half width, half height, degrees, r, g, b)
    noise: float
    light: tuple[float, float, float]
    blur: bool
    tint: float
    pixel_seed: int


@dataclass(frozen=True)
class Picture:
    """A rendered scene: image (H, W, 3) uint8; instance (H, W) uint8, 0 = none, k = k-th thing; stuff (H, W) uint8."""

    image: ndarray
    instance: ndarray
    stuff: ndarray
    things: tuple[str, ...] = field(default=())

    def visible(self) -> tuple[int, ...]:
        """1-based numbers of the instances of which enough can be seen (``MIN_VISIBLE`` square world units)."""
        unit = (self.image.shape[0] / 64) ** 2
        areas = np.bincount(self.instance.ravel(), minlength=len(self.things) + 1)
        return tuple(k for k in range(1, len(self.things) + 1) if areas[k] >= MIN_VISIBLE * unit)


def _uniform(rng, low, high):
    return float(low + (high - low) * rng.random())


def _colours(rng, contrast):
    first = rng.random(3) * 0.9 + 0.05
    while True:  # a pattern must be seen: its second colour lies clearly off the first
        second = rng.random(3) * 0.9 + 0.05
        if abs(float(first[0] + first[1] + first[2] - second[0] - second[1] - second[2])) / 3 >= contrast:
            return tuple(first.tolist()), tuple(second.tolist())


def _place(rng, radius, placed):
    """A centre whose object overlaps earlier ones only partly; the last of eight tries is taken as it is."""
    for _ in range(8):
        x, y = (_uniform(rng, min(radius, 31.0) * 0.8, 64 - min(radius, 31.0) * 0.8) for _ in range(2))
        if all((x - a) ** 2 + (y - b) ** 2 >= (0.8 * (radius + r)) ** 2 for a, b, r in placed):
            break
    return x, y


def _choose(rng, count, weights, size, replace):
    p = None if weights is None else np.asarray(weights, dtype=np.float64) / float(np.sum(weights))
    return [int(k) for k in rng.choice(count, size=size, replace=replace, p=p)]


def compose(rng: np.random.Generator, statistics: Statistics) -> Scene:
    """Draw one scene from a generator. The number of pixels does not enter."""
    count = 1 + int(rng.choice(len(statistics.counts), p=statistics.counts))
    names = [statistics.things[k] for k in _choose(rng, len(statistics.things), statistics.thing_weights, count, True)]
    # without a share of upright scenes nothing is drawn for it, so that other draws keep their bytes
    upright = statistics.upright > 0 and rng.random() < statistics.upright
    turn = UPRIGHT if upright else statistics.turn
    things, placed = [], []
    for name in names:
        radius = _uniform(rng, *statistics.radius)
        x, y = _place(rng, radius, placed)
        placed.append((x, y, radius))
        shade = (_uniform(rng, -0.2, 0.2), _uniform(rng, -0.2, 0.2))
        degrees = _uniform(rng, -turn, turn)
        things.append(Thing(name, (x, y), radius, degrees, _colours(rng, statistics.contrast), shade))
    regions = 1 + int(rng.choice(len(statistics.stuff_counts), p=statistics.stuff_counts))
    stuff = tuple(STUFF[k] for k in _choose(rng, len(STUFF), statistics.stuff_weights, regions, False))
    horizons = tuple(
        (64 * (k + 1 + _uniform(rng, -0.3, 0.3)) / regions, _uniform(rng, -0.25, 0.25), _uniform(rng, 0.5, 3.0),
         _uniform(rng, 0, 1))
        for k in range(regions - 1)
    )  # fmt: skip
    clutter = tuple(
        (_uniform(rng, 2, 62), _uniform(rng, 2, 62), _uniform(rng, 1.0, 5.0), _uniform(rng, 0.6, 1.8),
         _uniform(rng, 0, 180), *rng.random(3).tolist())
        for _ in range(int(rng.integers(0, statistics.clutter + 1)))
    )  # fmt: skip
    light = (_uniform(rng, *statistics.light), _uniform(rng, -0.15, 0.15), _uniform(rng, -0.15, 0.15))
    noise, blur = _uniform(rng, *statistics.noise), bool(rng.random() < statistics.blur)
    seed = int(rng.integers(0, 2**63 - 1))
    return Scene(tuple(things), stuff, horizons, clutter, noise, light, blur, statistics.tint, seed)


def _window(x, y, reach, scale, size):
    """Pixel window that holds everything within ``reach`` units of (x, y): two slices, coordinates relative to it."""
    top, bottom = max(0, int((y - reach) * scale)), min(size, int((y + reach) * scale) + 2)
    left, right = max(0, int((x - reach) * scale)), min(size, int((x + reach) * scale) + 2)
    dy = (np.arange(top, bottom, dtype=np.float32) + np.float32(0.5)) / np.float32(scale) - np.float32(y)
    dx = (np.arange(left, right, dtype=np.float32) + np.float32(0.5)) / np.float32(scale) - np.float32(x)
    return slice(top, bottom), slice(left, right), dx[None, :], dy[:, None]


def _blend(canvas, window, colour, alpha):
    part = canvas[(slice(None), *window)]
    part += (colour - part) * alpha


def _paint_thing(canvas, instance, thing, number, scale, size):
    rows, columns, dx, dy = _window(*thing.centre, thing.radius * 1.05 + 1, scale, size)
    cos, sin = (np.float32(v / thing.radius) for v in direction(thing.degrees))
    x, y = dx * cos - dy * sin, -(dx * sin + dy * cos)
    pattern, shape = thing.name.split()
    pixels = np.float32(thing.radius * scale)  # one unit of the shape's plane in pixels
    alpha = np.clip(np.float32(0.5) - SHAPE_FUNCTIONS[shape](x, y) * pixels, 0, 1)
    first, second = (np.array(c, dtype=np.float32)[:, None, None] for c in thing.colours)
    colour = first
    if PATTERN_FUNCTIONS[pattern] is not None:
        mix = np.clip(np.float32(0.5) + PATTERN_FUNCTIONS[pattern](x, y) * pixels, 0, 1)
        colour = first + (second - first) * mix
    shade = 1 + (dx * np.float32(thing.shade[0] / thing.radius) + dy * np.float32(thing.shade[1] / thing.radius))
    _blend(canvas, (rows, columns), colour * shade, alpha)
    instance[rows, columns][alpha > 0.5] = number


def _paint_clutter(canvas, scrap, scale, size):
    x, y, half_width, half_height, degrees, *colour = scrap
    rows, columns, dx, dy = _window(x, y, half_width + 1, scale, size)
    cos, sin = (np.float32(v) for v in direction(degrees))
    u, v = dx * cos + dy * sin, dy * cos - dx * sin
    outside = np.maximum(np.abs(u) - np.float32(half_width), np.abs(v) - np.float32(half_height))
    alpha = np.clip(np.float32(0.5) - outside * np.float32(scale), 0, 1)
    _blend(canvas, (rows, columns), np.array(colour, dtype=np.float32)[:, None, None], alpha)


def check_size(size: int) -> int:
    """Return ``size`` if the world can be drawn at it.

    Raises:
        ValueError: not a whole number from 32 to 512.
    """
    if isinstance(size, bool) or not isinstance(size, int | np.integer) or not 32 <= size <= 512:
        raise ValueError(f"`size` must be a whole number of pixels from 32 to 512; got {size!r}")
    return int(size)


def render(scene: Scene, size: int = 64) -> Picture:
    """Paint a scene.

    Args:
        scene: from :func:`compose`.
        size: pixels a side, 32..512; shapes scale with it, the layout stays.

    Raises:
        ValueError: ``size`` is not allowed.
    """
    size = check_size(size)
    scale = size / 64
    rng = np.random.Generator(np.random.PCG64(scene.pixel_seed))
    at = (np.arange(size, dtype=np.float32) + np.float32(0.5)) / np.float32(scale)
    stuff = np.full((size, size), STUFF.index(scene.stuff[0]), dtype=np.uint8)
    canvas = texture(scene.stuff[0], rng, at, at, scene.tint)
    for name, (height, slope, amplitude, phase) in zip(scene.stuff[1:], scene.horizons, strict=True):
        wave = triangle_wave(at / np.float32(21) + np.float32(phase)) * np.float32(amplitude)
        border = np.float32(height) + (at - 32) * np.float32(slope) + wave
        below = at[:, None] > border[None, :]
        stuff[below] = STUFF.index(name)
        canvas = np.where(below[None], texture(name, rng, at, at, scene.tint), canvas)
    for scrap in scene.clutter:
        _paint_clutter(canvas, scrap, scale, size)
    instance = np.zeros((size, size), dtype=np.uint8)
    for number, thing in enumerate(scene.things, start=1):
        _paint_thing(canvas, instance, thing, number, scale, size)
    level, across, down = (np.float32(v) for v in scene.light)
    centred = (at - 32) / np.float32(32)
    canvas *= level + across * centred[None, None, :] + down * centred[None, :, None]
    if scene.blur:
        canvas = _box_blur(canvas)
    canvas += rng.standard_normal(canvas.shape, dtype=np.float32) * np.float32(scene.noise)
    image = (np.clip(canvas, 0, 1) * np.float32(255) + np.float32(0.5)).astype(np.uint8)
    names = tuple(thing.name for thing in scene.things)
    return Picture(np.ascontiguousarray(image.transpose(1, 2, 0)), instance, stuff, names)


def _box_blur(canvas):
    for axis in (1, 2):
        padded = np.concatenate([np.take(canvas, [0], axis), canvas, np.take(canvas, [-1], axis)], axis)
        length = canvas.shape[axis]
        parts = [np.take(padded, np.arange(k, k + length), axis) for k in range(3)]
        canvas = (parts[0] + parts[1] + parts[2]) * np.float32(1 / 3)
    return canvas

"""Stuff: eight textures, each a function of pixel coordinates and a generator.

Coordinates are in units of the 64-pixel world, so a texture keeps its look at any size. Arithmetic as in
:mod:`fmseg.shapes`: exactly rounded operations only.
"""

import numpy as np
from numpy import ndarray

from fmseg.shapes import triangle_wave

BASE_COLOURS = {  # two ends of each texture's colour range, RGB in 0..1
    "sky": ((0.42, 0.62, 0.90), (0.86, 0.92, 0.98)),
    "sea": ((0.05, 0.28, 0.45), (0.25, 0.58, 0.68)),
    "grass": ((0.16, 0.36, 0.10), (0.48, 0.68, 0.26)),
    "sand": ((0.70, 0.58, 0.36), (0.90, 0.80, 0.58)),
    "brick": ((0.52, 0.22, 0.16), (0.78, 0.72, 0.66)),
    "rock": ((0.26, 0.26, 0.28), (0.62, 0.60, 0.58)),
    "snow": ((0.80, 0.84, 0.90), (0.98, 0.98, 1.00)),
    "wood": ((0.34, 0.20, 0.10), (0.66, 0.44, 0.24)),
}


def value_noise(rng: np.random.Generator, rows: ndarray, columns: ndarray, cell_y: float, cell_x: float) -> ndarray:
    """Bilinear noise in [0, 1] on a lattice with cells of ``cell_y`` x ``cell_x`` world units.

    The lattice covers the 64-unit world whatever the pixel size, so the same generator gives the same field.
    """
    lattice = rng.random((int(64 / cell_y) + 2, int(64 / cell_x) + 2), dtype=np.float32)
    y, x = rows / np.float32(cell_y), columns / np.float32(cell_x)
    iy, ix = y.astype(np.int64), x.astype(np.int64)
    fy, fx = (y - iy)[:, None], (x - ix)[None, :]
    across = lattice[iy] + (lattice[iy + 1] - lattice[iy]) * fy
    left = across[:, ix]
    return left + (across[:, ix + 1] - left) * fx


def _sky(rng, y, x):
    clouds = value_noise(rng, y, x, 10, 18)
    return np.clip(y[:, None] / 90 + np.maximum(clouds - 0.5, 0) * 1.3, 0, 1)


def _sea(rng, y, x):
    warp = value_noise(rng, y, x, 9, 12) * 1.2
    return 0.4 + 0.35 * triangle_wave(y[:, None] / 5 + warp) * (0.4 + y[:, None] / 100)


def _grass(rng, y, x):
    return value_noise(rng, y, x, 5, 1.4) * 0.7 + value_noise(rng, y, x, 14, 14) * 0.3


def _sand(rng, y, x):
    return value_noise(rng, y, x, 1.2, 1.2) * 0.5 + value_noise(rng, y, x, 12, 20) * 0.5


def _brick(rng, y, x):
    row = y / 6
    number = np.floor(row)
    shifted = x[None, :] / 11 + (number - np.floor(number / 2) * 2)[:, None] * 0.5
    column = shifted - np.floor(shifted)
    mortar = ((row - number) < 0.18)[:, None] | (column < 0.1)
    return np.where(mortar, np.float32(0.9), value_noise(rng, y, x, 6, 11) * 0.35)


def _rock(rng, y, x):
    ridges = np.abs(value_noise(rng, y, x, 7, 7) - 0.5) * 2
    return ridges * 0.7 + value_noise(rng, y, x, 2.5, 2.5) * 0.3


def _snow(rng, y, x):
    return 0.5 + (value_noise(rng, y, x, 8, 16) - 0.5) * 0.9


def _wood(rng, y, x):
    warp = value_noise(rng, y, x, 20, 6) * 1.6
    return 0.5 + 0.35 * triangle_wave(x[None, :] / 7 + warp) + (value_noise(rng, y, x, 8, 1.3) - 0.5) * 0.3


_FIELDS = {
    "sky": _sky, "sea": _sea, "grass": _grass, "sand": _sand,
    "brick": _brick, "rock": _rock, "snow": _snow, "wood": _wood,
}  # fmt: skip


def texture(name: str, rng: np.random.Generator, rows: ndarray, columns: ndarray, tint: float) -> ndarray:
    """Paint one stuff class.

    Args:
        name: a name in :data:`fmseg.words.STUFF`.
        rng: generator of the texture's own randomness.
        rows, columns: (H,), (W,) float32 coordinates in world units, in [0, 64).
        tint: half-width of the random colour shift, in 0..1.

    Returns:
        (3, H, W) float32, nominally in [0, 1], not clipped.
    """
    low, high = np.array(BASE_COLOURS[name], dtype=np.float32)
    shift = ((rng.random(3, dtype=np.float32) - np.float32(0.5)) * np.float32(2 * tint)).astype(np.float32)
    light = (rng.random(dtype=np.float32) - np.float32(0.5)) * np.float32(2 * tint)
    field = _FIELDS[name](rng, rows, columns).astype(np.float32)
    return (low + shift + light)[:, None, None] + (high - low)[:, None, None] * field

"""Shapes and surface patterns as functions of the plane.

Only + - * / sqrt, abs, min, max and comparisons on arrays, all exactly rounded by IEEE 754, so that the same numbers
come out on every x86-64 processor: no sin, exp or matrix product whose last bit depends on vector width.
"""

import math

import numpy as np
from numpy import ndarray


def exact(value: float) -> float:
    """A scalar rounded to 2^-30: swallows the last-bit differences of libm's sin and cos."""
    return round(value * 2**30) / 2**30


def direction(degrees: float) -> tuple[float, float]:
    """Unit vector (cos, sin) of an angle in degrees."""
    return exact(math.cos(math.radians(degrees))), exact(math.sin(math.radians(degrees)))


def triangle_wave(t: ndarray) -> ndarray:
    """Period 1, range [-1, 1], 1 at integers: the world's stand-in for a cosine."""
    return np.abs(t - np.floor(t) - 0.5) * 4 - 1


_STAR = [direction(90 + 72 * k + 36) for k in range(5)]
_TRIANGLE = [direction(a) for a in (30, 150, 270)]
_PETALS = [direction(60 * k) for k in range(6)]
_HALF = exact(math.sqrt(0.5))


def _length(x, y):
    return np.sqrt(x * x + y * y)


def _planes(x, y, normals, offset):
    return [x * nx + y * ny - offset for nx, ny in normals]


def _star(x, y):
    # inside the pentagram a point satisfies at least four of its five lines: the second largest value decides
    first = second = None
    for value in _planes(x, y, _STAR, 0.36):
        if first is None:
            first, second = value, np.full_like(value, -np.inf)
        else:
            second = np.maximum(second, np.minimum(first, value))
            first = np.maximum(first, value)
    return second


def _flower(x, y):
    out = _length(x, y) - 0.42
    for nx, ny in _PETALS:
        out = np.minimum(out, _length(x - 0.66 * nx, y - 0.66 * ny) - 0.33)
    return out


def _heart(x, y):
    y = y + 0.22
    u, v = (x + y) * _HALF, (y - x) * _HALF
    discs = np.minimum(_length(u - 0.58, v), _length(u, v - 0.58)) - 0.58
    return np.minimum(discs, np.maximum(np.abs(u), np.abs(v)) - 0.58)


def _box(x, y, half_width, half_height):
    return np.maximum(np.abs(x) - half_width, np.abs(y) - half_height)


def _triangle_between(x, y, top, base, half_width):
    """Isosceles triangle with its apex up at (0, top) and its base at y = base."""
    height = top - base
    slope = exact(math.sqrt(height * height + half_width * half_width))
    return np.maximum((np.abs(x) * height - (top - y) * half_width) / slope, base - y)


def _bolt(x, y):
    upper = _box(x - 0.45 * y + 0.02, y - 0.42, 0.26, 0.5)
    lower = _box(x - 0.45 * y - 0.02, y + 0.42, 0.26, 0.5)
    return np.minimum(np.minimum(upper, lower), _box(x, y, 0.55, 0.14))


# signed, distance-like: negative inside, about 1 a unit of length outside; every shape fits the unit disc, y up
SHAPE_FUNCTIONS = {
    "disc": lambda x, y: _length(x, y) - 0.95,
    "ring": lambda x, y: np.abs(_length(x, y) - 0.7) - 0.28,
    "square": lambda x, y: _box(x, y, 0.76, 0.76),
    "triangle": lambda x, y: np.maximum.reduce(_planes(x, y, _TRIANGLE, 0.54)),
    "star": _star,
    "cross": lambda x, y: np.minimum(_box(x, y, 0.95, 0.3), _box(x, y, 0.3, 0.95)),
    "crescent": lambda x, y: np.maximum(_length(x, y) - 0.98, 0.78 - _length(x - 0.5, y)),
    "heart": _heart,
    "bar": lambda x, y: _box(x, y, 0.98, 0.34),
    "flower": _flower,
    "arrow": lambda x, y: np.minimum(_box(x, y + 0.35, 0.22, 0.6), _triangle_between(x, y, 0.98, 0.1, 0.72)),
    "drop": lambda x, y: np.minimum(_length(x, y + 0.35) - 0.6, _triangle_between(x, y, 1.0, -0.1, 0.52)),
    "house": lambda x, y: np.minimum(_box(x, y + 0.35, 0.58, 0.5), _triangle_between(x, y, 0.95, 0.1, 0.9)),
    "hourglass": lambda x, y: np.maximum(np.abs(y) - 0.88, np.abs(x) - 0.08 - 0.7 * np.abs(y)),
    "arch": lambda x, y: np.maximum(np.abs(_length(x, np.maximum(y, 0)) - 0.66) - 0.26, -0.85 - y),
    "bolt": _bolt,
}


def _striped(x, y):
    return triangle_wave(x / 0.62) * 0.155


def _checked(x, y):
    a, b = triangle_wave(x / 1.1), triangle_wave(y / 1.1)
    return np.where((a > 0) == (b > 0), 1, -1) * np.minimum(np.abs(a), np.abs(b)) * 0.275


def _dotted(x, y):
    u, v = x / 0.62, y / 0.62
    u, v = u - np.floor(u) - 0.5, v - np.floor(v) - 0.5
    return 0.19 - _length(u, v) * 0.62


def _zigzag(x, y):
    return triangle_wave((x + 0.2 * triangle_wave(y / 0.8)) / 0.62) * 0.155


def _netted(x, y):
    u, v = triangle_wave((x + y) / 0.8), triangle_wave((x - y) / 0.8)
    return (np.maximum(u, v) - 0.62) * 0.28


# signed: positive where the second colour shows; `plain` has none
PATTERN_FUNCTIONS = {
    "plain": None,
    "striped": _striped,
    "checked": _checked,
    "dotted": _dotted,
    "zigzag": _zigzag,
    "netted": _netted,
}

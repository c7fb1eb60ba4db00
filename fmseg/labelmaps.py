"""Small label maps as text, so that a run record can hold a few predictions without holding weights."""

import base64
import binascii
import zlib

import numpy as np

LARGEST = 128  # pixels a side kept; a figure shows no more


def pack(maps: np.ndarray) -> dict:
    """Label maps as a JSON value.

    Args:
        maps: (N, H, W) uint8. Maps over 128 pixels a side are thinned by a whole step (nearest neighbour).

    Returns:
        {"shape": [N, h, w], "zlib": base64 text}; :func:`unpack` gives the (thinned) array back.

    Raises:
        TypeError: not a uint8 array of three dimensions.
    """
    if getattr(maps, "dtype", None) != np.uint8 or maps.ndim != 3:
        got = f"{getattr(maps, 'dtype', type(maps).__name__)} {getattr(maps, 'shape', '')}"
        raise TypeError(f"`maps` must be uint8 (N, H, W), got {got}")
    step = -(-max(maps.shape[1:]) // LARGEST)
    maps = np.ascontiguousarray(maps[:, ::step, ::step])
    return {"shape": list(maps.shape), "zlib": base64.b64encode(zlib.compress(maps.tobytes(), 9)).decode()}


def unpack(packed: dict) -> np.ndarray:
    """The (N, h, w) uint8 array of :func:`pack`. Raises ValueError where text and shape do not fit."""
    try:
        values = np.frombuffer(zlib.decompress(base64.b64decode(packed["zlib"], validate=True)), np.uint8)
        return values.reshape(packed["shape"]).copy()
    except (KeyError, TypeError, ValueError, binascii.Error, zlib.error) as error:
        raise ValueError(f"`packed` must be what fmseg.labelmaps.pack returns: {error}") from None

import numpy as np
import pytest

from fmseg.labelmaps import pack, unpack


def test_maps_come_back():
    maps = np.random.default_rng(0).integers(0, 256, (3, 5, 7)).astype(np.uint8)
    assert (unpack(pack(maps)) == maps).all()


def test_large_maps_are_thinned_not_blurred():
    maps = np.zeros((1, 300, 200), np.uint8)
    maps[:, 150:] = 255
    small = unpack(pack(maps))
    assert small.shape == (1, 100, 67) and set(np.unique(small)) == {0, 255}
    assert (small == maps[:, ::3, ::3]).all()


def test_what_is_no_label_map_is_refused():
    with pytest.raises(TypeError, match="`maps` must be uint8.*int64"):
        pack(np.zeros((1, 2, 2), np.int64))
    with pytest.raises(TypeError, match="uint8"):
        pack(np.zeros((2, 2), np.uint8))
    good = pack(np.zeros((1, 2, 2), np.uint8))
    for bad in ({}, {**good, "shape": [1, 3, 3]}, {**good, "zlib": good["zlib"][:-6]}, {**good, "zlib": "?"}):
        with pytest.raises(ValueError, match="fmseg.labelmaps.pack"):
            unpack(bad)

import csv
import io
import json
import re

import numpy as np
import pytest
from PIL import Image
from toys import ROOT

from fmseg import plots
from fmseg.datasets import DRAWS, get_draw
from fmseg.settings import load


@pytest.mark.parametrize("draw", DRAWS)
def test_every_class_has_a_colour_of_its_own(draw):
    classes = get_draw(draw).classes
    colours = [plots.class_colour(name) for name in classes]
    assert len(set(colours)) == len(classes) and plots.IGNORED not in colours


def test_paint_looks_classes_up_and_greys_what_is_ignored():
    classes = get_draw("voc").classes
    painted = plots.paint(np.array([[0, 3, 255]], np.uint8), classes)
    assert painted.shape == (1, 3, 3) and painted.dtype == np.uint8
    assert [tuple(c) for c in painted[0]] == [plots.BACKGROUND, plots.class_colour(classes[3]), plots.IGNORED]


def test_other_sets_get_colours_too():
    from fmseg import names

    for classes in (names.VOC, names.COCO, names.CAMVID):
        colours = plots.palette(classes)
        assert len(np.unique(colours[: len(classes)], axis=0)) == len(classes)
        assert tuple(colours[len(classes)]) == tuple(colours[255]) == plots.IGNORED


def test_a_word_that_is_no_class_has_no_colour():
    with pytest.raises(ValueError, match="must be a class of the mini world, got 'striped cat'"):
        plots.class_colour("striped cat")


def test_a_figure_is_saved_with_its_numbers_and_the_same_way_twice(tmp_path):
    settings, paths = load("mini", ROOT), []
    for folder in ("one", "two"):
        settings = type(settings)(settings.profile, settings.values, tmp_path / folder)
        figure, axis = plots.new()
        axis.plot([1, 2], [3, 4])
        paths.append(plots.save(figure, "line", [{"x": 1, "y": 3}, {"x": 2, "y": 4}], settings, "stage"))
    assert paths[0].read_bytes() == paths[1].read_bytes() and paths[0].stat().st_size > 1000
    plain, shown = (Image.open(io.BytesIO(b)) for b in (plots.png(figure), paths[0].read_bytes()))
    assert shown.width == plain.width and plain.height + 10 < shown.height < plain.height + 40
    assert np.array_equal(np.asarray(plain.convert("RGB")), np.asarray(shown)[: plain.height])
    assert (np.asarray(shown)[plain.height :] < 160).any(), "words stand below"
    with paths[0].with_suffix(".csv").open() as file:
        assert list(csv.DictReader(file)) == [{"x": "1", "y": "3"}, {"x": "2", "y": "4"}]
    assert sorted(p.name for p in paths[0].parent.iterdir()) == ["line.csv", "line.png"]
    with pytest.raises(ValueError, match="`data` of figure 'none' is empty"):
        plots.save(figure, "none", [], settings, "one")


def test_a_figure_says_where_it_is_from():
    settings = load("mini", ROOT)
    made = {"id": "fmwiss-t1", "provenance": {"stage": "15", "seeds": [0, 1, 4], "runs": 6, "records": "0f3a"}}
    assert plots.origin("line", settings, "15_fmwiss_t1") == "fmseg mini, 15_fmwiss_t1/line"
    said = plots.origin("line", settings, "15_fmwiss_t1", [made, {"id": "bare"}])
    assert said.split("; ")[1:] == ["table fmwiss-t1: seeds 0, 1, 4, runs 6, records 0f3a", "table bare"]
    assert plots.origin("x", settings, "y", [{"id": "none", "provenance": {"seeds": []}}]).endswith("; table none")


def test_a_grid_shows_each_picture_in_its_place():
    pictures = [[np.full((4, 4, 3), 10 * (3 * i + j), np.uint8) for j in range(3 - i)] for i in range(2)]
    figure = plots.grid(pictures, ["a", "b"], ["x", "y", "z"])
    shown = [[int(image.get_array()[0, 0, 0]) for image in axis.images] for axis in figure.axes]
    assert shown == [[0], [10], [20], [30], [40], []]
    assert [axis.get_ylabel() for axis in figure.axes[::3]] == ["a", "b"]
    assert [axis.get_title() for axis in figure.axes[:3]] == ["x", "y", "z"]


def test_a_key_names_every_class_in_the_colour_that_paint_gives_it():
    classes = ("sky", "road", "pole")
    figure = plots.key(plots.grid([[plots.paint(np.zeros((4, 4), np.uint8), classes)]], [""]), classes)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == list(classes)
    shown = [np.round(np.multiply(patch.get_facecolor()[:3], 255)) for patch in legend.get_patches()]
    np.testing.assert_array_equal(shown, plots.paint(np.arange(3, dtype=np.uint8), classes))


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("[0-9]*.ipynb")), ids=lambda path: path.stem[:2])
def test_a_figure_that_needs_runs_names_their_table(path):
    for cell in json.loads(path.read_text())["cells"]:
        code = "".join(cell["source"])
        if "plots.save(" in code and re.search(r'print\(f?"no runs? ', code):
            assert re.search(r"plots\.save\(.*, settings, stage, .+\)", code), f"{cell['id']}: give its table as `of`"

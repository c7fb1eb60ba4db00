"""What a record keeps of answers: which pictures, masks that overlap, pictures painted again."""

import grounded_toys as toys
import numpy as np
import pytest
import torch

from fmseg import grounded_examples as examples
from fmseg.generation import TOLERANCE, text_to_image
from fmseg.grounded_pictures import painted
from fmseg.grounded_scores import COLUMNS
from fmseg.words import VOC_THINGS


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's result and the test pictures of its set of two objects, on a zoo of random weights."""
    folder, shared = tmp_path_factory.mktemp("zoo"), tmp_path_factory.mktemp("parts")
    with pytest.MonkeyPatch.context() as patch:
        toys.make_zoo(folder)
        toys.install(folder, patch)
        patch.setenv("FMSEG_PARTS", str(shared))
        result = toys.run()["result"]
        yield result, painted("two", VOC_THINGS, "test", 20, steps=2, guidance=3.0)
    text_to_image.cache_clear()


def test_overlapping_masks_survive_being_coded():
    masks = torch.rand(3, 2, 8, 8, generator=torch.Generator().manual_seed(0)) > 0.4
    assert (masks[:, 0] & masks[:, 1]).any()
    assert np.array_equal(examples.decoded(examples.coded(masks), 2), masks.numpy())


def test_a_record_keeps_pictures_of_every_column(run):
    kept = run[0]["examples"]
    columns = [asked["column"] for asked in kept["asks"]]
    assert sorted(columns, key=COLUMNS.index) == columns and set(columns) == set(COLUMNS)
    assert max(map(columns.count, columns)) == examples.EACH
    oracle = examples.masks_of(kept, "oracle")
    for asked, masks, truth in zip(kept["asks"], examples.masks_of(kept), oracle, strict=True):
        assert masks.shape == truth.shape == (len(asked["names"]), 64, 64)
        assert truth.any((1, 2)).all(), "the oracle found everything that was asked for"


def test_pictures_are_painted_again_from_what_is_kept(run):
    result, two = run
    kept = result["examples"]
    again = examples.painted_again(kept, {"steps": 2, "train": 5.0, "test": 3.0})
    prompts = [a.prompt for a in two.asks]
    common = [(k, prompts.index(a["prompt"])) for k, a in enumerate(kept["asks"]) if a["prompt"] in prompts]
    assert common
    for k, row in common:
        assert np.abs(again[k].astype(int) - two.images[row]).mean() <= TOLERANCE

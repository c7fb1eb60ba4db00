"""What a step may see: no mask of a weak step reaches a method, no picture it may not have."""

import numpy as np
import pytest
from smallzoo import config

from fmseg.incremental_data import STEP, draws_of, load
from fmseg.protocols import get, presence


def of(protocol, count=40, **changes):
    made = config(protocol=protocol)
    images = {name: count for name in made["images"]}
    return load(made | {"images": images} | changes)


@pytest.mark.parametrize("kind", ["disjoint", "overlap"])
def test_steps_hold_what_the_protocol_allows(kind):
    data = of(f"mini/15-5/{kind}")
    base, pixels, weak = data.base_source(), data.pixel_source(), data.weak_source()
    assert set(np.unique(base.labels)) <= set(range(16)) and (base.labels > 0).any((1, 2)).all()
    assert set(np.unique(pixels.labels)) <= {0, *range(16, 21)}
    assert (weak.labels == 255).all() and weak.tags.shape == (len(data.step), 5)
    assert np.array_equal(presence(pixels.labels, 21)[:, 16:] | weak.tags, weak.tags), "what is labelled is tagged"
    if kind == "disjoint":
        assert not (data.base.labels >= 16).any(), "no future class, not even unlabelled"
    else:
        assert (data.base.labels >= 16).any()
    assert np.array_equal(data.new_truth() > 0, pixels.labels > 0)


def test_the_step_is_the_same_in_both_settings_and_fewer_pictures_are_some_of_them():
    one, two = of("mini/15-5/disjoint"), of("mini/15-5/overlap")
    assert np.array_equal(one.step.images, two.step.images)
    half = of("mini/15-5/overlap", share=0.5)
    whole = {image.tobytes() for image in two.step.images}
    assert len(half.step) == round(len(two.step) / 2) and {i.tobytes() for i in half.step.images} <= whole
    assert np.array_equal(half.step.images, of("mini/15-5/overlap", share=0.5).step.images)


def test_joint_sees_every_picture_once_with_all_its_labels():
    data = of("mini/10-10/overlap")
    parts = data.joint_sources()
    pictures = [image.tobytes() for part in parts for image in part.images]
    assert len(set(pictures)) == len(pictures)
    every = {image.tobytes() for drawn in (data.base, data.step) for image in drawn.images}
    assert set(pictures) == every
    ids = set(np.unique(np.concatenate([part.labels.ravel() for part in parts])))
    assert ids & set(range(1, 11)) and ids & set(range(11, 21))


def test_coco_to_voc_has_two_draws_and_two_validation_sets():
    data = of("mini/coco-to-voc", 60)
    assert draws_of(get("mini/coco-to-voc")) == ("coco", "voc")
    assert not np.isin(data.base.labels, range(21, 41)).any()
    assert set(np.unique(data.pixel_source().labels)) <= {0, *range(21, 41)}
    other = data.validation(STEP, "voc")
    assert set(np.unique(other.labels)) <= {0, *range(21, 41)} and len(data.new_names()) == 20
    assert len(data.joint_sources()) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"share": 0}, r"`share` must be in \(0, 1\]"),
        ({"share": 1.5}, r"`share` must be in \(0, 1\]"),
        ({"protocol": "mini/zs3"}, "must be class-incremental"),
        ({"protocol": "mini/15-6/overlap"}, "mini/15-5/overlap"),
        ({"protocol": "mini/coco-to-voc", "images": {"coco": 1, "voc": 1}}, "step 0 of mini/coco-to-voc may see none"),
    ],
)
def test_what_does_not_fit_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        load(config() | changes)

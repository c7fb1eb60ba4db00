import csv
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from toys import ROOT

from fmseg import names, protocols
from fmseg.datasets import IGNORE, draw_set, get_draw
from fmseg.words import BASE_THINGS, SHAPES, VOC_THINGS, kind_of_novelty

VOC = names.VOC
KINDS = [f"{task}/{kind}" for task in ("15-5", "10-10") for kind in ("disjoint", "overlap")]


def train_aug():
    """Presence of VOC's classes in train_aug, as (10582, 21) bool; the order of images is lost."""
    rows = []
    with (ROOT / "tests/fixtures/voc_train_aug_presence.csv").open() as file:
        for line in csv.DictReader(file):
            row = np.zeros(21, bool)
            row[[0, *map(int, line["classes"].split())]] = True
            rows += [row] * int(line["images"])
    return np.array(rows)


def test_steps_see_as_many_images_as_in_wilsons_split_files():
    present = train_aug()
    seen = {k: [p.images(s, present, VOC) for s in (0, 1)] for k in KINDS if (p := protocols.get(f"voc/{k}"))}
    assert len(present) == 10582
    assert {k: [len(v) for v in steps] for k, steps in seen.items()} == {
        "15-5/disjoint": [8437, 2145], "15-5/overlap": [9568, 2145],
        "10-10/disjoint": [3706, 6876], "10-10/overlap": [6139, 6876],
    }  # fmt: skip
    assert len(np.intersect1d(*seen["15-5/overlap"])) == 1131 and len(np.intersect1d(*seen["10-10/overlap"])) == 2433
    assert not len(np.intersect1d(*seen["15-5/disjoint"])) and not len(np.intersect1d(*seen["10-10/disjoint"]))
    new = protocols.get("voc/15-5/disjoint")
    counts = new.image_labels(1, present, VOC)[seen["15-5/disjoint"][1]].sum(0)
    assert counts.tolist() == [487, 299, 491, 500, 548]


@given(hnp.arrays(bool, st.tuples(st.integers(0, 40), st.just(21))), st.sampled_from(("15-5", "10-10")))
def test_identities_of_disjoint_and_overlap(present, task):
    disjoint, overlap = (protocols.get(f"voc/{task}/{kind}") for kind in ("disjoint", "overlap"))
    first, later = (set(disjoint.images(s, present, VOC)) for s in (0, 1))
    assert later == set(overlap.images(1, present, VOC)), "the last step is the same"
    assert first <= set(overlap.images(0, present, VOC)) and not first & later
    new = list(disjoint.new(1))
    assert set(overlap.images(0, present, VOC)) - first == {
        i for i in overlap.images(0, present, VOC) if present[i, new].any()
    }


def test_labels_of_a_step_by_hand():
    protocol = protocols.get("voc/15-5/overlap")
    first, after, end = protocol.pixel_labels(0, VOC), protocol.evaluation(0, VOC), protocol.evaluation(1, VOC)
    assert first[[0, 1, 15, 16, 20, 255]].tolist() == [0, 1, 15, 0, 0, 255], "future classes are background"
    assert np.array_equal(first, after) and end[[16, 20, 255]].tolist() == [16, 20, 255]
    assert replace(protocol, void_is_background=True).pixel_labels(0, VOC)[255] == 0
    assert replace(protocol, void_is_background=True).evaluation(0, VOC)[255] == IGNORE
    strong = replace(protocol, weak=False).pixel_labels(1, VOC)
    assert strong[[0, 1, 15, 16, 20]].tolist() == [0, 0, 0, 16, 20], "old classes are background at step 1"
    with pytest.raises(ValueError, match="step 1 of voc/15-5/overlap carries image-level labels only"):
        protocol.pixel_labels(1, VOC)


def test_columns_of_the_tables():
    groups = protocols.get("voc/15-5/disjoint").groups()
    assert groups["old"] == list(range(1, 16)) and groups["new"] == [16, 17, 18, 19, 20] and len(groups["all"]) == 21
    big = protocols.get("coco-to-voc").groups()
    assert [len(big[k]) for k in ("old", "new", "all")] == [60, 20, 81]


# WILSON data/make_cocovoc.py, and the two lists of tasks['coco-voc'] in its tasks.py: COCO category ids
VOC_TO_COCO = [5, 2, 16, 9, 44, 6, 3, 17, 62, 21, 67, 18, 19, 4, 1, 64, 20, 63, 7, 72]
BASE = [8, 10, 11, 13, 14, 15, 22, 23, 24, 25, 27, 28, *range(31, 44), *range(46, 62), 65, 70, *range(73, 83),
        *range(84, 91)]  # fmt: skip
NEW = [1, 2, 3, 4, 5, 6, 7, 9, 16, 17, 18, 19, 20, 21, 44, 62, 63, 64, 67, 72]


def test_coco_to_voc_has_wilsons_logits_and_id_map():
    protocol = protocols.get("coco-to-voc")
    assert protocol.order[1:] == tuple(names.COCO_BY_ID[k] for k in BASE + NEW)
    logit_of_id = {k: 1 + (BASE + NEW).index(k) for k in BASE + NEW}
    from_voc = protocol.evaluation(1, VOC)
    assert from_voc[1:21].tolist() == [logit_of_id[k] for k in VOC_TO_COCO]
    from_coco = protocol.evaluation(1, names.COCO)
    assert from_coco[1:81].tolist() == [logit_of_id[k] for k in names.COCO_BY_ID]
    assert protocol.evaluation(0, VOC)[1:21].tolist() == [0] * 20


def test_coco_to_voc_hides_images_with_a_voc_class_from_step_0():
    protocol, classes = protocols.get("coco-to-voc"), names.COCO
    present = np.zeros((4, 81), bool)
    present[:, 0] = True
    present[[0, 1], classes.index("truck")] = True
    present[[1, 2], classes.index("car")] = True
    assert protocol.images(0, present, classes).tolist() == [0]
    assert protocol.images(1, present, classes).tolist() == [1, 2]


def test_zs3_ignores_what_it_does_not_know():
    split = protocols.get("voc/zs3")
    assert split.unseen == ("pottedplant", "sheep", "sofa", "train", "tvmonitor")
    train, test = split.train_table(VOC), split.evaluation(VOC)
    assert train[[0, 1, 15, 16, 20, 255]].tolist() == [255, 0, 14, 255, 255, 255]
    assert test[[0, 1, 15, 16, 20, 255]].tolist() == [255, 0, 14, 15, 19, 255]
    assert split.groups() == {"seen": list(range(15)), "unseen": list(range(15, 20))}
    present = np.zeros((3, 21), bool)
    present[0, [0, 1]] = present[1, [0, 16]] = present[2, 0] = True
    assert split.images(present, VOC).tolist() == [0]


def test_grounded_diffusions_splits():
    left_out = {n: protocols.get(f"voc/grounded-{n}").unseen for n in (1, 2, 3)}
    assert left_out == {
        1: ("tvmonitor", "car", "dog", "sofa", "train"),
        2: ("horse", "motorbike", "person", "pottedplant", "sheep"),
        3: ("bus", "cat", "chair", "cow", "diningtable"),
    }
    assert protocols.get("voc/grounded-2").seen[0] == "tvmonitor", "the file of split 2 starts there"
    assert protocols.get("voc/grounded-3").seen[0] == "horse"
    for number in (1, 2, 3):
        split = protocols.get(f"coco/grounded-{number}")
        assert (len(split.seen), len(split.unseen)) == (65, 15) and set(split.classes) == set(names.COCO[1:])
    assert protocols.get("coco/grounded-1").certainty == "STATED" != protocols.get("coco/grounded-2").certainty
    few = protocols.first_seen(protocols.get("coco/grounded-1"), 5)
    assert len(few.seen) == 5 and len(few.unseen) == 75 and few.classes == protocols.get("coco/grounded-1").classes


def test_the_mini_world_has_an_analogue_of_each():
    for kind in KINDS:
        orders = [protocols.get(f"mini/{kind}" + (f"/order-{v}" if v else "")).order for v in range(4)]
        assert len(set(orders)) == 4 and all(set(o) == set(orders[0]) for o in orders)
        assert orders[0] == get_draw("voc").classes
    coco = protocols.get("mini/coco-to-voc")
    assert coco.order == get_draw("coco").classes and coco.new(1) == range(21, 41)
    drawn = draw_set("coco", "train", 60, size=32)
    first = coco.images(0, drawn.present, drawn.draw.classes)
    assert 0 < len(first) < 30
    assert not set(VOC_THINGS) & {thing for i in first for thing in drawn.subset([i]).things[0]}
    for number in (1, 2, 3):
        split = protocols.get(f"mini/grounded-coco-{number}")
        assert (len(split.seen), len(split.unseen)) == (32, 8) and set(split.classes) == set(BASE_THINGS + VOC_THINGS)
        assert {kind_of_novelty(n, split.seen) for n in split.unseen} == {"new combination"}
        assert len({n.split()[1] for n in split.seen}) == len(SHAPES)


def test_presence_counts_what_masks_hold():
    masks = np.array([[[0, 0], [3, 255]], [[1, 1], [1, 1]]], np.uint8)
    assert protocols.presence(masks, 4).tolist() == [[True, False, False, True], [False, True, False, False]]
    drawn = draw_set("voc", "train", 5, size=32)
    assert np.array_equal(protocols.presence(drawn.labels, 21) & drawn.present, drawn.present)


def test_bad_input_is_named():
    protocol = protocols.get("voc/15-5/disjoint")
    with pytest.raises(ValueError, match="`protocol` must be one of .*Did you mean 'voc/15-5/disjoint'"):
        protocols.get("voc/15-5/disjunct")
    with pytest.raises(ValueError, match=r"`present` must be \(N, 21\) bool.*got \(2, 20\) bool"):
        protocol.images(0, np.zeros((2, 20), bool), VOC)
    with pytest.raises(ValueError, match=r"`present` must be .* got \(2, 21\) float64"):
        protocol.image_labels(1, np.zeros((2, 21)), VOC)
    with pytest.raises(ValueError, match="`step` of voc/15-5/disjoint must be 0..1; got 2"):
        protocol.new(2)
    with pytest.raises(ValueError, match="has no class 'motorcycle'; are these the class names of voc"):
        protocol.pixel_labels(0, names.COCO)
    with pytest.raises(ValueError, match="`variant` must be 0, 1, 2 or 3; got 4"):
        protocols.mini_order(4)
    with pytest.raises(ValueError, match="voc/zs3: the data set has no class 'bicycle'"):
        protocols.get("voc/zs3").train_table(("background", "aeroplane"))
    with pytest.raises(ValueError, match="`count` must be 1..79"):
        protocols.first_seen(protocols.get("coco/grounded-1"), 80)

"""Values of mask files and class ids: both data sets, any other, and what is refused."""

import numpy as np
import pytest

from fmseg.label_format import ADE20K, COCO_STUFF, LabelFormat


def test_mask_files_of_both_data_sets():
    ade, coco = np.array([[0, 1, 150]], np.uint8), np.array([[0, 170, 255]], np.uint8)
    assert ADE20K.read(ade).tolist() == [[255, 0, 149]] and COCO_STUFF.read(coco).tolist() == [[0, 170, 255]]
    for form, mask in ((ADE20K, ade), (COCO_STUFF, coco)):
        assert (form.write(form.read(mask)) == mask).all() and form.write(form.read(mask)).dtype == np.uint8
        assert (form.read(mask.astype(np.int32)) == form.read(mask)).all()
    other = LabelFormat(3, ignore=9, shift=2, ignore_index=-1)
    assert other.read(np.array([2, 9, 4], np.uint8)).tolist() == [0, -1, 2]
    assert other.write(np.array([0, -1, 2])).tolist() == [2, 9, 4]


def test_errors_of_mask_files():
    with pytest.raises(ValueError, match=r"1 to 150 \(classes\) or 0 \(no label\); found 255 at \[0, 1\]. Are `shift`"):
        ADE20K.read(np.array([[0, 255]], np.uint8))
    for value in (-1, 256, 171):
        with pytest.raises(ValueError, match=rf"found {value} at \[1\]"):
            COCO_STUFF.read(np.array([0, value]))
    for wrong in (np.zeros(2), [0, 1], np.zeros(2, bool)):
        with pytest.raises(TypeError, match="`mask` must be an array of integer ids; got"):
            ADE20K.read(wrong)
    with pytest.raises(ValueError, match=r"ids in \[0, 150\) or 255 \(ignored\); found 150 at \[0\]"):
        ADE20K.write(np.array([150]))
    for wrong in (dict(num_classes=0), dict(num_classes=256, shift=1), dict(num_classes=3, ignore=300)):
        with pytest.raises(ValueError, match="fit into a byte"):
            LabelFormat(**wrong)
    for wrong in (dict(ignore=1), dict(ignore=0, shift=1, ignore_index=2)):
        with pytest.raises(ValueError, match="must not be ids of classes"):
            LabelFormat(3, **wrong)

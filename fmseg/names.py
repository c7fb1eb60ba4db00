"""Class names and ids of the real data sets, in the spelling of the data sets themselves.

VOC and COCO things stand here because protocols are written in their ids; ADE20K's 150 names and COCO-Stuff's 171 are
mmsegmentation's and are read from there.
"""

VOC = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip

# COCO's 80 things by category id, 1..90; eleven ids were never used
COCO_BY_ID = dict(zip(
    (*range(1, 12), *range(13, 26), 27, 28, *range(31, 45), *range(46, 66), 67, 70, *range(72, 83), *range(84, 91)),
    (
        "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
        "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow",
        "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis",
        "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard",
        "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich",
        "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed",
        "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave", "oven",
        "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier",
        "toothbrush",
    ),
    strict=True,
))  # fmt: skip
COCO = ("background", *COCO_BY_ID.values())  # in the order of the ids
COCO_UNUSED = tuple(k for k in range(1, 92) if k not in COCO_BY_ID)  # 91 is the last thing id that was planned

CAMVID = (
    "sky", "building", "pole", "road", "pavement", "tree", "sign symbol", "fence", "car", "pedestrian", "bicyclist",
)  # fmt: skip

# VOC's class names in COCO's words, in VOC's order (WILSON data/make_cocovoc.py gives the same pairs by id)
VOC_IN_COCO = {
    "aeroplane": "airplane", "bicycle": "bicycle", "bird": "bird", "boat": "boat", "bottle": "bottle", "bus": "bus",
    "car": "car", "cat": "cat", "chair": "chair", "cow": "cow", "diningtable": "dining table", "dog": "dog",
    "horse": "horse", "motorbike": "motorcycle", "person": "person", "pottedplant": "potted plant", "sheep": "sheep",
    "sofa": "couch", "train": "train", "tvmonitor": "tv",
}  # fmt: skip


def of_mmseg(dataset: str) -> tuple[str, ...]:
    """Class names of one of mmsegmentation's data sets, such as 'ADE20KDataset' or 'COCOStuffDataset'."""
    import mmseg.datasets

    return tuple(getattr(mmseg.datasets, dataset).METAINFO["classes"])

"""MaskFormer at the paper's size on small crops, its recipe, and the paper's oracle without memory."""

import json
from dataclasses import asdict

import pytest
import torch
import torch.nn.functional as F

from fmseg import grounded_detector, mask_rcnn, maskformer, names
from fmseg.segmenters import MaskSegmenter
from fmseg.train_config import TrainConfig, parameter_groups


@pytest.fixture(scope="module")
def r50():
    return maskformer.build("r50", num_classes=21, image_size=64, seed=3)


def batch(size=1, classes=21, seed=0):
    rng = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (size, 3, 64, 64), generator=rng, dtype=torch.uint8)
    labels = torch.randint(0, classes, (size, 4, 4), generator=rng).repeat_interleave(16, 1).repeat_interleave(16, 2)
    labels[:, :8] = 255
    return images, labels


def test_a_step_at_full_size_has_a_finite_loss_and_reaches_the_backbone(r50):
    assert 41 < sum(p.numel() for p in r50.parameters()) / 1e6 < 42 and isinstance(r50, MaskSegmenter)
    loss = r50.loss(*batch())
    r50.zero_grad()
    loss.backward()
    assert torch.isfinite(loss) and loss > 0
    for part in ("backbone.conv1.weight", "backbone.layer4.0.downsample.0.weight", "decode_head.query_embed.weight"):
        assert r50.model.get_parameter(part).grad.abs().sum() > 0, part
    with torch.no_grad():
        r50.eval()
        shares = r50.log_probabilities(batch()[0]).exp()
        wide = r50.logits(torch.zeros(1, 3, 64, 96))
        r50.train()
    assert shares.shape == (1, 21, 64, 64) and torch.allclose(shares.sum(1), torch.ones(1, 64, 64), atol=1e-5)
    assert wide.shape == (1, 21, 64, 96) and (wide >= 0).all()


def test_the_state_is_mmsegmentations(r50):
    from fmseg import _mmseg, paper_segmenters

    config = maskformer._file("r50").model.to_dict()
    config.pop("data_preprocessor")
    paper_segmenters._plain_norm(config)
    config["backbone"].pop("init_cfg")
    with torch.device("meta"), _mmseg.quiet():
        theirs = _mmseg.MODELS.build(_mmseg.ConfigDict(config)).state_dict()
    ours = r50.model.state_dict()
    assert ours.keys() == theirs.keys()
    other = {k for k in ours if ours[k].shape != theirs[k].shape}
    assert other == {"decode_head.cls_embed.weight", "decode_head.cls_embed.bias"}, "150 classes there"
    assert {k for k in r50.state_dict() if not k.startswith("model.")} == {"mean", "std"}


def mini(classes=5, **how):
    return maskformer.build("mini", num_classes=classes, image_size=64, **how)


def test_weights_are_a_function_of_the_seed():
    one, again, other = (mini(seed=s).state_dict() for s in (0, 0, 1))
    assert all(torch.equal(one[k], again[k]) for k in one)
    assert not all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize("size", [1, 3])
def test_batches_of_any_size_and_without_labels_are_finite(size):
    model = mini()
    images, labels = batch(size, 5)
    assert torch.isfinite(model.loss(images, labels))
    empty = model.loss(images, torch.full_like(labels, 255))
    empty.backward()
    assert torch.isfinite(empty) and empty > 0, "no object is still taught"
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    some = labels.clone()
    some[0] = 255
    assert torch.isfinite(model.loss(images, some)) and model.loss_weight(labels) == size


def test_an_ignored_pixel_is_a_negative_of_every_mask():
    model = mini().eval()
    images, _ = batch(1, 5)
    labels = torch.full((1, 64, 64), 255)
    labels[:, :32] = 2
    with torch.no_grad():
        features = model._features(images)
        from fmseg._mmseg import PixelData, SegDataSample

        sample = SegDataSample(metainfo={"img_shape": (64, 64)})
        sample.gt_sem_seg = PixelData(data=labels)
        (truth,), _ = model.model.decode_head._seg_data_to_instance_data([sample])
        losses = model.model.decode_head.loss(features, [sample], None)
        whole = float(model.loss(images, labels))
    assert truth.labels.tolist() == [2] and torch.equal(truth.masks[0], (labels[0] == 2).long())
    assert sum(float(v) for k, v in losses.items() if "loss" in k) == pytest.approx(whole, rel=1e-5)


def test_the_focal_loss_is_the_textbook_s():
    """Lin et al. 2017, eq. 5, at gamma 2 and alpha 0.25; mmdetection adds an epsilon to the divisor."""
    ours = mini().model.decode_head.loss_mask
    scores, inside = torch.randn(50, 1, generator=torch.Generator().manual_seed(0)), torch.arange(50) % 3 == 0
    found = ours(scores, 1 - inside.long(), avg_factor=50.0)
    p, t = scores[:, 0].sigmoid(), inside.float()
    right = p * t + (1 - p) * (1 - t)
    alpha = 0.25 * t + 0.75 * (1 - t)
    by_hand = 20 * (alpha * (1 - right) ** 2 * F.binary_cross_entropy(p, t, reduction="none")).sum() / 50
    assert float(found) == pytest.approx(float(by_hand), rel=1e-5)
    theirs = ours.loss(scores, 1 - inside.long(), avg_factor=50.0)  # mmdetection's own way on the CPU
    assert torch.equal(found, theirs)


def test_zegformers_values():
    voc, coco = maskformer.recipe("voc"), maskformer.recipe("coco")
    train = voc.train
    assert (train["steps"], train["batch_size"], train["lr"], train["weight_decay"]) == (10_000, 32, 1e-4, 1e-4)
    assert (train["poly_power"], train["warmup_steps"], train["grad_clip"]) == (0.9, 0, 0.01)
    assert train["keys"]["backbone"] == {"lr": 0.1, "decay": 1.0} and train["optimizer"] == "adamw"
    assert voc.pipeline[0]["scales"] == [int(x * 0.1 * 512) for x in range(5, 21)]
    assert voc.pipeline[0]["max_size"] == 2048 and voc.pipeline[1]["crop_size"] == (512, 512)
    assert voc.pipeline[1]["cat_max_ratio"] == 1.0 and voc.test.scale == (2048, 512) and voc.test.window is None
    assert {s["type"] for s in voc.pipeline[2:]} == {"PhotoMetricDistortion", "RandomFlip"}
    assert coco.train == train | {"steps": 60_000, "eval_every": 5000} and coco.crop == (640, 640)
    assert coco.pipeline[0]["scales"] == [int(x * 0.1 * 640) for x in range(5, 16)] and coco.test.scale == (2560, 640)
    json.dumps(asdict(voc))
    small = maskformer.recipe("voc", crop=64)
    assert small.crop == (64, 64) and small.test.scale == (256, 64) and small.pipeline[0]["max_size"] == 256


def test_norms_and_queries_do_not_decay_and_the_backbone_is_slow():
    model, config = mini(), TrainConfig.from_dict(maskformer.recipe("voc").train)
    made = {}
    for group in parameter_groups(model, config.weight_decay, config.keys, config.norm_decay):
        made |= {id(p): (group["factor"], group["weight_decay"]) for p in group["params"]}
    assert made[id(model.model.backbone.conv1.weight)] == (0.1, 1e-4)
    assert made[id(model.model.decode_head.query_embed.weight)] == (1.0, 0.0)
    assert made[id(model.model.decode_head.cls_embed.weight)] == (1.0, 1e-4)
    assert made[id(model.model.decode_head.transformer_decoder.post_norm.weight)] == (1.0, 0.0)
    assert len(made) == len(list(model.parameters()))


def test_the_backbone_s_weights_are_torchvisions(tmp_path, monkeypatch, r50):
    monkeypatch.delenv("FMSEG_WEIGHTS", raising=False)
    with pytest.raises(FileNotFoundError, match="Set FMSEG_WEIGHTS to a folder with resnet101-63fe2227.pth"):
        maskformer.weights_file("r101")
    monkeypatch.setenv("FMSEG_WEIGHTS", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="There is no file .*resnet50-0676ba61.pth; download it from"):
        maskformer.load_pretrained(r50, "r50")
    from torchvision.models import resnet50

    theirs = resnet50()
    torch.save(theirs.state_dict(), tmp_path / "resnet50-0676ba61.pth")
    model = maskformer.build("r50", num_classes=3, image_size=64)
    maskformer.load_pretrained(model, "r50")
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    model.eval()
    x, theirs = images, theirs.eval()
    with torch.no_grad():
        for part in ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"):
            x = getattr(theirs, part)(x)
        assert torch.allclose(model.model.backbone(images)[-1], x, atol=1e-4)


def test_mistakes_have_clear_messages(r50):
    with pytest.raises(ValueError, match="`size` of maskformer must be one of r50, r101, mini; got 'r51'"):
        maskformer.build("r51", num_classes=3)
    with pytest.raises(ValueError, match="`num_classes` must be at least 2"):
        mini(1)
    with pytest.raises(ValueError, match="multiple of 32 pixels, got 40"):
        maskformer.build("mini", num_classes=3, image_size=40)
    with pytest.raises(ValueError, match="`dataset` must be one of .*got 'ade20k'"):
        maskformer.recipe("ade20k")
    with pytest.raises(ValueError, match="'mini' has no pre-trained backbone; give one of r50, r101"):
        maskformer.weights_file("mini")
    with pytest.raises(ValueError, match="maskformer takes images whose sides are multiples of 32 pixels, got 48x64"):
        r50.logits(torch.zeros(1, 3, 48, 64))
    with pytest.raises(ValueError, match="`labels` must be in|label"):
        r50.loss(torch.zeros(1, 3, 64, 64), torch.full((1, 64, 64), 21))


def test_the_paper_s_oracle_is_counted_and_refuses_to_run():
    model = mask_rcnn.build()
    assert sum(p.numel() for p in model.parameters()) == 69_112_506, "Swin's table: 69M"
    assert {p.device.type for p in (*model.parameters(), *model.buffers())} == {"meta"}
    assert len(mask_rcnn.CLASSES) == 80 == model.roi_head.bbox_head.num_classes and mask_rcnn.CLASSES[0] == "person"
    assert [len(stage.blocks) for stage in model.backbone.stages] == [2, 2, 18, 2]
    assert set(names.VOC_IN_COCO.values()) <= set(mask_rcnn.CLASSES)
    told = "roi_align are compiled parts of mmcv that mmcv-lite lacks. Use Mask2Former for instances on COCO instead"
    with pytest.raises(RuntimeError, match=told):
        model(torch.zeros(1, 3, 64, 64), mode="predict")
    with pytest.raises(RuntimeError, match=told):
        grounded_detector.load("mask_rcnn_swin_s.pth")


def test_the_class_names_are_mmdetections():
    from mmdet.datasets import CocoDataset

    assert CocoDataset.METAINFO["classes"] == mask_rcnn.CLASSES

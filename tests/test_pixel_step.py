"""Comparators with pixel labels, and those that make hard labels of image labels first."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fmseg import distill, sdr
from fmseg.batches import Source
from fmseg.cam import CamNet, HardStep, SsNet, hard_labels
from fmseg.pixel_loss import resize_scores
from fmseg.pixel_step import BALANCED, METHODS, PixelStep, base_prototypes, plop_thresholds
from fmseg.plop import ClassMedians
from fmseg.segmenters import build
from fmseg.step_models import grow, read
from fmseg.training import TrainConfig, train, weights_hash
from fmseg.wilson import segmentation_loss, segmentation_targets

OLD, NEW, SIDE = 4, 2, 32
RNG = torch.Generator().manual_seed(5)
IMAGES = torch.randint(0, 256, (3, 3, SIDE, SIDE), dtype=torch.uint8, generator=RNG)
LABELS = torch.tensor([0, 4, 5])[torch.randint(3, (3, SIDE, SIDE), generator=RNG)]
LABELS[:, :2] = 255
SOURCE = Source(IMAGES.permute(0, 2, 3, 1).contiguous().numpy(), LABELS.byte().numpy())
BASE = Source(SOURCE.images, (LABELS.byte().numpy() % 4).astype(np.uint8))


@pytest.fixture(scope="module")
def old():
    return build("deeplabv3", num_classes=OLD, image_size=SIDE, seed=1).eval()


def made(method, old):
    extra = {"plop": {"thresholds": plop_thresholds(old, SOURCE, OLD + NEW)} if method == "plop" else {},
             "sdr": {"prototypes": base_prototypes(old, BASE)} if method == "sdr" else {}}.get(method, {})  # fmt: skip
    return PixelStep(method, grow(old, NEW, seed=2, balanced=method in BALANCED), old, **extra)


def test_every_method_teaches_the_student_and_leaves_the_old_model_alone(old):
    was = weights_hash(old)
    for method in METHODS:
        step = made(method, old).train()
        loss = step.loss(IMAGES, LABELS)
        loss.backward()
        assert torch.isfinite(loss) and loss > 0, method
        assert step.student.model.decode_head.conv_seg.weight.grad.abs().sum() > 0, method
        assert all(p.grad is None for p in step.old.parameters())
    assert weights_hash(old) == was


def test_the_losses_are_those_of_the_kernels(old):
    def logits(step, model):
        return resize_scores(read(model, IMAGES).grid, (SIDE, SIDE))

    steps = {method: made(method, old).eval() for method in ("ft", "lwf", "lwf-mc", "mib", "ilt")}
    new = {method: logits(step, step.student) for method, step in steps.items()}
    was, loss = logits(None, old), {method: step.loss(IMAGES, LABELS) for method, step in steps.items()}
    ce = F.cross_entropy(new["ft"], LABELS, ignore_index=255)
    assert torch.allclose(loss["ft"], ce)
    lwf = ce + 100 * distill.knowledge_distillation(new["lwf"], was)
    assert torch.allclose(loss["lwf"], lwf)
    assert torch.allclose(loss["ilt"], lwf), "the encoder has not moved yet"
    assert torch.allclose(loss["lwf-mc"], distill.lwf_mc_loss(new["lwf-mc"], LABELS, was))
    mib = distill.unbiased_cross_entropy(new["mib"], LABELS, OLD) + 10 * distill.unbiased_distillation(new["mib"], was)
    assert torch.allclose(loss["mib"], mib)


def test_plops_thresholds_are_medians_over_all_pictures(old):
    medians = ClassMedians(OLD, OLD + NEW)
    with torch.no_grad():
        medians.update(old.logits(IMAGES[:2]), LABELS[:2]).update(old.logits(IMAGES[2:]), LABELS[2:])
    assert torch.allclose(plop_thresholds(old, SOURCE, OLD + NEW), medians.compute(official=False))


def test_sdrs_means_start_at_the_base_step_and_survive_a_checkpoint(old, tmp_path):
    means = base_prototypes(old, BASE)
    with torch.no_grad():
        once = sdr.Prototypes(OLD, old.model.decode_head.in_channels).update(
            read(old, IMAGES).encoder, torch.from_numpy(BASE.labels).long(), background=False
        )
    assert torch.allclose(means.compute(), once.compute()) and means.counts[0] == 0
    config = TrainConfig(steps=4, batch_size=2, lr=0.01)
    whole, first, going_on = (made("sdr", old) for _ in range(3))
    train(whole, SOURCE, config, progress=False)
    assert whole.counts[OLD:].sum() > 0, "new classes join"

    def stop(done, loss):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(first, SOURCE, config, checkpoint=tmp_path / "c.pt", progress=False, on_step=stop)
    train(going_on, SOURCE, config, checkpoint=tmp_path / "c.pt", progress=False)
    assert weights_hash(going_on) == weights_hash(whole) and torch.equal(going_on.sums, whole.sums)


def test_a_method_without_what_it_needs_is_refused(old):
    student = grow(old, NEW, seed=2)
    with pytest.raises(ValueError, match="`method` must be one of ft, lwf"):
        PixelStep("mibs", student, old)
    with pytest.raises(ValueError, match="plop needs `thresholds`"):
        PixelStep("plop", student, old)
    with pytest.raises(ValueError, match="no other method takes them"):
        PixelStep("ft", student, old, thresholds=torch.zeros(OLD))


# --- CAM, SS ---------------------------------------------------------------------------------------------------------

TAGS = np.array([[True, False], [True, True], [False, False]])


@pytest.mark.parametrize("kind", [CamNet, SsNet])
def test_networks_of_image_labels_learn_and_label_only_what_is_there(kind):
    def fresh():
        return kind(build("deeplabv3", num_classes=OLD, image_size=SIDE, seed=1), NEW, seed=7)

    source = Source(SOURCE.images, np.full_like(SOURCE.labels, 255), tags=TAGS)
    net, again = fresh(), fresh()
    config = TrainConfig(steps=4, batch_size=3, lr=0.01)
    result = train(net, source, config, progress=False)
    train(again, source, config, progress=False)
    assert weights_hash(net) == weights_hash(again) and len(result.losses) == 4
    labels = hard_labels(net, SOURCE.images, TAGS, OLD)
    assert set(np.unique(labels[0])) <= {0, OLD} and set(np.unique(labels[1])) <= {0, OLD, OLD + 1}
    assert (labels[2] == 0).all() and labels.dtype == np.uint8


def test_a_class_map_reaches_one_where_it_is_highest():
    net = CamNet(build("deeplabv3", num_classes=OLD, image_size=SIDE, seed=1), NEW, seed=7, threshold=0.25).eval()
    scores = net.scores(IMAGES, torch.from_numpy(TAGS))
    assert (scores[:, 0] == 0.25).all()
    peaks = scores[:, 1:].amax((2, 3))
    assert not peaks[torch.from_numpy(~TAGS)].any()
    assert all(p == 0 or abs(p - 1) < 1e-6 for p in peaks.flatten().tolist())
    with pytest.raises(ValueError, match="`threshold` must be in"):
        CamNet(build("deeplabv3", num_classes=OLD, seed=1), NEW, seed=7, threshold=2)


def test_hard_labels_are_learned_with_wilsons_loss(old):
    step = HardStep(grow(old, NEW, seed=2), old).eval()
    labels = torch.zeros_like(LABELS)
    labels[:, :, SIDE // 2 :] = OLD
    grid = read(step.student, IMAGES).grid
    soft = torch.zeros_like(grid)
    soft[:, OLD, :, grid.shape[3] // 2 :] = soft[:, 0, :, : grid.shape[3] // 2] = 1
    wanted = segmentation_loss(grid, segmentation_targets(soft, read(old, IMAGES).grid))
    assert torch.allclose(step.loss(IMAGES, labels), wanted)
    with pytest.raises(ValueError, match="`labels` must be 0 or new classes >= 4"):
        step.loss(IMAGES, labels.fill_(2))

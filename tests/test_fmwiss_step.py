"""FMWISS's step: who sees what, which losses are there when, and what each option changes."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fmseg.experts import Experts
from fmseg.fmwiss import FmwissStep, Options
from fmseg.incremental import binary_loss, old_targets, student_targets
from fmseg.localizer import Localizer
from fmseg.memory import Memory
from fmseg.segmenters import build
from fmseg.step_models import grow, read
from fmseg.wilson_step import WilsonStep

OLD, NEW, SIDE = 4, 2, 32


class Told(Experts):
    """Experts that say: a class that is present fills its half of the picture. Keeps the pictures that it was shown."""

    shown: list

    def masks(self, images, present, grid, generator):
        self.shown.append(images.clone())
        masks = torch.zeros(len(images), NEW, *grid, dtype=torch.bool)
        masks[:, 0, :, : grid[1] // 2] = masks[:, 1, :, grid[1] // 2 :] = True
        return masks & present[:, :, None, None]


def experts():
    made = Told(torch.nn.Identity(), torch.eye(NEW), (0.5,) * 3, (0.5,) * 3)
    object.__setattr__(made, "shown", [])
    return made


def memory():
    kept = Memory(range(1, OLD), capacity=3, least_share=0.0)
    labels = np.zeros((1, SIDE, SIDE), np.uint8)
    labels[0, 4:16, 4:16] = 2
    kept.update(np.full((1, SIDE, SIDE, 3), 200, np.uint8), labels, [0])
    return kept


@pytest.fixture(scope="module")
def old():
    return build("deeplabv3", num_classes=OLD, image_size=SIDE, seed=1).eval()


@pytest.fixture
def step(old):
    def make(keeps=True, **options):
        torch.manual_seed(0)
        kept = memory() if keeps else None
        return FmwissStep(grow(old, NEW, seed=2), old, experts(), kept, Options(**options), seed=3)

    return make


IMAGES = torch.randint(0, 256, (2, 3, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))
TAGS = torch.tensor([[True, False], [True, True]])
UNKNOWN = torch.full((2, SIDE, SIDE), 255)


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


def gradients(model, loss):
    model.zero_grad(set_to_none=True)
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_experts_see_the_picture_before_the_paste_and_masks_end_under_it(step):
    made = step()
    pasted, cells, masks = made.prepare(IMAGES, TAGS, draws())
    assert torch.equal(made.experts.shown[0], IMAGES) and not torch.equal(pasted, IMAGES)
    covered = cells != 255
    assert covered.any() and (cells[covered] == 2).all()
    assert not masks[covered[:, None].expand_as(masks)].any() and masks[:, 0].any() and not masks[0, 1].any()
    plain, none, whole = step(keeps=False).prepare(IMAGES, TAGS, draws())
    assert torch.equal(plain, IMAGES) and none is None and whole[1].sum() == whole.shape[2] * whole.shape[3]


def test_the_losses_are_the_papers_equations(step):
    made = step(dcl_weight=0.0).eval()
    parts = made.losses(IMAGES, TAGS, draws(1))
    pasted, cells, masks = made.prepare(IMAGES, TAGS, draws(1))
    reading, before = read(made.student, pasted), read(made.old, pasted).grid
    teacher, _ = made.teach(reading.encoder)
    assert torch.allclose(parts["new"], binary_loss(teacher[:, OLD:], masks.float()))
    assert torch.allclose(parts["old"], binary_loss(teacher[:, :OLD], old_targets(before, cells, masks)))
    assert torch.allclose(parts["student"], binary_loss(reading.grid, student_targets(teacher, before, TAGS)))
    assert set(parts) == {"new", "old", "student"}
    made = step().eval()
    assert set(made.losses(IMAGES, TAGS, draws(1))) == {"new", "old", "dcl", "student"}
    torch.manual_seed(3)
    total = made.loss(IMAGES, UNKNOWN, TAGS)
    torch.manual_seed(3)
    assert torch.equal(total, made.loss(IMAGES, UNKNOWN * 0, TAGS)), "labels are not looked at; draws follow the seed"


def test_in_the_warm_up_the_student_rests(step):
    made = step(warmup=0.25).train()
    made.at_step(0, 8)
    found = gradients(made, sum(made.losses(IMAGES, TAGS, draws()).values()))
    assert not any(name.startswith("student.model.decode_head") for name in found)
    assert any(name.startswith("student.model.backbone") for name in found), "the teacher teaches the encoder"
    made.at_step(2, 8)
    found = gradients(made, sum(made.losses(IMAGES, TAGS, draws()).values()))
    assert any(name.startswith("student.model.decode_head") for name in found)
    frozen = step(warmup=0.25, freeze_encoder=True).train()
    frozen.at_step(0, 8)
    names = gradients(frozen, sum(frozen.losses(IMAGES, TAGS, draws()).values()))
    assert names and all(name.startswith("teacher") for name in names)


def test_options_change_what_they_say(step):
    def parts(**options):
        return step(**options).eval().losses(IMAGES, TAGS, draws())

    plain = parts()
    assert torch.allclose(parts(reduction="sum")["student"], plain["student"] * (OLD + NEW))
    assert torch.allclose(parts(teacher_reduction="sum")["new"], plain["new"] * NEW)
    assert torch.allclose(parts(dcl_weight=1.0)["dcl"], plain["dcl"] * 10)
    assert parts(bkg_min=False)["old"] != plain["old"] and parts(alpha=1.0)["student"] != plain["student"]
    assert parts(encoder_weight=1.0)["encoder"] == 0, "before the first step the encoder has not moved"
    assert set(parts(teacher=False)) == {"student"}
    made = step(head="localizer")
    assert isinstance(made.teacher, Localizer)
    scores, embedding = made.teach(read(made.student, IMAGES).encoder)
    assert torch.allclose(scores, made.teacher(read(made.student, IMAGES).encoder)) and embedding.shape[1] == 32
    apart = step(teacher_gradient=False, alpha=0.0)
    losses = apart.losses(IMAGES, TAGS, draws())
    found = gradients(apart, losses["new"] + losses["old"] + losses["dcl"])
    assert found and all(name.startswith("teacher") for name in found)


def test_a_teacher_can_begin_as_the_old_head(step):
    made = step(teacher_start="old").eval()
    reading = read(made.old, IMAGES)
    scores, embedding = made.teach(reading.encoder)
    assert torch.equal(scores[:, :OLD], reading.grid) and torch.equal(embedding, reading.embedding)
    losses = made.losses(IMAGES, TAGS, draws())
    found = gradients(made, losses["new"] + losses["old"])
    assert any(name.startswith("teacher.layers.conv_seg") for name in found), "it learns, the old model rests"
    assert not any(name.startswith("old.") for name in found)
    fresh = step().eval().teach(reading.encoder)[0]
    assert not torch.allclose(fresh[:, :OLD], reading.grid)


def test_without_a_teacher_the_student_learns_the_masks(step):
    made = step(teacher=False, keeps=False).eval()
    loss = made.losses(IMAGES, TAGS, draws())["student"]
    masks = made.prepare(IMAGES, TAGS, draws())[2]
    targets = torch.cat([old_targets(read(made.old, IMAGES).grid, None, masks), masks.float()], 1)
    assert torch.allclose(loss, binary_loss(read(made.student, IMAGES).grid, targets))


def test_an_image_without_labels_and_an_empty_memory(step, old):
    parts = step().eval().losses(IMAGES, torch.zeros_like(TAGS), draws())
    assert all(torch.isfinite(value) for value in parts.values()) and parts["new"] > 0
    empty = FmwissStep(grow(old, NEW, seed=2), old, experts(), Memory([1]), Options(), seed=3)
    with pytest.raises(ValueError, match="memory of classes .* is empty"):
        empty.loss(IMAGES, UNKNOWN, TAGS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 1.5}, r"`alpha` must be in \[0, 1\]"),
        ({"beta": -0.1}, r"`beta` must be in \[0, 1\]"),
        ({"dcl_weight": -1}, "`dcl_weight` must be >= 0"),
        ({"warmup": 1.0}, r"`warmup` must be in \[0, 1\)"),
        ({"head": "mlp"}, "`head` must be one of aspp, localizer"),
        ({"hard_over": "old"}, "`hard_over` must be one of all, background, new"),
        ({"reduction": "max"}, "`reduction` must be one of mean, sum"),
        ({"teacher_start": "new"}, "`teacher_start` must be one of fresh, old"),
        ({"teacher_start": "old", "head": "localizer"}, "`teacher_start` 'old' needs the head 'aspp'"),
    ],
)
def test_options_out_of_range_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Options(**options)


def test_experts_of_other_classes_are_refused(old):
    with pytest.raises(ValueError, match="must know the 2 new classes; they know 3"):
        FmwissStep(grow(old, NEW, seed=2), old, replace(experts(), text=torch.eye(3)), None, Options(), seed=3)


def test_temperature_zero_is_an_error(step):
    with pytest.raises(ValueError, match="`temperature` must be a number > 0"):
        step(temperature=0).losses(IMAGES, TAGS, draws())


# --- WILSON ----------------------------------------------------------------------------------------------------------


def test_wilson_learns_classes_first_and_the_segmenter_after_the_warm_up(old):
    made = WilsonStep(grow(old, NEW, seed=2), old, seed=3, warmup=0.5).train()
    made.at_step(0, 4)
    assert set(made.losses(IMAGES, TAGS)) == {"cls", "loc", "enc"}
    found = gradients(made, made.loss(IMAGES, UNKNOWN, TAGS))
    assert not any(name.startswith("student.model.decode_head") for name in found)
    assert any(name.startswith("student.model.backbone") for name in found)
    made.at_step(2, 4)
    assert set(made.losses(IMAGES, TAGS)) == {"cls", "loc", "enc", "sss", "seg"}
    found = gradients(made, made.loss(IMAGES, UNKNOWN, TAGS))
    assert any(name.startswith("student.model.decode_head") for name in found)
    with pytest.raises(ValueError, match="`alpha` must be in"):
        WilsonStep(grow(old, NEW, seed=2), old, seed=3, alpha=2.0)


def test_wilsons_pseudo_labels_hold_no_absent_class(old):
    made = WilsonStep(grow(old, NEW, seed=2), old, seed=3, warmup=0.0, encoder_weight=0.0).eval()
    made.at_step(0, 4)
    there, absent = made.losses(IMAGES, TAGS), made.losses(IMAGES, torch.zeros_like(TAGS))
    assert there["seg"] != absent["seg"] and there["loc"] == absent["loc"]

"""The training loop: exact resumption, mixture of sources, untouched random state, what it says when it fails."""

import json
import signal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fmseg.batches import Mixture, augment
from fmseg.training import (
    Source,
    TrainConfig,
    evaluate,
    learning_rate,
    parameter_groups,
    predict,
    train,
    weights_hash,
)


class Tiny(nn.Module):
    """A segmenter of one convolution, with drop-out, batch norm and a positional embedding."""

    def __init__(self, num_classes=3, seed=0):
        super().__init__()
        self.num_classes = num_classes
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.conv = nn.Conv2d(3, 8, 3, padding=1)
            self.norm = nn.BatchNorm2d(8)
            self.pos_embed = nn.Parameter(torch.randn(1, 8, 8, 8) * 0.02)
            self.head = nn.Conv2d(8, num_classes, 1)

    def logits(self, images):
        x = torch.relu(self.norm(self.conv(images.float() / 255))) + self.pos_embed
        return self.head(nn.functional.dropout(x, 0.2, self.training))

    def loss(self, images, labels):
        total = nn.functional.cross_entropy(self.logits(images), labels, ignore_index=255, reduction="sum")
        return total / (labels != 255).sum().clamp(min=1)


def world(count=10, seed=0, name="real", repeat=1):
    """8x8 images of three colours; the label is the colour."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, (count, 2, 2)).repeat(4, 1).repeat(4, 2).astype(np.uint8)
    colours = np.array([[200, 30, 30], [30, 200, 30], [30, 30, 200]])
    images = (colours[labels] + rng.integers(-25, 25, (count, 8, 8, 3))).astype(np.uint8)
    return Source(images, labels, repeat=repeat, name=name)


CONFIG = TrainConfig(steps=12, batch_size=4, lr=0.02, augment=("flip", "crop", "color"), warmup_steps=2, seed=3)


def run(model=None, config=CONFIG, sources=None, **kwargs):
    model = model or Tiny()
    result = train(model, sources or world(), config, progress=False, **kwargs)
    return model, result


class Killed(Exception):
    pass


def kill_at(step, error=Killed):
    def on_step(done, loss):
        if done == step:
            raise error

    return on_step


# --- resumption ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("killed_at, resumed_from", [(5, 5), (7, 5), (11, 10)])
def test_killed_and_resumed_ends_with_the_same_bits(tmp_path, optimizer, killed_at, resumed_from):
    config = TrainConfig(**CONFIG.to_dict() | {"optimizer": optimizer, "eval_every": 4})
    whole, expected = run(config=config, validation=world(6, seed=9))
    path = tmp_path / "run.pt"
    with pytest.raises(Killed):
        run(config=config, validation=world(6, seed=9), checkpoint=path, checkpoint_every=5, on_step=kill_at(killed_at))
    resumed, result = run(Tiny(seed=99), config, validation=world(6, seed=9), checkpoint=path, checkpoint_every=5)
    assert result.resumed_from == resumed_from
    assert weights_hash(resumed) == weights_hash(whole)
    assert result.losses == expected.losses and result.curve == expected.curve
    assert np.array_equal(result.iou, expected.iou)


def test_interruption_saves_where_it_stopped(tmp_path):
    whole, _ = run()
    path = tmp_path / "deep" / "run.pt"
    with pytest.raises(KeyboardInterrupt):
        run(checkpoint=path, on_step=kill_at(4, KeyboardInterrupt))
    resumed, result = run(Tiny(seed=99), checkpoint=path)
    assert result.resumed_from == 4 and weights_hash(resumed) == weights_hash(whole)
    assert [p.name for p in path.parent.iterdir()] == ["run.pt"]  # nothing half-written is left behind


def test_ctrl_c_inside_a_step_waits_for_its_end(tmp_path):
    class Interrupting(Tiny):
        def loss(self, images, labels):
            self.calls = getattr(self, "calls", 0) + 1
            if self.calls == 4:
                signal.raise_signal(signal.SIGINT)
            return super().loss(images, labels)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="after step 4 of 12"):
        run(Interrupting(), checkpoint=tmp_path / "run.pt")
    assert signal.getsignal(signal.SIGINT) is before
    resumed, _ = run(Tiny(seed=99), checkpoint=tmp_path / "run.pt")
    assert weights_hash(resumed) == weights_hash(run()[0])


def test_a_finished_run_is_not_run_again(tmp_path):
    model, first = run(checkpoint=tmp_path / "run.pt")
    again, second = run(Tiny(seed=99), checkpoint=tmp_path / "run.pt", on_step=kill_at(1))
    assert weights_hash(again) == weights_hash(model) and second.losses == first.losses


def test_a_checkpoint_that_cannot_be_used_says_why_and_what_to_do(tmp_path):
    path = tmp_path / "run.pt"
    run(checkpoint=path)
    with pytest.raises(ValueError, match=r"another run: lr \(0.02 there, 0.01 here\) differ; delete it .* or pass"):
        run(config=TrainConfig(**CONFIG.to_dict() | {"lr": 0.01}), checkpoint=path)
    with pytest.raises(ValueError, match="another run: the training images differ"):
        run(sources=world(seed=1), checkpoint=path)
    with pytest.raises(ValueError, match="of another model .*; delete it"):
        run(Tiny(num_classes=4), checkpoint=path)
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:10], b"", b"not a checkpoint"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="run.pt is truncated or no checkpoint of this loop .* delete it"):
            run(checkpoint=path)
    torch.save({"weights": 1}, path)
    with pytest.raises(ValueError, match="no checkpoint of this loop"):
        run(checkpoint=path)
    with pytest.raises(ValueError, match="needs a `checkpoint` path"):
        run(checkpoint_every=5)


# --- randomness ------------------------------------------------------------------------------------------------------


def test_the_callers_random_state_and_the_models_mode_are_left_alone():
    torch.manual_seed(11)
    np.random.seed(11)
    expected = torch.rand(4), np.random.rand(4)
    torch.manual_seed(11)
    np.random.seed(11)
    model, _ = run(Tiny().eval(), validation=world(3))
    assert torch.equal(torch.rand(4), expected[0]) and np.array_equal(np.random.rand(4), expected[1])
    assert not model.training


def test_the_seed_decides_everything_and_the_callers_state_nothing():
    torch.manual_seed(1)
    one = weights_hash(run()[0])
    torch.manual_seed(2)
    assert weights_hash(run()[0]) == one
    assert weights_hash(run(config=TrainConfig(**CONFIG.to_dict() | {"seed": 4}))[0]) != one


def test_evaluating_more_often_does_not_change_the_run():
    often = TrainConfig(**CONFIG.to_dict() | {"eval_every": 1})
    assert weights_hash(run(config=often, validation=world(3))[0]) == weights_hash(run()[0])


several = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 4)), min_size=1, max_size=3)  # (images, repeat)


@settings(max_examples=20, deadline=None)
@given(several, st.integers(1, 9), st.integers(0, 99))
def test_every_epoch_holds_each_image_as_often_as_its_source_says(sizes, batch_size, seed):
    sources = [world(n, seed=i, name=str(i), repeat=r) for i, (n, r) in enumerate(sizes)]
    mixture = Mixture(sources, batch_size, seed)
    length = sum(n * r for n, r in sizes)
    assert len(mixture) == length
    seen = np.concatenate([np.stack(mixture.pick(step), 1) for step in range(-(-3 * length // batch_size))])
    for epoch in range(3):
        part = seen[epoch * length : (epoch + 1) * length]
        for number, (n, repeat) in enumerate(sizes):
            assert np.array_equal(np.bincount(part[part[:, 0] == number][:, 1], minlength=n), np.full(n, repeat))


def test_real_and_synthetic_are_mixed_at_the_stated_ratio_within_batches():
    mixture = Mixture([world(20, repeat=11), world(220, seed=1, name="synthetic")], 16, 0)
    share = np.array([(mixture.pick(step)[0] == 0).mean() for step in range(60)])
    assert abs(share.mean() - 0.5) < 0.05 and 0.05 < share.std() < 0.25  # no fixed share per batch


def test_a_batch_holds_the_pixels_of_the_images_it_names():
    sources = [world(5), world(7, seed=1, name="synthetic")]
    mixture = Mixture(sources, 6, 2)
    images, labels = mixture.batch(3)
    for i, (source, index) in enumerate(zip(*mixture.pick(3), strict=True)):
        assert np.array_equal(images[i].permute(1, 2, 0).numpy(), sources[source].images[index])
        assert np.array_equal(labels[i].numpy(), sources[source].labels[index])
    assert images.dtype == torch.uint8 and labels.dtype == torch.int64


# --- augmentation ----------------------------------------------------------------------------------------------------


def coded(count=32, size=16):
    """Images whose red channel is the label times 40: pixels and labels must move together."""
    labels = torch.randint(0, 4, (count, size // 4, size // 4)).repeat_interleave(4, 1).repeat_interleave(4, 2)
    return (labels[:, None] * 40).expand(-1, 3, -1, -1).to(torch.uint8), labels


def test_flip_turns_image_and_label_together_and_about_half_of_them():
    images, labels = coded(200)
    flipped, turned = augment(images, labels, ["flip"], np.random.default_rng(0))
    assert torch.equal(flipped[:, 0].long(), turned * 40) and flipped.dtype == torch.uint8
    changed = [not torch.equal(a, b) for a, b in zip(labels, turned, strict=True)]
    assert 0.35 < np.mean(changed) < 0.65


def test_crop_moves_image_and_label_together_and_ignores_the_padding():
    images, labels = coded()
    moved, turned = augment(images, labels, ["crop"], np.random.default_rng(0))
    assert moved.shape == images.shape and set(turned.unique().tolist()) <= {0, 1, 2, 3, 255}
    inside = turned != 255
    agrees = (moved[:, 0] - turned * 40).abs() < 1
    assert agrees[inside].float().mean() > 0.6  # everywhere but where bilinear mixes two blocks
    padded = ~inside
    assert padded.any() and (moved[:, 0][padded] - 127).abs().median() < 1
    unpadded = [not p.any() for p in padded]
    assert 0.2 < np.mean(unpadded) < 0.8  # zoomed in and zoomed out


def test_color_leaves_labels_alone_and_stays_in_range():
    images, labels = coded()
    changed, same = augment(images, labels, ["color"], np.random.default_rng(0))
    assert torch.equal(same, labels) and not torch.equal(changed, images.float())
    assert changed.min() >= 0 and changed.max() <= 255


# --- schedule, groups, config ----------------------------------------------------------------------------------------


def test_learning_rate_by_hand():
    def rates(**changes):
        config = TrainConfig(**{"steps": 10, "lr": 1.0, "warmup_steps": 2} | changes)
        return [round(learning_rate(config, step), 4) for step in (0, 1, 2, 6, 9)]

    assert rates(schedule="poly") == [0.5, 1.0, 1.0, 0.5, 0.125]
    assert rates(schedule="poly", poly_power=2.0) == [0.5, 1.0, 1.0, 0.25, 0.0156]
    assert rates(schedule="cosine") == [0.5, 1.0, 1.0, 0.5, 0.0381]
    assert rates(schedule="constant", warmup_steps=0) == [1.0] * 5


def test_norms_biases_and_positions_do_not_decay():
    model = Tiny()
    decayed, free = parameter_groups(model, 0.1)
    assert {id(p) for p in decayed["params"]} == {id(model.conv.weight), id(model.head.weight)}
    assert decayed["weight_decay"] == 0.1 and free["weight_decay"] == 0.0
    assert len(decayed["params"]) + len(free["params"]) == len(list(model.parameters()))


def test_a_backbone_learns_at_its_own_rate():
    model = nn.ModuleDict({"backbone": Tiny(), "head": nn.Conv2d(3, 4, 1), "backbone_of_another_name": nn.Linear(2, 2)})
    groups = parameter_groups(model, 0.1, backbone_lr=0.1)
    factor = {id(p): group["factor"] for group in groups for p in group["params"]}
    assert {factor[id(p)] for p in model["backbone"].parameters()} == {0.1}
    assert {factor[id(p)] for name in ("head", "backbone_of_another_name") for p in model[name].parameters()} == {1.0}
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert decay[id(model["backbone"].conv.weight)] == 0.1 and decay[id(model["backbone"].norm.weight)] == 0.0
    before = [(len(g["params"]), g["weight_decay"], g["factor"]) for g in parameter_groups(Tiny(), 0.1)]
    after = [(len(g["params"]), g["weight_decay"], g["factor"]) for g in parameter_groups(Tiny(), 0.1, backbone_lr=0.5)]
    assert before == after, "a model without a backbone is not touched"


def test_frozen_parameters_stay():
    model = Tiny()
    model.conv.requires_grad_(False)
    before = model.conv.weight.clone()
    run(model)
    assert torch.equal(model.conv.weight, before)


def test_config_goes_through_json_and_back():
    assert TrainConfig.from_dict(json.loads(json.dumps(CONFIG.to_dict()))) == CONFIG


@pytest.mark.parametrize(
    "values, message",
    [
        ({"steps": 1, "learning_rate": 1}, "unknown training key 'learning_rate'; did you mean"),
        ({"steps": 1, "batchsize": 1}, "did you mean 'batch_size'"),
        ({}, "needs `steps`"),
        ({"steps": 0}, "`steps` must be a whole number >= 1, got 0"),
        ({"steps": 1.5}, "`steps` must be a whole number"),
        ({"steps": 1, "seed": -1}, "`seed` must be a whole number >= 0"),
        ({"steps": 1, "lr": 0}, "`lr` must be a number > 0, got 0"),
        ({"steps": 1, "lr": "1e-3"}, "`lr` must be a number > 0, got '1e-3'"),
        ({"steps": 1, "grad_clip": float("nan")}, "`grad_clip` must be a number"),
        ({"steps": 1, "optimizer": "adam"}, "`optimizer` must be one of adamw, sgd; got 'adam'"),
        ({"steps": 1, "backbone_lr": -0.1}, "`backbone_lr` must be a number >= 0, got -0.1"),
        ({"steps": 1, "backbone_lr": 0.1, "keys": {"head": {"lr": 2}}}, "`keys` exclude each other; write keys"),
        ({"steps": 1, "augment": "flip"}, r"write \['flip'\]"),
        ({"steps": 1, "augment": ["rotate"]}, "holds 'rotate'; known: flip, crop, color"),
    ],
)
def test_config_errors_name_the_field(values, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig.from_dict(values)


# --- learning, evaluation, failures ----------------------------------------------------------------------------------


def test_the_loop_learns_and_the_curve_shows_it():
    config = TrainConfig(steps=60, batch_size=8, lr=0.02, eval_every=20)
    _, result = run(config=config, validation=world(8, seed=5))
    assert [step for step, _ in result.curve] == [20, 40, 60]
    assert result.miou > 0.9 and result.curve[-1][1] == result.miou and result.steps == len(result.losses) == 60
    _, blind = run(config=config)
    assert blind.iou is None and blind.miou is None
    assert blind.curve[0][1] == pytest.approx(np.mean(blind.losses[:20])) and blind.curve[-1][1] < blind.curve[0][1]


def test_evaluation_survives_saving_and_loading(tmp_path):
    model, _ = run()
    data = world(7, seed=8)
    before = evaluate(model, data.images, data.labels, 3, batch_size=3)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    other = Tiny(seed=99)
    other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    after = evaluate(other, data.images, data.labels, 3, batch_size=3)
    assert np.array_equal(before.matrix, after.matrix) and weights_hash(model) == weights_hash(other)


def test_evaluation_is_what_prediction_says_and_restores_the_mode():
    model, data = Tiny().train(), world(5)
    predicted = predict(model, data.images, batch_size=2)
    assert predicted.shape == (5, 8, 8) and predicted.dtype == np.uint8 and model.training
    matrix = evaluate(model, data.images, data.labels, 3).matrix
    assert matrix.sum() == 5 * 64 and np.trace(matrix) == (predicted == data.labels).sum()


def test_weights_hash_sees_one_flipped_bit_and_buffers():
    model = Tiny()
    before = weights_hash(model)
    model.norm.running_mean[3] += 1e-7
    assert weights_hash(model) != before


def test_a_diverging_loss_names_step_and_rate():
    class Diverging(Tiny):
        def loss(self, images, labels):
            self.calls = getattr(self, "calls", 0) + 1
            return super().loss(images, labels) * (float("inf") if self.calls == 3 else 1)

    with pytest.raises(FloatingPointError, match=r"inf at step 3 of 12 \(lr 0.02\); try a smaller `lr`"):
        run(Diverging())


def test_scores_that_are_not_finite_are_reported():
    model, data = Tiny(), world(5)
    model.head.bias.data[1] = float("nan")
    with pytest.raises(FloatingPointError, match="scores of images 0 to 1 are not finite"):
        predict(model, data.images, batch_size=2)


def test_labels_outside_the_models_classes_are_reported_before_training():
    with pytest.raises(ValueError, match=r"source `real` holds label 2; the model has classes 0\.\.1"):
        run(Tiny(num_classes=2))


def test_images_without_any_label_do_not_hurt():
    data = world(4)
    empty = Source(data.images, np.full_like(data.labels, 255), name="empty")
    _, result = run(sources=[empty])
    assert set(result.losses) == {0.0}


def test_sources_that_do_not_fit_are_reported():
    data = world(4)
    with pytest.raises(TypeError, match="source `a`: `images` must be a uint8 array, got float64"):
        Source(data.images / 255, data.labels, name="a")
    with pytest.raises(ValueError, match=r"`images` must be \(N, H, W, 3\), got \(4, 3, 8, 8\)"):
        Source(data.images.transpose(0, 3, 1, 2), data.labels)
    with pytest.raises(ValueError, match=r"`labels` must be \(4, 8, 8\) to fit"):
        Source(data.images, data.labels[:3])
    with pytest.raises(ValueError, match="holds no image"):
        Source(data.images[:0], data.labels[:0])
    with pytest.raises(ValueError, match="`repeat` must be a whole number >= 1, got 0"):
        Source(data.images, data.labels, repeat=0)
    with pytest.raises(ValueError, match="`sources` is empty"):
        Mixture([], 4, 0)
    small = Source(data.images[:, :4], data.labels[:, :4], name="small")
    with pytest.raises(ValueError, match="one image size, got .*'small': .*resize"):
        run(sources=[data, small])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_reported():
    with pytest.raises(ValueError, match="torch sees no GPU; use 'cpu' or 'auto'"):
        run(config=TrainConfig(steps=1, device="cuda"))
    run(config=TrainConfig(steps=1, device="auto"))


@pytest.mark.parametrize("name", ["mask2former", "segmenter"])
def test_a_real_segmenter_resumes_to_the_same_bits(tmp_path, name):
    from fmseg.segmenters import build

    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, (6, 2, 2)).repeat(16, 1).repeat(16, 2).astype(np.uint8)
    source = Source(rng.integers(0, 256, (6, 32, 32, 3), dtype=np.uint8), labels)
    config = TrainConfig(steps=4, batch_size=2, lr=1e-3, seed=1)

    def fresh(seed):
        return build(name, num_classes=4, image_size=32, seed=seed)

    whole, killed, resumed = fresh(0), fresh(0), fresh(9)
    train(whole, source, config, progress=False)
    path = tmp_path / "run.pt"
    with pytest.raises(Killed):
        train(killed, source, config, progress=False, checkpoint=path, checkpoint_every=2, on_step=kill_at(3))
    train(resumed, source, config, progress=False, checkpoint=path)
    assert weights_hash(resumed) == weights_hash(whole)

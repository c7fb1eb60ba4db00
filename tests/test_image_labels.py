"""Image-level labels and steps that differ, in the one training loop."""

import numpy as np
import pytest
import torch
from test_training import Killed, Tiny, kill_at, world

from fmseg.batches import Mixture, Source
from fmseg.labelmaps import unpack
from fmseg.training import TrainConfig, train, weights_hash

CONFIG = TrainConfig(steps=8, batch_size=4, lr=0.02, augment=("flip",), seed=5)


def tagged(count=6, seed=0, width=3):
    """Images whose tags say which colours they hold."""
    source = world(count, seed)
    tags = np.stack([(source.labels == k).any((1, 2)) for k in range(width)], 1)
    return Source(source.images, source.labels, tags=tags)


class Told(Tiny):
    """Learns from tags alone, in the second half of its steps twice as much."""

    def __init__(self):
        super().__init__()
        self.seen, self.factor = [], 1.0

    def at_step(self, step, steps):
        self.seen.append((step, steps))
        self.factor = 1.0 if step < steps // 2 else 2.0

    def loss(self, images, labels, tags):
        assert tags.dtype == torch.bool and tags.shape == (len(images), 3)
        scores = self.logits(images).amax((2, 3))
        return self.factor * torch.nn.functional.binary_cross_entropy_with_logits(scores, tags.float())


def test_tags_stay_with_their_images_in_every_share():
    source = tagged()
    mixture = Mixture(source, 4, 3, augment=("flip",))
    for step in range(4):
        images, labels, tags = mixture.batch(step)
        held = torch.stack([(labels == k).flatten(1).any(1) for k in range(3)], 1)
        assert torch.equal(tags, held)
        assert torch.equal(torch.cat([mixture.batch(step, (k, 2))[2] for k in range(2)]), tags)
    assert len(Mixture(world(), 4, 3).batch(0)) == 2, "sources without tags give pairs as before"


def test_a_model_is_told_the_step_and_resumes_to_the_same_bits(tmp_path):
    whole, cut, going_on = Told(), Told(), Told()
    train(whole, tagged(), CONFIG, progress=False)
    assert whole.seen == [(k, 8) for k in range(8)]
    options = {"checkpoint": tmp_path / "c.pt", "checkpoint_every": 3, "progress": False}
    with pytest.raises(Killed):
        train(cut, tagged(), CONFIG, on_step=kill_at(5), **options)
    train(going_on, tagged(), CONFIG, **options)
    assert going_on.seen[0] == (3, 8) and weights_hash(going_on) == weights_hash(whole)


def test_other_tags_are_another_run(tmp_path):
    train(Told(), tagged(), CONFIG, checkpoint=tmp_path / "c.pt", progress=False)
    other = tagged()
    other.tags[0] ^= True
    with pytest.raises(ValueError, match="the training images differ"):
        train(Told(), other, CONFIG, checkpoint=tmp_path / "c.pt", progress=False)


@pytest.mark.parametrize("tags", [np.zeros((5, 3), bool), np.zeros((6, 3)), np.zeros(6, bool), [[True]] * 6])
def test_tags_that_do_not_fit_are_refused(tags):
    source = world(6)
    with pytest.raises(ValueError, match=r"`tags` must be \(6, T\) bool"):
        Source(source.images, source.labels, tags=tags)


def test_sources_with_and_without_tags_do_not_mix():
    with pytest.raises(ValueError, match="all sources must have `tags` of one width"):
        Mixture([tagged(), world()], 4, 0)


def test_a_run_is_what_its_record_needs():
    model, held_out = Tiny(), world(seed=1)
    config = TrainConfig(steps=4, batch_size=4, lr=0.02, eval_every=2)
    done = train(model, world(), config, validation=held_out, progress=False)
    done.iou[2] = np.nan
    made = done.as_run(model, held_out.labels[:2], note=[1])
    assert made["result"]["iou"][2] is None and made["result"]["note"] == [1]
    assert made["result"]["miou"] == round(100 * float(np.nanmean(done.iou)), 4)
    assert made["curve"] == [[s, round(100 * v, 4)] for s, v in done.curve] and made["model"] is model
    assert np.array_equal(unpack(made["result"]["examples"]), held_out.labels[:2])
    assert made["result"]["weights"] == weights_hash(model)[:16]

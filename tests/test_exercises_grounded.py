"""Exercises of notebooks 32 to 34: right answers are what the kernels and the parameters say, whoever writes them."""

import numpy as np
import torch
from toys import ROOT

from fmseg import exercises_ablations, exercises_protocol
from fmseg.grounded_scores import scores
from fmseg.grounded_sets import Triplets
from fmseg.settings import load


def test_the_mean_over_classes_is_the_table_s():
    for both, either, classes in exercises_protocol.mean_of_masks.cases():
        masks, truth = (torch.zeros(len(both), 1, 30, 60, dtype=torch.bool) for _ in range(2))
        for row, (b, e) in enumerate(zip(both, either, strict=True)):
            masks[row].view(-1)[:b], truth[row].view(-1)[:e] = True, True  # what is in both lies inside
        named = torch.from_numpy(classes)[:, None]
        images = np.zeros((len(both), 1, 1, 3), np.uint8)
        data = Triplets({}, named, truth, named >= 0, ("a", "b", "c"), torch.zeros(3, 1), images)
        found = scores(masks, data, ["all"] * len(both))["all"]
        assert abs(found["miou"] - exercises_protocol.mean_of_masks.right(both, either, classes)) < 1e-3


def test_solutions_of_the_notebooks_are_right():
    def mean_of_masks(both, either, classes):
        return 100 * np.mean([(both / either)[classes == c].mean() for c in np.unique(classes)])

    def map_of_masks(logits, ids, background):
        best, which = logits.max(0)
        return torch.where(best > 0, torch.tensor(ids)[which], background)

    def harmonic_mean(iou, seen, unseen):
        return 2 / (1 / iou[seen].mean() + 1 / iou[unseen].mean())

    def push(logits, masks, detected, zero):
        counted = torch.ones_like(detected) if zero else detected
        target = masks & detected[:, None, None]
        return (target.float() - logits.sigmoid()) * counted[:, None, None] / logits[0].numel()

    def nearest(steps, paper):
        return int(np.abs((1000 // steps) * np.arange(steps) - 20 * (paper - 1)).argmin()) + 1

    def inverted(z, noise, now, then):
        return (then / now) ** 0.5 * z + ((1 - then) ** 0.5 - (then * (1 - now) / now) ** 0.5) * noise

    asked = {"mean_of_masks": mean_of_masks, "map_of_masks": map_of_masks, "harmonic_mean": harmonic_mean}
    assert all(getattr(exercises_protocol, name)(answer) for name, answer in asked.items())
    asked = {"push_of_masks": push, "nearest_step": nearest, "inverted_step": inverted}
    assert all(getattr(exercises_ablations, name)(answer) for name, answer in asked.items())


def test_a_picture_of_another_class_does_not_change_the_push():
    right, by_hand = exercises_ablations.push_of_masks.right, exercises_ablations.push_of_masks
    said = by_hand(lambda *case: -right(*case))
    assert not said and "wrong way round" in said.message


def test_steps_of_the_curve_are_the_nearest_that_are_free():
    """Each of ours stands for one of the paper's, so the paper's last but one takes what is left."""
    settings, right = load("mini", ROOT), exercises_ablations.nearest_step.right
    steps = settings.get("grounded.sampling.steps")
    ours = {paper: step for step, paper in settings.get("grounded.timesteps").items()}
    nearest = {paper: right(steps, paper) for paper in ours}
    assert len(set(ours.values())) == len(ours) == 11
    assert [p for p in ours if ours[p] != nearest[p]] == [45] and nearest[45] == nearest[50] == 12 == ours[45] + 1


def test_a_step_of_inversion_is_the_scheduler_s():
    from diffusers import DDIMInverseScheduler

    from fmseg.zoo_configs import SCHEDULER

    scheduler = DDIMInverseScheduler(**{k: v for k, v in SCHEDULER.items() if k != "_class_name"})
    scheduler.set_timesteps(10)
    z, noise = torch.randn(2, 1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    t = int(scheduler.timesteps[4])
    now, then = (float(scheduler.alphas_cumprod[k]) for k in (t - 100, t))
    made = scheduler.step(noise, t, z, return_dict=False)[0]
    assert torch.allclose(made, exercises_ablations.inverted_step.right(z, noise, now, then), atol=1e-5)

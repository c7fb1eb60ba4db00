"""What co-segmentation says of wrong input: the argument, what was expected, what came, what to do."""

import pytest
import torch

from fmseg.coseg import binarise, co_segment, draw_seeds, initial_mask, mean_attention


def images():
    """Three images of four classes on a grid of 3 x 4, cosines and labels, and of two texts for the background."""
    generator = torch.Generator().manual_seed(0)
    scores, background = (0.1 * torch.randn(3, n, 3, 4, generator=generator) for n in (4, 2))
    return scores, torch.rand(3, 4, generator=generator) < 0.5, background


def attentions():
    return torch.randn(3, 2, 13, 13, generator=torch.Generator().manual_seed(1)).softmax(-1)


def fixed():
    return torch.Generator().manual_seed(0)


def test_errors_of_scores_and_labels():
    scores, present, background = images()
    with pytest.raises(ValueError, match=r"`scores` must be \(B, C, h, w\) floats, .*; got \(4, 3, 4\)"):
        co_segment(scores[0], present, use="clip")
    with pytest.raises(ValueError, match=r"`scores` .* got \(3, 0, 3, 4\)"):
        initial_mask(scores[:, :0], present[:, :0])
    with pytest.raises(ValueError, match="of torch.int64"):
        initial_mask(scores.long(), present)
    with pytest.raises(TypeError, match="`present` must be bool, .*; got torch.int64"):
        initial_mask(scores, present.long())
    with pytest.raises(ValueError, match=r"`present` must be \(B, C\) = \(3, 4\); got \(4, 3\)"):
        initial_mask(scores, present.T)
    with pytest.raises(ValueError, match=r"`background` must be \(B, K, h, w\) on the grid .*; got \(3, 2, 3, 3\)"):
        initial_mask(scores, present, background=background[..., :3])
    background[1, 1, 2, 0] = float("inf")
    with pytest.raises(ValueError, match=r"`background` must be finite; found inf at \[1, 1, 2, 0\]"):
        initial_mask(scores, present, background=background)
    scores[2, 0, 1, 3] = float("nan")
    with pytest.raises(ValueError, match=r"`scores` must be finite; found nan at \[2, 0, 1, 3\]. Does the model"):
        co_segment(scores, present, use="clip")


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"rule": "max"}, "`rule` must be 'minmax' or 'softmax'; got 'max'"),
        ({"over": "both"}, "`over` must be 'present' or 'all'; got 'both'"),
        ({"use": "both"}, "`use` must be 'union', 'clip' or 'seeds'; got 'both'"),
        ({"threshold": 1.5}, r"`threshold` must be a share in \[0, 1\]; got 1.5"),
        ({"keep": 70}, r"`keep` must be a share in \[0, 1\]; got 70. 70 % is 0.7"),
        ({"keep": -0.1}, r"`keep` .* got -0.1"),
        ({"mass": float("nan")}, "`mass` .* got nan"),
        ({"keep": 0.3, "mass": 0.6}, "exclude each other; got 0.3 and 0.6"),
        ({"seeds": 0}, "`seeds` must be an integer >= 1, the number a class; got 0"),
        ({"seeds": 2.5}, "got 2.5"),
        ({"num_prefix": 2}, r"T = 2 \+ 3 \* 4; got \(3, 2, 13, 13\)"),
        ({"attention_grid": (4, 4)}, r"`grid` must be .* as \(4, 4\) and \(3, 4\): .*; got None"),
        ({"attention_grid": (4, 4), "grid": "scores"}, r"T = 1 \+ 4 \* 4; .* Give its `attention_grid`"),
        ({"grid": "clip"}, "got 'clip'"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_errors_of_options(wrong, message):
    scores, present, _ = images()
    with pytest.raises(ValueError, match=message):
        co_segment(scores, present, attentions(), fixed(), **wrong)


def test_errors_of_seeds_attention_and_maps():
    scores, present, _ = images()
    foreground, attention = initial_mask(scores, present), attentions()
    with pytest.raises(ValueError, match="`attention` and `generator` must be given for use='seeds'; use='clip' does"):
        co_segment(scores, present, attention, use="seeds")
    with pytest.raises(TypeError, match="`generator` must be a torch.Generator; got int"):
        draw_seeds(foreground, scores, present, 3, 0)
    with pytest.raises(ValueError, match="`foreground` must be bool of the shape .*; got torch.float32"):
        draw_seeds(scores, scores, present, 3, fixed())
    seeds = torch.tensor([[[0, 1]], [[2, 12]], [[-1, -1]]])
    with pytest.raises(ValueError, match=r"`seeds` must be in \[0, 12\), or -1 .*; found -1 to 12. Row i, column j"):
        mean_attention(attention, seeds, (3, 4))
    with pytest.raises(ValueError, match="or -1 for all of a class"):
        mean_attention(attention, torch.tensor([[[0, -1]]] * 3), (3, 4))
    for wrong in (seeds[:2], seeds[0], seeds.int(), seeds[:, :, :0]):
        with pytest.raises(ValueError, match=r"`seeds` must be \(B, C, N\) int64 with B = 3"):
            mean_attention(attention, wrong, (3, 4))
    attention[0, 1, 3, 5] = float("nan")
    with pytest.raises(ValueError, match="`attention` must be finite"):
        mean_attention(attention, torch.tensor([[[2, 0]]] * 3), (3, 4))
    with pytest.raises(ValueError, match=r"`maps` must be \(..., h, w\) finite floats; got \(12,\)"):
        binarise(torch.rand(12))
    with pytest.raises(ValueError, match="`maps` must be .* finite"):
        binarise(torch.full((2, 2), float("nan")))
    with pytest.raises(ValueError, match="`maps` must be >= 0 for `mass`, a share of their sum; found -0.5"):
        binarise(torch.tensor([[1.0, -0.5]]), mass=0.5)

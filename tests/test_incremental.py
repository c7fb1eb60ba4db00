"""FMWISS's teacher and student objectives against plain loops, at their limits, and by gradients."""

import math

import pytest
import torch
from torch import nn

from fmseg.incremental import IGNORE, binary_loss, dense_labels, grown, old_targets, start_rare, student_targets


def random_scores(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sigmoid(z):
    return 1 / (1 + math.exp(-z))


# --- eqs 6, 8, 11 ----------------------------------------------------------------------------------------------------


def test_the_loss_is_the_printed_sum():
    logits, targets = random_scores(2, 3, 2, 2), random_scores(2, 3, 2, 2, seed=1).sigmoid()
    total = 0.0
    for z, q in zip(logits.ravel().tolist(), targets.ravel().tolist(), strict=True):
        total -= q * math.log(sigmoid(z)) + (1 - q) * math.log(1 - sigmoid(z))
    assert binary_loss(logits, targets).item() == pytest.approx(total / 24)
    assert binary_loss(logits, targets, "sum").item() == pytest.approx(total / 8)  # 2 images of 4 pixels


def test_classes_images_and_pixels_may_change_places():
    logits, targets = random_scores(3, 4, 2, 5), random_scores(3, 4, 2, 5, seed=1).sigmoid()
    expected = binary_loss(logits, targets)
    for axis in range(4):
        order = torch.randperm(logits.shape[axis], generator=torch.Generator().manual_seed(axis))
        moved = binary_loss(logits.index_select(axis, order), targets.index_select(axis, order))
        assert torch.allclose(moved, expected)
    one_by_one = [binary_loss(logits[i : i + 1], targets[i : i + 1]) for i in range(3)]
    assert torch.allclose(torch.stack(one_by_one).mean(), expected)


def test_far_scores_stay_finite():
    logits = torch.tensor([200.0, -200.0]).view(1, 2, 1, 1).requires_grad_()
    loss = binary_loss(logits, torch.tensor([0.0, 1.0]).view(1, 2, 1, 1))
    loss.backward()
    assert loss.item() == pytest.approx(200) and torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_gradients(reduction):
    targets = random_scores(2, 3, 2, 2, seed=1).sigmoid()
    assert torch.autograd.gradcheck(
        lambda z: binary_loss(z, targets, reduction), random_scores(2, 3, 2, 2).requires_grad_()
    )


def test_targets_get_no_gradient():
    targets = random_scores(1, 2, 2, 2).sigmoid().requires_grad_()
    binary_loss(random_scores(1, 2, 2, 2, seed=1).requires_grad_(), targets).backward()
    assert targets.grad is None


def test_no_class_is_no_loss():
    logits = torch.zeros(2, 0, 3, 3, requires_grad=True)
    loss = binary_loss(logits, torch.zeros(2, 0, 3, 3))
    loss.backward()
    assert loss.item() == 0


# --- eqs 8 and 9 -----------------------------------------------------------------------------------------------------


def test_old_classes_come_from_the_old_model_and_the_paste():
    old = random_scores(2, 3, 2, 2)
    pasted = torch.full((2, 2, 2), IGNORE)
    pasted[1, 0, 1] = 2
    targets = old_targets(old, pasted)
    assert targets[1, :, 0, 1].tolist() == [0, 0, 1]
    elsewhere = (pasted == IGNORE)[:, None].expand_as(targets)
    assert torch.equal(targets[elsewhere], old.sigmoid()[elsewhere])
    assert torch.equal(old_targets(old), old.sigmoid())


def test_where_a_new_class_is_there_is_no_background():
    old = torch.full((1, 2, 1, 2), 3.0)
    refined = torch.tensor([[[[True, False]], [[False, False]]]])
    targets = old_targets(old, refined=refined)
    assert targets[0, 0, 0].tolist() == [0, pytest.approx(sigmoid(3))]
    assert targets[0, 1].tolist() == [[pytest.approx(sigmoid(3))] * 2]
    assert torch.equal(old_targets(old, refined=refined[:, :0]), old.sigmoid())


def test_a_pasted_class_must_be_an_old_one():
    with pytest.raises(ValueError, match=r"`pasted` must hold old classes in \[0, 3\) or 255; found 3 to 3"):
        old_targets(torch.zeros(1, 3, 1, 1), torch.tensor([[[3]]]))


# --- eq 10 -----------------------------------------------------------------------------------------------------------


def by_loops(teacher, old, present, alpha, beta, hard_over):
    batch, channels, height, width = teacher.shape
    first = old.shape[1]
    made = torch.zeros_like(teacher)
    for b in range(batch):
        for y in range(height):
            for x in range(width):
                z = teacher[b, :, y, x].tolist()
                there = [c for c in range(first, channels) if present[b, c - first]]
                rivals = {"all": range(channels), "background": [0, *there], "new": there}[hard_over]
                winner = max(rivals, key=lambda c: z[c]) if rivals else None
                for c in range(channels):
                    if c < first:
                        made[b, c, y, x] = beta * sigmoid(old[b, c, y, x]) + (1 - beta) * sigmoid(z[c])
                    elif present[b, c - first]:
                        made[b, c, y, x] = alpha * (c == winner) + (1 - alpha) * sigmoid(z[c])
    return made


@pytest.mark.parametrize("hard_over", ["all", "background", "new"])
def test_the_student_learns_what_loops_say(hard_over):
    teacher, old = random_scores(3, 5, 2, 3), random_scores(3, 2, 2, 3, seed=1)
    present = torch.tensor([[True, False, True], [False, False, False], [False, True, False]])
    made = student_targets(teacher, old, present, alpha=0.3, beta=0.8, hard_over=hard_over)
    assert torch.allclose(made, by_loops(teacher, old, present, 0.3, 0.8, hard_over))
    assert 0 <= made.min() and made.max() <= 1 and not made[1, 2:].any()


def test_limits_of_the_shares():
    teacher, old = random_scores(2, 5, 2, 3), random_scores(2, 2, 2, 3, seed=1)
    present = torch.ones(2, 3, dtype=torch.bool)
    hard = student_targets(teacher, old, present, alpha=1.0, beta=1.0)
    assert set(hard[:, 2:].unique().tolist()) == {0.0, 1.0} and torch.equal(hard[:, :2], old.sigmoid())
    assert torch.equal(hard[:, 2:].bool(), torch.stack([teacher.argmax(1) == c for c in (2, 3, 4)], 1))
    soft = student_targets(teacher, old, present, alpha=0.0, beta=0.0)
    assert torch.equal(soft, teacher.sigmoid())
    assert bool((student_targets(teacher, old, present, alpha=1.0, hard_over="new")[:, 2:].sum(1) == 1).all())


def test_an_old_class_on_top_takes_the_hard_label_away_only_where_it_competes():
    teacher, old = torch.tensor([0.0, 3.0, 2.0, 5.0]).view(1, 4, 1, 1), torch.zeros(1, 2, 1, 1)
    present = torch.tensor([[True, False]])  # the highest score is of a class that is not in the image
    for how, wanted in (("all", [0, 0]), ("background", [1, 0]), ("new", [1, 0])):
        found = student_targets(teacher, old, present, alpha=1.0, hard_over=how)
        assert found[0, 2:].flatten().tolist() == wanted, how
    teacher[0, 0] = 4.0
    assert not student_targets(teacher, old, present, alpha=1.0, hard_over="background")[0, 2:].any()
    assert student_targets(teacher, old, present, alpha=1.0, hard_over="new")[0, 2, 0, 0] == 1


def test_background_can_be_kept_below_what_the_new_classes_leave():
    teacher, old = torch.full((1, 3, 1, 1), 4.0), torch.full((1, 1, 1, 1), 4.0)
    options = {"present": torch.tensor([[True, True]]), "alpha": 0.0}
    assert student_targets(teacher, old, **options)[0, 0].item() == pytest.approx(sigmoid(4))
    assert student_targets(teacher, old, **options, bkg_min=True)[0, 0].item() == pytest.approx(
        1 - sigmoid(4), rel=1e-4
    )


def test_neither_teacher_nor_old_model_gets_a_gradient():
    teacher, old = random_scores(1, 3, 2, 2).requires_grad_(), random_scores(1, 2, 2, 2).requires_grad_()
    assert not student_targets(teacher, old, torch.tensor([[True]])).requires_grad
    assert not old_targets(old, refined=torch.ones(1, 1, 2, 2)).requires_grad


# --- labels of the contrastive loss ----------------------------------------------------------------------------------


def test_what_a_pixel_counts_for():
    old = torch.zeros(1, 2, 1, 5)
    old[0, 0, 0] = torch.tensor([9.0, 9, 9, -9, 9])  # background wins but in the fourth
    refined = torch.tensor([[[[1, 0, 1, 0, 0]], [[1, 1, 0, 0, 0]]]], dtype=torch.bool)
    pasted = torch.full((1, 1, 5), IGNORE)
    assert dense_labels(refined, old).tolist() == [[[IGNORE, 3, 2, IGNORE, 0]]]
    pasted[0, 0, 4] = 1
    assert dense_labels(refined, old, pasted).tolist() == [[[IGNORE, 3, 2, IGNORE, 1]]]
    assert dense_labels(refined[:, :0], old).tolist() == [[[0, 0, 0, IGNORE, 0]]]


# --- classifier ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
def test_a_grown_classifier_knows_what_it_knew(bias):
    before = nn.Conv2d(4, 3, 1, bias=bias)
    x = torch.randn(2, 4, 5, 5)
    after = grown(before, 2)
    assert torch.allclose(after(x)[:, :3], before(x)) and after.out_channels == 5 and (after.bias is not None) == bias
    with torch.no_grad():
        after.weight.zero_()
    assert before.weight.abs().max() > 0


def test_the_new_rows_are_a_function_of_torchs_state():
    before = nn.Conv2d(4, 3, 1)
    torch.manual_seed(0)
    one = grown(before, 2).weight
    torch.manual_seed(0)
    assert torch.equal(grown(before, 2).weight, one)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: binary_loss(torch.zeros(1, 2, 2, 2), torch.zeros(1, 3, 2, 2)), "`targets` must have the shape"),
        (
            lambda: binary_loss(torch.zeros(1, 2, 2, 2), torch.full((1, 2, 2, 2), 2.0)),
            "Are these scores before sigmoid",
        ),
        (lambda: binary_loss(torch.zeros(1, 1, 1, 1), torch.full((1, 1, 1, 1), torch.nan)), "`targets` must be in"),
        (lambda: binary_loss(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1), "none"), "`reduction` must be 'mean'"),
        (lambda: old_targets(torch.zeros(1, 2, 2)), "`old_logits` must be \\(B, C, h, w\\) float"),
        (
            lambda: old_targets(torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 3).long()),
            "`pasted` must be \\(1, 2, 2\\) int64",
        ),
        (lambda: old_targets(torch.zeros(1, 2, 2, 2), refined=torch.ones(1, 2, 4, 4)), "`refined` must be"),
        (lambda: student_targets(torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2, 2), torch.ones(1, 0).bool()), "C >= 1"),
        (
            lambda: student_targets(torch.zeros(1, 3, 2, 2), torch.zeros(1, 2, 2, 2), torch.ones(1, 1)),
            "`present` must be",
        ),
        (
            lambda: student_targets(
                torch.zeros(1, 3, 2, 2), torch.zeros(1, 2, 2, 2), torch.ones(1, 1).bool(), alpha=1.5
            ),
            "`alpha` must be in",
        ),
        (lambda: dense_labels(torch.ones(1, 1, 2, 2), torch.zeros(1, 2, 2, 2)), "`refined` must be"),
        (lambda: grown(nn.Conv2d(2, 2, 3), 1), "must be a 1x1 convolution"),
        (lambda: grown(nn.Conv2d(2, 2, 1), 0), "`added` must be >= 1"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# -- how classes begin ------------------------------------------------------------------------------------------------


def test_rare_classes_begin_with_their_prior_and_background_with_the_rest():
    nothing = torch.zeros(1, 3, 1, 1)
    yes_or_no, one_of_all = nn.Conv2d(3, 5, 1), nn.Conv2d(3, 5, 1)
    weight = yes_or_no.weight.clone()
    start_rare(yes_or_no, 0.01)
    start_rare(one_of_all, 0.01, softmax=True)
    expected = torch.tensor([0.96, 0.01, 0.01, 0.01, 0.01])
    assert torch.allclose(yes_or_no(nothing).sigmoid().flatten(), expected)
    assert torch.allclose(one_of_all(nothing).softmax(1).flatten(), expected)
    assert torch.equal(yes_or_no.weight, weight)


def test_what_was_learned_before_keeps_its_bias():
    classifier = nn.Conv2d(3, 5, 1)
    before = classifier.bias.detach().clone()
    start_rare(classifier, 0.02, known=3)
    assert torch.equal(classifier.bias[:3], before[:3])
    assert torch.allclose(classifier.bias[3:].sigmoid(), torch.tensor(0.02))


@pytest.mark.parametrize("prior", [0.0, -0.1, 0.25, 1.0, float("nan")])
def test_a_prior_leaves_something_to_the_background(prior):
    with pytest.raises(ValueError, match="`prior` must be > 0 and leave something to the background beside 4 classes"):
        start_rare(nn.Conv2d(3, 5, 1), prior)
    with pytest.raises(ValueError, match="must have a bias"):
        start_rare(nn.Conv2d(3, 5, 1, bias=False), 0.01)

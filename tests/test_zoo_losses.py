"""The losses that the zoo's models learn from."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fmseg import zoo_vits
from fmseg.contrastive import contrastive_loss
from fmseg.noising import clean_latents, deciding_timesteps, noise_loss, signal_to_noise, spread_timesteps
from fmseg.zoo_clip import mistaken
from fmseg.zoo_configs import SCHEDULER, VAE, VIT
from fmseg.zoo_diffusion import latents_of
from fmseg.zoo_vae import edges, pixels, reconstruction_loss


def rows(count, width=5, seed=0):
    torch.manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(count, width), dim=1)


# -- CLIP ------------------------------------------------------------------------------------------------------------


def by_loops(images, texts, scale, group):
    """Mean over pictures of the cross-entropy to the texts with the same sentence, and the other way round."""
    total, n = 0.0, len(images)
    for one, other in ((images, texts), (texts, images)):
        for i in range(n):
            logits = [float(scale * one[i] @ other[j]) for j in range(n)]
            norm = np.log(np.sum(np.exp(logits)))
            mates = [j for j in range(n) if group[j] == group[i]]
            total -= sum(logits[j] - norm for j in mates) / len(mates) / n / 2
    return total


@pytest.mark.parametrize("group", [[0, 1, 2, 3], [0, 1, 0, 3], [0, 0, 0, 0]])
def test_the_contrastive_loss_against_loops(group):
    images, texts, scale, group = rows(4), rows(4, seed=1), torch.tensor(3.0), torch.tensor(group)
    found = contrastive_loss(images, texts, scale, group).item()
    assert found == pytest.approx(by_loops(images, texts, scale, group), rel=1e-5)
    assert found == pytest.approx(contrastive_loss(texts, images, scale, group).item(), rel=1e-6)
    order = torch.tensor([2, 0, 3, 1])
    assert contrastive_loss(images[order], texts[order], scale, group[order]).item() == pytest.approx(found, rel=1e-5)


def test_pairs_with_the_same_sentence_share_their_target():
    texts, scale = rows(3), torch.tensor(50.0)
    texts = torch.stack([texts[0], texts[1], texts[0]])
    shared = contrastive_loss(texts, texts, scale, torch.tensor([0, 1, 0])).item()
    assert shared == pytest.approx(2 / 3 * np.log(2), rel=1e-3), "two equal texts share the probability"
    one = contrastive_loss(rows(1), rows(1), scale, torch.tensor([0]))
    assert one.item() == 0.0


def test_a_sentence_in_other_words_is_no_negative():
    """Where texts of a group are read alike, sharing changes nothing; where not yet, it pulls them together."""
    pulls = {}
    for alike in (True, False):
        for group in ([0, 1, 0], [0, 1, 2]):
            images, texts = rows(3, seed=2), rows(3, seed=3)
            if alike:
                texts[2] = texts[0]
            texts.requires_grad_()
            contrastive_loss(images, texts, torch.tensor(5.0), torch.tensor(group)).backward()
            pulls[alike, group[2]] = texts.grad
    assert torch.allclose(pulls[True, 0].sum(0), pulls[True, 2].sum(0), atol=1e-6)
    assert not torch.allclose(pulls[False, 0], pulls[False, 2], atol=1e-2)


# -- diffusion -------------------------------------------------------------------------------------------------------


def alphas():
    from diffusers import DDIMScheduler

    return DDIMScheduler(**SCHEDULER).alphas_cumprod


def test_signal_to_noise_falls_and_is_one_where_both_are_alike():
    found = signal_to_noise(alphas(), torch.arange(1000))
    assert (found.diff() < 0).all() and found[0] > 1000 and found[-1] < 0.01
    assert signal_to_noise(torch.tensor([0.9, 0.5, 0.2]), torch.tensor([1, 2])).tolist() == pytest.approx([1.0, 0.25])


def test_the_noise_loss_by_hand():
    found, noise = torch.zeros(3, 4, 2, 2), torch.zeros(3, 4, 2, 2)
    noise[0], noise[1], noise[2, 0] = 1.0, 2.0, 4.0  # squared errors 1, 4 and a quarter of 16
    snr = torch.tensor([0.125, 5.0, 20.0])  # weights 0.375 / 0.125, 5.25 / 5 and 5.25 / 20
    assert noise_loss(found, noise, snr).item() == pytest.approx((3 * 1 + 1.05 * 4 + 0.2625 * 4) / 3)
    assert noise_loss(noise, noise, snr).item() == 0.0


@pytest.mark.parametrize(("count", "of"), [(8, 1000), (32, 1000), (7, 7), (3, 2), (1, 1000)])
def test_timesteps_are_spread(count, of):
    for seed in range(20):
        torch.manual_seed(seed)
        at = spread_timesteps(count, of)
        assert at.shape == (count,) and at.dtype == torch.int64 and at.min() >= 0 and at.max() < of
        low, high = (torch.arange(count) + torch.tensor([[0], [1]])) * of / count
        ordered = at.sort().values
        assert (ordered >= low.floor()).all() and (ordered <= high.ceil()).all(), "one from each part"
    torch.manual_seed(0)
    assert not torch.equal(spread_timesteps(64, 1000), spread_timesteps(64, 1000).sort().values)


@pytest.fixture(scope="module")
def vae():
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    model = AutoencoderKL.from_config(VAE).eval()
    model.register_to_config(scaling_factor=0.5)
    return model


def test_half_of_the_timesteps_lie_where_it_is_decided_what_is_shown():
    torch.manual_seed(0)
    at = deciding_timesteps(4000, 1000)
    middle = ((at >= 300) & (at < 800)).float().mean()
    assert at.dtype == torch.int64 and 0 <= at.min() and at.max() < 1000 and middle == pytest.approx(0.75, abs=0.01)
    assert (at < 300).float().mean() == pytest.approx(0.15, abs=0.01)
    assert len(deciding_timesteps(1, 1000)) == 1 and not torch.equal(at, at.sort().values)


def test_taking_the_true_noise_away_leaves_the_clean_latents():
    torch.manual_seed(0)
    alphas = torch.linspace(0.999, 0.01, 50, dtype=torch.float64)
    clean, noise = torch.randn(2, 6, 4, 3, 3, dtype=torch.float64)
    at = torch.tensor([0, 10, 20, 30, 40, 49])
    kept = alphas[at].view(-1, 1, 1, 1)
    noisy = kept.sqrt() * clean + (1 - kept).sqrt() * noise
    torch.testing.assert_close(clean_latents(noisy, noise, alphas, at), clean)
    assert (clean_latents(noisy, noise + 0.1, alphas, at) - clean).abs().amax((1, 2, 3)).diff().gt(0).all()


def test_latents_are_kept_and_belong_to_their_pictures(vae, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)
    with torch.no_grad():
        expected = vae.encode(pixels(images)).latent_dist.mean.numpy() * 0.5
    found = latents_of(tmp_path, vae, images, chunk=2)
    assert found.shape == (5, 4, 16, 16) and found.dtype == np.float32
    assert np.allclose(found, expected, atol=2e-3)
    stub = SimpleNamespace(config=vae.config)
    assert np.array_equal(latents_of(tmp_path, stub, images, chunk=2), found), "nothing is computed again"
    stub = SimpleNamespace(config=SimpleNamespace(scaling_factor=1.5))
    assert np.allclose(latents_of(tmp_path, stub, images, chunk=2), 3 * found), "kept as they are, scaled when read"
    turned = latents_of(tmp_path, vae, images[::-1].copy(), chunk=2)
    assert np.allclose(turned, found[::-1], atol=2e-3), "other pictures at the same place are not taken for these"
    assert not list(tmp_path.glob("*.part*"))


# -- the autoencoder -------------------------------------------------------------------------------------------------


def test_pixels_are_between_minus_one_and_one():
    images = np.array([0, 255, 51], dtype=np.uint8).reshape(1, 1, 1, 3)
    assert pixels(images).flatten().tolist() == pytest.approx([-1.0, 1.0, -0.6]) and pixels(images).shape == (
        1,
        3,
        1,
        1,
    )


def test_the_reconstruction_loss_by_hand():
    x = torch.tensor([[[[0.0, 1.0, 3.0], [0.0, 1.0, 1.0]]]])
    across, down = edges(x)
    assert across.tolist() == [[[[1.0, 2.0], [1.0, 0.0]]]] and down.tolist() == [[[[0.0, 0.0, -2.0]]]]
    assert reconstruction_loss(x, x).item() == 0.0
    assert reconstruction_loss(x + 0.25, x).item() == pytest.approx(0.25), "a shift costs its size, edges are the same"
    zero = torch.zeros_like(x)
    assert reconstruction_loss(zero, x).item() == pytest.approx(6 / 6 + 0.5 * 4 / 4 + 0.5 * 2 / 3)


# -- self-supervised transformers ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def images():
    return zoo_vits.normalised(np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8))


def reached(module):
    return [p.grad is not None and bool((p.grad != 0).any()) for p in module.parameters()]


def test_dino_teaches_its_student_only(images):
    torch.manual_seed(0)
    model = zoo_vits._Dino()
    value, named = model.loss(images)
    value.backward()
    assert torch.isfinite(value) and named.keys() == {"across", "paint", "spread"}
    assert value.item() == pytest.approx(named["across"] + zoo_vits.PAINT_WEIGHT * named["paint"], rel=1e-5)
    assert all(reached(model.student)) and (model.blank.grad != 0).any()
    assert not any(p.requires_grad or p.grad is not None for p in model.teacher.parameters())
    assert 0 < named["spread"] <= np.log(zoo_vits.PROTOTYPES) + 1e-4 and (model.centre != 0).any()


def test_the_teacher_follows_slowly_and_stands_still_at_the_end(images):
    torch.manual_seed(0)
    model = zoo_vits._Dino()
    for t, s in zip(model.teacher.parameters(), model.student.parameters(), strict=True):
        assert torch.equal(t, s)
        s.data += 1.0
    before = [t.clone() for t in model.teacher.parameters()]
    model.follow(0, 100)
    moved = [(t - b).mean().item() for t, b in zip(model.teacher.parameters(), before, strict=True)]
    assert moved == pytest.approx([0.01] * len(moved), rel=1e-3)
    before = [t.clone() for t in model.teacher.parameters()]
    model.follow(100, 100)
    assert all(torch.equal(t, b) for t, b in zip(model.teacher.parameters(), before, strict=True))


def test_painting_learns_from_all_patches(images):
    torch.manual_seed(0)
    model = zoo_vits._Mim()
    value, named = model.loss(images)
    value.backward()
    assert torch.isfinite(value) and value.item() == named["paint"] > 0
    assert all(reached(model.paint)) and (model.blank.grad != 0).any() and model.vit.cls_token.grad is not None
    model.follow(1, 2)


def test_patches_are_disturbed_each_for_itself_and_a_share_of_them_hidden(images):
    torch.manual_seed(0)
    many = images.repeat(50, 1, 1, 1)
    seen, hidden = zoo_vits.disturbed(many, 4)
    moved = (seen - many).unfold(2, 4, 4).unfold(3, 4, 4)  # (200, 3, 16, 16, 4, 4)
    assert torch.allclose(moved, moved[..., :1, :1].expand_as(moved), atol=1e-5), "one colour a patch"
    strength = moved[..., 0, 0].flatten(1).std(1)
    assert strength.max() <= 1.1 * zoo_vits.JITTER and strength.min() < 0.1 * zoo_vits.JITTER < strength.mean()
    share = hidden.float().mean(1)
    assert hidden.shape == (200, 256) and share.max() < zoo_vits.HIDDEN + 0.1 and share.min() < 0.1


def test_what_is_painted_is_the_mean_colour_by_hand():
    picture = torch.arange(3 * 8 * 8, dtype=torch.float32).view(1, 3, 8, 8)
    means = torch.stack([picture[0, :, y : y + 4, x : x + 4].mean((1, 2)) for y in (0, 4) for x in (0, 4)])
    assert zoo_vits.painting_loss(means[None], picture, 4) == 0
    assert zoo_vits.painting_loss(means[None] + 0.5, picture, 4).item() == pytest.approx(0.5)


def test_what_a_patch_says_goes_through_the_last_attention(images):
    """Where the last block's values are nothing, nothing is said: there is no way around it."""
    torch.manual_seed(0)
    model = zoo_vits.vit().eval()
    with torch.no_grad():
        assert zoo_vits.tokens(model, images[:, :, :40, :40]).shape == (4, 101, VIT["embed_dim"])
        x = model._pos_embed(model.patch_embed(images))
        for block in model.blocks[:-1]:
            x = block(x)
        last = model.blocks[-1]
        assert not torch.allclose(zoo_vits.tokens(model, images), model.norm(last(x)), atol=1e-3)
        last.attn.qkv.weight[-VIT["embed_dim"] :], last.attn.qkv.bias[-VIT["embed_dim"] :] = 0, 0
        said = zoo_vits.tokens(model, images)
        assert torch.allclose(said, said[:1, :1].expand_as(said), atol=1e-6)


def test_hidden_patches_are_not_seen(images):
    torch.manual_seed(0)
    model = zoo_vits.vit().eval()
    with torch.no_grad():
        hidden, blank = torch.ones(4, 256, dtype=torch.bool), torch.zeros(VIT["embed_dim"])
        blind = zoo_vits.tokens(model, images, hidden, blank)
        assert torch.allclose(blind[0], blind[1], atol=1e-5), "all hidden: pictures cannot be told apart"
        hidden[:, 0] = False
        assert not torch.allclose(*zoo_vits.tokens(model, images, hidden, blank)[:2], atol=1e-5)


def test_crops_have_their_size_and_stay_near_the_pictures_range(images):
    torch.manual_seed(0)
    found = zoo_vits.crops(images, 40)
    assert found.shape == (4, 3, 40, 40) and torch.isfinite(found).all()
    assert found.abs().max() <= 1.2 * images.abs().max() + 0.4
    assert not torch.equal(found, zoo_vits.crops(images, 40))


# -- sentences with a mistake ------------------------------------------------------------------------------------------


def test_wrong_sentences_are_columns_that_nobody_wants():
    torch.manual_seed(3)
    pictures, texts, wrong = (torch.nn.functional.normalize(torch.randn(n, 6), dim=1) for n in (4, 4, 3))
    scale, group = torch.tensor(3.0), torch.arange(4)
    by_hand = 0.0
    for i in range(4):
        others = [scale * pictures[i] @ row for row in (*texts, *wrong)]
        by_hand += -float(torch.stack(others).log_softmax(0)[i]) / 8
        by_hand += -float((scale * texts[i] @ pictures.T).log_softmax(0)[i]) / 8
    assert contrastive_loss(pictures, texts, scale, group, wrong).item() == pytest.approx(by_hand, abs=1e-5)
    assert contrastive_loss(pictures, texts, scale, group, wrong[[2, 0, 1]]).item() == pytest.approx(by_hand, abs=1e-5)


def test_a_mistaken_caption_names_a_thing_that_is_not_there():
    rng = random.Random(0)
    caption = "a photo of a striped star and a plain disc on grass"
    for _ in range(200):
        words = mistaken(caption, rng).removeprefix("a photo of ").partition(" on ")[0].split(" and ")
        assert set(words) - {"a striped star", "a plain disc"} and len(words) == 2
    assert mistaken("a photo of sky", rng) == "a photo of sky"

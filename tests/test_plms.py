"""PLMS against a plain transcription of CompVis' sampler, on a U-Net that is a formula."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler

from fmseg import plms


class Formula:
    """eps = a x + b sin(t) + c mean(text): cheap, and different at every step."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self):
        self.asked = []

    def __call__(self, x, t, text, cross_attention_kwargs=None, return_dict=False):
        self.asked.append((int(t), len(x), cross_attention_kwargs))
        scale = text.mean((1, 2)).view(-1, 1, 1, 1)
        return (0.7 * x + 0.3 * torch.sin(torch.tensor(float(t) / 90)) + scale,)


@pytest.fixture
def pipe(monkeypatch):
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)
    monkeypatch.setattr(plms, "encode_prompts", lambda pipe, prompts: torch.zeros(len(prompts), 3, 2))
    return SimpleNamespace(unet=Formula(), scheduler=scheduler)


def transcribed(eps, noise, alphas, steps):
    """ldm/models/diffusion/plms.py in a few lines: times 1, 1 + T/S, ..., from the last; eta 0."""
    times = list(range(1, len(alphas), len(alphas) // steps))
    levels = [alphas[t] for t in times]
    before = [alphas[0], *levels[:-1]]
    x, old = noise.double(), []
    for k in reversed(range(steps)):

        def stepped(e, x=x, k=k):
            clean = (x - (1 - levels[k]).sqrt() * e) / levels[k].sqrt()
            return before[k].sqrt() * clean + (1 - before[k]).sqrt() * e

        e = eps(x, times[k])
        if not old:
            ahead = eps(stepped(e), times[max(k - 1, 0)])
            used = (e + ahead) / 2
        elif len(old) == 1:
            used = (3 * e - old[-1]) / 2
        elif len(old) == 2:
            used = (23 * e - 16 * old[-1] + 5 * old[-2]) / 12
        else:
            used = (55 * e - 59 * old[-1] + 37 * old[-2] - 9 * old[-3]) / 24
        x, old = stepped(used), [*old, e][-3:]
    return x


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("steps", [5, 50])
def test_it_is_compvis_sampler(pipe, steps, guidance):
    noise = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    text = torch.full((2, 3, 2), 0.05)
    found = plms.plms_latents(pipe, text, noise, steps=steps, guidance=guidance)

    def eps(x, t):
        def one(strength):
            return 0.7 * x + 0.3 * torch.sin(torch.tensor(float(t) / 90)) + strength

        return one(0.0) + guidance * (one(0.05) - one(0.0)) if guidance > 1 else one(0.05)

    wanted = transcribed(eps, noise, pipe.scheduler.alphas_cumprod.double(), steps)
    assert torch.allclose(found.double(), wanted, rtol=1e-3, atol=1e-4)
    assert len(pipe.unet.asked) == steps + 1 and {rows for _, rows, _ in pipe.unet.asked} == {4 if guidance > 1 else 2}


def test_what_attention_is_told_arrives_at_every_call(pipe):
    told = {"rectify": 1}
    plms.plms_latents(pipe, torch.zeros(1, 3, 2), torch.zeros(1, 1, 2, 2), steps=4, guidance=1.0,
                      cross_attention_kwargs=told)  # fmt: skip
    assert all(kwargs is told for _, _, kwargs in pipe.unet.asked)


@pytest.mark.parametrize("steps", [0, 3, 1000, 5.0, True])
def test_steps_out_of_range_are_refused(pipe, steps):
    with pytest.raises(ValueError, match=r"`steps` of PLMS must be an integer in \[4, 1000\)"):
        plms.plms_latents(pipe, torch.zeros(1, 3, 2), torch.zeros(1, 1, 2, 2), steps=steps, guidance=1.0)


def test_rows_must_agree(pipe):
    with pytest.raises(ValueError, match="as many rows; got 2 and 1"):
        plms.plms_latents(pipe, torch.zeros(2, 3, 2), torch.zeros(1, 1, 2, 2), steps=5, guidance=1.0)

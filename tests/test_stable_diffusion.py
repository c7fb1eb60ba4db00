"""The door to Stable Diffusion, with a small pipeline of random weights in the same layout."""

import json
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fmseg.stable_diffusion import (
    decode,
    encode_images,
    encode_prompts,
    generate_latents,
    invert,
    load_pipeline,
    sample_noise,
)
from fmseg.taps import Taps
from fmseg.vocabulary import clip_tokenizer
from fmseg.zoo_configs import SCHEDULER, TEXT_ENCODER, UNET, VAE

PROMPTS = ["a photo of a circle on grass", "", "a picture of two rings", "a star"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A pipeline as people download it: PNDM scheduler, half precision, a safety checker in the index."""
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    schedule = {k: v for k, v in SCHEDULER.items() if k != "clip_sample"}
    pipe = StableDiffusionPipeline(
        vae=AutoencoderKL.from_config(VAE).half(), unet=UNet2DConditionModel.from_config(UNET).half(),
        text_encoder=CLIPTextModel(CLIPTextConfig(**TEXT_ENCODER)).half(), tokenizer=clip_tokenizer(),
        scheduler=PNDMScheduler(**schedule, skip_prk_steps=True), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("sd") / "pipeline"
    pipe.save_pretrained(path, safe_serialization=True)
    index = json.loads((path / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    (path / "model_index.json").write_text(json.dumps(index))
    return path


@pytest.fixture(scope="module")
def pipe(folder):
    return load_pipeline(folder)


@pytest.fixture
def copy(folder, tmp_path):
    import shutil

    return shutil.copytree(folder, tmp_path / "copy")


def noise(*seeds):
    return sample_noise((4, 16, 16), seeds)


def test_what_is_loaded(pipe):
    assert {part.dtype for part in (pipe.unet, pipe.vae, pipe.text_encoder)} == {torch.float32}
    assert not any(part.training for part in (pipe.unet, pipe.vae, pipe.text_encoder))
    assert pipe.safety_checker is None and pipe.feature_extractor is None
    config = pipe.scheduler.config
    assert type(pipe.scheduler).__name__ == "DDIMScheduler" and config.beta_schedule == "scaled_linear"
    assert (config.clip_sample, config.steps_offset, config.set_alpha_to_one) == (False, 1, False)
    assert pipe.scheduler.final_alpha_cumprod == pipe.scheduler.alphas_cumprod[0], "CompVis' last alpha"
    told = []
    generate_latents(
        pipe, encode_prompts(pipe, [""]), noise(0), steps=50, guidance=1, on_step=lambda k, t, z: told.append(t)
    )
    assert told == [*range(981, 0, -20)], "dossier 2.2"


def test_what_a_schedule_says_is_kept_and_what_it_leaves_out_is_stable_diffusions(copy):
    path = copy / "scheduler/scheduler_config.json"
    for said, last in ({"beta_end": 0.02}, False), ({"beta_end": 0.03, "set_alpha_to_one": True}, True):
        path.write_text(json.dumps({"_class_name": "DDIMScheduler", "steps_offset": 1} | said))
        config = load_pipeline(copy).scheduler.config
        assert (config.clip_sample, config.steps_offset, config.set_alpha_to_one) == (False, 1, last)
        assert config.beta_end == said["beta_end"]


def test_text_is_the_pipelines_own(pipe):
    found = encode_prompts(pipe, PROMPTS)
    wanted, blind = pipe.encode_prompt(PROMPTS, "cpu", 1, True)
    assert found.shape == (4, 24, 64) and torch.allclose(found, wanted, atol=1e-5)
    assert torch.allclose(found[1:2], blind[:1], atol=1e-5)
    with pytest.raises(ValueError, match="has 42 tokens .* takes 24"):
        encode_prompts(pipe, ["photo " * 40])
    for wrong in ("a circle", []):
        with pytest.raises(ValueError, match="list of at least one text"):
            encode_prompts(pipe, wrong)


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_the_loop_is_the_pipelines_own(pipe, guidance):
    start = noise(1, 2)
    found = generate_latents(pipe, encode_prompts(pipe, PROMPTS[:2]), start, steps=7, guidance=guidance)
    options = {"num_inference_steps": 7, "guidance_scale": guidance, "latents": start}
    wanted = pipe(PROMPTS[:2], output_type="latent", **options).images
    assert torch.allclose(found, wanted, atol=1e-4) and not torch.allclose(found, start, atol=0.1)
    pictures = pipe(PROMPTS[:2], output_type="np", **options).images
    assert np.abs(decode(pipe, found).astype(int) - (pictures * 255).round()).max() <= 1


def test_negative_prompts_and_processor_arguments_reach_the_unet(pipe, monkeypatch):
    text, without = encode_prompts(pipe, PROMPTS[:2]), encode_prompts(pipe, ["grass"])
    found = generate_latents(pipe, text, noise(1, 2), steps=3, guidance=3.0, negative_embeds=without)
    wanted = pipe(
        PROMPTS[:2], negative_prompt=["grass"] * 2, output_type="latent", num_inference_steps=3, guidance_scale=3.0,
        latents=noise(1, 2),
    ).images  # fmt: skip
    assert torch.allclose(found, wanted, atol=1e-4)
    seen, forward = [], pipe.unet.forward

    def spy(rows, t, states, cross_attention_kwargs=None, **options):
        seen.append((len(rows), cross_attention_kwargs, states))
        return forward(rows, t, states, **options)

    monkeypatch.setattr(pipe.unet, "forward", spy)
    generate_latents(pipe, text, noise(1, 2), steps=1, guidance=2.0, cross_attention_kwargs={"keep": 1})
    (rows, kwargs, states), blind = seen[0], encode_prompts(pipe, [""])
    assert rows == 4 and kwargs == {"keep": 1}
    assert torch.equal(states, torch.cat([blind, blind, text])), "without prompt first"


def test_a_picture_does_not_depend_on_its_batch(pipe):
    text = encode_prompts(pipe, PROMPTS)
    together = generate_latents(pipe, text, noise(1, 2, 3, 4), steps=5, guidance=4.0)
    for k in range(4):
        alone = generate_latents(pipe, encode_prompts(pipe, [PROMPTS[k]]), noise(k + 1), steps=5, guidance=4.0)
        assert torch.allclose(alone[0], together[k], atol=1e-4)
    a, b = decode(pipe, together).astype(int), decode(pipe, together[2:3])
    assert np.abs(a[2] - b[0]).max() <= 1


def test_a_run_can_be_joined_and_tapped_at_a_step(pipe):
    text, kept, taps = encode_prompts(pipe, PROMPTS[:2]), {}, Taps(pipe.unet)

    def watch(k, timestep, latents):
        kept[k] = (timestep, latents)
        return taps if k == 6 else nullcontext() if k == 2 else None

    whole = generate_latents(pipe, text, noise(1, 2), steps=8, guidance=2.0, on_step=watch)
    assert [kept[k][0] for k in range(8)] == [*range(876, 0, -125)]
    rest = generate_latents(pipe, text, kept[5][1], steps=8, guidance=2.0, start=5)
    assert torch.equal(rest, whole)
    with torch.no_grad(), Taps(pipe.unet) as wanted:
        rows, blind = torch.cat([kept[6][1]] * 2), encode_prompts(pipe, [""]).expand(2, -1, -1)
        pipe.unet(rows, kept[6][0], torch.cat([blind, text]))
    assert all(torch.equal(a, b) for a, b in zip(taps.features["low"], wanted["low"], strict=True))
    weight = torch.ones(1, requires_grad=True)
    (taps.features["low"][0] * weight).sum().backward()  # which tensors of inference mode would refuse
    assert weight.grad is not None


def test_noise_is_each_seeds_own():
    one, many = noise(2**63 + 5), noise(0, 1, 2**63 + 5, 1)
    assert many.shape == (4, 4, 16, 16) and many.dtype == torch.float32
    assert torch.equal(one[0], many[2]) and torch.equal(many[1], many[3])
    assert not torch.equal(*noise(1, 1 + 2**32)), "high bits count"
    large = sample_noise((4, 64, 64), range(8))
    assert abs(large.mean()) < 0.02 and abs(large.std() - 1) < 0.02
    assert abs((large[0] * large[1]).mean()) < 0.03
    assert noise().shape == (0, 4, 16, 16)
    for seed in (-1, 2**64):
        with pytest.raises(ValueError, match=r"\[0, 2\*\*64\)"):
            noise(seed)


def test_pictures_to_latents_and_back(pipe):
    images = np.random.default_rng(0).integers(0, 256, (10, 64, 32, 3), dtype=np.uint8)
    found = encode_images(pipe, images)
    assert found.shape == (10, 4, 16, 8) and torch.equal(found, encode_images(pipe, images)), "nothing is drawn"
    with torch.no_grad():
        pixels = pipe.image_processor.preprocess(images[8].astype(np.float32)[None] / 255)
        wanted = pipe.vae.encode(pixels).latent_dist.mode() * pipe.vae.config.scaling_factor
    assert torch.allclose(found[8:9], wanted, atol=1e-5)
    pictures = decode(pipe, found)
    assert pictures.shape == images.shape and pictures.dtype == np.uint8
    for wrong in (images[0], images.astype(float), images[:, :, :, :2], images[:0]):
        with pytest.raises(ValueError, match="must be .* uint8"):
            encode_images(pipe, wrong)
    with pytest.raises(ValueError, match="divisible by 4"):
        encode_images(pipe, images[:, :30])


def toy(pipe, epsilon):
    """The pipeline's schedule around a U-Net that is a formula of latents and timestep."""

    def unet(rows, t, text, cross_attention_kwargs=None, return_dict=True):
        return (epsilon(rows, float(t)),)

    unet.device, unet.dtype = torch.device("cpu"), torch.float32
    return SimpleNamespace(unet=unet, scheduler=pipe.scheduler)


def round_trip(pipe, latents, steps):
    text = torch.zeros(len(latents), 2, 64)
    back = generate_latents(pipe, text, invert(pipe, latents, text, steps), steps=steps, guidance=1.0)
    return (back - latents).abs().mean().item()


def test_inversion_is_exact_where_the_noise_depends_on_time_alone(pipe):
    pattern = noise(7)
    assert round_trip(toy(pipe, lambda z, t: pattern * (0.5 + t / 1000)), noise(3), 10) < 1e-4


def test_inversion_of_a_linear_unet_nears_the_start_with_more_steps(pipe):
    linear = toy(pipe, lambda z, t: 0.1 * z)
    errors = [round_trip(linear, noise(3), steps) for steps in (10, 50, 250)]
    assert errors[0] > 2 * errors[1] > 4 * errors[2] and errors[2] < 0.004


def test_one_step_back_is_the_equation(pipe):
    """Dossier 2.9 by hand, for one step from the clean end to timestep 1 and noise told beforehand."""
    z, pattern, told = noise(3), noise(7), []
    text = torch.zeros(1, 2, 64)
    found = invert(toy(pipe, lambda z, t: pattern), z, text, 1, on_step=lambda k, t, latents: told.append((k, t)))
    a, b = pipe.scheduler.alphas_cumprod[0], pipe.scheduler.alphas_cumprod[1]
    wanted = b.sqrt() * (z - (1 - a).sqrt() * pattern) / a.sqrt() + (1 - b).sqrt() * pattern
    assert told == [(0, 1)] and torch.allclose(found, wanted, atol=1e-6)


def test_inversion_of_a_random_unet_nears_the_start_with_more_steps(pipe):
    errors = [round_trip(pipe, noise(3), steps) for steps in (8, 20, 50)]
    assert errors[0] > errors[1] > errors[2] and errors[2] < 0.6 * errors[0], errors


@pytest.mark.parametrize("steps", [0, 1000, 2.5, True])
def test_steps_must_fit_the_schedule(pipe, steps):
    text = encode_prompts(pipe, [""])
    with pytest.raises(ValueError, match=r"`steps` must be an integer in \[1, 1000\)"):
        generate_latents(pipe, text, noise(0), steps=steps, guidance=1.0)
    with pytest.raises(ValueError, match="`steps`"):
        invert(pipe, noise(0), text, steps)


def test_rows_must_agree(pipe):
    text = encode_prompts(pipe, [""])
    with pytest.raises(ValueError, match="same N"):
        generate_latents(pipe, text, noise(0, 1), steps=2, guidance=1.0)
    with pytest.raises(ValueError, match="same N"):
        invert(pipe, noise(0, 1), text, 2)
    with pytest.raises(ValueError, match=r"`start` must be in \[0, 2\)"):
        generate_latents(pipe, text, noise(0), steps=2, guidance=1.0, start=2)


@pytest.mark.parametrize(
    "name",
    ["model_index.json", "unet/config.json", "tokenizer/tokenizer_config.json", "scheduler/scheduler_config.json"],
)
def test_a_missing_part_is_named(copy, name):
    (copy / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"has no {name}.*folders unet, vae") as error:
        load_pipeline(copy)
    assert str(copy) in str(error.value)


def test_pickled_weights_are_not_opened(copy):
    weights = copy / "vae/diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(FileNotFoundError, match=r"vae has no .*safetensors, but diffusion_pytorch_model.bin. Pickles"):
        load_pipeline(copy)
    weights.with_suffix(".bin").unlink()
    with pytest.raises(FileNotFoundError, match="but nothing else"):
        load_pipeline(copy)


def test_broken_and_unfitting_folders_are_refused(copy):
    from safetensors.torch import load_file, save_file

    weights, config = copy / "unet/diffusion_pytorch_model.safetensors", copy / "text_encoder/config.json"
    whole = weights.read_bytes()
    state = load_file(weights)
    state["surplus"] = state.pop("conv_out.weight")
    save_file(state, weights)
    with pytest.raises(ValueError, match="has no weights for conv_out.weight of its UNet"):
        load_pipeline(copy)
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cannot be read as Stable Diffusion"):
        load_pipeline(copy)
    weights.write_bytes(whole)
    (copy / "tokenizer/tokenizer_config.json").write_text('{"tokenizer_class": "CLIPTokenizer"}')
    with pytest.raises(ValueError, match="lengths of the tokenizer and the text encoder are .* and 24"):
        load_pipeline(copy)
    config.write_text(config.read_text().replace('"vocab_size": 717', '"vocab_size": 718'))
    with pytest.raises(ValueError):
        load_pipeline(copy)
    index = copy / "model_index.json"
    index.write_text(index.read_text().replace("StableDiffusionPipeline", "StableDiffusionXLPipeline"))
    with pytest.raises(ValueError, match="not of a StableDiffusionPipeline"):
        load_pipeline(copy)


def test_a_hub_name_without_a_network_says_what_to_do(monkeypatch, tmp_path):
    from diffusers import StableDiffusionPipeline

    asked = []

    def offline(source, **options):
        asked.append((source, options["use_safetensors"]))
        raise OSError("Cannot reach the hub")

    monkeypatch.setattr(StableDiffusionPipeline, "from_pretrained", offline)
    with pytest.raises(FileNotFoundError, match=r"no folder here.*Cannot reach the hub.*save_pretrained\(folder\)"):
        load_pipeline("CompVis/stable-diffusion-v1-4")
    for nowhere in (tmp_path / "nothing", "nothing", "./a/b"):
        with pytest.raises(FileNotFoundError, match="There is no folder"):
            load_pipeline(nowhere)
    assert asked == [("CompVis/stable-diffusion-v1-4", True)]

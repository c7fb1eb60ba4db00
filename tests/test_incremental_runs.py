"""Class-incremental runs from a configuration: shared base models, every method, the same bits after a kill."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from smallzoo import config, write_zoo

from fmseg import image_counts, incremental_base, incremental_runs, own_clip
from fmseg.experts import Experts, gather, normalised, of_zoo
from fmseg.incremental_base import family
from fmseg.incremental_data import BASE, load
from fmseg.incremental_runs import METHODS, base_of, experts_of, memory_of, run
from fmseg.training import plain, weights_hash


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return write_zoo(tmp_path_factory.mktemp("zoo"))


@pytest.fixture(autouse=True)
def zoo(home, monkeypatch):
    monkeypatch.setenv("FMSEG_ZOO", str(home))


class Killed(Exception):
    pass


def kill_at(step):
    def on_step(done, loss):
        if done == step:
            raise Killed

    return on_step


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """A folder that runs of this module share, as workers share theirs."""
    return tmp_path_factory.mktemp("scratch")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_and_its_result_is_plain(method, bases):
    made = run(config(method), checkpoint=bases / f"{method}.pt")
    result = made["result"]
    assert json.loads(json.dumps(result)) == result and len(result["iou"]) == 21
    assert made["model"].num_classes == 21 and made["curve"][-1][0] == 3
    if method != "joint":
        assert len(result["base_iou"]) == 11 and len(result["seen"]) == 2
    if method in ("cam", "ss", "wilson"):
        assert set(result["masks"]) == {method} and set(result["masks"][method]) == {"precision", "recall", "iou"}
    if method == "fmwiss":
        assert set(result["masks"]) == {"clip", "seeds", "union", "teacher", "student", "grid"}
        assert len(result["memory"]) == 10 and max(result["memory"]) <= 5
    left = {path.name for path in bases.iterdir() if path.is_file()}
    assert left <= {f"{m}.pt" for m in METHODS}, "what was trained on the way is gone"


def test_base_models_are_shared_by_family_and_go_on_where_they_were(tmp_path, bases):
    made = config("wilson")
    data = load(made)
    place = incremental_base.path_of(made, bases / "bases")
    assert family("wilson") == family("fmwiss") == family("cam") == "sigmoid" != family("mib") == family("ft")
    assert place == incremental_base.path_of(config("fmwiss", alpha=0.9), bases / "bases")
    assert place != incremental_base.path_of(config("mib"), bases / "bases")
    assert place != incremental_base.path_of(config("wilson", protocol="mini/10-10/disjoint"), bases / "bases")
    whole, before = base_of(made, data, tmp_path / "one")
    alone, _ = base_of(made, data)
    sources = data.base_source(), data.validation(BASE), 11
    with pytest.raises(Killed):
        incremental_base.base_model(made, *sources, tmp_path / "two", on_step=kill_at(1))
    resumed, after = incremental_base.base_model(made, *sources, tmp_path / "two")
    assert after.resumed_from == 1 and weights_hash(resumed) == weights_hash(whole) == weights_hash(alone)
    again, read = base_of(made, data, tmp_path / "one")
    assert read.resumed_from == 2 and weights_hash(again) == weights_hash(whole)
    assert np.array_equal(read.iou, before.iou, equal_nan=True)
    with pytest.raises(ValueError, match="`base.family` must be one of softmax, sigmoid"):
        base_of(made | {"base": made["base"] | {"family": "bce"}}, data)


def test_classes_begin_rare_where_the_run_says_so(bases):
    from fmseg.incremental_base import fresh, path_of

    rare = {m: config(m) | {"prior": 0.01} for m in ("joint", "mib", "lwf-mc", "wilson", "fmwiss")}
    for method, made in rare.items():
        bias = fresh(made, 11).model.decode_head.conv_seg.bias
        start = bias.softmax(0) if method in ("joint", "mib") else bias.sigmoid()
        assert torch.allclose(start, torch.tensor([0.9, *[0.01] * 10])), method
    assert path_of(rare["wilson"], bases) != path_of(config("wilson"), bases), "another base model"
    for method, starts_rare in (("mib", False), ("lwf-mc", True), ("wilson", True), ("fmwiss", True)):
        made, data = rare[method], load(rare[method])
        old, _ = base_of(made, data, bases / "bases")
        step, *_ = incremental_runs.prepared(made, data, old)
        news = step.student.model.decode_head.conv_seg.bias[11:]
        assert bool(torch.allclose(news.sigmoid(), torch.tensor(0.01))) == starts_rare, method
    assert torch.allclose(step.teacher.layers.conv_seg.bias[1:].sigmoid(), torch.tensor(0.01))
    result = run(rare["fmwiss"], checkpoint=bases / "rare.pt")["result"]
    assert result["weights"] != run(config(), checkpoint=bases / "common.pt")["result"]["weights"]


@pytest.mark.parametrize("method", ["fmwiss", "wilson", "ss", "plop"])
def test_killed_and_resumed_ends_with_the_same_bits(method, tmp_path, bases):
    made = config(method)
    whole = run(made, checkpoint=bases / f"whole-{method}.pt")["result"]
    options = {"checkpoint": tmp_path / "run.pt", "checkpoint_every": 1}
    with pytest.raises(Killed):
        run(made, on_step=kill_at(2), **options)
    assert run(made, **options)["result"] == whole


def test_another_share_vit_or_ablation_is_another_result(bases):
    def weights(**changes):
        return run(config(**changes), checkpoint=bases / f"{'-'.join(changes)}.pt")["result"]["weights"]

    runs = [weights(), weights(vit="dino"), weights(capacity=0), weights(use="clip"), weights(teacher=False),
            weights(alpha=1.0, temperature=0.5)]  # fmt: skip
    assert len(set(runs)) == len(runs)


def test_coco_to_voc_is_judged_on_both_validation_sets(bases):
    result = run(config("ft", protocol="mini/coco-to-voc"), checkpoint=bases / "coco.pt")["result"]
    assert len(result["iou"]) == len(result["other_iou"]) == 41 and len(result["base_iou"]) == 21
    assert all(value is None for value in result["other_iou"][1:21]), "voc's pictures hold no other class"
    for images, total in (("images", "iou"), ("other_images", "other_iou")):
        counted = image_counts.iou(image_counts.unpack(result[images]))
        assert plain(counted) == result[total], "what the images add makes the result"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "mibs"}, "`method` must be one of joint, ft"),
        ({"options": {"alhpa": 1}}, "unknown option of fmwiss 'alhpa'; did you mean 'alpha'"),
        ({"shares": 1}, "unknown key of a run's configuration 'shares'"),
        ({"zoo": {"clip": "0" * 16}}, "zoo model 'clip' is"),
        ({"method": "ft"}, "unknown option of ft 'capacity'"),
    ],
)
def test_a_configuration_that_nobody_reads_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        run(config() | changes)


# --- experts ---------------------------------------------------------------------------------------------------------

PICTURES = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
NAMES, OLD = ("plain disc", "striped star"), ("dotted heart",)


def asked(**options):
    experts = of_zoo(NAMES, OLD, **{"keep": 0.1, "seeds": 3} | options)
    return experts.co_segment(PICTURES, torch.tensor([[True, False], [True, True]]), torch.Generator().manual_seed(1))


def test_experts_answer_on_the_finer_grid_and_only_for_what_is_present():
    found = asked()
    assert found.mask.shape == (2, 2, 16, 16) and not found.mask[0, 1].any() and found.mask[1].any()
    assert torch.equal(found.mask, found.clip | found.guided)
    assert not torch.equal(asked(vit="dino").guided, found.guided) and torch.equal(asked(vit="dino").clip, found.clip)
    without = asked(grounds=False)
    assert (without.clip | found.clip).sum() == without.clip.sum(), "rivals only take away"
    assert (found.clip | asked(old_rivals=True).clip).sum() == found.clip.sum()
    alone = asked(use="clip")
    assert torch.equal(alone.mask, found.clip) and alone.guided is None


def test_experts_remember_pictures_and_their_answers_do_not_depend_on_the_company(monkeypatch):
    experts, present = of_zoo(NAMES, OLD, keep=0.1, seeds=3), torch.ones(2, 2, dtype=torch.bool)
    first = experts.co_segment(PICTURES, present, torch.Generator().manual_seed(1))
    assert len(experts.looks) == 2
    alone = of_zoo(NAMES, OLD, keep=0.1, seeds=3).co_segment(
        PICTURES[1:], present[1:], torch.Generator().manual_seed(1)
    )
    assert torch.equal(alone.clip, first.clip[1:])
    fresh = replace(experts, looks=None).co_segment(PICTURES, present, torch.Generator().manual_seed(1))
    assert torch.equal(fresh.seeds, first.seeds) and torch.allclose(fresh.attention, first.attention, atol=1e-6)
    assert (fresh.mask != first.mask).float().mean() < 0.01, "rounding alone"
    with monkeypatch.context() as patch:
        patch.setattr("fmseg.experts.dense_features", lambda *given: pytest.fail("these pictures were seen before"))
        again = experts.co_segment(PICTURES.flip(0), present, torch.Generator().manual_seed(1))
        assert torch.equal(again.clip, first.clip.flip(0))
        other = experts.co_segment(PICTURES, present, torch.Generator().manual_seed(2))
        assert not torch.equal(other.seeds, first.seeds), "seeds are drawn anew"
    experts.co_segment(PICTURES.flip(3), present, torch.Generator().manual_seed(1))
    assert len(experts.looks) == 4, "a mirrored picture is another one"
    monkeypatch.setattr("fmseg.experts.MOST", 4)
    experts.co_segment(PICTURES.flip(2), present, torch.Generator().manual_seed(1))
    assert len(experts.looks) == 4, "no more than fit"


def test_floats_and_bytes_are_the_same_pictures_and_another_grid_is_reached():
    experts, present = of_zoo(NAMES, OLD, use="clip"), torch.ones(2, 2, dtype=torch.bool)
    draw = torch.Generator().manual_seed(1)
    fine = experts.masks(PICTURES, present, (16, 16), draw)
    assert torch.equal(fine, experts.masks(PICTURES.float(), present, (16, 16), draw))
    twice = experts.masks(PICTURES, present, (32, 32), draw)
    assert torch.equal(twice, fine.repeat_interleave(2, 2).repeat_interleave(2, 3))
    shown = normalised(PICTURES, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    assert torch.allclose(shown, (PICTURES / 255 - 0.5) / 0.25)


def test_a_coarser_clip_asks_attention_for_its_own_places(home):
    found = of_zoo(NAMES, OLD, keep=0.1)
    coarse = gather(incremental_runs.experts.load_clip(home / "clip"), found.vit, NAMES, keep=0.1)
    masks = coarse.co_segment(PICTURES, torch.ones(2, 2, dtype=torch.bool), torch.Generator().manual_seed(1))
    assert masks.mask.shape[2:] == (8, 8) and masks.attention.shape[2:] == (8, 8)


def test_a_clip_of_the_tasks_own_pictures_knows_their_words(tmp_path):
    made = config(own_clip={"steps": 2, "batch_size": 8, "lr": 0.001})
    data = load(made)
    experts = experts_of(made, data, tmp_path / "run.pt")
    assert isinstance(experts, Experts) and (tmp_path / "run-clip.pt").exists()
    same = experts_of(made, data, tmp_path / "run.pt")
    assert torch.equal(experts.text, same.text) and not torch.allclose(experts.text, experts_of(config(), data).text)
    model = own_clip.OwnClip(NAMES, seed=0)
    assert model.sentence([True, True], "a photo of {a}") == "a photo of a plain disc and a striped star"
    assert model.sentence([False, False], "a photo of {a}") == "a photo"
    told = own_clip._told(data)
    assert [source.tags.shape[1] for source in told] == [20, 20]
    assert not told[0].tags[:, 10:].any() and not told[1].tags[:, :10].any() and (told[0].labels == 255).all()


def test_the_memory_holds_old_objects_of_the_base_step_alone():
    made = config()
    data = load(made)
    memory = memory_of(made, data)
    assert sorted(memory.archives) == list(range(1, 11)) and 0 < len(memory) <= 50
    assert memory_of(made | {"options": {"capacity": 0}}, data) is None
    pictures = {image.tobytes() for image in data.base.images}
    assert all(i.image.shape[:2] == i.mask.shape for archive in memory.archives.values() for i in archive) and pictures
    fewer = replace(data, base=data.base.subset([0]))
    assert len(memory_of(made, fewer)) < len(memory)

"""FreeMask's chain on disk: the same bytes from one process, four, and a killed one; plan, means and filter by hand."""

import errno
import json
import multiprocessing
import os
import signal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from fmseg import freemask_folders, real_freemask_chain, resample
from fmseg.label_format import ADE20K
from fmseg.noise import EPSILON
from fmseg.real_freemask_chain import Chain

SIDE, MASKS, MOST = 64, 7, 3
IDS = (3, 10, 27, 47, 35)  # sky, grass, sea, sand and rock in ADE20K's files


def write_ade(root, train=MASKS, val=2):
    """A small ADE20K: pictures of three sizes, masks of three grounds and some unlabelled pixels."""
    rng = np.random.default_rng(3)
    for split, count in (("training", train), ("validation", val)):
        for k in range(count):
            high, wide = ((64, 96), (70, 64), (96, 75))[k % 3]
            mask = np.full((high, wide), IDS[k % 5], np.uint8)
            mask[high // 3 :], mask[: high // 2, : wide // 4] = IDS[(k + 1) % 5], IDS[(k + 2) % 5]
            mask[:3] = 0
            image = np.clip(mask[..., None] * (5, 4, 3) + rng.normal(0, 20, (high, wide, 3)), 0, 255)
            for part, array, ending in (("images", image, "jpg"), ("annotations", mask, "png")):
                path = root / "ADEChallengeData2016" / part / split / f"ADE_{split[:5]}_{k + 1:08d}.{ending}"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array.astype(np.uint8)).save(path)
    return root


def painter(generator):
    """Pictures that say which mask and which index they are of."""

    def paint(labels, classes, index):
        rng = np.random.default_rng([index, int(labels.sum())])
        noise = rng.normal(0, 25, (*labels.shape, 3))
        return np.clip(np.where(labels == 255, 0, labels)[..., None] * 5.0 + noise, 0, 255).astype(np.uint8)

    return paint


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return write_ade(tmp_path_factory.mktemp("ade"))


@pytest.fixture
def home(tree, tmp_path, monkeypatch):
    """Data, an empty folder of parts, small shards."""
    for name in ("FMSEG_ADE20K", "FMSEG_WEIGHTS", "RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FMSEG_DATA", str(tree))
    monkeypatch.setenv("FMSEG_PARTS", str(tmp_path / "parts"))
    monkeypatch.setattr(real_freemask_chain, "REAL", 3)
    monkeypatch.setattr(real_freemask_chain, "PAINTED", 4)
    return tmp_path / "parts"


def config(**synthetic):
    return {
        "data": "ade20k", "split": "training",
        "generator": {"base": "none", "weights": None, "steps": 4, "guidance": 2.0},
        "filter": {"method": "segformer", "size": "mini", "weights": None},
        "synthetic": {"most": MOST, "resample": True, "alpha": 1.0, "draw": 0} | synthetic,
    }  # fmt: skip


def chain(paint=painter, **synthetic):
    return Chain(config(**synthetic), paint, SIDE)


def contents(made):
    """{file: bytes} of FreeMask's folder and the manifest."""
    files = [p for p in made.root.rglob("*") if p.is_file()] + [made.folder / "manifest.json"]
    return {str(p.relative_to(made.folder)): p.read_bytes() for p in files}


def test_one_pass_by_hand(home):
    made = chain()
    result = made.perform()
    stats, pixels = made.measured
    means = stats.compute()
    loss, count = np.zeros(150), np.zeros(150)
    for k in range(MASKS):
        example = made.real[k]
        x = torch.from_numpy(example.image).permute(2, 0, 1)[None].float()
        high, wide = example.labels.shape
        x = F.pad(x, (0, -wide % made.judge.divisor, 0, -high % made.judge.divisor), mode="replicate")
        scores = made.judge.logits(x)[..., :high, :wide]
        target = torch.from_numpy(example.labels.astype(np.int64))[None]
        each = F.cross_entropy(scores, target, ignore_index=255, reduction="none")[0].detach().numpy()
        for c in np.unique(example.labels[example.labels != 255]):
            loss[c] += each[example.labels == c].sum()
            count[c] += (example.labels == c).sum()
        small = resample.nearest(example.labels, SIDE)
        assert np.array_equal(pixels[k], np.bincount(small[small != 255], minlength=150))
    assert np.allclose(means, loss / (count + EPSILON), rtol=1e-4)
    hard = {name: float(resample.hardness(row, means)) for name, row in zip(made.names, pixels, strict=True)}
    assert made.plan == resample.manifest(hard, MOST, 0)
    counts = resample.counts_by_rank(MASKS, MOST)
    assert result.facts["pictures"] == len(result.data) == counts.sum() and made.missing() == 0
    assert 0 < result.facts["kept"] < 1 and sum(v is not None for v in result.facts["kept by class"]) == len(IDS)
    named = [resample.image_name(name, index) for name, index in made.drawn]
    assert [p.stem for p in result.data.images] == named and result.data.num_classes == 150


def test_filtered_masks_hold_the_masks_ids_or_nothing(home):
    made, unfiltered = chain(), chain(alpha=None)
    clean, raw = made.perform().data, unfiltered.perform().data
    dropped = 0
    for k, (name, _) in enumerate(made.drawn):
        mask = resample.nearest(made.real.labels(made.names[name]), SIDE)
        ids = np.array(Image.open(clean.masks[k]))
        assert np.array_equal(np.array(Image.open(raw.masks[k])), ADE20K.write(mask.astype(np.int64)))
        kept = ids != 0
        assert np.array_equal(ids[kept], mask[kept] + 1) and ids.shape == (SIDE, SIDE)
        loss, target = made.losses(np.array(Image.open(clean.images[k])), mask)
        limit = made.measured[0].compute()[np.where(mask == 255, 0, mask)]
        by_hand = (mask != 255) & ~(loss[0].numpy() > limit.astype(np.float32))
        assert np.array_equal(kept, by_hand)
        dropped += (~kept & (mask != 255)).sum()
    assert dropped and unfiltered.perform().facts["kept"] == 1.0


def test_coco_stuff_is_written_under_its_own_names(home, tmp_path, monkeypatch):
    rng = np.random.default_rng(1)
    for split in ("train2017", "val2017"):
        for k in range(2):
            mask = np.full((60, 80), 10 + k, np.uint8)
            mask[:20], mask[20:40, :30] = 255, 170
            for part, name, array in (("images", f"{k:012d}.jpg", rng.integers(0, 256, (60, 80, 3))),
                                      ("annotations", f"{k:012d}_labelTrainIds.png", mask)):  # fmt: skip
                path = tmp_path / "coco" / part / split / name
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array.astype(np.uint8)).save(path)
    monkeypatch.setenv("FMSEG_COCO", str(tmp_path / "coco"))
    raw = {"most": 2, "resample": False, "alpha": None, "draw": 0}
    made = Chain(config() | {"data": "coco-stuff", "split": "train", "synthetic": raw}, painter, SIDE)
    data = made.perform().data
    assert made.root.name == "COCO_Synthetic" and data.masks[1].name == "000000000000_seed_43_labelTrainIds.png"
    assert data.images[3].name == "000000000001_seed_43.jpg" and len(data) == 4
    assert np.array_equal(data.labels(2), resample.nearest(made.real.labels(1), SIDE))
    assert set(np.unique(np.array(Image.open(data.masks[0])))) == {10, 170, 255}


def test_every_picture_of_every_mask_without_resampling(home):
    made = chain(resample=False, alpha=None)
    assert made.perform().facts["pictures"] == MASKS * MOST and "rounding" not in made.plan


def worker(settings):
    os.environ["FMSEG_PARTS"] = settings
    torch.set_num_threads(1)
    chain().perform()


def killed(settings, after):
    """Painted by somebody who is killed in the middle of a shard."""
    os.environ["FMSEG_PARTS"] = settings

    def deadly(generator):
        paint, done = painter(generator), []

        def until(labels, classes, index):
            if len(done) == after:
                os.kill(os.getpid(), signal.SIGKILL)
            done.append(index)
            return paint(labels, classes, index)

        return until

    chain(deadly).perform()


def test_one_worker_four_workers_and_killed_and_resumed_leave_the_same_bytes(home, tmp_path, monkeypatch):
    alone = chain()
    alone.perform()
    wanted = contents(alone)
    fork = multiprocessing.get_context("fork")
    together = [fork.Process(target=worker, args=(str(tmp_path / "four"),)) for _ in range(4)]
    for process in together:
        process.start()
    for process in together:
        process.join()
        assert process.exitcode == 0
    monkeypatch.setenv("FMSEG_PARTS", str(tmp_path / "four"))
    four = chain()
    assert four.missing() == 0 and contents(four) == wanted
    victim = fork.Process(target=killed, args=(str(tmp_path / "killed"), 6))
    victim.start()
    victim.join()
    assert victim.exitcode == -signal.SIGKILL
    monkeypatch.setenv("FMSEG_PARTS", str(tmp_path / "killed"))
    asked = []
    resumed = chain(lambda g: lambda labels, classes, index: asked.append(index) or painter(g)(labels, classes, index))
    assert 0 < resumed.missing() < resumed.shards()
    resumed.perform()
    assert contents(resumed) == wanted and len(asked) == len(resumed.drawn) - 6, "what was painted is not painted again"


def test_another_plan_takes_pictures_over_and_another_generator_does_not(home):
    chain().perform()
    asked = []

    def counting(generator):
        return lambda labels, classes, index: asked.append(index) or painter(generator)(labels, classes, index)

    whole = chain(counting, resample=False, alpha=2.0)
    whole.perform()
    assert len(asked) == MASKS * MOST - len(chain().drawn)
    other = config() | {"generator": config()["generator"] | {"guidance": 3.0}}
    again = Chain(other, counting, SIDE)
    asked.clear()
    again.perform()
    assert len(asked) == len(again.drawn) and again.store != chain().store


def test_a_full_disk_leaves_whole_files_and_the_next_goes_on(home, monkeypatch):
    fsync, left = os.fsync, [9]

    def full(descriptor):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    made = chain()
    made.measured  # noqa: B018  the first pass
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="cannot write .*No space left on device"):
            made.perform()
    assert not [p for p in home.rglob(".*") if p.is_file() and "lock" not in p.name]
    for path in made.root.rglob("*.jpg"):
        Image.open(path).load()
    chain().perform()


def test_a_file_that_was_taken_away_is_named(home):
    made = chain()
    first = made.perform().data.masks[0]
    first.unlink()
    with pytest.raises(
        FileNotFoundError, match=f"1 of {len(made.drawn)} names have no mask; the first is {first.name}"
    ):
        chain().perform()


def test_a_damaged_shard_is_named(home):
    made = chain()
    made.perform()
    next(made.folder.glob("00000.npz")).write_bytes(b"cut off")
    with pytest.raises(ValueError, match="00000.npz is damaged .*delete it, it is then made again"):
        chain().perform()


def test_the_manifest_is_the_plan_with_a_hash_of_all_files(home):
    made = chain()
    facts = made.perform().facts
    kept = json.loads((made.folder / "manifest.json").read_text())
    assert kept.pop("sha256").startswith(facts["sha256"]) and kept == made.plan
    assert resample.pairs(kept) == made.drawn and made.root.name == freemask_folders.folder_of("ade20k")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"synthetic": {"most": 3}}, "lacks resample, alpha, draw"),
        ({"generator": {"base": "x"}}, "lacks weights, steps, guidance"),
        ({"filter": {"method": "mask2former", "size": "t", "weights": None}}, "'mask2former' does not"),
        ({"synthetic": {"most": 0, "resample": False, "alpha": None, "draw": 0}}, "`synthetic.most` must be .* got 0"),
        ({"synthetic": {"most": 2, "resample": True, "alpha": -1.0, "draw": 0}}, "`synthetic.alpha` must be >= 0"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused_before_anything_is_made(home, changes, message):
    with pytest.raises(ValueError, match=message):
        Chain(config() | changes, painter, SIDE)


def test_a_picture_of_another_size_is_refused(home):
    with pytest.raises(ValueError, match=r"`painter` must paint uint8 of \(64, 64, 3\) for ADE_train_0000000"):
        chain(lambda generator: lambda labels, classes, index: np.zeros((8, 8, 3), np.uint8)).perform()


def test_weights_that_are_not_there_are_asked_for(home):
    other = config() | {"filter": {"method": "segformer", "size": "mini", "weights": "judge.pth"}}
    with pytest.raises(FileNotFoundError, match="FMSEG_WEIGHTS names no folder of weights; put judge.pth there"):
        Chain(other, painter, SIDE).perform()

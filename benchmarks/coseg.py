"""What co-segmentation costs beyond the two transformers that feed it, for a crop of 512 pixels.

    python benchmarks/coseg.py [rounds] [--write]

CLIP's and the self-supervised ViT-B/16 (open_clip, timm; random weights), a 32x32 grid, 512 channels, 12 heads, 5
present classes of 20, 10 seeds. All in turns within one run on one thread. Target: scores and masks take at most 5 % of
the two forwards' time. What stands in for the forwards, dense_features and last_attention, is timed, too.
"""

import statistics

import torch
from measuring import aim, in_turns, rounds, settle

import fmseg  # noqa: F401  before timm and open_clip
from fmseg.attention import last_attention
from fmseg.coseg import binarise, co_segment, draw_seeds, initial_mask, mean_attention
from fmseg.dense_clip import dense_features, scores

SIDE, CLASSES, PRESENT = 512, 20, 5


@torch.no_grad()
def main(turns: int = 3) -> None:
    import open_clip
    import timm

    torch.set_num_threads(1)
    torch.manual_seed(0)
    clip = open_clip.create_model("ViT-B-16", force_image_size=SIDE).visual.eval()
    vit = timm.create_model("vit_base_patch16_224", num_classes=0, dynamic_img_size=True).eval()
    image, generator = torch.randn(1, 3, SIDE, SIDE), torch.Generator().manual_seed(0)
    text = torch.nn.functional.normalize(torch.randn(CLASSES, 512), dim=1)
    present = torch.arange(CLASSES)[None] % (CLASSES // PRESENT) == 0
    features, attention = dense_features(clip, image), last_attention(vit, image)
    cosines = scores(features, text)
    clip_mask = initial_mask(cosines, present)
    seeds = draw_seeds(clip_mask, cosines, present, 10, generator)
    maps = mean_attention(attention, seeds, (32, 32))
    jobs = {
        "CLIP, forward": lambda: clip(image),
        "ViT, forward": lambda: vit(image),
        "dense_features": lambda: dense_features(clip, image),
        "last_attention": lambda: last_attention(vit, image),
        "scores": lambda: scores(features, text),
        "initial_mask": lambda: initial_mask(cosines, present),
        "draw_seeds": lambda: draw_seeds(clip_mask, cosines, present, 10, generator),
        "mean_attention": lambda: mean_attention(attention, seeds, (32, 32)),
        "binarise": lambda: binarise(maps),
        "scores, co_segment": lambda: co_segment(scores(features, text), present, attention, generator),
    }
    middle = {name: statistics.median(values) for name, values in in_turns(jobs, turns).items()}
    both = middle["CLIP, forward"] + middle["ViT, forward"]
    for name, value in middle.items():
        print(f"{name:20} {1e3 * value:9.2f} ms, {100 * value / both:7.3f} % of the two forwards")
    share = 100 * middle["scores, co_segment"] / both
    settle([aim("co-segmentation of a 512 x 512 crop: share of the two ViT forwards' time", share, "<=", 5, "%")])


if __name__ == "__main__":
    main(*rounds())

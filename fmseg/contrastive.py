"""The loss that trains CLIP."""

import torch
from torch import Tensor, nn


def contrastive_loss(
    images: Tensor, texts: Tensor, scale: Tensor, group: Tensor, wrong: Tensor | None = None
) -> Tensor:  # fmt: skip
    r"""CLIP's symmetric cross-entropy over a batch of pictures and sentences (Radford et al. 2021, figure 3).

    .. math:: L = \tfrac12 \big(\mathrm{CE}(s X Y^\top, T) + \mathrm{CE}(s Y X^\top, T)\big), \quad
              T_{ij} = [g_i = g_j] / |\{k : g_k = g_i\}|

    Args:
        images, texts: (N, D) float, rows of length 1: X and Y.
        scale: () float, s, the learned factor of the cosines.
        group: (N,) int64, g, equal where the sentences are.
        wrong: (M, D) sentences, rows of length 1, that are true of no picture; each picture must also tell its own from
            these (NegCLIP, Yuksekgonul et al. 2023).

    Returns:
        () nats, >= 0; log N where all cosines are equal.

    Raises:
        ValueError: shapes do not fit.

    Differs from the official code (open_clip/loss.py, ``ClipLoss``): pairs with the same sentence share the target,
    there each picture's only right answer is its own copy of the sentence.
    """
    if images.shape != texts.shape or images.ndim != 2 or group.shape != images.shape[:1]:
        raise ValueError(
            f"`images` and `texts` must be (N, D), `group` (N,); got {tuple(images.shape)}, {tuple(texts.shape)} and "
            f"{tuple(group.shape)}"
        )
    logits = scale * images @ texts.T
    same = (group[:, None] == group[None, :]).to(logits.dtype)
    target = same / same.sum(1, keepdim=True)
    of_pictures, wanted = logits, target
    if wrong is not None:
        of_pictures = torch.cat([logits, scale * images @ wrong.T], 1)
        wanted = torch.cat([target, target.new_zeros(len(images), len(wrong))], 1)
    return (nn.functional.cross_entropy(of_pictures, wanted) + nn.functional.cross_entropy(logits.T, target)) / 2

r"""Features of classes that nobody labelled, generated from their names: the idea of ZS3Net, Protocol II's oldest row.

Bucher et al. 2019, "Zero-Shot Semantic Segmentation", section 3. A segmenter is trained on seen classes; a generator
learns to make its pixel features from a class's text; the classifier alone is then trained again, on real features of
seen and generated features of unseen classes. Knows torch only.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

BANDWIDTHS = (2.0, 5.0, 10.0, 20.0, 40.0, 80.0)  # of the kernels, in units of squared distance; RECALLED from ZS3Net


def kernel_distance(a: Tensor, b: Tensor, bandwidths: Sequence[float] = BANDWIDTHS) -> Tensor:
    r"""Squared maximum mean discrepancy of two samples (Li et al. 2015, generative moment matching networks, eq. 3).

    .. math:: \frac{1}{n^2}\sum_{ij} k(a_i, a_j) - \frac{2}{nm}\sum_{ij} k(a_i, b_j)
              + \frac{1}{m^2}\sum_{ij} k(b_i, b_j), \quad
              k(x, y) = \sum_\sigma \exp\Big(-\frac{\lVert x - y \rVert^2}{2\sigma}\Big)

    Args:
        a: (n, D) float. b: (m, D) float. bandwidths: sigma, > 0.

    Returns:
        () >= 0 up to rounding; 0 where the samples are equal.

    Raises:
        ValueError: shapes do not fit, or a sample is empty.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or not len(a) or not len(b):
        raise ValueError(f"`a` and `b` must be (n, D) and (m, D), n, m > 0; got {tuple(a.shape)} and {tuple(b.shape)}")

    def mean_kernel(x: Tensor, y: Tensor) -> Tensor:
        squared = (x.square().sum(1)[:, None] + y.square().sum(1)[None] - 2 * x @ y.T).clamp(min=0)
        return sum(torch.exp(-squared / (2 * sigma)).mean() for sigma in bandwidths)

    return mean_kernel(a, a) - 2 * mean_kernel(a, b) + mean_kernel(b, b)


class FeatureGenerator(nn.Module):
    """Text of a class and noise to a pixel's features: one hidden layer.

    Args:
        text_dim: D of the text. features: channels of the segmenter before its classifier. hidden: width.
    """

    def __init__(self, text_dim: int, features: int, hidden: int = 128):
        super().__init__()
        self.text_dim = text_dim
        self.layers = nn.Sequential(nn.Linear(2 * text_dim, hidden), nn.LeakyReLU(0.2), nn.Linear(hidden, features))

    def forward(self, text: Tensor, generator: torch.Generator) -> Tensor:
        """(n, text_dim) -> (n, features); ``generator`` draws the noise."""
        noise = torch.randn(text.shape, generator=generator)
        return self.layers(torch.cat([text, noise], 1))


def train_generator(
    features: Tensor, labels: Tensor, text: Tensor, *, steps: int, batch: int = 64, lr: float = 2e-4, seed: int = 0
) -> FeatureGenerator:
    """Learn to make features of a class from its text, from the classes that have features.

    Args:
        features: (N, C) float. labels: (N,) int64 into ``text``, of seen classes only.
        text: (K, D) float, a row a class.
        steps: each on the pixels of one class, drawn uniformly from those that occur.
        batch: pixels and generated features a step, at most. lr: Adam's rate. seed: of weights and draws.

    Raises:
        ValueError: no features, shapes that do not fit, or labels outside ``text``.
    """
    if features.ndim != 2 or labels.shape != features.shape[:1] or not len(labels) or text.ndim != 2:
        raise ValueError(
            f"`features` (N, C) need `labels` (N,) and `text` (K, D), N > 0; got {tuple(features.shape)}, "
            f"{tuple(labels.shape)}, {tuple(text.shape)}"
        )
    if int(labels.min()) < 0 or int(labels.max()) >= len(text):
        raise ValueError(f"`labels` must be rows of `text`, 0..{len(text) - 1}; got {int(labels.max())}")
    rng = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = FeatureGenerator(text.shape[1], features.shape[1])
    optimizer = torch.optim.Adam(model.parameters(), lr)
    rows = {int(k): (labels == k).nonzero()[:, 0] for k in labels.unique()}
    kinds = list(rows)
    for _ in range(steps):
        kind = kinds[int(torch.randint(len(kinds), (), generator=rng))]
        mine = rows[kind]
        real = features[mine[torch.randint(len(mine), (min(batch, len(mine)),), generator=rng)]]
        made = model(text[kind].expand(batch, -1), rng)
        loss = kernel_distance(made, real)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return model.eval()


def train_classifier(
    classifier: nn.Module, features: Tensor, labels: Tensor, model: FeatureGenerator, text: Tensor,
    unseen: Sequence[int], *, steps: int, batch: int = 256, lr: float = 1e-3, seed: int = 0,
) -> None:  # fmt: skip
    """Train a 1x1 convolution anew, in place: real features of seen classes, generated ones of unseen classes.

    Args:
        classifier: (N, C, 1, 1) -> (N, K', 1, 1) logits, K' >= the classes of ``text``.
        features, labels, text: as of :func:`train_generator`. model: what that gave.
        unseen: rows of ``text`` to generate for; every class has the same chance in a batch.
        steps, batch, lr, seed: of Adam and the draws.
    """
    rng = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(classifier.parameters(), lr)
    there = labels.unique().tolist()
    rows = {k: (labels == k).nonzero()[:, 0] for k in there}
    kinds = [*there, *unseen]
    for _ in range(steps):
        wanted = torch.tensor(kinds)[torch.randint(len(kinds), (batch,), generator=rng)]
        x = torch.empty(batch, features.shape[1])
        for kind in wanted.unique().tolist():
            places = (wanted == kind).nonzero()[:, 0]
            if kind in rows:
                picked = torch.randint(len(rows[kind]), (len(places),), generator=rng)
                x[places] = features[rows[kind][picked]]
            else:
                with torch.no_grad():
                    x[places] = model(text[kind].expand(len(places), -1), rng)
        loss = nn.functional.cross_entropy(classifier(x[:, :, None, None])[:, :, 0, 0], wanted)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

r"""SDR: features of a class near its running mean, means apart, channels weighed against the largest.

Michieli and Zanuttigh 2021, "Continual Semantic Segmentation via Repulsion-Attraction of Sparse and Disentangled Latent
Representations", arXiv 2103.06342. Official code: github.com/LTTM/SDR (8638296), utils/loss.py and train.py. Three
losses on the encoder's last map (after its activation, so >= 0) join MiB's two::

    prototypes = Prototypes.from_state(old.sums, old.counts).grow(classes)       # means of the earlier steps
    prototypes.update(features, labels, background=False)
    means = prototypes.compute()
    loss = unbiased_cross_entropy(logits, labels, old_classes) + KD_WEIGHT * unbiased_distillation(logits, old_logits)
    loss = loss + MATCHING_WEIGHT * prototype_matching(features, labels, old_logits_at_labels, means)
    loss = loss + ATTRACTION_WEIGHT * attraction(features, labels, means)
    loss = loss + REPULSION_WEIGHT * repulsion(features, labels)
    loss = loss + SPARSITY_WEIGHT * sparsification(features, labels)

The weights are those of ``--method SDR`` (argparser.py) and of script_19_1_step1.slurm. Comments there and the README
say that the best ones differ by task, and give 10, 1e-2, 1e-3, 1e-3 and 1e-4 as a start.

The released code reads the features of a class with ``features[mask].view(D, -1)``, in :func:`prototype_matching` with
``view(-1, D)``. Memory holds image, channel, pixel in this order, so rows are channels for ``view(D, -1)`` with a batch
of one only, and for ``view(-1, D)`` never: else channels and pixels are mixed. ``mixed_channels=True`` does the same.
Its scripts use batches of 8; here each feature stays whole by default.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fmseg import _loss_checks as check

KD_WEIGHT = 100.0  # of fmseg.distill.unbiased_distillation
MATCHING_WEIGHT = 0.01
ATTRACTION_WEIGHT = 0.001
REPULSION_WEIGHT = 0.001
SPARSITY_WEIGHT = 0.001
EPSILON = 1e-15  # in the denominators of `sparsification`


class Prototypes:
    """Running mean of each class's features: ``update`` with batches, ``merge`` shards, ``compute`` the means.

    ``sums`` ((C, D) float64) and ``counts`` ((C,) int64) are the state: save them with the model of a step, continue
    with :meth:`from_state` and :meth:`grow`. Nothing here has a gradient.

    Args:
        classes: C >= 1, background included.
        channels: D >= 1.

    Raises:
        ValueError: an argument is no integer >= 1.

    Source: train.py, ``_update_running_stats``, which keeps means and counts; the numbers are the same.
    """

    def __init__(self, classes: int, channels: int):
        for name, value in (("classes", classes), ("channels", channels)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"`{name}` must be an integer >= 1; got {value!r}.")
        self.sums = torch.zeros(classes, channels, dtype=torch.float64)
        self.counts = torch.zeros(classes, dtype=torch.int64)

    @classmethod
    def from_state(cls, sums: Tensor, counts: Tensor) -> "Prototypes":
        """Continue from saved ``sums`` (C, D) and ``counts`` (C,), which are copied; other shapes: ValueError."""
        if sums.ndim != 2 or counts.shape != sums.shape[:1]:
            raise ValueError(f"`sums` must be (C, D), `counts` (C,); got {tuple(sums.shape)}, {tuple(counts.shape)}.")
        check.finite("sums", sums)
        prototypes = cls(*sums.shape)
        prototypes.sums += sums.to(prototypes.sums)
        prototypes.counts += counts.to(prototypes.counts)
        return prototypes

    def grow(self, classes: int) -> "Prototypes":
        """The same with room for more classes; itself stays as it is. Raises ValueError for fewer than there are."""
        have = len(self.counts)
        if classes < have:
            raise ValueError(f"`classes` must be at least the {have} there are; got {classes}.")
        pad = classes - have
        return Prototypes.from_state(F.pad(self.sums, (0, 0, 0, pad)), F.pad(self.counts, (0, pad)))

    def update(
        self,
        features: Tensor,
        labels: Tensor,
        *,
        background: bool,
        ignore_index: int = 255,
        mixed_channels: bool = False,
    ) -> "Prototypes":
        """Add the features of a batch.

        Args:
            features: (B, D, h, w) float.
            labels: (B, H, W) integers in [0, C) or ``ignore_index``, read on the grid of the features (nearest).
            background: count class 0, too. Officially on in step 0 of the disjoint protocol only: elsewhere old or
                future classes hide in it.
            mixed_channels: see the module.

        Returns:
            Itself.

        Raises:
            TypeError, ValueError: shapes or labels do not fit, a value is not finite.

        Differs from the official code: to leave the background out, it drops the smallest class id of the batch, which
        is another class where no pixel is background; a batch without any class is an error there, here it is no news.
        """
        check.maps("features", features)
        if features.shape[1] != self.sums.shape[1]:
            raise ValueError(f"`features` must have {self.sums.shape[1]} channels; got {features.shape[1]}.")
        grid = _on_grid(labels, features)
        check.labels_of(features, grid, ignore_index, len(self.counts))
        for c in _present(grid, ignore_index):
            if c or background:
                own = _of_class(features.detach(), grid == c, mixed_channels)
                self.sums[c] += own.sum(0).to(self.sums)
                self.counts[c] += len(own)
        return self

    def merge(self, other: "Prototypes") -> "Prototypes":
        """Add what another shard has seen; returns itself. Raises ValueError where its shape is another."""
        if other.sums.shape != self.sums.shape:
            raise ValueError(f"`other` must be {tuple(self.sums.shape)}; got {tuple(other.sums.shape)}. See grow.")
        self.sums += other.sums
        self.counts += other.counts
        return self

    def compute(self) -> Tensor:
        """(C, D) float32 means; zeros for a class that has not been seen, as in the official code."""
        return (self.sums / self.counts.clamp(min=1)[:, None]).float()


def prototype_matching(
    features: Tensor, labels: Tensor, old_logits: Tensor, prototypes: Tensor, *, mixed_channels: bool = False
) -> Tensor:
    r"""Prototypes matching: what the old model sees in the background has the mean it used to have.

    .. math:: L = \frac{1}{|Q|} \sum_{c \in Q} \frac1D \Big\lVert
              \frac{1}{|I_c|} \sum_{i \in I_c} e_i - p_c \Big\rVert^2, \quad
              I_c = \{i : y_i = 0, \arg\max_k f'_k(i) = c\}

    Q: the old classes c > 0 with a non-empty :math:`I_c`, over the whole batch, on the grid of the features.

    Args:
        features: (B, D, h, w) float, e.
        labels: (B, H, W) integers; only where they are 0 is anything matched.
        old_logits: (B, K, H', W') float of the old model, officially on the labels' grid. Its argmax is read on the
            grid of the features (nearest).
        prototypes: (C, D), C >= K, of :meth:`Prototypes.compute`. Get no gradient.
        mixed_channels: see the module.

    Returns:
        () float; 0 with gradient 0 where Q is empty.

    Raises:
        TypeError, ValueError: shapes do not fit, a value is not finite.

    Source: ``DistillationEncoderPrototypesLoss`` with ``loss_de_prototypes_sumafter``.
    """
    check.maps("features", features)
    check.maps("old_logits", old_logits)
    if len(old_logits) != len(features):
        raise ValueError(f"`old_logits` must have the batch of `features`, {len(features)}; got {len(old_logits)}.")
    _check_prototypes(prototypes, features, old_logits.shape[1] - 1)
    behind = _on_grid(labels, features) == 0
    guess = torch.where(behind, _on_grid(old_logits.argmax(1), features), 0)
    found = [c for c in guess.unique().tolist() if c]
    total = features.sum() * 0
    for c in found:
        own = _of_class(features, guess == c, mixed_channels, by_feature=True)
        total = total + F.mse_loss(own.mean(0), prototypes[c].detach().to(own)) / len(found)
    return total


def attraction(
    features: Tensor,
    labels: Tensor,
    prototypes: Tensor,
    *,
    ignore_index: int = 255,
    equal_classes: bool = False,
    mixed_channels: bool = False,
) -> Tensor:
    r"""Attraction: the features of a class gather around its prototype.

    .. math:: L = \sum_{j=1}^{n} \omega_j \frac{1}{|I_{c_j}| D} \sum_{i \in I_{c_j}} \lVert e_i - p_{c_j} \rVert^2,
              \quad \omega_j = n^{-(n - j + 1)}

    over the n classes of the batch by ascending id, background included. The weights are those of the released code,
    whose division by n stands inside the loop over classes: high ids weigh most.

    Args:
        features: (B, D, h, w) float, e.
        labels: (B, H, W) integers in [0, C) or ``ignore_index``, read on the grid of the features (nearest).
        prototypes: (C, D), p. Get no gradient.
        equal_classes: all weights :math:`1/n`.
        mixed_channels: see the module.

    Returns:
        () float; 0 with gradient 0 where all is ignored.

    Raises:
        TypeError, ValueError: shapes or labels do not fit, a value is not finite.

    Source: ``FeaturesClusteringSeparationLoss``, first value. It is used after step 0 only.
    """
    check.maps("features", features)
    grid = _on_grid(labels, features)
    found = _present(grid, ignore_index)
    _check_prototypes(prototypes, features, max(found, default=0))
    n, total = len(found), features.sum() * 0
    for j, c in enumerate(found):
        own = _of_class(features, grid == c, mixed_channels)
        spread = (own - prototypes[c].detach().to(own)).square().mean()
        total = total + spread / (n if equal_classes else float(n) ** (n - j))
    return total


def repulsion(features: Tensor, labels: Tensor, *, ignore_index: int = 255, mixed_channels: bool = False) -> Tensor:
    r"""Repulsion: the batch's class means keep their distance.

    .. math:: L = \frac{1}{|P|} \sum_{(c, k) \in P} \frac{1}{\lVert \bar e_c - \bar e_k \rVert}

    P: pairs of different classes of the batch, background included, whose means differ.

    Args:
        features: (B, D, h, w) float.
        labels: (B, H, W) integers or ``ignore_index``, read on the grid of the features (nearest).
        mixed_channels: see the module.

    Returns:
        () float > 0; 0 with gradient 0 where P is empty.

    Raises:
        TypeError, ValueError: shapes do not fit, a value is not finite.

    Source: ``FeaturesClusteringSeparationLoss``, second value, without the options ``lfc_orth_*`` and
    ``lfc_sep_clust_ison_proto``. It is used after step 0 only.
    """
    check.maps("features", features)
    grid = _on_grid(labels, features)
    nothing = features.sum() * 0
    means = [_of_class(features, grid == c, mixed_channels).mean(0) for c in _present(grid, ignore_index)]
    if len(means) < 2:
        return nothing
    distance = torch.nn.functional.pdist(torch.stack(means))
    distance = distance[distance > 0]
    return nothing if not len(distance) else distance.reciprocal().mean()


def sparsification(features: Tensor, labels: Tensor, *, ignore_index: int | None = 255) -> Tensor:
    r"""SDR's sparsity term: sum of exponentials over sum, of features divided by the largest of their class.

    .. math:: L = \frac{1}{|I|} \sum_{i \in I} \frac{\sum_d \exp \hat e_{d,i}}{\sum_d \hat e_{d,i} + \epsilon},
              \quad \hat e_{d,i} = \frac{e_{d,i}}{\max_{d', k: y_k = y_i} e_{d',k} + \epsilon}

    with maxima over the whole batch and :math:`\epsilon = 10^{-15}`: a pixel whose channels are all 0 costs
    :math:`10^{15} D`. Meant to leave few channels active, but :math:`\exp x \ge e x`, so the ratio is least, e, where
    all channels equal the largest, and its gradient lifts every channel below that.

    Args:
        features: (B, D, h, w) float, meant to be >= 0.
        labels: (B, H, W) integers, read on the grid of the features (nearest).
        ignore_index: label of pixels that do not count, not in :math:`|I|` either; None: all do.

    Returns:
        () float; 0 with gradient 0 where every counted pixel is background, all is ignored, or the normalised features
        do not sum to more than 0.

    Raises:
        TypeError, ValueError: shapes do not fit, a value is not finite.

    Source: ``FeaturesSparsificationLoss`` with ``max_maskedforclass``, ``exponential`` and ``ratio``.

    Differs from the official code: there label 255 is a class like any other, as here with ``ignore_index=None``. Its
    training labels hold none (dataset/voc.py maps 255 to 0 in training), so no result rests on it.
    """
    check.maps("features", features)
    grid = _on_grid(labels, features)
    found = grid.unique().tolist() if ignore_index is None else _present(grid, ignore_index)
    nothing = features.sum() * 0
    if not found or found == [0]:
        return nothing
    by_place = features.movedim(1, -1)  # (B, h, w, D)
    largest = torch.ones_like(by_place[..., :1])
    for c in found:
        own = (grid == c)[..., None]
        largest = torch.where(own, by_place[own[..., 0]].max() + EPSILON, largest)
    counted = torch.ones_like(grid, dtype=torch.bool) if ignore_index is None else grid != ignore_index
    scaled = (by_place / largest)[counted]
    if not bool(scaled.detach().sum() > 0):
        return nothing
    return (scaled.exp().sum(-1) / (scaled.sum(-1) + EPSILON)).mean()


def _on_grid(labels: Tensor, features: Tensor) -> Tensor:
    """(B, h, w) int64: labels at the features' places; ``F.interpolate``'s nearest, as in the official code."""
    check.coarse_labels_of(features, labels)
    return F.interpolate(labels[:, None].double(), features.shape[2:], mode="nearest")[:, 0].long()


def _present(grid: Tensor, ignore_index: int) -> list[int]:
    return [c for c in grid.unique().tolist() if c != ignore_index]


def _of_class(features: Tensor, mask: Tensor, mixed: bool, *, by_feature: bool = False) -> Tensor:
    """(n, D): the features at the n places of ``mask`` (B, h, w); ``mixed`` cuts memory into rows as officially."""
    if not mixed:
        return features.movedim(1, -1)[mask]
    channels = features.shape[1]
    run = features.masked_select(mask[:, None])
    return run.view(-1, channels) if by_feature else run.view(channels, -1).T


def _check_prototypes(prototypes: Tensor, features: Tensor, largest: int) -> None:
    if not isinstance(prototypes, Tensor) or prototypes.ndim != 2 or prototypes.shape[1] != features.shape[1]:
        got = tuple(prototypes.shape) if isinstance(prototypes, Tensor) else type(prototypes).__name__
        raise ValueError(f"`prototypes` must be (C, D) with D = {features.shape[1]}, as in `features`; got {got}.")
    if len(prototypes) <= largest:
        raise ValueError(
            f"`prototypes` must have a row for every class; class {largest} has none of the {len(prototypes)}. "
            "See Prototypes.grow, and are ignored pixels labelled `ignore_index`?"
        )
    check.finite("prototypes", prototypes)

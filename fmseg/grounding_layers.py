"""The grounding head's layers: mix-convolutions with spectral normalisation, and the decoder's layer.

Official code: github.com/Lipurple/Grounded-Diffusion (5680115), ldm/models/seg_module.py.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_EPSILON = 1e-4  # of normalisation, and of vectors' lengths in spectral normalisation
_MOMENTUM = 0.1


class SpectralConv(nn.Conv2d):
    r"""A 3x3 convolution whose kernel is divided by an estimate of its largest singular value.

    .. math:: v = \overline{u W}, \quad u' = \overline{v W^\top}, \quad \sigma = v W^\top u'^\top, \quad
              y = (W / \sigma) * x + b

    bars: length 1. One step of power iteration a call, from the buffer ``u`` (1, c); in training mode u' and sigma are
    kept. The gradient takes u' and v as constants.

    Source: ``SNConv2d`` and ``power_iteration``.
    """

    def __init__(self, width: int):
        super().__init__(width, width, 3, padding=1)
        self.register_buffer("u", torch.randn(1, width))
        self.register_buffer("sigma", torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.flatten(1)
        with torch.no_grad():
            v = F.normalize(self.u @ flat, eps=_EPSILON)
            u = F.normalize(v @ flat.T, eps=_EPSILON)
        sigma = (v @ flat.T @ u.T).squeeze()
        if self.training:
            with torch.no_grad():
                self.u.copy_(u)
                self.sigma.copy_(sigma)
        return F.conv2d(x, self.weight / sigma, self.bias, padding=1)


class MixConv(nn.Module):
    r"""Mixes features of two resolutions after they were brought to one: (B, c, h, w) -> (B, c, h, w).

    .. math:: r = \mathrm{ReLU}(N(x)), \quad M(x) = C_2(\mathrm{ReLU}(N(C_1(r)))) + r

    N subtracts mean and divides by deviation of each channel over the places of each picture, without weights of its
    own; C are :class:`SpectralConv`. Running means of the statistics (momentum 0.1) are kept in training mode; they are
    used with ``frozen_stats`` in evaluation mode only.

    Args:
        width: c.
        residual: what is added, "relu": r; or "input": x.
        frozen_stats: see above.

    Source: ``SegBlock``. Its residual is r because its ReLU overwrites the variable that is added later; trained heads
    rely on it. The paper calls N conditional batch norm; the code's is unconditional, and so is this one. Differs from
    the official code: for B > 1 pictures have statistics of their own, not of their batch.
    """

    def __init__(self, width: int, residual: str = "relu", frozen_stats: bool = False):
        super().__init__()
        self.residual, self.frozen_stats = residual, frozen_stats
        self.conv1, self.conv2 = SpectralConv(width), SpectralConv(width)
        for k in (1, 2):
            self.register_buffer(f"mean{k}", torch.zeros(width))
            self.register_buffer(f"var{k}", torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        r = self._normalised(x, self.mean1, self.var1).relu_()
        h = self._normalised(self.conv1(r), self.mean2, self.var2).relu_()
        return self.conv2(h).add_(r if self.residual == "relu" else x)

    def _normalised(self, x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        if self.frozen_stats and not self.training:
            return F.batch_norm(x, mean, var, eps=_EPSILON)
        running = (mean, var) if self.training else (None, None)
        return F.instance_norm(x, *running, use_input_stats=True, momentum=_MOMENTUM, eps=_EPSILON)


class DecoderLayer(nn.Module):
    """Queries (B, O, dim) look at each other, then at the picture (B, P, dim), then each at itself.

    Pre-norm, attention without biases, no dropout; the memory is not normalised. Source: ``TransformerDecoderLayer``.
    """

    def __init__(self, dim: int, heads: int, hidden: int):
        super().__init__()
        self.self_attention = nn.MultiheadAttention(dim, heads, bias=False, batch_first=True)
        self.cross_attention = nn.MultiheadAttention(dim, heads, bias=False, batch_first=True)
        self.inner, self.outer = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(3))

    def forward(self, queries: Tensor, memory: Tensor, absent: Tensor | None = None) -> Tensor:
        x = self.norms[0](queries)
        queries = queries + self.self_attention(x, x, x, key_padding_mask=absent, need_weights=False)[0]
        x = self.norms[1](queries)
        queries = queries + self.cross_attention(x, memory, memory, need_weights=False)[0]
        return queries + self.outer(self.inner(self.norms[2](queries)).relu())

"""Linear layers on features that begin with one-hot samples: a sum of weight columns in place of a product.

Symbols: S latent variables, K classes of each, F = S * K + D features, U units.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ops import compute_dtype, no_autocast

SMALLEST = 512  # S * K from which the sum is faster than the product
MOST_CLASSES = 256  # K up to which bfloat16 holds every class number


@dataclass
class Sampled:
    """Features (..., F) of sampled categorical latents, and ``columns`` (..., S), the ones' positions in S * K."""

    feat: Tensor
    columns: Tensor
    size: int  # S * K

    @property
    def shape(self) -> torch.Size:
        return self.feat.shape

    @property
    def device(self) -> torch.device:
        return self.feat.device

    def __getitem__(self, rows: slice) -> "Sampled":
        return Sampled(self.feat[rows], self.columns[rows], self.size)

    def detach(self) -> "Sampled":
        return Sampled(self.feat.detach(), self.columns, self.size)


Features = Tensor | Sampled  # (..., F)


def sampled(feat: Tensor, stoch: int, discrete: int) -> Features:
    """``feat`` (..., F) as `Sampled` where that is faster, else itself.

    Its first S * K numbers must be samples of `recurrent.Latent`: exactly one 1 for each variable, and else zeros.
    """
    size = stoch * discrete
    if feat.device.type not in ("cpu", "meta") or size < SMALLEST or discrete > MOST_CLASSES:
        return feat
    with torch.no_grad(), no_autocast(feat.device):
        numbers = torch.arange(discrete, device=feat.device, dtype=feat.dtype)
        classes = feat[..., :size].reshape(-1, discrete) @ numbers  # exact: a sum of one number and zeros
        columns = classes.long().view(*feat.shape[:-1], stoch)
        return Sampled(feat, columns + torch.arange(0, size, discrete, device=feat.device), size)


class SampledLinear(torch.autograd.Function):
    """`F.linear` whose forward pass adds weight columns for the one-hot part. The backward pass is `F.linear`'s."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, columns: Tensor, weight: Tensor, bias: Tensor, size: int) -> Tensor:
        """x (N, F), columns (N, S), weight (U, F), bias (U,) -> (N, U)."""
        ctx.save_for_backward(x, weight)
        added = F.embedding_bag(columns, weight[:, :size].t().contiguous(), mode="sum")
        return F.linear(x[:, size:], weight[:, size:], bias).add_(added)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (x, weight), needed = ctx.saved_tensors, ctx.needs_input_grad
        return (
            gradient @ weight if needed[0] else None,
            None,
            gradient.t() @ x if needed[2] else None,
            gradient.sum(0) if needed[3] else None,
            None,
        )


class FeatureLinear(nn.Linear):
    """A linear layer on features, (..., F) or `Sampled` -> (..., U)."""

    def forward(self, feat: Features) -> Tensor:
        if not isinstance(feat, Sampled):
            return F.linear(feat, self.weight, self.bias)
        x, columns = feat.feat.flatten(0, -2), feat.columns.flatten(0, -2)
        dtype = compute_dtype(feat.device)
        with no_autocast(feat.device):
            weight, bias = self.weight.to(dtype), self.bias.to(dtype)
            y = SampledLinear.apply(x.to(dtype), columns, weight, bias, feat.size)
        return y.unflatten(0, feat.shape[:-1])

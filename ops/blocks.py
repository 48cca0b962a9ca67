"""Products with weights that may be blocks on a matrix's diagonal, and their gradients.

Symbols: N rows, I inputs, O outputs, G blocks. A weight is (O, I), as that of nn.Linear, or blocks (G, I / G, O / G).
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def split(x: Tensor, blocks: int) -> Tensor:
    """(N, I) -> (G, N, I / G)."""
    return x.unflatten(-1, (blocks, -1)).transpose(0, 1)


def product(x: Tensor, weight: Tensor) -> Tensor:
    """x (N, I) times a weight -> (N, O)."""
    if weight.dim() == 2:
        return F.linear(x, weight)
    return torch.bmm(split(x, len(weight)), weight).transpose(0, 1).flatten(1)


def input_gradient(gradient: Tensor, weight: Tensor) -> Tensor:
    """The gradient of `product`'s x for that of its result, (N, O) -> (N, I)."""
    return product(gradient, weight.transpose(-2, -1))


def weight_gradient(gradient: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """The gradient of `product`'s weight for that of its result, (N, O), and its input, (N, I)."""
    if weight.dim() == 2:
        return gradient.t() @ x
    return torch.bmm(split(x, len(weight)).transpose(1, 2), split(gradient, len(weight)))

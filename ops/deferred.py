"""Products of a recurrent scan whose weights get their gradients by one product over all steps, not one at each step.

Symbols: N rows, I inputs, O outputs, G blocks.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ops import compute_dtype, no_autocast

Product = Callable[[Tensor, Tensor], Tensor]


def split(x: Tensor, blocks: int) -> Tensor:
    """(N, I) -> (G, N, I / G)."""
    return x.unflatten(-1, (blocks, -1)).transpose(0, 1)


def product(x: Tensor, weight: Tensor) -> Tensor:
    """x (N, I) with a weight (O, I) of nn.Linear, or with diagonal blocks (G, I / G, O / G) -> (N, O)."""
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


class Step(torch.autograd.Function):
    """`product` at one step. Its backward pass keeps what the weight's gradient needs in ``kept``.

    It depends on the result of `Weights`, whose backward pass so comes after that of every step.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, after: Tensor, weight: Tensor, kept: list) -> Tensor:
        ctx.save_for_backward(x, weight, after)
        ctx.kept = kept
        return product(x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, after = ctx.saved_tensors
        ctx.kept.append((gradient, x))
        return input_gradient(gradient, weight), torch.zeros_like(after), None, None


class Weights(torch.autograd.Function):
    """A zero that depends on weights. Its backward pass computes their gradients from what the steps kept."""

    @staticmethod
    def forward(ctx: Any, kept: Sequence[list], *weights: Tensor) -> Tensor:
        ctx.save_for_backward(*weights)
        ctx.kept = kept
        return weights[0].new_zeros(())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor | None, ...]:
        found: list[Tensor | None] = [None]
        for kept, weight in zip(ctx.kept, ctx.saved_tensors, strict=True):
            gradient = None
            if kept:
                gradient = weight_gradient(*map(torch.cat, zip(*kept, strict=True)), weight).to(weight.dtype)
            kept.clear()
            found.append(gradient)
        return tuple(found)


def products(*weights: Tensor) -> Product:
    """`product` for the steps of one scan and these weights, with one product for each weight's gradient on a CPU."""
    device = weights[0].device
    if device.type != "cpu" or not torch.is_grad_enabled() or not all(w.requires_grad for w in weights):
        return product
    dtype, kept = compute_dtype(device), [[] for _ in weights]
    after = Weights.apply(kept, *weights)
    casts = {id(w): (w.detach().to(dtype), k) for w, k in zip(weights, kept, strict=True)}

    def step(x: Tensor, weight: Tensor) -> Tensor:
        with no_autocast(device):
            return Step.apply(x.to(dtype), after, *casts[id(weight)])

    return step

"""RMS norm and the activation after it as one autograd function, for the hidden layers of DreamerV3.

Symbols: R rows, C channels.

    y = act(x_hat w),   x_hat = r (x + b),   r = 1 / sqrt(mean((x + b)^2) + eps)

With p = d w, where d is the gradient of x_hat w:   dx = r (p - x_hat mean(p x_hat)),   dw = sum over rows of d x_hat.
The bias b is that of the layer before: oneDNN's convolutions take longer with it. Its gradient is the sum of dx.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ops.recurrent import ACTIVATIONS, Activation

PART = 1 << 18  # numbers of the rows that are computed at once: they fit into a core's cache


def shifted(x: Tensor, bias: Tensor | None) -> Tensor:
    """x + bias in float32."""
    return x.float() if bias is None else x.float() + bias


class Normed(NamedTuple):
    """What the gradient of `norm_activation` needs: x_hat (R, C), r (R, 1), the activation's input or result (R, C)."""

    x_hat: Tensor
    scale: Tensor
    saved: Tensor

    @staticmethod
    def of(x: Tensor, scale: Tensor | None, weight: Tensor, eps: float, act: Activation) -> "Normed":
        """Of rows x (R, C) in float32; ``scale`` is r if it is known."""
        if scale is None:
            scale = torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
        x_hat = x * scale
        normed = x_hat * weight
        return Normed(x_hat, scale, act.function(normed) if act.by_result else normed)

    def gradients(self, gradient: Tensor, weight: Tensor, act: Activation) -> tuple[Tensor, Tensor]:
        """(dx, d x_hat), (R, C) each in float32, for the gradient of the result (R, C)."""
        d = act.gradient(gradient.float(), self.saved)
        product = d * self.x_hat
        mean = product @ (weight.unsqueeze(1) / len(weight))
        return d.mul_(weight).addcmul_(self.x_hat, mean, value=-1.0).mul_(self.scale), product


class NormActivation(torch.autograd.Function):
    """act(RMSNorm(x + bias)) of rows x (R, C), weight and bias (C,), the last may be None.

    Computed in float32; the result has the dtype of x.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, weight: Tensor, eps: float, act: str) -> Tensor:
        function = ACTIVATIONS[act].function
        result, scale = torch.empty_like(x), x.new_empty(len(x), 1, dtype=torch.float32)
        for part in parts(x):
            rows = shifted(x[part], bias)
            norm = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
            torch.rsqrt(norm.square_().div_(x.shape[1]).add_(eps), out=scale[part])
            result[part] = function((rows * scale[part]).mul_(weight))
        ctx.save_for_backward(x, bias, weight, scale)
        ctx.eps, ctx.act = eps, ACTIVATIONS[act]
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, bias, weight, scale = ctx.saved_tensors
        _, with_bias, with_weight, *_ = ctx.needs_input_grad  # those of frozen networks need none
        dx = torch.empty_like(x)
        dbias, dweight = (torch.zeros_like(weight) if needed else None for needed in (with_bias, with_weight))
        for part in parts(x):
            normed = Normed.of(shifted(x[part], bias), scale[part], weight, ctx.eps, ctx.act)
            change, product = normed.gradients(gradient[part], weight, ctx.act)
            dx[part] = change
            if dweight is not None:
                dweight += product.sum(0)
            if dbias is not None:
                dbias += change.sum(0)
        return dx, dbias, dweight, None, None


def parts(x: Tensor) -> list[slice]:
    """Slices of the rows of x (R, C), each of about `PART` numbers."""
    rows = max(1, PART // x.shape[1])
    return [slice(i, i + rows) for i in range(0, len(x), rows)]


def norm_activation(x: Tensor, bias: Tensor | None, weight: Tensor, eps: float, act: str) -> Tensor:
    """`NormActivation` over the last dimension of x (..., C). The plain operations where they are as fast.

    Those are a GPU, whose norm is one kernel, and passes without gradients, which exported programs contain.
    """
    if x.device.type == "cpu" and torch.is_grad_enabled():
        return NormActivation.apply(x.flatten(0, -2), bias, weight, eps, act).unflatten(0, x.shape[:-1])
    return ACTIVATIONS[act].function(F.rms_norm(shifted(x, bias), weight.shape, weight, eps)).to(x.dtype)

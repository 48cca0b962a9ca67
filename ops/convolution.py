"""Convolutions of stride 2 in the form that is fastest on a CPU; elsewhere torch's own."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ops import compute_dtype, no_autocast

aten = torch.ops.aten


def windows(x: Tensor, kernel: int, out: int) -> Tensor:
    """What each output of a stride-2 convolution sees: x (N, H, W, C) -> (N * out * out, kernel * kernel * C)."""
    views = x.unfold(1, kernel, 2).unfold(2, kernel, 2)  # (N, out, out, C, kernel, kernel)
    return views.permute(0, 1, 2, 4, 5, 3).reshape(x.shape[0] * out * out, -1)


class ProductConv(torch.autograd.Function):
    """A convolution of stride 2 as a product over `windows`: faster where the output is a few pixels."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """x (N, C, H, H), weight (O, C, k, k), bias (O,) -> (N * out * out, O)."""
        kernel, side = weight.shape[-1], x.shape[-1]
        out = (side - kernel) // 2 + 1
        columns, matrix = windows(x.permute(0, 2, 3, 1), kernel, out), weight.permute(0, 2, 3, 1).flatten(1)
        ctx.save_for_backward(columns, matrix)
        ctx.sizes = x.shape, kernel, out
        return torch.addmm(bias, columns, matrix.t())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        (columns, matrix), ((n, channels, height, width), kernel, out) = ctx.saved_tensors, ctx.sizes
        weight = (gradient.t() @ columns).view(-1, kernel, kernel, channels).permute(0, 3, 1, 2)
        x = None
        if ctx.needs_input_grad[0]:
            x = gradient.new_zeros(n, height, width, channels)
            parts = (gradient @ matrix).view(n, out, out, kernel, kernel, channels)
            for i in range(out):
                for j in range(out):
                    x[:, 2 * i : 2 * i + kernel, 2 * j : 2 * j + kernel] += parts[:, i, j]
            x = x.permute(0, 3, 1, 2)
        return x, weight, gradient.sum(0)


def subpixel_kernel(weight: Tensor) -> Tensor:
    """The kernel (4 O, C, q, q) of the convolution that gives all four pixels (i, j) of a transposed one of stride 2.

    weight (C, O, k, k) -> 4 O channels in the order (i, j, O), where q is k / 2, rounded up.
    """
    channels, out, kernel, _ = weight.shape
    weight = F.pad(weight, (0, kernel % 2, 0, kernel % 2))
    q = weight.shape[-1] // 2
    parts = weight.reshape(channels, out, q, 2, q, 2).flip(2, 4).permute(3, 5, 1, 0, 2, 4)
    return parts.reshape(4 * out, channels, q, q).contiguous(memory_format=torch.channels_last)


class SubpixelConvTranspose(torch.autograd.Function):
    """A transposed convolution of stride 2: forward as `subpixel_kernel`'s convolution."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, padding: int, size: int) -> Tensor:
        """x (N, C, H, H), weight (C, O, k, k), bias (O,) or None, an even padding -> (N, size, size, O)."""
        ctx.save_for_backward(x, weight)
        ctx.padding, ctx.biased, ctx.extra = padding, bias is not None, size - transposed_size(x, weight, padding)
        kernel, n, out = subpixel_kernel(weight), len(x), weight.shape[1]
        bias = None if bias is None else bias.repeat(4)
        y = F.conv2d(x, kernel, bias, padding=kernel.shape[-1] - 1 - padding // 2).permute(0, 2, 3, 1)
        side = y.shape[1]
        y = y.reshape(n, side, side, 2, 2, out).permute(0, 1, 3, 2, 4, 5).reshape(n, 2 * side, 2 * side, out)
        return y if size == 2 * side else y[:, :size, :size].contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        gradient, padding, extra = gradient.permute(0, 3, 1, 2), [ctx.padding] * 2, [ctx.extra] * 2
        arguments = [2, 2], padding, [1, 1], True, extra, 1, [True, True, False]
        dx, dweight, _ = aten.convolution_backward(gradient, x, weight, None, *arguments)
        return dx, dweight, gradient.sum((0, 2, 3)) if ctx.biased else None, None, None


def transposed_size(x: Tensor, weight: Tensor, padding: int) -> int:
    """The side of a transposed convolution's result, without output padding."""
    return 2 * (x.shape[-1] - 1) + weight.shape[-1] - 2 * padding


def conv2d(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A convolution of stride 2, (N, C, H, W) -> (N, O, out, out), on a CPU by the fastest of its forms."""
    out = (x.shape[-1] - weight.shape[-1]) // 2 + 1
    if x.device.type != "cpu" or out > 2:
        return F.conv2d(x, weight, bias, stride=2)
    dtype = compute_dtype(x.device)
    with no_autocast(x.device):
        rows = ProductConv.apply(x.to(dtype), weight.to(dtype), bias.to(dtype))
        return rows.view(x.shape[0], out, out, -1).permute(0, 3, 1, 2)


def conv_transpose2d(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A transposed convolution of stride 2, (N, C, H, H) -> (N, O, out, out), on a CPU by the fastest of its forms."""
    if x.device.type != "cpu":
        return F.conv_transpose2d(x, weight, bias, stride=2)
    if weight.shape[1] <= 4:
        return padded_conv_transpose2d(x, weight, bias, 0, transposed_size(x, weight, 0))
    dtype = compute_dtype(x.device)
    with no_autocast(x.device):
        x, weight, bias = x.to(dtype), weight.to(dtype), bias.to(dtype)
        # With its bias inside, oneDNN's takes up to five times as long.
        return F.conv_transpose2d(x, weight, stride=2) + bias.view(-1, 1, 1)


def padded_conv_transpose2d(x: Tensor, weight: Tensor, bias: Tensor | None, padding: int, size: int) -> Tensor:
    """As `conv_transpose2d`, with an even ``padding`` and the side ``size`` of the result."""
    if x.device.type != "cpu":
        extra = size - transposed_size(x, weight, padding)
        return F.conv_transpose2d(x, weight, bias, stride=2, padding=padding, output_padding=extra)
    dtype = compute_dtype(x.device)
    with no_autocast(x.device):
        bias = None if bias is None else bias.to(dtype)
        y = SubpixelConvTranspose.apply(x.to(dtype), weight.to(dtype), bias, padding, size)
        return y.permute(0, 3, 1, 2)


class Conv2d(nn.Conv2d):
    """A convolution of stride 2, in the form that is fastest on the device."""

    def forward(self, x: Tensor) -> Tensor:
        return conv2d(x, self.weight, self.bias)


class ConvTranspose2d(nn.ConvTranspose2d):
    """A transposed convolution of stride 2, in the form that is fastest on the device."""

    def forward(self, x: Tensor) -> Tensor:
        return conv_transpose2d(x, self.weight, self.bias)

"""Layers of DreamerV3: RMS norm, block-diagonal linear layers, initial weights ("Networks")."""

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks import Float32Linear
from ops.blocks import product
from ops.ensemble import EnsembleLinear
from ops.norm import norm_activation

EPSILON = 1e-4  # of the norms


class NormActivation(nn.RMSNorm):
    """act(y) with y = w x / sqrt(mean(x^2) + eps) over the last dimension, in float32 also under autocast."""

    def __init__(self, size: int, act: str):
        super().__init__(size, eps=EPSILON)
        self.act = act

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """(..., C) -> (..., C); ``bias`` (C,) is added first."""
        return norm_activation(x, bias, self.weight, self.eps, self.act)


class EnsembleNorm(nn.RMSNorm):
    """RMS norm with the weights of each of K members: of all (K, N, U), or of one ``member`` (..., U)."""

    def __init__(self, members: int, size: int):
        super().__init__(size, eps=EPSILON)
        self.weight = nn.Parameter(torch.ones(members, size))

    def forward(self, x: Tensor, member: Tensor | None = None) -> Tensor:
        y = F.rms_norm(x.float(), self.normalized_shape, None, self.eps)
        weight = self.weight.unsqueeze(1) if member is None else self.weight.index_select(0, member.reshape(1))[0]
        return (y * weight).to(x.dtype)


class BlockLinear(nn.Module):
    """A linear layer whose matrix is block-diagonal: output block g depends on input block g alone.

    The weight (G, I / G, O / G) is ``torch.block_diag`` of the transposed blocks of nn.Linear's.
    """

    def __init__(self, inputs: int, outputs: int, blocks: int, bias: bool = True):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(blocks, inputs // blocks, outputs // blocks))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        bound = math.sqrt(blocks / inputs)
        nn.init.uniform_(self.weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) -> (..., O)."""
        y = product(x.flatten(0, -2), self.weight).unflatten(0, x.shape[:-1])
        return y if self.bias is None else y + self.bias.to(y.dtype)


class ZeroLinear(nn.Linear):
    """The last layer of a two-hot head. It is zero at first: so are the predictions ("Robust predictions")."""

    initial_scale: ClassVar[float] = 0.0

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)


class SmallLinear(Float32Linear):
    """The last layer of the actor, whose first policy is nearly the same in all states."""

    initial_scale: ClassVar[float] = 0.01

    def reset_parameters(self) -> None:
        super().reset_parameters()
        with torch.no_grad():
            self.weight.mul_(self.initial_scale)
        nn.init.zeros_(self.bias)


def normed(inputs: int, outputs: int, act: str) -> nn.Sequential:
    """A linear layer, its RMS norm and the activation."""
    return nn.Sequential(nn.Linear(inputs, outputs), NormActivation(outputs, act))


def fan_in(layer: nn.Module) -> int:
    """The number of a layer's inputs; of a block-diagonal one those of all blocks, as in DreamerV3's code."""
    if hasattr(layer, "fan_in"):
        return layer.fan_in
    shape = layer.weight.shape
    if isinstance(layer, BlockLinear):
        return shape[0] * shape[1]
    if isinstance(layer, EnsembleLinear):
        return shape[2]
    return math.prod(shape[2:]) * shape[0 if isinstance(layer, nn.ConvTranspose2d) else 1]


def initialise(module: nn.Module) -> None:
    """DreamerV3's initial weights: normal, truncated at two deviations, of variance 1 / fan-in; biases are zero.

    Scaled by ``initial_scale`` of a layer that has it.
    """
    layers = nn.Linear, nn.Conv2d, nn.ConvTranspose2d, BlockLinear, EnsembleLinear
    for layer in module.modules():
        if isinstance(layer, layers):
            # 0.8796 is the standard deviation of a unit normal that is truncated at two.
            std = math.sqrt(1 / fan_in(layer)) / 0.87962566
            nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
            with torch.no_grad():
                layer.weight.mul_(getattr(layer, "initial_scale", 1.0))
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

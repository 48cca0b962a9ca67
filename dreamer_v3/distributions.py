"""Distributions of DreamerV3: two-hot over symexp bins, and the bounded normal of the actor."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

BINS = 255
LIMIT = 20.0  # the outermost bins are at symexp(-20) and symexp(20), about 4.85e8


def symlog(x: Tensor) -> Tensor:
    """sign(x) ln(|x| + 1), elementwise ("Robust predictions")."""
    return x.sign() * x.abs().log1p()


def symexp(x: Tensor) -> Tensor:
    """sign(x) (exp(|x|) - 1), the inverse of `symlog`, elementwise."""
    return x.sign() * x.abs().expm1()


def symexp_bins() -> Tensor:
    """The bins (255,), symexp of equal steps from -20 to 20. The lower half mirrors the upper one exactly."""
    upper = symexp(torch.linspace(0, LIMIT, BINS // 2 + 1))
    return torch.cat([-upper[1:].flip(0), upper])


class TwoHot(NamedTuple):
    """A categorical distribution over ``bins`` (K,), with logits (..., K) ("Robust predictions")."""

    logits: Tensor
    bins: Tensor

    @property
    def mean(self) -> Tensor:
        """The expected value, (...).

        Bins of the same size and opposite sign are added first: with equal probabilities the sum is exactly zero.
        """
        terms = self.logits.softmax(-1) * self.bins
        half = self.bins.shape[0] // 2
        return terms[..., half] + (terms[..., :half].flip(-1) + terms[..., half + 1 :]).sum(-1)

    def nll(self, value: Tensor) -> Tensor:
        """The cross-entropy to the two-hot code of ``value`` (...), which is a constant: (...).

        The code has the weights of linear interpolation on the two bins next to the value; beyond the outermost bins
        it is one-hot.
        """
        value = value.detach().float().clamp(self.bins[0], self.bins[-1])
        above = torch.searchsorted(self.bins, value.contiguous(), right=True).clamp(1, len(self.bins) - 1)
        low, high = self.bins[above - 1], self.bins[above]
        share = (value - low) / (high - low)
        logs = self.logits.log_softmax(-1)
        at_low, at_high = (logs.gather(-1, index.unsqueeze(-1)).squeeze(-1) for index in (above - 1, above))
        return -((1 - share) * at_low + share * at_high)


class BoundedNormal:
    """The actor's distribution: a normal one with mean in [-1, 1] and a bounded standard deviation, (..., A) each.

    Samples can lie outside of [-1, 1]. Their log-probability is that of the normal distribution; what is executed is
    `executed`.
    """

    def __init__(self, mean: Tensor, std: Tensor):
        self.loc, self.scale = mean, std

    @property
    def mode(self) -> Tensor:
        return self.loc

    def icdf(self, value: Tensor) -> Tensor:
        """The sample for uniform random numbers (..., A)."""
        return self.loc + self.scale * torch.special.ndtri(value.clamp(1e-6, 1 - 1e-6))

    @staticmethod
    def executed(action: Tensor) -> Tensor:
        """The action in [-1, 1] that a sample stands for.

        Outside, the gradient is that of the sample divided by its size, as in DreamerV3's code; a clamp has none.
        """
        return action / action.detach().abs().clamp(min=1)

    def log_prob(self, value: Tensor) -> Tensor:
        z = (value - self.loc) / self.scale
        return -0.5 * z.square() - self.scale.log() - 0.5 * math.log(2 * math.pi)

    def entropy(self) -> Tensor:
        return self.scale.log() + 0.5 * math.log(2 * math.pi * math.e)

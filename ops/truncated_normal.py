"""The actor's distribution."""

import math

import torch
from torch import Tensor
from torch.distributions import Distribution


class TruncatedNormal(Distribution):
    """A normal distribution truncated to [-1, 1], by its mean and std before truncation; one event per element.

    torch has none. A sample is the inverse distribution function of a uniform number, so gradients reach mean and std.
    """

    arg_constraints = {}  # noqa: RUF012
    has_rsample = True
    edge = 1e-6

    def __init__(self, mean: Tensor, std: Tensor):
        super().__init__(mean.shape, validate_args=False)
        self.loc, self.scale = mean, std
        self.low, self.high = (-1 - mean) / std, (1 - mean) / std
        self.cdf_low = torch.special.ndtr(self.low)
        self.mass = torch.special.ndtr(self.high) - self.cdf_low

    @property
    def mode(self) -> Tensor:
        return self.loc.clamp(-1, 1)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        return self.icdf(torch.rand(self._extended_shape(sample_shape), device=self.loc.device))

    def icdf(self, value: Tensor) -> Tensor:
        cdf = (self.cdf_low + value * self.mass).clamp(self.edge, 1 - self.edge)
        return (self.loc + self.scale * torch.special.ndtri(cdf)).clamp(-1 + self.edge, 1 - self.edge)

    @staticmethod
    def executed(action: Tensor) -> Tensor:
        """The action that a sample stands for: itself. `BoundedNormal` of DreamerV3 clips it."""
        return action

    def log_prob(self, value: Tensor) -> Tensor:
        z = (value - self.loc) / self.scale
        return -0.5 * z**2 - 0.5 * math.log(2 * math.pi) - (self.scale * self.mass).log()

    def entropy(self) -> Tensor:
        def density(x: Tensor) -> Tensor:
            return torch.exp(-0.5 * x**2) / math.sqrt(2 * math.pi)

        edges = (self.low * density(self.low) - self.high * density(self.high)) / (2 * self.mass)
        return 0.5 * math.log(2 * math.pi * math.e) + (self.scale * self.mass).log() + edges

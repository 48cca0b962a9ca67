"""Heads of DreamerV3: two-hot reward and critic, and the actor with a bounded normal."""

import torch
from torch import Tensor, nn

from dreamer_v3.distributions import BoundedNormal, TwoHot, symexp_bins
from dreamer_v3.layers import SmallLinear, ZeroLinear
from networks import Norm, mlp
from ops.one_hot import Features


class TwoHotHead(nn.Module):
    """Features to a reward or a value, as a two-hot distribution over symexp bins ("Robust predictions").

    Its last layer is zero at first. `forward` is the expected value, which is what the equations of CoWorld read.
    """

    def __init__(self, feat: int, *, layers: int, units: int, act: str, norm: Norm = None):
        super().__init__()
        bins = symexp_bins()
        self.layers = mlp(feat, len(bins), layers, units, act, last=ZeroLinear, norm=norm)
        self.register_buffer("bins", bins, persistent=False)

    def prediction(self, feat: Features) -> TwoHot:
        """(..., F) -> a distribution over (...)."""
        return TwoHot(self.layers(feat).float(), self.bins)

    def forward(self, feat: Features) -> Tensor:
        """(..., F) -> the expected values (...)."""
        return self.prediction(feat).mean


class BoundedActor(nn.Module):
    """Features to a `BoundedNormal` over the agent's own A actions, before any padding ("Actor learning").

    The mean is a tanh; the standard deviation is between ``min_std`` and 1.
    """

    def __init__(
        self, feat: int, action: int, *, layers: int, units: int, act: str, min_std: float, norm: Norm = None,
        outputs: int | None = None,
    ):  # fmt: skip
        """``outputs`` is the number of actions that the last layer has outputs for; the first A are used."""
        super().__init__()
        self.outputs = outputs or action
        self.layers = mlp(feat, 2 * self.outputs, layers, units, act, last=SmallLinear, norm=norm)
        self.action_dim, self.min_std = action, min_std

    def forward(self, feat: Features) -> BoundedNormal:
        """(..., F) -> a distribution over (..., A)."""
        mean, std = (x[..., : self.action_dim] for x in self.layers(feat).chunk(2, -1))
        return BoundedNormal(torch.tanh(mean), (1 - self.min_std) * torch.sigmoid(std + 2) + self.min_std)

"""Linear layers of the members of an ensemble, as one batched product."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class EnsembleLinear(nn.Module):
    """K linear layers as one batched product, each initialised like nn.Linear."""

    def __init__(self, members: int, inputs: int, outputs: int):
        super().__init__()
        layers = [nn.Linear(inputs, outputs) for _ in range(members)]
        self.weight = nn.Parameter(torch.stack([layer.weight.detach() for layer in layers]))  # (K, O, I)
        self.bias = nn.Parameter(torch.stack([layer.bias.detach() for layer in layers]))  # (K, O)

    def forward(self, x: Tensor, member: Tensor | None = None) -> Tensor:
        """All members: x (K, N, I) -> (K, N, O). One ``member``, a scalar index: x (..., I) -> (..., O)."""
        if member is None:
            return torch.baddbmm(self.bias.unsqueeze(1), x, self.weight.transpose(1, 2))
        return F.linear(x, *self.member(member))

    def member(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Weight (O, I) and bias (O,) of one member. index_select does not read the index back from the device."""
        return tuple(p.index_select(0, index.reshape(1)).squeeze(0) for p in (self.weight, self.bias))

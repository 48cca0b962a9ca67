"""Autograd functions with backward passes of our own, where torch's cost much of an update's time on a CPU.

`recurrent` has the scan of an RSSM, `block_scan` and `blocks` that of DreamerV3's, `convolution` the convolutions of
stride 2, `norm` DreamerV3's norms, `one_hot` the first layer of heads. All compute in `compute_dtype`, with autocast
off. tests/test_ops.py, tests/test_one_hot.py and tests/test_dreamer_v3.py compare each with plain torch operations.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def compute_dtype(device: torch.device) -> torch.dtype:
    """The dtype of matrix products here: autocast's if it is on, else float32."""
    kind = device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return torch.float32


def no_autocast(device: torch.device) -> AbstractContextManager:
    """Switches autocast off, if it is on; else does nothing, because an exported program would contain the switch."""
    kind = device.type
    on = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.autocast(kind, enabled=False) if on else nullcontext()


class Float32Linear(nn.Linear):
    """A linear layer that computes in float32 under autocast.

    bfloat16 has 8 significant bits: near 1,480, a usual value, its numbers are 8 apart, more than a reward.
    """

    def forward(self, x: Tensor) -> Tensor:
        with no_autocast(x.device):
            return F.linear(x.float(), self.weight, self.bias)

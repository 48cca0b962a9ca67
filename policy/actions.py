"""Between the model's actions in [-1, 1] and those in the user's units."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from replay.episode import ACTION_ROUNDING


class ActionMap(nn.Module):
    """A linear map for each of A dimensions: the model's -1 is ``low``, its 1 is ``high``.

    Args:
        bounds: {"low": A numbers, "high": A numbers}; None: actions stay in [-1, 1].
    """

    def __init__(self, bounds: dict[str, Any] | None, size: int):
        super().__init__()
        bounds = bounds or {"low": [-1.0] * size, "high": [1.0] * size}
        low, high = (torch.as_tensor(bounds[key], dtype=torch.float64) for key in ("low", "high"))
        for name, tensor in {"low": low, "high": high, "scale": (high - low) / 2, "center": (high + low) / 2}.items():
            self.register_buffer(name, tensor.float())

    def forward(self, action: Tensor) -> Tensor:
        """The model's actions (..., A) in the user's units. Rounding never leaves the bounds."""
        return torch.clamp(self.scale * action + self.center, self.low, self.high)

    def inverse(self, action: np.ndarray) -> Tensor:
        """Actions (..., A) in the user's units as the model's. A dimension with low = high is 0.

        Raises ValueError if one is not finite, or outside the bounds.
        """
        action = torch.as_tensor(np.asarray(action, np.float32), device=self.low.device)
        scale = torch.where(self.scale > 0, self.scale, 1.0)
        model = (action - self.center) / scale
        wrong = ~(model.abs() <= 1 + ACTION_ROUNDING)  # true for NaN too
        if wrong.any():
            index = tuple(int(i) for i in wrong.nonzero()[0])
            low, high = (float(bound[index[-1]]) for bound in (self.low, self.high))
            raise ValueError(f"action {float(action[index]):.4g} at {index} is outside [{low:.4g}, {high:.4g}]")
        return model.clamp(-1, 1) * (self.scale > 0)

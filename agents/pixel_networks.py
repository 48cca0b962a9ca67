"""Networks and image augmentation of the model-free agents (DrQ-v2, arXiv 2107.09645; CURL, arXiv 2004.04136).

Symbols: N observations, K frames of an observation, C their channels, E encoder outputs, F features, A actions.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from networks import Float32Linear

CHANNELS = 32  # of every convolution
SMALLEST = 15  # pixels of the encoder's smallest images


def gather_window(frames: Tensor, top: Tensor, left: Tensor, size: int) -> Tensor:
    """A window of each observation, with the nearest pixel where it extends beyond the image.

    frames (N, K, H, W, 3), top and left (N,), which may be negative -> (N, C, size, size), of the same type. All frames
    of an observation have the same window.
    """
    height, width = frames.shape[2:4]
    span = torch.arange(size, device=frames.device)
    rows = (top[:, None] + span).clamp(0, height - 1)[:, :, None]  # (N, size, 1)
    columns = (left[:, None] + span).clamp(0, width - 1)[:, None]  # (N, 1, size)
    n = torch.arange(len(frames), device=frames.device)[:, None, None]
    window = frames[n, :, rows, columns]  # (N, size, size, K, 3)
    return window.flatten(3).permute(0, 3, 1, 2)


def whole_image(frames: Tensor) -> Tensor:
    """(N, K, H, W, 3) -> (N, C, H, W)."""
    return frames.permute(0, 2, 3, 1, 4).flatten(3).permute(0, 3, 1, 2)


def random_shift(frames: Tensor, pad: int) -> Tensor:
    """DrQ's augmentation: shift each observation by up to ``pad`` pixels. (N, K, H, W, 3) -> (N, C, H, W)."""
    top, left = torch.randint(-pad, pad + 1, (2, len(frames)), device=frames.device)
    return gather_window(frames, top, left, frames.shape[2])


def random_crop(frames: Tensor, size: int) -> Tensor:
    """CURL's augmentation: a window of ``size`` pixels inside the image. (N, K, H, W, 3) -> (N, C, size, size)."""
    top, left = torch.randint(0, frames.shape[2] - size + 1, (2, len(frames)), device=frames.device)
    return gather_window(frames, top, left, size)


def center_crop(frames: Tensor, size: int) -> Tensor:
    """The window of ``size`` pixels in the middle. (N, K, H, W, 3) -> (N, C, size, size)."""
    first = (frames.shape[2] - size) // 2
    return whole_image(frames[:, :, first : first + size, first : first + size])


def init_orthogonal(module: nn.Module) -> None:
    """Orthogonal weights and zero biases, as in DrQ-v2: convolutions with the gain of a ReLU."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.orthogonal_(layer.weight, nn.init.calculate_gain("relu") if isinstance(layer, nn.Conv2d) else 1.0)
            nn.init.zeros_(layer.bias)


def relu_mlp(inputs: int, units: int, outputs: int) -> nn.Sequential:
    """Two hidden layers, and outputs in float32."""
    hidden = [m for a, b in pairwise([inputs, units, units]) for m in (nn.Linear(a, b), nn.ReLU(inplace=True))]
    return nn.Sequential(*hidden, Float32Linear(units, outputs))


class StackEncoder(nn.Module):
    """Four 3x3 convolutions, the first with stride 2: uint8 (N, C, S, S) -> (N, E). S is `SMALLEST` or more."""

    def __init__(self, channels: int, size: int):
        """``channels``: C, of all frames of an observation."""
        super().__init__()
        layers = []
        for i, (a, b) in enumerate(pairwise([channels, *[CHANNELS] * 4])):
            layers += [nn.Conv2d(a, b, 3, stride=1 if i else 2), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers)
        init_orthogonal(self)
        self.layers.to(memory_format=torch.channels_last)  # the layout of the windows
        self.outputs = CHANNELS * ((size - 3) // 2 + 1 - 6) ** 2

    def forward(self, image: Tensor) -> Tensor:
        return self.layers(image / 255.0 - 0.5).flatten(1)


class Trunk(nn.Module):
    """Encoder outputs (N, E) to features (N, F): a linear layer, a layer norm and, if ``tanh``, a tanh."""

    def __init__(self, inputs: int, features: int, tanh: bool = True):
        super().__init__()
        self.linear, self.norm, self.tanh = nn.Linear(inputs, features), nn.LayerNorm(features), tanh

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.linear(x).float())
        return torch.tanh(x) if self.tanh else x


class StackActor(nn.Module):
    """Encoder outputs (N, E) to ``outputs`` numbers (N, O), through a trunk of its own."""

    def __init__(self, inputs: int, features: int, units: int, outputs: int, tanh: bool = True):
        super().__init__()
        self.trunk, self.policy = Trunk(inputs, features, tanh), relu_mlp(features, units, outputs)
        init_orthogonal(self)

    def forward(self, encoded: Tensor) -> Tensor:
        return self.policy(self.trunk(encoded))


class TwinCritic(nn.Module):
    """Two Q-functions on the features of one trunk."""

    def __init__(self, inputs: int, features: int, units: int, actions: int, tanh: bool = True):
        super().__init__()
        self.trunk = Trunk(inputs, features, tanh)
        self.q1, self.q2 = (relu_mlp(features + actions, units, 1) for _ in range(2))
        init_orthogonal(self)

    def forward(self, encoded: Tensor, action: Tensor) -> Tensor:
        """encoded (N, E), action (N, A) -> both values (2, N)."""
        return self.values(self.trunk(encoded), action)

    def values(self, feat: Tensor, action: Tensor) -> Tensor:
        """feat (..., F), action (..., A), whose other dimensions are broadcast -> (2, ...)."""
        shape = torch.broadcast_shapes(feat.shape[:-1], action.shape[:-1])
        x = torch.cat([feat.expand(*shape, -1), action.expand(*shape, -1)], -1)
        return torch.stack([self.q1(x), self.q2(x)]).squeeze(-1)


def move_towards(slow: nn.Module, module: nn.Module, tau: float) -> None:
    """slow <- (1 - tau) slow + tau module, for every weight."""
    get_ema_multi_avg_fn(1 - tau)(list(slow.parameters()), list(module.parameters()), None)

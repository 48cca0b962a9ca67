"""Image encoder and decoder of DreamerV3 ("Networks").

Convolutions with kernel 5 and stride 2 halve the side until it is below 8 pixels: 64 pixels take four, to 4. Each is
followed by an RMS norm over channels and the activation. Their widths are 2, 3, 4 and again 4 times ``depth``.
"""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamer_v3.layers import BlockLinear, NormActivation, normed
from networks import scale_image
from ops.convolution import padded_conv_transpose2d
from tools import BadInput

KERNEL = 5
WIDTHS = 2, 3, 4  # times depth; the last one again for further layers


def image_sides(size: int) -> list[int]:
    """The sides of the feature maps, from the image's on: 64, 32, 16, 8, 4."""
    sides = [size]
    while sides[-1] >= 8:
        sides.append((sides[-1] + 1) // 2)
    return sides


def widths(count: int, depth: int) -> list[int]:
    """Channels after each of ``count`` convolutions of the encoder."""
    return [depth * WIDTHS[min(i, len(WIDTHS) - 1)] for i in range(count)]


class ChannelNorm(NormActivation):
    """`NormActivation` over the channels of an image (N, C, H, W)."""

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1), bias).permute(0, 3, 1, 2)


class NormedConv(nn.Module):
    """A convolution of stride 2, whose bias is added by the norm after it, and the activation."""

    def __init__(self, inputs: int, outputs: int, act: str):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, KERNEL, stride=2, padding=KERNEL // 2)
        self.norm = ChannelNorm(outputs, act)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(F.conv2d(x, self.conv.weight, stride=2, padding=KERNEL // 2), self.conv.bias)


class Upsampling(nn.Module):
    """A transposed convolution of stride 2 to images of ``side`` pixels; with ``act`` a norm and an activation."""

    def __init__(self, inputs: int, outputs: int, side: int, act: str | None):
        super().__init__()
        self.conv = nn.ConvTranspose2d(inputs, outputs, KERNEL, stride=2, padding=KERNEL // 2)
        self.norm, self.side = ChannelNorm(outputs, act) if act else None, side

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.conv.weight, self.conv.bias
        if self.norm is None:
            return padded_conv_transpose2d(x, weight, bias, KERNEL // 2, self.side)
        return self.norm(padded_conv_transpose2d(x, weight, None, KERNEL // 2, self.side), bias)


class ImageEncoder(nn.Module):
    """Images to embeddings."""

    def __init__(self, size: int, depth: int, act: str, channels: int = 3):
        super().__init__()
        sides = image_sides(size)
        outputs = widths(len(sides) - 1, depth)
        layers = [NormedConv(a, b, act) for a, b in pairwise([channels, *outputs])]
        self.layers = nn.Sequential(*layers).to(memory_format=torch.channels_last)
        self.embed = outputs[-1] * sides[-1] ** 2

    def forward(self, image: Tensor) -> Tensor:
        """(B, T, H, W, C) uint8, 3 channels for each camera -> (B, T, E)."""
        x = scale_image(image).flatten(0, 1).permute(0, 3, 1, 2)  # (B * T, C, H, W)
        return self.layers(x).reshape(*image.shape[:2], -1)


class ImageDecoder(nn.Module):
    """Features to the mean of a unit Gaussian over the image, a sigmoid.

    The first feature map is the sum of a block-diagonal layer of the recurrent state and two layers of the latent.
    """

    def __init__(
        self, feat: int, size: int, depth: int, act: str, channels: int = 3, *, deter: int, units: int, blocks: int
    ):
        super().__init__()
        sides, stoch = image_sides(size)[::-1], feat - deter
        outputs = [channels, *widths(len(sides) - 1, depth)][::-1]
        self.stoch_size, self.blocks = stoch, blocks
        self.shape = outputs[0], sides[0], sides[0]
        if outputs[0] % blocks:
            raise BadInput(
                f"cnn_depth {depth}: at {size} pixels the decoder begins with {outputs[0]} channels, which are not a "
                f"multiple of gru_blocks, {blocks}; give --cnn_depth {blocks}, or another multiple"
            )
        first = math.prod(self.shape)
        self.from_deter = BlockLinear(deter, first, blocks)
        self.from_stoch = nn.Sequential(normed(stoch, 2 * units, act), nn.Linear(2 * units, first))
        self.first = ChannelNorm(outputs[0], act)
        acts = [act] * (len(outputs) - 2) + [None]
        layers = [Upsampling(a, b, s, act) for (a, b), s, act in zip(pairwise(outputs), sides[1:], acts, strict=True)]
        self.layers = nn.Sequential(*layers).to(memory_format=torch.channels_last)

    def forward(self, feat: Tensor) -> Tensor:
        """(B, T, F) -> (B, T, H, W, C), in the scale of `scale_image`."""
        stoch, deter = feat.flatten(0, 1).split([self.stoch_size, feat.shape[-1] - self.stoch_size], -1)
        x = (self.from_deter(deter) + self.from_stoch(stoch)).unflatten(-1, self.shape)
        x = self.layers(self.first(x.contiguous(memory_format=torch.channels_last)))
        return (torch.sigmoid(x.float()) - 0.5).permute(0, 2, 3, 1).unflatten(0, feat.shape[:2])

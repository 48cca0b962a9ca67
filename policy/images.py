"""Pillow's BOX filter, which `tools.resize_images` uses, in torch's operations and with equal results.

Pillow resizes one direction, rounds to bytes, resizes the other, and rounds again. Its weights are whole numbers, in
units of 2^-22. Their products and sums are below 2^31, so float64, which is faster than whole numbers, is exact.
"""

import math

import numpy as np
import torch
from torch import Tensor, nn

from tools import resize_images

PRECISION = 22  # bits of a weight behind the point


def box_weights(old: int, new: int) -> Tensor:
    """Weights (new, old) float64 of ``old`` pixels in each of ``new``, whole numbers in units of 2^-PRECISION.

    A pixel of the result averages the pixels whose centres lie in the area that it covers.
    """
    scale = old / new
    width = max(scale, 1.0)  # an enlarged image takes the nearest pixel
    shrink = 1.0 / width
    weights = torch.zeros(new, old, dtype=torch.float64)
    for row in range(new):
        center = (row + 0.5) * scale
        first, last = max(int(center - width / 2 + 0.5), 0), min(int(center + width / 2 + 0.5), old)
        inside = [x for x in range(first, last) if -0.5 < (x - center + 0.5) * shrink <= 0.5]
        weights[row, inside] = math.floor(0.5 + (1.0 / len(inside)) * 2**PRECISION)
    return weights


class BoxResize(nn.Module):
    """Images (N, H, W, C) uint8 as (N, size, size, 3) uint8. Grey ones, C = 1, are repeated to 3 channels.

    Which direction Pillow resizes first depends on the sizes and on its version, so the constructor tries both.
    Raises ValueError if neither gives Pillow's result.
    """

    def __init__(self, height: int, width: int, size: int):
        super().__init__()
        self.register_buffer("rows", None if height == size else box_weights(height, size))
        self.register_buffer("columns", None if width == size else box_weights(width, size))
        self.rows_first = False
        probe = np.random.default_rng(0).integers(0, 256, (4, height, width, 3), np.uint8)
        expected, probe = torch.from_numpy(resize_images(probe, size)), torch.from_numpy(probe)
        if not torch.equal(self(probe), expected):
            self.rows_first = True
            if not torch.equal(self(probe), expected):
                raise ValueError(f"images of {height}x{width} are not resized to {size}x{size} as by Pillow")

    def forward(self, image: Tensor) -> Tensor:
        if self.rows is not None or self.columns is not None:
            x = image.permute(0, 3, 1, 2)  # (N, C, H, W)
            passes = [self._resize_columns, self._resize_rows]
            for resize in reversed(passes) if self.rows_first else passes:
                x = resize(x)
            image = x.permute(0, 2, 3, 1)
        return image.expand(-1, -1, -1, 3)

    def _resize_columns(self, x: Tensor) -> Tensor:
        return x if self.columns is None else self._rounded(x.double() @ self.columns.t())

    def _resize_rows(self, x: Tensor) -> Tensor:
        return x if self.rows is None else self._rounded(self.rows @ x.double())

    @staticmethod
    def _rounded(x: Tensor) -> Tensor:
        return torch.floor((x + 2 ** (PRECISION - 1)) * 2.0**-PRECISION).clamp(0, 255).to(torch.uint8)

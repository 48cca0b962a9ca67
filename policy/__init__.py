"""A trained policy outside training: in Python (`load_policy`), and as a program for torch.export (`program`)."""

from policy.pixel_policy import PixelPolicy, load_policy

__all__ = ["PixelPolicy", "load_policy"]

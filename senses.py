"""What an agent observes: images of one camera or several, low-dimensional states, or both; their networks.

Symbols: B sequences, T steps, H x W pixels, C channels (3 for each camera), S numbers of the states, E embedding,
F features.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from config import Config
from dreamer_v3 import parts
from dreamer_v3.distributions import symlog
from networks import StateEncoder, mlp
from tools import CAMERA


@dataclass(frozen=True)
class Senses:
    """What an agent observes.

    Attributes:
        channels: of its image, `CAMERA` for each camera; 0 if it has no image.
        state: names and sizes of its low-dimensional states, in the order in which they are concatenated.
    """

    channels: int = CAMERA
    state: dict[str, int] = field(default_factory=dict)

    @property
    def keys(self) -> tuple[str, ...]:
        """The names of its observations in a batch."""
        return ("image",) * bool(self.channels) + tuple(self.state)

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts of its embedding and of its reconstruction: ``image``, ``state``, or both in this order."""
        return ("image",) * bool(self.channels) + ("state",) * bool(self.state)

    @property
    def width(self) -> int:
        """S, the numbers of all states."""
        return sum(self.state.values())

    def observed(self, batch: Mapping[str, Tensor]) -> list[Tensor]:
        """The observations of a batch, one tensor for each of `parts`: image (..., H, W, C) uint8, states (..., S)."""
        image = [batch["image"]] if self.channels else []
        return image + ([torch.cat([batch[key] for key in self.state], -1)] if self.state else [])

    def same_state(self, other: "Senses") -> bool:
        """Whether both have the same states, of the same sizes and in the same order."""
        return list(self.state.items()) == list(other.state.items())

    def found_in(self, other: "Senses") -> bool:
        """Whether the observations of ``other`` have all of these: as many cameras, and the same states or no need of
        any."""
        return self.channels == other.channels and (not self.state or self.same_state(other))


IMAGE = Senses()  # the paper's: one camera


class StateNormalizer(nn.Module):
    """States (..., S) as the networks read and predict them.

    With ``symlog`` on DreamerV3's logarithmic scale. With ``state_standardize``, after that, each number has mean 0 and
    standard deviation 1 in the data, and is at most `MOST` from 0. What `fit` measures is saved with the weights.
    """

    MOST = 10.0
    LEAST = 1e-3  # a smaller deviation counts as this: numbers that hardly change stay small

    def __init__(self, senses: Senses, config: Config):
        super().__init__()
        self.keys, self.symlog, self.standardize = tuple(senses.state), config.symlog, config.state_standardize
        if self.keys and self.standardize:
            for name, first in (("mean", torch.zeros), ("std", torch.ones), ("rows", torch.zeros)):
                self.register_buffer(name, first(1 if name == "rows" else senses.width))

    def forward(self, state: Tensor) -> Tensor:
        """(..., S) -> (..., S)."""
        state = symlog(state) if self.symlog else state
        if not self.standardize:
            return state
        return ((state.float() - self.mean) / self.std).clamp(-self.MOST, self.MOST)

    @torch.no_grad()
    def fit(self, episodes: Iterable[Mapping[str, np.ndarray]]) -> None:
        """Measure mean and standard deviation on the states of episodes, by name (N, S of the state). Only once."""
        if not self.keys or not self.standardize or self.rows.item():
            return
        rows, total, squares = 0, 0.0, 0.0
        for episode in episodes:
            state = torch.cat([torch.as_tensor(episode[key]) for key in self.keys], -1)
            state = (symlog(state) if self.symlog else state).double()
            rows, total, squares = rows + len(state), total + state.sum(0), squares + state.square().sum(0)
        if rows == 0:
            return
        mean = total / rows
        self.mean.copy_(mean)
        self.std.copy_((squares / rows - mean.square()).clamp(min=0).sqrt().clamp(min=self.LEAST))
        self.rows.fill_(rows)


class JointEncoder(nn.Module):
    """Image and states to one embedding: the image's part, then the states'."""

    def __init__(self, image: nn.Module, state: StateEncoder):
        super().__init__()
        self.image, self.state = image, state
        self.embed = image.embed + state.embed

    def forward(self, image: Tensor, state: Tensor) -> Tensor:
        """image (B, T, H, W, C) uint8, state (B, T, S) -> (B, T, E)."""
        return torch.cat([self.image(image), self.state(state)], -1)


class JointDecoder(nn.Module):
    """Features to the means of two unit Gaussians, over the image and over the states."""

    def __init__(self, image: nn.Module, state: nn.Module):
        super().__init__()
        self.image, self.state = image, state

    def forward(self, feat: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, F) -> (B, T, H, W, C) in the scale of `networks.scale_image`, (B, T, S)."""
        return self.image(feat), self.state(feat)


def make_encoder(senses: Senses, config: Config) -> nn.Module:
    """The encoder of ``senses``. States without an image get an embedding of the image encoder's size (Table 4)."""
    image = parts.make_image_encoder(config, senses.channels or CAMERA)
    if not senses.state:
        return image
    embed = config.state_embed if senses.channels else image.embed
    state = StateEncoder(senses.width, embed, layers=config.state_layers, **parts.hidden(config))
    return JointEncoder(image, state) if senses.channels else state


def make_decoder(senses: Senses, config: Config, feat: int) -> nn.Module:
    """The decoder of ``senses`` from F features."""
    found = []
    if senses.channels:
        found.append(parts.make_image_decoder(config, feat, senses.channels))
    if senses.state:
        found.append(mlp(feat, senses.width, config.state_layers, **parts.hidden(config)))
    return JointDecoder(*found) if len(found) == 2 else found[0]


def image_part(encoder: nn.Module, image: Tensor) -> Tensor:
    """The image's part of the embedding of images (B, T, H, W, C), without the states': (B, T, E of the image)."""
    return (encoder.image if isinstance(encoder, JointEncoder) else encoder)(image)


def embedded_parts(encoder: nn.Module, embed: Tensor) -> list[Tensor]:
    """The parts of an embedding (..., E) in the order of `Senses.parts`.

    The embedding may be that of another encoder with an image part of the same size, and may have no other part.
    """
    if not isinstance(encoder, JointEncoder) or embed.shape[-1] == encoder.image.embed:
        return [embed]
    return [embed[..., : encoder.image.embed], embed[..., encoder.image.embed :]]

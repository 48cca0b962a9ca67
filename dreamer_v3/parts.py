"""Which generation a part is of, by its setting: DreamerV2's of networks.py, or DreamerV3's of this package."""

from typing import Any

from torch import nn

from config import Config
from dreamer_v3.heads import BoundedActor, TwoHotHead
from dreamer_v3.images import ImageDecoder, ImageEncoder
from dreamer_v3.layers import NormActivation, initialise
from dreamer_v3.rssm import BlockRSSM, EnsembleBlockRSSM
from networks import RSSM, Actor, ConvDecoder, ConvEncoder, EnsembleRSSM, ScalarHead, StateSpaceModel


def hidden(config: Config) -> dict[str, Any]:
    """What the hidden layers of all heads, and of encoder and decoder of states, have in common."""
    return {"units": config.units, "act": config.act, "norm": NormActivation if config.norm == "rms" else None}


def make_scalar_head(config: Config, feat: int, layers: int) -> ScalarHead | TwoHotHead:
    """A reward head or a critic: ``heads``."""
    kind = {"gaussian": ScalarHead, "twohot": TwoHotHead}[config.heads]
    return kind(feat, layers=layers, **hidden(config))


def make_actor(config: Config, feat: int, action: int, outputs: int | None) -> Actor | BoundedActor:
    """``actor_dist``."""
    kind = {"truncated": Actor, "bounded": BoundedActor}[config.actor_dist]
    sizes = {"layers": config.actor_layers, "min_std": config.actor_min_std, "outputs": outputs}
    return kind(feat, action, **sizes, **hidden(config))


def make_rssm(config: Config, embed: int, action: int, members: int = 0) -> StateSpaceModel:
    """``gru_blocks``; with ``members``, an ensemble of priors."""
    sizes = {
        "stoch": config.dyn_stoch,
        "deter": config.dyn_deter,
        "hidden": config.dyn_hidden,
        "discrete": config.dyn_discrete,
        "min_std": config.dyn_min_std,
        "act": config.act,
    }
    sizes |= {"members": members} if members else {}
    if config.gru_blocks:
        kind = EnsembleBlockRSSM if members else BlockRSSM
        return kind(embed, action, blocks=config.gru_blocks, unimix=config.unimix, **sizes)
    return (EnsembleRSSM if members else RSSM)(embed, action, **sizes)


def make_image_encoder(config: Config, channels: int) -> ConvEncoder | ImageEncoder:
    """``cnn``."""
    kind = {"dreamerv2": ConvEncoder, "dreamerv3": ImageEncoder}[config.cnn]
    return kind(config.size[0], config.cnn_depth, config.act, channels)


def make_image_decoder(config: Config, feat: int, channels: int) -> ConvDecoder | ImageDecoder:
    """``cnn``."""
    sizes = feat, config.size[0], config.cnn_depth, config.act, channels
    if config.cnn == "dreamerv2":
        return ConvDecoder(*sizes)
    return ImageDecoder(*sizes, deter=config.dyn_deter, units=config.units, blocks=config.gru_blocks or 1)


def initialise_as_configured(module: nn.Module, config: Config) -> None:
    """With ``norm: rms``, DreamerV3's initial weights; else torch's, which a module has already."""
    if config.norm == "rms":
        initialise(module)

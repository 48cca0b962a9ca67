"""The world model's loss written the plain way, module by module and step by step: what `models.py` is held against.

Same weights, same random numbers, same mathematics: each step encodes, predicts the prior and filters with whole
concatenated inputs, and takes its own KL; the decoder begins with a transposed convolution. Nothing is shared with the
fast path but the parameters, so that the tests compare two programs, and the benchmark what the rearrangement gives.
"""

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Independent, Normal, OneHotCategoricalStraightThrough, kl_divergence

from models import WorldModel


def distribution(world: WorldModel, stat: Tensor) -> Independent:
    """The latent's distribution from a layer's output (B, ...)."""
    rssm = world.rssm
    if rssm.discrete:
        logits = stat.reshape(*stat.shape[:-1], rssm.stoch, rssm.discrete)
        return Independent(OneHotCategoricalStraightThrough(logits=logits), 1)
    mean, std = torch.chunk(stat, 2, -1)
    return Independent(Normal(mean, 2 * torch.sigmoid(std / 2) + rssm.min_std), 1)


def detached(world: WorldModel, dist: Independent) -> Independent:
    base = dist.base_dist
    if world.rssm.discrete:
        return Independent(OneHotCategoricalStraightThrough(logits=base.logits.detach()), 1)
    return Independent(Normal(base.mean.detach(), base.stddev.detach()), 1)


def step(world: WorldModel, stoch: Tensor, deter: Tensor, action: Tensor, embed: Tensor) -> tuple:
    """(stoch, deter, posterior, prior) after one action (B, A) and embedding (B, E)."""
    r = world.rssm
    weight = torch.cat([r.action_in.weight, r.stoch_in.weight], 1)
    x = r.act(F.linear(torch.cat([action, stoch], -1), weight, r.action_in.bias))
    gates = F.layer_norm(r.cell.gates(torch.cat([x, deter], -1)), (3 * r.deter,), r.cell.norm.weight, r.cell.norm.bias)
    reset, candidate, update = torch.chunk(gates, 3, -1)
    update = torch.sigmoid(update - 1)
    deter = update * torch.tanh(torch.sigmoid(reset) * candidate) + (1 - update) * deter
    prior = distribution(world, r.prior_out(r.act(r.prior_hidden(deter))))
    weight = torch.cat([r.post_deter.weight, r.post_embed.weight], 1)
    hidden = r.act(F.linear(torch.cat([deter, embed], -1), weight, r.post_embed.bias))
    post = distribution(world, r.post_out(hidden))
    stoch = post.rsample()
    return stoch.flatten(-2) if r.discrete else stoch, deter, post, prior


def decode(world: WorldModel, feat: Tensor) -> Tensor:
    """Features (B, F) to images (B, H, W, 3), the first layer a transposed convolution of one pixel."""
    decoder = world.decoder
    channels, kernel, _ = decoder.shape
    x = decoder.dense(feat)[:, :, None, None]
    weight = decoder.first.weight.T.reshape(-1, channels, kernel, kernel)
    x = F.conv_transpose2d(x, weight, stride=2) + decoder.first.bias.reshape(1, channels, kernel, kernel)
    return decoder.layers(x).permute(0, 2, 3, 1)


def losses(world: WorldModel, batch: dict[str, Tensor], config: SimpleNamespace) -> dict[str, Tensor]:
    """The terms of Eq. 2 as `WorldModel.losses` gives them, for a model that sees images, in float32."""
    state = world.rssm.initial(len(batch["action"]))
    stoch, deter = state["stoch"], state["deter"]
    image_terms, reward_terms, to_prior, to_post = [], [], [], []
    for t in range(batch["action"].shape[1]):
        image = batch["image"][:, t].float() / 255.0 - 0.5
        embed = world.encoder.layers(image.permute(0, 3, 1, 2)).flatten(1)
        stoch, deter, post, prior = step(world, stoch, deter, batch["action"][:, t], embed)
        feat = torch.cat([stoch, deter], -1)
        image_terms.append(0.5 * ((decode(world, feat) - image) ** 2).sum((1, 2, 3)))
        reward_terms.append(0.5 * (world.reward.layers(feat)[:, 0] - batch["reward"][:, t]) ** 2)
        to_prior.append(kl_divergence(detached(world, post), prior))
        to_post.append(kl_divergence(post, detached(world, prior)))
    prior_side, post_side = (torch.stack(kl).mean().clamp(min=config.kl_free) for kl in (to_prior, to_post))
    return {
        "image": torch.stack(image_terms).mean(),
        "reward": torch.stack(reward_terms).mean(),
        "kl": config.kl_balance * prior_side + (1 - config.kl_balance) * post_side,
    }

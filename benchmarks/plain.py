"""A plain reference implementation of the target's update, module by module and step by step.

It has the weights, random numbers and equations of the fast path, but none of its code: torch's own operations only.
Each step encodes its image, computes the prior and the posterior from concatenated inputs, and computes its own KL. The
decoder begins with a transposed convolution. The world model is frozen with requires_grad while the behavior learns.
The heads' activation is ELU. tests/test_plain.py compares the losses and gradients of the two, benchmarks/update.py
compares their times.
"""

import math
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Independent, Normal, OneHotCategoricalStraightThrough, kl_divergence

from agents.coworld import SourceAgent, TargetAgent
from models import ActorCritic, WorldModel

Latent = tuple[Tensor, Tensor]  # stoch (B, S * K), deter (B, D)


def distribution(world: WorldModel, stat: Tensor) -> Independent:
    """The latent's distribution from a layer's output (B, ...)."""
    rssm = world.rssm
    if rssm.discrete:
        logits = stat.reshape(*stat.shape[:-1], rssm.stoch, rssm.discrete)
        return Independent(OneHotCategoricalStraightThrough(logits=logits), 1)
    mean, std = torch.chunk(stat, 2, -1)
    return Independent(Normal(mean, 2 * torch.sigmoid(std / 2) + rssm.latent.min_std), 1)


def detached(world: WorldModel, dist: Independent) -> Independent:
    base = dist.base_dist
    if world.rssm.discrete:
        return Independent(OneHotCategoricalStraightThrough(logits=base.logits.detach()), 1)
    return Independent(Normal(base.mean.detach(), base.stddev.detach()), 1)


def sample(world: WorldModel, dist: Independent, noise: Tensor) -> Tensor:
    """A sample (B, S * K) of ``dist`` from random numbers ``noise``, as `RSSM.sample` computes it."""
    if not world.rssm.discrete:
        return dist.base_dist.mean + dist.base_dist.stddev * noise
    probs = dist.base_dist.probs
    index = torch.searchsorted(probs.detach().cumsum(-1), noise[..., None], right=True)[..., 0]
    one_hot = F.one_hot(index.clamp(max=world.rssm.discrete - 1), world.rssm.discrete)
    return (one_hot + (probs - probs.detach())).flatten(-2)


def recur(world: WorldModel, stoch: Tensor, deter: Tensor, action: Tensor) -> Tensor:
    """The next deter (B, D) after an action (B, A)."""
    r = world.rssm
    weight = torch.cat([r.action_in.weight, r.stoch_in.weight], 1)
    x = r.act.function(F.linear(torch.cat([action, stoch], -1), weight, r.action_in.bias))
    gates = F.layer_norm(r.cell.gates(torch.cat([x, deter], -1)), (3 * r.deter,), r.cell.norm.weight, r.cell.norm.bias)
    reset, candidate, update = torch.chunk(gates, 3, -1)
    update = torch.sigmoid(update - 1)
    return update * torch.tanh(torch.sigmoid(reset) * candidate) + (1 - update) * deter


def prior_of(world: WorldModel, deter: Tensor) -> Independent:
    r = world.rssm
    return distribution(world, r.prior_out(r.act.function(r.prior_hidden(deter))))


def posterior_of(world: WorldModel, deter: Tensor, embed: Tensor) -> Independent:
    r = world.rssm
    weight = torch.cat([r.post_deter.weight, r.post_embed.weight], 1)
    return distribution(
        world, r.post_out(r.act.function(F.linear(torch.cat([deter, embed], -1), weight, r.post_embed.bias)))
    )


def encode(world: WorldModel, batch: dict[str, Tensor], t: int) -> dict[str, Tensor]:
    """The parts of the embeddings of step t of a batch, (B, E) each: that of the image, and of the states if it has
    them."""
    joint, act = len(world.senses.parts) > 1, world.rssm.act.function
    x = (batch["image"][:, t].float() / 255.0 - 0.5).permute(0, 3, 1, 2)
    for layer in (world.encoder.image if joint else world.encoder).layers[::2]:  # each is followed by the activation
        x = act(F.conv2d(x, layer.weight, layer.bias, stride=2))
    state = {"state": head(world.encoder.state.layers, states(world, batch, t))} if joint else {}
    return {"image": x.flatten(1), **state}


def states(world: WorldModel, batch: dict[str, Tensor], t: int) -> Tensor:
    """The states of step t of a batch, one behind the other, (B, S)."""
    return torch.cat([batch[key][:, t] for key in world.senses.state], -1)


def decode(world: WorldModel, feat: Tensor) -> Tensor:
    """Features (B, F) to images (B, H, W, C), the first layer a transposed convolution of one pixel."""
    decoder, act = world.decoder, world.rssm.act.function
    decoder = decoder.image if len(world.senses.parts) > 1 else decoder
    channels, kernel, _ = decoder.shape
    x = decoder.dense(feat)[:, :, None, None]
    weight = decoder.first.weight.T.reshape(-1, channels, kernel, kernel)
    x = F.conv_transpose2d(x, weight, stride=2) + decoder.first.bias.reshape(1, channels, kernel, kernel)
    for layer in decoder.layers[1::2]:
        x = F.conv_transpose2d(act(x), layer.weight, layer.bias, stride=2)
    return x.permute(0, 2, 3, 1)


def head(layers: nn.Sequential, x: Tensor) -> Tensor:
    """A head's output, with activations that are not in place."""
    for layer in layers[:-1:2]:
        x = F.elu(layer(x))
    return layers[-1](x)


def alignment(embeds: dict[str, Tensor], source: WorldModel, batch: dict[str, Tensor], t: int) -> Tensor:
    """Eq. 3's KL at step t, (B,), for each part of the embeddings by itself, and their sum."""
    found = 0.0
    with torch.no_grad():
        source_embeds = encode(source, batch, t)
    for part, theirs in source_embeds.items():
        theirs, ours = torch.softmax(theirs, -1), torch.log_softmax(embeds[part], -1)
        found = found + (theirs * (theirs.log() - ours)).sum(-1)
    return found


def model_losses(
    world: WorldModel,
    batch: dict[str, Tensor],
    config: SimpleNamespace,
    noise: Tensor,
    source: WorldModel | None = None,
) -> tuple[dict[str, Tensor], list[Latent]]:
    """The terms of Eq. 2 of a model on images, with ``source`` also Eq. 3's; and the posterior of each step.

    Where an episode begins (``is_first`` of the batch), the state and the action before the step are zeros.
    """
    state = world.rssm.initial(len(batch["action"]))
    stoch, deter = state["stoch"], state["deter"]
    names = "image state reward discount state_alignment".split()
    terms = {name: [] for name in (*names, "prior side", "posterior side")}
    latents = []
    begins = batch.get("is_first", torch.zeros_like(batch["reward"])).float()[..., None]  # (B, T, 1)
    for t in range(batch["action"].shape[1]):
        embeds = encode(world, batch, t)
        embed = torch.cat(list(embeds.values()), -1)
        stoch, deter, action = ((1 - begins[:, t]) * x for x in (stoch, deter, batch["action"][:, t]))
        deter = recur(world, stoch, deter, action)
        prior, post = prior_of(world, deter), posterior_of(world, deter, embed)
        stoch = sample(world, post, noise[:, t])
        latents.append((stoch, deter))
        feat = torch.cat([stoch, deter], -1)
        image = batch["image"][:, t].float() / 255.0 - 0.5
        terms["image"].append(0.5 * ((decode(world, feat) - image) ** 2).sum((1, 2, 3)))
        if "state" in embeds:
            error = head(world.decoder.state, feat) - states(world, batch, t)
            terms["state"].append(0.5 * (error**2).sum(1))
        terms["reward"].append(0.5 * (head(world.reward.layers, feat)[:, 0] - batch["reward"][:, t]) ** 2)
        if world.discount is not None:
            probability = torch.sigmoid(head(world.discount.layers, feat)[:, 0])
            terms["discount"].append(F.binary_cross_entropy(probability, batch["discount"][:, t], reduction="none"))
        terms["prior side"].append(kl_divergence(detached(world, post), prior))
        terms["posterior side"].append(kl_divergence(post, detached(world, prior)))
        if source is not None:
            terms["state_alignment"].append(alignment(embeds, source, batch, t))
    means = {name: torch.stack(values).mean() for name, values in terms.items() if values}
    prior_side, post_side = (means.pop(side).clamp(min=config.kl_free) for side in ("prior side", "posterior side"))
    return {**means, "kl": config.kl_balance * prior_side + (1 - config.kl_balance) * post_side}, latents


def act(behavior: ActorCritic, feat: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """(action, entropy): the truncated normal's sample at which its CDF is ``uniform`` (N, A)."""
    mean, std = torch.chunk(head(behavior.actor.layers, feat), 2, -1)
    mean, std = torch.tanh(mean), 2 * torch.sigmoid(std / 2) + behavior.actor.min_std
    low, high, unit = (-1 - mean) / std, (1 - mean) / std, Normal(0.0, 1.0)
    below, mass = unit.cdf(low), unit.cdf(high) - unit.cdf(low)
    quantile = (below + uniform * mass).clamp(1e-6, 1 - 1e-6)
    action = (mean + std * unit.icdf(quantile)).clamp(-1 + 1e-6, 1 - 1e-6)
    edges = (low * unit.log_prob(low).exp() - high * unit.log_prob(high).exp()) / (2 * mass)
    return action, (0.5 * math.log(2 * math.pi * math.e) + (std * mass).log() + edges).sum(-1)


def discount_at(world: WorldModel, feat: Tensor, gamma: float) -> Tensor:
    """gamma times the probability, if the model has one, that the episode goes on after states of (N, F): (N,)."""
    if world.discount is None:
        return torch.full_like(feat[:, 0], gamma)
    return gamma * torch.sigmoid(head(world.discount.layers, feat)[:, 0])


def behavior_losses(
    agent: SourceAgent | TargetAgent,
    start: Latent,
    noise: tuple[Tensor, Tensor],
    source_critic: nn.Module | None,
    start_weight: Tensor | float = 1.0,
    source: tuple[WorldModel, Latent, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """The actor's loss (Eq. 7 with rho = 1) and the critic's (Eq. 11, Eq. 6), from starts of (N, ...).

    ``start_weight`` (N,) is 0 for starts in terminal states. With ``source``, its world model, start states and random
    numbers, its critic values the states that its own model imagines with the same actions (``constraint_latents:
    source``), else those of the agent.
    """
    world, behavior, config = agent.world, agent.behavior, agent.config
    stoch, deter = (x.detach() for x in start)
    feats, entropies, source_feats = [torch.cat([stoch, deter], -1)], [], []
    source_stoch, source_deter = source[1] if source else start
    for t in range(config.imag_horizon):
        source_feats.append(torch.cat([source_stoch, source_deter], -1))
        action, entropy = act(behavior, feats[-1].detach(), noise[1][:, t])
        deter = recur(world, stoch, deter, F.pad(action, (0, world.action_dim - action.shape[-1])))
        stoch = sample(world, prior_of(world, deter), noise[0][:, t])
        feats.append(torch.cat([stoch, deter], -1)), entropies.append(entropy)
        if source and t < config.imag_horizon - 1:
            padded = F.pad(action.detach(), (0, source[0].action_dim - action.shape[-1]))
            source_deter = recur(source[0], source_stoch, source_deter, padded)
            source_stoch = sample(source[0], prior_of(source[0], source_deter), source[2][:, t])
    gammas = [discount_at(world, feat, config.discount) for feat in feats[:-1]]
    returns = [head(behavior.slow_critic.layers, feats[-1])[:, 0]]
    for gamma, feat, following in zip(gammas[::-1], feats[-2::-1], feats[:0:-1], strict=True):
        value = head(behavior.slow_critic.layers, following)[:, 0]
        mixed = (1 - config.discount_lambda) * value + config.discount_lambda * returns[0]
        returns.insert(0, head(world.reward.layers, feat)[:, 0] + gamma * mixed)
    actor_loss, critic_loss, weight = [], [], start_weight
    for t, feat in enumerate(feats[:-1]):
        if t < config.imag_horizon - 1:
            actor_loss.append(-weight * (config.actor_entropy * entropies[t] + returns[t + 1]))
        value = head(behavior.critic.layers, feat.detach())[:, 0]
        loss = 0.5 * (value - returns[t].detach()) ** 2
        if source_critic is not None:
            with torch.no_grad():
                theirs = head(source_critic.layers, source_feats[t] if source else feat)[:, 0]
            loss = loss + config.value_constraint_scale * torch.maximum(value, theirs)
        critic_loss.append(weight * loss)
        weight = weight * gammas[t].detach()
    return torch.stack(actor_loss).mean(), torch.stack(critic_loss).mean()


class PlainTrainer:
    """Plain updates of an agent's weights, with one optimiser for each module."""

    def __init__(self, agent: TargetAgent):
        self.agent, config = agent, agent.config
        parts = (agent.world, config.model_lr), (agent.behavior.actor, config.actor_lr)
        parts = *parts, (agent.behavior.critic, config.value_lr)
        self.optimizers = [(m, torch.optim.AdamW(m.parameters(), lr, eps=config.opt_eps)) for m, lr in parts]

    def update_world_model(self, batch: dict[str, Tensor], source: SourceAgent) -> list[Latent]:
        """One update of the world model (Eq. 3). Returns the posterior of each step."""
        agent = self.agent
        noise = agent.world.rssm.noise(*batch["action"].shape[:2])
        losses, latents = model_losses(agent.world, batch, agent.config, noise, source.world)
        scales = {**agent.scales, "state_alignment": agent.config.state_alignment_scale}
        self._step(0, sum(scales[name] * loss for name, loss in losses.items()))
        return latents

    def update(self, batch: dict[str, Tensor], source: SourceAgent) -> None:
        """One target update: Eq. 3, then Eq. 7 and Eq. 6 from every state of the batch."""
        latents = self.update_world_model(batch, source)
        start = tuple(torch.stack(parts, 1).flatten(0, 1) for parts in zip(*latents, strict=True))
        agent = self.agent
        noise = agent.behavior.noise(agent.world, len(start[0]), agent.config.imag_horizon)
        agent.world.requires_grad_(False)
        weight = 1.0 if agent.world.discount is None else batch["discount"].flatten()
        actor_loss, critic_loss = behavior_losses(agent, start, noise, source.behavior.critic, weight)
        agent.world.requires_grad_(True)
        self._step(1, actor_loss)
        self._step(2, critic_loss)

    def _step(self, index: int, loss: Tensor) -> None:
        module, optimizer = self.optimizers[index]
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), self.agent.config.grad_clip)
        optimizer.step()

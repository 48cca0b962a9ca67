"""The models of CoWorld and its losses, each loss a pure function that names its equation.

Symbols: B sequences, T steps, N = B * T imagined starts, H imagined steps, F features, E embedding, A actions.
A prime (phi', psi', xi') is the source domain's, as in the paper.
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import kl_divergence

from networks import (
    RSSM,
    Actor,
    ConvDecoder,
    ConvEncoder,
    ScalarHead,
    State,
    StateEncoder,
    TruncatedNormal,
    mlp,
    pad_action,
    scale_image,
)

Config = SimpleNamespace
Tree = Any  # tensors in dicts, lists and tuples; None where there are none
Constraint = Callable[[Tensor, Tensor], Tensor]  # (value, feat) -> Eq. 6's alpha term of each state


# Losses ---------------------------------------------------------------------------------------------------------


def image_nll(mean: Tensor, image: Tensor) -> Tensor:
    """-ln p(o_t | h_t, z_t) of Eq. 2, unit variance, without its constant.

    mean (B, T, H, W, 3) in the scale of `scale_image`, image uint8 of the same shape -> (B, T).
    """
    return 0.5 * (mean.float() - scale_image(image)).square().sum((-3, -2, -1))


def scalar_nll(mean: Tensor, value: Tensor) -> Tensor:
    """-ln N(value; mean, 1) without its constant, elementwise: Eq. 2's reward term, Eq. 11's squared error."""
    return 0.5 * (mean - value).square()


def balanced_kl(rssm: RSSM, post: State, prior: State, balance: float, free_nats: float) -> tuple[Tensor, Tensor]:
    """beta_1's term of Eq. 2 with DreamerV2's KL balancing.

    ``balance`` of the gradient trains the prior, the rest the posterior; each side is held at ``free_nats`` nats or
    more on the mean over B and T. Returns (loss, the plain mean KL), both scalars.
    """
    detached = [{k: v.detach() for k, v in state.items()} for state in (post, prior)]
    to_prior = kl_divergence(rssm.dist(detached[0]), rssm.dist(prior)).mean()
    to_post = kl_divergence(rssm.dist(post), rssm.dist(detached[1])).mean()
    loss = balance * to_prior.clamp(min=free_nats) + (1 - balance) * to_post.clamp(min=free_nats)
    return loss, to_prior.detach()


def state_alignment(source_embed: Tensor, target_embed: Tensor) -> Tensor:
    """beta_2's term of Eq. 3: KL[ sg(g(enc_phi'(o))) || g(enc_phi(o)) ] with g the softmax over features.

    Both embeddings (B, T, E) are of the same target images. Sum over E, mean over B and T: a scalar that does not
    grow with the sequence. The source's embedding is a constant.
    """
    source = source_embed.detach().float().log_softmax(-1)
    return F.kl_div(target_embed.float().log_softmax(-1), source, reduction="none", log_target=True).sum(-1).mean()


def information(embed: Tensor) -> Tensor:
    """How much an encoder tells the images of a batch apart: the mean KL of its softmaxed embeddings (B, T, E) from
    their mean, a scalar. An encoder that answers all images alike has none, and anything flat is near to it."""
    logs = embed.detach().float().log_softmax(-1).flatten(0, -2)
    mean = torch.logsumexp(logs, 0) - math.log(len(logs))
    return F.kl_div(mean.expand_as(logs), logs, reduction="batchmean", log_target=True)


def distribution_alignment(source_embed: Tensor, target_embed: Tensor) -> Tensor:
    """Eq. 3's term where the source cannot see the target's images (Table 4): the two batches are not of the same
    observations, so the softmaxed embeddings are compared by their means over B and T. (B, T, E) each -> a scalar.

    The paper does not say how it aligns them; this asks the domains to use the features alike, no more.
    """
    source, target = (e.float().softmax(-1).mean((0, 1)).log() for e in (source_embed.detach(), target_embed))
    return F.kl_div(target, source, reduction="sum", log_target=True)


def relabel_reward(source_reward: Tensor, target_reward: Tensor, k: float) -> Tensor:
    """Eq. 4: r~ = (1 - k) sg(r_phi'(h~, z~)) + k r(T), elementwise over (B, T)."""
    return (1 - k) * source_reward.detach() + k * target_reward


def reward_alignment(source_nll: Tensor, target_nll: Tensor, eta: float) -> Tensor:
    """Eq. 5: eta * NLL on source data + (1 - eta) * NLL on target data with relabelled rewards. Scalars."""
    return eta * source_nll + (1 - eta) * target_nll


def lambda_return(reward: Tensor, next_value: Tensor, discount: Tensor, lambda_: float) -> Tensor:
    """Eq. 8: V_t = r_t + gamma_t ((1 - lambda) v(z_{t+1}) + lambda V_{t+1}), and V_H = r_H + gamma_H v(z_{H+1}).

    reward, next_value and discount (H, ...), next_value[t] = v(z_{t+1}) -> returns (H, ...) in time order.
    """
    returns = [next_value[-1]]
    for r, v, d in reversed(list(zip(reward, next_value, discount, strict=True))):
        returns.append(r + d * ((1 - lambda_) * v + lambda_ * returns[-1]))
    return torch.stack(returns[:0:-1])


def value_constraint(value: Tensor, source_value: Tensor, mode: str) -> Tensor:
    """alpha's term of Eq. 6, elementwise: max(v_xi(z), sg v_xi'(z)) (``minmax``), or v_xi(z) (``brute``, w/o Max).

    Where the source critic's value is the larger there is no gradient.
    """
    return value if mode == "brute" else torch.maximum(value, source_value.detach())


def critic_constraint(source_critic: nn.Module, mode: str, value: Tensor, feat: Tensor) -> Tensor:
    """`value_constraint` with what the source critic, a constant, makes of the target's features (..., F)."""
    with torch.no_grad():
        source_value = source_critic(feat)
    return value_constraint(value, source_value, mode)


def weighted_sum(losses: dict[str, Tensor], scales: dict[str, float]) -> Tensor:
    """The total of named losses; a term without a scale, or a scale without a term, is an error."""
    if losses.keys() != scales.keys():
        raise KeyError(f"losses and scales differ in {sorted(losses.keys() ^ scales.keys())}")
    return sum(scales[name] * loss for name, loss in losses.items())


# Models ---------------------------------------------------------------------------------------------------------


@dataclass
class Seen:
    """What the world model makes of a batch: embed (B, T, E), post and prior of (B, T, ...), feat (B, T, F)."""

    embed: Tensor
    post: State
    prior: State
    feat: Tensor

    @property
    def latent(self) -> State:
        """What imagination begins from: the posterior's stoch and deter."""
        return {key: self.post[key] for key in ("stoch", "deter")}

    def split(self, batch: int) -> tuple["Seen", "Seen"]:
        """The first ``batch`` sequences and the rest."""
        parts = []
        for part in (slice(None, batch), slice(batch, None)):
            post, prior = ({k: v[part] for k, v in s.items()} for s in (self.post, self.prior))
            parts.append(Seen(self.embed[part], post, prior, self.feat[part]))
        return tuple(parts)


class WorldModel(nn.Module):
    """phi: encoder, RSSM, and the observation, reward and (optional) discount heads on its features.

    It sees images; with ``state`` (names and sizes of low-dimensional observations) it sees those instead, through
    an MLP whose embedding has the image encoder's size (Table 4).
    """

    def __init__(self, config: Config, action_dim: int, state: dict[str, int] | None = None):
        super().__init__()
        act, size = config.act, config.size[0]
        self.action_dim, self.state = action_dim, dict(state or {})
        self.encoder = ConvEncoder(size, config.cnn_depth, act)
        if self.state:
            width, embed = sum(self.state.values()), self.encoder.embed
            self.encoder = StateEncoder(width, embed, layers=config.state_layers, units=config.units, act=act)
        self.rssm = RSSM(
            self.encoder.embed,
            action_dim,
            stoch=config.dyn_stoch,
            deter=config.dyn_deter,
            hidden=config.dyn_hidden,
            discrete=config.dyn_discrete,
            min_std=config.dyn_min_std,
            act=act,
        )
        feat = self.rssm.feat_size
        if self.state:
            self.decoder = mlp(feat, width, config.state_layers, config.units, act)
        else:
            self.decoder = ConvDecoder(feat, size, config.cnn_depth, act)
        self.reward = ScalarHead(feat, layers=config.reward_layers, units=config.units, act=act)
        self.discount = None
        if config.pred_discount:
            self.discount = ScalarHead(feat, layers=config.discount_layers, units=config.units, act=act)

    @property
    def keys(self) -> tuple[str, ...]:
        """The observations it sees: ``image``, or the names of ``state``."""
        return tuple(self.state) or ("image",)

    def embed(self, batch: dict[str, Tensor]) -> Tensor:
        """Its observations, image (B, T, H, W, 3) uint8 or those of ``state`` (B, T, ...), to embeddings (B, T, E)."""
        return self.encoder(self._observation(batch))

    def observe(self, batch: dict[str, Tensor], noise: Tensor | None = None) -> Seen:
        """Filter a batch of observations (B, T, ...) and actions (B, T, own A) from the zero state."""
        return self.filter(self.embed(batch), batch["action"], noise=noise)

    def observe_both(self, batches: Sequence[dict[str, Tensor]], noise: Sequence[Tensor]) -> tuple["Seen", "Seen"]:
        """`observe` for two batches in one scan; one may hold its ``embed`` (B, T, E) instead of observations."""
        actions = [pad_action(batch["action"], self.action_dim) for batch in batches]
        embeds = [batch["embed"] if "embed" in batch else self.embed(batch) for batch in batches]
        both = self.filter(torch.cat(embeds), torch.cat(actions), noise=torch.cat(list(noise)))
        return both.split(len(batches[0]["action"]))

    def filter(self, embed: Tensor, action: Tensor, state: State | None = None, noise: Tensor | None = None) -> Seen:
        """embed (B, T, E), action (B, T, own A), padded here, from ``state`` or zeros; ``noise`` is `RSSM.noise`'s."""
        post, prior = self.rssm.observe(embed, pad_action(action, self.action_dim), state, noise)
        return Seen(embed, post, prior, self.rssm.feat(post))

    def _observation(self, batch: dict[str, Tensor]) -> Tensor:
        return torch.cat([batch[key] for key in self.state], -1) if self.state else batch["image"]

    def _observation_nll(self, feat: Tensor, batch: dict[str, Tensor]) -> Tensor:
        if self.state:
            return scalar_nll(self.decoder(feat).float(), self._observation(batch)).sum(-1)
        return image_nll(self.decoder(feat), batch["image"])

    def losses(self, seen: Seen, batch: dict[str, Tensor], config: Config) -> tuple[dict[str, Tensor], Tensor]:
        """The terms of Eq. 2, each a scalar mean over B and T, and the plain KL for the log."""
        kl, plain_kl = balanced_kl(self.rssm, seen.post, seen.prior, config.kl_balance, config.kl_free)
        losses = {
            "state" if self.state else "image": self._observation_nll(seen.feat, batch).mean(),
            "reward": scalar_nll(self.reward(seen.feat), batch["reward"]).mean(),
            "kl": kl,
        }
        if self.discount is not None:
            losses["discount"] = F.binary_cross_entropy_with_logits(self.discount(seen.feat), batch["discount"])
        return losses, plain_kl

    def predicted_discount(self, feat: Tensor, gamma: float) -> Tensor:
        """gamma times the probability that the episode goes on, (..., F) -> (...)."""
        if self.discount is None:
            return torch.full(feat.shape[:-1], gamma, device=feat.device)
        return gamma * torch.sigmoid(self.discount(feat))

    @torch.no_grad()
    def open_loop(self, image: Tensor, action: Tensor, context: int) -> Tensor:
        """Reconstructs ``context`` frames, then predicts the rest from actions alone.

        image (B, T, H, W, 3) uint8, action (B, T, A) -> predicted images, uint8, of the same shape.
        """
        action = pad_action(action, self.action_dim)
        post, _ = self.rssm.observe(self.encoder(image[:, :context]), action[:, :context])
        state = {k: v[:, -1] for k, v in post.items()}
        feats = [*self.rssm.feat(post).unbind(1)]
        for a in action[:, context:].unbind(1):
            state = self.rssm.imagine_step(state, a)
            feats.append(self.rssm.feat(state))
        mean = self.decoder(torch.stack(feats, 1)).float()
        return ((mean + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)


@dataclass
class Imagined:
    """A rollout of the prior under the actor.

    state   s_0 --> s_1 --> ... --> s_{H-1} --> s_H       feat (H + 1, N, F)
    action     a_0     a_1              a_{H-1}           log_prob, entropy (H, N), of a_t at s_t
    reward  r_0     r_1     ...     r_{H-1}               of arriving at s_t: the head reads s_t
    return  V_0     V_1     ...     V_{H-1}               V_t begins with r_t: what v(s_t) estimates
    so a_t first shows in V_{t+1}, and a_{H-1}, which no return sees, is not trained.
    """

    feat: Tensor
    log_prob: Tensor
    entropy: Tensor


class ActorCritic(nn.Module):
    """psi and xi: the actor, the critic and the critic's slow copy, which gives the targets."""

    def __init__(self, config: Config, feat: int, action_dim: int, actor_dim: int | None = None):
        super().__init__()
        act, units = config.act, config.units
        self.actor = Actor(
            feat,
            action_dim,
            layers=config.actor_layers,
            units=units,
            act=act,
            min_std=config.actor_min_std,
            outputs=actor_dim,
        )
        self.critic = ScalarHead(feat, layers=config.value_layers, units=units, act=act)
        self.slow_critic = copy.deepcopy(self.critic).requires_grad_(False)

    def noise(self, world: WorldModel, starts: int, horizon: int) -> tuple[Tensor, Tensor]:
        """The chance in a rollout: `RSSM.noise` (N, H, ...) for the latents, uniform (N, H, A) for the actions."""
        latent = world.rssm.noise(starts, horizon)
        return latent, torch.rand(starts, horizon, self.actor.action_dim, device=latent.device)

    def imagine(self, world: WorldModel, start: State, noise: tuple[Tensor, Tensor], log_prob: bool = True) -> Imagined:
        """Roll the prior from ``start``, a state of (N, ...), with the actor's samples, as far as ``noise`` goes.

        Without ``log_prob`` the actions' log probabilities are left out (they are zeros).
        """
        state, feats, means, stds, actions = start, [world.rssm.feat(start)], [], [], []
        for latent, uniform in zip(*(n.unbind(1) for n in noise), strict=True):
            policy = self.actor(feats[-1].detach())
            action = policy.icdf(uniform)
            state = world.rssm.imagine_step(state, pad_action(action, world.action_dim), latent)
            feats.append(world.rssm.feat(state))
            means.append(policy.loc), stds.append(policy.scale), actions.append(action.detach())
        policy = TruncatedNormal(torch.stack(means), torch.stack(stds))
        entropy = policy.entropy().sum(-1)
        log_probs = policy.log_prob(torch.stack(actions)).sum(-1) if log_prob else torch.zeros_like(entropy)
        return Imagined(torch.stack(feats), log_probs, entropy)

    def actor_loss(self, seen: Imagined, returns: Tensor, baseline: Tensor, weight: Tensor, config: Config) -> Tensor:
        """Eq. 7 and 10, negated: -E[ rho V + (1 - rho) ln pi(a) sg(V - v) + beta H ], over a_0 .. a_{H-2}.

        rho is 1 with ``actor_grad: dynamics``, 0 with ``reinforce``, ``actor_grad_mix`` with ``both``.
        returns, baseline and weight (H, N); see `Imagined` for which pairs with which.
        """
        rho = {"dynamics": 1.0, "reinforce": 0.0, "both": config.actor_grad_mix}[config.actor_grad]
        objective = config.actor_entropy * seen.entropy[:-1]
        if rho > 0:
            objective = objective + rho * returns[1:]
        if rho < 1:
            advantage = (returns[1:] - baseline[:-1]).detach()
            objective = objective + (1 - rho) * seen.log_prob[:-1] * advantage
        return -(weight[:-1] * objective).mean()

    def critic_loss(
        self, feat: Tensor, returns: Tensor, weight: Tensor, constraint: Constraint | None, alpha: float
    ) -> tuple[Tensor, Tensor]:
        """Eq. 11, and Eq. 6 where ``constraint(value, feat)`` gives the term of each state that alpha weighs.

        feat (H, N, F), returns and weight (H, N) -> (loss, mean constraint), scalars.
        """
        feat = feat.detach()
        value = self.critic(feat)
        extra = torch.zeros_like(value) if constraint is None else constraint(value, feat)
        loss = (weight * (scalar_nll(value, returns.detach()) + alpha * extra)).mean()
        return loss, extra.detach().mean()


def frozen(module: nn.Module) -> nn.Module:
    """A view of ``module`` on the same weights that needs no gradients, so that none are prepared for."""
    view = copy.deepcopy(module).requires_grad_(False)
    for ours, theirs in zip(view.parameters(), module.parameters(), strict=True):
        ours.data = theirs.data
    return view


def micro_batches(count: int, size: int, *inputs: Tree) -> Iterator[tuple[float, tuple[Tree, ...]]]:
    """``inputs`` cut into ``count`` parts along their tensors' first dimension, of ``size``; and each part's share."""
    if count == 1:
        yield 1.0, inputs
        return
    for rows in torch.arange(size).tensor_split(min(count, size)):
        yield len(rows) / size, rows_of(inputs, slice(int(rows[0]), int(rows[-1]) + 1))


def rows_of(tree: Tree, rows: slice) -> Tree:
    """Those rows of every tensor in ``tree`` that has a first dimension."""
    if isinstance(tree, dict):
        return {key: rows_of(value, rows) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(rows_of(value, rows) for value in tree)
    return tree[rows] if torch.is_tensor(tree) and tree.dim() else tree


def start_states(post: State, count: int = 0) -> State:
    """Posterior states of a batch as starts, cut from their history: (B, T, ...) -> (N, ...).

    N is B * T, or ``count`` of them drawn at random without replacement.
    """
    flat = {k: v.detach().flatten(0, 1) for k, v in post.items()}
    deter = flat["deter"]
    if not 0 < count < len(deter):
        return flat
    chosen = torch.randperm(len(deter), device=deter.device)[:count]
    return {k: v[chosen] for k, v in flat.items()}

"""The losses of CoWorld, each a pure function that names its equation, and the models that they train.

Symbols: B sequences, T steps, N start states of imagination, H imagined steps, F features, E embedding, A actions,
M sources. A prime (phi', psi', xi') marks the source domain, as in the paper.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config import Config
from dreamer_v3 import parts
from dreamer_v3.distributions import TwoHot
from dreamer_v3.losses import ReturnRange, constrained_returns, separate_kl
from networks import ScalarHead, State, StateSpaceModel, UnitNormal, first_rows, pad_action, scalar_nll, scale_image
from ops.one_hot import Features
from senses import IMAGE, Senses, StateNormalizer, make_decoder, make_encoder

RolloutNoise = tuple[Tensor, Tensor, tuple[Tensor | None, ...]]  # latents, actions, ensemble members


# Losses ---------------------------------------------------------------------------------------------------------


def image_nll(mean: Tensor, image: Tensor) -> Tensor:
    """-ln p(o_t | h_t, z_t) of Eq. 2, unit variance, without its constant.

    mean (B, T, H, W, C) in the scale of `scale_image`, image uint8 of the same shape -> the mean over B and T.
    """
    steps = image.shape[0] * image.shape[1]
    return F.mse_loss(mean.float(), scale_image(image), reduction="sum") / (2 * steps)


def balanced_kl(
    rssm: StateSpaceModel, post: State, prior: State, balance: float, free_nats: float
) -> tuple[Tensor, Tensor]:
    """beta_1's term of Eq. 2 with DreamerV2's KL balancing.

    ``balance`` of the gradient trains the prior, the rest the posterior. Each side's mean over B and T is clipped to
    at least ``free_nats`` nats. Returns (loss, the unclipped mean KL), both scalars.
    """
    detached = [{k: v.detach() for k, v in state.items()} for state in (post, prior)]
    to_prior = rssm.kl(detached[0], prior).mean()
    to_post = rssm.kl(post, detached[1]).mean()
    loss = balance * to_prior.clamp(min=free_nats) + (1 - balance) * to_post.clamp(min=free_nats)
    return loss, to_prior.detach()


def state_alignment(source_embed: Tensor, target_embed: Tensor) -> Tensor:
    """beta_2's term of Eq. 3: KL[ sg(g(enc_phi'(o))) || g(enc_phi(o)) ] with g the softmax over features.

    Both embeddings (B, T, E) are of the same target images; the source's is a constant. Sum over E, mean over B and
    T: a scalar that does not grow with the sequence length.
    """
    source = source_embed.detach().float().log_softmax(-1)
    return F.kl_div(target_embed.float().log_softmax(-1), source, reduction="none", log_target=True).sum(-1).mean()


def information(embed: Tensor) -> Tensor:
    """How well an encoder distinguishes the images of a batch: the mean KL of its softmaxed embeddings (B, T, E) to
    their mean, a scalar. It is 0 if the encoder gives all images the same embedding."""
    logs = embed.detach().float().log_softmax(-1).flatten(0, -2)
    mean = torch.logsumexp(logs, 0) - math.log(len(logs))
    return F.kl_div(mean.expand_as(logs), logs, reduction="batchmean", log_target=True)


def distribution_alignment(source_embed: Tensor, target_embed: Tensor) -> Tensor:
    """Eq. 3's term if the source has no image encoder (Table 4). The two batches are of different observations, so
    the means over B and T of the softmaxed embeddings are compared. (B, T, E) each -> a scalar.

    The paper does not say how it aligns them; this is our choice.
    """
    source, target = (e.float().softmax(-1).mean((0, 1)).log() for e in (source_embed.detach(), target_embed))
    return F.kl_div(target, source, reduction="sum", log_target=True)


def relabel_reward(source_reward: Tensor, target_reward: Tensor, k: float) -> Tensor:
    """Eq. 4: r~ = (1 - k) sg(r_phi'(h~, z~)) + k r(T), elementwise over (B, T)."""
    return (1 - k) * source_reward.detach() + k * target_reward


def reward_alignment(source_nll: Tensor, target_nll: Tensor, eta: Tensor | float) -> Tensor:
    """Eq. 5: eta * NLL on source data + (1 - eta) * NLL on target data with relabelled rewards. Scalars."""
    return eta * source_nll + (1 - eta) * target_nll


def eta(step: int, config: Config) -> float:
    """Eq. 5's eta after ``step`` agent steps of stage B: from ``eta_start`` to ``eta_end`` over ``eta_steps``."""
    share = min(step / config.eta_steps, 1.0) if config.eta_steps > 0 else 1.0
    return config.eta_start + (config.eta_end - config.eta_start) * share


def lambda_return(reward: Tensor, next_value: Tensor, discount: Tensor, lambda_: float) -> Tensor:
    """Eq. 8: V_t = r_t + gamma_t ((1 - lambda) v(z_{t+1}) + lambda V_{t+1}), and V_H = r_H + gamma_H v(z_{H+1}).

    reward, next_value and discount (H, ...), next_value[t] = v(z_{t+1}) -> returns (H, ...) in time order.
    """
    returns = [next_value[-1]]
    for r, v, d in reversed(list(zip(reward, next_value, discount, strict=True))):
        returns.append(r + d * ((1 - lambda_) * v + lambda_ * returns[-1]))
    return torch.stack(returns[:0:-1])


def value_bound(source_value: Tensor, mode: str) -> Tensor:
    """What v_xi(z) is compared with in Eq. 6: sg v_xi'(z) (``minmax``), its mean (``constant``, a control), or nothing
    (``brute``, w/o Max)."""
    if mode == "brute":
        return torch.full_like(source_value, -math.inf)
    bound = source_value.detach()
    return bound.mean().expand_as(bound) if mode == "constant" else bound


def value_constraint(value: Tensor, bound: Tensor) -> Tensor:
    """alpha's term of Eq. 6, elementwise: max(v_xi(z), `value_bound`). Where the bound is larger it has no gradient."""
    return torch.maximum(value, bound)


def alpha(source_value: Tensor, config: Config, returns: ReturnRange | None = None) -> Tensor | float:
    """Eq. 6's alpha, in units of the return; ``value_constraint_relative``: a share of the mean source value. With the
    range S of ``returns`` it is in units of S."""
    if returns is not None:
        return config.value_constraint_scale * returns.scale
    share = source_value.mean().abs() if config.value_constraint_relative else 1.0
    return config.value_constraint_scale * share


def weighted_sum(losses: dict[str, Tensor], scales: dict[str, float]) -> Tensor:
    """The weighted sum of named losses. Raises KeyError if a loss has no scale, or a scale no loss."""
    if losses.keys() != scales.keys():
        raise KeyError(f"losses and scales differ in {sorted(losses.keys() ^ scales.keys())}")
    return sum(scales[name] * loss for name, loss in losses.items())


# Models ---------------------------------------------------------------------------------------------------------


@dataclass
class WorldModelOutput:
    """The world model on a batch: embed (B, T, E), post and prior with tensors (B, T, ...), feat (B, T, F)."""

    embed: Tensor
    post: State
    prior: State
    feat: Tensor

    @property
    def latent(self) -> State:
        """The posterior's stoch and deter, from which imagination starts."""
        return {key: self.post[key] for key in ("stoch", "deter")}

    def split(self, batch: int) -> tuple["WorldModelOutput", "WorldModelOutput"]:
        """The first ``batch`` sequences and the rest."""
        parts = []
        for part in (slice(None, batch), slice(batch, None)):
            post, prior = ({k: v[part] for k, v in s.items()} for s in (self.post, self.prior))
            parts.append(WorldModelOutput(self.embed[part], post, prior, self.feat[part]))
        return tuple(parts)


class WorldModel(nn.Module):
    """phi: encoder, RSSM, and the observation, reward and (optional) discount heads on its features. Its observations,
    ``senses``, are images, low-dimensional states (Table 4), or both."""

    def __init__(self, config: Config, action_dim: int, senses: Senses = IMAGE):
        super().__init__()
        self.action_dim, self.senses, self.state_normalizer = action_dim, senses, StateNormalizer(senses, config)
        self.encoder = make_encoder(senses, config)
        self.rssm = self.make_rssm(config, self.encoder.embed, action_dim)
        feat = self.rssm.feat_size
        self.decoder = make_decoder(senses, config, feat)
        self.reward = parts.make_scalar_head(config, feat, config.reward_layers)
        self.discount = None
        if config.pred_discount:
            self.discount = ScalarHead(feat, layers=config.discount_layers, **parts.hidden(config))
        parts.initialise_as_configured(self, config)

    def make_rssm(self, config: Config, embed: int, action: int) -> StateSpaceModel:
        """The RSSM for embeddings of size ``embed`` and padded actions of size ``action``."""
        return parts.make_rssm(config, embed, action)

    def loss_scales(self, config: Config) -> dict[str, float]:
        """The weight of each of `losses`."""
        observed = {"image": config.image_scale, "state": config.state_scale}
        scales = {part: observed[part] for part in self.senses.parts}
        scales |= {"reward": config.reward_scale, "kl": config.kl_scale}
        return scales if self.discount is None else {**scales, "discount": config.discount_scale}

    def embed(self, batch: dict[str, Tensor]) -> Tensor:
        """Observations, image (B, T, H, W, C) uint8 and states (B, T, ...), to embeddings (B, T, E)."""
        return self.encoder(*self.observed(batch))

    def observed(self, batch: dict[str, Tensor]) -> list[Tensor]:
        """`Senses.observed`, with the states (B, T, S) as `StateNormalizer` has them."""
        found = self.senses.observed(batch)
        return [*found[:-1], self.state_normalizer(found[-1])] if self.senses.state else found

    def observe(self, batch: dict[str, Tensor], noise: Tensor | None = None) -> WorldModelOutput:
        """Posterior and prior for observations (B, T, ...) and actions (B, T, own A), from the zero state."""
        return self.rollout_posterior(self.embed(batch), batch["action"], noise, first_rows(batch))

    def observe_pair(
        self, batches: Sequence[dict[str, Tensor]], noise: Sequence[Tensor], second_embed: Tensor | None = None
    ) -> tuple[WorldModelOutput, WorldModelOutput]:
        """`observe` for two batches in one scan. The second may have an embedding (B, T, E) already."""
        first, second = batches
        actions = [pad_action(batch["action"], self.action_dim) for batch in batches]
        embeds = [self.embed(first), self.embed(second) if second_embed is None else second_embed]
        inputs = torch.cat(embeds), torch.cat(actions), torch.cat(list(noise)), first_rows(*batches)
        return self.rollout_posterior(*inputs).split(len(first["action"]))

    def rollout_posterior(
        self, embed: Tensor, action: Tensor, noise: Tensor | None = None, first: Tensor | None = None
    ) -> WorldModelOutput:
        """`RSSM.observe` from the zero state, of embed (B, T, E) and action (B, T, own A), which is padded here."""
        post, prior = self.rssm.observe(embed, pad_action(action, self.action_dim), noise=noise, first=first)
        return WorldModelOutput(embed, post, prior, self.rssm.feat(post))

    def means(self, feat: Tensor) -> tuple[Tensor, ...]:
        """The means of the observations of features (B, T, F), in the order of `Senses.parts`."""
        means = self.decoder(feat)
        return means if isinstance(means, tuple) else (means,)

    def observation_losses(self, feat: Tensor, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """-ln p(o_t | h_t, z_t) of Eq. 2 for each of `Senses.parts`, unit variance, means over B and T."""
        losses = {}
        for part, mean, truth in zip(self.senses.parts, self.means(feat), self.observed(batch), strict=True):
            if part == "image":
                losses[part] = image_nll(mean, truth)
            else:
                losses[part] = scalar_nll(mean.float(), truth).sum(-1).mean()
        return losses

    def losses(
        self, output: WorldModelOutput, batch: dict[str, Tensor], config: Config
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The terms of Eq. 2, each a scalar mean over B and T, and the unclipped KL for the log."""
        states = self.rssm, output.post, output.prior
        if config.kl_loss == "separate":
            kl, plain_kl = separate_kl(*states, config.kl_representation, config.kl_free)
        else:
            kl, plain_kl = balanced_kl(*states, config.kl_balance, config.kl_free)
        losses = {
            **self.observation_losses(output.feat, batch),
            "reward": self.reward.prediction(output.feat).nll(batch["reward"]).mean(),
            "kl": kl,
        }
        if self.discount is not None:
            losses["discount"] = F.binary_cross_entropy_with_logits(self.discount(output.feat), batch["discount"])
        return losses, plain_kl

    def predicted_discount(self, feat: Features, gamma: float) -> Tensor:
        """gamma times the predicted probability that the episode continues, (..., F) -> (...)."""
        if self.discount is None:
            return torch.full(feat.shape[:-1], gamma, device=feat.device)
        return gamma * torch.sigmoid(self.discount(feat))

    @torch.no_grad()
    def open_loop(self, batch: dict[str, Tensor], context: int) -> Tensor:
        """Reconstruct ``context`` frames, then predict the other frames from the actions alone.

        batch: observations and action (B, T, ...) -> predicted images, uint8 (B, T, H, W, C).
        """
        action = pad_action(batch["action"], self.action_dim)
        given = self.embed({key: batch[key][:, :context] for key in self.senses.keys})
        post, _ = self.rssm.observe(given, action[:, :context])
        predicted = self.predict({k: v[:, -1] for k, v in post.items()}, action[:, context:])
        return self.decode(torch.cat([self.rssm.feat(post), *predicted], 1))

    def predict(self, state: State, action: Tensor) -> list[Tensor]:
        """Features (N, 1, F) of the prior's states after each of the actions (N, H, padded A), from ``state``."""
        feats = []
        for a in action.unbind(1):
            state = self.rssm.imagine_step(state, a)
            feats.append(self.rssm.feat(state)[:, None])
        return feats

    def decode(self, feat: Tensor) -> Tensor:
        """Images (B, T, H, W, C) uint8 of features (B, T, F)."""
        return ((self.means(feat)[0].float() + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)


@dataclass
class ImaginedTrajectory:
    """A rollout of the prior with the actor's actions.

    state   s_0 --> s_1 --> ... --> s_{H-1} --> s_H       feat (H + 1, N, F)
    action     a_0     a_1              a_{H-1}           log_prob, entropy (H, N), of a_t at s_t
    reward  r_0     r_1     ...     r_{H-1}               of arriving at s_t: the head reads s_t
    return  V_0     V_1     ...     V_{H-1}               V_t starts with r_t: v(s_t) estimates it
    so a_t first affects V_{t+1}; a_{H-1} affects no return and is not trained.
    """

    feat: Tensor
    action: Tensor  # (H, N, A), without gradient
    log_prob: Tensor
    entropy: Tensor


class ActorCritic(nn.Module):
    """psi and xi: the actor, the critic and the critic's slow copy, which gives the targets.

    ``return_range`` is that of ``returns: percentile``, else None.
    """

    def __init__(self, config: Config, feat: int, action_dim: int, actor_dim: int | None = None):
        super().__init__()
        self.actor = parts.make_actor(config, feat, action_dim, actor_dim)
        self.critic = parts.make_scalar_head(config, feat, config.value_layers)
        parts.initialise_as_configured(self, config)
        self.slow_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.return_range = ReturnRange() if config.returns == "percentile" else None

    def noise(self, world: WorldModel, starts: int, horizon: int) -> RolloutNoise:
        """Random numbers of a rollout of H steps.

        `RSSM.noise` (N, H, ...) for the latents, uniform numbers (N, H, A) for the actions, H `RSSM.draw_members`.
        """
        latent = world.rssm.noise(starts, horizon)
        uniform = torch.rand(starts, horizon, self.actor.action_dim, device=latent.device)
        return latent, uniform, world.rssm.draw_members(horizon)

    def imagine(
        self, world: WorldModel, start: State, noise: RolloutNoise, log_prob: bool = True, dynamics: bool = True
    ) -> ImaginedTrajectory:
        """Roll out the prior from ``start``, a state (N, ...), with the actor's samples for the H steps of ``noise``.

        Without ``log_prob`` log probabilities are zeros. Without ``dynamics`` features have no gradient by the actions,
        and the actor's gradient is one pass over all states.
        """
        rssm, state, feats, policies, actions = world.rssm, start, [world.rssm.feat(start)], [], []
        with torch.set_grad_enabled(dynamics and torch.is_grad_enabled()):
            for latent, uniform, member in zip(*(x.unbind(1) for x in noise[:2]), noise[2], strict=True):
                policies.append(self.actor(rssm.sampled(feats[-1].detach())))
                actions.append(policies[-1].icdf(uniform))
                executed = policies[-1].executed(actions[-1])
                state = rssm.imagine_step(state, pad_action(executed, world.action_dim), latent, member)
                feats.append(rssm.feat(state))
        feat, action = torch.stack(feats), torch.stack(actions).detach()
        if dynamics:
            policy = type(policies[0])(*(torch.stack([getattr(p, key) for p in policies]) for key in ("loc", "scale")))
        else:
            policy = self.actor(rssm.sampled(feat[:-1]))
        entropy = policy.entropy().sum(-1)
        log_probs = policy.log_prob(action).sum(-1) if log_prob else torch.zeros_like(entropy)
        return ImaginedTrajectory(feat, action, log_probs, entropy)

    def actor_loss(
        self, trajectory: ImaginedTrajectory, returns: Tensor, baseline: Tensor, weight: Tensor, config: Config,
        advantage: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Eq. 7 and 10, negated: -E[ rho V + (1 - rho) ln pi(a) sg(V - v) + beta H ], over a_0 .. a_{H-2}.

        rho is 1 with ``actor_grad: dynamics``, 0 with ``reinforce``, ``actor_grad_mix`` with ``both``.
        returns, baseline and weight (H, N); `ImaginedTrajectory` shows which action belongs to which return.
        ``advantage`` (H - 1, N) replaces V - v.
        """
        rho = {"dynamics": 1.0, "reinforce": 0.0, "both": config.actor_grad_mix}[config.actor_grad]
        objective = config.actor_entropy * trajectory.entropy[:-1]
        if rho > 0:
            objective = objective + rho * returns[1:]
        if rho < 1:
            advantage = (returns[1:] - baseline[:-1]).detach() if advantage is None else advantage
            objective = objective + (1 - rho) * trajectory.log_prob[:-1] * advantage
        return -(weight[:-1] * objective).mean()

    @staticmethod
    def value_nll(prediction: UnitNormal | TwoHot, returns: Tensor, slow_value: Tensor | None) -> Tensor:
        """Eq. 11 elementwise; with DreamerV3's regulariser if there is a ``slow_value``."""
        nll = prediction.nll(returns.detach())
        return nll if slow_value is None else nll + prediction.nll(slow_value)

    @classmethod
    def critic_loss(
        cls, prediction: UnitNormal | TwoHot, returns: Tensor, weight: Tensor, source_value: Tensor | None, mode: str,
        alpha: Any, slow_value: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
        """Eq. 11; with the source critic's values of the same states, Eq. 6: adds alpha * `value_constraint`.

        The critic's prediction, returns, weight and source_value (H, N), alpha a number or a scalar -> the loss, a
        scalar, and metrics of the constraint. ``slow_value`` (H, N) is a second target: DreamerV3's regulariser.
        """
        if source_value is None:
            return (weight * cls.value_nll(prediction, returns, slow_value)).mean(), {}
        value, bound = prediction.mean, value_bound(source_value, mode)
        extra = value_constraint(value, bound)
        metrics = {"value_constraint": extra.detach().mean(), "constraint_active": (value >= bound).float().mean()}
        centred = [(v.detach() - v.detach().mean()).flatten() for v in (value, source_value)]
        metrics |= {"source_value": source_value.mean(), "source_value_correlation": F.cosine_similarity(*centred, 0)}
        if isinstance(prediction, TwoHot):
            returns, alpha = constrained_returns(returns, value, bound, alpha), 0.0
        return (weight * (cls.value_nll(prediction, returns, slow_value) + alpha * extra)).mean(), metrics

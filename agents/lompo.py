"""LOMPO (arXiv 2012.11547, as in V-D4RL): an actor-critic on the latents of a fixed ensemble world model.

Symbols: B transitions, N start states, H imagined steps, K members of the ensemble, F features, A actions.
"""

import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from agents.agent import Agent
from agents.base import Batch, Metrics
from agents.baselines import EnsembleWorldModel
from agents.model_free import EDGE
from agents.optim import Optimizer, Tree, add_metrics, make_optimizer, micro_batches
from agents.pixel_networks import move_towards
from config import Config
from networks import Float32Linear, State, mlp, pad_action

Transitions = dict[str, Tensor]  # feat and next_feat (B, F), action (B, A), reward and discount (B,)


def log_prob_deviation(log_prob: Tensor) -> Tensor:
    """LOMPO's penalty: the standard deviation over members of the log-probability of one latent. (K, N) -> (N,)."""
    return log_prob.std(0, correction=0)


def draw_rows(weight: Tensor, count: int) -> Tensor:
    """``count`` random indices, each with a probability proportional to its ``weight`` (N,); one may come twice."""
    sums = weight.cumsum(0)
    return torch.searchsorted(sums, (1 - torch.rand(count, device=sums.device)) * sums[-1])


class ClippedNormal(NamedTuple):
    """The policy's distribution: its mode (..., A) plus normal noise, clipped to [-1, 1]."""

    mode: Tensor
    std: float

    def icdf(self, value: Tensor) -> Tensor:
        """The action for uniform random numbers (..., A)."""
        return (self.mode + self.std * torch.special.ndtri(value.clamp(EDGE, 1 - EDGE))).clamp(-1, 1)


class LatentActor(nn.Module):
    """Features to a policy whose mode is a tanh, and whose noise has a fixed standard deviation."""

    def __init__(self, config: Config, feat: int, actions: int):
        super().__init__()
        self.layers = mlp(feat, actions, config.actor_layers, config.units, config.act, last=Float32Linear)
        self.noise = config.imagined_noise

    def forward(self, feat: Tensor) -> ClippedNormal:
        return ClippedNormal(torch.tanh(self.layers(feat)), self.noise)


class LatentActorCritic(nn.Module):
    """The actor, two Q-functions and their slow copies."""

    def __init__(self, config: Config, feat: int, actions: int):
        super().__init__()
        self.actor = LatentActor(config, feat, actions)
        sizes = feat + actions, 1, config.value_layers, config.units, config.act
        self.critics = nn.ModuleList(mlp(*sizes, last=Float32Linear) for _ in range(2))
        self.slow_critics = copy.deepcopy(self.critics).requires_grad_(False)

    @staticmethod
    def values(critics: nn.ModuleList, feat: Tensor, action: Tensor) -> Tensor:
        """feat (..., F), action (..., A) -> (2, ...)."""
        x = torch.cat([feat, action.to(feat.dtype)], -1)
        return torch.stack([critic(x) for critic in critics]).squeeze(-1)


class LOMPOAgent(Agent):
    """LOMPO. `update` trains actor and critics; the world model, trained before, is fixed.

    Half of a batch are transitions between posterior states of the data. The other half are imagined from such states
    with the present policy and its noise. V-D4RL keeps both kinds in a buffer; its imagined ones are of older policies.
    Its actor's loss uses the critics before their update, here after it.
    """

    world_model_class = EnsembleWorldModel

    def build_behavior(self, actor_dim: int | None) -> None:
        config = self.config
        self.behavior = LatentActorCritic(config, self.world.rssm.feat_size, self.action_dim).to(self.device)
        self.actor_opt = make_optimizer([self.behavior.actor], config.actor_lr, config)
        self.critic_opt = make_optimizer([self.behavior.critics], config.value_lr, config)
        self.behavior_updates = 0

    def value(self, feat: Tensor) -> Tensor:
        behavior = self.behavior
        q = behavior.values(behavior.critics, feat, behavior.actor(feat).mode).amin(0)
        return self.world.reward(feat) + self.config.discount * q

    def update(self, batch: Batch) -> Metrics:
        """One update of critics and actor on a batch of sequences."""
        post = self.infer_posterior(batch)
        with self.autocast():
            imagined, metrics = self.imagined_transitions(post)
            data = self.data_transitions(post, batch)
            both = {key: torch.cat([value, imagined[key]]) for key, value in data.items()}
        metrics |= self.descend("critic", self.critic_loss, self.critic_opt, both)
        metrics |= self.descend("actor", self.actor_loss, self.actor_opt, both["feat"])
        move_towards(self.behavior.slow_critics, self.behavior.critics, self.config.target_tau)
        self.behavior_updates += 1
        return metrics

    def descend(
        self, name: str, loss: Callable[..., tuple[Tensor, Metrics]], optimizer: Optimizer, *inputs: Tree
    ) -> Metrics:
        """One step of an optimiser on ``loss(*inputs)``, in ``grad_accum`` micro-batches. Returns the metrics."""
        metrics = {}
        for share, part in micro_batches(self.config.grad_accum, *inputs):
            with self.autocast():
                total, values = loss(*part)
            self.backward(total, share, optimizer)
            metrics = add_metrics(metrics, share, values)
        return {**metrics, f"{name}_grad_norm": optimizer.step()}

    @torch.no_grad()
    def data_transitions(self, post: State, batch: Batch) -> Transitions:
        """``transitions`` random ones of a batch's posterior states (B, T, ...), none of them across episodes."""
        feat = self.world.rssm.feat(post)
        if "is_first" in batch:
            within = ~batch["is_first"][:, 1:].flatten()
            chosen = draw_rows(within.float(), self.config.transitions)
        else:
            pairs = feat.shape[0] * (feat.shape[1] - 1)
            chosen = torch.randint(pairs, (self.config.transitions,), device=self.device)
        columns = {
            "feat": feat[:, :-1],
            "next_feat": feat[:, 1:],
            "action": batch["action"][:, 1:],
            "reward": batch["reward"][:, 1:],
            "discount": batch["discount"][:, 1:],
        }
        return {key: value.flatten(0, 1)[chosen].float() for key, value in columns.items()}

    @torch.no_grad()
    def imagined_transitions(self, post: State) -> tuple[Transitions, Metrics]:
        """``transitions`` or a few more, imagined for ``imag_horizon`` steps, with penalised rewards.

        States are start states with a probability proportional to their weight, see `Agent.weighted`.
        """
        config, world = self.config, self.world
        flat = {key: value.flatten(0, 1) for key, value in post.items()}
        starts = -(-config.transitions // config.imag_horizon)
        weight = flat.pop("weight", None)
        if weight is None:
            chosen = torch.randint(len(flat["deter"]), (starts,), device=self.device)
        else:
            chosen = draw_rows(weight, starts)
        state = {key: value[chosen] for key, value in flat.items()}
        columns: dict[str, list[Tensor]] = {key: [] for key in ("feat", "next_feat", "action", "penalty")}
        for member in world.rssm.draw_members(config.imag_horizon):
            feat = world.rssm.feat(state)
            policy = self.behavior.actor(feat)
            action = policy.icdf(torch.rand_like(policy.mode))
            state = world.rssm.imagine_step(state, pad_action(action, world.action_dim), member=member)
            found = feat, world.rssm.feat(state), action, self.deviation(state)
            for column, value in zip(columns.values(), found, strict=True):
                column.append(value)
        stacked = {key: torch.cat(column).float() for key, column in columns.items()}
        penalty = stacked.pop("penalty")
        reward = world.reward(stacked["next_feat"]) - config.uncertainty_scale * penalty
        discount = world.predicted_discount(stacked["next_feat"], 1.0)
        metrics = {"imagined_reward": reward.mean(), "disagreement": penalty.mean()}
        return {**stacked, "reward": reward, "discount": discount}, metrics

    def deviation(self, state: State) -> Tensor:
        """`log_prob_deviation` of the latents of imagined states (N, ...)."""
        rssm = self.world.rssm
        dist = rssm.dist(rssm.prior(state["deter"]))
        return log_prob_deviation(dist.log_prob(state["stoch"].view(-1, *dist.event_shape).float()))

    def critic_loss(self, batch: Transitions) -> tuple[Tensor, Metrics]:
        """The squared errors of both critics; the target's action is the policy's mode."""
        behavior = self.behavior
        with torch.no_grad():
            action = behavior.actor(batch["next_feat"]).mode
            slow = behavior.values(behavior.slow_critics, batch["next_feat"], action).amin(0)
            target = batch["reward"] + self.config.discount * batch["discount"] * slow
        values = behavior.values(behavior.critics, batch["feat"], batch["action"])
        loss = (values - target).square().mean(1).sum()
        return loss, {"critic_loss": loss, "value": target.mean()}

    def actor_loss(self, feat: Tensor) -> tuple[Tensor, Metrics]:
        """Minus the smaller value of the policy's mode."""
        behavior = self.behavior
        loss = -behavior.values(behavior.critics, feat, behavior.actor(feat).mode).amin(0).mean()
        return loss, {"actor_loss": loss}

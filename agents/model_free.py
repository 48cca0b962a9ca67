"""Model-free agents on frame stacks: behavior cloning, DrQ+BC and CQL, as in V-D4RL (arXiv 2206.04779).

Symbols: B transitions, K frames of an observation, n steps of a return, A actions, M actions of CQL's sum.
"""

import copy

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agents.base import BaseAgent, Batch, Metrics, Store
from agents.optim import Optimizer
from agents.pixel_networks import (
    SMALLEST,
    StackActor,
    StackEncoder,
    TwinCritic,
    move_towards,
    random_shift,
    whole_image,
)
from config import Config
from networks import State
from senses import IMAGE, Senses
from tools import BadInput

EDGE = 1e-6  # actions stay so far inside [-1, 1]


# Losses and targets


def noisy_action(mean: Tensor, noise: Tensor, clip: float | None = None) -> Tensor:
    """DrQ-v2's action: mean + noise, the noise clipped to +-``clip``, the action to [-1, 1]. All (..., A).

    The gradient with respect to the mean is 1, also where the action was clipped.
    """
    noise = noise if clip is None else noise.clamp(-clip, clip)
    action = mean + noise
    return action + (action.detach().clamp(-1 + EDGE, 1 - EDGE) - action.detach())


def nstep_return(reward: Tensor, discount: Tensor, gamma: float, steps: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """sum over i < n of gamma^i d_1 ... d_i r_{i+1}, and the factor gamma^n d_1 ... d_n of the value after n steps.

    reward r_1 ... r_n and discount d_1 ... d_n, (B, n) -> (B,), (B,). Equal to V-D4RL's where only an episode's last
    step has discount 0. ``steps`` (B,) is n of each transition, if an episode ends before; rewards after it are 0.
    """
    if steps is not None:
        factor = torch.where(torch.arange(reward.shape[1], device=steps.device) < steps[:, None], gamma, 1.0)
    else:
        factor = gamma
    factors = (factor * discount).cumprod(1)
    before = torch.cat([torch.ones_like(factors[:, :1]), factors[:, :-1]], 1)
    return (before * reward).sum(1), factors[:, -1]


def drq_bc_loss(q: Tensor, action: Tensor, data_action: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """-lambda Q + ||a - a_data||^2 with lambda = scale / mean |Q| (TD3+BC, arXiv 2106.06860, Eq. 5).

    q (B,), actions (B, A) -> the loss, and its second term, the mean over B and A.
    """
    cloning = F.mse_loss(action, data_action)
    return cloning - scale / q.detach().abs().mean() * q.mean(), cloning


def conservative_gap(values: Tensor, data_values: Tensor) -> Tensor:
    """CQL(H)'s term (arXiv 2006.04779, Eq. 4): the mean of logsumexp_a Q(s, a) - Q(s, a_data), a number a critic.

    values (2, B, M), with the data's action among the M; data_values (2, B) -> (2,).
    """
    return (values.logsumexp(-1) - data_values).mean(-1)


# Agents


class StackAgent(BaseAgent):
    """What the model-free agents share: an encoder of frame stacks, noise, batches of transitions, acting."""

    COUNTERS = ("updates",)

    def __init__(
        self, config: Config, action_dim: int, model_action_dim: int, device: torch.device, senses: Senses = IMAGE
    ):
        """``senses``: images alone."""
        super().__init__(config, action_dim, device, senses)
        self.updates = 0
        if self.input_size < SMALLEST:
            size = ",".join(map(str, config.size))
            raise BadInput(
                f"--size {size}: the encoder of method {config.method} gets {self.input_size} pixels of these images, "
                f"and needs {SMALLEST}; give a larger size"
            )
        self.encoder = StackEncoder(senses.channels * config.frame_stack, self.input_size).to(device)
        self.build()

    @property
    def input_size(self) -> int:
        """Pixels of the encoder's images."""
        return self.config.size[0]

    def build(self) -> None:
        """Make the networks after the encoder, and the optimisers."""
        raise NotImplementedError

    def make_actor(self) -> StackActor:
        config = self.config
        sizes = self.encoder.outputs, config.feature_size, config.q_units, self.action_dim
        return StackActor(*sizes).to(self.device)

    # Acting

    @property
    def noise_scale(self) -> float:
        """Standard deviation of the noise, falling linearly from ``noise_start`` to ``noise_end``."""
        config = self.config
        share = min(self.updates / config.noise_steps, 1.0) if config.noise_steps else 1.0
        return config.noise_start + (config.noise_end - config.noise_start) * share

    def mean_action(self, encoded: Tensor) -> Tensor:
        """The policy's mode, (N, E) -> (N, A)."""
        return torch.tanh(self.actor(encoded))

    def sampled_action(self, encoded: Tensor, normal: Tensor) -> Tensor:
        """The action (N, A) with the normal random numbers (N, A)."""
        return noisy_action(self.mean_action(encoded), self.noise_scale * normal)

    def view(self, frames: Tensor) -> Tensor:
        """What the encoder gets of frames (N, K, H, W, 3 a camera) when nothing is augmented: (N, C, S, S)."""
        return whole_image(frames)

    def initial_state(self, n: int) -> State:
        shape = n, self.config.frame_stack, *self.config.size, self.senses.channels
        image = torch.zeros(shape, device=self.device)  # float, like the states of other agents
        return {"image": image, "action": torch.zeros(n, self.action_dim, device=self.device)}

    def latent_noise(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        return torch.zeros(n, 1, 0, device=self.device)

    def policy_modules(self) -> list[nn.Module]:
        return [self.encoder, self.actor]

    def policy_step(self, inputs: Batch, state: State, keep: Tensor, noise: Tensor, uniform: Tensor | None) -> State:
        image = inputs["image"].float()
        older = torch.cat([state["image"][:, 1:], image], 1)
        frames = torch.where(keep.bool()[..., None, None, None], older, image.expand_as(older))
        encoded = self.encoder(self.view(frames))
        if uniform is None:
            action = self.mean_action(encoded)
        else:
            action = self.sampled_action(encoded, torch.special.ndtri(uniform.clamp(EDGE, 1 - EDGE)))
        return {"image": frames, "action": action}

    def state_value(self, state: State) -> Tensor | None:
        encoded = self.encoder(self.view(state["image"]))
        return self.value(encoded, self.mean_action(encoded))

    @torch.no_grad()
    def evaluate_episode(self, image: Tensor) -> tuple[Tensor | None, Tensor]:
        """Value, or None without a critic, and mode in each state of an episode: (T, H, W, 3) -> (T,), (T, A)."""
        index = torch.arange(len(image))[:, None] + torch.arange(1 - self.config.frame_stack, 1)
        values, modes = [], []
        for rows in index.clamp(min=0).split(64):
            with self.autocast():
                encoded = self.encoder(self.view(image[rows]))
                modes.append(self.mean_action(encoded))
                values.append(self.value(encoded, modes[-1]))
        return None if values[0] is None else torch.cat(values), torch.cat(modes)

    def value(self, encoded: Tensor, action: Tensor) -> Tensor | None:
        """The smaller of the critics' values, (N, E), (N, A) -> (N,); None without critics."""
        return None

    # Learning

    def sample(self, store: Store, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Transitions, see `SequenceStore.sample_windows`."""
        config = self.config
        return store.sample_windows(config.transitions, config.frame_stack, config.nstep, rng)

    def random_batch(self) -> Batch:
        config, device = self.config, self.device
        rows, size = (config.transitions, config.frame_stack + config.nstep), config.size[0]
        return {
            "image": torch.randint(0, 256, (*rows, size, size, self.senses.channels), dtype=torch.uint8, device=device),
            "action": torch.rand(rows[0], self.action_dim, device=device) * 2 - 1,
            "reward": torch.rand(rows[0], config.nstep, device=device),
            "discount": torch.ones(rows[0], config.nstep, device=device),
        }

    def update(self, batch: Batch) -> Metrics:
        """One update on a batch of `sample`."""
        frames = self.config.frame_stack
        metrics = self.learn(batch, batch["image"][:, :frames], batch["image"][:, -frames:])
        self.updates += 1
        return metrics

    def learn(self, batch: Batch, now: Tensor, then: Tensor) -> Metrics:
        """One update; observations (B, K, H, W, 3) now and n steps later."""
        raise NotImplementedError

    def augment(self, frames: Tensor) -> Tensor:
        """(B, K, H, W, 3) -> (B, C, S, S)."""
        return random_shift(frames, self.config.random_shift)

    def noise(self, *shape: int) -> Tensor:
        return self.noise_scale * torch.randn(shape, device=self.device)

    def minimize(self, name: str, optimizer: Optimizer, loss: Tensor) -> Metrics:
        """One step of an optimiser on a loss. Raises BadInput if it is not finite."""
        self.backward(loss, 1.0, optimizer)
        return {f"{name}_loss": loss.detach(), f"{name}_grad_norm": optimizer.step()}


class BCAgent(StackAgent):
    """Behavior cloning: the squared distance of a noisy action to the data's."""

    MODULES = ("encoder", "actor")
    OPTIMIZERS = ("actor_opt",)
    has_critic = False

    def build(self) -> None:
        self.actor = self.make_actor()
        self.actor_opt = Optimizer([self.encoder, self.actor], self.config.actor_lr, self.config)

    def learn(self, batch: Batch, now: Tensor, then: Tensor) -> Metrics:
        with self.autocast():
            mean = self.mean_action(self.encoder(self.augment(now)))
            action = noisy_action(mean, self.noise(*mean.shape), self.config.noise_clip)
            loss = F.mse_loss(action, batch["action"])
        return {**self.minimize("actor", self.actor_opt, loss), "cloning_loss": loss.detach()}


class DrQBCAgent(StackAgent):
    """DrQ+BC: DrQ-v2 with behavior cloning. The critic trains the encoder, the actor does not."""

    MODULES = ("encoder", "actor", "critic", "slow_critic")
    OPTIMIZERS = ("critic_opt", "actor_opt")

    def build(self) -> None:
        config = self.config
        self.actor = self.make_actor()
        self.critic = TwinCritic(self.encoder.outputs, config.feature_size, config.q_units, self.action_dim)
        self.critic.to(self.device)
        self.slow_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.critic_opt = Optimizer([self.encoder, self.critic], config.value_lr, config)
        self.actor_opt = Optimizer([self.actor], config.actor_lr, config)

    def value(self, encoded: Tensor, action: Tensor) -> Tensor:
        return self.critic(encoded, action).amin(0)

    def learn(self, batch: Batch, now: Tensor, then: Tensor) -> Metrics:
        with self.autocast():
            encoded = self.encoder(self.augment(now))
            with torch.no_grad():
                later = self.encoder(self.augment(then))
            critic_loss, metrics = self.critic_loss(batch, encoded, later)
        metrics |= self.minimize("critic", self.critic_opt, critic_loss)
        with self.autocast():
            actor_loss, actor_metrics = self.actor_loss(batch, encoded.detach())
        metrics |= {**actor_metrics, **self.minimize("actor", self.actor_opt, actor_loss)}
        move_towards(self.slow_critic, self.critic, self.config.target_tau)
        return metrics

    def critic_loss(self, batch: Batch, encoded: Tensor, later: Tensor) -> tuple[Tensor, Metrics]:
        """The squared n-step errors of both critics, with clipped noise on the action of the target."""
        config = self.config
        with torch.no_grad():
            mean = self.mean_action(later)
            action = noisy_action(mean, self.noise(*mean.shape), config.noise_clip)
            reward, discount = nstep_return(batch["reward"], batch["discount"], config.discount, batch.get("steps"))
            target = reward + discount * self.slow_critic(later, action).amin(0)
        feat = self.critic.trunk(encoded)
        values = self.critic.values(feat, batch["action"])  # (2, B)
        loss = (values - target).square().mean(1).sum()
        extra, metrics = self.critic_penalty(values, feat, encoded, later)
        return loss + extra, {"value": target.mean(), "temporal_difference": loss.detach(), **metrics}

    def critic_penalty(
        self, values: Tensor, feat: Tensor, encoded: Tensor, later: Tensor
    ) -> tuple[Tensor | float, Metrics]:
        """What a subclass adds to the critic's loss. values (2, B), feat (B, F), encoded and later (B, E)."""
        return 0.0, {}

    def actor_loss(self, batch: Batch, encoded: Tensor) -> tuple[Tensor, Metrics]:
        action, q = self.policy_value(encoded)
        loss, cloning = drq_bc_loss(q, action, batch["action"], self.config.bc_scale)
        return loss, {"cloning_loss": cloning.detach()}

    def policy_value(self, encoded: Tensor) -> tuple[Tensor, Tensor]:
        """A noisy action of the policy (B, A) and the smaller of its two values (B,), with gradients to the actor."""
        mean = self.mean_action(encoded)
        action = noisy_action(mean, self.noise(*mean.shape), self.config.noise_clip)
        return action, self.critic(encoded, action).amin(0)


class CQLAgent(DrQBCAgent):
    """CQL on DrQ-v2's networks: the critics are pushed down on random and policy actions, up on the data's."""

    def critic_penalty(self, values: Tensor, feat: Tensor, encoded: Tensor, later: Tensor) -> tuple[Tensor, Metrics]:
        config = self.config
        shape = len(feat), config.conservative_actions, self.action_dim
        with torch.no_grad():
            uniform = torch.rand(shape, device=self.device) * 2 - 1
            means = self.mean_action(encoded.detach()), self.mean_action(later)
            ours, next_ours = (noisy_action(m[:, None], self.noise(*shape), config.noise_clip) for m in means)
        actions = torch.cat([uniform, next_ours, ours], 1)
        others = self.critic.values(feat[:, None], actions)  # (2, B, 3 M)
        gap = conservative_gap(torch.cat([others, values.unsqueeze(-1)], -1), values)
        return config.conservative_scale * gap.sum(), {"conservative_gap": gap.mean().detach()}

    def actor_loss(self, batch: Batch, encoded: Tensor) -> tuple[Tensor, Metrics]:
        return -self.policy_value(encoded)[1].mean(), {}

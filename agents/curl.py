"""CURL (arXiv 2004.04136) on a dataset: SAC on pixels, whose encoder also learns from a contrastive loss."""

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agents.base import Batch, Metrics
from agents.model_free import EDGE, StackAgent, nstep_return
from agents.optim import Optimizer
from agents.pixel_networks import StackActor, StackEncoder, TwinCritic, center_crop, move_towards, random_crop

LOG_STD = -10.0, 2.0  # bounds of the logarithm of the policy's standard deviation
EVERY = 2  # updates between updates of the actor, the temperature and the slow networks
CROP = 84 / 100  # side of a crop, as a share of the image's


def contrastive_loss(query: Tensor, key: Tensor, bilinear: Tensor) -> Tensor:
    """Cross-entropy over the batch of the similarities q_i^T W k_j, in which k_i belongs to q_i (CURL, Eq. 4).

    query and key (B, F), bilinear W (F, F) -> a scalar. The key is a constant.
    """
    logits = query @ (bilinear @ key.detach().T)
    return F.cross_entropy(logits.float(), torch.arange(len(query), device=query.device))


def squashed_gaussian(outputs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """SAC's action tanh(mean + std noise) and its log-probability (arXiv 1801.01290, appendix C).

    outputs (B, 2 A), the mean and a number that a tanh maps to the bounds of the log std; noise (B, A) -> (B, A), (B,).
    """
    mean, log_std = bounded_gaussian(outputs)
    raw = mean + log_std.exp() * noise
    log_prob = (-0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)).sum(-1)
    log_det = 2 * (math.log(2) - raw - F.softplus(-2 * raw))  # of tanh: log(1 - tanh(raw)^2)
    return torch.tanh(raw).clamp(-1 + EDGE, 1 - EDGE), log_prob - log_det.sum(-1)


def bounded_gaussian(outputs: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log std (B, A) of the actor's outputs (B, 2 A)."""
    mean, log_std = outputs.chunk(2, -1)
    low, high = LOG_STD
    return mean, low + 0.5 * (high - low) * (torch.tanh(log_std) + 1)


class Contrast(nn.Module):
    """W of CURL's similarity."""

    def __init__(self, features: int):
        super().__init__()
        self.bilinear = nn.Parameter(torch.rand(features, features))


class Temperature(nn.Module):
    """SAC's temperature, by its logarithm."""

    def __init__(self, initial: float):
        super().__init__()
        self.log = nn.Parameter(torch.tensor(math.log(initial)))


class CURLAgent(StackAgent):
    """SAC with CURL. Queries and keys are two random crops of one observation.

    The critic and the contrastive loss train the encoder and the critic's trunk; the actor does not. The slow copies of
    both encode the keys.
    """

    MODULES = ("encoder", "actor", "critic", "slow_encoder", "slow_critic", "contrast", "temperature")
    OPTIMIZERS = ("critic_opt", "actor_opt", "contrast_opt", "temperature_opt")

    @property
    def input_size(self) -> int:
        return round(self.config.size[0] * CROP / 2) * 2

    def build(self) -> None:
        config, device = self.config, self.device
        sizes = self.encoder.outputs, config.feature_size, config.q_units
        self.actor = StackActor(*sizes, 2 * self.action_dim, tanh=False).to(device)
        self.critic = TwinCritic(*sizes, self.action_dim, tanh=False).to(device)
        self.contrast = Contrast(config.feature_size).to(device)
        self.temperature = Temperature(config.initial_temperature).to(device)
        self.slow_encoder: StackEncoder = copy.deepcopy(self.encoder).requires_grad_(False)
        self.slow_critic: TwinCritic = copy.deepcopy(self.critic).requires_grad_(False)
        self.critic_opt = Optimizer([self.encoder, self.critic], config.value_lr, config)
        self.actor_opt = Optimizer([self.actor], config.actor_lr, config)
        self.contrast_opt = Optimizer([self.encoder, self.critic.trunk, self.contrast], config.value_lr, config)
        self.temperature_opt = Optimizer([self.temperature], config.temperature_lr, config)

    # Acting

    def view(self, frames: Tensor) -> Tensor:
        return center_crop(frames, self.input_size)

    def augment(self, frames: Tensor) -> Tensor:
        return random_crop(frames, self.input_size)

    def mean_action(self, encoded: Tensor) -> Tensor:
        return torch.tanh(bounded_gaussian(self.actor(encoded))[0])

    def sampled_action(self, encoded: Tensor, normal: Tensor) -> Tensor:
        return squashed_gaussian(self.actor(encoded), normal)[0]

    def value(self, encoded: Tensor, action: Tensor) -> Tensor:
        return self.critic(encoded, action).amin(0)

    # Learning

    def learn(self, batch: Batch, now: Tensor, then: Tensor) -> Metrics:
        query = self.augment(now)
        with self.autocast():
            encoded = self.encoder(query)
            loss, metrics = self.critic_loss(batch, encoded, self.augment(then))
        metrics |= self.minimize("critic", self.critic_opt, loss)
        if self.updates % EVERY == 0:
            metrics |= self.update_actor(encoded.detach())
            move_towards(self.slow_encoder, self.encoder, self.config.key_tau)
            move_towards(self.slow_critic.trunk, self.critic.trunk, self.config.key_tau)
            for slow, fast in ((self.slow_critic.q1, self.critic.q1), (self.slow_critic.q2, self.critic.q2)):
                move_towards(slow, fast, self.config.target_tau)
        with self.autocast():
            loss = self.contrast_loss(query, self.augment(now))
        return {**metrics, **self.minimize("contrastive", self.contrast_opt, loss)}

    def normal(self) -> Tensor:
        return torch.randn(self.config.transitions, self.action_dim, device=self.device)

    def critic_loss(self, batch: Batch, encoded: Tensor, later: Tensor) -> tuple[Tensor, Metrics]:
        """SAC's squared errors; ``later`` (B, C, S, S) are the crops of the next observations."""
        alpha = self.temperature.log.exp()
        with torch.no_grad():
            action, log_prob = squashed_gaussian(self.actor(self.encoder(later)), self.normal())
            value = self.slow_critic(self.slow_encoder(later), action).amin(0) - alpha * log_prob
            reward, discount = nstep_return(
                batch["reward"], batch["discount"], self.config.discount, batch.get("steps")
            )
            target = reward + discount * value
        errors = (self.critic(encoded, batch["action"]) - target).square().mean(1)
        return errors.sum(), {"value": target.mean()}

    def update_actor(self, encoded: Tensor) -> Metrics:
        """One update of the actor, then of the temperature towards an entropy of -A."""
        with self.autocast():
            action, log_prob = squashed_gaussian(self.actor(encoded), self.normal())
            alpha = self.temperature.log.exp()
            loss = (alpha.detach() * log_prob - self.critic(encoded, action).amin(0)).mean()
        metrics = self.minimize("actor", self.actor_opt, loss)
        entropy = -log_prob.detach().mean()
        self.minimize("temperature", self.temperature_opt, alpha * (entropy + self.action_dim))
        return {**metrics, "temperature": alpha.detach(), "actor_entropy": entropy}

    def contrast_loss(self, query: Tensor, key: Tensor) -> Tensor:
        """`contrastive_loss` of two crops of each observation, (B, C, S, S)."""
        with torch.no_grad():
            keys = self.slow_critic.trunk(self.slow_encoder(key))
        return contrastive_loss(self.critic.trunk(self.encoder(query)), keys, self.contrast.bilinear)

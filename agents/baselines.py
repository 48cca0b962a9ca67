"""The agents that CoWorld is compared with (paper, section 4 and appendix), built from the same models."""

import copy
from collections.abc import Iterable

import torch
from torch import Tensor

from agents.agent import Agent
from agents.base import Batch, Metrics
from agents.coworld import TargetAgent
from agents.optim import Optimizer, select_rows
from agents.value_bound import ValueBound
from config import Config
from dreamer_v3 import parts
from models import WorldModel
from networks import State, StateSpaceModel
from ops.one_hot import Features, Sampled


def mean_disagreement(means: Tensor) -> Tensor:
    """V-D4RL's `meandis`: mean over members k of || m_k - mean_k m_k ||_2. (K, ..., F) -> (...)."""
    return torch.linalg.vector_norm(means - means.mean(0), dim=-1).mean(0)


class EnsembleWorldModel(WorldModel):
    """A world model with an ensemble of priors. The KL of `losses` is the mean over its members."""

    def make_rssm(self, config: Config, embed: int, action: int) -> StateSpaceModel:
        return parts.make_rssm(config, embed, action, members=config.ensemble)

    def disagreement(self, feat: Tensor) -> Tensor:
        """`mean_disagreement` of the members' latent means at features (..., F): (...)."""
        prior = self.rssm.prior(feat[..., self.rssm.stoch_size :])
        mean = self.rssm.dist(prior).mean  # (K, ..., S, C) or (K, ..., S)
        return mean_disagreement(mean.flatten(feat.dim()))


class OfflineAgent(TargetAgent):
    """Offline DV2 (V-D4RL): DreamerV2 on the dataset, with the disagreement of an ensemble of priors as a penalty.

    reward = r - ``disagreement_scale`` * `mean_disagreement`. It has no source.
    """

    world_model_class = EnsembleWorldModel

    def imagined_reward(self, feat: Features) -> tuple[Tensor, Metrics]:
        reward, metrics = super().imagined_reward(feat)
        disagreement = self.frozen_world.disagreement(feat.feat if isinstance(feat, Sampled) else feat)
        penalised = reward - self.config.disagreement_scale * disagreement
        return penalised, {**metrics, "disagreement": disagreement.mean()}


class ElasticWeights:
    """Elastic weight consolidation: scale / 2 * sum_i F_i (theta_i - theta*_i)^2.

    F is the diagonal Fisher information at the old weights theta*, estimated by squared gradients of the old task's
    loss. Like weight decay, the penalty adds its gradient after the loss's backward pass.
    """

    def __init__(self, weights: list[Tensor], fisher: list[Tensor], scale: float):
        self.weights, self.fisher, self.scale = weights, fisher, scale

    def penalty(self, parameters: Iterable[Tensor]) -> Tensor:
        """The penalty at ``parameters``, a scalar."""
        terms = zip(self.fisher, parameters, self.weights, strict=True)
        return 0.5 * self.scale * sum((f * (p.detach() - old).square()).sum() for f, p, old in terms)

    def add_gradient(self, parameters: Iterable[Tensor]) -> None:
        """Add scale * F (theta - theta*) to the gradients of ``parameters``."""
        for f, p, old in zip(self.fisher, parameters, self.weights, strict=True):
            gradient = self.scale * f * (p.detach() - old)
            p.grad = gradient if p.grad is None else p.grad + gradient

    def state_dict(self) -> dict:
        return {"weights": self.weights, "fisher": self.fisher}


class FinetunedAgent(TargetAgent):
    """Starts as a copy of an agent trained online in the source: DV2 Finetune, and CoWorld with a warm start."""

    def copy_from(self, source: Agent) -> None:
        """Copy the weights, optimisers and counters of ``source``."""
        self.load_state_dict(copy.deepcopy(source.state_dict()))

    def anchor_to(self, source: Agent, batches: Iterable[Batch]) -> None:
        """EWC: penalise leaving the present weights, by their Fisher information on the data of ``source``.

        The Fisher information is the mean over single sequences of squared gradients: the square of a batch's mean
        gradient would shrink with the batch. ``batches`` are taken one by one, so they may be a generator.
        """
        sums: dict[str, list[Tensor]] = {}
        sequences = (select_rows(b, slice(i, i + 1)) for b in batches for i in range(len(b["action"])))
        for count, sequence in enumerate(sequences, 1):  # noqa: B007
            for name, gradients in source.gradients(sequence).items():
                squares = [g.square() for g in gradients]
                sums[name] = [a + b for a, b in zip(sums[name], squares, strict=True)] if name in sums else squares
        for name, squares in sums.items():
            weights = [p.detach().clone() for p in getattr(self, name).parameters]
            self._set_anchor(name, weights, [square / count for square in squares])

    def update_world_model(
        self, batch: Batch, source_embed: Tensor | None = None, measured: bool = False
    ) -> tuple[State, Metrics]:
        post, metrics = super().update_world_model(batch, source_embed, measured)
        return post, {**metrics, **self._penalties()}

    def update_behavior(self, post: State, bound: ValueBound | None = None) -> Metrics:
        return {**super().update_behavior(post, bound), **self._penalties()}

    def _penalties(self) -> Metrics:
        anchored: list[Optimizer] = [o for o in (getattr(self, n) for n in self.OPTIMIZERS) if o.anchor]
        return {"ewc_penalty": sum(o.anchor.penalty(o.parameters) for o in anchored)} if anchored else {}

    def _set_anchor(self, name: str, weights: list[Tensor], fisher: list[Tensor]) -> None:
        getattr(self, name).anchor = ElasticWeights(weights, fisher, self.config.ewc_scale)

    def state_dict(self) -> dict:
        anchors = {name: getattr(self, name).anchor for name in self.OPTIMIZERS}
        return {**super().state_dict(), "anchors": {k: a.state_dict() for k, a in anchors.items() if a}}

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        for name, anchor in state.get("anchors", {}).items():
            tensors = zip(anchor["weights"], anchor["fisher"], getattr(self, name).parameters, strict=True)
            weights, fisher = zip(*((w.to(p.device), f.to(p.device)) for w, f, p in tensors), strict=True)
            self._set_anchor(name, list(weights), list(fisher))


class _JointWorldModel(Agent):
    """An agent whose world model learns from both domains' batches equally (Multi-task DV2)."""

    def update(self, batch: Batch, other_batch: Batch) -> Metrics:
        """One update of the shared world model, on both domains' batches, then of critic and actor."""
        post, metrics = self.update_world_model(batch, other_batch)
        return {**metrics, **self.update_behavior(post)}

    def update_world_model(self, batch: Batch, other_batch: Batch) -> tuple[State, Metrics]:
        noise = self.noise(batch)
        return self.descend_model_loss(batch, noise, other_batch, self.noise(other_batch))

    def world_model_loss(
        self, batch: Batch, noise: Tensor, other_batch: Batch, other_noise: Tensor
    ) -> tuple[Tensor, Metrics, State]:
        """The mean of Eq. 2 on ``batch`` and Eq. 2 on ``other_batch``."""
        batches = batch, other_batch
        outputs = self.world.observe_pair(batches, (noise, other_noise))
        (losses, kl), (other_losses, other_kl) = (
            self.world.losses(output, data, self.config) for output, data in zip(outputs, batches, strict=True)
        )
        mean = {name: 0.5 * (loss + other_losses[name]) for name, loss in losses.items()}
        total, metrics = self.weighted_losses(mean, 0.5 * (kl + other_kl))
        return total, metrics, outputs[0].latent


class MultitaskSource(_JointWorldModel):
    """Multi-task DV2's online agent."""


class MultitaskTarget(_JointWorldModel):
    """Multi-task DV2's offline agent; it shares the online agent's world model and that model's optimiser."""

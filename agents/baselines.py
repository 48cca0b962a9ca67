"""The agents CoWorld is compared with (paper, section 4 and appendix): the same world model and actor-critic, put
together otherwise."""

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import kl_divergence

import models
from agents.agent import Agent, Batch, Metrics, Optimizer, SourceAgent, TargetAgent
from models import Config, Seen
from networks import State, mlp


def disagreement(means: Tensor) -> Tensor:
    """How far an ensemble's K members are apart: (K, ..., F) -> (...), the variance over K, averaged over F."""
    return means.var(0, unbiased=False).mean(-1)


class OfflineAgent(TargetAgent):
    """Offline DV2: DreamerV2 on the dataset, wary of what its model does not know.

    An ensemble of dynamics predicts the latent from deter beside the prior; what its members disagree on is taken off
    the imagined reward, ``disagreement_scale`` times. It has no source.
    """

    def __init__(self, config: Config, *arguments: Any):
        """The arguments are `Agent`'s."""
        super().__init__(config, *arguments)
        rssm = self.world.rssm
        stats = rssm.prior_out.out_features
        members = [mlp(rssm.deter, stats, 1, config.dyn_hidden, config.act) for _ in range(config.ensemble)]
        self.ensemble = nn.ModuleList(members).to(self.device)
        self.frozen_ensemble = models.frozen(self.ensemble)
        self.model_opt = Optimizer([self.world, self.ensemble], config.model_lr, config)
        self.scales["ensemble"] = 1.0
        self.compile()

    def _more_losses(self, seen: Seen) -> dict[str, Tensor]:
        """Each member predicts the posterior, from a deter that it does not shape."""
        rssm, deter = self.world.rssm, seen.post["deter"].detach()
        post = rssm.dist({key: value.detach() for key, value in seen.post.items()})
        kls = [kl_divergence(post, rssm.dist(rssm.split(member(deter)))).mean() for member in self.ensemble]
        return {"ensemble": torch.stack(kls).mean()}

    def _imagined_reward(self, feat: Tensor) -> Tensor:
        return super()._imagined_reward(feat) - self.config.disagreement_scale * self.penalty(feat)

    def penalty(self, feat: Tensor) -> Tensor:
        """The members' `disagreement` about the latents at features (..., F): (...)."""
        rssm = self.frozen_world.rssm
        deter = feat[..., rssm.stoch_size :]
        means = [rssm.dist(rssm.split(member(deter))).mean.flatten(feat.dim() - 1) for member in self.frozen_ensemble]
        return disagreement(torch.stack(means))

    def state_dict(self) -> dict:
        return {**super().state_dict(), "ensemble": self.ensemble.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self.ensemble.load_state_dict(state["ensemble"])


class ElasticWeights:
    """Elastic weight consolidation: scale / 2 * sum_i F_i (theta_i - theta*_i)^2, with F the diagonal Fisher
    information at the old weights theta*, estimated by the squared gradients of the old task's loss.

    As in weight decay, the penalty's gradient is added to what a loss has left, so no loss has to know of it.
    """

    def __init__(self, weights: list[Tensor], fisher: list[Tensor], scale: float):
        self.weights, self.fisher, self.scale = weights, fisher, scale

    def penalty(self, parameters: Iterable[Tensor]) -> Tensor:
        """The penalty at ``parameters``, a scalar."""
        parts = zip(self.fisher, parameters, self.weights, strict=True)
        return 0.5 * self.scale * sum((f * (p.detach() - old).square()).sum() for f, p, old in parts)

    def add_gradient(self, parameters: Iterable[Tensor]) -> None:
        """Add scale * F (theta - theta*) to the gradients of ``parameters``."""
        for f, p, old in zip(self.fisher, parameters, self.weights, strict=True):
            gradient = self.scale * f * (p.detach() - old)
            p.grad = gradient if p.grad is None else p.grad + gradient

    def state_dict(self) -> dict:
        return {"weights": self.weights, "fisher": self.fisher}


class FinetunedAgent(TargetAgent):
    """DV2 Finetune: takes over an agent trained online in the source, and learns on from the dataset.

    With ``method: dv2_finetune_ewc`` the weights that mattered to the source are held by `ElasticWeights`.
    """

    OPTIMIZERS = ("model_opt", "actor_opt", "critic_opt")

    def take_over(self, source: Agent, batches: Iterable[Batch]) -> None:
        """Become a copy of ``source``, optimisers included; ``batches`` of its data, drawn one by one and only for the
        elastic penalty, tell which weights matter."""
        self.load_state_dict(copy.deepcopy(source.state_dict()))
        if self.config.method != "dv2_finetune_ewc":
            return
        sums: dict[str, list[Tensor]] = {}
        for count, batch in enumerate(batches, 1):  # noqa: B007
            for name, gradients in source.gradients(batch).items():
                squares = [g.square() for g in gradients]
                sums[name] = [a + b for a, b in zip(sums[name], squares, strict=True)] if name in sums else squares
        for name, squares in sums.items():
            optimizer = getattr(self, name)
            weights = [p.detach().clone() for p in optimizer.parameters]
            self._hold(optimizer, weights, [square / count for square in squares])

    def _hold(self, optimizer: Optimizer, weights: list[Tensor], fisher: list[Tensor]) -> None:
        optimizer.anchor = ElasticWeights(weights, fisher, self.config.ewc_scale)

    def update_model(self, *inputs: object, **more: object) -> Metrics:
        return {**super().update_model(*inputs, **more), **self._penalties()}

    def update(self, *inputs: object, **more: object) -> Metrics:
        return {**super().update(*inputs, **more), **self._penalties()}

    def _penalties(self) -> Metrics:
        anchored = [o for o in (getattr(self, name) for name in self.OPTIMIZERS) if o.anchor]
        return {"ewc_penalty": sum(o.anchor.penalty(o.parameters) for o in anchored)} if anchored else {}

    def state_dict(self) -> dict:
        anchors = {name: getattr(self, name).anchor for name in self.OPTIMIZERS}
        return {**super().state_dict(), "anchors": {k: a.state_dict() for k, a in anchors.items() if a}}

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        for name, anchor in state.get("anchors", {}).items():
            optimizer = getattr(self, name)
            like = zip(anchor["weights"], anchor["fisher"], optimizer.parameters, strict=True)
            weights, fisher = zip(*((w.to(p.device), f.to(p.device)) for w, f, p in like), strict=True)
            self._hold(optimizer, list(weights), list(fisher))


def joint_loss(
    agent: Agent, batches: tuple[Batch, Batch], noise: tuple[Tensor, Tensor]
) -> tuple[Tensor, Metrics, State]:
    """Eq. 2 on two domains' batches alike: (loss, metrics, latents of the first)."""
    world = agent.world
    parts = world.observe_both(batches, noise)
    sides = [world.losses(seen, batch, agent.config) for seen, batch in zip(parts, batches, strict=True)]
    losses = {name: 0.5 * (sides[0][0][name] + loss) for name, loss in sides[1][0].items()}
    total, metrics = agent._total(losses, 0.5 * (sides[0][1] + sides[1][1]))
    return total, metrics, parts[0].latent


class MultitaskSource(SourceAgent):
    """Multi-task DV2's online agent: its world model, the target's too, learns from both domains at every update."""

    def _model_loss(
        self, batch: Batch, target_batch: Batch, noise: tuple[Tensor, Tensor], eta: Tensor
    ) -> tuple[Tensor, Metrics, State]:
        return joint_loss(self, (batch, target_batch), noise)


class MultitaskTarget(TargetAgent):
    """Multi-task DV2's offline agent, on the source's world model and that one's optimiser."""

    takes_source_batches = True

    def _update_model(
        self, batch: Batch, sources: Sequence[SourceAgent], source_batches: Sequence[Batch], chosen: int | None
    ) -> tuple[State, Metrics]:
        own = source_batches[0]
        return self._train_model(self.model_loss, len(batch["action"]), (batch, own), self._noise(batch, own))

    def _model_loss(self, batches: tuple[Batch, Batch], noise: tuple[Tensor, Tensor]) -> tuple[Tensor, Metrics, State]:
        return joint_loss(self, batches, noise)

"""Source and target agents of CoWorld. Both are DreamerV2; the other agent is passed to an update, never stored."""

from typing import Any

import torch
from torch import Tensor

import models
from agents.agent import Agent
from agents.base import Batch, Metrics
from networks import State


class SourceAgent(Agent):
    """The online agent of a source simulator: phi', psi', xi'. Stage B (reward alignment) trains its world model."""

    def eta(self, step: int) -> float:
        """Eq. 5's eta after ``step`` agent steps of stage B: from ``eta_start`` to ``eta_end`` over ``eta_steps``."""
        config = self.config
        share = min(step / config.eta_steps, 1.0) if config.eta_steps > 0 else 1.0
        return config.eta_start + (config.eta_end - config.eta_start) * share

    def world_model_loss(
        self, batch: Batch, peer: Batch | None, noise: tuple[Tensor, Tensor | None], eta: Tensor
    ) -> tuple[Tensor, Metrics, State]:
        """Eq. 2. With ``peer``, a batch of target data, its reward term is Eq. 5's with rewards relabelled by Eq. 4.

        An agent on low-dimensional states cannot encode images: ``peer`` then has the target encoder's ``embed``
        (B, T, E). One scan computes the posteriors of both batches.
        """
        if peer is None:
            return super().world_model_loss(batch, peer, noise, eta)
        output, target_output = self.world.observe_pair((batch, peer), noise)
        losses, kl = self.world.losses(output, batch, self.config)
        predicted = self.world.reward(target_output.feat)  # (B, T)
        relabelled = models.relabel_reward(predicted, peer["reward"], self.config.target_informed_factor)
        target_nll = models.scalar_nll(predicted, relabelled).mean()
        losses["reward"] = models.reward_alignment(losses["reward"], target_nll, eta)
        total, metrics = self.weighted_losses(losses, kl)
        return total, {**metrics, "reward_alignment": target_nll, "eta": eta}, output.latent


class TargetAgent(Agent):
    """The offline agent of the dataset: phi, psi, xi. Stage A trains its world model, stage C its critic."""

    def __init__(self, *arguments: Any, **options: Any):
        """The arguments are `Agent`'s."""
        super().__init__(*arguments, **options)
        same_images = self.config.source_observation == "image"
        self.alignment = models.state_alignment if same_images else models.distribution_alignment

    def world_model_loss(
        self, batch: Batch, peer: Batch | None, noise: tuple[Tensor, Tensor | None], eta: Tensor
    ) -> tuple[Tensor, Metrics, State]:
        """Eq. 3: Eq. 2 and, with ``peer``, state alignment with the source encoder's ``source_embed`` (B, T, E)."""
        if peer is None:
            return super().world_model_loss(batch, peer, noise, eta)
        output = self.world.observe(batch, noise[0])
        losses, kl = self.world.losses(output, batch, self.config)
        alignment = losses["state_alignment"] = self.alignment(peer["source_embed"], output.embed)
        total, metrics = self.weighted_losses(losses, kl, state_alignment=self.config.state_alignment_scale)
        del metrics["state_alignment_loss"]
        return total, {**metrics, "state_alignment": alignment}, output.latent

    @torch.no_grad()
    def alignment_with(self, source_embeds: list[Tensor], batch: Batch) -> Tensor:
        """The alignment loss of this agent's embeddings of ``batch`` with each source's, (M,), without gradient."""
        own = self.embed(batch)
        return torch.stack([self.alignment(embed, own) for embed in source_embeds])

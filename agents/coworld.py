"""Source and target agents of CoWorld. Both are `Agent`s; the other agent is passed to an update, never stored."""

from typing import Any

import torch
from torch import Tensor, nn

import models
from agents.agent import Agent
from agents.base import Batch, Metrics
from agents.optim import micro_batches
from agents.value_bound import ValueBound
from networks import State
from senses import embedded_parts


class SourceAgent(Agent):
    """The online agent of a source simulator: phi', psi', xi'. Stage B (reward alignment) trains its world model."""

    def update(
        self,
        batch: Batch,
        target_batch: Batch | None = None,
        eta: float = 1.0,
        target_embed: Tensor | None = None,
    ) -> Metrics:
        """One update of the world model, with the arguments below, then of critic (Eq. 11) and actor (Eq. 7, 10)."""
        post, metrics = self.update_world_model(batch, target_batch, eta, target_embed)
        return {**metrics, **self.update_behavior(post)}

    def update_world_model(
        self,
        batch: Batch,
        target_batch: Batch | None = None,
        eta: float = 1.0,
        target_embed: Tensor | None = None,
    ) -> tuple[State, Metrics]:
        """Eq. 2 on ``batch``. With ``target_batch``, its reward term is Eq. 5's with rewards relabelled by Eq. 4.

        Args:
            eta: Eq. 5's share of the source data.
            target_embed: (B, T, E), the target encoder's embedding of ``target_batch``, for an agent on low-dimensional
                states, which cannot encode images.
        """
        noise = self.noise(batch)
        if target_batch is None:
            return self.descend_model_loss(batch, noise)
        target_noise = self.noise(target_batch)
        eta = torch.tensor(eta, device=self.device)  # a tensor: compiled code does not depend on its value
        return self.descend_model_loss(batch, noise, target_batch, target_noise, eta, target_embed)

    def value_bound(self, batch: Batch, embed: Tensor | None = None) -> ValueBound:
        """The bound of Eq. 6 for an update of the target on ``batch``, by ``constraint_latents``.

        embed: (B, T, E), this agent's embedding of the batch, if it is known.
        """
        if self.config.constraint_latents == "target":
            return ValueBound(self.frozen_critic)
        self.refresh_cast_weights()  # of a model that was loaded, or whose behavior did not learn since
        return ValueBound(self.frozen_critic, self.frozen_world, self.infer_posterior(batch, embed))

    def world_model_loss(
        self,
        batch: Batch,
        noise: Tensor,
        target_batch: Batch | None = None,
        target_noise: Tensor | None = None,
        eta: Tensor | None = None,
        target_embed: Tensor | None = None,
    ) -> tuple[Tensor, Metrics, State]:
        """Eq. 2, with target data with Eq. 4 and 5. One scan computes the posteriors of both batches."""
        if target_batch is None:
            return super().world_model_loss(batch, noise)
        output, target_output = self.world.observe_pair((batch, target_batch), (noise, target_noise), target_embed)
        losses, kl = self.world.losses(output, batch, self.config)
        predicted = self.world.reward.prediction(target_output.feat)  # over (B, T)
        relabelled = models.relabel_reward(predicted.mean, target_batch["reward"], self.config.target_informed_factor)
        target_nll = predicted.nll(relabelled).mean()
        losses["reward"] = models.reward_alignment(losses["reward"], target_nll, eta)
        total, metrics = self.weighted_losses(losses, kl)
        return total, {**metrics, "reward_alignment": target_nll, "eta": eta}, output.latent


class TargetAgent(Agent):
    """The offline agent of the dataset: phi, psi, xi. Stage A trains its world model, stage C its critic
    (`Agent.behavior_loss`)."""

    def __init__(self, *arguments: Any, **options: Any):
        """The arguments are `Agent`'s."""
        super().__init__(*arguments, **options)
        same_images = self.config.source_observation == "image"
        self.alignment = models.state_alignment if same_images else models.distribution_alignment

    def update(self, batch: Batch, source_embed: Tensor | None = None, bound: ValueBound | None = None) -> Metrics:
        """One update of the world model (Eq. 2, or Eq. 3), then of the critic (Eq. 11, or Eq. 6) and the actor (Eq. 7).

        Args:
            source_embed: (B, T, E), the source encoder's embedding of ``batch``, for state alignment (Eq. 3); its image
                part alone if the source has other states.
            bound: the source's side of the value constraint (Eq. 6), `SourceAgent.value_bound`.
        """
        post, metrics = self.update_world_model(batch, source_embed)
        return {**metrics, **self.update_behavior(post, bound)}

    def update_world_model(
        self, batch: Batch, source_embed: Tensor | None = None, measured: bool = False
    ) -> tuple[State, Metrics]:
        """Eq. 2; with the source encoder's embedding of the batch Eq. 3.

        ``measured``: also compute state alignment's share of the gradient, which is nothing that the update needs.
        """
        norm = None
        if measured and source_embed is not None:
            norm = self.alignment_gradient_norm(batch, source_embed)
        post, metrics = self.descend_model_loss(batch, self.noise(batch), source_embed)
        return post, metrics if norm is None else {
            **metrics,
            "alignment_gradient_share": norm / metrics["model_grad_norm"],
        }

    def alignment_gradient_norm(self, batch: Batch, source_embed: Tensor) -> Tensor:
        """The norm of the gradient of Eq. 3's last term, beta_2 times the alignment, which only the encoder has."""
        parameters = list(self.world.encoder.parameters())
        total = [torch.zeros_like(parameter) for parameter in parameters]
        for share, (part, embed) in micro_batches(self.config.grad_accum, batch, source_embed):
            with self.autocast():
                loss = self.config.state_alignment_scale * self.alignment_loss(embed, self.world.embed(part))
            gradients = torch.autograd.grad(share * loss, parameters, materialize_grads=True)
            for sum_, gradient in zip(total, gradients, strict=True):
                sum_ += gradient
        return nn.utils.get_total_norm(total)

    def world_model_loss(
        self, batch: Batch, noise: Tensor, source_embed: Tensor | None = None
    ) -> tuple[Tensor, Metrics, State]:
        """Eq. 3: Eq. 2 and, with ``source_embed``, state alignment."""
        if source_embed is None:
            return super().world_model_loss(batch, noise)
        output = self.world.observe(batch, noise)
        losses, kl = self.world.losses(output, batch, self.config)
        alignment = losses["state_alignment"] = self.alignment_loss(source_embed, output.embed)
        total, metrics = self.weighted_losses(losses, kl, state_alignment=self.config.state_alignment_scale)
        del metrics["state_alignment_loss"]
        return total, {**metrics, "state_alignment": alignment}, output.latent

    def alignment_loss(self, source_embed: Tensor, embed: Tensor) -> Tensor:
        """The alignment of an embedding of this agent with a source's, a scalar.

        With states beside the image, each part is aligned by itself and their losses are added. The states' part is
        aligned only if ``source_embed`` has one, that is if the source has the same states.
        """
        source_image, *source_state = embedded_parts(self.world.encoder, source_embed)
        image, *state = embedded_parts(self.world.encoder, embed)
        loss = self.alignment(source_image, image)
        return loss + self.alignment(*source_state, *state) if source_state else loss

    def information(self, source_embed: Tensor) -> Tensor:
        """`models.information` of what `alignment_loss` compares of a source's embedding, summed over its parts."""
        image, *state = map(models.information, embedded_parts(self.world.encoder, source_embed))
        return image + state[0] if state else image

    @torch.no_grad()
    def alignment_with(self, source_embeds: list[Tensor], batch: Batch) -> Tensor:
        """The alignment loss of this agent's embeddings of ``batch`` with each source's, (M,), without gradient."""
        own = self.embed(batch)
        return torch.stack([self.alignment_loss(embed, own) for embed in source_embeds])

"""The two agents: a DreamerV2 learner each, and what ties them. The peer is an argument, never an attribute."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

import models
from errors import DIVERGED, BadInput
from models import ActorCritic, Config, Seen, WorldModel
from networks import State
from tools import linear_schedule

Batch = dict[str, Tensor]
Metrics = dict[str, Tensor | float]


class Optimizer:
    """AdamW with a clipped gradient norm, over the parameters of the modules it is given and no others."""

    def __init__(self, modules: Iterable[nn.Module], lr: float, config: Config):
        self.parameters = [p for module in modules for p in module.parameters()]
        self.clip = config.grad_clip
        self.adam = torch.optim.AdamW(
            self.parameters, lr, eps=config.opt_eps, weight_decay=config.weight_decay, fused=True
        )

    def step(self, loss: Tensor) -> Tensor:
        """One update. Gradients are computed for the own parameters alone, so nothing else has to be frozen."""
        self.adam.zero_grad(set_to_none=True)
        loss.backward(inputs=self.parameters)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.adam.step()
        return norm


class Agent:
    """DreamerV2: a world model (phi), and an actor (psi) and a critic (xi) that learn in its imagination.

    ``action_dim`` is the agent's own action size, that of its actor and its data; ``model_action_dim`` the larger
    of the two domains', to which the world model pads. The actor's entropy counts its own actions only. ``state``
    names low-dimensional observations and their sizes, seen instead of images.
    """

    def __init__(
        self,
        config: Config,
        action_dim: int,
        model_action_dim: int,
        device: torch.device,
        state: dict[str, int] | None = None,
    ):
        self.config, self.device, self.action_dim = config, device, action_dim
        self.world = WorldModel(config, model_action_dim, state).to(device)
        self.behaviour = ActorCritic(config, self.world.rssm.feat_size, action_dim).to(device)
        self.model_opt = Optimizer([self.world], config.model_lr, config)
        self.actor_opt = Optimizer([self.behaviour.actor], config.actor_lr, config)
        self.critic_opt = Optimizer([self.behaviour.critic], config.value_lr, config)
        self.behaviour_updates = 0
        observation = {"state": 1.0} if state else {"image": config.image_scale}
        self.scales = {**observation, "reward": config.reward_scale, "kl": config.kl_scale}
        if config.pred_discount:
            self.scales["discount"] = config.discount_scale

    @torch.no_grad()
    def act(
        self, observation: dict[str, np.ndarray], state: State | None, first: np.ndarray, sample: bool
    ) -> tuple[np.ndarray, State]:
        """One policy step for N environments: observations (N, ...), of which it takes those it sees (image (N, H, W,
        3) uint8), and first (N,) bool where an episode begins.

        Returns the actions (N, own A) float32, sampled or the mode, and the state to pass in at the next step.
        """
        rssm, n = self.world.rssm, len(first)
        if state is None:
            state = {**rssm.initial(n), "action": torch.zeros(n, self.action_dim, device=self.device)}
        keep = torch.as_tensor(~first, device=self.device).float().unsqueeze(-1)  # (N, 1)
        state = {k: v * keep for k, v in state.items()}
        seen_now = {k: torch.as_tensor(observation[k], device=self.device)[:, None] for k in self.world.keys}
        with self.autocast():
            seen = self.world.filter(self.world.embed(seen_now), state.pop("action")[:, None], state)
            policy = self.behaviour.actor(seen.feat[:, -1])
            action = policy.sample() if sample else policy.mode
        actions = action.cpu().numpy()
        if not np.isfinite(actions).all():
            raise BadInput(f"the agent's actions are not finite: {DIVERGED}")
        return actions, {"stoch": seen.post["stoch"][:, -1], "deter": seen.post["deter"][:, -1], "action": action}

    @torch.no_grad()
    def embed(self, batch: Batch) -> Tensor:
        """The embeddings of a batch, (B, T, E), as a constant."""
        with self.autocast():
            return self.world.embed(batch)

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16")

    def update_behaviour(self, post: State, constraint: models.Constraint | None = None) -> Metrics:
        """One update of the actor (Eq. 7, 10) and the critic (Eq. 6, 11) on rollouts from ``post``, (B, T, ...)."""
        config, behaviour = self.config, self.behaviour
        if self.behaviour_updates % config.slow_target_update == 0:
            behaviour.slow_critic.load_state_dict(behaviour.critic.state_dict())
        self.behaviour_updates += 1
        with self.autocast():
            rolled = behaviour.imagine(self.world, models.start_states(post, config.imag_starts), config.imag_horizon)
            reward = self.world.reward(rolled.feat[:-1])  # (H, N)
            discount = self.world.predicted_discount(rolled.feat[:-1], config.discount)
            slow_value = behaviour.slow_critic(rolled.feat)  # (H + 1, N)
            returns = models.lambda_return(reward, slow_value[1:], discount, config.discount_lambda)
            ones = torch.ones_like(discount[:1])
            weight = torch.cat([ones, discount[:-1]]).cumprod(0).detach()  # the chance, discounted, to get to s_t
            actor_loss = behaviour.actor_loss(rolled, returns, slow_value[:-1], weight, config)
            critic_loss, constrained = behaviour.critic_loss(
                rolled.feat[:-1], returns, weight, constraint, config.value_constraint_scale
            )
        metrics = {
            "actor_loss": actor_loss,
            "critic_loss": critic_loss,
            "imagined_return": returns.mean(),
            "imagined_reward": reward.mean(),
            "value": slow_value.mean(),
            "actor_entropy": rolled.entropy.mean(),
            "actor_grad_norm": self.actor_opt.step(actor_loss),
            "critic_grad_norm": self.critic_opt.step(critic_loss),
        }
        if constraint is not None:
            metrics["value_constraint"] = constrained
        return {k: v.detach() for k, v in metrics.items()}

    def _step_model(self, losses: dict[str, Tensor], plain_kl: Tensor, scales: dict[str, float]) -> Metrics:
        total = models.weighted_sum(losses, scales)
        if self.device.type == "cpu" and not torch.isfinite(total):  # elsewhere, reading it would stall the device
            raise BadInput(f"the world model's loss is not finite: {DIVERGED}")
        metrics = {f"{name}_loss": loss for name, loss in losses.items()}
        metrics |= {"model_loss": total, "kl": plain_kl, "model_grad_norm": self.model_opt.step(total)}
        return {k: v.detach() for k, v in metrics.items()}

    def state_dict(self) -> dict:
        return {
            "world": self.world.state_dict(),
            "behaviour": self.behaviour.state_dict(),
            **{name: getattr(self, name).adam.state_dict() for name in ("model_opt", "actor_opt", "critic_opt")},
            "behaviour_updates": self.behaviour_updates,
        }

    def load_state_dict(self, state: dict) -> None:
        self.world.load_state_dict(state["world"])
        self.behaviour.load_state_dict(state["behaviour"])
        for name in ("model_opt", "actor_opt", "critic_opt"):
            getattr(self, name).adam.load_state_dict(state[name])
        self.behaviour_updates = state["behaviour_updates"]


class SourceAgent(Agent):
    """The online agent of the source simulator: phi', psi', xi'. Stage B trains its world model."""

    def eta(self, step: int) -> float:
        """Eq. 5's eta after ``step`` agent steps of stage B: from ``eta_start`` to ``eta_end`` over ``eta_steps``."""
        return linear_schedule(step, self.config.eta_start, self.config.eta_end, self.config.eta_steps)

    def update(self, batch: Batch, target_batch: Batch | None = None, *, step: int) -> Metrics:
        """One update of world model, actor and critic on source data; with ``target_batch``, stage B (Eq. 4, 5).

        Both batches hold image (B, T, H, W, 3) uint8, action (B, T, own A), reward and discount (B, T); an agent that
        sees states has those in ``batch``, and in ``target_batch`` the target encoder's ``embed`` (B, T, E) of images
        that its own cannot see. ``step`` counts the source agent steps since stage B began.
        """
        seen, metrics = self._update_model(batch, target_batch, step)
        return {**metrics, **self.update_behaviour(seen.post)}

    def update_model(self, batch: Batch, target_batch: Batch | None = None, *, step: int) -> Metrics:
        """One update of the world model alone."""
        return self._update_model(batch, target_batch, step)[1]

    def _update_model(self, batch: Batch, target_batch: Batch | None, step: int) -> tuple[Seen, Metrics]:
        with self.autocast():
            if target_batch is None:
                seen = self.world.observe(batch)
                losses, kl = self.world.losses(seen, batch, self.config)
                extra = {}
            else:
                seen, losses, kl, extra = self._aligned_losses(batch, target_batch, self.eta(step))
        return seen, {**self._step_model(losses, kl, self.scales), **extra}

    def _aligned_losses(self, batch: Batch, target_batch: Batch, eta: float) -> tuple[Seen, dict, Tensor, Metrics]:
        """Eq. 2 with its reward term replaced by Eq. 5. One scan filters both domains' sequences side by side."""
        actions = [models.pad_action(b["action"], self.world.action_dim) for b in (batch, target_batch)]
        embeds = [b["embed"] if "embed" in b else self.world.embed(b) for b in (batch, target_batch)]
        seen, seen_target = self.world.filter(torch.cat(embeds), torch.cat(actions)).split(len(batch["action"]))
        losses, kl = self.world.losses(seen, batch, self.config)
        predicted = self.world.reward(seen_target.feat)  # (B, T)
        relabelled = models.relabel_reward(predicted, target_batch["reward"], self.config.target_informed_factor)
        target_nll = models.scalar_nll(predicted, relabelled).mean()
        losses["reward"] = models.reward_alignment(losses["reward"], target_nll, eta)
        return seen, losses, kl, {"reward_alignment": target_nll.detach(), "eta": eta}


class TargetAgent(Agent):
    """The offline agent of the dataset: phi, psi, xi. Stage A trains its world model, stage C its critic."""

    def update(self, batch: Batch, source: SourceAgent | None = None, source_batch: Batch | None = None) -> Metrics:
        """One update of world model (Eq. 3), critic (Eq. 6) and actor (Eq. 7) on the dataset's ``batch``.

        ``source_batch`` is for a source that sees states, which are then what its encoder embeds.
        """
        seen, metrics = self._update_model(batch, source, source_batch)
        constraint = None
        if source is not None and self.config.value_constraint != "off":
            constraint = self._constraint(source)
        return {**metrics, **self.update_behaviour(seen.post, constraint)}

    def update_model(
        self, batch: Batch, source: SourceAgent | None = None, source_batch: Batch | None = None
    ) -> Metrics:
        """One update of the world model alone (Eq. 3): the warm-up."""
        return self._update_model(batch, source, source_batch)[1]

    def _update_model(
        self, batch: Batch, source: SourceAgent | None, source_batch: Batch | None
    ) -> tuple[Seen, Metrics]:
        scales, aligned = self.scales, source is not None and self.config.state_alignment
        with self.autocast():
            seen = self.world.observe(batch)
            losses, kl = self.world.losses(seen, batch, self.config)
            if aligned:
                scales = {**scales, "state_alignment": self.config.state_alignment_scale}
                align = models.state_alignment if source_batch is None else models.distribution_alignment
                losses["state_alignment"] = align(source.embed(source_batch or batch), seen.embed)
        metrics = self._step_model(losses, kl, scales)
        if aligned:
            metrics["state_alignment"] = metrics.pop("state_alignment_loss")
        return seen, metrics

    def _constraint(self, source: SourceAgent) -> models.Constraint:
        """Eq. 6's alpha term: the source critic, a constant, reads the target's features."""

        def constraint(value: Tensor, feat: Tensor) -> Tensor:
            with torch.no_grad():
                source_value = source.behaviour.critic(feat)
            return models.value_constraint(value, source_value, self.config.value_constraint)

        return constraint

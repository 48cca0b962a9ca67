"""The two agents: a DreamerV2 learner each, and what ties them. The peer is an argument, never an attribute."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from agents import compilation
import models
from tools import DIVERGED, BadInput
from models import ActorCritic, Config, Seen, WorldModel
from networks import State
from tools import linear_schedule

Batch = dict[str, Tensor]
Metrics = dict[str, Tensor | float]
Loss = Callable[..., tuple[Tensor, Metrics, Any]]  # the loss, the metrics, and what else is wanted of it


class Optimizer:
    """AdamW with a clipped gradient norm, over the parameters of the modules it is given and no others."""

    def __init__(self, modules: Iterable[nn.Module], lr: float, config: Config):
        self.parameters = [p for module in modules for p in module.parameters()]
        self.clip, self.anchor = config.grad_clip, None
        self.adam = torch.optim.AdamW(
            self.parameters, lr, eps=config.opt_eps, weight_decay=config.weight_decay, fused=True
        )

    def step(self) -> Tensor:
        """One update with the gradients there are, which it then drops. Returns their norm before clipping.

        An ``anchor`` (`baselines.ElasticWeights`) adds its own first.
        """
        if self.anchor is not None:
            self.anchor.add_gradient(self.parameters)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        return norm

    def state_dict(self) -> dict:
        return self.adam.state_dict()

    def load_state_dict(self, state: dict) -> None:
        """Moments take the memory layout of their parameters, which the fused kernel supposes and does not check."""
        self.adam.load_state_dict(state)
        for parameter, moments in self.adam.state.items():
            for name in ("exp_avg", "exp_avg_sq"):
                moments[name] = torch.empty_like(parameter).copy_(moments[name]).detach()


class Agent:
    """DreamerV2: a world model (phi), and an actor (psi) and a critic (xi) that learn in its imagination.

    ``action_dim`` is the agent's own action size, that of its actor and its data; ``model_action_dim`` the larger
    of the two domains', to which the world model pads. The actor's entropy counts its own actions only. ``state``
    names low-dimensional observations and their sizes, seen instead of images. ``actor_dim`` gives the actor outputs
    for more actions than its own. A ``world`` and its ``model_opt`` may be another agent's.
    """

    def __init__(
        self,
        config: Config,
        action_dim: int,
        model_action_dim: int,
        device: torch.device,
        state: dict[str, int] | None = None,
        *,
        actor_dim: int | None = None,
        world: WorldModel | None = None,
        model_opt: Optimizer | None = None,
    ):
        self.config, self.device, self.action_dim = config, device, action_dim
        self.world = world or WorldModel(config, model_action_dim, state).to(device)
        self.behaviour = ActorCritic(config, self.world.rssm.feat_size, action_dim, actor_dim).to(device)
        self.frozen_world, self.frozen_critic = models.frozen(self.world), models.frozen(self.behaviour.critic)
        self.model_opt = model_opt or Optimizer([self.world], config.model_lr, config)
        self.actor_opt = Optimizer([self.behaviour.actor], config.actor_lr, config)
        self.critic_opt = Optimizer([self.behaviour.critic], config.value_lr, config)
        self.behaviour_updates = 0
        observation = {"state": 1.0} if state else {"image": config.image_scale}
        self.scales = {**observation, "reward": config.reward_scale, "kl": config.kl_scale}
        if config.pred_discount:
            self.scales["discount"] = config.discount_scale
        self.compile()

    def compile(self) -> None:
        """Prepare what is called at every step, for the optimisers there are."""
        self.behaviour_loss = self._compiled(self._behaviour_loss, self.actor_opt, self.critic_opt)
        self.model_loss = self._compiled(self._model_loss, self.model_opt)
        self.policy_step = self._compiled(self._policy_step)

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
        seen = {k: torch.as_tensor(observation[k], device=self.device)[:, None] for k in self.world.keys}
        uniform = torch.rand(n, self.action_dim, device=self.device) if sample else None
        with self.autocast():
            state = self.policy_step(seen, state, keep, rssm.noise(n, 1), uniform)
        actions = state["action"].cpu().numpy()
        if not np.isfinite(actions).all():
            raise BadInput(f"the agent's actions are not finite: {DIVERGED}")
        return actions, state

    def _policy_step(self, seen: Batch, state: State, keep: Tensor, noise: Tensor, uniform: Tensor | None) -> State:
        """The state after observations (N, 1, ...), its action the mode or what ``uniform`` (N, A) makes of it."""
        state = {k: v * keep for k, v in state.items()}
        action = models.pad_action(state.pop("action"), self.world.action_dim)[:, None]
        post = self.world.rssm.posterior(self.world.embed(seen), action, state, noise)
        latent = {key: post[key][:, -1] for key in ("stoch", "deter")}
        policy = self.behaviour.actor(self.world.rssm.feat(latent))
        return {**latent, "action": policy.mode if uniform is None else policy.icdf(uniform)}

    @torch.no_grad()
    def embed(self, batch: Batch) -> Tensor:
        """The embeddings of a batch, (B, T, E), as a constant."""
        with self.autocast():
            return self.world.embed(batch)

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16")

    def update_behaviour(self, post: State, source_critic: nn.Module | None = None) -> Metrics:
        """One update of the actor (Eq. 7, 10) and the critic (Eq. 6, 11) on rollouts from ``post``, (B, T, ...).

        ``source_critic`` reads the same features for Eq. 6's constraint, as a constant.
        """
        behaviour = self.behaviour
        if self.behaviour_updates % self.config.slow_target_update == 0:
            behaviour.slow_critic.load_state_dict(behaviour.critic.state_dict())
        self.behaviour_updates += 1
        optimizers = {"actor": self.actor_opt, "critic": self.critic_opt}
        return self._train(self.behaviour_loss, optimizers, *self._starts(post), source_critic)[0]

    def _starts(self, post: State) -> tuple[int, State, tuple[Tensor, Tensor]]:
        """How many states imagination begins from, these states (N, ...), and the chance in it."""
        start = models.start_states(post, self.config.imag_starts)
        count = len(start["deter"])
        return count, start, self.behaviour.noise(self.world, count, self.config.imag_horizon)

    def _behaviour_loss(
        self, start: State, noise: tuple[Tensor, Tensor], source_critic: nn.Module | None
    ) -> tuple[Tensor, Metrics, None]:
        """The sum of the actor's and the critic's loss, which share no weights, from starts (N, ...)."""
        config, behaviour, world = self.config, self.behaviour, self.frozen_world
        rolled = behaviour.imagine(world, start, noise, log_prob=config.actor_grad != "dynamics")
        reward = self._imagined_reward(rolled.feat[:-1])  # (H, N)
        discount = world.predicted_discount(rolled.feat[:-1], config.discount)
        slow_value = behaviour.slow_critic(rolled.feat)  # (H + 1, N)
        returns = models.lambda_return(reward, slow_value[1:], discount, config.discount_lambda)
        ones = torch.ones_like(discount[:1])
        weight = torch.cat([ones, discount[:-1]]).cumprod(0).detach()  # the chance, discounted, to get to s_t
        actor_loss = behaviour.actor_loss(rolled, returns, slow_value[:-1], weight, config)
        constraint = source_critic and partial(models.critic_constraint, source_critic, config.value_constraint)
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
        }
        if source_critic is not None:
            metrics["value_constraint"] = constrained
        return actor_loss + critic_loss, metrics, None

    def _model_loss(self, *inputs: models.Tree) -> tuple[Tensor, Metrics, State]:
        """The world model's loss, its metrics, and the latents it saw (B, T, ...)."""
        raise NotImplementedError

    def _imagined_reward(self, feat: Tensor) -> Tensor:
        """What the actor is rewarded with in imagination: (H, N, F) -> (H, N)."""
        return self.frozen_world.reward(feat)

    def _train(
        self, loss: Loss, optimizers: dict[str, Optimizer], size: int, *inputs: models.Tree
    ) -> tuple[Metrics, list[Any]]:
        """One step of ``optimizers`` on ``loss(*inputs)``. Returns the metrics, with each optimizer's gradient norm,
        and what else the loss gave for each micro-batch."""
        metrics, others = self._backward(loss, optimizers, size, *inputs)
        norms = {f"{name}_grad_norm": optimizer.step() for name, optimizer in optimizers.items()}
        return {**metrics, **norms}, others

    def _backward(
        self, loss: Loss, optimizers: dict[str, Optimizer], size: int, *inputs: models.Tree
    ) -> tuple[Metrics, list[Any]]:
        """Leave the gradients of ``loss(*inputs)``, taken in ``grad_accum`` micro-batches, with the parameters.

        They are computed for the optimizers' parameters alone, so nothing else has to be frozen.
        """
        parameters = [p for optimizer in optimizers.values() for p in optimizer.parameters]
        metrics, others = {}, []
        for share, part in models.micro_batches(self.config.grad_accum, size, *inputs):
            with self.autocast():
                total, values, other = loss(*part)
            if self.device.type == "cpu" and not torch.isfinite(total):  # elsewhere, reading it would stall the device
                raise BadInput(f"a loss is not finite: {DIVERGED}")
            (share * total).backward(inputs=parameters)
            metrics = {k: metrics.get(k, 0.0) + share * v.detach() for k, v in values.items()}
            others.append(other)
        return metrics, others

    def _train_model(self, loss: Loss, size: int, *inputs: models.Tree) -> tuple[State, Metrics]:
        """One update of the world model. Returns the posterior states that it saw, (B, T, ...), and the metrics."""
        metrics, posts = self._train(loss, {"model": self.model_opt}, size, *inputs)
        return {k: torch.cat([post[k] for post in posts]) for k in posts[0]}, metrics

    def _total(self, losses: dict[str, Tensor], plain_kl: Tensor, **more: float) -> tuple[Tensor, Metrics]:
        """The weighted sum of a world model's losses, and all of them as metrics."""
        total = models.weighted_sum(losses, {**self.scales, **more})
        return total, {**{f"{name}_loss": loss for name, loss in losses.items()}, "model_loss": total, "kl": plain_kl}

    def _compiled(self, function: Callable[..., Any], *optimizers: Optimizer) -> Callable[..., Any]:
        """``function`` as `compilation.Compiled`, where ``compile`` asks for it."""
        if not compilation.wanted(self.config.compile, self.device):
            return function
        graphs = self.device.type == "cuda" and self.config.grad_accum == 1
        return compilation.Compiled(function, [p for o in optimizers for p in o.parameters], graphs)

    def _noise(self, *batches: Batch | None) -> tuple[Tensor | None, ...]:
        """`RSSM.noise` for each batch there is."""
        return tuple(b and self.world.rssm.noise(*b["action"].shape[:2]) for b in batches)

    def state_dict(self) -> dict:
        return {
            **self.model_dict(),
            **{name: getattr(self, name).state_dict() for name in ("model_opt", "actor_opt", "critic_opt")},
            "behaviour_updates": self.behaviour_updates,
        }

    def model_dict(self) -> dict:
        """What `load_models` needs."""
        return {"world": self.world.state_dict(), "behaviour": self.behaviour.state_dict()}

    def load_models(self, state: dict) -> None:
        """What acting, predicting and judging need, of a `state_dict`."""
        self.world.load_state_dict(state["world"])
        self.behaviour.load_state_dict(state["behaviour"])

    def load_state_dict(self, state: dict) -> None:
        self.load_models(state)
        for name in ("model_opt", "actor_opt", "critic_opt"):
            getattr(self, name).load_state_dict(state[name])
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
        post, metrics = self._update_model(batch, target_batch, step)
        return {**metrics, **self.update_behaviour(post)}

    def update_model(self, batch: Batch, target_batch: Batch | None = None, *, step: int) -> Metrics:
        """One update of the world model alone."""
        return self._update_model(batch, target_batch, step)[1]

    def gradients(self, batch: Batch) -> dict[str, list[Tensor]]:
        """Gradients of Eq. 2, 7 and 11 on source data, by optimiser, with nothing updated."""
        model, behaviour = {"model": self.model_opt}, {"actor": self.actor_opt, "critic": self.critic_opt}
        inputs = (batch, None, self._noise(batch, None), torch.tensor(1.0, device=self.device))
        _, posts = self._backward(self.model_loss, model, len(batch["action"]), *inputs)
        post = {k: torch.cat([post[k] for post in posts]) for k in posts[0]}
        self._backward(self.behaviour_loss, behaviour, *self._starts(post), None)
        found = {}
        for name, optimizer in {**model, **behaviour}.items():
            found[f"{name}_opt"] = [torch.zeros_like(p) if p.grad is None else p.grad for p in optimizer.parameters]
            optimizer.adam.zero_grad(set_to_none=True)
        return found

    def _update_model(self, batch: Batch, target_batch: Batch | None, step: int) -> tuple[State, Metrics]:
        eta = torch.tensor(self.eta(step) if target_batch else 1.0, device=self.device)
        noise = self._noise(batch, target_batch)
        return self._train_model(self.model_loss, len(batch["action"]), batch, target_batch, noise, eta)

    def _model_loss(
        self, batch: Batch, target_batch: Batch | None, noise: tuple[Tensor, Tensor | None], eta: Tensor
    ) -> tuple[Tensor, Metrics, State]:
        """Eq. 2; with ``target_batch`` its reward term is Eq. 5's, and one scan filters both domains' sequences."""
        if target_batch is None:
            seen = self.world.observe(batch, noise[0])
            total, metrics = self._total(*self.world.losses(seen, batch, self.config))
            return total, metrics, seen.latent
        seen, seen_target = self.world.observe_both((batch, target_batch), noise)
        losses, kl = self.world.losses(seen, batch, self.config)
        predicted = self.world.reward(seen_target.feat)  # (B, T)
        relabelled = models.relabel_reward(predicted, target_batch["reward"], self.config.target_informed_factor)
        target_nll = models.scalar_nll(predicted, relabelled).mean()
        losses["reward"] = models.reward_alignment(losses["reward"], target_nll, eta)
        total, metrics = self._total(losses, kl)
        return total, {**metrics, "reward_alignment": target_nll, "eta": eta}, seen.latent


class TargetAgent(Agent):
    """The offline agent of the dataset: phi, psi, xi. Stage A trains its world model, stage C its critic.

    Of several sources, the one whose softmaxed embedding of the same images is the nearest to its own (in the
    alignment's KL) is followed at an update, or the one that ``chosen`` names (paper, appendix C). With ``select:
    relative`` each KL is divided by the source's `models.information`. The metrics then hold ``chosen`` and each
    ``distance_N``.
    """

    takes_source_batches = False  # an update is given source data too

    def update(
        self,
        batch: Batch,
        sources: Sequence[SourceAgent] = (),
        source_batches: Sequence[Batch | None] | None = None,
        chosen: int | None = None,
    ) -> Metrics:
        """One update of world model (Eq. 3), critic (Eq. 6) and actor (Eq. 7) on the dataset's ``batch``.

        ``source_batches`` is for sources that see states, which are then what their encoders embed.
        """
        post, metrics = self._update_model(batch, sources, source_batches, chosen)
        critic = None
        if sources and self.config.value_constraint != "off":
            critic = sources[int(metrics.get("chosen", 0))].frozen_critic
        return {**metrics, **self.update_behaviour(post, critic)}

    def update_model(
        self,
        batch: Batch,
        sources: Sequence[SourceAgent] = (),
        source_batches: Sequence[Batch | None] | None = None,
        chosen: int | None = None,
    ) -> Metrics:
        """One update of the world model alone (Eq. 3): the warm-up."""
        return self._update_model(batch, sources, source_batches, chosen)[1]

    def _update_model(
        self,
        batch: Batch,
        sources: Sequence[SourceAgent],
        source_batches: Sequence[Batch | None] | None,
        chosen: int | None,
    ) -> tuple[State, Metrics]:
        embeds, same_images = [], source_batches is None
        if len(sources) > 1 or self.config.state_alignment:
            batches = source_batches or [batch] * len(sources)
            embeds = [source.embed(own) for source, own in zip(sources, batches, strict=True)]
        if len(sources) > 1 and chosen is None and self.config.grad_accum > 1:  # one choice for all micro-batches
            distances = self._distances(self.embed(batch), embeds, same_images)
            chosen = int(self._scores(distances, embeds).argmin())
        picked = None if chosen is None else torch.tensor(chosen, device=self.device)
        inputs = (batch, self._noise(batch), embeds, picked, same_images)
        post, metrics = self._train_model(self.model_loss, len(batch["action"]), *inputs)
        if picked is not None and "chosen" in metrics:
            metrics["chosen"] = picked  # a mean over micro-batches may miss the whole number
        return post, metrics

    def _more_losses(self, seen: Seen) -> dict[str, Tensor]:
        """Further terms of the world model's loss, for which ``scales`` has weights."""
        return {}

    @staticmethod
    def _distances(own: Tensor, embeds: list[Tensor], same_images: bool) -> Tensor:
        """Eq. 3's KL to each source's embeddings, (M,)."""
        measure = models.state_alignment if same_images else models.distribution_alignment
        return torch.stack([measure(embed, own) for embed in embeds])

    def _scores(self, distances: Tensor, embeds: list[Tensor]) -> Tensor:
        """By which the nearest is told, (M,)."""
        if self.config.select != "relative":
            return distances
        return distances / torch.stack([models.information(embed) for embed in embeds])

    def _model_loss(
        self, batch: Batch, noise: tuple[Tensor], embeds: list[Tensor], chosen: Tensor | None, same_images: bool
    ) -> tuple[Tensor, Metrics, State]:
        """Eq. 2 and, where there are sources to follow, Eq. 3's beta_2 term."""
        seen, scale, extra = self.world.observe(batch, noise[0]), {}, {}
        losses, kl = self.world.losses(seen, batch, self.config)
        losses |= self._more_losses(seen)
        if embeds:
            distances = self._distances(seen.embed, embeds, same_images)
            scores = self._scores(distances.detach(), embeds)
            chosen = scores.argmin() if chosen is None else chosen
            if self.config.state_alignment:
                losses["state_alignment"] = extra["state_alignment"] = distances[chosen]
                scale["state_alignment"] = self.config.state_alignment_scale
            if len(embeds) > 1:
                extra |= {f"distance_{i}": score for i, score in enumerate(scores, 1)} | {"chosen": chosen}
        total, metrics = self._total(losses, kl, **scale)
        metrics.pop("state_alignment_loss", None)
        return total, {**metrics, **extra}, seen.latent

"""Dreamer: a world model (phi), and an actor (psi) and a critic (xi) that learn from imagined trajectories."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

import models
from agents.base import BaseAgent, Batch, Metrics, Store
from agents.optim import Optimizer, Tree, add_metrics, cast_weights, frozen, make_optimizer, micro_batches
from agents.pixel_networks import move_towards
from agents.value_bound import ValueBound
from config import Config
from dreamer_v3.losses import normalised_advantage, replay_returns
from models import ActorCritic, RolloutNoise, WorldModel
from networks import State, first_rows, pad_action
from ops.one_hot import Features
from senses import IMAGE, Senses, image_part


class Agent(BaseAgent):
    """A DreamerV2 agent; with the settings of the block `dreamerv3`, a DreamerV3 agent.

    Its subclasses change the world model's loss; the training step is the same for all.

    Args:
        action_dim: the agent's own action size, that of its actor and its data.
        model_action_dim: the action size of the world model, the largest of all domains'; actions are padded to it.
        senses: what it observes.
        actor_dim: outputs of the actor, if it has more than ``action_dim``. The entropy counts ``action_dim`` only.
        world, model_opt: those of another agent, to share its world model.
    """

    world_model_class = WorldModel
    world: WorldModel
    MODULES = ("world", "behavior")
    OPTIMIZERS = ("model_opt", "actor_opt", "critic_opt")
    COUNTERS = ("behavior_updates",)

    def __init__(
        self,
        config: Config,
        action_dim: int,
        model_action_dim: int,
        device: torch.device,
        senses: Senses = IMAGE,
        *,
        actor_dim: int | None = None,
        world: WorldModel | None = None,
        model_opt: Optimizer | None = None,
    ):
        super().__init__(config, action_dim, device, senses)
        self.world = world or self.world_model_class(config, model_action_dim, senses).to(device)
        self.frozen_world = frozen(self.world)
        bfloat16 = config.precision == "bfloat16"
        self.cast_weights = cast_weights(self.frozen_world.rssm, torch.bfloat16) if bfloat16 else []
        self.model_opt = model_opt or make_optimizer([self.world], config.model_lr, config)
        self.scales = self.world.loss_scales(config)
        self._world_model_loss = self.world_model_loss
        if device.type != "cpu":  # there, compiling takes minutes and gains nothing (docs/performance.md)
            self._world_model_loss = self._compiled(self.world_model_loss, self.model_opt)
            self._policy_step = self._compiled(self.policy_step)
        self.build_behavior(actor_dim)

    def build_behavior(self, actor_dim: int | None) -> None:
        """Make what learns from imagined trajectories, and its optimisers."""
        config = self.config
        self.behavior = ActorCritic(config, self.world.rssm.feat_size, self.action_dim, actor_dim).to(self.device)
        self.frozen_critic = frozen(self.behavior.critic)
        self.target_critic = self.behavior.slow_critic if config.slow_critic == "target" else self.frozen_critic
        self.actor_opt = make_optimizer([self.behavior.actor], config.actor_lr, config)
        self.critic_opt = make_optimizer([self.behavior.critic], config.value_lr, config)
        self.behavior_updates = 0
        self._behavior_loss = self._compiled(self.behavior_loss, self.actor_opt, self.critic_opt)

    # Acting

    def initial_state(self, n: int) -> State:
        return {**self.world.rssm.initial(n), "action": torch.zeros(n, self.action_dim, device=self.device)}

    def latent_noise(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        return self.world.rssm.noise(n, 1, generator)

    @property
    def noise_distribution(self) -> str:
        return "uniform" if self.world.rssm.discrete else "normal"

    def policy_modules(self) -> list[nn.Module]:
        return [self.world.encoder, self.world.rssm, self.behavior.actor]

    def policy_step(self, inputs: Batch, state: State, keep: Tensor, noise: Tensor, uniform: Tensor | None) -> State:
        state = {k: v * keep for k, v in state.items()}
        action = pad_action(state.pop("action"), self.world.action_dim)[:, None]
        post = self.world.rssm.posterior(self.world.embed(inputs), action, state, noise)
        latent = {key: post[key][:, -1] for key in ("stoch", "deter")}
        policy = self.behavior.actor(self.world.rssm.feat(latent))
        return {**latent, "action": policy.mode if uniform is None else policy.executed(policy.icdf(uniform))}

    def value(self, feat: Tensor) -> Tensor:
        """v(s_t) of features (..., F): the discounted sum of rewards from the one on arrival in s_t on, (...)."""
        return self.behavior.critic(feat)

    def state_value(self, state: State) -> Tensor:
        return self.value(self.world.rssm.feat(state))

    @torch.no_grad()
    def embed(self, batch: Batch, image_only: bool = False) -> Tensor:
        """The encoder's embeddings of a batch, (B, T, E), or their image part alone, without gradient."""
        with self.autocast():
            return image_part(self.world.encoder, batch["image"]) if image_only else self.world.embed(batch)

    @torch.no_grad()
    def infer_posterior(self, batch: Batch, embed: Tensor | None = None) -> State:
        """The posterior states of a batch as `weighted` returns them, without gradient.

        ``embed``: (B, T, E), this agent's `embed` of the batch, if it is known.
        """
        embed = self.embed(batch) if embed is None else embed
        with self.autocast():
            first, noise = first_rows(batch), self.noise(batch)
            return self.weighted(self.world.rollout_posterior(embed, batch["action"], noise, first).latent, batch)

    def weighted(self, post: State, batch: Batch) -> State:
        """Posterior states stoch and deter (B, T, ...) with their ``weight`` (B, T) as start states of imagination.

        It is the batch's discount, 0 where the task terminated. For the critic's loss on replayed sequences they also
        have a ``row``, reward, discount and perhaps is_first. Without a discount head the agent knows no termination:
        no state has a weight, and all discounts are 1.
        """
        if self.world.discount is None:
            found, batch = post, batch | {"discount": torch.ones_like(batch["reward"])}
        else:
            found = {**post, "weight": batch["discount"]}
        if not self.config.replay_value_scale:
            return found
        rows = torch.arange(batch["reward"].numel(), device=self.device).view(batch["reward"].shape)
        return {**found, "row": rows, **{k: batch[k] for k in ("reward", "discount", "is_first") if k in batch}}

    # Learning

    def sample(self, store: Store, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Sequences (B, T, ...) of the agent's observations, action, reward, discount and perhaps is_first."""
        keys = (*self.senses.keys, "action", "reward", "discount")
        return store.sample(self.config.batch_size, self.config.batch_length, rng, keys)

    def fit_states(self, store: Store) -> None:
        self.world.state_normalizer.fit(store.read(i, keys=tuple(self.senses.state)) for i in range(store.episodes))

    def random_batch(self) -> Batch:
        config, device = self.config, self.device
        shape, size, observed = (config.batch_size, config.batch_length), config.size[0], {}
        if channels := self.senses.channels:
            image = *shape, size, size, channels
            observed["image"] = torch.randint(0, 256, image, dtype=torch.uint8, device=device)
        for key, width in self.senses.state.items():
            observed[key] = torch.randn(*shape, width, device=device)
        return {
            **observed,
            "action": torch.rand(*shape, self.action_dim, device=device) * 2 - 1,
            "reward": torch.rand(shape, device=device),
            "discount": torch.ones(shape, device=device),
        }

    def noise(self, batch: Batch) -> Tensor:
        """The random numbers of the latents of a batch, `RSSM.noise`."""
        return self.world.rssm.noise(*batch["action"].shape[:2])

    def update(self, batch: Batch) -> Metrics:
        """One update of the world model (Eq. 2), then of critic and actor. Subclasses add the ties.

        batch: the agent's observations, image (B, T, H, W, C) uint8 and states (B, T, ...), action (B, T, own A),
        reward and discount (B, T). If sequences hold several episodes, is_first (B, T) bool is true where one begins.
        """
        post, metrics = self.update_world_model(batch)
        return {**metrics, **self.update_behavior(post)}

    def update_world_model(self, batch: Batch) -> tuple[State, Metrics]:
        """One update of the world model. Returns what `descend_model_loss` does."""
        return self.descend_model_loss(batch, self.noise(batch))

    def descend_model_loss(self, batch: Batch, noise: Tensor, *ties: Tree) -> tuple[State, Metrics]:
        """One step of the world model's optimiser on `world_model_loss`, whose arguments these are.

        The gradient is the mean over ``grad_accum`` micro-batches, each weighted by its share of the rows.
        Returns the posterior states, without history, as `weighted` does, and the metrics.
        """
        posts, metrics = [], {}
        for share, part in micro_batches(self.config.grad_accum, batch, noise, *ties):
            with self.autocast():
                loss, values, post = self._world_model_loss(*part)
            self.backward(loss, share, self.model_opt)
            metrics = add_metrics(metrics, share, values)
            posts.append(post)
        metrics["model_grad_norm"] = self.model_opt.step()
        post = {key: torch.cat([post[key] for post in posts]) for key in posts[0]}
        return self.weighted(post, batch), metrics

    def world_model_loss(self, batch: Batch, noise: Tensor) -> tuple[Tensor, Metrics, State]:
        """Eq. 2 on ``batch`` with the latents' ``noise``: (loss, metrics, posterior states)."""
        output = self.world.observe(batch, noise)
        total, metrics = self.weighted_losses(*self.world.losses(output, batch, self.config))
        return total, metrics, output.latent

    def weighted_losses(self, losses: dict[str, Tensor], plain_kl: Tensor, **scales: float) -> tuple[Tensor, Metrics]:
        """The weighted sum of a world model's losses, and all of them as metrics. ``scales`` adds weights."""
        total = models.weighted_sum(losses, {**self.scales, **scales})
        return total, {**{f"{name}_loss": loss for name, loss in losses.items()}, "model_loss": total, "kl": plain_kl}

    def update_behavior(self, post: State, bound: ValueBound | None = None) -> Metrics:
        """One update of the critic (Eq. 11, or Eq. 6 with the source's ``bound``) and the actor (Eq. 7, 10).

        They learn from trajectories that start in the posterior states ``post`` (B, T, ...).
        """
        config, behavior, metrics, returns = self.config, self.behavior, {}, []
        if self.behavior_updates % config.slow_target_update == 0:
            self.update_slow_critic()
        self.behavior_updates += 1
        source_posts = [bound.post] if bound is not None and bound.post is not None else []
        (start, *source_start), noise = self.start_imagination(post, *source_posts)
        source_noise = bound.noise(len(start["deter"]), config.imag_horizon) if source_start else None
        for share, part in micro_batches(config.grad_accum, start, noise, bound, source_start, source_noise):
            with self.autocast():
                loss, values, imagined = self._behavior_loss(*part)
            self.backward(loss, share, self.actor_opt, self.critic_opt)
            metrics = add_metrics(metrics, share, values)
            returns.append(imagined)
        if config.replay_value_scale:
            metrics |= self.descend_replay_loss(post, start["row"], torch.cat([r[0] for r in returns]))
        if behavior.return_range is not None:
            behavior.return_range.update(torch.cat(returns, 1))
        return {**metrics, "actor_grad_norm": self.actor_opt.step(), "critic_grad_norm": self.critic_opt.step()}

    def update_slow_critic(self) -> None:
        """Move the slow critic by ``slow_target_fraction`` of its difference to the critic; 1 makes it a copy."""
        critics = self.behavior.slow_critic, self.behavior.critic
        if self.config.slow_target_fraction < 1:
            move_towards(*critics, self.config.slow_target_fraction)
        else:
            critics[0].load_state_dict(critics[1].state_dict())

    def descend_replay_loss(self, post: State, rows: Tensor, imagined: Tensor) -> Metrics:
        """Add the gradient of the critic's loss on replayed sequences, `replay_returns`, to that of its other loss.

        post: what `weighted` returns, (B, T, ...). imagined (N,): the returns V_0 of trajectories from the states
        ``rows`` of its B * T; of the others the critic's value counts.
        """
        config = self.config
        with self.autocast():
            feat = self.world.rssm.feat(post).detach()
            prediction = self.behavior.critic.prediction(feat)
            with torch.no_grad():
                value = prediction.mean if self.regularised else self.target_critic(feat)
                bound = value.flatten().index_copy(0, rows, imagined.to(value.dtype)).view_as(value)
                discount = config.discount * post["discount"]
                first = post.get("is_first")
                returns, weight = replay_returns(post["reward"], discount, bound, first, config.discount_lambda)
                slow_value = self.behavior.slow_critic(feat)
            nll = self.behavior.value_nll(prediction, returns, slow_value if self.regularised else None)
            loss = (weight * nll)[:, :-1].mean()  # the last row has no weight
        self.backward(loss, config.replay_value_scale, self.critic_opt)
        return {"replay_critic_loss": loss.detach()}

    @property
    def regularised(self) -> bool:
        """Whether the critic is drawn towards its slow copy, which then does not give the targets."""
        return self.config.slow_critic == "regularizer"

    def start_imagination(self, *posts: State) -> tuple[list[State], RolloutNoise]:
        """The start states (N, ...) of imagination in each model of ``posts``, and the rollouts' random numbers.

        Also brings the frozen world model's cast weights up to date.
        """
        self.refresh_cast_weights()
        starts = start_states(posts, self.config.imag_starts)
        return starts, self.behavior.noise(self.world, len(starts[0]["deter"]), self.config.imag_horizon)

    def refresh_cast_weights(self) -> None:
        """Copy the world model's weights into the frozen world model's cast ones."""
        for cast, original in self.cast_weights:
            cast.copy_(original)

    def behavior_loss(
        self,
        start: State,
        noise: RolloutNoise,
        bound: ValueBound | None = None,
        source_start: Sequence[State] = (),
        source_noise: Tensor | None = None,
    ) -> tuple[Tensor, Metrics, Tensor | None]:
        """The sum of the actor's and the critic's loss, which share no weights, from start states (N, ...).

        Returns (loss, metrics, the lambda-returns (H, N) if a setting needs them).

        ``start`` may have a ``weight`` (N,) of each: 0 in a terminal state, which no action follows. ``source_start``:
        the same states in the source's model, if the ``bound`` of Eq. 6 rolls them out, with ``source_noise``.
        """
        config, behavior, world = self.config, self.behavior, self.frozen_world
        kinds = {"log_prob": config.actor_grad != "dynamics", "dynamics": config.actor_grad != "reinforce"}
        trajectory = behavior.imagine(world, start, noise, **kinds)
        feat = world.rssm.sampled(trajectory.feat)
        # All states, then all but the last: a slice of the features would copy them once more in the backward pass.
        reward, reward_metrics = self.imagined_reward(feat)  # (H + 1, N)
        reward = reward[:-1]
        discount = world.predicted_discount(feat[:-1], config.discount)
        visited = feat[:-1].detach()
        prediction = behavior.critic.prediction(visited)
        if self.regularised and not kinds["dynamics"]:  # the target critic is the critic
            value = torch.cat([prediction.mean.detach(), self.target_critic(feat[-1:])])
        else:
            value = self.target_critic(feat)  # (H + 1, N)
        returns = models.lambda_return(reward, value[1:], discount, config.discount_lambda)
        first = start.get("weight", torch.ones_like(discount[0])).unsqueeze(0)
        weight = torch.cat([first, discount[:-1]]).cumprod(0).detach()  # discounted probability of reaching s_t
        range_metrics, advantage, scaled = {}, None, returns
        if behavior.return_range is not None:
            scale = behavior.return_range.scale
            advantage = normalised_advantage(returns, value[:-1], scale)[:-1]
            range_metrics, scaled = {"return_range": scale}, returns / scale
        actor_loss = behavior.actor_loss(trajectory, scaled, value[:-1], weight, config, advantage)
        source_value, alpha = None, 0.0
        if bound is not None:
            source_value = bound.values(visited, trajectory, *(source_start or [None]), source_noise)
            alpha = models.alpha(source_value, config, behavior.return_range)
        slow_value = behavior.slow_critic(visited) if self.regularised else None
        critic_loss, constraint_metrics = behavior.critic_loss(
            prediction, returns, weight, source_value, config.value_constraint, alpha, slow_value
        )
        metrics = {
            "actor_loss": actor_loss,
            "critic_loss": critic_loss,
            "imagined_return": returns.mean(),
            "imagined_reward": reward.mean(),
            "value": value.mean(),
            "actor_entropy": trajectory.entropy.mean(),
            **reward_metrics,
            **constraint_metrics,
            **range_metrics,
        }
        kept = returns.detach() if range_metrics or config.replay_value_scale else None
        return actor_loss + critic_loss, metrics, kept

    def imagined_reward(self, feat: Features) -> tuple[Tensor, Metrics]:
        """The reward that the actor maximises in imagination, features (H, N, F) -> (H, N), and metrics of it."""
        return self.frozen_world.reward(feat), {}

    def gradients(self, batch: Batch) -> dict[str, list[Tensor]]:
        """Gradients of Eq. 2, 7 and 11 on ``batch``, by name of the optimiser. Nothing is updated.

        They are computed eagerly: the memory of a CUDA graph's gradients would be reused by its next run.
        """
        with self.autocast():
            loss, _, post = self.world_model_loss(batch, self.noise(batch))
        self.backward(loss, 1.0, self.model_opt)
        (start,), noise = self.start_imagination(self.weighted(post, batch))
        for share, part in micro_batches(self.config.grad_accum, start, noise):
            with self.autocast():
                loss, *_ = self.behavior_loss(*part)
            self.backward(loss, share, self.actor_opt, self.critic_opt)
        found = {}
        for name in self.OPTIMIZERS:
            optimizer = getattr(self, name)
            found[name] = [torch.zeros_like(p) if p.grad is None else p.grad for p in optimizer.parameters]
            optimizer.zero_grad()
        return found


def start_states(posts: Sequence[State], count: int = 0) -> list[State]:
    """Posterior states of a batch, by one or more models, as start states: (B, T, ...) -> (N, ...), without history.

    N is B * T, or ``count`` of them drawn at random without replacement, the same of each model.
    """
    flat = [{k: v.detach().flatten(0, 1) for k, v in post.items()} for post in posts]
    deter = flat[0]["deter"]
    if not 0 < count < len(deter):
        return flat
    chosen = torch.randperm(len(deter), device=deter.device)[:count]
    return [{k: v[chosen] for k, v in states.items()} for states in flat]

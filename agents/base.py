"""What a run needs of every agent: acting, drawing its batches, updates, saving."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from agents import compilation
from agents.optim import Optimizer
from config import Config
from models import WorldModel
from networks import State
from senses import IMAGE, Senses
from tools import DIVERGED, BadInput

Batch = dict[str, Tensor]
Metrics = dict[str, Tensor | float]


class Store(Protocol):
    """What agents draw batches from: `replay.SequenceStore`, which imports no torch."""

    def sample(
        self, batch_size: int, length: int, rng: np.random.Generator, keys: tuple[str, ...]
    ) -> dict[str, np.ndarray]: ...

    def sample_windows(
        self, batch_size: int, frames: int, nstep: int, rng: np.random.Generator
    ) -> dict[str, np.ndarray]: ...


class BaseAgent:
    """An agent of any method. Its class names what is saved; subclasses act and learn.

    Attributes:
        action_dim: the agent's own action size A.
        world: its world model; None for a model-free agent.
        senses: what it observes.
    """

    MODULES: ClassVar[tuple[str, ...]] = ()  # attributes with weights
    OPTIMIZERS: ClassVar[tuple[str, ...]] = ()
    COUNTERS: ClassVar[tuple[str, ...]] = ()  # attributes that are whole numbers
    world: WorldModel | None = None
    noise_distribution = "uniform"
    has_critic = True  # whether it estimates values

    def __init__(self, config: Config, action_dim: int, device: torch.device, senses: Senses = IMAGE):
        if config.precision == "auto":
            raise ValueError("precision is auto: replace it by training.device.pick_precision's")
        self.config, self.device, self.action_dim, self.senses = config, device, action_dim, senses
        self._policy_step = self.policy_step  # may be compiled

    @torch.no_grad()
    def act(
        self, observation: dict[str, np.ndarray], state: State | None, first: np.ndarray, sample: bool
    ) -> tuple[np.ndarray, State]:
        """One policy step for N environments.

        Args:
            observation: arrays (N, ...); those of its senses are used (image (N, H, W, C) uint8).
            state: what the last call returned, or None.
            first: (N,) bool, True where an episode begins.
            sample: draw the action from the policy; else take its mode.

        Returns:
            actions (N, own A) float32, and the state for the next call.

        Raises:
            BadInput: the actions are not finite.
        """
        n, device = len(first), self.device
        state = self.initial_state(n) if state is None else state
        keep = torch.as_tensor(~first, device=device).float().unsqueeze(-1)  # (N, 1)
        inputs = {k: torch.as_tensor(observation[k], device=device)[:, None] for k in self.senses.keys}
        uniform = torch.rand(n, self.action_dim, device=device) if sample else None
        with self.autocast():
            state = self._policy_step(inputs, state, keep, self.latent_noise(n), uniform)
        actions = state["action"].float().cpu().numpy()
        if not np.isfinite(actions).all():
            raise BadInput(f"the agent's actions are not finite: {DIVERGED}")
        return actions, state

    def initial_state(self, n: int) -> State:
        """The state before the first observation of N episodes, with ``action``, the last action (N, A)."""
        raise NotImplementedError

    def latent_noise(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """The random numbers of N policy steps (N, 1, S), of the distribution ``noise_distribution``. S may be 0."""
        raise NotImplementedError

    def policy_step(self, inputs: Batch, state: State, keep: Tensor, noise: Tensor, uniform: Tensor | None) -> State:
        """The state after observations (N, 1, ...). Its action is the mode, or the sample at ``uniform`` (N, A).

        ``keep`` (N, 1) is 0 where an episode begins, else 1; ``noise`` is `latent_noise`'s.
        """
        raise NotImplementedError

    def policy_modules(self) -> list[nn.Module]:
        """The parts whose weights `policy_step` uses."""
        raise NotImplementedError

    def state_value(self, state: State) -> Tensor | None:
        """The critic's value (N,) in a state that `act` returned; None without a critic.

        With a world model it includes the reward on arrival in the state. A model-free Q begins with the next one.
        """
        raise NotImplementedError

    def sample(self, store: Store, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """The arrays of a batch, drawn from ``store``."""
        raise NotImplementedError

    def fit_states(self, store: Store) -> None:
        """Measure the scale of the states on all episodes of ``store``, if a setting asks for it. Only once."""

    def random_batch(self) -> Batch:
        """A batch of random numbers, for measurements."""
        raise NotImplementedError

    def update(self, batch: Batch) -> Metrics:
        """One update of everything that the agent learns."""
        raise NotImplementedError

    def autocast(self) -> AbstractContextManager:
        """The precision of the forward passes."""
        bfloat16 = self.config.precision == "bfloat16"
        return torch.autocast(self.device.type, torch.bfloat16) if bfloat16 else nullcontext()

    # Learning

    def backward(self, loss: Tensor, share: float, *optimizers: Optimizer) -> None:
        """Add the gradient of ``share`` of a loss to the parameters of ``optimizers``, and of nothing else.

        Raises BadInput if the loss is not finite. On a GPU reading it would stall the device, so it is not read.
        """
        if self.device.type == "cpu" and not torch.isfinite(loss):
            raise BadInput(f"a loss is not finite: {DIVERGED}")
        (share * loss).backward(inputs=[p for optimizer in optimizers for p in optimizer.parameters])

    def _compiled(self, function: Callable[..., Any], *optimizers: Optimizer) -> Callable[..., Any]:
        """``function`` as `compilation.Compiled` if ``compile`` asks for it."""
        if not compilation.wanted(self.config.compile, self.device):
            return function
        graphs = self.device.type == "cuda" and self.config.grad_accum == 1
        return compilation.Compiled(function, [p for o in optimizers for p in o.parameters], graphs)

    # Saving

    def state_dict(self) -> dict:
        return {
            **self.model_dict(),
            **{name: getattr(self, name).state_dict() for name in self.OPTIMIZERS},
            **{name: getattr(self, name) for name in self.COUNTERS},
        }

    def model_dict(self) -> dict:
        """The weights alone, for `load_models`."""
        return {name: getattr(self, name).state_dict() for name in self.MODULES}

    def load_models(self, state: dict) -> None:
        """Restore the weights of a `state_dict` or `model_dict`: enough to act, predict and evaluate."""
        for name in self.MODULES:
            getattr(self, name).load_state_dict(state[name])

    def load_state_dict(self, state: dict) -> None:
        self.load_models(state)
        for name in self.OPTIMIZERS:
            getattr(self, name).load_state_dict(state[name])
        for name in self.COUNTERS:
            setattr(self, name, state[name])

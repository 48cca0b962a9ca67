"""The policy of a trained agent, for images one by one or in batches."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agents.base import BaseAgent
from config import Config
from networks import State, pad_action
from policy.actions import ActionMap
from tools import CAMERA, DIVERGED, BadInput, resize_images
from training.checkpoint import CHECKPOINT, build_agent, load_checkpoint, task_label
from training.device import pick_device


class PixelPolicy:
    """An agent's policy with its recurrent state.

    Symbols: N observations at once, A actions, H steps of imagination. Computes in the precision of the agent's
    settings, as evaluations do. The latent is sampled, also as in evaluations, so two policies with one seed give equal
    actions.

    Args:
        agent: it observes images, and perhaps states.
        name, task: of the agent, for `policy.program`.
        data: of the agent's dataset: ``action_map`` (see `ActionMap`), ``image_shape`` (H, W, C), and of several
            cameras ``cameras``, their names and shapes; all may be missing. Then actions are in [-1, 1], images have
            the model's own size, and several cameras are called ``camera_0``, ``camera_1``, ...
        sample: draw actions from the policy; else take its mode.
        seed: of all random numbers.

    Attributes:
        size: pixels of the model's images, to which images of any other size are resized as in training.
        action_dim: A.
        cameras: name of each camera, with height, width and channels of its images; the only one is called ``image``.
        states: names of the low-dimensional states, with their sizes.
    """

    def __init__(
        self,
        agent: BaseAgent,
        name: str = "target",
        task: str = "",
        data: dict[str, Any] | None = None,
        *,
        sample: bool = False,
        seed: int = 0,
    ):
        if not agent.senses.channels:
            raise BadInput(
                f"the {name} agent observes low-dimensional states ({', '.join(agent.senses.state)}), not images; "
                f"choose another agent"
            )
        self.agent, self.name, self.task, self.data, self.sample = agent, name, task, data or {}, sample
        self.size, self.action_dim = agent.config.size[0], agent.action_dim
        self.image_shape = tuple(self.data.get("image_shape") or (self.size, self.size, 3))
        self.states = dict(agent.senses.state)
        self.cameras = {"image": self.image_shape}
        if (count := agent.senses.channels // CAMERA) > 1:
            names = self.data.get("cameras") or {f"camera_{i}": self.image_shape for i in range(count)}
            self.cameras = {name: tuple(shape) for name, shape in names.items()}
        self.action_map = ActionMap(self.data.get("action_map"), agent.action_dim).to(agent.device)
        self.generator = torch.Generator(agent.device).manual_seed(seed)
        self._state: State | None = None
        self._observed = np.zeros(0, bool)  # (N,), whether the row has had an image since its reset
        self._single = False

    @torch.no_grad()
    def __call__(self, image: np.ndarray | Mapping[str, Any], *, sample: bool | None = None) -> np.ndarray:
        """The actions for the next images of N episodes.

        Args:
            image: uint8, one image (H, W, 3), (H, W, 1) or (H, W), or a batch (N, H, W, 3) or (N, H, W, 1). With
                several cameras or states a dict: an image of each of ``cameras``, or ``image`` with 3 channels for
                each of them, and the numbers (S,) or (N, S) of each of ``states``. Other entries are not used.
            sample: instead of the policy's own.

        Returns:
            (A,) float32 for one image, (N, A) for a batch, in the units of the dataset.

        Raises:
            ValueError: an image or a state is missing or of another type or shape, or another N than before without
                `reset`.
            BadInput: the actions are not finite.
        """
        observed, single = self.observed(image)
        n, device = len(observed["image"]), self.agent.device
        if self._state is None:
            self._state = self.agent.initial_state(n)
            self._observed = np.zeros(n, bool)
        if n != len(self._observed):
            raise ValueError(f"{n} images, but {len(self._observed)} episodes are running; call reset() first")
        uniform = None  # drawn before the latent's noise, as in `Agent.act`
        if self.sample if sample is None else sample:
            uniform = torch.rand(n, self.action_dim, device=device, generator=self.generator)
        inputs = {key: torch.as_tensor(array, device=device)[:, None] for key, array in observed.items()}
        keep = torch.as_tensor(self._observed, device=device).float().unsqueeze(-1)
        noise = self.agent.latent_noise(n, self.generator)
        with self.agent.autocast():
            state = self.agent.policy_step(inputs, self._state, keep, noise, uniform)
        if not torch.isfinite(state["action"]).all():
            raise BadInput(f"the agent's actions are not finite: {DIVERGED}")
        self._state, self._single = state, single
        self._observed[:] = True
        actions = self.action_map(state["action"].float()).cpu().numpy()
        return actions[0] if single else actions

    def reset(self, which: Any = None, *, seed: int | None = None) -> None:
        """Begin new episodes: all of them, and then N may change, or those of ``which``, a mask (N,) or indices.

        ``seed`` restarts the random numbers. Raises ValueError if ``which`` names other rows than the N running ones.
        """
        if seed is not None:
            self.generator.manual_seed(seed)
        if which is None:
            self._state, self._observed = None, np.zeros(0, bool)
            return
        rows = self._rows(which)
        self._observed &= ~rows  # the next step begins these episodes anew

    @torch.no_grad()
    def value(self) -> np.ndarray | float:
        """The critic's value of the current state: a number, or (N,) after a batch.

        It estimates the discounted sum of the rewards from now on. Raises ValueError before the first image, or if the
        method has no critic.
        """
        self._check_observed()
        with self.agent.autocast():
            value = self.agent.state_value(self._state)
        if value is None:
            raise ValueError(f"method {self.agent.config.method} has no critic, so no values")
        value = value.float().cpu().numpy()
        return float(value[0]) if self._single else value

    @torch.no_grad()
    def imagine(self, actions: np.ndarray, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """What the world model predicts for ``actions`` from the current state, which does not change.

        Args:
            actions: (H, A) or (N, H, A) in the units of the dataset. After one image, N may be any number: as many
                futures of that image. After a batch N is the batch's.
            seed: of the latents' noise; another one gives another future.

        Returns:
            images (H, S, S, 3 a camera) uint8 at the model's size S and rewards (H,) float32, or (N, H, ...) for
            (N, H, A).

        Raises:
            ValueError: actions of another shape or outside their bounds, no image yet, or a method without world model.
        """
        if self.agent.world is None:
            raise ValueError(f"method {self.agent.config.method} has no world model that could imagine")
        self._check_observed()
        latent = {key: self._state[key] for key in ("stoch", "deter")}
        actions, single = np.asarray(actions), np.ndim(actions) == 2
        actions = actions[None] if single else actions
        running, shape = len(self._observed), np.shape(actions)
        if len(shape) != 3 or shape[2] != self.action_dim or 0 in shape or running not in (1, shape[0]):
            many = f"({running}, H, {self.action_dim})"
            wanted = many if running > 1 else f"(H, {self.action_dim}) or (N, H, {self.action_dim})"
            raise ValueError(f"actions have shape {shape[1:] if single else shape}; give {wanted}")
        world = self.agent.world
        padded = pad_action(self.action_map.inverse(actions), world.action_dim)
        latent = {key: value.expand(len(padded), -1) for key, value in latent.items()}
        with torch.random.fork_rng(), self.agent.autocast():
            torch.manual_seed(seed)
            feat = torch.cat(world.predict(latent, padded), 1)
            images, rewards = world.decode(feat), world.reward(feat).float()
        images, rewards = images.cpu().numpy(), rewards.cpu().numpy()
        return (images[0], rewards[0]) if single else (images, rewards)

    def _check_observed(self) -> None:
        if self._state is None or not self._observed.all():
            missing = np.flatnonzero(~self._observed).tolist()
            rows = f" for rows {missing}" if missing else ""
            raise ValueError(f"no image since the last reset{rows}; call the policy with one first")

    def observed(self, image: Any) -> tuple[dict[str, np.ndarray], bool]:
        """What the agent observes: image (N, size, size, C) uint8 and states (N, S); and whether it is one of each.

        ``image`` is that of `__call__`. Raises ValueError as it does.
        """
        if not isinstance(image, Mapping):
            if self.states:
                raise ValueError(f"the agent observes states too; give a dict with {', '.join(self.names)}")
            image = {"image": image}
        several = len(self.cameras) > 1 and (image.keys() >= self.cameras.keys() or "image" not in image)
        needed = [*(self.cameras if several else ["image"]), *self.states]
        if missing := [name for name in needed if name not in image]:
            raise ValueError(f"no {', '.join(missing)} in the observation; give {', '.join(self.names)}")
        if several:
            images, singles = zip(*(sized_images(image[name], self.size) for name in self.cameras), strict=True)
            if len({len(array) for array in images}) > 1:
                raise ValueError(f"the images of {', '.join(self.cameras)} differ in number: {[*map(len, images)]}")
            found, single = {"image": np.concatenate(images, -1)}, singles[0]
        else:
            images, single = sized_images(image["image"], self.size, len(self.cameras))
            found = {"image": images}
        rows = len(found["image"])
        for name, size in self.states.items():
            values = np.asarray(image[name], np.float32)
            if values.size != rows * size or not np.isfinite(values).all():
                raise ValueError(f"{name} has shape {values.shape}; give {rows} x {size} finite numbers")
            found[name] = values.reshape(rows, size)
        return found, single

    @property
    def names(self) -> list[str]:
        """The names of what the agent observes, for a caller."""
        return [*self.cameras, *self.states]

    def _rows(self, which: Any) -> np.ndarray:
        """A mask or indices as a mask (N,). Raises ValueError."""
        which, n = np.atleast_1d(np.asarray(which)), len(self._observed)
        if which.dtype == bool and which.shape == (n,):
            return which
        if which.shape == (0,):  # no episode has ended
            return np.zeros(n, bool)
        if which.dtype.kind not in "iu" or which.ndim != 1 or (which < 0).any() or (which >= n).any():
            raise ValueError(f"reset of {which.tolist()}: give a mask of {n} rows, or indices below {n}")
        return np.isin(np.arange(n), which)


def sized_images(image: Any, size: int, cameras: int = 1) -> tuple[np.ndarray, bool]:
    """Images (N, size, size, 3 for each of ``cameras``) uint8, and whether it is one image. Raises ValueError."""
    image, channels = np.asarray(image), CAMERA * cameras
    if image.dtype != np.uint8:
        raise ValueError(f"images are {image.dtype}; give uint8, 0 to 255")
    single = image.ndim <= 3
    images = image[..., None] if image.ndim == 2 else image
    images = images[None] if single else images
    if images.ndim != 4 or images.shape[-1] not in {channels, 1 if cameras == 1 else channels} or 0 in images.shape:
        grey = "(H, W), " * (cameras == 1), " or (N, H, W, 1)" * (cameras == 1)
        whole = f"(H, W, {channels}), {grey[0]}(N, H, W, {channels}){grey[1]}"
        raise ValueError(f"images have shape {image.shape}; give {whole}")
    if images.shape[-1] == 1:
        images = np.repeat(images, CAMERA, -1)
    return resize_images(np.ascontiguousarray(images), size), single


def load_policy(
    logdir: str | Path,
    agent: str = "target",
    *,
    sample: bool = False,
    seed: int = 0,
    device: str = "cpu",
    precision: str | None = None,
) -> PixelPolicy:
    """The policy of an agent of the run in ``logdir``: ``target``, ``source``, or of several ``source_1``, ...

    Actions are in the units of the dataset if the run mapped them, else in [-1, 1]. A source's are always in [-1, 1].
    ``precision`` is float32 or bfloat16; by default the one that the run was trained and evaluated in.
    Raises BadInput if there is no such run, agent or precision, or if the agent observes no images.
    """
    saved = load_checkpoint(Path(logdir).expanduser() / CHECKPOINT, advice="give another run")
    if precision not in (None, "float32", "bfloat16"):
        raise BadInput(f"precision {precision!r} is not float32 or bfloat16")
    if precision:
        saved = {**saved, "config": {**saved["config"], "precision": precision}}
    built, config = build_agent(saved, Path(logdir), agent, pick_device(device))
    data = saved.get("data") if agent == "target" else simulator_cameras(built, config, agent)
    return PixelPolicy(built, agent, task_label(config, agent), data, sample=sample, seed=seed)


def simulator_cameras(agent: BaseAgent, config: Config, name: str) -> dict[str, Any]:
    """The names of the cameras of an agent of a simulator, if they are several, as `PixelPolicy`'s ``data``."""
    suite = task_label(config, name).partition("_")[0]
    cameras = [camera.strip() for camera in str(getattr(config, f"{suite}_camera", "")).split(",")]
    if len(cameras) == 1 or len(cameras) != agent.senses.channels // CAMERA:
        return {}
    return {"cameras": dict.fromkeys(cameras, (config.size[0], config.size[0], CAMERA))}

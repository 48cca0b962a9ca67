"""`PixelEnv`, the base class of all suites' environments: frames, action range, action repeat, seeds, info."""

import inspect
from abc import abstractmethod
from typing import Any, NamedTuple, Self

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict

from tools import CAMERA, BadInput
from wrappers.shared.cameras import split_cameras
from wrappers.shared.suites import SUITES


class SimulatorStep(NamedTuple):
    """Result of one simulator step. ``discount`` is 0 only where the task terminated."""

    reward: float
    discount: float = 1.0
    success: float | None = None  # None where the simulator reports none
    truncated: bool = False  # ended by the simulator's own time limit, which is no termination


class PixelEnv(gymnasium.Env):
    """A simulator with frames of one camera or several, and actions in [-1, 1].

    Observations are a dict: ``image`` (size, size, 3 for each camera) uint8, and the suite's low-dimensional entries,
    each a 1-D float32 array. One frame is drawn per agent step, at any action repeat.
    ``info`` has ``discount`` and, where the simulator reports it, ``success`` (1.0 on a step that succeeds). In suites
    that define success it is always there.

    A suite implements the four abstract methods. Its constructor makes the simulator, in a state that
    `_low_dimensional` can read, before it calls this one. Raises BadInput, with the file, class and method, if one of
    the four is missing or returns something else.
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012 (gymnasium's own declaration)
    render_mode = "rgb_array"

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        missing = [n for n, method in inspect.getmembers(cls) if getattr(method, "__isabstractmethod__", False)]
        if missing:
            methods = "method" if len(missing) == 1 else "methods"
            raise BadInput(
                f"{source_file(cls)}: class {cls.__name__} lacks the {methods} {', '.join(missing)} (docs/extending.md)"
            )
        return super().__new__(cls)

    def __init__(self, description: dict[str, Any], low: np.ndarray, high: np.ndarray):
        """Set the spaces.

        description: as in `wrappers.make_env`.
        low, high: the simulator's action bounds, each (A,).
        """
        self.description = description
        self._has_success = SUITES[description["suite"]].has_success
        self._action_low, self._action_high = low.astype(np.float64), high.astype(np.float64)
        self.action_space = Box(-1.0, 1.0, low.shape, np.float32)
        size, cameras = description["size"], len(split_cameras(description["camera"]))
        self._image_shape = size, size, CAMERA * cameras
        spaces = {"image": Box(0, 255, self._image_shape, np.uint8)}
        for name, value in _low_dimensional_of(self).items():
            spaces[name] = Box(-np.inf, np.inf, np.shape(np.atleast_1d(value).ravel()), np.float32)
        self.observation_space = Dict(spaces)

    def leave_out_images(self) -> None:
        """From now on observations have the low-dimensional entries only, and nothing is drawn for them."""
        self.observation_space = Dict({k: space for k, space in self.observation_space.items() if k != "image"})

    @property
    def action_bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """The simulator's own actions that -1 and 1 stand for, each (A,)."""
        return self._action_low, self._action_high

    @abstractmethod
    def _reset_simulator(self, seed: int) -> None:
        """Start an episode of the simulator that depends on ``seed`` alone."""

    @abstractmethod
    def _step_simulator(self, action: np.ndarray) -> SimulatorStep:
        """Step the simulator once with an action (A,) in its own range."""

    @abstractmethod
    def _draw(self) -> np.ndarray:
        """The camera's current frame, (size, size, 3) uint8, not flipped; of several cameras (size, size, 3 K)."""

    @abstractmethod
    def _low_dimensional(self) -> dict[str, np.ndarray]:
        """The suite's own observation entries, of any shape."""

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        """Start an episode that ``seed`` determines. Without a seed, the RNG of earlier resets continues."""
        super().reset(seed=seed)
        # Every episode gets a new simulator seed from this RNG, so it does not depend on earlier episodes' steps.
        self._reset_simulator(int(self.np_random.integers(2**31)))
        self.agent_steps = 0
        info = {"discount": 1.0}
        if self._has_success:
            info["success"] = 0.0
        return self._observation(), info

    def step(self, action: np.ndarray):
        """Repeat ``action`` (A,), in [-1, 1]; the reward is the sum over the repeats."""
        action = np.clip(np.asarray(action, np.float64), -1.0, 1.0)
        action = self._action_low + (action + 1.0) * 0.5 * (self._action_high - self._action_low)
        reward, discount, truncated, success = 0.0, 1.0, False, None
        for _ in range(self.description["action_repeat"]):
            result = self._step_simulator(action)
            if not isinstance(result, SimulatorStep):
                raise _wrong(self, "_step_simulator", result, "a SimulatorStep")
            reward += float(result.reward)
            discount *= float(result.discount)
            truncated = bool(result.truncated)
            if result.success is not None:
                success = max(success or 0.0, float(result.success))
            if discount == 0.0 or truncated:
                break
        self.agent_steps += 1
        info = {"discount": discount}
        if self._has_success or success is not None:
            info["success"] = success or 0.0
        return self._observation(), reward, discount == 0.0, truncated and discount != 0.0, info

    def render(self) -> np.ndarray:
        """The current frame, (size, size, 3 for each camera) uint8, as in the observation."""
        image = self._draw()
        if getattr(image, "shape", None) != self._image_shape or image.dtype != np.uint8:
            raise _wrong(self, "_draw", image, f"uint8 {self._image_shape}")
        # Copied: some renderers return views of their own buffers, read-only or with negative strides.
        return np.array(image[::-1] if self.description["flip"] else image, order="C")

    def _observation(self) -> dict[str, np.ndarray]:
        low = {name: np.array(value, np.float32).ravel() for name, value in _low_dimensional_of(self).items()}
        return {"image": self.render(), **low} if "image" in self.observation_space.spaces else low


# Functions, not methods, which a suite's class could have under the same name.


def _low_dimensional_of(env: PixelEnv) -> dict[str, np.ndarray]:
    values = env._low_dimensional()
    if not isinstance(values, dict):
        raise _wrong(env, "_low_dimensional", values, "a dict of arrays")
    return values


def _wrong(env: PixelEnv, method: str, result: object, wanted: str) -> BadInput:
    """The error of a method of a suite that returned ``result``."""
    found = f"{result.dtype} {result.shape}" if isinstance(result, np.ndarray) else type(result).__name__
    where = f"{source_file(type(env))}: {method} of class {type(env).__name__}"
    return BadInput(f"{where} returned {found}; it must return {wanted}")


def source_file(kind: type) -> str:
    """The file that defines a class, for messages."""
    try:
        return inspect.getfile(kind)
    except (TypeError, OSError):  # it was typed in, or is built in
        return f"module {kind.__module__}"

"""Any gymnasium environment that draws frames and takes continuous actions: ``gym_ID`` or ``gym_MODULE:ID``."""

import contextlib
import importlib
import os
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict

from tools import BadInput, nearest, one_line, resize_images
from wrappers.shared.backend import choose_backend_if_possible
from wrappers.shared.base import PixelEnv, SimulatorStep
from wrappers.shared.cameras import beside_each_other, split_cameras
from wrappers.shared.rendering import close_at_exit
from wrappers.shared.suites import Suite

_ROWS = {"image", "action", "reward", "discount", "success", "is_first"}  # the names of a stored episode's other arrays
_UNBOUNDED = 1e9  # action bounds from here on stand for none
# Environments drawn with pygame need no window, and its greeting on stdout would be a line of ours.
_PYGAME = {"SDL_VIDEODRIVER": "dummy", "SDL_AUDIODRIVER": "dummy", "PYGAME_HIDE_SUPPORT_PROMPT": "1"}


def find_task(name: str) -> str:
    """The registered id that ``name`` means; ``MODULE:ID`` as it is, because its module is imported by `make` only.

    Hyphens equal underscores and capitals do not matter in the ids that gymnasium registers itself.
    Raises BadInput if there is no such id.
    """
    module, colon, env_id = name.partition(":")
    if colon:
        if not all(part.isidentifier() for part in module.split(".")) or not env_id:
            raise BadInput(f"unknown task 'gym_{name}': write it as gym_MODULE:ID, like gym_my_package:MyEnv-v0")
        return name
    spellings = {_normalized(known): known for known in gymnasium.registry}
    found = name if name in gymnasium.registry else spellings.get(_normalized(name))
    if found is None:
        ids = [f"gym_{known}" for known in gymnasium.registry]
        raise BadInput(
            f"unknown task 'gym_{name}'; {nearest(f'gym_{name}', ids)}; an id that a package registers is "
            f"gym_PACKAGE:{name or 'ID'}"
        )
    return found


def _normalized(name: str) -> str:
    return name.lower().replace("-", "_")


def _registered_by(module: str) -> list[str]:
    """The ids whose classes are in the package of ``module``."""
    found = []
    for env_id, spec in gymnasium.registry.items():
        entry = spec.entry_point
        where = entry if isinstance(entry, str) else getattr(entry, "__module__", "")
        if where.split(":")[0].split(".")[0] == module.split(".")[0]:
            found.append(env_id)
    return found


def make(name: str, renders: bool = True) -> gymnasium.Env:
    """The environment of the task ``name`` (without prefix), with gymnasium's own wrappers and its time limit.

    ``renders``: its ``render`` draws the frames; else it need not have one.

    Raises BadInput if its module cannot be imported, if it has no such id, or if it cannot be made to draw frames.
    """
    for variable, value in _PYGAME.items():
        os.environ.setdefault(variable, value)
    module, _, env_id = name.rpartition(":")
    try:
        if module:
            importlib.import_module(module)
    except Exception as error:  # whatever the user's module raises
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise BadInput(
            f"gym_{name}: module {module} cannot be imported ({reason}); install it or add its folder to PYTHONPATH"
        ) from error
    if env_id not in gymnasium.registry:
        ids = [f"gym_{module}:{known}" for known in _registered_by(module)]
        others = nearest(f"gym_{name}", ids) if ids else "nor any other"
        raise BadInput(f"gym_{name}: module {module} registers no {env_id}; {others}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # each worker process would print them again
            mode = {"render_mode": "rgb_array"} if renders else {}
            env = gymnasium.make(env_id, **mode, disable_env_checker=True)
    except Exception as error:  # whatever the user's environment raises
        reason = "it takes no render_mode" if "render_mode" in str(error) else f"{type(error).__name__}: {error}"
        raise BadInput(f"gym_{name} cannot be made: {reason[:200]}") from error
    modes = env.metadata.get("render_modes") or []
    if renders and "rgb_array" not in modes:
        listed = ", ".join(map(str, modes)) or "none"
        raise BadInput(f"gym_{name} has no render mode rgb_array ({listed}); give an environment that draws frames")
    return env


def check_actions(task: str, space: gymnasium.Space) -> None:
    """Raises BadInput if ``space`` is not a Box of real numbers with finite bounds."""
    if not isinstance(space, Box):
        raise BadInput(f"{task} has {type(space).__name__} actions; give an environment with a Box action space")
    if space.dtype.kind != "f" or 0 in space.shape:
        raise BadInput(f"{task} has actions of type {space.dtype} and shape {space.shape}; they must be real numbers")
    if np.maximum(abs(space.low), abs(space.high)).max(initial=0) >= _UNBOUNDED:
        raise BadInput(
            f"{task} has actions without finite bounds, which cannot be rescaled to [-1, 1]; register it with bounds "
            f"(gymnasium.wrappers.RescaleAction or its own action space)"
        )


def low_dimensional(space: gymnasium.Space, value: Any, name: str = "") -> dict[str, np.ndarray]:
    """The Box entries of an observation that are not images, by key; those of a nested Dict by ``outer.inner``.

    A Box that is not in a Dict is called ``observation``. ``name`` is the key of a part of an observation.
    """
    if isinstance(space, Dict):
        prefix = f"{name}." if name else ""
        parts = [low_dimensional(inner, value[key], f"{prefix}{key}") for key, inner in space.items()]
        return {key: entry for part in parts for key, entry in part.items()}
    if not isinstance(space, Box) or is_image(space) or 0 in space.shape:
        return {}
    name = name or "observation"
    return {f"observed_{name}" if name in _ROWS else name: np.asarray(value)}


def image_entries(space: gymnasium.Space, value: Any = None, name: str = "") -> dict[str, Any]:
    """The entries of an observation that are images, named as those of `low_dimensional`; None without a ``value``."""
    if isinstance(space, Dict):
        prefix = f"{name}." if name else ""
        values = value or dict.fromkeys(space)
        parts = [image_entries(inner, values[key], f"{prefix}{key}") for key, inner in space.items()]
        return {key: entry for part in parts for key, entry in part.items()}
    return {name or "observation": value} if isinstance(space, Box) and is_image(space) and 0 not in space.shape else {}


def is_image(space: gymnasium.Space) -> bool:
    return len(space.shape or ()) == 3 or (len(space.shape or ()) == 2 and space.dtype == np.uint8)


def as_rgb(frame: Any, task: str, source: str = "render() returned") -> np.ndarray:
    """A frame of an environment, (H, W) or (H, W, 1 or 3), as (H, W, 3) uint8. ``source`` says where it is from.

    Raises BadInput if it is no such image.
    """
    found = f"{type(frame).__name__}"
    if isinstance(frame, np.ndarray):
        found = f"{frame.dtype} {frame.shape}"
        if frame.ndim == 2:
            frame = frame[..., None]
        if frame.dtype == np.uint8 and frame.ndim == 3 and frame.shape[2] in (1, 3) and 0 not in frame.shape:
            return np.repeat(frame, 3, axis=2) if frame.shape[2] == 1 else frame
    raise BadInput(f"{task}: {source} {found}; it must return an array (height, width, 3) of uint8")


def as_number(value: Any, what: str, *, low: float = -np.inf, high: float = np.inf) -> float:
    """A finite number from ``low`` to ``high``, or the smallest of an array of them, as float. Raises BadInput."""
    numbers = np.asarray(value)
    if numbers.dtype.kind not in "biuf" or numbers.size == 0 or not np.isfinite(numbers).all():
        raise BadInput(f"{what} is {one_line(repr(value))}; it must be a finite number")
    if numbers.min() < low or numbers.max() > high:
        raise BadInput(f"{what} is {one_line(repr(value))}; it must be from {low:g} to {high:g}")
    return float(numbers.min())


@contextlib.contextmanager
def one_line_errors(task: str, call: str) -> Iterator[None]:
    """Turn whatever the user's environment raises in ``call`` into a BadInput that names the place."""
    try:
        yield
    except BadInput:
        raise
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise BadInput(f"{task}: {call} failed: {reason} ({Path(place.filename).name}, line {place.lineno})") from error


class GymEnv(PixelEnv):
    """A gymnasium environment. Its observations are the low-dimensional entries, and as the image its ``render``, or
    the entries that ``camera`` names, separated by commas.

    Its own time limit truncates. Success is ``info["success"]`` or ``info["is_success"]``, if it has one.
    """

    def __init__(self, name: str, description: dict):
        """Make the task ``name`` (without prefix); ``description`` as in `wrappers.make_env`."""
        self._task = f"gym_{name}"
        self._cameras = split_cameras(description["camera"]) if description["camera"] is not None else []
        no_opengl = choose_backend_if_possible()  # before the environment imports MuJoCo, if it does
        self._env = make(name, renders=not self._cameras)
        images = image_entries(self._env.observation_space)
        for camera in self._cameras:
            if camera not in images:
                raise BadInput(
                    f"--gym_camera {description['camera']}: {self._task} observes no images {camera!r}; there are: "
                    f"{', '.join(images) or 'none'} (without --gym_camera, its render() draws)"
                )
        check_actions(self._task, self._env.action_space)
        self._closed, self._renderers = False, []
        for part in _parts(self._env.unwrapped):
            if no_opengl and _models(part):
                raise no_opengl
            if description["render"] == "fast":
                for model in _models(part):
                    draw_fast(model)
            self._renderers += [part.mujoco_renderer] if hasattr(part, "mujoco_renderer") else []
        self._reset_simulator(0)
        # gymnasium points a free camera at the objects of its first frame. Drawn here, it depends on no seed.
        if not self._cameras:
            with one_line_errors(self._task, "render()"):
                as_rgb(self._env.render(), self._task)
        close_at_exit(self)
        space = self._env.action_space
        super().__init__(description, space.low.ravel(), space.high.ravel())

    def _reset_simulator(self, seed: int) -> None:
        with one_line_errors(self._task, "reset()"):
            found = self._env.reset(seed=seed)
        if not isinstance(found, tuple) or len(found) != 2:
            raise BadInput(f"{self._task}: reset() returned {type(found).__name__}; it must return (observation, info)")
        self._observed = found[0]

    def _step_simulator(self, action: np.ndarray) -> SimulatorStep:
        space = self._env.action_space
        action = np.clip(action.reshape(space.shape).astype(space.dtype), space.low, space.high)
        with one_line_errors(self._task, "step()"):
            self._observed, reward, terminated, truncated, info = self._env.step(action)
        if np.size(reward) != 1:
            raise BadInput(f"{self._task}: step() gave {np.size(reward)} rewards; it must give one number")
        reward = as_number(reward, f"{self._task}: the reward of step()")
        success = info.get("success", info.get("is_success"))
        if success is not None:
            success = as_number(success, f"{self._task}: success in info", low=0, high=1)
        return SimulatorStep(reward, 0.0 if terminated else 1.0, success, truncated)

    def _draw(self) -> np.ndarray:
        if self._cameras:
            frames = image_entries(self._env.observation_space, self._observed)
            shown = [as_rgb(frames[name], self._task, f"observation {name} is") for name in self._cameras]
            return beside_each_other([resize_images(frame[None], self.description["size"])[0] for frame in shown])
        for renderer in self._renderers:
            # gymnasium's renderer draws into the OpenGL context of whichever environment of this process drew last.
            if getattr(renderer, "viewer", None) is not None:
                renderer.viewer.make_context_current()
        with one_line_errors(self._task, "render()"):
            frame = self._env.render()
        return resize_images(as_rgb(frame, self._task)[None], self.description["size"])[0]

    def _low_dimensional(self) -> dict[str, np.ndarray]:
        return low_dimensional(self._env.observation_space, self._observed)

    def close(self) -> None:
        """Close the environment; closing twice is harmless."""
        if not self._closed:
            self._closed = True
            self._env.close()


def _parts(env: gymnasium.Env) -> list[gymnasium.Env]:
    """The environment and those that it contains, without their wrappers."""
    parts = [env]
    for part in parts:  # which grows
        inner = [value.unwrapped for value in vars(part).values() if isinstance(value, gymnasium.Env)]
        parts += [env for env in inner if not any(env is known for known in parts)]
    return parts


def _models(env: gymnasium.Env) -> list[Any]:
    """The MuJoCo models of an environment, each once."""
    found = {id(value): value for value in vars(env).values() if type(value).__name__ == "MjModel"}
    return list(found.values())


def draw_fast(model: Any) -> None:
    """Omit shadows, reflections and multisampling from the frames of a MuJoCo model. Physics does not use these."""
    model.light_castshadow[:] = 0
    model.mat_reflectance[:] = 0
    model.vis.quality.offsamples = 0


SUITE = Suite(
    name="gym",
    title="Gymnasium",
    tasks=(),
    find_task=find_task,
    make=GymEnv,
    settings={"action_repeat": 1, "camera": ""},
    uses_mujoco=None,
)

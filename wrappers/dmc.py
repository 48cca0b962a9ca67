"""The dm_control suite, and the paper's six modified bodies.

A modified body is an overlay in ``modified_dmc_xml/``: it names an original model, the task whose reward it
keeps, and only the attributes that change. Those are written over the installed dm_control's own XML as it is
loaded.
"""

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np

from wrappers.shared.background import Background
from wrappers.shared.base import PixelEnv, SimulatorStep
from wrappers.shared.patches import NumpyWith
from wrappers.shared.rendering import FrameRenderer, camera_name

# dm_control reads which OpenGL library to use when it is imported; the import above has chosen it.
# isort: split
from dm_control import suite
from dm_control.rl.control import Environment
from dm_control.suite import common, quadruped

ACTION_REPEAT = 2
FLIP = False
OVERLAYS = Path(__file__).resolve().parent.parent / "modified_dmc_xml"
_ORIENTATIONS = ("quat", "axisangle", "xyaxes", "zaxis", "euler")
# An alias that left NumPy in 2.4, and that dm_control 1.0.28 still calls there.
quadruped.np = NumpyWith(in1d=np.isin)


def default_camera(domain: str) -> int:
    """The camera that pixel agents use, as in Dreamer's code: 2 for the quadruped, which its camera 0 does
    not follow, else 0. In the walker and the cheetah that is ``side``, the camera which the paper tilts."""
    return 2 if domain == "quadruped" else 0


def split_name(name: str) -> tuple[str, str]:
    """``ball_in_cup_catch`` -> (``ball_in_cup``, ``catch``), by dm_control's own list of domains."""
    domain = max((d for d in suite.TASKS_BY_DOMAIN if name.startswith(d + "_")), key=len)
    return domain, name.removeprefix(domain + "_")


def _counterpart(root: ElementTree.Element, change: ElementTree.Element) -> ElementTree.Element:
    """The one element of ``root`` with the tag, and the name if there is one, of ``change``."""
    found = [e for e in root.iter(change.tag) if e.get("name") == change.get("name")]
    if len(found) != 1:
        raise ValueError(f"the overlay's {change.tag} {change.attrib} has {len(found)} counterparts, not one")
    return found[0]


def apply_overlay(model_xml: str | bytes, overlay: ElementTree.Element) -> str:
    """``model_xml`` with each element of ``overlay`` written over its counterpart, attribute by attribute."""
    root = ElementTree.fromstring(model_xml)
    for change in overlay:
        target = _counterpart(root, change)
        if any(key in change.attrib for key in _ORIENTATIONS):  # MuJoCo refuses two orientations
            for key in _ORIENTATIONS:
                target.attrib.pop(key, None)
        target.attrib.update(change.attrib)
    return ElementTree.tostring(root, encoding="unicode")


def load(name: str) -> Environment:
    """The dm_control environment of the task ``name`` (without prefix), modified bodies included.

    Its own time limit is lifted: `wrappers.make_env` sets the limit, in agent steps.
    """
    path = OVERLAYS / f"{name}.xml"
    overlay = ElementTree.parse(path).getroot() if path.is_file() else None
    domain, task = split_name(name)
    if overlay is not None:
        task = overlay.attrib["task"]
    env = suite.load(domain, task, task_kwargs={"time_limit": float("inf")})
    if overlay is not None:
        original = common.read_model(overlay.attrib["model"])
        env.physics.reload_from_xml_string(apply_overlay(original, overlay), common.ASSETS)
    return env


class DMCEnv(PixelEnv):
    """A dm_control task. It ends only where dm_control's discount is 0; the suite defines no success."""

    def __init__(self, name: str, description: dict):
        self._env = load(name)
        self._observed = self._env.reset().observation
        physics = self._env.physics
        camera = description["camera"]
        camera = default_camera(split_name(name)[0]) if camera is None else camera
        self._renderer = FrameRenderer(physics.model.ptr, description["size"], camera, description["render"])
        description = {**description, "camera": camera_name(physics.model.ptr, camera)}
        folder = description["background"]
        self._background = Background(folder, description["size"]) if folder else None
        spec = self._env.action_spec()
        # Motors without limits (lqr) are given as +-1e10: their actions stay as they are.
        bounded = spec.maximum < 1e9
        low, high = np.where(bounded, spec.minimum, -1.0), np.where(bounded, spec.maximum, 1.0)
        super().__init__(description, low, high)

    def _begin(self, seed: int) -> None:
        # dm_control takes its random state when a task is made, and may share it: so reseed it in place.
        self._env.task.random.seed(seed)
        self._observed = self._env.reset().observation
        if self._background:
            self._background.start(seed)

    def _advance(self, action: np.ndarray) -> SimulatorStep:
        step = self._env.step(action)
        self._observed = step.observation
        ended = step.last() and step.discount == 0.0
        return SimulatorStep(step.reward, 0.0 if ended else 1.0)

    def _draw(self) -> np.ndarray:
        data = self._env.physics.data.ptr
        image = self._renderer.frame(data)
        if self._background:
            image = self._background.behind(image, self._renderer.sky(data), self.agent_steps)
        return image

    def _low_dimensional(self) -> dict[str, np.ndarray]:
        return self._observed

    def close(self) -> None:
        """Free the renderer."""
        self._renderer.close()


def make(name: str, description: dict) -> DMCEnv:
    """The environment of a task named without its prefix; ``description`` as in `wrappers.make_env`."""
    return DMCEnv(name, description)

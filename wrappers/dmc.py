"""The DeepMind Control suite (dm_control), and the paper's six modified bodies.

A modified body is an overlay in ``modified_dmc_xml/``. It names an original model, the task whose reward is
used, and the attributes that differ. They are applied to dm_control's installed XML when the task is loaded.
"""

import xml.etree.ElementTree as ElementTree
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from wrappers.shared.backend import import_with_opengl
from wrappers.shared.background import Background
from wrappers.shared.base import PixelEnv, SimulatorStep
from wrappers.shared.patches import NumpyWith
from wrappers.shared.rendering import FrameRenderer, camera_names
from wrappers.shared.suites import Suite

if TYPE_CHECKING:
    from dm_control.rl.control import Environment

OVERLAYS = Path(__file__).resolve().parent.parent / "modified_dmc_xml"
_ORIENTATIONS = ("quat", "axisangle", "xyaxes", "zaxis", "euler")


@cache
def dm_control_suite() -> ModuleType:
    """The module ``dm_control.suite``."""
    suite = import_with_opengl("dm_control.suite")
    # NumPy 2.4 removed in1d, which dm_control 1.0.28 still calls in this module.
    suite.quadruped.np = NumpyWith(in1d=np.isin)
    return suite


def default_camera(domain: str) -> int:
    """The camera of pixel agents, as in Dreamer's code: 2 for the quadruped, whose camera 0 does not follow
    it, else 0. In the walker and the cheetah that is ``side``, the camera that the paper tilts."""
    return 2 if domain == "quadruped" else 0


def split_name(name: str) -> tuple[str, str]:
    """Domain and task by dm_control's list of domains: ``ball_in_cup_catch`` -> (``ball_in_cup``, ``catch``)."""
    domain = max((d for d in dm_control_suite().TASKS_BY_DOMAIN if name.startswith(d + "_")), key=len)
    return domain, name.removeprefix(domain + "_")


def _counterpart(root: ElementTree.Element, change: ElementTree.Element) -> ElementTree.Element:
    """The only element of ``root`` with the tag of ``change``, and with its name if it has one."""
    found = [e for e in root.iter(change.tag) if e.get("name") == change.get("name")]
    if len(found) != 1:
        raise ValueError(f"the overlay's {change.tag} {change.attrib} has {len(found)} counterparts, not one")
    return found[0]


def apply_overlay(model_xml: str | bytes, overlay: ElementTree.Element) -> str:
    """``model_xml`` with the attributes of each element of ``overlay`` set on the same element of the model."""
    root = ElementTree.fromstring(model_xml)
    for change in overlay:
        target = _counterpart(root, change)
        if any(key in change.attrib for key in _ORIENTATIONS):  # MuJoCo accepts one orientation only
            for key in _ORIENTATIONS:
                target.attrib.pop(key, None)
        target.attrib.update(change.attrib)
    return ElementTree.tostring(root, encoding="unicode")


def load(name: str) -> "Environment":
    """The dm_control environment of the task ``name`` (without prefix), modified bodies included.

    It has no time limit of its own: `wrappers.make_env` sets the limit, in agent steps.
    """
    suite = dm_control_suite()
    path = OVERLAYS / f"{name}.xml"
    overlay = ElementTree.parse(path).getroot() if path.is_file() else None
    domain, task = split_name(name)
    if overlay is not None:
        task = overlay.attrib["task"]
    env = suite.load(domain, task, task_kwargs={"time_limit": float("inf")})
    if overlay is not None:
        original = suite.common.read_model(overlay.attrib["model"])
        env.physics.reload_from_xml_string(apply_overlay(original, overlay), suite.common.ASSETS)
    return env


class DMCEnv(PixelEnv):
    """A dm_control task. It terminates only where dm_control's discount is 0; the suite defines no success."""

    def __init__(self, name: str, description: dict):
        """Make the task ``name`` (without prefix); ``description`` as in `wrappers.make_env`."""
        self._env = load(name)
        self._observed = self._env.reset().observation
        physics = self._env.physics
        camera = description["camera"]
        camera = default_camera(split_name(name)[0]) if camera is None else camera
        self._renderer = FrameRenderer(physics.model.ptr, description["size"], camera, description["render"])
        description = {**description, "camera": camera_names(physics.model.ptr, camera)}
        folder = description["background"]
        self._background = Background(folder, description["size"]) if folder else None
        spec = self._env.action_spec()
        # Motors without limits (lqr) have bounds of +-1e10: their actions are not rescaled.
        bounded = spec.maximum < 1e9
        low, high = np.where(bounded, spec.minimum, -1.0), np.where(bounded, spec.maximum, 1.0)
        super().__init__(description, low, high)

    def _reset_simulator(self, seed: int) -> None:
        # dm_control keeps the task's RandomState, which other objects may share: reseed it in place.
        self._env.task.random.seed(seed)
        self._observed = self._env.reset().observation
        if self._background:
            self._background.start(seed)

    def _step_simulator(self, action: np.ndarray) -> SimulatorStep:
        step = self._env.step(action)
        self._observed = step.observation
        ended = step.last() and step.discount == 0.0
        return SimulatorStep(step.reward, 0.0 if ended else 1.0)

    def _draw(self) -> np.ndarray:
        data = self._env.physics.data.ptr
        image = self._renderer.frame(data)
        if self._background:
            image = self._background.replace_sky(image, self._renderer.sky(data), self.agent_steps)
        return image

    def _low_dimensional(self) -> dict[str, np.ndarray]:
        return self._observed

    def close(self) -> None:
        """Free the renderer."""
        self._renderer.close()


SUITE = Suite(
    name="dmc",
    title="DeepMind Control",
    # dm_control's tasks and those of modified_dmc_xml/; a test compares the list with both.
    tasks=tuple(
        """
        acrobot_swingup acrobot_swingup_sparse ball_in_cup_catch cartpole_balance
        cartpole_balance_sparse cartpole_swingup cartpole_swingup_sparse cartpole_two_poles
        cartpole_three_poles cheetah_run dog_stand dog_walk dog_trot dog_run dog_fetch finger_spin
        finger_turn_easy finger_turn_hard fish_upright fish_swim hopper_stand hopper_hop
        humanoid_stand humanoid_walk humanoid_run humanoid_run_pure_state humanoid_CMU_stand
        humanoid_CMU_walk humanoid_CMU_run lqr_lqr_2_1 lqr_lqr_6_2 manipulator_bring_ball
        manipulator_bring_peg manipulator_insert_ball manipulator_insert_peg pendulum_swingup
        point_mass_easy point_mass_hard quadruped_walk quadruped_run quadruped_escape
        quadruped_fetch reacher_easy reacher_hard stacker_stack_2 stacker_stack_4 swimmer_swimmer6
        swimmer_swimmer15 walker_stand walker_walk walker_run walker_downhill walker_uphill
        walker_nofoot cheetah_downhill cheetah_uphill cheetah_nopaw""".split()
    ),
    make=DMCEnv,
    settings={"action_repeat": 2, "camera": ""},
    has_sky=True,
    max_return=1000,  # 1000 simulator steps of at most 1 (Tassa et al. 2018, arXiv 1801.00690)
    # The paper's best target returns (CoWorld on medium-expert data, its Table 9); it publishes no agent's maximum.
    max_returns={
        "walker_downhill": 848,
        "walker_uphill": 774,
        "walker_nofoot": 919,
        "cheetah_downhill": 871,
        "cheetah_uphill": 475,
        "cheetah_nopaw": 844,
    },
)

"""A suite whose episodes are short; worker processes import it from this module."""

import numpy as np
from page_suite import DotEnv

from wrappers.shared.base import SimulatorStep
from wrappers.shared.suites import Suite


class FallingDot(DotEnv):
    """The dot falls off the plane after two to five steps, which ends the task."""

    def _reset_simulator(self, seed: int) -> None:
        super()._reset_simulator(seed)
        self.left = 2 + seed % 4

    def _step_simulator(self, action: np.ndarray) -> SimulatorStep:
        self.left -= 1
        return super()._step_simulator(action)._replace(discount=float(self.left > 0))


FALLING = Suite(
    name="falling",
    title="Falling",
    tasks=("to_left", "to_right"),
    make=FallingDot,
    settings={"action_repeat": 1},
    has_success=True,
    uses_mujoco=False,
)

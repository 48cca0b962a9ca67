"""The tasks of every suite by name, so that a name can be checked without importing a simulator."""

from dataclasses import dataclass

from tools import BadInput, nearest

# Kept equal to the installed packages' own lists, and to modified_dmc_xml/, by the tests.
_NAMES = {
    "dmc": """
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
        walker_nofoot cheetah_downhill cheetah_uphill cheetah_nopaw""",
    "metaworld": """
        assembly basketball bin-picking box-close button-press-topdown button-press-topdown-wall
        button-press button-press-wall coffee-button coffee-pull coffee-push dial-turn disassemble
        door-close door-lock door-open door-unlock drawer-close drawer-open faucet-close faucet-open
        hammer hand-insert handle-press-side handle-press handle-pull-side handle-pull lever-pull
        peg-insert-side peg-unplug-side pick-out-of-hole pick-place pick-place-wall
        plate-slide-back-side plate-slide-back plate-slide-side plate-slide push-back push push-wall
        reach reach-wall shelf-place soccer stick-pull stick-push sweep-into sweep window-close
        window-open""",
    "robodesk": """
        open_slide open_drawer push_green stack upright_block_off_table flat_block_in_bin
        flat_block_in_shelf lift_upright_block lift_ball push_blue push_red flat_block_off_table
        ball_off_table upright_block_in_bin ball_in_bin upright_block_in_shelf ball_in_shelf
        lift_flat_block""",
}
SUITES = {suite: tuple(names.split()) for suite, names in _NAMES.items()}


@dataclass(frozen=True)
class Task:
    """A task of a suite; ``str(task)`` is its canonical spelling, e.g. ``dmc_walker_walk``."""

    suite: str
    name: str

    def __str__(self) -> str:
        return f"{self.suite}_{self.name}"


def all_tasks() -> list[Task]:
    """Every task that `wrappers.make_env` knows."""
    return [Task(suite, name) for suite, names in SUITES.items() for name in names]


def _plain(name: str) -> str:
    return name.strip().lower().replace("-", "_")


def _spellings() -> dict[str, Task]:
    """Every accepted spelling, hyphens and capitals levelled: with the suite's prefix and without."""
    spellings = {}
    for task in reversed(all_tasks()):  # reversed: where suites share a name, the first suite keeps it
        spellings[_plain(task.name)] = spellings[_plain(str(task))] = task
    return spellings


def parse_task(name: "str | Task") -> Task:
    """The task that a user's ``name`` means.

    The suite's prefix may be left out, hyphens and underscores are the same, and so are capitals:
    ``dmc_walker_walk``, ``walker-walk`` and ``walker_walk`` are one task.

    Raises:
        BadInput: no such task; the message names the nearest ones.
    """
    if isinstance(name, Task):
        return name
    spellings = _spellings()
    task = spellings.get(_plain(str(name)))
    if task is None:
        known = {str(task) for task in all_tasks()} | {task.name for task in all_tasks()}
        raise BadInput(f"unknown task {name!r}; {nearest(str(name), known)}")
    return task

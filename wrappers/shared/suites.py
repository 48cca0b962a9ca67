"""Suites and tasks by name. A suite is one `Suite` object; its file is a module directly in ``wrappers/``.

Suite files import no simulator, so that a task name can be checked without one.
"""

import contextlib
import difflib
import importlib
import pkgutil
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium

from tools import BadInput, nearest

SETTINGS_HELP = {
    "action_repeat": "simulator steps an agent step",
    "camera": "name or number of the camera; several: commas",
    "flip": "turn the frames upside down",
}
_FIRST = {"dmc", "metaworld", "robodesk"}
NEAR = 0.8  # difflib's ratio of two names, above which one is taken for a typing error in the other


@dataclass(frozen=True)
class Suite:
    """What the project knows about a suite of tasks.

    name: prefix of the suite's tasks and flags, an identifier.
    title: name for readers.
    tasks: task names without the prefix.
    find_task: for a suite with more tasks than ``tasks``: a name without the prefix -> the task's canonical name.
        Raises BadInput if there is no such task. The prefix cannot be left out of these names.
    make: (task name, description) -> `wrappers.shared.base.PixelEnv`; ``description`` is that of `make_env`.
        Worker processes import it, so it is a function or class at the top level of a module.
    settings: default by setting. Each is an argument of `make_env` (a key of `SETTINGS_HELP`), and the flag
        ``--{name}_{key}``.
    has_success: whether every step reports success.
    has_sky: whether `make_env` accepts a moving background.
    max_return: the most that an episode of any task can pay, None if it is not known.
    max_returns: the same for single tasks, which have priority.
    uses_mujoco: whether MuJoCo draws the frames, so that an OpenGL library must be chosen; None if some tasks do.
    """

    name: str
    title: str
    tasks: tuple[str, ...]
    make: Callable[[str, dict[str, Any]], gymnasium.Env]
    settings: dict[str, Any] = field(default_factory=dict)
    has_success: bool = False
    has_sky: bool = False
    max_return: float | None = None
    max_returns: dict[str, float] = field(default_factory=dict)
    uses_mujoco: bool | None = True
    find_task: Callable[[str], str] | None = None

    def setting_help(self, key: str) -> str:
        """One line of help for the flag ``--{name}_{key}``."""
        return f"{SETTINGS_HELP[key]}, {self.title}"


@dataclass(frozen=True)
class Task:
    """A task of a suite; ``str(task)`` is its canonical name, e.g. ``dmc_walker_walk``.

    ``suite`` is empty for a target without a simulator (see `parse_target`).
    """

    suite: str
    name: str

    def __str__(self) -> str:
        return f"{self.suite}_{self.name}" if self.suite else self.name


SUITES: dict[str, Suite] = {}


def register(suite: Suite) -> None:
    """Add a suite. Suite files in ``wrappers/`` are added by `discover`; other modules call this themselves.

    Raises BadInput if the name is taken by another suite or is no identifier, if ``tasks`` is one text, or if a setting
    is unknown.
    """
    if not isinstance(suite, Suite):
        raise BadInput(f"{suite!r:.80} is no suite: give a Suite (docs/extending.md)")
    if not suite.name.isidentifier():
        raise BadInput(f"suite {suite.name!r}: give a name of letters, digits and underscores")
    if SUITES.get(suite.name, suite) != suite:
        raise BadInput(f"suite {suite.name}: there is already a suite of that name; choose another one")
    if isinstance(suite.tasks, str):
        raise BadInput(f"suite {suite.name}: tasks is the text {suite.tasks!r}; give a tuple of names")
    for key in suite.settings:
        if key not in SETTINGS_HELP:
            raise BadInput(f"suite {suite.name}: unknown setting {key!r}; {nearest(key, SETTINGS_HELP)}")
    SUITES[suite.name] = suite


def discover() -> None:
    """Import every module directly in ``wrappers/`` and register its ``SUITE``.

    The paper's suites come first, then the others by name: the order in which readers see them, and the
    suite that a task name without a prefix means if two suites share it.

    Raises BadInput if a module has no suite.
    """
    folder = Path(__file__).resolve().parent.parent
    names = [module.name for module in pkgutil.iter_modules([str(folder)]) if not module.ispkg]
    for name in sorted(names, key=lambda name: (name not in _FIRST, name)):
        module = importlib.import_module(f"..{name}", __package__)
        if not isinstance(getattr(module, "SUITE", None), Suite):
            raise BadInput(f"{module.__file__} defines no SUITE = Suite(...) (docs/extending.md); move it elsewhere")
        register(module.SUITE)


def all_tasks() -> list[Task]:
    """The tasks of all suites, without those that only `Suite.find_task` knows."""
    return [Task(suite.name, name) for suite in SUITES.values() for name in suite.tasks]


def _normalized(name: str) -> str:
    return name.strip().lower().replace("-", "_")


def parse_task(name: str | Task) -> Task:
    """The task with that name.

    The suite's prefix is optional, hyphens equal underscores, and capitals do not matter:
    ``dmc_walker_walk``, ``walker-walk`` and ``walker_walk`` are one task.

    Raises BadInput if there is no such task; the message names the nearest ones.
    """
    tasks = all_tasks()
    if isinstance(name, Task) and name in tasks:
        return name
    prefix, _, rest = str(name).strip().partition("_")
    suite = SUITES.get(prefix.lower())
    if suite is not None and suite.find_task is not None:
        return Task(suite.name, suite.find_task(rest))
    spellings = {_normalized(task.name): task for task in reversed(tasks)}  # reversed: the first suite wins
    spellings |= {_normalized(str(task)): task for task in tasks}
    task = spellings.get(_normalized(str(name)))
    if task is None:
        known = {str(task) for task in tasks} | {task.name for task in tasks}
        close = _without_prefix(str(name)) or nearest(str(name), known)
        raise BadInput(f"unknown task {str(name)!r}; {close}")
    return task


def _without_prefix(name: str) -> str:
    """The end of an error message, if ``name`` is that of a task whose prefix cannot be left out; else empty."""
    for suite in SUITES.values():
        with contextlib.suppress(BadInput):
            if suite.find_task is not None:
                return f"give {suite.name}_{suite.find_task(name)}"
    return ""


def simulated_task(name: str | Task) -> Task | None:
    """The task with that name, or None if it is a free name: that of a dataset without a simulator.

    A free name has letters, digits, ``_``, ``-``, ``.`` and ``+``. It begins with no suite's prefix, and is not near
    the name of a task (`NEAR`): such a name is taken for a typing error. Raises BadInput for these.
    """
    try:
        return parse_task(name)
    except BadInput as error:
        unknown = error
    spelling = _normalized(str(name))
    if any(spelling.startswith(f"{suite.lower()}_") for suite in SUITES) or _without_prefix(str(name)):
        raise unknown
    known = {_normalized(text) for task in all_tasks() for text in (str(task), task.name)}
    if difflib.get_close_matches(spelling, known, 1, cutoff=NEAR):
        raise BadInput(f"{unknown}; a dataset without a simulator needs a name that is not so near to a task's")
    if not re.fullmatch(r"[\w.+-]+", str(name)):
        raise BadInput(f"{str(name)!r} is no task, and no name for a dataset: use letters, digits, _, -, . and +")
    return None


def parse_target(name: str) -> Task:
    """The task with that name; ``Task("", name)`` if it is a free name. Raises BadInput as `simulated_task` does."""
    return simulated_task(name) or Task("", name)


def max_return(task: Task) -> float:
    """The most that an episode of ``task`` is known to pay, in simulator reward. Raises BadInput if unknown."""
    suite = SUITES[task.suite]
    known = suite.max_returns.get(task.name, suite.max_return)
    if known is None:
        raise BadInput(f"the maximum return of {task} is not known: give --max_score")
    return known

"""Settings as a read-only object, and the names of the tasks in them."""

from typing import Any

from tools import BadInput
from wrappers import parse_task, simulated_task

NAMELESS = "dataset"  # the target's name if --target_task is not given


class Config:
    """Settings as read-only attributes; ``vars(config)`` is a dict of them. `replace` makes a changed copy."""

    def __init__(self, **values: Any):
        vars(self).update(values)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"settings are read-only; use config.replace({name}=...)")

    def __delattr__(self, name: str) -> None:
        raise AttributeError("settings are read-only")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Config) and vars(self) == vars(other)

    def __repr__(self) -> str:
        return f"Config({', '.join(f'{key}={value!r}' for key, value in vars(self).items())})"

    def replace(self, **changes: Any) -> "Config":
        return Config(**{**vars(self), **changes})


def task_names(config: Config, key: str) -> list[str]:
    """The full names of the tasks under ``key``, which commas separate. Raises BadInput with the flag's name.

    The target may have no simulator: then it has any free name (see `wrappers.simulated_task`), or none.
    """
    text = getattr(config, key) or (NAMELESS if key == "target_task" else "")
    given = [task.strip() for task in text.split(",")]
    if not all(given):
        raise BadInput(f"--{key} {getattr(config, key)!r}: task {given.index('') + 1} is empty; remove its comma")
    if key == "target_task" and len(given) > 1:
        raise BadInput(f"--target_task {config.target_task}: the target is one task; give one")
    parse = simulated_task if key == "target_task" else parse_task
    try:
        return [str(parse(task) or task) for task in given]
    except BadInput as error:
        raise BadInput(f"--{key}: {error}") from None


def has_target_simulator(config: Config) -> bool:
    """Whether the target has a simulator. Raises BadInput if its name is neither a task's nor a free one."""
    return simulated_task(task_names(config, "target_task")[0]) is not None

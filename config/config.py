"""Settings as a read-only object, and the tasks that they name."""

from typing import Any

from tools import BadInput
from wrappers import Task, parse_target, parse_task

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


def source_tasks(config: Config) -> list[Task]:
    """The tasks of ``source_task``, which commas separate. Raises BadInput if one is empty or unknown."""
    names = [name.strip() for name in config.source_task.split(",")]
    if not all(names):
        where = f"--source_task {config.source_task!r}: task {names.index('') + 1} is empty"
        raise BadInput(f"{where}; remove its comma")
    try:
        return [parse_task(name) for name in names]
    except BadInput as error:
        raise BadInput(f"--source_task: {error}") from None


def target_task(config: Config) -> Task:
    """The task of the target, or ``Task("", NAME)`` without a simulator. Raises BadInput if it is not one name."""
    name = (config.target_task or NAMELESS).strip()
    if "," in name:
        raise BadInput(f"--target_task {config.target_task}: the target is one task; give one")
    try:
        return parse_target(name)
    except BadInput as error:
        raise BadInput(f"--target_task: {error}") from None


def named_tasks(config: Config) -> list[Task]:
    """The tasks of the sources and the target that the settings name."""
    return [*(source_tasks(config) if config.source_task else []), *[target_task(config)] * bool(config.target_task)]


def has_target_simulator(config: Config) -> bool:
    return bool(target_task(config).suite)

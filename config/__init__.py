"""Settings: what configs.yaml and the command line give, and the table of what is known about each of them."""

from config.config import Config, has_target_simulator, named_tasks, source_tasks, target_task
from config.reading import (
    CONFIGS,
    check,
    comment,
    convert,
    merge,
    parse,
    parser,
    read_blocks,
    refuse_without_effect,
    to_yaml,
)
from config.table import SETTINGS, Setting, evaluates_in_simulator, facts, settings_that_affect, settings_with

__all__ = [
    "CONFIGS",
    "SETTINGS",
    "Config",
    "Setting",
    "check",
    "comment",
    "convert",
    "evaluates_in_simulator",
    "facts",
    "has_target_simulator",
    "merge",
    "named_tasks",
    "parse",
    "parser",
    "read_blocks",
    "refuse_without_effect",
    "settings_that_affect",
    "settings_with",
    "source_tasks",
    "target_task",
    "to_yaml",
]

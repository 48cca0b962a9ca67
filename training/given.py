"""What the command line of co_training.py has to give, and what it must not give because it has no effect."""

import sys
from collections.abc import Callable, Sequence

import config as settings
from config import Config, evaluates_in_simulator, settings_with
from tools import BadInput
from training.domains import domain_tasks
from training.methods import Method, Phase, check_blocks
from training.pretraining import find_pretraining
from training.used_settings import unused_settings, unused_suite_settings

OF_COLLECT = dict.fromkeys(
    settings_with(lambda setting: "co_training" not in setting.commands.split()), "in co_training.py"
)


def check_given(
    config: Config, method: Method, schedule: Callable[[Config], Sequence[Phase]], given: list[str]
) -> None:
    """Raises BadInput if a setting that ``method`` needs is not given, or one of ``given``, the flags, has no effect.

    A source task without effect gives a note only, so that one command can be repeated with several methods.
    ``schedule`` makes the phases of settings.
    """
    needed = [
        ("source_task", method.uses_sources),
        ("target_task", not method.dataset),
        ("offline_traindir", method.dataset),
    ]
    for key in (key for key, is_needed in needed if is_needed):
        if not getattr(config, key):
            raise BadInput(f"--{key} is missing (see --help)")
    check_blocks(config.configs, config.method)
    if config.source_task and not method.uses_sources:
        print(f"note: {config.method} has no source; --source_task {config.source_task} is not used", file=sys.stderr)
    tasks = [task for task, _ in domain_tasks(config, method).values()]
    unused = unused_settings(config, method, f"with method {config.method}") | unused_suite_settings(tasks)
    if not find_pretraining(method, schedule(config)):
        none = f"with method {config.method}, which does not train its sources alone"
        unused |= dict.fromkeys(("source_from", "pretrain_only"), none)
    settings.refuse_without_effect(given, OF_COLLECT | unused)
    if "holdout" in given and config.holdout == 0 and not evaluates_in_simulator(method, config):
        raise BadInput("--holdout 0: without a simulator of the target, held-out episodes are needed; give 0.1")

"""Which settings have an effect on a run, by the table of config/table.py and the methods' entries."""

from collections.abc import Iterable

from config import SETTINGS, Config
from training.methods import METHODS, Method
from wrappers import SUITES, Task


def unused_settings(config: Config, method: Method, where: str = "") -> dict[str, str]:
    """The settings that have no effect on a run, each with the reason, which is the end of an error message.

    ``where`` is the reason for settings that ``method`` does not use. For suites' see `unused_suite_settings`.
    """
    of_some_methods = {key for other in METHODS.values() for key in other.settings.split()}
    unused = dict.fromkeys(of_some_methods - set(method.settings.split()), where)
    for key, setting in SETTINGS.items():
        missing = next((needed for needed in setting.used_if if not needed.holds(method, config)), None)
        if missing:
            unused.setdefault(key, f"without {missing.without}" if missing.without else where)
    return unused


def unused_suite_settings(tasks: Iterable[Task]) -> dict[str, str]:
    """The settings of suites that none of ``tasks`` belongs to, with the reason as in `unused_settings`.

    A target without a simulator belongs to none.
    """
    used = {task.suite for task in tasks}
    others = [suite for suite in SUITES.values() if suite.name not in used]
    return {f"{suite.name}_{key}": f"without a {suite.title} task" for suite in others for key in suite.settings}

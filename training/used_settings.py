"""Which settings have an effect on a run."""

from collections.abc import Callable, Iterable

from config import Config
from training.methods import METHODS, Method, evaluates_in_simulator
from wrappers import SUITES, Task, simulated_task

# Settings that have an effect on some runs only: (names, whether a run uses them, the setting that they need, "" for
# another method). All others have an effect on every run, except those that `Method` names and suites'.
USED_IF: tuple[tuple[str, Callable[[Method, Config], object], str], ...] = (
    ("envs prefill pretrain replay_size", lambda method, config: method.online, ""),
    ("sparse_reward source_observation", lambda method, config: method.uses_sources, ""),
    ("pretrain_steps warmup_steps source_iterations", lambda method, config: method.uses_sources, ""),
    ("warmup_updates warmup_steps", lambda method, config: config.warmup_rounds, "warmup_rounds"),
    ("source_iterations", lambda method, config: config.rounds > 1, "a second round"),
    ("select", lambda method, config: method.online == "sources", ""),
    (
        "offline_traindir dataset_format dataset_cache image_key action_key reward_key done_key action_range holdout",
        lambda method, config: method.dataset,
        "",
    ),
    (
        "eval_episodes eval_envs background video_size",
        lambda method, config: evaluates_in_simulator(method, config),
        "a simulator of the target",
    ),
    (
        "time_limit render",
        lambda method, config: method.online or evaluates_in_simulator(method, config),
        "a simulator",
    ),
    (
        "state_alignment state_alignment_scale reward_alignment target_informed_factor eta_start eta_end eta_steps "
        "value_constraint value_constraint_scale",
        lambda method, config: method.aligned_with_sources,
        "",
    ),
    ("state_alignment_scale", lambda method, config: config.state_alignment, "state_alignment"),
    (
        "target_informed_factor eta_start eta_end eta_steps",
        lambda method, config: config.reward_alignment,
        "reward_alignment",
    ),
    ("value_constraint_scale", lambda method, config: config.value_constraint != "off", "value_constraint"),
    ("state_layers", lambda method, config: config.source_observation == "state", "source_observation state"),
    ("dyn_min_std", lambda method, config: config.dyn_discrete == 0, "dyn_discrete 0"),
    ("discount_layers discount_scale", lambda method, config: config.pred_discount, "pred_discount True"),
    ("actor_grad_mix", lambda method, config: config.actor_grad == "both", "actor_grad both"),
)


def unused_settings(config: Config, method: Method, where: str = "") -> dict[str, str]:
    """The settings that have no effect on a run, each with the reason, which is the end of an error message.

    ``where`` is the reason for settings that ``method`` does not use. For suites' see `unused_suite_settings`.
    """
    others = {key for other in METHODS.values() for key in other.settings.split()}
    unused = dict.fromkeys((others - set(method.settings.split())) | set(method.unused.split()), where)
    for keys, used, without in USED_IF:
        if not used(method, config):
            for key in keys.split():
                unused.setdefault(key, f"without {without}" if without else where)
    return unused


def unused_suite_settings(tasks: Iterable[str | Task]) -> dict[str, str]:
    """The settings of suites that none of ``tasks`` belongs to, with the reason as in `unused_settings`.

    A target without a simulator belongs to none.
    """
    used = {task.suite for task in map(simulated_task, tasks) if task}
    others = [suite for suite in SUITES.values() if suite.name not in used]
    return {f"{suite.name}_{key}": f"without a {suite.title} task" for suite in others for key in suite.settings}

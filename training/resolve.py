"""Settings that follow from others, and checks of settings against each other, once a run's method is known."""

import os
from collections.abc import Callable, Sequence

from config import Config, has_target_simulator, target_task
from replay.mapping import RESERVED, check_listed, listed_names
from tools import BadInput
from training.methods import Method, Phase, PhaseKind
from training.run_names import default_logdir
from training.wandb_mirror import check_wandb

HOLDOUT = 0.1  # of a target without a simulator, if `holdout` is 0


def resolve(
    config: Config, method: Method, schedule: Callable[[Config], Sequence[Phase]]
) -> tuple[Config, list[Phase]]:
    """Compute every derived setting and check settings against each other.

    Args:
        config: settings as given.
        method: the run's method.
        schedule: makes the run's phases from settings.

    Returns:
        the settings, with ``logdir``, ``eta_steps``, ``source_task``, ``source_observation``, ``state_keys``,
        ``source_state_keys``, and without a target simulator ``target_task`` and ``holdout``, as the run uses them, and
        the phases.

    Raises:
        BadInput: settings that do not fit together.
    """
    if not method.uses_sources:
        config = config.replace(source_task="", source_observation="image", source_state_keys="")
    if method.dataset and not has_target_simulator(config):
        config = config.replace(target_task=str(target_task(config)), holdout=config.holdout or HOLDOUT)
    if "," not in config.source_task:
        config = config.replace(select="nearest")  # one source leaves nothing to select
    config = config.replace(**resolved_states(config, method))
    config = config.replace(logdir=config.logdir or str(default_logdir(config, method)))
    phases = list(schedule(config))
    if config.eta_steps == 0:
        config = config.replace(eta_steps=aligned_steps(phases))
    check_against_each_other(config, method)
    return config, phases


def resolved_states(config: Config, method: Method) -> dict[str, str]:
    """``state_keys`` as names separated by single commas, and ``source_state_keys`` as such names or "none"; both are
    "" if no agent has states.

    Raises BadInput if a name is given twice, is that of another array of an episode, or if the source has no image.
    """
    if not method.world_model:
        return {"state_keys": "", "source_state_keys": ""}
    given = {"state_keys": config.state_keys, "source_state_keys": config.source_state_keys}
    names = {option: listed_names(text) for option, text in given.items()}
    for option, listed in names.items():
        check_listed(option, listed, RESERVED)
    target, source = (",".join(listed) for listed in names.values())
    if method.uses_sources:
        source = source or target
        source = "" if source == "none" and not target else source
    if config.source_observation == "state" and (target or source):
        raise BadInput(
            "--source_observation state: a source on states alone has no image beside which --state_keys could stand; "
            "give --source_observation image, or no --state_keys"
        )
    return {"state_keys": target, "source_state_keys": source}


def aligned_steps(phases: Sequence[Phase]) -> int:
    """The agent steps with reward alignment (stage B): the default of ``eta_steps``."""
    return sum(phase.iterations for phase in phases if phase.kind == PhaseKind.TRAIN_SOURCE and phase.aligned)


def check_against_each_other(config: Config, method: Method) -> None:
    """Raises BadInput on settings that are valid alone but not together."""
    if config.wandb:
        check_wandb()
    cores = os.cpu_count() or 1
    for key in ("envs", "eval_envs"):
        if getattr(config, key) > 8 * cores:
            most = f"{cores} processor cores can run at most {8 * cores} simulators"
            raise BadInput(f"{key} {getattr(config, key)}: {most}; lower it")
    if config.source_observation == "state" and method.shares_weights:
        raise BadInput(
            f"--source_observation state: method {config.method} shares weights between source and target, which "
            f"need the same observations; give image"
        )
    if config.source_observation == "state" and method.aligned_with_sources and config.constraint_latents == "source":
        raise BadInput(
            "--constraint_latents source: with --source_observation state the source's model cannot infer states from "
            "the dataset's images; give target"
        )
    if config.holdout == 1:
        raise BadInput("holdout 1 leaves no episode to learn from; give a share under 1, like 0.1")
    if config.actor_dist == "bounded" and config.actor_min_std > 1:
        raise BadInput(f"actor_min_std {config.actor_min_std}: with actor_dist bounded, 1 is the largest; lower it")
    if config.grad_accum > config.batch_size:
        raise BadInput(f"grad_accum {config.grad_accum} is more parts than a batch of {config.batch_size} has")
    state_aligned = config.source_observation == "state" and config.state_alignment
    if method.aligned_with_sources and state_aligned and config.grad_accum > 1:
        raise BadInput(
            f"grad_accum {config.grad_accum}: with --source_observation state the alignment compares means over the "
            f"whole batch, which parts do not have; give --grad_accum 1"
        )
    envs = max(config.envs, 1)
    if method.online and config.prefill < config.time_limit * envs:
        raise BadInput(
            f"prefill {config.prefill} is shorter than an episode (time_limit {config.time_limit}) of each of "
            f"{envs} simulators; raise it"
        )

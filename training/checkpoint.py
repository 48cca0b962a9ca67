"""Checkpoints: writing and reading them, whether a run may be resumed, and loading an agent from one.

A checkpoint has the settings, the counters, every agent (weights, optimisers), every domain (RNG of its batches, names
of the replay's episodes, running episodes), the selector's counts, torch's RNG and the logger's sums.
`Trainer.state_dict` puts them together.
"""

import zipfile
from pathlib import Path
from typing import Any

import gymnasium
import torch

from agents.agent import Agent
from config import Config, task_names
from tools import BadInput, one_line, write_atomically
from training.methods import COLLECTION, AgentBuilder, Phase, find_method

CHECKPOINT = "checkpoint.pt"
BEFORE_ALIGNMENT = "before_alignment.pt"  # the agents before the first update of the target, for analyse.py
VERSION = 3  # of a checkpoint's contents

RESUMABLE_CHANGES = set(  # settings that may differ when a run is resumed; phases and data are checked separately
    "configs logdir device offline_traindir dataset_format dataset_cache replay_size eta_steps pretrain_steps "
    "warmup_rounds warmup_updates warmup_steps rounds target_iterations source_iterations eval_every eval_episodes "
    "log_every video_every video_size checkpoint_minutes eval_envs compile".split()
)


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` atomically. Raises BadInput if the disk is full."""
    try:
        write_atomically(path, lambda file: torch.save({"version": VERSION, **state}, file))
    except RuntimeError as error:  # torch's archive writer raises this in place of the disk's own error
        raise BadInput(
            f"{path} cannot be written ({one_line(error)}); free space, then the same command resumes"
        ) from None


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """The contents of a checkpoint; no code in it is executed. Raises BadInput if it is missing or damaged."""
    if not path.exists():
        raise BadInput(f"no checkpoint at {path}; train first, or give the run's directory")
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:
                raise ValueError("its contents are damaged")
        state = torch.load(path, map_location=device, weights_only=True)
        if not isinstance(state, dict) or not {"config", "agents", "progress"} <= state.keys():
            raise ValueError("it is not a run's")
        if state.get("version") != VERSION:
            raise ValueError("another version of this program wrote it")
    except Exception as error:  # damage can surface as almost anything
        reason = one_line(error) or type(error).__name__
        raise BadInput(f"checkpoint {path} cannot be read ({reason}); remove it to start the run anew") from None
    return state


def read_resumable(
    logdir: Path, config: Config, phases: list[Phase], dataset: list[float] | None
) -> dict[str, Any] | None:
    """The checkpoint of a run directory, or None. Raises BadInput if it is of another run.

    ``dataset`` is `dataset_figures` of the data.
    """
    if not (logdir / CHECKPOINT).exists():
        return None
    saved = load_checkpoint(logdir / CHECKPOINT)
    old, new = with_full_names(saved["config"]), with_full_names(vars(config))
    for key in sorted((old.keys() & new.keys()) - RESUMABLE_CHANGES):
        if old[key] != new[key]:
            raise BadInput(
                f"{logdir} holds a run with {key} {old[key]}, not {new[key]}: "
                f"give the old value to resume it, or another --logdir"
            )
    if saved["phases"] != [str(phase.kind) for phase in phases[: len(saved["phases"])]]:
        raise BadInput(
            f"{logdir} has finished the phases {', '.join(saved['phases'])}, with which these settings do not begin: "
            f"give the old number of warm-up rounds and rounds to resume it, or another --logdir"
        )
    if saved["dataset"] != dataset:
        raise BadInput(
            f"{logdir} holds a run on other data than {config.offline_traindir} (episodes, steps and "
            f"returns were {saved['dataset']}): give the old --offline_traindir, or another --logdir"
        )
    return saved


def with_full_names(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings with the full names of their tasks, so that two names of one task are equal."""
    keys = [key for key in ("source_task", "target_task") if settings[key]]
    return {**settings, **{key: ",".join(task_names(Config(**settings), key)) for key in keys}}


def model_state(agents: dict[str, Agent]) -> dict[str, Any]:
    """What `load_agent` needs to rebuild the agents, without their weights."""
    return {
        "action_dims": {name: agent.action_dim for name, agent in agents.items()},
        "states": {name: agent.world.state for name, agent in agents.items()},
    }


def load_agent(logdir: Path, domain: str, device: torch.device, file: str = CHECKPOINT) -> tuple[Agent, Config]:
    """An agent of a run, with its weights alone, and the run's settings.

    ``domain`` is ``target``, ``source``, ``source_2``, ... Raises BadInput if there is no such agent or checkpoint.
    """
    saved = load_checkpoint(Path(logdir).expanduser() / file)
    if domain not in saved["agents"]:
        raise BadInput(f"{logdir} has no {domain} agent, only {', '.join(saved['agents'])}")
    config = Config(**saved["config"])
    method = find_method(config.method) if "target" in saved["action_dims"] else COLLECTION
    agent = method.agents(AgentBuilder(config, device, saved["action_dims"], saved["states"]))[domain]
    agent.load_models(saved["agents"][domain])
    return agent, config


def check_fits(agent: Agent, env: gymnasium.Env, task: str) -> None:
    """Raises BadInput if the agent cannot play ``task``: another action size, or missing observations."""
    actions = env.action_space.shape[0]
    if actions != agent.action_dim:
        raise BadInput(f"{task} has {actions} actions, the agent {agent.action_dim}; choose another task or agent")
    spaces = env.observation_space.spaces
    for key, size in agent.world.state.items():
        if key not in spaces or spaces[key].shape != (size,):
            raise BadInput(
                f"{task} has no state {key!r} of {size} numbers, which the agent observes; choose another task or agent"
            )


def agent_role(config: Config, domain: str) -> str:
    """The role (see wrappers/shared/simulators.py) of the simulator that an agent's domain had in its run."""
    if domain == "target":
        return "target"
    return "source" if config.target_task else "collect"  # a run of collect.py has no target


def agent_task(config: Config, domain: str) -> str:
    """The task of ``target``, ``source`` or ``source_2`` in a run with these settings."""
    if domain == "target":
        return config.target_task
    _, _, number = domain.partition("_")
    return config.source_task.split(",")[int(number or 1) - 1]

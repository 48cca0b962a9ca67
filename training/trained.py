"""The agents of a run's checkpoint, to act with: loading, and whether they fit a task."""

from pathlib import Path
from types import SimpleNamespace

import gymnasium
import torch

from training import collector as driver
import tools
from agents.agent import Agent
from tools import BadInput

CHECKPOINT = "checkpoint.pt"
BEFORE_ALIGNMENT = "before_alignment.pt"  # the agents as they were before the target's first training, for analyse.py


def load_agent(
    logdir: Path, domain: str, device: torch.device, file: str = CHECKPOINT
) -> tuple[Agent, SimpleNamespace]:
    """An agent of a run's checkpoint, by domain (``target``, ``source``, ``source_2``), with its models alone, and the
    run's settings. BadInput if there is none."""
    saved = tools.load_checkpoint(Path(logdir).expanduser() / file)
    if domain not in saved["agents"]:
        raise BadInput(f"{logdir} has no {domain} agent, only {', '.join(saved['agents'])}")
    config = SimpleNamespace(**saved["config"])
    sizes = saved["actions"][domain], max(saved["actions"].values())
    agent = Agent(config, *sizes, device, saved["states"][domain], actor_dim=saved["actor_dims"][domain])
    agent.load_models(saved["agents"][domain])
    return agent, config


def check_fits(agent: Agent, env: gymnasium.Env, task: str) -> None:
    """BadInput if the agent cannot play ``task``: other actions, or states it does not know."""
    actions = env.action_space.shape[0]
    if actions != agent.action_dim:
        raise BadInput(f"{task} has {actions} actions, the agent {agent.action_dim}; choose another task or agent")
    spaces = env.observation_space.spaces
    for key, size in agent.world.state.items():
        if key not in spaces or spaces[key].shape != (size,):
            raise BadInput(
                f"{task} has no state {key!r} of {size} numbers, which the agent sees; choose another task or agent"
            )


def agent_task(config: SimpleNamespace, domain: str) -> str:
    """The task of ``target``, ``source`` or ``source_2`` under a run's settings."""
    if domain == "target":
        return config.target_task
    _, _, number = domain.partition("_")
    return config.source_task.split(",")[int(number or 1) - 1]


def agent_policy(agent: Agent, sample: bool) -> driver.Policy:
    """The agent acting with samples of its policy, or with its mode."""
    return lambda observation, state, first: agent.act(observation, state, first, sample)

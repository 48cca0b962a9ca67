"""How many updates a run has, and how long one of them takes on this machine."""

import time
from collections.abc import Sequence
from contextlib import suppress

import torch

from agents.base import BaseAgent, Batch
from config import Config
from tools import BadInput
from training.methods import AgentBuilder, Method, Phase, PhaseKind, source_updates, warm_up_updates

REPEATS = 2  # after an update that is not counted
LONG = 1.0  # seconds of an update that is not repeated, because its first run is close enough
FEWEST = 200  # updates of a run that is worth a measurement


def updates(phases: Sequence[Phase], config: Config) -> int:
    """The updates of all agents in ``phases``, the first of a run or all of them."""
    kinds = PhaseKind.TRAIN_TARGET, PhaseKind.TRAIN_OFFLINE
    offline = sum(phase.iterations for phase in phases if phase.kind in kinds)
    return source_updates(phases, config) + warm_up_updates(phases) + offline // config.train_every


def update_seconds(builder: AgentBuilder, method: Method, count: int = FEWEST) -> dict[str, float]:
    """Seconds of one update of each agent of ``method``, by domain, on random batches, on this machine, not compiled.

    The agents are new ones. The state of torch's RNG is restored. {} if the update fails, for want of memory for
    example: the run will say so. {} also if the run has only a few updates, ``count``.
    """
    if count < FEWEST:
        return {}
    devices = [builder.device] if builder.device.type == "cuda" else []
    builder = AgentBuilder(builder.config.replace(compile="off"), builder.device, builder.action_dims, builder.senses)
    found = {}
    with suppress(BadInput, RuntimeError), torch.random.fork_rng(devices):
        for name, agent in method.agents(builder).items():
            batch = agent.random_batch()
            batches = [batch] * (1 + method.shared_world_model)  # Multi-task DV2's updates take one of each domain
            times = [timed(agent, batches)]
            while times[0] < LONG and len(times) <= REPEATS:
                times.append(timed(agent, batches))
            found[name] = min(times[1:] or times)
    return found


def timed(agent: BaseAgent, batches: Sequence[Batch]) -> float:
    """Seconds of one update, whose arguments are ``batches``."""
    start = time.perf_counter()
    agent.update(*batches)
    if agent.device.type == "cuda":
        torch.cuda.synchronize(agent.device)
    return time.perf_counter() - start

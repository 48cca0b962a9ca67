"""CoWorld and the methods it is compared with: for each, its agents, its schedule, and what it learns from.

A schedule rearranges the phases of Algorithm 1. A new method is one more entry of `METHODS`.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from fractions import Fraction

import torch

from agents.agent import Agent
from agents.base import BaseAgent
from agents.baselines import FinetunedAgent, MultitaskSource, MultitaskTarget, OfflineAgent
from agents.coworld import SourceAgent, TargetAgent
from agents.curl import CURLAgent
from agents.lompo import LOMPOAgent
from agents.model_free import BCAgent, CQLAgent, DrQBCAgent
from config import Config, has_target_simulator, source_tasks, target_task
from senses import IMAGE, Senses
from tools import BadInput, multiples_crossed, nearest
from wrappers import Task

SELECTED = -1  # as `Phase.source`: the source that the selector chooses


class PhaseKind(StrEnum):
    """What a phase does. co_training.py has one loop for each."""

    PREFILL = "prefill"  # random steps in a source simulator
    PRETRAIN_SOURCE = "pretrain_source"  # updates of a source agent without steps
    TRAIN_SOURCE = "train_source"  # online phase: steps in the source simulator, and updates
    TRANSFER = "transfer_source_to_target"  # the target agent becomes a copy of the source agent
    WARM_UP_TARGET = "warm_up_target"  # updates of the target's world model alone
    TRAIN_TARGET = "train_target"  # offline phase: updates on the dataset
    TRAIN_OFFLINE = "train_offline"  # the same, of an agent whose update is all its own: model-free ones and LOMPO
    EVALUATE_RANDOM = "evaluate_random"  # the random policy's score
    EVALUATE = "evaluate"  # the agent's score


ONLINE = (PhaseKind.PREFILL, PhaseKind.PRETRAIN_SOURCE, PhaseKind.TRAIN_SOURCE)
OFFLINE = (PhaseKind.WARM_UP_TARGET, PhaseKind.TRAIN_TARGET, PhaseKind.TRAIN_OFFLINE)
EVALUATIONS = (PhaseKind.EVALUATE_RANDOM, PhaseKind.EVALUATE)


@dataclass(frozen=True)
class Phase:
    """A part of a run.

    Attributes:
        kind: which loop runs.
        iterations: its length, in the loop's own iterations.
        round: co-training round, from 1; 0 before the first.
        domain: whose agent an evaluation scores.
        aligned: reward alignment (stage B): the source's updates use target data too.
        source: index of the source of an online phase, or SELECTED.
        world_model_share: share of the source's updates that train its world model; the others train only its actor
            and critic.
    """

    kind: PhaseKind
    iterations: int = 1
    round: int = 0
    domain: str = "target"
    aligned: bool = False
    source: int = 0
    world_model_share: Fraction = Fraction(1)


@dataclass(frozen=True)
class AgentBuilder:
    """Builds agents from the domains' action sizes and what is observed in each of them; by default one camera."""

    config: Config
    device: torch.device
    action_dims: dict[str, int]
    senses: dict[str, Senses]

    def build(self, kind: type[BaseAgent], name: str, **options: object) -> BaseAgent:
        """An agent for the domain ``name``; ``options`` are those of its class."""
        sizes = self.action_dims[name], self.largest_action_dim
        return kind(self.config, *sizes, self.device, self.senses.get(name, IMAGE), **options)

    @property
    def largest_action_dim(self) -> int:
        return max(self.action_dims.values())

    def source_names(self) -> list[str]:
        return [name for name in self.action_dims if name != "target"]


def algorithm_1_schedule(phases: list[Phase], config: Config) -> list[Phase]:
    """The phases of Algorithm 1 as they are."""
    return phases


@dataclass(frozen=True)
class Method:
    """How a run learns.

    All methods have one budget (docs/budgets.md): the target's world model gets the same number of updates in each.

    Attributes:
        agents: builds them, by domain: ``target``, and ``source`` or ``source_1``, ``source_2``, ...
        schedule: its phases, made from those of Algorithm 1 and the settings.
        online: the simulators it learns in: of all "sources", of one "source", of the "target", or "" for none.
        dataset: whether it learns from the target's dataset.
        aligned_with_sources: whether the target's updates use the source agents (the ties of CoWorld).
        shared_world_model: one world model learns from both domains' batches.
        elastic_weights: the transfer from source to target adds an EWC penalty.
        world_model: whether its agents have one.
        dreamer_behavior: whether its actor and critic learn as in DreamerV2.
        critic: whether its agents have one.
        settings: names, separated by spaces, of settings that only some methods use: those that name them here. What
            the others depend on is in config/table.py.
    """

    agents: Callable[[AgentBuilder], dict[str, BaseAgent]]
    schedule: Callable[[list[Phase], Config], list[Phase]] = algorithm_1_schedule
    online: str = "source"
    dataset: bool = True
    aligned_with_sources: bool = False
    shared_world_model: bool = False
    elastic_weights: bool = False
    world_model: bool = True
    dreamer_behavior: bool = True
    critic: bool = True
    settings: str = ""

    @property
    def uses_sources(self) -> bool:
        return self.online in ("source", "sources")

    @property
    def shares_weights(self) -> bool:
        """Whether source and target share weights, so that both need the same observations."""
        return self.online == "source" and self.dataset


# Agents


def coworld_agents(builder: AgentBuilder) -> dict[str, Agent]:
    sources = {name: builder.build(SourceAgent, name) for name in builder.source_names()}
    return {**sources, "target": builder.build(TargetAgent, "target")}


def online_agents(builder: AgentBuilder) -> dict[str, Agent]:
    """A DreamerV2 agent in each domain."""
    return {name: builder.build(SourceAgent, name) for name in builder.action_dims}


def finetune_agents(builder: AgentBuilder) -> dict[str, Agent]:
    """Two agents with networks of the same sizes, those of the larger domain, so that weights can be copied."""
    kinds = {"source": SourceAgent, "target": FinetunedAgent}
    return {name: builder.build(kind, name, actor_dim=builder.largest_action_dim) for name, kind in kinds.items()}


def agents_of(kind: type[BaseAgent]) -> Callable[[AgentBuilder], dict[str, BaseAgent]]:
    """A builder of one agent, the target's, of the class ``kind``."""
    return lambda builder: {"target": builder.build(kind, "target")}


def multitask_agents(builder: AgentBuilder) -> dict[str, Agent]:
    """Two actor-critics on one world model."""
    source = builder.build(MultitaskSource, "source")
    shared = {"world": source.world, "model_opt": source.model_opt}
    return {"source": source, "target": builder.build(MultitaskTarget, "target", **shared)}


# Schedules


def offline_schedule(phases: list[Phase], config: Config) -> list[Phase]:
    """The target's phases and the evaluations."""
    return [phase for phase in phases if phase.kind in (*OFFLINE, *EVALUATIONS)]


def model_free_schedule(phases: list[Phase], config: Config) -> list[Phase]:
    """`offline_schedule` with the same number of updates. Those of the warm-up come before the first evaluation."""
    found = []
    for phase in offline_schedule(phases, config):
        if phase.kind == PhaseKind.WARM_UP_TARGET:
            phase = replace(phase, iterations=phase.iterations * config.train_every)
        found.append(replace(phase, kind=PhaseKind.TRAIN_OFFLINE) if phase.kind in OFFLINE else phase)
    return found


def lompo_schedule(phases: list[Phase], config: Config) -> list[Phase]:
    """The warm-up trains the world model; the rounds train actor and critics on it as it is."""
    offline = offline_schedule(phases, config)
    train = PhaseKind.TRAIN_TARGET
    return [replace(phase, kind=PhaseKind.TRAIN_OFFLINE) if phase.kind == train else phase for phase in offline]


def finetune_schedule(phases: list[Phase], config: Config) -> list[Phase]:
    """All phases of the source, then the transfer of its agent, then all phases of the target."""
    online = [replace(phase, aligned=False) for phase in phases if phase.kind in ONLINE]
    return [phases[0], *online, Phase(PhaseKind.TRANSFER), *offline_schedule(phases[1:], config)]


def warm_start_schedule(phases: list[Phase], config: Config) -> list[Phase]:
    """Algorithm 1; when the source is pretrained, the target agent becomes its copy."""
    at = next((i for i, phase in enumerate(phases) if i > 0 and phase.kind not in ONLINE), len(phases))
    return [*phases[:at], Phase(PhaseKind.TRANSFER), *phases[at:]]


def multitask_schedule(phases: list[Phase], config: Config) -> list[Phase]:
    """Algorithm 1 for one world model, with the same number of updates as CoWorld's target model gets.

    Before the first round, the source's updates train the world model too, on data of both domains. They replace
    updates of the warm-up: as many as it has, or all of the source's if they are fewer. In the rounds, the source's
    updates train only its actor and critic.
    """
    updates = source_updates([phase for phase in phases if not phase.round], config)
    moved = min(updates, warm_up_updates(phases))
    before = Fraction(moved, max(updates, 1))
    shared = []
    for phase in phases:
        if phase.kind == PhaseKind.WARM_UP_TARGET:
            replaced = min(moved, phase.iterations)
            moved -= replaced
            phase = replace(phase, iterations=phase.iterations - replaced)
        elif phase.kind in (PhaseKind.PRETRAIN_SOURCE, PhaseKind.TRAIN_SOURCE):
            share = Fraction(0) if phase.round else before
            phase = replace(phase, aligned=share > 0, world_model_share=share)
        shared.append(phase)
    return [phase for phase in shared if phase.iterations or phase.kind != PhaseKind.WARM_UP_TARGET]


def target_online_schedule(phases: list[Phase], config: Config) -> list[Phase]:
    """The target's phases as online phases in its own simulator.

    The agent gets the same number of updates as CoWorld's target model. Of those of the warm-up, ``pretrain`` become
    updates without steps. For the others the agent also steps in the simulator.
    """
    warm_up = warm_up_updates(phases)
    pretrain = min(config.pretrain, warm_up)
    online = [phase for phase in phases if phase.kind in (PhaseKind.EVALUATE_RANDOM, PhaseKind.PREFILL)]
    online.append(Phase(PhaseKind.PRETRAIN_SOURCE, pretrain))
    online.append(Phase(PhaseKind.TRAIN_SOURCE, (warm_up - pretrain) * config.train_every))
    for phase in phases:
        if phase.kind == PhaseKind.EVALUATE:
            online.append(phase)
        elif phase.kind == PhaseKind.TRAIN_TARGET:
            online.append(replace(phase, kind=PhaseKind.TRAIN_SOURCE))
    return online


def warm_up_updates(phases: list[Phase]) -> int:
    return sum(phase.iterations for phase in phases if phase.kind == PhaseKind.WARM_UP_TARGET)


def source_updates(phases: list[Phase], config: Config) -> int:
    """Updates in the online phases of ``phases``, the first of a run."""
    stride, steps, updates = max(config.envs, 1), 0, 0
    for phase in phases:
        length = -(-phase.iterations // stride) * stride  # all simulators step together
        if phase.kind == PhaseKind.PRETRAIN_SOURCE:
            updates += phase.iterations
        elif phase.kind == PhaseKind.PREFILL:
            steps += length
        elif phase.kind == PhaseKind.TRAIN_SOURCE:
            steps += length
            updates += multiples_crossed(steps, length, config.train_every)
    return updates


DREAMER_V3 = "dreamerv3"  # the block of configs.yaml
SIZE_BLOCK = re.compile(r"size\d+m")  # those of its sizes
FRAME_STACKS = "transitions frame_stack feature_size q_units"  # settings of model-free agents
DRQ = f"{FRAME_STACKS} nstep random_shift noise_start noise_end noise_steps noise_clip target_tau"


def model_free(kind: type[BaseAgent], settings: str, critic: bool = True) -> Method:
    """A method of agents without a world model."""
    traits = {"world_model": False, "dreamer_behavior": False, "critic": critic}
    return Method(agents_of(kind), model_free_schedule, online="", **traits, settings=settings)


METHODS = {
    "coworld": Method(coworld_agents, online="sources", aligned_with_sources=True),
    "coworld_warm_start": Method(finetune_agents, warm_start_schedule, aligned_with_sources=True),
    "offline_dv2": Method(agents_of(OfflineAgent), offline_schedule, online="", settings="ensemble disagreement_scale"),
    "dv2_finetune": Method(finetune_agents, finetune_schedule),
    "dv2_finetune_ewc": Method(
        finetune_agents, finetune_schedule, elastic_weights=True, settings="ewc_scale ewc_batches"
    ),
    "multitask_dv2": Method(multitask_agents, multitask_schedule, shared_world_model=True),
    "online_dv2": Method(online_agents, target_online_schedule, online="target", dataset=False),
    "bc": model_free(BCAgent, DRQ.replace("nstep ", "").replace(" target_tau", ""), critic=False),
    "drq_bc": model_free(DrQBCAgent, f"{DRQ} bc_scale"),
    "cql": model_free(CQLAgent, f"{DRQ} conservative_scale conservative_actions"),
    "curl": model_free(CURLAgent, f"{FRAME_STACKS} nstep target_tau key_tau initial_temperature temperature_lr"),
    "lompo": Method(
        agents_of(LOMPOAgent),
        lompo_schedule,
        online="",
        dreamer_behavior=False,
        settings="ensemble transitions target_tau uncertainty_scale imagined_noise",
    ),
}
COLLECTION = Method(online_agents, online="source", dataset=False)  # collect.py: DreamerV2, for its episodes


def find_method(name: str) -> Method:
    """The method of that name. Raises BadInput with the nearest names if there is none."""
    if name not in METHODS:
        raise BadInput(f"method {name!r} is unknown; {nearest(name, METHODS)}")
    return METHODS[name]


def check_blocks(names: list[str], method: str = "") -> None:
    """Raises BadInput if one of the blocks ``names`` is of another method than ``method``, "" in collect.py, or of
    DreamerV3 if the method has no world model, or a size of DreamerV3 that does not come after its block."""
    for i, name in enumerate(names):
        if SIZE_BLOCK.fullmatch(name) and DREAMER_V3 not in names[:i]:
            raise BadInput(
                f"--configs {name}: a size of {DREAMER_V3}, whose block sets it anew; name {DREAMER_V3} first"
            )
        if name == DREAMER_V3 and method and not find_method(method).world_model:
            raise BadInput(f"--configs {name}: method {method} has no world model; remove it")
        if name in METHODS and name != method:
            other = f"of another method than {method}; remove it, or give --method {name}, which applies it"
            raise BadInput(
                f"--configs {name}: the block {other if method else 'of a method of co_training.py; remove it'}"
            )


def online_tasks(config: Config, method: Method) -> dict[str, tuple[Task, str]]:
    """Name -> (task, role) of each domain that ``method`` learns in online, its roles as in wrappers' simulators.

    Raises BadInput if no source task is given, or more than ``method`` uses.
    """
    if method.online == "target":
        if not has_target_simulator(config):
            target = config.target_task or "a dataset"
            raise BadInput(f"--method {config.method} learns in the target's simulator, and {target} has none")
        return {"target": (target_task(config), "target")}
    if not method.online:
        return {}
    if not config.source_task:
        raise BadInput("--source_task is missing (see --help)")
    tasks, role = source_tasks(config), "source" if method.dataset else "collect"
    if len(tasks) == 1:
        return {"source": (tasks[0], role)}
    if method.online == "source":
        raise BadInput(f"--source_task {config.source_task}: method {config.method} takes one; give one task")
    return {f"source_{i}": (task, role) for i, task in enumerate(tasks, 1)}

"""The plan of a run: the names of its phases, their lengths, and how long they take."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from config import Config
from tools import multiples_crossed
from training.methods import EVALUATIONS, OFFLINE, SELECTED, Method, Phase, PhaseKind

SIMULATOR_SECONDS = 0.01  # of an agent step, before it is measured; docs/performance.md has those of the suites
WITHOUT_UPDATES = (*EVALUATIONS, PhaseKind.PREFILL)  # their speed says nothing about that of the others
Cost = tuple[PhaseKind, bool]  # phases with the same kind of iterations: `Phase.kind`, `Phase.aligned`


# Names


def base_names(phases: Sequence[Phase], method: Method, sources: int) -> list[str]:
    """What each phase does; phases that do the same have the same name."""
    return [base_name(phase, method, sources) for phase in phases]


def base_name(phase: Phase, method: Method, sources: int) -> str:
    agent = "target" if method.online == "target" else "source"
    if sources > 1 and phase.source != SELECTED:
        agent = f"source_{phase.source + 1}"
    return {
        PhaseKind.EVALUATE_RANDOM: "evaluate (random policy)",
        PhaseKind.EVALUATE: "evaluate",
        PhaseKind.PREFILL: f"prefill {agent} (random steps)",
        PhaseKind.PRETRAIN_SOURCE: f"pretrain {agent}",
        PhaseKind.TRAIN_SOURCE: f"train {agent}{how_source_learns(phase, method)}",
        PhaseKind.TRANSFER: "copy source to target",
        PhaseKind.WARM_UP_TARGET: "warm up target",
        PhaseKind.TRAIN_TARGET: "train target",
        PhaseKind.TRAIN_OFFLINE: "train target" if phase.round else "warm up target",
    }[phase.kind]


def how_source_learns(phase: Phase, method: Method) -> str:
    """In an online phase: from the simulator alone, or with the target's data too; and whether in the warm-up."""
    if method.online == "target":
        return " (online)"
    if not method.dataset:
        return ""
    if method.shared_world_model:
        how = "with target data" if phase.world_model_share else "actor and critic"
    else:
        how = "aligned" if phase.aligned else "alone"
    warm_up = ", warm-up" if phase.source == SELECTED and not phase.round else ""
    return f" ({how}){warm_up}"


def phase_names(phases: Sequence[Phase], method: Method, config: Config, sources: int) -> list[str]:
    """A name of its own for each phase: with its round, or before the rounds with its number if several do the same."""
    names = base_names(phases, method, sources)
    before_rounds = Counter(name for name, phase in zip(names, phases, strict=True) if not phase.round)
    numbered, found = Counter(), []
    for name, phase in zip(names, phases, strict=True):
        numbered[name] += 1
        if phase.round:
            name += f" {phase.round}/{config.rounds}"
        elif before_rounds[name] > 1:
            name += f" {numbered[name]}/{before_rounds[name]}"
        found.append(name)
    if phases[-1].kind == PhaseKind.EVALUATE and phases[-1].domain == "target":
        found[-1] = "evaluate (at the end)"
    return found


# Lengths


def amount(phase: Phase, config: Config, iterations: int, begun: int = 0) -> tuple[int, str]:
    """The first ``iterations`` of a phase in the unit that the tables have: (number, unit).

    ``begun``: the target's iterations before the phase, which decide when it has its updates.
    """
    if phase.kind in EVALUATIONS:
        return iterations, "agent steps"
    if phase.kind in (PhaseKind.TRAIN_TARGET, PhaseKind.TRAIN_OFFLINE):
        return multiples_crossed(begun + iterations, iterations, config.train_every), "updates"
    return iterations, "agent steps" if phase.kind in (PhaseKind.PREFILL, PhaseKind.TRAIN_SOURCE) else "updates"


def iterations_of(phase: Phase, config: Config) -> int:
    """The iterations of a phase, as its bar counts them; of an evaluation its agent steps, at most."""
    if phase.kind in EVALUATIONS:
        return config.eval_episodes * config.time_limit
    return phase.iterations


def plan_line(phases: Sequence[Phase], names: Sequence[str], config: Config, seconds: float | None) -> str:
    """One line: the kinds of phases in order, how many there are and how long each is, and the expected time.

    names: `base_names` of ``phases``. seconds: of all phases; None if not known.
    """
    training = [(name, phase) for name, phase in zip(names, phases, strict=True) if phase.kind not in EVALUATIONS]
    counts = Counter((name, *amount(phase, config, phase.iterations)) for name, phase in training)
    parts = []
    for (name, number, unit), times in counts.items():
        length = "" if name.startswith("copy") else f" {f'{times} x ' if times > 1 else ''}{number:,} {unit}"
        parts.append(f"{name}{length}")
    if evaluations := len(phases) - len(training):
        parts.append(f"{evaluations} evaluation{'s' * (evaluations > 1)}")
    expected = "" if seconds is None else f", about {duration(seconds)}"
    return f"plan: {len(phases)} phases{expected}: {'; '.join(parts)}"


def duration(seconds: float) -> str:
    """A time in one unit: ``40 s``, ``4 min``, ``3.5 h``, ``2.1 days``."""
    for size, unit, digits in ((86400, "days", 1), (3600, "h", 1), (60, "min", 0)):
        if seconds >= (1.5 if unit == "days" else 0.99) * size:
            return f"{seconds / size:.{digits}f} {unit}"
    return f"{max(math.ceil(seconds), 1)} s"


# Time


@dataclass
class Clock:
    """How long the phases of a run take: as expected, and as soon as some have run, by their speed.

    Attributes:
        planned: the indices of the phases that this process runs; none before them takes time.
        simulated: whether evaluations have a simulator, and so take time.
        update_seconds: of an update, by domain; {} if it was not measured.
        spent: seconds and iterations so far, by kind of phase.
    """

    phases: Sequence[Phase]
    config: Config
    planned: Sequence[int]
    simulated: bool = True
    update_seconds: dict[str, float] = field(default_factory=dict)
    spent: dict[Cost, tuple[float, int]] = field(default_factory=dict)

    def record(self, phase: Phase, seconds: float, iterations: int) -> None:
        """Count ``iterations`` of a phase that took ``seconds``."""
        before = self.spent.get((phase.kind, phase.aligned), (0.0, 0))
        self.spent[phase.kind, phase.aligned] = before[0] + seconds, before[1] + iterations

    def expected(self, phase: Phase) -> float:
        """Seconds of one iteration, before any is measured. Without measured updates, one update counts as 1 s."""
        if phase.kind in EVALUATIONS:
            return SIMULATOR_SECONDS
        domain, measured = "target" if phase.kind in OFFLINE else "source", self.update_seconds
        times = [seconds for name, seconds in measured.items() if name.startswith(domain)]
        update = next(iter([*times, *measured.values()]), 1.0)
        every = self.config.train_every
        return {
            PhaseKind.PREFILL: SIMULATOR_SECONDS,
            PhaseKind.PRETRAIN_SOURCE: update,
            PhaseKind.TRAIN_SOURCE: SIMULATOR_SECONDS + update / every,
            PhaseKind.TRANSFER: 0.0,
            PhaseKind.WARM_UP_TARGET: update,
        }.get(phase.kind, update / every)

    def rate(self, phase: Phase) -> float:
        """Seconds of one iteration: measured, or else as expected, times what the measured ones differ from that."""
        seconds, iterations = self.spent.get((phase.kind, phase.aligned), (0.0, 0))
        if iterations:
            return seconds / iterations
        differ = [
            (spent, count * self.expected(Phase(kind, aligned=aligned)))
            for (kind, aligned), (spent, count) in self.spent.items()
            if kind not in WITHOUT_UPDATES
        ]
        measured, guessed = map(sum, zip(*differ, strict=True)) if differ else (1.0, 1.0)
        return self.expected(phase) * (measured / guessed if guessed else 1.0)

    def seconds(self, phase: Phase, done: int = 0) -> float:
        """Seconds of a phase from its iteration ``done`` on."""
        if phase.kind == PhaseKind.TRANSFER or (phase.kind in EVALUATIONS and not self.simulated):
            return 0.0
        return max(iterations_of(phase, self.config) - done, 0) * self.rate(phase)

    def left(self, index: int, done: int) -> float | None:
        """Seconds to the run's end from iteration ``done`` of phase ``index``; None as long as nothing is measured."""
        if not self.update_seconds and not any(kind not in WITHOUT_UPDATES for kind, _ in self.spent):
            return None
        later = sum(self.seconds(self.phases[i]) for i in self.planned if i > index)
        return self.seconds(self.phases[index], done) + later

    def total(self) -> float:
        """Seconds of all phases."""
        return sum(map(self.seconds, self.phases))

    def share(self, index: int, done: int) -> float:
        """The share of the run's time, 0 to 1, that is over at iteration ``done`` of phase ``index``."""
        last = max(self.planned, default=index)
        times = [self.seconds(phase) for phase in self.phases[: last + 1]]
        total = sum(times)
        now = sum(times[: index + 1]) - self.seconds(self.phases[index], done)
        return min(now / total, 1.0) if total else 0.0

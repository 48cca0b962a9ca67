"""The plan of a sweep: its jobs, what is shared, and its hours."""

import json
import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch

from config import settings_that_affect
from sweeping.jobs import DATA, PRETRAINING, RUN, Job, PlannedRun
from sweeping.networks import domain_sizes, source_networks
from tools import BadInput, progress_bar
from training.device import pick_device, pick_precision
from training.estimate import update_seconds, updates
from training.methods import AgentBuilder, PhaseKind
from training.pretraining import compared_settings, describe_phases

DEVICES = (1, 2, 4, 8, 16)
SHOWN = 5  # runs that could be a `source_from`


def updates_of(job: Job, planned: PlannedRun) -> int:
    """The updates of a pretraining or a run, without those that another job does for it."""
    alone = updates(planned.pretraining, planned.config)
    if job.kind == PRETRAINING:
        return alone
    shared = "--source_from" in job.command or any(need.startswith(PRETRAINING) for need in job.needs)
    return updates(planned.phases, planned.config) - (alone if shared else 0)


def seconds_per_update(planned: PlannedRun) -> float:
    """The mean of one update of each agent of a run, on random batches, on this machine."""
    config, method = planned.config, planned.method
    device = pick_device(config.device)
    config = config.replace(precision=pick_precision(config.precision, device))
    action_dims, senses = domain_sizes(config, method)
    if not method.uses_sources and method.dataset:
        action_dims = {"target": action_dims["target"]}
    return statistics.fmean(update_seconds(AgentBuilder(config, device, action_dims, senses), method).values())


def kind_of(planned: PlannedRun) -> tuple[str, str]:
    """Runs of one kind have updates of the same cost: the method, and the settings that decide it as text."""
    return planned.run.method, str([getattr(planned.config, key) for key in settings_that_affect("cost")])


def measure(planned: Sequence[PlannedRun]) -> dict[tuple[str, str], float]:
    """Seconds of an update, of one run of each kind."""
    first = {kind_of(p): p for p in reversed(planned)}
    found = {}
    with progress_bar(len(first), "measure updates", leave=False) as bar:
        for kind, one in first.items():
            bar.set_postfix_str(one.run.method)
            found[kind] = seconds_per_update(one)
            bar.update()
    return found


def plan_text(planned: Sequence[PlannedRun], jobs: Sequence[Job], seconds: float | None) -> str:
    """What a sweep would do, and for how long.

    Args:
        seconds: of one update; None: measured on this machine.

    Raises:
        BadInput: ``seconds`` is not positive.
    """
    if seconds is not None and not 0 < seconds < float("inf"):
        raise BadInput(f"--seconds_per_update {seconds}: give a positive number of seconds")
    by_name = {p.run.name: p for p in planned}
    todo = [job for job in jobs if not job.done]
    lines = [job_line(job) for job in todo]
    kinds, runs = Counter(job.kind for job in todo), [job for job in jobs if job.kind == RUN]
    lines.append("")
    lines.append(f"{len(runs)} runs, {sum(job.done for job in runs)} of them done; {kinds[DATA]} datasets to collect")
    followers = sum("--source_from" in job.command for job in todo)
    lines.append(
        f"{kinds[PRETRAINING]} pretrainings of sources to do for several runs; {followers} runs begin from another's"
    )
    alone = {job.name for job in todo if job.kind == RUN and "--source_from" not in job.command}
    lines += repetition_lines(planned, {p.run.name for p in planned if p.run.name in alone and not p.has_snapshot})
    trained = [job for job in todo if job.kind != DATA]
    if not trained:
        return "\n".join(lines)
    todo_runs = [by_name[job.name.removeprefix(f"{PRETRAINING} ")] for job in trained]
    cost = dict.fromkeys(map(kind_of, todo_runs), seconds) if seconds else measure(todo_runs)
    hours, counted = Counter(), Counter()
    for job, run in zip(trained, todo_runs, strict=True):
        count = updates_of(job, run)
        counted[run.run.method] += count
        hours[run.run.method] += count * cost[kind_of(run)] / 3600
    origin = "as given" if seconds else f"measured here, {torch.get_num_threads()} threads"
    lines += hours_lines(hours, counted, origin)
    return "\n".join(lines)


def repetition_lines(planned: Sequence[PlannedRun], todo: set[str]) -> list[str]:
    """What it costs that the runs ``todo`` train their sources themselves, as another run of the sweep does too."""
    alike: dict[str, list[PlannedRun]] = defaultdict(list)
    for p in planned:
        if phases := describe_phases(p.pretraining):
            alike[json.dumps([compared_settings(p.config, p.method), phases], sort_keys=True)].append(p)
    runs, repeated, steps, hints = 0, 0, 0, []
    for group in (same for one in alike.values() if len(one) > 1 for same in with_equal_networks(one)):
        own = [p for p in group if p.run.name in todo]
        leader = next((p for p in group if p.has_snapshot), (own or group)[0])
        if repeats := [p.run.name for p in own if p is not leader]:
            runs += len(repeats)
            repeated += len(repeats) * updates(leader.pretraining, leader.config)
            steps += len(repeats) * agent_steps(leader)
            more = f" and {len(repeats) - 1} more" if len(repeats) > 1 else ""
            hints.append(f"  source_from: {leader.run.name} for {repeats[0]}{more}")
    if not runs:
        return []
    cost = f"{runs} runs repeat the pretraining of another: {repeated:,} updates, {steps:,} agent steps"
    return [f"{cost}. To avoid it:", *hints[:SHOWN], *[f"  ... ({len(hints) - SHOWN} more)"] * (len(hints) > SHOWN)]


def with_equal_networks(planned: Sequence[PlannedRun]) -> list[list[PlannedRun]]:
    groups: dict[str, list[PlannedRun]] = defaultdict(list)
    for p in planned:
        groups[source_networks(p.config, p.method)].append(p)
    return list(groups.values())


def agent_steps(planned: PlannedRun) -> int:
    """The agent steps of a run's pretraining."""
    kinds = PhaseKind.PREFILL, PhaseKind.TRAIN_SOURCE
    return sum(phase.iterations for phase in planned.pretraining if phase.kind in kinds)


def job_line(job: Job) -> str:
    begins = job.command[job.command.index("--source_from") + 1] if "--source_from" in job.command else ""
    return job.name + (f", from the pretraining of {Path(begins).name}" if begins else "")


def hours_lines(hours: dict[str, float], counted: dict[str, int], origin: str) -> list[str]:
    total, width = sum(hours.values()), max(map(len, hours))
    lines = ["", f"updates, seconds an update ({origin}), and hours on one device:"]
    for name in hours:
        seconds = 3600 * hours[name] / max(counted[name], 1)
        lines.append(f"  {name:{width}} {counted[name]:12,} {seconds:9.3f} {hours[name]:9.1f}")
    lines.append("hours on several devices: " + ", ".join(f"{count}: {total / count:.1f}" for count in DEVICES))
    lines.append("Simulators, evaluations and collecting are not counted: a tenth more or less (docs/performance.md).")
    return lines

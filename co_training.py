r"""CoWorld: co-train an online agent in a source simulator and an offline agent on a target dataset (Algorithm 1).

python co_training.py --source_task walker_walk --target_task walker_downhill --offline_traindir DIR \
    --configs defaults dmc
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import config as settings
import training.visuals as pictures
from agents.agent import Metrics
from training.collector import Scores
from tools import BadInput, exit_on_bad_input
from training.methods import CHOSEN, METHODS, Phase
from training.trainer import Interrupted, Run
from training.selector import Source, named_tasks
from tools import times_passed
from training.trained import BEFORE_ALIGNMENT, agent_policy
from wrappers.shared.vector import WorkerCrash


def algorithm_1(config: SimpleNamespace) -> list[Phase]:
    """The phases of a run in order: pretraining of every source, warm-up, then rounds of offline and online phases."""
    phases = [Phase("evaluate_random")]
    for source in range(len(config.source_task.split(","))):
        phases += source_agent_alone(config, config.pretrain_steps, source)
    online = Phase("source", aligned=config.reward_alignment, source=CHOSEN)
    for _ in range(config.warmup_rounds):
        phases.append(Phase("target_model", config.warmup_updates))
        phases.append(replace(online, iterations=config.warmup_steps))
    for r in range(1, config.rounds + 1):
        phases.append(Phase("evaluate", round=r))
        phases.append(Phase("target", config.target_iterations, round=r))
        if r < config.rounds:
            phases.append(replace(online, iterations=config.source_iterations, round=r))
    return [*phases, Phase("evaluate", round=config.rounds)]


def source_agent_alone(config: SimpleNamespace, steps: int, source: int = 0) -> list[Phase]:
    """DreamerV2 online: random steps, the first updates, then ``steps`` agent steps."""
    return [
        Phase("prefill", config.prefill, source=source),
        Phase("source_updates", config.pretrain, source=source),
        Phase("source", steps, source=source),
    ]


# One function a phase. Each counts its iterations through `run.iterations`, which also resumes, saves and logs.


def prefill(run: Run, phase: Phase) -> None:
    """Random steps in the source simulator, so that there is something to learn from."""
    collector = run.source_of(phase).collector
    for _ in run.iterations(phase, len(collector)):
        collector.step()
        run.progress.source_steps += len(collector)


def source_updates(run: Run, phase: Phase) -> None:
    """Updates of the source agent without stepping its simulator."""
    for _ in run.iterations(phase):
        update_source(run, run.source_of(phase), phase.aligned)


def source(run: Run, phase: Phase) -> None:
    """Online phase: step the source simulator; train the source agent (Eq. 2, with Eq. 5 where aligned) meanwhile."""
    source = run.source_of(phase)
    policy, stride = agent_policy(source.agent, sample=True), len(source.collector)
    for _ in run.iterations(phase, stride):
        source.collector.start(policy)
        run.progress.source_steps += stride
        run.progress.aligned_steps += stride * phase.aligned
        for _ in range(times_passed(run.progress.source_steps, stride, run.config.train_every)):
            update_source(run, source, phase.aligned)
        source.collector.finish()


def update_source(run: Run, source: Source, aligned: bool) -> None:
    batch, target_batch = run.batch(source.name), run.batch("target") if aligned else None
    if target_batch and source.agent.world.state:  # it cannot see images: the target's encoder lends it its eyes
        target_batch["embed"] = run.target.embed(target_batch)
    run.logger.add(source.name, source.agent.update(batch, target_batch, step=run.progress.aligned_steps))
    if source.agent is run.target:
        run.progress.target_updates += 1
    else:
        run.progress.source_updates += 1


def hand_over(run: Run, phase: Phase) -> None:
    """The target's agent becomes the source's (DV2 Finetune)."""
    run.target.take_over(run.agents["source"], (run.batch("source") for _ in range(run.config.ewc_batches)))


def target_model(run: Run, phase: Phase) -> None:
    """Warm-up: the target's world model alone (Eq. 3)."""
    for _ in run.iterations(phase):
        update_target(run, phase, run.target.update_model)


def target(run: Run, phase: Phase) -> None:
    """Offline phase: train the target agent on the dataset (Eq. 3, imagine, Eq. 6, Eq. 7)."""
    for _ in run.iterations(phase):
        run.progress.target_iterations += 1
        if times_passed(run.progress.target_iterations, 1, run.config.train_every):
            update_target(run, phase, run.target.update)


def update_target(run: Run, phase: Phase, update: Callable[..., Metrics]) -> None:
    """One update; of several sources it follows the one that ``select`` says."""
    if run.progress.target_updates == 0 and run.method.tied:
        run.save_models(BEFORE_ALIGNMENT)
    source_batches = None
    if run.target.takes_source_batches or any(agent.world.state for agent in run.followed):
        source_batches = [run.batch(source.name) for source in run.sources]
    metrics = update(run.batch("target"), run.followed, source_batches, run.choices.fixed())
    run.progress.target_updates += 1
    if "chosen" in metrics:
        counts = {"step": run.progress.step, "target_updates": run.progress.target_updates}
        run.logger.choice(**counts, phase=phase.kind, round=phase.round, **run.choices.count(metrics))
    run.logger.add("target", metrics)


def evaluate_random(run: Run, phase: Phase) -> None:
    """The random policy's score in the domain's simulator: what learning has to beat."""
    record_score(run, phase, run.score(None, phase.domain))


def evaluate(run: Run, phase: Phase) -> None:
    """Score the domain's agent, acting with its mode. Of a dataset's simulator there is no other use."""
    scores = run.score(agent_policy(run.agents[phase.domain], sample=False), phase.domain)
    record_score(run, phase, scores)
    run.logger.video(f"{phase.domain}/evaluation", scores.frames, run.progress.step)
    run.last_score = scores.mean


def record_score(run: Run, phase: Phase, scores: Scores) -> None:
    """A line of scores.csv, and a point of the evaluation curves."""
    counts = {k: getattr(run.progress, k) for k in ("step", "source_steps", "target_updates")}
    success = "" if scores.success is None else scores.success
    results = {"mean": scores.mean, "std": scores.std, "success": success, "episodes": len(scores.returns)}
    run.logger.score(domain=phase.domain, phase=phase.kind, round=phase.round, **counts, **results)


KINDS = prefill, source_updates, source, hand_over, target_model, target, evaluate_random, evaluate
PHASES = {function.__name__: function for function in KINDS}


def train(run: Run, until: Callable[[Run], bool] = lambda run: False) -> None:
    """Every phase that is left, in order, or ``until`` holds after one. `Interrupted` on Ctrl-C or SIGTERM."""
    for phase in run.phases[run.progress.phase :]:
        if until(run):
            return
        PHASES[phase.kind](run, phase)
        run.finish_phase(phase)


def summary(run: Run) -> str:
    """The scores of a finished run as a short table; of several sources, how often each was followed."""
    rows = [row for row in pictures.read_scores(run.logdir) if row["domain"] == "target"]
    name = run.config.method
    width = max(len(label) for label in (f"{name}, before round {run.config.rounds}", *run.tasks.values())) + 10
    lines = [f"{run.tasks['target']:{width}} {'return':>9} {'+-':>7} {'success':>8} {'target updates':>15}"]
    for row in rows:
        label = "random policy" if row["phase"] == "evaluate_random" else f"{name}, before round {row['round']}"
        if row is rows[-1] and row["phase"] == "evaluate":
            label = f"{name}, at the end"
        success = f"{float(row['success']):.0%}" if row["success"] else "-"
        figures = f"{float(row['mean']):9.1f} {float(row['std']):7.1f} {success:>8} {row['target_updates']:>15}"
        lines.append(f"{label:{width}} {figures}")
    updates = sum(run.choices.won)
    if updates:
        lines.append(f"{'source':{width}} {'followed':>9} of {updates} target updates")
        for source, won in zip(run.sources, run.choices.won, strict=True):
            lines.append(f"{source.name + ' ' + source.task:{width}} {won / updates:9.0%}")
    return "\n".join([*lines, f"run directory: {run.logdir}"])


def default_logdir(config: SimpleNamespace) -> Path:
    """Determined by the command, so that the same command finds its run again."""
    method = METHODS[config.method]
    target = named_tasks(config, "target_task")[0]
    learned = [*([] if config.method == "coworld" else [config.method])]
    if method.online.startswith("source"):
        sources = named_tasks(config, "source_task")
        learned += [config.select] * (len(sources) > 1 and config.select != "nearest")
        learned += ["+".join(sources), "to"]
    return Path("runs") / "-".join([*learned, target, *config.configs, f"seed{config.seed}"])


def carry_out(run: Run, until: Callable[[Run], bool] = lambda run: False) -> None:
    """Train ``run`` to its end or ``until``; if Ctrl-C or SIGTERM breaks it off, say how to go on and exit."""
    try:
        with run.stop.listening():
            train(run, until)
            run.draw_summary()
    except Interrupted:
        print(f"stopped and saved; the same command continues {run.logdir}", file=sys.stderr)
        sys.exit(128 + run.stop.signal)
    except WorkerCrash as crash:
        sys.exit(
            f"{crash}\na simulator's process failed; the same command continues {run.logdir} from its last checkpoint"
        )
    finally:
        run.close()


def main(arguments: list[str] | None = None) -> None:
    config, _ = settings.parse(settings.parser(__doc__), arguments)
    method = METHODS[config.method]
    learns_in_sources = method.online.startswith("source")
    needed = [("source_task", learns_in_sources), ("target_task", True), ("offline_traindir", method.dataset)]
    for key in (key for key, is_needed in needed if is_needed):
        if not getattr(config, key):
            raise BadInput(f"--{key} is missing (see --help)")
    if config.source_task and not learns_in_sources:
        print(f"note: {config.method} has no source; --source_task {config.source_task} is not used", file=sys.stderr)
        config.source_task = ""
    if not learns_in_sources:
        config.source_observation = "image"
    config.logdir = config.logdir or str(default_logdir(config))
    run = Run(config, method.schedule(algorithm_1(config)), method)
    carry_out(run)
    print(summary(run))


if __name__ == "__main__":
    exit_on_bad_input(main)

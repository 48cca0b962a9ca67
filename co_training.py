r"""CoWorld: co-train an online agent in a source simulator and an offline agent on a target dataset (Algorithm 1).

python co_training.py --source_task walker_walk --target_task walker_downhill --offline_traindir DIR \
    --configs defaults dmc
"""

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import config as settings
import pictures
from agents import Metrics
from driver import Scores
from errors import DIVERGED, BadInput, exit_on_bad_input
from run import Interrupted, Phase, Run, agent_policy
from tools import times_passed
from wrappers import parse_task
from wrappers.vector import WorkerCrash


def algorithm_1(config: SimpleNamespace) -> list[Phase]:
    """The phases of a run in order: pretraining, warm-up, then rounds of offline and online phases."""
    phases = [Phase("evaluate_random"), *source_agent_alone(config, config.pretrain_steps)]
    for _ in range(config.warmup_rounds):
        phases.append(Phase("target_model", config.warmup_updates))
        phases.append(Phase("source", config.warmup_steps, aligned=config.reward_alignment))
    for r in range(1, config.rounds + 1):
        phases.append(Phase("evaluate", round=r))
        phases.append(Phase("target", config.target_iterations, round=r))
        if r < config.rounds:
            phases.append(Phase("source", config.source_iterations, round=r, aligned=config.reward_alignment))
    return [*phases, Phase("evaluate", round=config.rounds)]


def source_agent_alone(config: SimpleNamespace, steps: int) -> list[Phase]:
    """DreamerV2 online: random steps, the first updates, then ``steps`` agent steps."""
    return [
        Phase("prefill", config.prefill),
        Phase("source_updates", config.pretrain),
        Phase("source", steps),
    ]


# One function a phase. Each counts its iterations through `run.iterations`, which also resumes, saves and logs.


def prefill(run: Run, phase: Phase) -> None:
    """Random steps in the source simulator, so that there is something to learn from."""
    for _ in run.iterations(phase, len(run.collector)):
        run.collector.step()
        run.progress.source_steps += len(run.collector)


def source_updates(run: Run, phase: Phase) -> None:
    """Updates of the source agent without stepping its simulator."""
    for _ in run.iterations(phase):
        update_source(run, aligned=False)


def source(run: Run, phase: Phase) -> None:
    """Online phase: step the source simulator; train the source agent (Eq. 2, with Eq. 5 where aligned) meanwhile."""
    policy, stride = agent_policy(run.source, sample=True), len(run.collector)
    for _ in run.iterations(phase, stride):
        run.collector.start(policy)
        run.progress.source_steps += stride
        run.progress.aligned_steps += stride * phase.aligned
        for _ in range(times_passed(run.progress.source_steps, stride, run.config.train_every)):
            update_source(run, phase.aligned)
        run.collector.finish()


def update_source(run: Run, aligned: bool) -> None:
    batch, target_batch = run.batch("source"), run.batch("target") if aligned else None
    if target_batch and run.source.world.state:  # it cannot see images: the target's encoder lends it its eyes
        target_batch["embed"] = run.target.embed(target_batch)
    run.logger.add("source", run.source.update(batch, target_batch, step=run.progress.aligned_steps))
    run.progress.source_updates += 1


def target_model(run: Run, phase: Phase) -> None:
    """Warm-up: the target's world model alone (Eq. 3)."""
    for _ in run.iterations(phase):
        update_target(run, run.target.update_model)


def target(run: Run, phase: Phase) -> None:
    """Offline phase: train the target agent on the dataset (Eq. 3, imagine, Eq. 6, Eq. 7)."""
    for _ in run.iterations(phase):
        run.progress.target_iterations += 1
        if times_passed(run.progress.target_iterations, 1, run.config.train_every):
            update_target(run, run.target.update)


def update_target(run: Run, update: Callable[..., Metrics]) -> None:
    source_batches = [run.batch("source")] if run.source.world.state else None
    run.logger.add("target", update(run.batch("target"), [run.source], source_batches))
    run.progress.target_updates += 1


def evaluate_random(run: Run, phase: Phase) -> None:
    """The random policy's score in the domain's simulator: what learning has to beat."""
    record_score(run, phase, run.score(None, phase.domain))


def evaluate(run: Run, phase: Phase) -> None:
    """Score the domain's agent, acting with its mode. Of the target's simulator there is no other use."""
    agent = {"source": run.source, "target": run.target}[phase.domain]
    scores = run.score(agent_policy(agent, sample=False), phase.domain)
    record_score(run, phase, scores)
    run.logger.video(f"{phase.domain}/evaluation", scores.frames, run.progress.step)
    run.last_score = scores.mean


def record_score(run: Run, phase: Phase, scores: Scores) -> None:
    """A line of scores.csv, and a point of the evaluation curves."""
    counts = {k: getattr(run.progress, k) for k in ("step", "source_steps", "target_updates")}
    success = "" if scores.success is None else scores.success
    results = {"mean": scores.mean, "std": scores.std, "success": success, "episodes": len(scores.returns)}
    run.logger.score(domain=phase.domain, phase=phase.kind, round=phase.round, **counts, **results)


PHASES = {f.__name__: f for f in (prefill, source_updates, source, target_model, target, evaluate_random, evaluate)}


def train(run: Run, until: Callable[[Run], bool] = lambda run: False) -> None:
    """Every phase that is left, in order, or ``until`` holds after one. `Interrupted` on Ctrl-C or SIGTERM."""
    for phase in run.phases[run.progress.phase :]:
        if until(run):
            return
        PHASES[phase.kind](run, phase)
        run.finish_phase(phase)


def summary(run: Run) -> str:
    """The scores of a finished run as a short table."""
    rows = [row for row in pictures.read_scores(run.logdir) if row["domain"] == "target"]
    lines = [f"{run.tasks['target']:24} {'return':>9} {'+-':>7} {'success':>8} {'target updates':>15}"]
    for row in rows:
        name = "random policy" if row["phase"] == "evaluate_random" else f"CoWorld, before round {row['round']}"
        if row is rows[-1]:
            name = "CoWorld, at the end"
        success = f"{float(row['success']):.0%}" if row["success"] else "-"
        lines.append(
            f"{name:24} {float(row['mean']):9.1f} {float(row['std']):7.1f} {success:>8} {row['target_updates']:>15}"
        )
    return "\n".join([*lines, f"run directory: {run.logdir}"])


def default_logdir(config: SimpleNamespace) -> Path:
    """Determined by the command, so that the same command finds its run again."""
    tasks = [str(parse_task(t)) for t in (config.source_task, config.target_task)]
    return Path("runs") / "-".join([tasks[0], "to", tasks[1], *config.configs, f"seed{config.seed}"])


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
    except RuntimeError as error:  # what torch raises when it samples a latent from NaN
        if "probability tensor contains" not in str(error):
            raise
        raise BadInput(f"the world model's latents are not finite: {DIVERGED}") from None
    finally:
        run.close()


def main(arguments: list[str] | None = None) -> None:
    config, _ = settings.parse(settings.parser(__doc__), arguments)
    for key in ("source_task", "target_task", "offline_traindir"):
        if not getattr(config, key):
            raise BadInput(f"--{key} is missing (see --help)")
    config.logdir = config.logdir or str(default_logdir(config))
    run = Run(config, algorithm_1(config))
    carry_out(run)
    print(summary(run))


if __name__ == "__main__":
    exit_on_bad_input(main)

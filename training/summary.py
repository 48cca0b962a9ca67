"""The end of a run: its pictures, a table of its scores and offline figures, and the verdict on its agent."""

from collections.abc import Collection, Iterable, Sequence

from training.logger import OFFLINE_COLUMNS, OFFLINE_PREFIX, curve_name, read_scores
from training.methods import PhaseKind
from training.trainer import Trainer
from training.verdict import Evidence, verdict
from training.visuals import CONTEXT, open_loop_images

OFFLINE_TABLE = {  # figure -> heading; the order of the table and of the picture
    "image_loss": "image loss",
    "reward_loss": "reward loss",
    "kl": "KL",
    "open_loop_error": "open loop",
    "value_correlation": "value corr.",
    "value_bias": "value bias",
    "action_distance": "action dist.",
    "source_return_correlation": "source corr.",
    "source_own_return_correlation": "own latents",
    "source_latents_correlation": "both latents",
}
Row = dict[str, str]  # a line of scores.csv


def offline_headings(found: Iterable[Collection[str]]) -> dict[str, str]:
    """The part of `OFFLINE_TABLE` with the figures that are in any of ``found``, each with names of figures."""
    names = set().union(*found)
    return {name: heading for name, heading in OFFLINE_TABLE.items() if name in names}


def offline_figures(row: Row) -> dict[str, float]:
    """The offline figures of a line of scores.csv, by name; {} if it has none."""
    return {key.removeprefix(OFFLINE_PREFIX): float(row[key]) for key in OFFLINE_COLUMNS if row.get(key)}


def evidence(trainer: Trainer, rows: Sequence[Row]) -> Evidence:
    """What is known of the target agent at the end of a run with these lines of scores.csv."""
    evaluated = [row for row in rows if row["domain"] == "target" and row["phase"] == PhaseKind.EVALUATE]
    last = evaluated[-1] if evaluated else {}
    return Evidence(
        score=float(last["mean"]) if last.get("mean") else None,
        data=trainer.dataset and tuple(trainer.dataset.figures),
        time_limit=trainer.config.time_limit,
        value=trainer.logger.latest.get(curve_name("target", "value")),
        offline=offline_figures(last),
        limits=trainer.limits,
    )


def draw_summary(trainer: Trainer) -> None:
    """predictions.png, what the agents see and predict at the end; scores.png and offline.png, if there are such.

    The last two have the verdict in their titles.
    """
    from training.pictures import line_panels, prediction_sheet, score_curve

    logdir, seed = trainer.logdir, (trainer.config.seed, trainer.progress.step)
    images = open_loop_images(trainer.domains, 1, seed)
    if images:
        sheets = {name: (truth[0], predicted[0]) for name, (truth, predicted) in images.items()}
        cameras = {name: trainer.domains[name].cameras for name in sheets}
        prediction_sheet(sheets, CONTEXT, logdir / "predictions.png", cameras)
    rows = read_scores(logdir, evaluated=True)
    warning = verdict(evidence(trainer, rows))
    if scored := [row for row in rows if row["mean"]]:
        score_curve(scored, logdir.name, logdir / "scores.png", warning)
    if evaluated := [row for row in rows if offline_figures(row)]:
        curves = {
            heading: [(int(row["step"]), offline_figures(row).get(name)) for row in evaluated]
            for name, heading in OFFLINE_TABLE.items()
        }
        line_panels(curves, "iterations", f"{logdir.name}: held-out episodes", logdir / "offline.png", warning)


def summary(trainer: Trainer) -> str:
    """The scores of a finished run as a short table, its offline figures as another one, or both.

    With several sources, also how often each was selected. At the end: the verdict, if there is one.
    """
    tasks = [str(domain.task) for domain in trainer.domains.values()]
    rows = [row for row in read_scores(trainer.logdir, evaluated=True) if row["domain"] == "target"]
    warning = verdict(evidence(trainer, rows))
    labels = row_labels(rows, trainer.config.method)
    width = max(map(len, [*labels, *tasks])) + 10
    named = list(zip(labels, rows, strict=True))
    lines = [
        *score_lines([(label, row) for label, row in named if row["mean"]], str(trainer.target.task), width),
        *offline_lines([(label, row) for label, row in named if offline_figures(row)], trainer, width),
        *selection_lines(trainer, width),
    ]
    return "\n".join([*lines, f"run directory: {trainer.logdir}", *[warning] * bool(warning)])


def row_labels(rows: Sequence[Row], method: str) -> list[str]:
    """A label for each evaluation: the random policy, or the method and when it was evaluated."""
    labels = []
    for row in rows:
        before = f"{method}, before round {row['round']}"
        longer = before in labels or row["round"] == "0"  # the run was made longer, perhaps from no rounds
        earlier = f"{method}, at an earlier end" if longer else before
        labels.append("random policy" if row["phase"] == "evaluate_random" else earlier)
    if rows[-1]["phase"] == "evaluate":
        labels[-1] = f"{method}, at the end"
    return labels


def score_lines(rows: Sequence[tuple[str, Row]], task: str, width: int) -> list[str]:
    """The scores, in simulators, of labelled evaluations; [] if there are none."""
    lines = [f"{task:{width}} {'return':>9} {'+-':>7} {'success':>8} {'target updates':>15}"] if rows else []
    for label, row in rows:
        success = f"{float(row['success']):.0%}" if row["success"] else "-"
        figures = f"{float(row['mean']):9.1f} {float(row['std']):7.1f} {success:>8} {row['target_updates']:>15}"
        lines.append(f"{label:{width}} {figures}")
    return lines


def offline_lines(rows: Sequence[tuple[str, Row]], trainer: Trainer, width: int) -> list[str]:
    """The offline figures of labelled evaluations; [] if there are none."""
    if not rows:
        return []
    columns = offline_headings(offline_figures(row) for _, row in rows)
    headings = " ".join(f"{heading:>12}" for heading in columns.values())
    lines = [f"{f'{trainer.target.task}, offline figures':{width}} {headings} {'target updates':>15}"]
    for label, row in rows:
        found = offline_figures(row)
        texts = (f"{found[name]:.4g}" if name in found else "-" for name in columns)
        lines.append(f"{label:{width}} {' '.join(f'{text:>12}' for text in texts)} {row['target_updates']:>15}")
    return lines


def selection_lines(trainer: Trainer, width: int) -> list[str]:
    """How often each of several sources was selected."""
    counts = trainer.selector.total_counts
    if not sum(counts):
        return []
    lines = [f"{'source':{width}} {'selected':>9} of {sum(counts)} target updates"]
    for source, count in zip(trainer.sources, counts, strict=True):
        lines.append(f"{f'{source.name} {source.task}':{width}} {count / sum(counts):9.0%}")
    return lines

"""The report as Markdown: tables by suite, normalised scores, and lists of what is missing or remarkable."""

from analysis.cells import Cell, Results, average
from analysis.interquartile import RESAMPLES, Interval
from analysis.rows import RANDOM, Column, cell_name, grouped, label_order

SUITE_NAMES = {"dmc": "DeepMind Control", "metaworld": "Meta-World", "robodesk": "RoboDesk"}


def number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}"


def cell_text(cell: Cell | None, percent: bool = False) -> str:
    """``mean +- deviation (seeds)``, the deviation with as many digits as the mean; ``percent`` for shares."""
    if cell is None:
        return "-"
    scale = 100 if percent else 1
    digits = 0 if percent or abs(cell.mean) >= 100 else 1
    spread = "" if cell.std is None else f" +- {scale * cell.std:.{digits}f}"
    unfinished = f", {cell.unfinished} unfinished" if cell.unfinished else ""
    return f"{scale * cell.mean:.{digits}f}{spread} ({cell.seeds}{unfinished})"


def average_text(cells: list[Cell | None], percent: bool) -> str:
    mean, filled = average(cells), sum(cell is not None for cell in cells)
    if mean is None:
        return "-"
    text = f"{100 * mean:.0f}" if percent else number(mean)
    return text if filled == len(cells) else f"{text} ({filled} of {len(cells)} tasks)"


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A table whose first column is left-aligned and the others right-aligned, padded to be read as plain text too."""
    table = [[text.replace("|", "/") for text in row] for row in [header, *rows]]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]

    def line(row: list[str]) -> str:
        first, *others = (f"{text:{'<' if i == 0 else '>'}{widths[i]}}" for i, text in enumerate(row))
        return f"| {' | '.join([first, *others])} |"

    rule = [":" + "-" * (widths[0] - 1), *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([line(table[0]), f"| {' | '.join(rule)} |", *map(line, table[1:])])


def suite_table(results: Results, suite: str, columns: list[Column], measure: str) -> str | None:
    """Rows by method, columns by pair, and the average; None where the suite has no such measure."""
    percent, rows = measure == "success", []
    for label in [RANDOM, *results.suite_labels(suite)]:
        cells = [results.cell(label, column, measure) for column in columns]
        if any(cells) or label != RANDOM:
            rows.append([label, *(cell_text(cell, percent) for cell in cells), average_text(cells, percent)])
    if all(text == "-" for row in rows for text in row[1:]):
        return None
    return markdown(["method", *map(str, columns), "average"], rows)


def score_sections(results: Results) -> list[str]:
    lines = [
        "Mean +- sample standard deviation over seeds of the last evaluation's mean, and the number of seeds. Methods "
        "with no source or several stand in every column of their target. Averages are over columns."
    ]
    for suite, columns in results.suites.items():
        returns, success = (suite_table(results, suite, columns, measure) for measure in ("mean", "success"))
        lines += [f"## {SUITE_NAMES[suite]}: return", returns]
        if success:
            lines += [f"## {SUITE_NAMES[suite]}: success rate, %", success]
    return lines


def normalised_section(results: Results, means: dict[str, Interval]) -> list[str]:
    if not means:
        return []
    rows = []
    for label, mean in means.items():
        interval = "needs 2 seeds a task" if mean.low is None else f"{mean.low:.3f} to {mean.high:.3f}"
        rows.append([label, f"{mean.iqm:.3f}", interval, str(mean.tasks), str(mean.runs)])
    scale = [
        [str(t), number(results.random[t]) if t in results.random else "-", f"{results.maximum[t]:g}"]
        for t in results.maximum
    ]
    return [
        "## Normalised score: interquartile mean over all tasks and seeds",
        markdown(["method", "IQM", "95% interval", "tasks", "runs"], rows),
        "Normalised as (score - random) / (max - random), with the values below: random is the runs' own evaluation of "
        "the random policy, max is --max_score or max_scores.yaml. The interval is a percentile bootstrap that draws "
        f"seeds anew within each task ({RESAMPLES} times, seeded). A task is a pair, or a target for methods with no "
        "source or several. Rows with other tasks do not compare.",
        markdown(["target", "random", "max"], scale),
    ]


def missing_cells(results: Results) -> list[str]:
    """A line for each row with columns that have no run, and for each cell with fewer seeds than the fullest one."""
    lines, cells = [], grouped(results.runs, lambda run: (run.label, cell_name(run)))
    for suite, columns in results.suites.items():
        for label in results.suite_labels(suite):
            gaps = [str(column) for column in columns if not results.cell_runs(label, column)]
            if gaps:
                lines.append(f"{label}: no run for {', '.join(gaps)}")
    most = max(map(len, cells.values()))
    for (label, name), runs in sorted(cells.items(), key=lambda item: (label_order(item[0][0]), item[0][1])):
        if len(runs) < most:
            seeds = ", ".join(map(str, sorted(run.seed for run in runs)))
            lines.append(f"{label}, {name}: {len(runs)} of {most} seeds (has {seeds})")
    return lines


def bullets(title: str, lines: list[str]) -> list[str]:
    return [f"## {title}", "\n".join(f"- {line}" for line in lines)] if lines else []

"""The report as Markdown: tables by suite, normalised scores, and lists."""

from analysis.cells import Cell, Results, average
from analysis.interquartile import RESAMPLES, InterquartileMean
from analysis.rows import RANDOM, TaskPair
from wrappers import SUITES


def number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}"


def cell_text(cell: Cell | None, percent: bool = False) -> str:
    """``mean +- deviation (seeds)``, the deviation with as many digits as the mean; ``percent`` for shares."""
    if cell is None:
        return "-"
    scale = 100 if percent else 1
    digits = 0 if percent or abs(cell.mean) >= 100 else 1
    spread = "" if cell.std is None else f" +- {scale * cell.std:.{digits}f}"
    return f"{scale * cell.mean:.{digits}f}{spread} ({cell.seeds})"


def average_text(cells: list[Cell | None], percent: bool) -> str:
    mean, filled = average(cells), sum(cell is not None for cell in cells)
    if mean is None:
        return "-"
    text = f"{100 * mean:.0f}" if percent else number(mean)
    return text if filled == len(cells) else f"{text} ({filled} of {len(cells)} tasks)"


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A table whose first column is left-aligned and the others right-aligned. Padding aligns it as plain text too."""
    table = [[text.replace("|", "/") for text in row] for row in [header, *rows]]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]

    def line(row: list[str]) -> str:
        first, *others = (f"{text:{'<' if i == 0 else '>'}{widths[i]}}" for i, text in enumerate(row))
        return f"| {' | '.join([first, *others])} |"

    rule = [":" + "-" * (widths[0] - 1), *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([line(table[0]), f"| {' | '.join(rule)} |", *map(line, table[1:])])


def suite_table(results: Results, suite: str, columns: list[TaskPair], measure: str) -> str | None:
    """A row for each label, a column for each pair, and the average; None if the suite has no values of ``measure``."""
    percent, rows = measure == "success", []
    for label in [RANDOM, *results.suite_labels(suite)]:
        cells = [results.cell(label, column, measure) for column in columns]
        if any(cells) or label != RANDOM:
            rows.append([label, *(cell_text(cell, percent) for cell in cells), average_text(cells, percent)])
    if all(text == "-" for row in rows for text in row[1:]):
        return None
    return markdown(["method", *map(str, columns), "average"], rows)


def score_sections(results: Results, last: int) -> list[str]:
    if not results.runs:
        return []  # all targets are without a simulator
    score = "last evaluation's mean" if last == 1 else f"mean of the last {last} evaluations"
    lines = [
        f"Mean +- sample standard deviation over seeds of the {score}, and the number of seeds. Methods "
        "with no source, or with several, are in every column of their target. Averages are over columns."
    ]
    for suite, columns in results.suites.items():
        title = SUITES[suite].title
        returns, success = (suite_table(results, suite, columns, measure) for measure in ("mean", "success"))
        lines += [f"## {title}: return", returns]
        if success:
            lines += [f"## {title}: success rate, %", success]
    return lines


def normalised_section(results: Results, means: dict[str, InterquartileMean]) -> list[str]:
    if not means:
        return []
    rows = []
    for label, mean in means.items():
        interval = "needs 2 seeds a task" if mean.low is None else f"{mean.low:.3f} to {mean.high:.3f}"
        rows.append([label, f"{mean.iqm:.3f}", interval, str(mean.tasks), str(mean.runs)])
    scale = [
        [str(target), number(results.random[target]) if target in results.random else "-", f"{maximum:g}"]
        for target, maximum in results.maximum.items()
    ]
    return [
        "## Normalised score: interquartile mean over all tasks and seeds",
        markdown(["method", "IQM", "95% interval", "tasks", "runs"], rows),
        "Normalised as (score - random) / (max - random), with the values below: random is the runs' own evaluation of "
        "the random policy, max is --max_score or the suite's known maximum. The interval is a percentile bootstrap "
        f"that resamples the seeds of each task ({RESAMPLES} times, with a fixed seed). A task is a pair, or a target "
        "for methods with no source or with several. Rows with different tasks cannot be compared.",
        markdown(["target", "random", "max"], scale),
    ]


def report_text(runs: int, sections: list[str], lists: dict[str, list[str]]) -> str:
    """The whole report. ``lists``: title -> lines, each list a section with bullets; empty ones are left out."""
    parts = [f"# Report on {runs} run{'s' * (runs > 1)}", *sections]
    for title, lines in lists.items():
        if lines:
            parts += [f"## {title}", "\n".join(f"- {line}" for line in lines)]
    return "\n\n".join(parts) + "\n"

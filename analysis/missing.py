"""Missing cells: a matrix of methods and pairs of tasks for each suite."""

from analysis.cells import Results
from analysis.markdown import markdown
from analysis.rows import group_by, pair_of
from analysis.runs import RunResult
from wrappers import SUITES

WIDEST = 6  # columns of a matrix; more are in further matrices


def cell_seeds(runs: list[RunResult], most: int) -> str:
    """``2/3 (has 0, 2)``: the seeds of a cell and the number of the fullest cell. Empty if none is missing."""
    if len(runs) >= most:
        return ""
    seeds = ", ".join(map(str, sorted(run.seed for run in runs)))
    return f"{len(runs)}/{most} (has {seeds})" if runs else f"0/{most}"


def missing_section(results: Results) -> list[str]:
    """Heading and matrices of the cells with fewer seeds than the fullest cell; nothing if all have as many.

    A matrix has only the rows and columns of a suite in which something is missing.
    """
    most = max(map(len, group_by(results.runs, lambda run: (run.label, pair_of(run), run.sources)).values()), default=0)
    matrices = [part for suite in results.suites for part in suite_matrices(results, suite, most)]
    if not matrices:
        return []
    text = (
        "Seeds in a cell / seeds in the fullest cell. Methods and pairs with all seeds are not shown; - is a full cell."
    )
    return ["## Missing", text, *matrices]


def suite_matrices(results: Results, suite: str, most: int) -> list[str]:
    """The matrices of a suite, with the methods that have all seeds below them."""
    columns, labels = results.suites[suite], results.suite_labels(suite)
    cells = {
        (label, column): cell_seeds(results.cell_runs(label, column), most) for label in labels for column in columns
    }
    rows = [label for label in labels if any(cells[label, column] for column in columns)]
    gaps = [column for column in columns if any(cells[label, column] for label in rows)]
    parts = []
    for start in range(0, len(gaps), WIDEST):
        shown = gaps[start : start + WIDEST]
        here = [label for label in rows if any(cells[label, column] for column in shown)]
        header = [f"method ({SUITES[suite].title})", *map(str, shown)]
        parts.append(markdown(header, [[label, *(cells[label, column] or "-" for column in shown)] for label in here]))
    whole = [label for label in labels if label not in rows]
    if parts and whole:
        parts.append(f"With all seeds on all {len(columns)} pairs: {'; '.join(whole)}.")
    return parts

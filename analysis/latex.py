r"""The tables as LaTeX: a file with one tabular each, for \input in a paper, and report.tex, which compiles by itself.

Rows are pairs of tasks and columns are methods, so that many pairs fit on a page. Methods that do not fit into the
width are in further tables.
"""

import math
import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from analysis.cells import Cell, Results, average
from analysis.improvement import Improvement, against_reference
from analysis.interquartile import InterquartileMean
from analysis.markdown import number
from analysis.rows import RANDOM, TaskPair
from tools import write_text
from wrappers import SUITES

WIDTH = 120  # characters of a line of a table, at \footnotesize on 17 cm
LONGEST_LABEL = 45  # characters of a method in a first column
MOST_ROWS = 40  # of a table on a page
SPECIAL = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}", **{character: f"\\{character}" for character in "&%$#_{}"},
}  # fmt: skip
WRAPPER = r"""\documentclass{article}
\usepackage[a4paper,margin=2cm]{geometry}
\usepackage{booktabs,graphicx}
\title{Report on %s}
\date{}
\begin{document}
\maketitle
%s
\end{document}
"""


class LatexTable(NamedTuple):
    """A tabular, the name of its file without ``.tex``, and its caption, which is LaTeX too."""

    name: str
    caption: str
    tabular: str


def escape(text: str) -> str:
    """Plain text as LaTeX; ``->`` is an arrow. A character that LaTeX's basic fonts lack is a question mark."""
    text = text.encode("latin-1", "replace").decode("latin-1")
    parts = text.split("->")
    return r"$\rightarrow$".join("".join(SPECIAL.get(character, character) for character in part) for part in parts)


def stacked(label: str) -> str:
    """A heading with a line for each word of a label, so that the column is narrow."""
    lines = [escape(word) for word in label.split()]
    return lines[0] if len(lines) == 1 else r"\shortstack[r]{" + r" \\ ".join(lines) + "}"


def row_heading(label: str) -> str:
    """A label in the first column: a long one has a line for each of its parts."""
    parts = [escape(part) for part in label.split(", ")]
    return ", ".join(parts) if len(label) <= LONGEST_LABEL else r"\shortstack[l]{" + r", \\ ".join(parts) + "}"


def tabular(header: list[str], rows: list[list[str]], last: bool = False) -> str:
    """A table with booktabs' rules: the first column left-aligned, a rule before the last row if ``last``."""
    lines = [f"{' & '.join(row)} \\\\" for row in rows]
    lines[-1:] = [r"\midrule", lines[-1]] if last else [lines[-1]]
    body = "\n".join([r"\toprule", f"{' & '.join(header)} \\\\", r"\midrule", *lines, r"\bottomrule"])
    return f"\\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}\n{body}\n\\end{{tabular}}\n"


def cell_text(cell: Cell | None, percent: bool, bold: bool, seeds: int) -> str:
    r"""``mean $\pm$ deviation``, in bold if the method is the best; the seeds if they are not the usual number."""
    if cell is None:
        return "--"
    scale, digits = (100, 0) if percent else (1, 0 if abs(cell.mean) >= 100 else 1)
    mean = f"{scale * cell.mean:.{digits}f}"
    spread = "" if cell.std is None else rf" $\pm$ {scale * cell.std:.{digits}f}"
    few = f" ({cell.seeds})" if cell.seeds != seeds else ""
    return (rf"\textbf{{{mean}}}" if bold else mean) + spread + few


def score_rows(
    results: Results, labels: list[str], columns: list[TaskPair], measure: str, seeds: int
) -> list[list[str]]:
    """A row for each pair of tasks, then the averages. The highest mean of a row is bold; of the averages, the highest
    of the methods that have all pairs. All methods of ``labels`` are compared."""
    percent, rows = measure == "success", []
    for column in columns:
        cells = [results.cell(label, column, measure) for label in labels]
        best = max((cell.mean for cell in cells if cell), default=None)
        texts = [cell_text(cell, percent, cell is not None and cell.mean == best, seeds) for cell in cells]
        rows.append([escape(str(column)), *texts])
    cells = {label: [results.cell(label, column, measure) for column in columns] for label in labels}
    means = {label: average(found) for label, found in cells.items()}
    best = max((means[label] for label in labels if all(cells[label])), default=None)
    rows.append(["average"])
    for label in labels:
        filled, mean = sum(cell is not None for cell in cells[label]), means[label]
        text = "--" if mean is None else f"{100 * mean:.0f}" if percent else number(mean)
        text = rf"\textbf{{{text}}}" if filled == len(columns) and mean == best else text
        rows[-1].append(text if filled in (0, len(columns)) else f"{text} ({filled}/{len(columns)})")
    return rows


def method_blocks(labels: list[str], rows: list[list[str]]) -> list[list[int]]:
    """Indices of the methods of each table: each fits into `WIDTH`, and all have about equally many."""

    def width(texts: list[str]) -> int:
        return max(len(re.sub(r"\\textbf|\\rightarrow|pm|[\\${}]", "", text)) for text in texts) + 2

    first = width([row[0] for row in rows])
    needed = [max(width(label.split()), width([row[1 + i] for row in rows])) for i, label in enumerate(labels)]

    def split(most: int) -> list[list[int]]:
        blocks, used = [], WIDTH
        for index, more in enumerate(needed):
            if used + more > WIDTH or len(blocks[-1]) == most:
                blocks.append([])
                used = first
            blocks[-1].append(index)
            used += more
        return blocks

    fewest = split(len(labels))
    even = split(math.ceil(len(labels) / len(fewest)))
    return even if len(even) == len(fewest) else fewest


def score_tables(results: Results) -> list[LatexTable]:
    """The tables of returns and success rates, for each suite."""
    tables = []
    for suite, columns in results.suites.items():
        for measure, name in (("mean", "return"), ("success", "success")):
            labels = [RANDOM, *results.suite_labels(suite)]
            cells = {label: [results.cell(label, column, measure) for column in columns] for label in labels}
            labels = [label for label in labels if any(cells[label])]
            if not labels:
                continue
            seeds = Counter(cell.seeds for label in labels for cell in cells[label] if cell).most_common(1)[0][0]
            rows = score_rows(results, labels, columns, measure, seeds)
            caption = escape(SUITES[suite].title) + (": return. " if measure == "mean" else r": success rate, \%. ")
            caption += r"Mean $\pm$ sample standard deviation over seeds"
            caption += f" ({seeds}, unless a number says otherwise). Bold: highest mean of a row."
            parts = blocks(labels, rows)
            caption += f" In {len(parts)} tables; bold: of all of them." if len(parts) > 1 else ""
            for part, (methods, some) in enumerate(parts, start=1):
                header = ["", *(stacked(labels[i]) for i in methods)]
                body = [[row[0], *(row[1 + i] for i in methods)] for row in some]
                suffix = "" if part == 1 else f"-{part}"
                last = body[-1][0] == "average"
                tables.append(LatexTable(f"table-{name}-{suite}{suffix}", caption, tabular(header, body, last)))
    return tables


def blocks(labels: list[str], rows: list[list[str]]) -> list[tuple[list[int], list[list[str]]]]:
    """(methods, rows) of each table that a large table is split into."""
    parts = [rows[start : start + MOST_ROWS] for start in range(0, len(rows), MOST_ROWS)]
    return [(methods, some) for some in parts for methods in method_blocks(labels, rows)]


def comparison_tables(
    means: dict[str, InterquartileMean], found: dict[tuple[str, str], Improvement]
) -> list[LatexTable]:
    """Interquartile means and probabilities of improvement, if there are any."""
    tables = []
    if means:
        best = max(mean.iqm for mean in means.values())
        rows = []
        for label, mean in means.items():
            iqm = rf"\textbf{{{mean.iqm:.3f}}}" if mean.iqm == best else f"{mean.iqm:.3f}"
            interval = "--" if mean.low is None else f"[{mean.low:.3f}, {mean.high:.3f}]"
            rows.append([row_heading(label), iqm, interval, str(mean.tasks), str(mean.runs)])
        caption = r"Normalised score: interquartile mean, 95\% interval (stratified bootstrap). Bold: highest."
        header = ["", "IQM", r"95\% interval", "tasks", "runs"]
        tables.append(LatexTable("table-normalised", caption, tabular(header, rows)))
    if found:
        reference, others = against_reference(found)
        rows = [
            [row_heading(other), f"{value.probability:.2f}",
             "--" if value.low is None else f"[{value.low:.2f}, {value.high:.2f}]", str(value.tasks)]
            for other, value in others.items()
        ]  # fmt: skip
        caption = rf"Probability of improvement of $X$, {escape(reference)}, over each method $Y$, with 95\% intervals."
        header = ["$Y$", "$P(X > Y)$", r"95\% interval", "tasks"]
        tables.append(LatexTable("table-improvement", caption, tabular(header, rows)))
    return tables


def write_latex(out: Path, runs: int, tables: list[LatexTable], pictures: list[str]) -> list[str]:
    """Write the tables and report.tex, which includes them and the PDF of each picture. Returns the files' names."""
    parts = []
    for name, caption, text in tables:
        write_text(out / f"{name}.tex", f"% {caption}\n% Needs \\usepackage{{booktabs}}.\n{text}")
        parts.append(
            f"\\begin{{table}}[htbp]\n\\centering\\footnotesize\\setlength{{\\tabcolsep}}{{4pt}}\n"
            f"\\caption{{{caption}}}\n\\input{{{name}}}\n\\end{{table}}"
        )
    for index, picture in enumerate(pictures):
        file = Path(picture).with_suffix(".pdf").name
        options = r"width=\linewidth,height=0.42\textheight,keepaspectratio"
        parts.append(
            ("\\clearpage\n" if index % 4 == 0 else "")
            + f"\\begin{{figure}}[htbp]\n\\centering\n\\includegraphics[{options}]{{{file}}}\n"
            f"\\caption{{{escape(Path(picture).stem)}}}\n\\end{{figure}}"
        )
    write_text(out / "report.tex", WRAPPER % (f"{runs} run{'s' * (runs > 1)}", "\n\n".join(parts)))
    return [*(f"{table.name}.tex" for table in tables), "report.tex"]

"""The files of a report: reads run directories, computes, and writes tables and pictures."""

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from analysis.cells import Results, compute_results
from analysis.conditions import choose_runs, condition_notes, refuse_duplicates
from analysis.csv_rows import curve_rows, run_rows, table_rows
from analysis.curves import draw_all_curves
from analysis.heatmap import choose_baseline, draw_heatmap, heatmap_panels
from analysis.improvement import Improvement, draw_improvement, improvement_section, improvements
from analysis.interquartile import interquartile_means
from analysis.latex import comparison_tables, score_tables, write_latex
from analysis.markdown import normalised_section, report_text, score_sections
from analysis.missing import missing_section
from analysis.offline import correlation_section, correlations, offline_section
from analysis.offline_curves import draw_offline_curves
from analysis.paired import paired_differences, paired_section, unpaired_notes
from analysis.profiles import Profile, draw_profiles, performance_profiles, profile_rows, profiles_section
from analysis.rows import name_rows, set_labels
from analysis.runs import RunResult, leave_out_short_runs, read_runs, run_folders
from analysis.separation import separate_rows
from analysis.verdicts import verdict_section
from tools import BadInput, one_line, write_csv, write_text

TITLE = "# Report on "  # begins table.md
CSV_FILES = ("cells", "curves", "table", "profiles", "offline", "paired")


def write_report(
    folders: Sequence[Path],
    out: Path,
    *,
    unfinished: bool = False,
    by: Sequence[str] = (),
    name: Sequence[str] = (),
    max_score: Sequence[str] = (),
    x: str | None = None,
    heatmap: str | None = None,
    last: int = 1,
    reference: str | None = None,
) -> str:
    """Read all runs under ``folders`` and write tables and pictures to ``out``.

    Runs that cannot be read are left out, with a warning on stderr and a note in the report.

    Args:
        folders: folders that contain run directories, or run directories.
        out: folder to write; made if it does not exist.
        unfinished: include runs that have no last evaluation yet.
        by: settings; runs that differ in one are in rows of their own.
        name: texts ``SETTINGS=NAME``; the name takes the place of these settings in a row's label.
        max_score: texts ``RETURN`` or ``TASK=RETURN``, the return with the normalised score 1.
        x: horizontal axis of the curves, a key of `curves.AXES`; None chooses it.
        heatmap: ``return``, ``improvement`` or None, which chooses.
        last: the score of a run is the mean of so many of its last evaluations.
        reference: a row; the others' differences to it are computed, paired by seed.

    Returns the report as text, with the names of the files at the end. Raises BadInput if there is no run, two runs
    have the same cell and seed, an argument is wrong, or ``out`` cannot be written, before anything is written.
    """
    by, (runs, left_out) = list(by), find_runs(list(folders))
    average_evaluations(runs, last)
    chosen, not_finished = name_chosen(runs, unfinished, by, list(name))
    results = compute_results([run for run in chosen if run.target.suite], list(max_score))
    baseline, agreement = choose_baseline(results, heatmap), correlations(chosen)
    paired = paired_differences(chosen, reference) if reference else []
    means, profiles, improved = interquartile_means(results), performance_profiles(results), improvements(results)
    notes = [*left_out, *results.notes(), *condition_notes(chosen, by)]
    notes += unpaired_notes(chosen, paired, reference) if reference else []
    where = "in rows of their own" if unfinished else "not in the tables; --unfinished includes them"
    sections = [*score_sections(results, last), *normalised_section(results, means)]
    sections += [*profiles_section(profiles, results), *improvement_section(improved), *missing_section(results)]
    sections += [*offline_section(chosen), *paired_section(paired), *correlation_section(agreement)]
    sections += verdict_section(chosen)
    text = report_text(len(chosen), sections, {f"Not finished ({where})": not_finished, "Notes": notes})
    earlier = make_folder(out)
    pictures = draw_pictures(results, chosen, x, baseline, profiles, improved, out)
    write_text(out / "table.md", text + "\n" + "\n".join(f"![{p}]({p})" for p in pictures) + "\n")
    lines = {"cells": run_rows(runs, results, set(chosen)), "curves": curve_rows(runs, set(chosen))}
    lines |= {"table": table_rows(results, means, improved), "profiles": profile_rows(profiles)}
    lines |= {"offline": agreement, "paired": paired}
    written = write_lines(lines, out)
    latex = write_latex(out, len(chosen), [*score_tables(results), *comparison_tables(means, improved)], pictures)
    files = [out / name for name in ("table.md", *written, *latex, *pictures)]
    remove_earlier(earlier, files)
    return f"{text}\nwritten, each picture as PDF too: {' '.join(map(str, files))}"


def find_runs(folders: list[Path]) -> tuple[list[RunResult], list[str]]:
    """The runs below ``folders``, and a line for each that is left out, which is printed as a warning too."""
    runs, left_out = read_runs(run_folders(folders))
    runs, short = leave_out_short_runs(runs, folders)
    for line in [*left_out, *short]:
        print(f"warning: {line}", file=sys.stderr)
    return runs, [*left_out, *short]


def name_chosen(
    runs: list[RunResult], unfinished: bool, by: list[str], name: list[str]
) -> tuple[list[RunResult], list[str]]:
    """The runs that are in the tables, with their labels, and a line for each that is not finished."""
    set_labels(runs, by)
    chosen, not_finished = choose_runs(runs, unfinished)
    separate_rows(chosen, by)
    refuse_duplicates(chosen)
    name_rows(runs, name)
    return chosen, not_finished


def average_evaluations(runs: list[RunResult], last: int) -> None:
    """Make each run's score the mean of its ``last`` evaluations. Raises BadInput if a finished run has fewer."""
    if last < 1:
        raise BadInput(f"--last {last}: give 1 or more")
    for run in runs:
        if run.finished and len(run.scores) < last:
            raise BadInput(f"--last {last}: {run.folder} has only {len(run.scores)} evaluations of its agent")
        run.averaged = last


def write_lines(lines: dict[str, list[dict[str, Any]]], out: Path) -> list[str]:
    """Write NAME.csv for every name that has lines. Returns the names of the files."""
    for name, rows in lines.items():
        if rows:
            write_csv(out / f"{name}.csv", rows)
    return [f"{name}.csv" for name, rows in lines.items() if rows]


def draw_pictures(
    results: Results,
    runs: list[RunResult],
    x: str | None,
    baseline: str | None,
    profiles: dict[str, Profile],
    improved: dict[tuple[str, str], Improvement],
    out: Path,
) -> list[str]:
    """Write the pictures that have something to show. Returns the names of the PNG files."""
    pictures = [*draw_all_curves(results, x, out), *draw_offline_curves(runs, out)]
    if heatmap_panels(results, baseline):
        draw_heatmap(results, baseline, out / "heatmap.png")
        pictures.append("heatmap.png")
    if profiles:
        draw_profiles(profiles, out / "profiles.png")
        pictures.append("profiles.png")
    if improved:
        draw_improvement(improved, out / "improvement.png")
        pictures.append("improvement.png")
    return pictures


def make_folder(out: Path) -> list[Path]:
    """Make ``out``. Returns the files that an earlier report wrote there. Raises BadInput if it cannot be a folder."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        table, document = out / "table.md", out / "report.tex"
        text = table.read_text() if table.is_file() else ""
        latex = document.read_text() if document.is_file() else ""
    except (OSError, ValueError) as error:
        raise BadInput(f"--out {out} cannot be written: {one_line(error)}; choose another") from None
    if not text.startswith(TITLE):
        return []
    names = [
        *re.findall(r"^!\[[^]/]+\]\(([^()/]+\.png)\)$", text, re.MULTILINE),
        *(f"{name}.csv" for name in CSV_FILES),
    ]
    names += [f"{name}.tex" for name in re.findall(r"\\input{(table-[\w-]+)}", latex)]
    return [out / name for name in names]


def remove_earlier(earlier: list[Path], written: list[Path]) -> None:
    """Delete the files of an earlier report that this one does not have, with the PDFs of its pictures."""
    for path in set(earlier) - set(written):
        for file in (path, path.with_suffix(".pdf")) if path.suffix == ".png" else (path,):
            file.unlink(missing_ok=True)

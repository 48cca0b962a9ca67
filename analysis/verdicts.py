"""Which of the agents of finished runs should not be used, and why (docs/offline_evaluation.md#verdict)."""

import csv
import json
from contextlib import suppress
from pathlib import Path

from analysis.markdown import markdown
from analysis.rows import group_by, label_order, pair_of
from analysis.runs import RunResult
from training.logger import curve_name
from training.verdict import PREFIX, Evidence, verdict

VALUE = curve_name("target", "value")
TAIL = 200_000  # bytes at the end of metrics.jsonl that are read: many points of the curves


def last_value(folder: Path) -> float | None:
    """The last point of the curve of the target's values, in metrics.jsonl or a record's curves.csv, or None."""
    found = []
    with suppress(OSError, ValueError, csv.Error):
        if (folder / "metrics.jsonl").exists():
            with (folder / "metrics.jsonl").open("rb") as file:
                size = file.seek(0, 2)
                file.seek(max(size - TAIL, 0))
                lines = file.read().decode(errors="replace").splitlines()[size > TAIL :]
            found = [point[VALUE] for line in lines if VALUE in (point := json.loads(line))]
        else:
            with (folder / "curves.csv").open() as file:
                found = [float(row[VALUE]) for row in csv.DictReader(file) if row.get(VALUE)]
    return found[-1] if found and isinstance(found[-1], float | int) else None


def run_verdict(run: RunResult) -> str | None:
    """The verdict on the agent of a finished run, from its files; None if there is none."""
    if not run.scores or not run.finished:
        return None
    final = run.final
    return verdict(
        Evidence(
            score=final.mean,
            data=run.data_figures,
            time_limit=run.settings["time_limit"],
            value=last_value(run.folder),
            offline=final.offline,
            limits=run.limits,
        )
    )


def verdict_section(runs: list[RunResult]) -> list[str]:
    """The number of agents of each row that should not be used, and a line for each; [] if there are none."""
    verdicts = {run: text for run in runs if (text := run_verdict(run))}
    if not verdicts:
        return []
    groups, rows, lines = group_by(runs, lambda run: (run.label, pair_of(run))), [], []
    for label, pair in sorted(groups, key=lambda key: (label_order(key[0]), str(key[1]))):
        members = sorted(groups[label, pair], key=lambda run: run.seed)
        bad = [run for run in members if run in verdicts]
        if bad:
            seeds = ", ".join(str(run.seed) for run in bad)
            rows.append([label, str(pair), f"{len(bad)} of {len(members)}", seeds])
            lines += [f"- {label}, {pair}, seed {run.seed}: {verdicts[run].removeprefix(PREFIX)}" for run in bad]
    text = (
        "Agents that should not be deployed: they scored below the data's mean, value what the data never returned, or "
        "act far from it (docs/offline_evaluation.md, Verdict)."
    )
    return ["## Do not deploy", text, markdown(["method", "task", "agents", "which seeds"], rows), "\n".join(lines)]

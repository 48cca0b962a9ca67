"""Performance profiles: the share of runs above each normalised score (Agarwal et al. 2021, arXiv 2108.13264)."""

import textwrap
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from analysis.cells import Results
from analysis.comparison import LEVEL, common_tasks, comparable_labels, group_scores, normalised_cells
from analysis.figures import save_figure, styles
from analysis.markdown import markdown
from training.pictures import plt

RESAMPLES = 2000  # as in rliable
POINTS = 101  # thresholds of the picture
SHOWN = (0.25, 0.5, 0.75)  # thresholds of the table
LEGEND_WIDTH = 40  # characters of a line in the legend


class Profile(NamedTuple):
    """Shares of runs above ``thresholds`` and their pointwise 95% band, (K,) each; None if a task has one seed only."""

    thresholds: np.ndarray
    share: np.ndarray
    low: np.ndarray | None
    high: np.ndarray | None
    tasks: int

    def at(self, threshold: float) -> str:
        """The share and its interval at the threshold that is nearest, as text."""
        i = int(np.abs(self.thresholds - threshold).argmin())
        band = "" if self.low is None else f" ({self.low[i]:.2f} to {self.high[i]:.2f})"
        return f"{self.share[i]:.2f}{band}"


def performance_profile(samples: list[np.ndarray], weights: list[float], thresholds: np.ndarray) -> Profile:
    """Weighted mean over tasks of the share of seeds with a score above each threshold, with a bootstrap band.

    samples: for each task the normalised scores of its seeds. Each is resampled by itself (stratified bootstrap).
    weights: of the tasks; their sum is 1.
    """

    def statistic(*values: np.ndarray, axis: int) -> np.ndarray:  # (..., seeds) -> (K, ...)
        above = [(value[None] > thresholds[(...,) + (None,) * value.ndim]).mean(axis) for value in values]
        return sum(weight * share for weight, share in zip(weights, above, strict=True))

    share = statistic(*samples, axis=-1)
    if min(map(len, samples)) < 2:
        return Profile(thresholds, share, None, None, len(samples))
    low, high = stats.bootstrap(
        samples, statistic, n_resamples=RESAMPLES, vectorized=True, method="percentile", confidence_level=LEVEL,
        rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    return Profile(thresholds, share, low, high, len(samples))


def performance_profiles(results: Results) -> dict[str, Profile]:
    """The profiles of the rows that can be compared, all on the same tasks; empty if there are no two."""
    cells = normalised_cells(results)
    labels = comparable_labels(cells)
    tasks = common_tasks(cells, labels) if labels else []
    scores = np.array([results.normalised(run) for task in tasks for runs in task for run in runs])
    thresholds = np.union1d(np.linspace(min(0, scores.min()), max(1, scores.max()), POINTS), SHOWN) if tasks else None
    profiles = {}
    for label, groups in zip(labels, zip(*tasks, strict=True), strict=True):
        count = Counter(groups)  # a group of runs may be in several columns
        weights = [number / len(groups) for number in count.values()]
        profiles[label] = performance_profile(group_scores(results, list(count)), weights, thresholds)
        profiles[label] = profiles[label]._replace(tasks=len(groups))
    return profiles


def profiles_section(profiles: dict[str, Profile], results: Results) -> list[str]:
    """Heading, table and definition for the report; nothing without profiles."""
    if not profiles:
        return []
    rows = [[label, *(profile.at(threshold) for threshold in SHOWN)] for label, profile in profiles.items()]
    tasks, others = next(iter(profiles.values())).tasks, [x for x in results.labels if x not in profiles]
    text = f"Shares of runs with a higher normalised score, averaged over the {tasks} task{'s' * (tasks > 1)} that all "
    text += "these methods have"
    text += ", with 95% intervals where every task has 2 seeds (stratified bootstrap over seeds)."
    text += " profiles.png shows all thresholds."
    left_out = [f"Not compared, because they have fewer tasks: {'; '.join(others)}."] if others else []
    header = ["method", *(f"above {threshold:g}" for threshold in SHOWN)]
    return ["## Performance profile", markdown(header, rows), " ".join([text, *left_out])]


def profile_rows(profiles: dict[str, Profile]) -> list[dict[str, Any]]:
    """The lines of profiles.csv, one for each row and threshold."""
    rows = []
    for label, profile in profiles.items():
        for i, threshold in enumerate(profile.thresholds):
            low, high = (None if band is None else float(band[i]) for band in (profile.low, profile.high))
            share = float(profile.share[i])
            rows.append({"row": label, "threshold": float(threshold), "share": share, "low": low, "high": high})
    return rows


def draw_profiles(profiles: dict[str, Profile], path: Path) -> None:
    """A line for each row, with its band. Above and to the right is better."""
    figure, axis = plt.subplots(layout="constrained")
    for label, style in styles(list(profiles)).items():
        profile = profiles[label]
        axis.plot(profile.thresholds, profile.share, color=style["color"], label=label)
        if profile.low is not None:
            band = {"color": style["color"], "alpha": 0.15, "linewidth": 0}
            axis.fill_between(profile.thresholds, profile.low, profile.high, **band)
    tasks = next(iter(profiles.values())).tasks
    banded = [profile.low is not None for profile in profiles.values()]
    bands = ", 95% bands" if any(banded) else ""
    bands += " where every task has 2 seeds" if bands and not all(banded) else ""
    axis.set_title(f"Performance profile, {tasks} task{'s' * (tasks > 1)}{bands}", fontsize=10)
    axis.set(xlabel="normalised score τ", ylabel="share of runs with score > τ", ylim=(-0.02, 1.02))
    axis.margins(x=0)
    axis.grid(alpha=0.3)
    add_legend(figure)
    save_figure(figure, path)


def add_legend(figure: Figure) -> None:
    """A legend below the axes if there are few curves, else beside them; and the figure's size, with room for it."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    labels = [textwrap.fill(label, LEGEND_WIDTH) for label in labels]
    lines = [line for label in labels for line in label.splitlines()]
    if len(labels) <= 4:
        figure.set_size_inches(7.2, 4.2 + 0.12 * len(lines))
        figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=8)
    else:
        figure.set_size_inches(6.8 + 0.07 * max(map(len, lines)), max(4.2, 1 + 0.2 * len(lines)))
        figure.legend(handles, labels, loc="outside right center", fontsize=8)

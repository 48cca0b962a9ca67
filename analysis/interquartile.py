"""Interquartile means of normalised scores, with bootstrap intervals."""

from typing import NamedTuple

import numpy as np
from scipy import stats

from analysis.cells import Results
from analysis.rows import group_by

RESAMPLES = 10_000


class InterquartileMean(NamedTuple):
    """An interquartile mean and its 95% interval (None if a task has one seed only)."""

    iqm: float
    low: float | None
    high: float | None
    tasks: int
    runs: int


def interquartile_mean(samples: list[np.ndarray]) -> InterquartileMean:
    """IQM of all values (Agarwal et al. 2021, arXiv 2108.13264) with a stratified bootstrap interval.

    samples: for each task the normalised scores of its seeds. Each task is resampled by itself, so it has the same
    number of seeds in every resample. The tasks are fixed and only the seeds are random; resampling all values
    together would count the differences between tasks as noise.
    """

    def statistic(*values: np.ndarray, axis: int) -> np.ndarray:
        return stats.trim_mean(np.concatenate(values, axis=axis), 0.25, axis=axis)

    iqm, count = float(statistic(*samples, axis=0)), sum(map(len, samples))
    if min(map(len, samples)) < 2:  # one seed has no spread
        return InterquartileMean(iqm, None, None, len(samples), count)
    low, high = stats.bootstrap(
        samples, statistic, n_resamples=RESAMPLES, batch=1000, vectorized=True, method="percentile",
        confidence_level=0.95, rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    return InterquartileMean(iqm, float(low), float(high), len(samples), count)


def interquartile_means(results: Results) -> dict[str, InterquartileMean]:
    """For each row, over all its tasks whose scores can be normalised. A run in several columns counts once."""
    means = {}
    for label in results.labels:
        runs = [run for run in results.runs if run.label == label and results.normalised(run) is not None]
        tasks = group_by(runs, lambda run: (run.sources, run.target)).values()
        if tasks:
            means[label] = interquartile_mean([np.array([results.normalised(run) for run in task]) for task in tasks])
    return means

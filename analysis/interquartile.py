"""Interquartile means of normalised scores, with bootstrap intervals."""

from typing import NamedTuple

import numpy as np
from scipy import stats

from analysis.cells import Results
from analysis.rows import grouped

RESAMPLES = 10_000


class Interval(NamedTuple):
    """An interquartile mean with its 95% interval (None where a task has one seed only)."""

    iqm: float
    low: float | None
    high: float | None
    tasks: int
    runs: int


def interquartile_mean(samples: list[np.ndarray]) -> Interval:
    """IQM of all values (Agarwal et al. 2021, arXiv 2108.13264) with a stratified bootstrap interval.

    samples: for each task the normalised scores of its seeds. scipy resamples each sample by itself, so that every
    task keeps its number of seeds in every resample: the tasks are a fixed choice, only the seeds are chance, and
    pooling them first would count the distance between tasks as noise.
    """

    def statistic(*values: np.ndarray, axis: int) -> np.ndarray:
        return stats.trim_mean(np.concatenate(values, axis=axis), 0.25, axis=axis)

    iqm, count = float(statistic(*samples, axis=0)), sum(map(len, samples))
    if min(map(len, samples)) < 2:  # one seed says nothing about the spread over seeds
        return Interval(iqm, None, None, len(samples), count)
    low, high = stats.bootstrap(
        samples, statistic, n_resamples=RESAMPLES, batch=1000, vectorized=True, method="percentile",
        confidence_level=0.95, rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    return Interval(iqm, float(low), float(high), len(samples), count)


def interquartile_means(results: Results) -> dict[str, Interval]:
    """For each row, over all its tasks. A run counts once, also where it stands in several columns."""
    means = {}
    for label in results.labels:
        runs = [run for run in results.runs if run.label == label and run.target in results.random]
        tasks = grouped(runs, lambda run: (run.sources, run.target)).values()
        if tasks:
            means[label] = interquartile_mean([np.array([results.normalised(run) for run in task]) for task in tasks])
    return means

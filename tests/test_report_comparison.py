"""report.py: performance profiles and probabilities of improvement, against numbers of rliable."""

from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from test_report import lines, run_report, table, write_run

from analysis.comparison import comparable_labels
from analysis.improvement import probability_of_improvement, share_above
from analysis.interquartile import interquartile_mean
from analysis.profiles import performance_profile

# Normalised scores of two methods: three tasks with four seeds each; one score is in both.
FIRST = [[0.6, 0.47, 0.61, 0.51], [0.44, 0.33, 0.6, 0.47], [0.76, 0.65, 0.73, 0.85]]
SECOND = [[0.52, 0.6, 0.21, 0.46], [0.31, 0.25, 0.26, 0.26], [0.6, 0.53, 0.32, 0.64]]
# What rliable 1.2.0 (arch 7.2.0) gives for them with 50,000 resamples: `metrics.probability_of_improvement` and
# `metrics.aggregate_iqm` with `library.get_interval_estimates`, and `library.create_performance_profile`.
RLIABLE_PROBABILITY, RLIABLE_INTERVAL = 0.90625, (0.75, 1.0)
RLIABLE_IQM, RLIABLE_IQM_INTERVAL = 0.57333333, (0.52333333, 0.625)
THRESHOLDS = (0.3, 0.5, 0.7)
RLIABLE_PROFILES = [  # share, low, high of each method
    ([1.0, 0.66666667, 0.25], [1.0, 0.5, 0.08333333], [1.0, 0.83333333, 0.33333333]),
    ([0.66666667, 0.41666667, 0.0], [0.5, 0.16666667, 0.0], [0.83333333, 0.58333333, 0.0]),
]


def arrays(scores: list[list[float]]) -> list[np.ndarray]:
    return [np.array(task) for task in scores]


def test_the_numbers_are_those_of_rliable():
    found = probability_of_improvement(arrays(FIRST), arrays(SECOND), [(0, 0), (1, 1), (2, 2)])
    assert found.probability == pytest.approx(RLIABLE_PROBABILITY)
    assert (found.low, found.high) == pytest.approx(RLIABLE_INTERVAL, abs=0.025)  # of other random numbers
    mean = interquartile_mean(arrays(FIRST))
    assert mean.iqm == pytest.approx(RLIABLE_IQM) and (mean.low, mean.high) == pytest.approx(
        RLIABLE_IQM_INTERVAL, abs=0.01
    )
    for scores, (share, low, high) in zip((FIRST, SECOND), RLIABLE_PROFILES, strict=True):
        profile = performance_profile(arrays(scores), [1 / 3] * 3, np.array(THRESHOLDS))
        np.testing.assert_allclose(profile.share, share, atol=1e-7)
        np.testing.assert_allclose([profile.low, profile.high], [low, high], atol=1e-7)  # multiples of 1 / 12


def test_the_share_above_is_mann_and_whitneys_u():
    for first, second in zip(arrays(FIRST), arrays(SECOND), strict=True):
        u = stats.mannwhitneyu(first, second).statistic
        assert share_above(first, second) == pytest.approx(u / 16)
    assert share_above(np.array([1.0, 2.0]), np.array([1.0])) == 0.75  # unequal numbers of seeds, a tie


def test_a_run_in_two_columns_is_resampled_once_for_both():
    """Resampled twice, the differences would cancel out between the two tasks, and the interval would be too narrow."""
    rng = np.random.default_rng(0)
    first, second = [rng.normal(0.2, 1, 6)], [np.zeros(6) + 0.1] * 2
    one = probability_of_improvement(first, second[:1], [(0, 0)])
    assert probability_of_improvement(first, second, [(0, 0), (0, 1)])[:3] == pytest.approx(one[:3], abs=0.02)


def test_rows_with_few_tasks_do_not_reduce_the_tasks_of_the_others():
    full = dict.fromkeys("abcdef", ())
    assert comparable_labels({"one": full, "two": full, "few": {"a": ()}}) == ["one", "two"]
    assert comparable_labels({"one": full, "two": dict.fromkeys("abcde", ())}) == ["one", "two"]
    assert comparable_labels({"one": {"a": ()}, "two": {"b": ()}}) == [] == comparable_labels({"one": full})


def test_profiles_and_improvement_of_runs(tmp_path: Path):
    root = tmp_path / "runs"
    for seed in (0, 1):
        for source in ("walker_walk", "walker_run"):
            write_run(root / f"{source}{seed}", [1, 400 + 100 * seed], seed=seed, source_task=source)
        write_run(root / f"offline{seed}", [1, 300], seed=seed, method="offline_dv2")  # in both columns
    write_run(root / "other", [1, 300], method="dv2_finetune", target_task="walker_uphill")  # no task in common
    out = run_report(root, "--max_score", "1010")  # random 10, so a return of 510 has the score 0.5
    assert table(out, "Probability of improvement") == {
        "offline_dv2": {"P(coworld > Y)": "1.00", "95% interval": "1.00 to 1.00", "tasks": "2"},
    }
    profile = table(out, "Performance profile")
    assert profile["coworld"] == {
        "above 0.25": "1.00 (1.00 to 1.00)", "above 0.5": "0.00 (0.00 to 0.00)", "above 0.75": "0.00 (0.00 to 0.00)",
    }  # fmt: skip
    assert list(profile) == ["coworld", "offline_dv2"]
    assert "fewer tasks: dv2_finetune" in (out / "table.md").read_text()
    (row,) = [row for row in lines(out / "table.csv") if row["measure"] == "improvement"]
    assert (row["row"], row["column"], row["mean"], row["tasks"]) == ("coworld", "offline_dv2", "1.0", "2")
    shares = [float(r["share"]) for r in lines(out / "profiles.csv") if r["row"] == "coworld"]
    assert shares == sorted(shares, reverse=True) and shares[0] == 1 and shares[-1] == 0


def test_one_seed_has_no_interval_and_one_method_no_comparison(tmp_path: Path):
    root = tmp_path / "runs"
    write_run(root / "1", [1, 400])
    out = run_report(root)
    text = (out / "table.md").read_text()
    assert "Probability" not in text and "Performance" not in text and not (out / "profiles.png").exists()
    write_run(root / "2", [1, 300], method="offline_dv2")
    out = run_report(root)
    assert table(out, "Probability of improvement")["offline_dv2"]["95% interval"] == "needs 2 seeds a task"
    assert table(out, "Performance profile")["coworld"]["above 0.25"] == "1.00"
    assert (out / "profiles.png").exists() and (out / "improvement.pdf").exists()

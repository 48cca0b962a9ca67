"""Whether a trained agent should be used at all (docs/offline_evaluation.md#verdict): one line if it should not."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from training.data_limits import DataLimits

# In docs/offline_evaluation.md: why, and how often they are right on the committed records.
BIAS = 1.0  # the value bias that is too large, in units of the data's largest discounted return
VALUE = 0.5  # how far the values may be above the data's largest discounted return, in the same units
DISTANCE = 2.0  # the action distance that is too large, in units of the spread of the data's actions

PREFIX = "do not deploy this agent: "


@dataclass(frozen=True)
class Evidence:
    """What is known at the end of a run. None: not known.

    Attributes:
        score: mean return of the last evaluation, in the target's simulator.
        data: (episodes, steps, sum of returns) of the dataset.
        time_limit: agent steps of an evaluation episode, at most.
        value: mean value of imagined states, at the end of training.
        offline: offline figures of the last evaluation, by name.
        limits: of the dataset, at the run's discount.
    """

    score: float | None = None
    data: tuple[float, ...] | None = None
    time_limit: int = 0
    value: float | None = None
    offline: Mapping[str, float] = field(default_factory=dict)
    limits: DataLimits | None = None

    @property
    def data_return(self) -> float | None:
        """The data's mean return, in as many steps as an evaluation has if the data's episodes are longer."""
        if not self.data:
            return None
        episodes, steps, total = self.data
        return total / episodes * min(1.0, self.time_limit * episodes / steps)

    def reasons(self) -> list[str]:
        """Why the agent should not be used, one text for each; [] if nothing speaks against it.

        A score above the data's best episode shows that the agent is good: then its values do not count. Its actions
        count only if no score shows that they are as good as the data's.
        """
        found, mean, limits = [], self.data_return, self.limits
        scored = self.score is not None and mean is not None
        if scored and self.score < mean:
            found.append(f"it scored {self.score:.4g}, below the data's mean of {mean:.4g}")
        if limits is None or (self.score is not None and self.score > limits.best_return):
            return found
        highest = f"the largest discounted return in the data is {limits.high:.4g}"
        bias, distance = self.offline.get("value_bias"), self.offline.get("action_distance")
        if bias is not None and bias > BIAS * limits.scale:
            found.append(f"on held-out episodes its values are too high by {bias:.4g} ({highest})")
        elif self.value is not None and self.value > limits.high + VALUE * limits.scale:
            found.append(f"its values, {self.value:.4g} on average, are far above what the data shows ({highest})")
        as_good = scored and self.score >= mean
        if distance is not None and distance > DISTANCE * limits.action_spread and not as_good:
            found.append(
                f"its actions are far from the data's (distance {distance:.3g}; that of always taking the mean action "
                f"is {limits.action_spread:.3g}); only a test where it can do no harm shows if they are good"
            )
        return found


def verdict(evidence: Evidence) -> str | None:
    """One line if the agent should not be used, else None."""
    reasons = evidence.reasons()
    return PREFIX + "; ".join(reasons) if reasons else None

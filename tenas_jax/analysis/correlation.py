"""How well scores order architectures: rank statistics against accuracy, with their uncertainty.

Everything here takes scores of which higher is better (see `quality`): a statistic is positive
where a metric prefers, in its own direction, what turns out more accurate.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import stats  # type: ignore[import-untyped]

from tenas_jax.analysis.statistics import STATISTICS, Statistic, Values, Weights
from tenas_jax.errors import InputError

RESAMPLED = 1000
"""With more architectures than these the intervals of smooth statistics are normal."""


class Score(NamedTuple):
    """What architectures are ordered by."""

    label: str
    """Its name for people."""
    direction: int
    """+1 where higher is better, -1 where lower is."""
    values: Values
    """Of each architecture; not finite where it could not be measured."""


class Estimate(NamedTuple):
    """A statistic and its interval."""

    value: float
    """The statistic of all architectures; NaN where it is undefined."""
    low: float
    """Lower end of the interval; NaN if the statistic is undefined for some resample."""
    high: float
    """Upper end of the interval."""


def quality(values: Values, direction: int) -> Values:
    """Values turned so that higher is better; those that are not finite are the worst.

    Whatever the metric, infinity and NaN mean that it failed to measure the architecture (a
    singular kernel, an overflow), which is no reason to prefer it.

    Args:
        values: a metric of each architecture.
        direction: +1 where higher is better, -1 where lower is.

    Returns:
        Scores, -inf where a value is not finite.

    Example:
        >>> quality(np.array([120.0, np.inf, np.nan, 90.0]), -1)
        array([-120.,  -inf,  -inf,  -90.])
    """
    return np.where(np.isfinite(values), direction * values, -np.inf)


def rank_sum(qualities: Sequence[Values]) -> Values:
    """The sum of the ranks of several metrics, as TE-NAS combines two (arXiv 2102.11535, 3.3).

    Equal values share the mean of their ranks, so that every metric has the same spread however
    many ties it has. The search, as the original code, uses dense ranks (`ranking.dense_ranks`).

    Args:
        qualities: for each metric the scores of all architectures.

    Returns:
        Scores, from the number of metrics upward.

    Example:
        >>> rank_sum([np.array([1.0, 5.0, 9.0]), np.array([2.0, 2.0, -np.inf])])
        array([3.5, 4.5, 4. ])
    """
    ranks: Float[np.ndarray, "metric architecture"] = stats.rankdata(np.stack(qualities), axis=1)
    total: Values = ranks.sum(axis=0)
    return total


def require_percent(accuracy: Values) -> None:
    """Refuse accuracies that look like fractions: nDCG depends on their unit.

    Args:
        accuracy: accuracies, %.

    Raises:
        InputError: they are not all 0, and none is above 1.

    Example:
        >>> require_percent(np.array([0.94, 0.91]))
        Traceback (most recent call last):
        ...
        tenas_jax.errors.InputError: the highest accuracy is 0.94, as of fractions: give percent, \
or say that they are fractions (tenas correlate --unit fraction)
    """
    if 0 < accuracy.max(initial=0) <= 1:
        raise InputError(
            f"the highest accuracy is {accuracy.max():g}, as of fractions: give percent, or say "
            "that they are fractions (tenas correlate --unit fraction)"
        )


class Resamples:
    """Resampled architectures, the same for every score, so that intervals are comparable.

    Args:
        size: number of architectures.
        resamples: how many resamples.
        seed: of the drawing.

    Raises:
        InputError: `resamples` is not positive, `seed` is negative.
    """

    def __init__(self, size: int, resamples: int, seed: int) -> None:
        if resamples < 1 or seed < 0:
            raise InputError(
                f"resamples must be at least 1 and seed at least 0, not {resamples} and {seed}"
            )
        rng, halving = np.random.default_rng(seed), np.random.default_rng([seed, 1])
        counts = [
            np.bincount(rng.integers(size, size=size), minlength=size) for _ in range(resamples)
        ]
        self.repeated: Weights = np.array(counts, np.uint16)
        half = (np.arange(size) < (size + 1) // 2).astype(np.uint16)
        self.halves: Weights = halving.permuted(np.tile(half, (resamples, 1)), axis=1)

    def estimate(
        self, statistic: Statistic, score: Values, accuracy: Values, *, level: float = 0.95
    ) -> Estimate:
        """A statistic with its interval.

        - A percentile interval over resamples: as many architectures, drawn with replacement.
        - With more than 1000 architectures, where the influence of each is known, the normal
          interval of the infinitesimal jackknife (Jaeckel 1972), which takes no resamples.
        - For statistics of the first few, the percentiles over random halves: what comes first
          where every other architecture is missing. No interval covers the accuracy of a first
          place as others do: a resample with repetition has the same first place in 63 % of all
          cases. That of halves is right for smooth statistics, whose deviation between a half and
          the whole is that of the whole itself.

        Args:
            statistic: one of `STATISTICS`.
            score: scores, higher is better; may be infinite.
            accuracy: accuracies, %.
            level: probability that the interval covers.

        Example:
            >>> score = np.arange(50.0)
            >>> resamples = Resamples(50, 99, seed=0)
            >>> value, low, high = resamples.estimate(STATISTICS["spearman"], score, score % 30)
            >>> bool(low < value < high < 1)
            True
        """
        value = statistic(score, accuracy)
        ends = [(1 - level) / 2, (1 + level) / 2]
        if statistic.influence is not None and len(score) > RESAMPLED:
            if not np.isfinite(value):
                return Estimate(value, np.nan, np.nan)
            influence = statistic.influence(score, accuracy)
            low, high = value + stats.norm.ppf(ends) * influence.std() / np.sqrt(len(score))
            return Estimate(value, max(float(low), -1.0), min(float(high), 1.0))
        weights = self.halves if statistic.halves else self.repeated
        low, high = np.quantile(statistic.resampled(score, accuracy, weights), ends)
        return Estimate(value, float(low), float(high))


def correlate(
    scores: Mapping[str, Score],
    accuracy: Values,
    *,
    resamples: int | None,
    seed: int,
    progress: Callable[[], None] = lambda: None,
) -> dict[str, dict[str, Estimate]]:
    """Every statistic of every score.

    Args:
        scores: what architectures are ordered by.
        accuracy: accuracies, %.
        resamples: of the intervals, see `Resamples`; None: without intervals, whose ends are NaN.
        seed: of the intervals.
        progress: called after each statistic.

    Returns:
        For each score an estimate of each of `STATISTICS`.

    Raises:
        InputError: there are fewer than two architectures; their accuracies look like fractions;
            `resamples` or `seed` is too small.

    Example:
        >>> scores = {"kappa": Score("condition number", -1, np.array([3.0, np.inf, 2.0]))}
        >>> accuracy = np.array([92.0, 10.0, 93.0])
        >>> correlate(scores, accuracy, resamples=9, seed=0)["kappa"]["spearman"].value
        1.0
    """
    if len(accuracy) < 2:
        raise InputError(f"{len(accuracy)} architectures have no correlation: give 2 or more")
    require_percent(accuracy)
    drawn = None if resamples is None else Resamples(len(accuracy), resamples, seed)
    estimates: dict[str, dict[str, Estimate]] = {}
    for name, score in scores.items():
        values = quality(score.values, score.direction)
        estimates[name] = {}
        for key, statistic in STATISTICS.items():
            estimates[name][key] = (
                Estimate(statistic(values, accuracy), np.nan, np.nan)
                if drawn is None
                else drawn.estimate(statistic, values, accuracy)
            )
            progress()
    return estimates

"""How well scores order architectures: rank statistics with confidence intervals.

All scores here are such that higher is better (see `quality`), so a statistic is positive if the
metric prefers more accurate architectures.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import stats  # type: ignore[import-untyped]

from tenas_jax.analysis.statistics import STATISTICS, Statistic, Values, Weights
from tenas_jax.errors import InputError, quantity

RESAMPLED = 1000
"""With more architectures than this, smooth statistics get normal intervals."""


class Score(NamedTuple):
    """The values that architectures are ordered by."""

    label: str
    """Name in plots and tables."""
    direction: int
    """+1 if higher is better, -1 if lower is better."""
    values: Values
    """One per architecture; not finite if the measurement failed."""


class Estimate(NamedTuple):
    """A statistic and its confidence interval."""

    value: float
    """The statistic of all architectures; NaN where it is undefined."""
    low: float
    """Lower end of the interval; NaN if the statistic is undefined for some resample."""
    high: float
    """Upper end of the interval."""


def quality(values: Values, direction: int) -> Values:
    """Scores for which higher is better; values that are not finite are the worst.

    Infinity and NaN mean that a metric failed to measure the architecture (a singular kernel, an
    overflow), which is not a reason to prefer it.

    Args:
        values: a metric of each architecture.
        direction: +1 if higher is better, -1 if lower is better.

    Returns:
        Scores, -inf where a value is not finite.

    Example:
        >>> quality(np.array([120.0, np.inf, np.nan, 90.0]), -1)
        array([-120.,  -inf,  -inf,  -90.])
    """
    return np.where(np.isfinite(values), direction * values, -np.inf)


def rank_sum(qualities: Sequence[Values]) -> Values:
    """The sum of the ranks of several metrics, as TE-NAS combines two (arXiv 2102.11535, 3.3).

    Equal values share the mean of their ranks, so ties do not change a metric's weight in the sum.
    The search, like the original code, uses dense ranks (`ranking.dense_ranks`).

    Args:
        qualities: the scores of all architectures, for each metric.

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
    """Reject accuracies that look like fractions, because nDCG depends on their unit.

    Args:
        accuracy: accuracies, %.

    Raises:
        InputError: none is above 1, and they are not all 0.

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
    """Resamples of the architectures, shared by all scores, so that intervals are comparable.

    Args:
        size: number of architectures.
        resamples: number of resamples.
        seed: seed of the random draws.

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
        """Estimate a statistic with a confidence interval.

        - By default a bootstrap percentile interval: each resample draws as many architectures
          with replacement.
        - With more than 1000 architectures and a known influence of each: the normal interval of
          the infinitesimal jackknife (Jaeckel 1972), which needs no resamples.
        - For statistics of the top architectures: percentiles over random halves of the
          architectures, because 63 % of all bootstrap resamples have the same first place. For
          smooth statistics this interval is correct: a half deviates from the whole as much as
          the whole deviates from the truth. For the accuracy of a first place no interval has its
          nominal coverage.

        Args:
            statistic: one of `STATISTICS`.
            score: scores, higher is better; may be infinite.
            accuracy: accuracies, %.
            level: coverage probability of the interval.

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
    """Estimate every statistic of every score.

    Args:
        scores: the scores by name.
        accuracy: accuracies, %.
        resamples: number of resamples, see `Resamples`; None: no intervals, their ends are NaN.
        seed: seed of the resamples.
        progress: called after each statistic.

    Returns:
        An estimate of each of `STATISTICS`, for each score.

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
        count = quantity(len(accuracy), "architecture")
        raise InputError(f"no correlation of {count}: give 2 or more")
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

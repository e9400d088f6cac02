"""How well scores order architectures: rank statistics against accuracy, with their uncertainty.

Everything here takes scores of which higher is better (see `quality`): a statistic is positive
where a metric prefers, in its own direction, what turns out more accurate.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import stats  # type: ignore[import-untyped]

from tenas_jax.errors import InputError

Values = Float[np.ndarray, " architecture"]
Statistic = Callable[[Values, Values], float]
NDCG_TOP = 1000


class Score(NamedTuple):
    """What architectures are ordered by."""

    label: str
    """Its name for people."""
    direction: int
    """+1 where higher is better, -1 where lower is."""
    values: Values
    """Of each architecture; not finite where it could not be measured."""


class Estimate(NamedTuple):
    """A statistic and its bootstrap interval."""

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


def kendall_tau(score: Values, accuracy: Values) -> float:
    """Kendall's tau-b: concordant minus discordant pairs, relative to those without a tie.

    Args:
        score: scores, higher is better; may be infinite.
        accuracy: accuracies.

    Returns:
        Between -1 and 1; NaN if either is constant.

    Example:
        >>> round(kendall_tau(np.array([1.0, 2.0, 3.0]), np.array([10.0, 30.0, 20.0])), 3)
        0.333
    """
    return float(stats.kendalltau(score, accuracy).statistic)


def spearman(score: Values, accuracy: Values) -> float:
    """Spearman's rho: Pearson's correlation of the ranks, where equal values share their mean rank.

    Args:
        score: scores, higher is better; may be infinite.
        accuracy: accuracies.

    Returns:
        Between -1 and 1; NaN if either is constant.

    Example:
        >>> round(spearman(np.array([1.0, 2.0, 3.0]), np.array([10.0, 30.0, 20.0])), 3)
        0.5
    """
    ranks = stats.rankdata(np.stack([score, accuracy]), axis=1)
    x, y = ranks - ranks.mean(axis=1, keepdims=True)
    scale = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / scale if scale else np.nan


def ndcg(score: Values, accuracy: Values) -> float:
    """Normalized discounted cumulative gain of the first 1000: whether the best are ranked on top.

    DCG = sum_i (2^a_i - 1) / log2(1 + i) over the first 1000 architectures in the order of their
    scores, where a_i is the accuracy in percent: a point of accuracy doubles the gain. Relative to
    the DCG in the order of the accuracies (Järvelin and Kekäläinen 2002; the gain is that of
    Burges et al. 2005). Architectures of equal score share the mean of their gains.

    Args:
        score: scores, higher is better; may be infinite.
        accuracy: accuracies, %.

    Returns:
        Between 0 and 1; NaN if every accuracy is 0.

    Example:
        >>> round(ndcg(np.array([3.0, 1.0, 2.0]), np.array([94.0, 93.0, 92.0])), 3)
        0.977
    """
    gains = np.exp2(accuracy) - 1
    discounts = np.zeros(len(gains))
    discounts[:NDCG_TOP] = 1 / np.log2(2 + np.arange(min(NDCG_TOP, len(gains))))
    _, group, size = np.unique(-score, return_inverse=True, return_counts=True)
    mean_gain = np.bincount(group, gains) / size
    ideal = np.sort(gains)[::-1] @ discounts
    return float(np.repeat(mean_gain, size) @ discounts / ideal) if ideal else np.nan


STATISTICS: dict[str, Statistic] = {
    "kendall_tau": kendall_tau,
    "spearman": spearman,
    "ndcg": ndcg,
}


def bootstrap(
    statistic: Statistic,
    score: Values,
    accuracy: Values,
    *,
    resamples: int,
    seed: int,
    level: float = 0.95,
) -> Estimate:
    """A statistic with its percentile interval over resampled architectures.

    The same seed draws the same architectures for every score, so that intervals are comparable.

    Args:
        statistic: a function of scores and accuracies.
        score: scores, higher is better.
        accuracy: accuracies.
        resamples: how often to draw as many architectures as there are, with replacement.
        seed: of the drawing.
        level: probability that the interval covers.

    Returns:
        The statistic and the ends of the interval.

    Raises:
        InputError: `resamples` is not positive, `seed` is negative.

    Example:
        >>> score = np.arange(50.0)
        >>> value, low, high = bootstrap(spearman, score, score % 30, resamples=99, seed=0)
        >>> bool(low < value < high < 1)
        True
    """
    if resamples < 1 or seed < 0:
        raise InputError(
            f"resamples must be at least 1 and seed at least 0, not {resamples} and {seed}"
        )
    rng = np.random.default_rng(seed)
    drawn = (rng.integers(len(score), size=len(score)) for _ in range(resamples))
    values = [statistic(score[rows], accuracy[rows]) for rows in drawn]
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(statistic(score, accuracy), float(low), float(high))


def correlate(
    scores: Mapping[str, Score],
    accuracy: Values,
    *,
    resamples: int,
    seed: int,
    progress: Callable[[], None] = lambda: None,
) -> dict[str, dict[str, Estimate]]:
    """Every statistic of every score.

    Args:
        scores: what architectures are ordered by.
        accuracy: accuracies, %.
        resamples: of the intervals, see `bootstrap`.
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
    estimates: dict[str, dict[str, Estimate]] = {}
    for name, score in scores.items():
        values = quality(score.values, score.direction)
        estimates[name] = {}
        for key, statistic in STATISTICS.items():
            estimates[name][key] = bootstrap(
                statistic, values, accuracy, resamples=resamples, seed=seed
            )
            progress()
    return estimates

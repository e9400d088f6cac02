"""Rank statistics of scores against accuracies, over all architectures and over resamples.

Higher scores are better; scores may be infinite. A resample is a row of weights: how often it
contains each architecture. All resamples are computed at once, with a single sort.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Shaped
from scipy import stats  # type: ignore[import-untyped]

Values = Float[np.ndarray, " architecture"]
Weights = Shaped[np.ndarray, "resample architecture"]
PerResample = Float[np.ndarray, " resample"]
Resampled = Callable[[Values, Values, Weights], PerResample]
Gains = Callable[[Int[np.ndarray, " some"]], Shaped[np.ndarray, "#resample some"]]
NDCG_TOP = 1000


@dataclass(frozen=True)
class Statistic:
    """A statistic of scores and accuracies.

    Args:
        resampled: a function of `(score, accuracy, weights)`: the statistic of each resample.
        influence: a function of `(score, accuracy)`: for each architecture n times the derivative
            of the statistic by its weight. None: undefined or not informative.
        halves: whether intervals come from random halves instead of the bootstrap. This is for
            statistics of few architectures, which bootstrap resamples repeat or miss.

    Example:
        >>> spearman(np.array([1.0, 2.0, 3.0]), np.array([10.0, 30.0, 20.0]))
        0.5
    """

    resampled: Resampled
    influence: Callable[[Values, Values], Values] | None = None
    halves: bool = False

    def __call__(self, score: Values, accuracy: Values) -> float:
        """The statistic of all architectures; NaN where it is undefined."""
        return float(self.resampled(score, accuracy, np.ones((1, len(score))))[0])


def taus(score: Values, accuracy: Values, weights: Weights) -> PerResample:
    """Kendall's tau-b: concordant minus discordant pairs, relative to the pairs without a tie.

    Args:
        score: scores.
        accuracy: accuracies.
        weights: weights of each resample.

    Returns:
        Between -1 and 1; NaN if either is constant.

    Example:
        >>> taus(np.array([1.0, 2.0, 3.0]), np.array([10.0, 30.0, 20.0]), np.ones((1, 3))).round(3)
        array([0.333])
    """
    rows = (np.repeat(np.arange(len(score)), row.astype(int)) for row in weights)
    values = [stats.kendalltau(score[row], accuracy[row]).statistic for row in rows]
    return np.array(values, float)


def tau_influence(score: Values, accuracy: Values) -> Values:
    """The influence of each architecture on tau-b, through the pairs that contain it."""
    n = len(score)
    signed = (
        _both_smaller(score, accuracy)
        + _both_smaller(-score, -accuracy)
        - _both_smaller(score, -accuracy)
        - _both_smaller(-score, accuracy)
    )
    untied = [n - _tied(values) for values in (score, accuracy)]
    sums = [each.sum() for each in untied]
    tau = signed.sum() / np.sqrt(sums[0] * sums[1])
    relative = untied[0] / sums[0] + untied[1] / sums[1]
    influence: Values = n * (2 * signed / np.sqrt(sums[0] * sums[1]) - tau * relative)
    return influence


def rhos(score: Values, accuracy: Values, weights: Weights) -> PerResample:
    """Spearman's rho: Pearson's correlation of the ranks; equal values share their mean rank.

    Args:
        score: scores.
        accuracy: accuracies.
        weights: weights of each resample.

    Returns:
        Between -1 and 1; NaN if either is constant.

    Example:
        >>> rhos(np.array([1.0, 2.0, 2.0]), np.array([1.0, 3.0, 3.0]), np.ones((1, 3))).round(3)
        array([1.])
    """
    x, y = (_centered_ranks(values, weights) for values in (score, accuracy))
    scale = np.sqrt((weights * x * x).sum(1) * (weights * y * y).sum(1))
    covariance = (weights * x * y).sum(1)
    return _ratio(covariance, scale)


def rho_influence(score: Values, accuracy: Values) -> Values:
    """The influence of each architecture on rho, through its own rank and those of the others.

    Ranks are F(x) = sum_j w_j [x_j < x] + [x_j = x] / 2. With centered ranks, the derivative of
    sum_i w_i F_i G_i by w_j is F_j G_j + sum_i [x_j < x_i] G_i + sum_i [y_j < y_i] F_i, where
    tied pairs count half.
    """
    one = np.ones((1, len(score)))
    x, y = (_centered_ranks(values, one)[0] for values in (score, accuracy))

    def derivative(f: Values, g: Values) -> Values:
        total: Values = f * g + _sum_above(f, g) + _sum_above(g, f)
        return total

    xy, xx, yy = x @ y, x @ x, y @ y
    rho = xy / np.sqrt(xx * yy)
    relative = derivative(x, x) / xx + derivative(y, y) / yy
    influence: Values = derivative(x, y) / np.sqrt(xx * yy) - rho * relative / 2
    return len(score) * influence


def ndcgs(score: Values, accuracy: Values, weights: Weights) -> PerResample:
    """Normalized discounted cumulative gain of the top 1000: whether the best rank first.

    DCG = sum_i (2^a_i - 1) / log2(1 + i) over the top 1000 architectures by score, where a_i is the
    accuracy in percent: one point of accuracy doubles the gain. It is divided by the DCG of the
    order by accuracy (Järvelin and Kekäläinen 2002; gain of Burges et al. 2005). Architectures of
    equal score share the mean of their gains.

    Args:
        score: scores.
        accuracy: accuracies, %.
        weights: weights of each resample.

    Returns:
        Between 0 and 1; NaN if every accuracy is 0.

    Example:
        >>> ndcgs(np.array([3.0, 1.0, 2.0]), np.array([94.0, 93, 92]), np.ones((1, 3))).round(3)
        array([0.977])
    """
    discounts = 1 / np.log2(2 + np.arange(NDCG_TOP))

    def gains(chosen: Int[np.ndarray, " some"]) -> Float[np.ndarray, "1 some"]:
        gains: np.ndarray = np.exp2(accuracy[chosen]) - 1
        return gains[None]

    ideal = _gain(accuracy, gains, discounts, weights)
    gained = _gain(score, gains, discounts, weights)
    return _ratio(gained, ideal)


def means_of_first(count: int) -> Resampled:
    """The mean accuracy of the top `count` architectures, or of all if there are fewer.

    Tied scores are averaged over all possible orders.

    Args:
        count: number of architectures.

    Returns:
        A function of scores, accuracies and weights.

    Example:
        >>> accuracy = np.array([94.0, 90.0, 92.0])
        >>> means_of_first(1)(np.array([2.0, 2.0, 1.0]), accuracy, np.ones((1, 3)))
        array([92.])
    """

    def means(score: Values, accuracy: Values, weights: Weights) -> PerResample:
        total = _gain(score, lambda chosen: accuracy[chosen][None], np.ones(count), weights)
        means: PerResample = total / np.minimum(count, weights.sum(1))
        return means

    return means


def precisions(share: float) -> Resampled:
    """Precision at a share: the part of the top architectures that is also most accurate.

    Both sets have the same size. A random order has a precision of `share`. Ties count as in
    `means_of_first`.

    Args:
        share: size of both sets relative to all architectures; the number is rounded up.

    Returns:
        A function of scores, accuracies and weights, between 0 and 1.

    Example:
        >>> accuracy = np.array([94.0, 90.0, 92.0, 91.0])
        >>> precisions(0.5)(np.array([4.0, 3.0, 2.0, 1.0]), accuracy, np.ones((1, 4)))
        array([0.5])
    """

    def precision(score: Values, accuracy: Values, weights: Weights) -> PerResample:
        # All resamples have the same size.
        count = int(np.ceil(share * weights[0].sum() - 1e-9))
        chosen, ends, sizes = _first_groups(accuracy, count, weights)
        # The lowest accuracy of the best, and how many architectures with it belong to the best.
        groups = np.unique(-accuracy[chosen], return_index=True)[1]
        last = (ends < count).sum(1)
        resamples = np.arange(len(weights))
        least = accuracy[chosen][groups][last][:, None]
        size = sizes[resamples, last]
        among = (count - (ends[resamples, last] - size)) / np.maximum(size, 1)

        def hits(some: Int[np.ndarray, " some"]) -> Float[np.ndarray, "resample some"]:
            equal = accuracy[some] == least
            hits: np.ndarray = (accuracy[some] > least) + equal * among[:, None]
            return hits

        values: PerResample = _gain(score, hits, np.ones(count), weights) / count
        return values

    return precision


kendall_tau = Statistic(taus, tau_influence)
spearman = Statistic(rhos, rho_influence)
ndcg = Statistic(ndcgs)
STATISTICS: dict[str, Statistic] = {
    "kendall_tau": kendall_tau,
    "spearman": spearman,
    "ndcg": ndcg,
    "first": Statistic(means_of_first(1), halves=True),
    "first_10": Statistic(means_of_first(10), halves=True),
    "precision_1_percent": Statistic(precisions(0.01)),
    "precision_5_percent": Statistic(precisions(0.05)),
}


def _ratio(numerator: PerResample, denominator: PerResample) -> PerResample:
    """The ratio; NaN where the denominator is 0."""
    undefined = np.full(len(numerator), np.nan)
    ratio: PerResample = np.divide(numerator, denominator, out=undefined, where=denominator > 0)
    return ratio


def _gain(
    score: Values, gains: Gains, discounts: Float[np.ndarray, " place"], weights: Weights
) -> PerResample:
    """The gains of architectures in the order of their scores, times the discounts of their ranks.

    Architectures of equal score share the mean of their gains; ranks without a discount give 0.
    """
    chosen, ends, sizes = _first_groups(score, len(discounts), weights)
    starts = _group_starts(score[chosen])
    sums = np.add.reduceat(weights[:, chosen] * gains(chosen), starts, axis=1)
    reached = np.append(0, np.cumsum(discounts))
    last = len(discounts)
    share = reached[np.minimum(ends, last)] - reached[np.minimum(ends - sizes, last)]
    total: PerResample = (sums * share / np.maximum(sizes, 1)).sum(1)
    return total


def _first_groups(
    score: Values, count: int, weights: Weights
) -> tuple[
    Int[np.ndarray, " some"],
    Int[np.ndarray, "resample group"],
    Int[np.ndarray, "resample group"],
]:
    """The top architectures, at least `count` in every resample, in groups of equal score.

    Returns:
        Indices of whole groups, best first; and for each resample and group the number of
        architectures up to its end, and the number in it.
    """
    order = np.argsort(-score, kind="stable")
    some = min(2 * count + 20, len(order))
    while some < len(order) and weights[:, order[:some]].sum(1).min() < count:
        some = min(2 * some, len(order))
    some = int(np.searchsorted(-score[order], -score[order[some - 1]], side="right"))
    chosen = order[:some]
    sizes = np.add.reduceat(weights[:, chosen].astype(int), _group_starts(score[chosen]), axis=1)
    return chosen, np.cumsum(sizes, axis=1), sizes


def _group_starts(values: Values) -> Int[np.ndarray, " group"]:
    """Where sorted values change."""
    return np.flatnonzero(np.append(True, values[1:] != values[:-1]))


def _centered_ranks(values: Values, weights: Weights) -> Float[np.ndarray, "resample architecture"]:
    """Ranks within each resample, minus their mean; equal values share their mean rank."""
    _, group = np.unique(values, return_inverse=True)
    order = np.argsort(group, kind="stable")
    sizes = np.add.reduceat(weights[:, order].astype(int), _group_starts(values[order]), axis=1)
    ends = np.cumsum(sizes, axis=1)
    ranks: np.ndarray = (ends - (sizes - 1) / 2)[:, group] - (ends[:, -1:] + 1) / 2
    return ranks


def _tied(values: Values) -> Values:
    """For each value, how often it occurs."""
    _, group, sizes = np.unique(values, return_inverse=True, return_counts=True)
    return sizes[group].astype(float)


def _sum_above(values: Values, summands: Values) -> Values:
    """For each value, the sum over greater values plus half the sum over equal values."""
    _, group = np.unique(values, return_inverse=True)
    sums = np.bincount(group, summands)
    above = sums.sum() - np.cumsum(sums)
    total: Values = (above + sums / 2)[group]
    return total


def _both_smaller(x: Values, y: Values) -> Values:
    """For each pair, how many others are smaller in both; by divide and conquer along x."""
    n = len(x)
    order = np.lexsort((-y, x))  # so that pairs with equal x do not count
    ranks = np.unique(y[order], return_inverse=True)[1]
    counts = np.zeros(n)
    for level in range(n.bit_length()):
        block = np.arange(n) >> level
        right = block % 2 == 1
        keys = ranks + n * block
        left = np.sort(keys[~right])
        first = np.searchsorted(left, n * (block[right] - 1))
        counts[right] += np.searchsorted(left, keys[right] - n) - first
    result = np.empty(n)
    result[order] = counts
    return result

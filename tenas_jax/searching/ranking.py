"""From measurements to the order in which candidates are pruned (TE-NAS, arXiv 2102.11535, 3.3).

A candidate is one operator on one edge; it is judged by how its removal changes every metric.
Departures from the original code (prune_tenas.py:108-179) are noted where they occur.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from tenas_jax.errors import InputError
from tenas_jax.resolve import located, resolve

Combination = Callable[[Int[np.ndarray, "candidate metric"]], Any]
"""Maps ranks to the importance of each candidate; rank 0 is the worst by a metric."""


def log_sum(ranks: Int[np.ndarray, "candidate metric"]) -> Float[np.ndarray, " candidate"]:
    """The sum of the logarithms of the ranks, counted from 1: one bad rank outweighs good ones.

    AZ-NAS (Lee and Ham, CVPR 2024), eq. 9, without the division of ranks by their number, which
    shifts all importances equally.

    Args:
        ranks: ranks from 0, the worst, shape (candidates, metrics).

    Example:
        >>> log_sum(np.array([[0, 8], [3, 3]])).round(2)
        array([2.2 , 2.77])
    """
    total: np.ndarray = np.log1p(ranks).sum(axis=-1)
    return total


COMBINATIONS: dict[str, Combination] = {
    "sum": partial(np.sum, axis=-1),
    "log_sum": log_sum,
    "min": partial(np.min, axis=-1),
    "max": partial(np.max, axis=-1),
}


def get_combination(name: str, metrics: Sequence[str]) -> Combination:
    """Look up how the ranks of a candidate are combined into its importance.

    Args:
        name: a key of `COMBINATIONS`; the name of a metric, to use only its rank; or
            `module:object`, a function of the ranks [candidate, metric] (0 is the worst) that
            returns one number per candidate (higher is better).
        metrics: the metrics' names, in the order of the columns.

    Raises:
        InputError: the name is unknown; or, when called, the function returns something else.

    Example:
        >>> ranks = np.array([[0, 3], [2, 0]])
        >>> get_combination("sum", ["kappa", "regions"])(ranks)
        array([3, 2])
        >>> get_combination("kappa", ["kappa", "regions"])(ranks)
        array([0, 2])
    """
    single: dict[str, Combination] = {
        metric: partial(np.take, indices=i, axis=-1) for i, metric in enumerate(metrics)
    }
    chosen = resolve(name, COMBINATIONS | single, Callable, "combination")  # type: ignore[arg-type]
    return _checked(chosen, name) if ":" in name else chosen


def _checked(combination: Combination, name: str) -> Combination:
    def call(ranks: Int[np.ndarray, "candidate metric"]) -> Any:
        try:
            result = np.asarray(combination(ranks), float)
        except Exception as error:  # the user's function may raise anything
            raise InputError(f"combination {name!r}: {located(error)}") from error
        if result.shape != ranks.shape[:1] or np.isnan(result).any():
            raise InputError(
                f"combination {name!r} returned {result.shape} for ranks {ranks.shape}: it must be "
                "a number for each row, none of them NaN"
            )
        return result

    return call


def _relative(full: np.ndarray, pruned: np.ndarray) -> np.ndarray:
    change: np.ndarray = (full - pruned) / np.abs(full)
    return change


def _log(full: np.ndarray, pruned: np.ndarray) -> np.ndarray:
    change: np.ndarray = np.log(full) - np.log(pruned)
    return change


# The change of a metric: positive if the metric is greater with the candidate.
DIFFERENCES: dict[str, Callable[..., np.ndarray]] = {"relative": _relative, "log": _log}


def differences(
    full: Float[np.ndarray, "metric repeat"],
    pruned: Float[np.ndarray, "candidate metric repeat"],
    *,
    difference: str = "relative",
    decimals: int | None,
) -> Float[np.ndarray, "candidate metric repeat"]:
    """The change of each metric when a candidate is removed from the unpruned supernet.

    `relative`: round((m - m_without) / |m|, decimals). The original divides by m, which is the same
    for its two positive metrics; the modulus keeps the sign of the change for other metrics. `log`:
    round(log m - log m_without, decimals), which large values do not dominate.

    If a metric is not finite, such as the condition number of a singular kernel:

    - m finite, m_without inf: -inf (removing the candidate makes the kernel singular: keep it);
    - m inf, m_without finite: the limit, +1 if relative, else inf;
    - both inf, or one NaN: undefined, NaN.

    Args:
        full: metrics of the supernet, shape (metrics, repeats).
        pruned: metrics without each candidate, measured with the same weights and images in each
            repeat, shape (candidates, metrics, repeats); NaN if not measured.
        difference: a key of `DIFFERENCES`.
        decimals: digits after the point; None: unrounded.

    Returns:
        Differences, shape (candidates, metrics, repeats).

    Example:
        >>> full = np.array([[100.0, 200.0]])
        >>> pruned = np.array([[[90.0, 150.0]], [[100.0, np.inf]]])
        >>> differences(full, pruned, decimals=3).tolist()
        [[[0.1, 0.25]], [[0.0, -inf]]]
    """
    full, pruned = full.astype(np.float64), pruned.astype(np.float64)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        changes = DIFFERENCES[difference](full, pruned)
        if difference == "relative":
            changes = np.where(np.isinf(full) & np.isfinite(pruned), np.sign(full), changes)
    return changes if decimals is None else _round(changes, decimals)


def mean_differences(
    differences: Float[np.ndarray, "candidate metric repeat"],
) -> Float[np.ndarray, "candidate metric"]:
    """Means over the defined repeats.

    Args:
        differences: the result of `differences`.

    Returns:
        Means, never NaN, shape (candidates, metrics). 0 without evidence: if all repeats are
        undefined, or some are +inf and others -inf.

    Example:
        >>> mean_differences(np.array([[[0.1, np.nan]], [[0.5, -np.inf]]]))
        array([[ 0.1],
               [-inf]])
    """
    defined = ~np.isnan(differences)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = differences.sum(axis=-1, where=defined) / defined.sum(axis=-1)
    return np.where(np.isnan(mean), 0.0, mean)


def standard_errors(
    differences: Float[np.ndarray, "candidate metric repeat"],
) -> Float[np.ndarray, "candidate metric"]:
    """Standard errors of `mean_differences`, over the defined repeats.

    Args:
        differences: the result of `differences`.

    Returns:
        Standard errors, shape (candidates, metrics); NaN if fewer than two repeats are defined or
        one is infinite.

    Example:
        >>> standard_errors(np.array([[[0.1, 0.3, np.nan]], [[0.5, -np.inf, 0.1]]])).round(6)
        array([[0.1],
               [nan]])
    """
    defined = ~np.isnan(differences)
    count = defined.sum(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = differences.sum(axis=-1, where=defined) / count
        squares = np.square(differences - mean[..., np.newaxis]).sum(axis=-1, where=defined)
        errors: np.ndarray = np.sqrt(squares / (count - 1) / count)
    return errors


def _round(values: np.ndarray, decimals: int) -> np.ndarray:
    # Python rounds the exact decimal value; np.round scales first and differs in the last digit.
    rounded = [round(value, decimals) for value in values.ravel().tolist()]
    return np.array(rounded, np.float64).reshape(values.shape)


def dense_ranks(
    values: Float[np.ndarray, " candidate"], *, descending: bool
) -> Int[np.ndarray, " candidate"]:
    """Ranks from 0; equal values share a rank, and the next value's rank is one higher.

    The original sorts by 3 significant digits but compares neighbors at full precision, so values
    that agree to 3 digits may be ranked out of order. Here both use the exact values.

    Args:
        values: one value per candidate, not NaN.
        descending: whether the largest value has rank 0.

    Returns:
        Ranks, shape (candidates,).

    Example:
        >>> dense_ranks(np.array([0.5, 0.1, 0.5, 0.3]), descending=True)
        array([0, 2, 0, 1])
    """
    return np.unique(-values if descending else values, return_inverse=True)[1]


def metric_ranks(
    differences: Float[np.ndarray, "candidate metric"], directions: Mapping[str, int]
) -> Int[np.ndarray, "candidate metric"]:
    """Ranks of the candidates by each metric; removing rank 0 improves the metric most.

    Args:
        differences: the result of `mean_differences`, shape (candidates, metrics).
        directions: for each metric, in the order of the columns, +1 if higher is better (linear
            regions), -1 if lower is better (condition number).

    Returns:
        Dense ranks, shape (candidates, metrics).

    Example:
        >>> differences = np.array([[0.2, 0.1], [-0.4, 0.1], [0.2, -0.1]])
        >>> metric_ranks(differences, {"kappa": -1, "regions": 1})
        array([[0, 1],
               [1, 1],
               [0, 0]])
    """
    columns = zip(differences.T, directions.values(), strict=True)
    return np.stack([dense_ranks(column, descending=sign < 0) for column, sign in columns], axis=-1)


def importance(
    differences: Float[np.ndarray, "candidate metric"],
    directions: Mapping[str, int],
    combination: str = "sum",
) -> Float[np.ndarray, " candidate"] | Int[np.ndarray, " candidate"]:
    """Importance of the candidates by all metrics; the lowest is pruned first.

    Args:
        differences: the result of `mean_differences`, shape (candidates, metrics).
        directions: +1 or -1 for each metric, see `metric_ranks`.
        combination: see `get_combination`.

    Returns:
        Importance, shape (candidates,).

    Raises:
        InputError: see `get_combination`.

    Example:
        >>> differences = np.array([[0.2, 0.1], [-0.4, 0.1], [0.2, -0.1]])
        >>> importance(differences, {"kappa": -1, "regions": 1})
        array([1, 2, 0])
        >>> importance(differences, {"kappa": -1, "regions": 1}, "kappa")
        array([0, 1, 0])
    """
    combine = get_combination(combination, list(directions))
    combined: np.ndarray = combine(metric_ranks(differences, directions))
    return combined


def pruning_order(
    differences: Float[np.ndarray, "candidate metric"],
    directions: Mapping[str, int],
    combination: str = "sum",
) -> Int[np.ndarray, " candidate"]:
    """Indices of the candidates in pruning order.

    Sorted by `importance`; ties by the rank in the first metric, then by index.

    Args:
        differences: the result of `mean_differences`, shape (candidates, metrics).
        directions: +1 or -1 for each metric, see `metric_ranks`.
        combination: see `importance`.

    Returns:
        A permutation of the candidates, shape (candidates,).

    Raises:
        InputError: see `importance`.

    Example:
        >>> differences = np.array([[0.1, -0.2], [0.3, 0.0], [0.2, -0.1]])
        >>> importance(differences, {"kappa": -1, "regions": 1})
        array([2, 2, 2])
        >>> pruning_order(differences, {"kappa": -1, "regions": 1})
        array([1, 2, 0])
    """
    first_metric = metric_ranks(differences, directions)[:, 0]
    return np.lexsort((first_metric, importance(differences, directions, combination)))


def finite_or_worst(
    values: Float[np.ndarray, "architecture metric"], directions: Mapping[str, int]
) -> Float[np.ndarray, "architecture metric"]:
    """Replace values that are not finite by the worse infinity.

    For every metric, infinity and NaN mean that it failed to measure the architecture.

    Args:
        values: metrics of architectures, shape (architectures, metrics).
        directions: +1 or -1 for each metric, see `metric_ranks`.

    Example:
        >>> finite_or_worst(np.array([[np.nan, 5.0], [80.0, np.inf]]), {"kappa": -1, "regions": 1})
        array([[ inf,   5.],
               [ 80., -inf]])
    """
    worst = -np.inf * np.array(list(directions.values()))
    return np.where(np.isfinite(values), values, worst)


def best_first(
    values: Float[np.ndarray, "architecture metric"],
    directions: Mapping[str, int],
    combination: str = "sum",
) -> Int[np.ndarray, " architecture"]:
    """Indices of whole architectures, best first.

    Sorted by the `importance` of their ranks; ties by the first metric, then by index. Values that
    are not finite are the worst.

    Args:
        values: metrics of architectures, shape (architectures, metrics).
        directions: +1 or -1 for each metric, see `metric_ranks`.
        combination: see `get_combination`.

    Returns:
        A permutation of the architectures, shape (architectures,).

    Raises:
        InputError: see `get_combination`.

    Example:
        >>> values = np.array([[90.0, 5.0], [80.0, 9.0], [np.nan, 7.0]])
        >>> best_first(values, {"kappa": -1, "regions": 1})
        array([1, 0, 2])
    """
    known = finite_or_worst(values, directions)
    # The greatest difference means the greatest loss by pruning, the greatest value the best
    # architecture. So the ranks are the same, and here the highest importance comes first.
    first_metric = metric_ranks(known, directions)[:, 0]
    return np.lexsort((-first_metric, -importance(known, directions, combination)))

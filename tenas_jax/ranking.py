"""From measurements to the order in which candidates are pruned (TE-NAS, arXiv 2102.11535, 3.3).

A candidate is one operator on one edge; it is judged by what its removal does to every metric.
Departures from the original code (prune_tenas.py:108-179) are named where they happen.
"""

from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Float, Int

from tenas_jax.errors import InputError

# How a candidate's ranks become one importance; the name of a metric stands for its rank alone.
COMBINATIONS: dict[str, Callable[..., np.ndarray]] = {"sum": np.sum, "min": np.min, "max": np.max}


def relative_differences(
    full: Float[np.ndarray, "metric repeat"],
    pruned: Float[np.ndarray, "candidate metric repeat"],
    *,
    decimals: int | None,
) -> Float[np.ndarray, "candidate metric"]:
    """What removing each candidate does to each metric, relative to the unpruned supernet.

    The mean over the repeats of `round((m - m_without) / |m|, decimals)`. The original divides by
    m, the same for its two positive metrics; the modulus keeps the sign of a change for others.

    Where a metric is not finite, as the condition number of a singular kernel is not:

    - m finite, m_without inf: -inf (removing the candidate makes the kernel singular: keep it);
    - m inf, m_without finite: +1, the limit;
    - both inf, or one NaN: undefined, the repeat is left out of the mean;
    - all repeats undefined: 0, as there is no evidence.

    Args:
        full: metrics of the supernet, shape (metrics, repeats).
        pruned: the same without each candidate, measured with the same weights and images in each
            repeat, shape (candidates, metrics, repeats).
        decimals: digits after the point of a repeat's difference; None: unrounded.

    Returns:
        Mean relative differences, never NaN, shape (candidates, metrics).

    Example:
        >>> full = np.array([[100.0, 200.0]])
        >>> pruned = np.array([[[90.0, 150.0]], [[100.0, np.inf]]])
        >>> relative_differences(full, pruned, decimals=3)
        array([[0.175],
               [ -inf]])
    """
    full, pruned = full.astype(np.float64), pruned.astype(np.float64)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        differences = (full - pruned) / np.abs(full)
        differences = np.where(np.isinf(full) & np.isfinite(pruned), np.sign(full), differences)
        if decimals is not None:
            differences = _round(differences, decimals)
        defined = ~np.isnan(differences)
        mean = differences.sum(axis=-1, where=defined) / defined.sum(axis=-1)
    return np.where(np.isnan(mean), 0.0, mean)


def _round(values: np.ndarray, decimals: int) -> np.ndarray:
    # Python rounds the exact decimal value; np.round scales first and differs in the last digit.
    rounded = [round(value, decimals) for value in values.ravel().tolist()]
    return np.array(rounded, np.float64).reshape(values.shape)


def dense_ranks(
    values: Float[np.ndarray, " candidate"], *, descending: bool
) -> Int[np.ndarray, " candidate"]:
    """Ranks from 0 where equal values share a rank and the next value's rank is one higher.

    The original sorts by 3 significant digits but compares neighbors in full, so that values equal
    to 3 digits may be ranked against their order. Here both use the values themselves.

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
        differences: what `relative_differences` returns, shape (candidates, metrics).
        directions: for each metric, in the order of the columns, +1 where a higher value is better
            (linear regions), -1 where a lower one is (condition number).

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
) -> Int[np.ndarray, " candidate"]:
    """Importance of the candidates by all metrics; the lowest is pruned first.

    Args:
        differences: what `relative_differences` returns, shape (candidates, metrics).
        directions: +1 or -1 for each metric, see `metric_ranks`.
        combination: a key of `COMBINATIONS`, applied to the ranks, or the name of one metric.

    Returns:
        Importance in ranks, shape (candidates,).

    Raises:
        InputError: the combination is neither.

    Example:
        >>> differences = np.array([[0.2, 0.1], [-0.4, 0.1], [0.2, -0.1]])
        >>> importance(differences, {"kappa": -1, "regions": 1})
        array([1, 2, 0])
        >>> importance(differences, {"kappa": -1, "regions": 1}, "kappa")
        array([0, 1, 0])
    """
    ranks = metric_ranks(differences, directions)
    if combination in COMBINATIONS:
        return COMBINATIONS[combination](ranks, axis=-1)
    if combination in directions:
        return ranks[:, list(directions).index(combination)]
    choices = ", ".join([*COMBINATIONS, *directions])
    raise InputError(f"unknown combination {combination!r} of ranks: choose from {choices}")


def pruning_order(
    differences: Float[np.ndarray, "candidate metric"],
    directions: Mapping[str, int],
    combination: str = "sum",
) -> Int[np.ndarray, " candidate"]:
    """Indices of the candidates in the order in which they are to be pruned.

    By `importance`; equal ones by their rank in the first metric, then as they come.

    Args:
        differences: what `relative_differences` returns, shape (candidates, metrics).
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

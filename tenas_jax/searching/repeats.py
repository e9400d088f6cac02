"""Statistics of repeated measurements, and the certainty of decisions based on them."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from tenas_jax.searching.ranking import mean_differences, standard_errors

DRAWS = 400  # gives a probability of 0.95 a standard error of 0.01


def summarized(
    metrics: Iterable[str], values: Float[np.ndarray, "metric repeat"]
) -> dict[str, Any]:
    """Summarize the repeated measurements of a network, for `result.json`.

    Args:
        metrics: names of the metrics.
        values: their measurements.

    Returns:
        `repeats`, the number of repeats; `metrics`, the means, which are not finite if a repeat is
        not; and their `standard_errors`, NaN if a mean is not finite or there was one repeat.

    Example:
        >>> summarized(["kappa"], np.array([[9.0, 11.0]]))
        {'repeats': 2, 'metrics': {'kappa': 10.0}, 'standard_errors': {'kappa': 1.0}}
    """
    with np.errstate(invalid="ignore"):
        means = values.mean(axis=-1)
    errors = np.where(np.isfinite(means), standard_errors(values[np.newaxis])[0], np.nan)
    names = list(metrics)
    return {
        "repeats": values.shape[-1],
        "metrics": dict(zip(names, means.tolist(), strict=True)),
        "standard_errors": dict(zip(names, errors.tolist(), strict=True)),
    }


def probabilities(
    values: Float[np.ndarray, "candidate metric repeat"],
    chosen: Callable[[Float[np.ndarray, "candidate metric"]], Bool[np.ndarray, " candidate"]],
    *,
    seed: int,
    draws: int = DRAWS,
) -> Float[np.ndarray, " candidate"]:
    """Probability that each candidate is chosen, given the noise of its measurements.

    Means are drawn independently from Student distributions with n - 1 degrees of freedom, centered
    at the measured means and scaled by their standard errors. The probability of a candidate is the
    fraction of draws in which it is chosen.

    Args:
        values: measurements of the candidates in each repeat, such as the result of
            `tenas_jax.searching.ranking.differences`; NaN if not measured.
        chosen: maps means to the candidates that are chosen.
        seed: seed of the draws.
        draws: number of draws.

    Returns:
        Probabilities, shape (candidates,).

    Example:
        >>> values = np.array([[[0.5, 0.6, 0.5]], [[0.1, 0.2, 0.1]]])
        >>> largest = lambda means: means[:, 0] == means.max()
        >>> probabilities(values, largest, seed=0).round(1).tolist()
        [1.0, 0.0]
    """
    rng = np.random.default_rng(seed)
    means, errors = mean_differences(values), standard_errors(values)
    freedom = np.maximum((~np.isnan(values)).sum(-1) - 1, 1)
    noise = rng.standard_t(freedom, (draws, *means.shape)) * np.nan_to_num(errors)
    shares: np.ndarray = np.mean([chosen(means + each) for each in noise], axis=0)
    return shares

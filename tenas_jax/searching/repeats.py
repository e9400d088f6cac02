"""How sure the repeats of a measurement make a decision."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float

from tenas_jax.searching.ranking import mean_differences, standard_errors

DRAWS = 400  # the probability of 0.95 has a standard error of 0.01


def pruning_probabilities(
    differences: Float[np.ndarray, "candidate metric repeat"],
    pruned: Callable[[Float[np.ndarray, "candidate metric"]], Bool[np.ndarray, " candidate"]],
    *,
    seed: int,
    draws: int = DRAWS,
) -> Float[np.ndarray, " candidate"]:
    """Probability that each candidate is among the pruned, given the noise of its differences.

    The means are drawn from Student distributions of n - 1 degrees of freedom around the measured
    means, as wide as their standard errors, independently; the share of draws in which a candidate
    is pruned is its probability.

    Args:
        differences: what `tenas_jax.searching.ranking.differences` returns.
        pruned: decides by means which candidates are pruned.
        seed: of the draws.
        draws: how many.

    Returns:
        Probabilities, shape (candidates,).

    Example:
        >>> differences = np.array([[[0.5, 0.6, 0.5]], [[0.1, 0.2, 0.1]]])
        >>> pruned = lambda means: means[:, 0] == means.max()
        >>> pruning_probabilities(differences, pruned, seed=0).round(1).tolist()
        [1.0, 0.0]
    """
    rng = np.random.default_rng(seed)
    means, errors = mean_differences(differences), standard_errors(differences)
    freedom = np.maximum((~np.isnan(differences)).sum(-1) - 1, 1)
    noise = rng.standard_t(freedom, (draws, *means.shape)) * np.nan_to_num(errors)
    shares: np.ndarray = np.mean([pruned(means + each) for each in noise], axis=0)
    return shares

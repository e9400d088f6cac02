"""The strategy shortlist: the largest networks, then the best of them."""

from collections.abc import Hashable

import numpy as np

from tenas_jax.architectures import enumeration
from tenas_jax.architectures.cell_space import has_dead_operators
from tenas_jax.architectures.isomorphism import canonical_form
from tenas_jax.architectures.space import Masks
from tenas_jax.errors import InputError
from tenas_jax.searching.baselines import best_of
from tenas_jax.searching.constraints import draw, list_allowed
from tenas_jax.searching.problem import Problem
from tenas_jax.searching.rows import Run


def shortlist(problem: Problem) -> Run:
    """The best of the `budget` largest architectures, by the metrics.

    Size is free and exact, and it orders a whole space better than most measurements do, but it
    does not tell the largest networks apart. So size selects the candidates, and measurements
    decide among them. With `repeats` auto all are measured a few times; then those that may be
    first are measured again until the first is decided.

    The largest are those with the highest cost among all architectures that satisfy the
    constraints, or among `shortlist.pool` random ones if the space is too large. Ties in size are
    broken at random, by the seed.

    Args:
        problem: what is searched.

    Returns:
        A generator that was not started.

    Raises:
        InputError: no architecture satisfies the constraints.
    """
    return best_of(problem, largest(problem))


def largest(problem: Problem) -> Masks:
    """The architectures that `shortlist` measures, largest first.

    No two are isomorphic, and none has dead operators, which add size without effect.

    Args:
        problem: what is searched.

    Raises:
        InputError: no architecture satisfies the constraints and is free of dead operators.

    Example:
        >>> from tenas_jax.searching.config import SearchConfig
        >>> from tenas_jax.searching.problem import look_up
        >>> problem = look_up(SearchConfig(strategy="shortlist", budget=1, flops=":120M"))
        >>> problem.space.costs(largest(problem)).flops.tolist()
        [117883530]
    """
    config, space = problem.config, problem.space
    rng = np.random.default_rng(config.seed)
    if enumeration.can_list(space):
        masks = list_allowed(space, config.constraints)
    else:
        masks = draw(space, config.constraints, config.shortlist.pool, rng)
    costs = getattr(space.costs(masks), config.shortlist.by)
    different: dict[Hashable, int] = {}
    for i in np.lexsort((rng.permutation(len(masks)), -costs)):
        if not has_dead_operators(space, masks[i]):
            different.setdefault(canonical_form(space, masks[i]), i)
        if len(different) == config.budget:
            break
    if not different:
        raise InputError(
            f"no architecture of {space.name} that is allowed is without dead operators"
        )
    return masks[list(different.values())]

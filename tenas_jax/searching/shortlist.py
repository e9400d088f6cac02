"""The strategy shortlist: the largest networks that the budget allows, then the best of them."""

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
    """The best by its metrics of the `budget` largest architectures.

    Size is free and exact, and orders a whole space better than most measurements do; but it says
    nothing about which of the largest networks is the best. So it decides first, and what is
    measured decides among equals. With `repeats` auto all are measured a few times, then those
    again that may be the first, until it is decided.

    Largest is what costs most among all architectures that keep to the constraints, or among
    `shortlist.pool` random ones where there are too many. Of equally large ones chance decides, by
    the seed.

    Args:
        problem: what is searched.

    Returns:
        A generator that was not started.

    Raises:
        InputError: no architecture keeps to the constraints.
    """
    return best_of(problem, largest(problem))


def largest(problem: Problem) -> Masks:
    """The architectures that `shortlist` measures, the largest first.

    No two are isomorphic, and none has dead operators, which make it larger without any use.

    Args:
        problem: what is searched.

    Raises:
        InputError: no architecture keeps to the constraints and has no dead operators.

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

"""The strategies by name."""

from collections.abc import Callable, Mapping

from tenas_jax.architectures import enumeration
from tenas_jax.errors import quantity
from tenas_jax.resolve import resolve
from tenas_jax.searching.baselines import evolution, exhaustive, random
from tenas_jax.searching.constraints import Constraints
from tenas_jax.searching.problem import Problem
from tenas_jax.searching.rows import Strategy
from tenas_jax.searching.shortlist import shortlist
from tenas_jax.searching.te_nas import evaluations_per_round, prune

STRATEGIES: Mapping[str, Strategy] = {
    "prune": prune,
    "shortlist": shortlist,
    "random": random,
    "evolution": evolution,
    "exhaustive": exhaustive,
}


def get_strategy(name: str) -> Strategy:
    """Look up a strategy by name.

    Args:
        name: a key of `STRATEGIES`, or `module:object`, a function as described in
            `tenas_jax.searching.rows`.

    Raises:
        InputError: there is no such strategy.

    Example:
        >>> get_strategy("prune").__name__
        'prune'
    """
    return resolve(name, STRATEGIES, Callable, "strategy")  # type: ignore[arg-type]


def describe(problem: Problem) -> str:
    """A short description of what a search will measure.

    Example:
        >>> from tenas_jax.searching.config import SearchConfig
        >>> from tenas_jax.searching.problem import look_up
        >>> describe(look_up(SearchConfig()))
        '24 evaluations in round 1, 3 repeats each'
        >>> describe(look_up(SearchConfig(strategy="random", budget=9, repeats=1)))
        'random, 9 architectures, 1 repeat each'
    """
    config, space = problem.config, problem.space
    auto = config.auto_repeats
    repeats = f"{auto.minimum} to {quantity(auto.maximum, 'repeat')} each"
    if config.repeats != "auto":
        repeats = f"{quantity(config.repeats, 'repeat')} each"
    if config.strategy == "prune":
        first = evaluations_per_round(space, config.prune_number)[0]
        return f"{quantity(first, 'evaluation')} in round 1, {repeats}"
    if config.strategy not in STRATEGIES:
        return f"{config.strategy}, {repeats}"
    total = enumeration.count(space)
    count = quantity(min(config.budget, total), "architecture")
    if config.strategy == "exhaustive":
        count = f"{quantity(total, 'architecture')}, isomorphic ones once"
    limited = "" if config.constraints == Constraints() else "at most "
    return f"{config.strategy}, {limited}{count}, {repeats}"

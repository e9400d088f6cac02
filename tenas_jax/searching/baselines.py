"""Strategies among whole architectures, to compare with: random, exhaustive, evolution."""

from collections.abc import Generator

import numpy as np
from jaxtyping import Float, Int

from tenas_jax.architectures import enumeration
from tenas_jax.architectures.space import Masks
from tenas_jax.searching import ranking
from tenas_jax.searching.problem import Problem
from tenas_jax.searching.rows import Found, Measurements, Row, Run, Work


def random(problem: Problem) -> Run:
    """The best of `budget` architectures drawn at random, without repetition.

    Args:
        problem: what is searched.

    Returns:
        A generator that was not started.
    """
    config = problem.config
    drawn = enumeration.sample(problem.space, config.budget, np.random.default_rng(config.seed))
    return _best_of(problem, drawn)


def exhaustive(problem: Problem) -> Run:
    """The best of all architectures of a space.

    Args:
        problem: what is searched.

    Returns:
        A generator that was not started.

    Raises:
        InputError: the space has too many.
    """
    return _best_of(problem, enumeration.enumerate_all(problem.space))


def evolution(problem: Problem) -> Run:
    """Regularized evolution (Real et al., 2019, Algorithm 1) of architectures.

    A generation's children descend from the best of tournaments by one mutation each, and as many
    of the oldest die. Fitness is the importance by ranks among all architectures measured so far;
    the best of them all is found. A child that is known already is measured no second time, but
    counts for the budget.

    Args:
        problem: what is searched.

    Returns:
        A generator that was not started.
    """
    config, space = problem.config, problem.space
    settings, rng = config.evolution, np.random.default_rng(config.seed)
    first = enumeration.sample(problem.space, min(settings.population, config.budget), rng)
    known = {space.to_string(mask): i for i, mask in enumerate(first)}
    masks = first
    values = yield from score(problem, masks, later=config.budget - len(first))
    alive, spent = list(range(len(masks))), len(masks)
    while spent < config.budget:
        fitness = np.empty(len(masks))
        fitness[_best_first(problem, values)] = np.arange(len(masks))
        children = []
        for _ in range(min(settings.children, config.budget - spent)):
            tournament = rng.choice(alive, min(settings.tournament, len(alive)), replace=False)
            parent = masks[tournament[fitness[tournament].argmin()]]
            children.append(enumeration.mutate(space, parent, rng))
        names = [space.to_string(child) for child in children]
        new = {name: i for i, name in enumerate(names) if name not in known}
        spent += len(children)
        if new:
            fresh = np.stack([children[i] for i in new.values()])
            known |= {name: len(masks) + i for i, name in enumerate(new)}
            masks = np.concatenate([masks, fresh])
            measured = yield from score(problem, fresh, later=config.budget - spent)
            values = np.concatenate([values, measured])
        alive = (alive + [known[name] for name in names])[-settings.population :]
    return Found(masks[_best_first(problem, values)[0]], len(masks), [])


def score(
    problem: Problem, masks: Masks, later: int = 0, *, part: int = 0, parts: int = 1
) -> Generator[Work, Measurements, Float[np.ndarray, "architecture metric"]]:
    """Measure architectures, all with the same weights and images in a repeat.

    Args:
        problem: what is measured.
        masks: the architectures.
        later: how many architectures are expected to be measured after these.
        part: which of the scorers measures them, from 0; the others come before and after.
        parts: how many scorers there are.

    Returns:
        A generator like a strategy, whose return value is the means over the repeats.
    """
    config, space = problem.config, problem.space
    assert config.repeats != "auto"
    rows = [
        Row(0, repeat, mask, {"genotype": name, "repeat": repeat})
        for mask in masks
        for name in [space.to_string(mask)]
        for repeat in range(config.repeats)
    ]
    later = (later + len(masks) * (parts - part - 1)) * config.repeats
    values = yield Work(rows, part, parts, later, part)
    means: np.ndarray = values.reshape(len(masks), config.repeats, -1).mean(1)
    return means


def _best_of(problem: Problem, masks: Masks) -> Run:
    values = yield from score(problem, masks)
    return Found(masks[_best_first(problem, values)[0]], len(masks), [])


def _best_first(
    problem: Problem, values: Float[np.ndarray, "architecture metric"]
) -> Int[np.ndarray, " architecture"]:
    """Indices of architectures, the best first; what is not a number is worst."""
    signs = np.array(list(problem.directions.values()))
    known = np.where(np.isnan(values), -np.inf * signs, values)
    # Pruning goes for the greatest loss of a metric; here the greatest value is wanted.
    return ranking.pruning_order(-known, problem.directions, problem.config.combination)

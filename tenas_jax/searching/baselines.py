"""Baseline strategies that measure whole architectures: random, exhaustive, evolution."""

from collections.abc import Generator, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from tenas_jax.architectures import enumeration
from tenas_jax.architectures.isomorphism import first_of_each_class
from tenas_jax.architectures.space import Mask, Masks, SearchSpace
from tenas_jax.metrics.registry import Metric
from tenas_jax.searching import ranking
from tenas_jax.searching.constraints import draw, list_allowed
from tenas_jax.searching.problem import Problem
from tenas_jax.searching.repeats import probabilities
from tenas_jax.searching.rows import Found, Measurements, Row, Run, Work

_MUTATIONS = 100  # attempts to find a mutation that the constraints allow


def random(problem: Problem) -> Run:
    """Random search: the best of `budget` distinct random architectures.

    Args:
        problem: what is searched.

    Returns:
        A generator that was not started.
    """
    config, rng = problem.config, np.random.default_rng(problem.config.seed)
    return best_of(problem, draw(problem.space, config.constraints, config.budget, rng))


def exhaustive(problem: Problem) -> Run:
    """Exhaustive search: the best of all architectures; isomorphic ones are measured once.

    Args:
        problem: what is searched.

    Returns:
        A generator that was not started.

    Raises:
        InputError: the space has too many architectures.
    """
    masks = list_allowed(problem.space, problem.config.constraints)
    return best_of(problem, masks[first_of_each_class(problem.space, masks)[0]])


def evolution(problem: Problem) -> Run:
    """Regularized evolution (Real et al., 2019, Algorithm 1) of architectures.

    Each child mutates a tournament winner once; as many of the oldest are dropped. Fitness is the
    importance by ranks among all architectures measured so far, and the result is the best of them
    all. A child that was measured before is not measured again but counts toward the budget. If no
    mutation keeps to the constraints, the child is a copy of its parent.

    Args:
        problem: what is searched.

    Returns:
        A generator that was not started.
    """
    config, space = problem.config, problem.space
    settings, rng = config.evolution, np.random.default_rng(config.seed)
    first = draw(space, config.constraints, min(settings.population, config.budget), rng)
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
            children.append(_child(problem, parent, rng))
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
    """Measure architectures; within a repeat all share weights and images.

    Args:
        problem: what is measured.
        masks: the architectures.
        later: number of architectures expected to be measured after these.
        part: index of the scorer that measures them.
        parts: number of scorers, which run one after the other.

    Returns:
        A generator like a strategy; it returns the means over the repeats.
    """
    repeats = problem.config.repeats
    assert repeats != "auto"
    later = (later + len(masks) * (parts - part - 1)) * repeats
    values = yield Work(_rows(problem, masks, range(repeats)), part, parts, later, part)
    means: np.ndarray = values.reshape(len(masks), repeats, -1).mean(1)
    return means


def to_measure(
    space: SearchSpace, masks: Masks
) -> tuple[Int[np.ndarray, " measured"], Int[np.ndarray, " architecture"]]:
    """Which architectures to measure: if they are the whole space, isomorphic ones once.

    In a sample each architecture is measured, so isomorphic ones show the noise.

    Args:
        space: the search space.
        masks: architectures, without duplicates.

    Returns:
        The indices of the architectures to measure, and for each architecture the position in them
        of the one whose measurements it shares.
    """
    if len(masks) < enumeration.count(space):
        return np.arange(len(masks)), np.arange(len(masks))
    return first_of_each_class(space, masks)


def of_all(
    space: SearchSpace,
    masks: Masks,
    metrics: Sequence[Metric],
    shared: Float[np.ndarray, "architecture metric"],
) -> Float[np.ndarray, "architecture metric"]:
    """Measurements of all architectures: isomorphic ones share all metrics except counts.

    Isomorphic architectures differ in the parameters and FLOPs of dead operators. The neurons of
    dead operators would count if such an architecture were measured, although they have no effect.

    Args:
        space: the search space.
        masks: the architectures.
        metrics: the columns.
        shared: the shared measurements of each architecture.
    """
    columns = [
        column if metric.count is None else np.asarray(metric.count(space, masks), float)
        for metric, column in zip(metrics, shared.T, strict=True)
    ]
    return np.stack(columns, 1)


def _rows(problem: Problem, masks: Masks, repeats: Sequence[int]) -> list[Row]:
    """All repeats of the first architecture, then of the next."""
    return [
        Row(0, repeat, mask, {"genotype": name, "repeat": repeat})
        for mask in masks
        for name in [problem.space.to_string(mask)]
        for repeat in repeats
    ]


def best_of(problem: Problem, masks: Masks) -> Run:
    """Measure architectures; the result is the first by the importance of their ranks.

    With `repeats` auto all get the minimum number of repeats. Then the smallest set that contains
    the best architecture with probability `auto_repeats.confidence` is measured again, until it is
    a single architecture or has the maximum number of repeats.

    Args:
        problem: what is searched.
        masks: the candidates.

    Returns:
        A generator that was not started.
    """
    config = problem.config
    if config.repeats != "auto":
        means = yield from score(problem, masks)
        return Found(masks[_best_first(problem, means)[0]], len(masks), [])
    settings, directions = config.auto_repeats, problem.directions
    values = np.full((len(masks), len(directions), settings.maximum), np.nan)  # NaN: not measured
    front: Int[np.ndarray, " architecture"] = np.arange(len(masks))
    repeats = range(settings.minimum)
    while repeats.stop <= settings.maximum and len(front) > 1:
        later = len(masks) * settings.minimum - len(front) * len(repeats)
        measured = yield Work(_rows(problem, masks[front], repeats), 0, 1, max(later, 0))
        table = ranking.finite_or_worst(measured, directions)
        table = table.reshape(len(front), len(repeats), -1).transpose(0, 2, 1)
        values[front, :, repeats.start : repeats.stop] = table
        front = _front(problem, values)
        repeats = range(repeats.stop, repeats.stop + 1)
    means = ranking.mean_differences(values)
    return Found(masks[_best_first(problem, means)[0]], len(masks), [])


def _front(
    problem: Problem, values: Float[np.ndarray, "architecture metric repeat"]
) -> Int[np.ndarray, " front"]:
    """The smallest set of architectures that contains the best one with enough probability."""
    config, everyone = problem.config, np.arange(len(values))

    def is_first(means: Float[np.ndarray, "architecture metric"]) -> Bool[np.ndarray, " candidate"]:
        first: np.ndarray = everyone == _best_first(problem, means)[0]
        return first

    probability = probabilities(values, is_first, seed=config.seed)
    order = np.argsort(-probability, kind="stable")
    enough = np.searchsorted(probability[order].cumsum(), config.auto_repeats.confidence)
    return order[: enough + 1]


def _child(problem: Problem, parent: Mask, rng: np.random.Generator) -> Mask:
    space, constraints = problem.space, problem.config.constraints
    for _ in range(_MUTATIONS):
        child = enumeration.mutate(space, parent, rng)
        if constraints.allow(space, child[None])[0]:
            return child
    return parent


def _best_first(
    problem: Problem, values: Float[np.ndarray, "architecture metric"]
) -> Int[np.ndarray, " architecture"]:
    return ranking.best_first(values, problem.directions, problem.config.combination)

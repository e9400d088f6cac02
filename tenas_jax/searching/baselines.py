"""Strategies among whole architectures, to compare with: random, exhaustive, evolution."""

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

_MUTATIONS = 100  # of a parent, before it has no child that the constraints allow


def random(problem: Problem) -> Run:
    """The best of `budget` architectures drawn at random, without repetition.

    Args:
        problem: what is searched.

    Returns:
        A generator that was not started.
    """
    config, rng = problem.config, np.random.default_rng(problem.config.seed)
    return best_of(problem, draw(problem.space, config.constraints, config.budget, rng))


def exhaustive(problem: Problem) -> Run:
    """The best of all architectures of a space, of which isomorphic ones are measured once.

    Args:
        problem: what is searched.

    Returns:
        A generator that was not started.

    Raises:
        InputError: the space has too many.
    """
    masks = list_allowed(problem.space, problem.config.constraints)
    return best_of(problem, masks[first_of_each_class(problem.space, masks)[0]])


def evolution(problem: Problem) -> Run:
    """Regularized evolution (Real et al., 2019, Algorithm 1) of architectures.

    A generation's children descend from the best of tournaments by one mutation each, and as many
    of the oldest die. Fitness is the importance by ranks among all architectures measured so far;
    the best of them all is found. A child that is known already is measured no second time, but
    counts for the budget. A parent whose mutations break the constraints stays as it is.

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
    repeats = problem.config.repeats
    assert repeats != "auto"
    later = (later + len(masks) * (parts - part - 1)) * repeats
    values = yield Work(_rows(problem, masks, range(repeats)), part, parts, later, part)
    means: np.ndarray = values.reshape(len(masks), repeats, -1).mean(1)
    return means


def to_measure(
    space: SearchSpace, masks: Masks
) -> tuple[Int[np.ndarray, " measured"], Int[np.ndarray, " architecture"]]:
    """Which of some architectures are measured: of isomorphic ones the first, if they are all.

    Those of a sample are each measured: whoever compares two isomorphic ones sees the deviation.

    Args:
        space: the search space.
        masks: architectures, no two the same.

    Returns:
        The indices of those that are measured, and for each architecture where in these indices the
        one is whose measurements it has.
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
    """Measurements of all architectures: shared by isomorphic ones, but their own counts.

    Isomorphic architectures differ in the parameters and FLOPs of dead operators. The neurons of
    these, too, would count if such an architecture were measured, though they do not matter.

    Args:
        space: the search space.
        masks: the architectures.
        metrics: the columns.
        shared: the measurements of those that were measured, for each architecture.
    """
    columns = [
        column if metric.count is None else np.asarray(metric.count(space, masks), float)
        for metric, column in zip(metrics, shared.T, strict=True)
    ]
    return np.stack(columns, 1)


def _rows(problem: Problem, masks: Masks, repeats: Sequence[int]) -> list[Row]:
    """Every repeat of the first architecture, then of the next."""
    return [
        Row(0, repeat, mask, {"genotype": name, "repeat": repeat})
        for mask in masks
        for name in [problem.space.to_string(mask)]
        for repeat in repeats
    ]


def best_of(problem: Problem, masks: Masks) -> Run:
    """Measure architectures; the first by the importance of their ranks is found.

    With `repeats` auto all have the minimum of repeats. Then those have more that are among the
    fewest that hold the first with the probability `auto_repeats.confidence`, until it is one, or
    they have the maximum.

    Args:
        problem: what is searched.
        masks: its candidates.

    Returns:
        A generator that was not started.
    """
    config = problem.config
    if config.repeats != "auto":
        means = yield from score(problem, masks)
        return Found(masks[_best_first(problem, means)[0]], len(masks), [])
    settings, directions = config.auto_repeats, problem.directions
    values = np.full((len(masks), len(directions), settings.maximum), np.nan)  # where not measured
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
    """The fewest architectures that hold the first one with enough probability."""
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

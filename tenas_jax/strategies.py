"""Strategies of a search: what to measure next, given what has been measured.

A strategy is a generator. It yields `Work`, rows to be measured, and is sent their measurements; or
it yields a `Decision`, to be recorded. Its return value is what it found. It has no side effects
and draws nothing that its configuration's seed does not decide, so that a search can be replayed
from its trace.
"""

from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from tenas_jax import architectures, genotype, pruning, ranking
from tenas_jax.config import SearchConfig
from tenas_jax.metrics import get_metric
from tenas_jax.repeats import pruning_probabilities
from tenas_jax.spaces import SearchSpace


class Row(NamedTuple):
    """One measurement: the round and repeat that decide its key, the operators kept, its name."""

    round: int
    repeat: int
    mask: Bool[np.ndarray, "cell edge op"]
    identity: dict[str, Any]
    """What the trace calls it."""


class Work(NamedTuple):
    """Rows to measure next, and where the search stands: rounds are counted from 0."""

    rows: list[Row]
    round: int
    rounds: int
    later: int
    """Measurements expected after these; with automatic repeats the fewest possible."""


class Decision(NamedTuple):
    """What a round of pruning decided, for the trace."""

    candidates: list[dict[str, Any]]


class Found(NamedTuple):
    """The outcome of a search."""

    mask: Bool[np.ndarray, "cell edge op"]
    evaluations: int
    """Candidates or architectures, each measured in several repeats."""
    rounds: list[dict[str, Any]]
    """What `result.json` says about each round of pruning."""


Strategy = Generator[Work | Decision, Float[np.ndarray, "row metric"], Found]
Masks = Bool[np.ndarray, "architecture cell edge op"]


def get_strategy(config: SearchConfig, space: SearchSpace) -> Strategy:
    """The strategy that a configuration names.

    Args:
        config: what is searched.
        space: the search space.

    Returns:
        A generator that was not started.
    """
    return STRATEGIES[config.strategy](config, space)


def describe(config: SearchConfig, space: SearchSpace) -> str:
    """What a search is going to measure, in a few words.

    Example:
        >>> from tenas_jax.spaces import NAS_BENCH_201
        >>> describe(SearchConfig(), NAS_BENCH_201)
        '24 evaluations in round 1, 3 repeats each'
        >>> describe(SearchConfig(strategy="random", budget=9, repeats=1), NAS_BENCH_201)
        'random, 9 architectures, 1 repeats each'
    """
    repeats = f"{config.repeats} repeats each"
    if config.strategy == "prune":
        first = evaluations_per_round(space, config.prune_number)[0]
        return f"{first} evaluations in round 1, {repeats}"
    total = architectures.count(space) if config.strategy == "exhaustive" else config.budget
    return f"{config.strategy}, {total} architectures, {repeats}"


def directions(config: SearchConfig) -> dict[str, int]:
    """For each metric of a configuration +1 where higher is better, -1 where lower is.

    Example:
        >>> directions(SearchConfig())
        {'kappa': -1, 'regions': 1}
    """
    return {name: get_metric(name).direction for name in config.metric_names}


def evaluations_per_round(space: SearchSpace, prune_number: int) -> list[int]:
    """How many candidates each round of pruning measures, whatever their measurements.

    Args:
        space: the search space.
        prune_number: operators pruned per edge and round.

    Returns:
        Candidates, one number per round.

    Example:
        >>> from tenas_jax.spaces import NAS_BENCH_201
        >>> evaluations_per_round(NAS_BENCH_201, prune_number=1)
        [24, 18, 12]
    """
    state, counts = pruning.init(space), []
    while not pruning.done(space, state):
        candidates = pruning.candidates(space, state)
        groups = pruning.groups(space, state, prune_number)
        state, _ = pruning.prune_step(state, candidates, np.arange(len(candidates)), groups)
        counts.append(len(candidates))
    return counts


def prune(config: SearchConfig, space: SearchSpace) -> Strategy:
    """TE-NAS (arXiv 2102.11535, Algorithm 1): prune the supernet until an architecture is left.

    With `repeats` auto every candidate has at least the minimum of repeats; then those have more
    whose fate the repeats so far leave open, until none is left or they have the maximum.

    Args:
        config: what is searched.
        space: the search space.

    Returns:
        The strategy.
    """
    auto = config.repeats == "auto"
    minimum = config.auto_repeats.minimum if config.repeats == "auto" else config.repeats
    counts = evaluations_per_round(space, config.prune_number)
    state, rounds = pruning.init(space), []
    while not pruning.done(space, state):
        candidates = pruning.candidates(space, state)
        groups = pruning.groups(space, state, config.prune_number)
        later = minimum * sum(1 + count for count in counts[state.round + 1 :])
        rows = _supernet_rows(space, state, candidates, range(minimum))
        values = yield Work(rows, state.round, len(counts), later)
        values = values.reshape(minimum, 1 + len(candidates), -1)
        supernet, pruned = values[:, 0].T, values[:, 1:].transpose(1, 2, 0)
        changes = _changes(config, supernet, pruned)
        while auto and supernet.shape[1] < config.auto_repeats.maximum:
            undecided = _undecided(config, changes, state, candidates, groups)
            if not len(undecided):
                break
            rows = _supernet_rows(space, state, candidates[undecided], [supernet.shape[1]])
            values = yield Work(rows, state.round, len(counts), later)
            more = np.full((*pruned.shape[:2], 1), np.nan)
            more[undecided, :, 0] = values[1:]
            supernet = np.concatenate([supernet, values[:1].T], -1)
            pruned = np.concatenate([pruned, more], -1)
            changes = _changes(config, supernet, pruned)
        means = ranking.mean_differences(changes)
        order = ranking.pruning_order(means, directions(config), config.combination)
        next_state, info = pruning.prune_step(state, candidates, order, groups)
        rounds.append(_entry(config, space, state, candidates, supernet, changes, info))
        yield Decision([{"round": state.round, **each} for each in rounds[-1]["candidates"]])
        state = next_state
    return Found(state.mask, sum(len(entry["candidates"]) for entry in rounds), rounds)


def random(config: SearchConfig, space: SearchSpace) -> Strategy:
    """The best of `budget` architectures drawn at random, without repetition.

    Args:
        config: what is searched.
        space: the search space.

    Returns:
        The strategy.
    """
    drawn = architectures.sample(space, config.budget, np.random.default_rng(config.seed))
    return _best_of(config, space, drawn)


def exhaustive(config: SearchConfig, space: SearchSpace) -> Strategy:
    """The best of all architectures of a space.

    Args:
        config: what is searched.
        space: the search space.

    Returns:
        The strategy.

    Raises:
        InputError: the space has too many.
    """
    return _best_of(config, space, architectures.enumerate_all(space))


def evolution(config: SearchConfig, space: SearchSpace) -> Strategy:
    """Regularized evolution (Real et al., 2019, Algorithm 1) of architectures.

    A generation's children descend from the best of tournaments by one mutation each, and as many
    of the oldest die. Fitness is the importance by ranks among all architectures measured so far;
    the best of them all is found. A child that is known already is measured no second time, but
    counts for the budget.

    Args:
        config: what is searched.
        space: the search space.

    Returns:
        The strategy.
    """
    settings, rng = config.evolution, np.random.default_rng(config.seed)
    first = architectures.sample(space, min(settings.population, config.budget), rng)
    known = {genotype.to_string(space, mask): i for i, mask in enumerate(first)}
    masks = first
    values = yield from score(config, space, masks, later=config.budget - len(first))
    alive, spent = list(range(len(masks))), len(masks)
    while spent < config.budget:
        fitness = np.empty(len(masks))
        fitness[_best_first(config, values)] = np.arange(len(masks))
        children = []
        for _ in range(min(settings.children, config.budget - spent)):
            tournament = rng.choice(alive, min(settings.tournament, len(alive)), replace=False)
            parent = masks[tournament[fitness[tournament].argmin()]]
            children.append(architectures.mutate(space, parent, rng))
        names = [genotype.to_string(space, child) for child in children]
        new = {name: i for i, name in enumerate(names) if name not in known}
        spent += len(children)
        if new:
            fresh = np.stack([children[i] for i in new.values()])
            known |= {name: len(masks) + i for i, name in enumerate(new)}
            masks = np.concatenate([masks, fresh])
            measured = yield from score(config, space, fresh, later=config.budget - spent)
            values = np.concatenate([values, measured])
        alive = (alive + [known[name] for name in names])[-settings.population :]
    return Found(masks[_best_first(config, values)[0]], len(masks), [])


STRATEGIES: dict[str, Callable[[SearchConfig, SearchSpace], Strategy]] = {
    "prune": prune,
    "random": random,
    "evolution": evolution,
    "exhaustive": exhaustive,
}


def score(
    config: SearchConfig, space: SearchSpace, masks: Masks, later: int = 0
) -> Generator[Work, Float[np.ndarray, "row metric"], Float[np.ndarray, "architecture metric"]]:
    """Measure architectures, all with the same weights and images in a repeat.

    Args:
        config: what is measured.
        space: the search space.
        masks: the architectures.
        later: how many architectures are expected to be measured after these.

    Returns:
        A generator like a strategy, whose return value is the means over the repeats.
    """
    assert config.repeats != "auto"
    rows = [
        Row(0, repeat, mask, {"genotype": name, "repeat": repeat})
        for mask in masks
        for name in [genotype.to_string(space, mask)]
        for repeat in range(config.repeats)
    ]
    values = yield Work(rows, 0, 1, later * config.repeats)
    means: np.ndarray = values.reshape(len(masks), config.repeats, -1).mean(1)
    return means


def _best_of(config: SearchConfig, space: SearchSpace, masks: Masks) -> Strategy:
    values = yield from score(config, space, masks)
    return Found(masks[_best_first(config, values)[0]], len(masks), [])


def _best_first(
    config: SearchConfig, values: Float[np.ndarray, "architecture metric"]
) -> Int[np.ndarray, " architecture"]:
    """Indices of architectures, the best first; what is not a number is worst."""
    signs = np.array(list(directions(config).values()))
    known = np.where(np.isnan(values), -np.inf * signs, values)
    # Pruning goes for the greatest loss of a metric; here the greatest value is wanted.
    return ranking.pruning_order(-known, directions(config), config.combination)


def _supernet_rows(
    space: SearchSpace,
    state: pruning.PruneState,
    candidates: Int[np.ndarray, "candidate 3"],
    repeats: Sequence[int],
) -> list[Row]:
    """For each repeat the supernet, then the supernet without each candidate.

    Common random numbers: a row's key is that of its repeat, whatever is pruned in it.
    """
    nothing = {"cell": None, "edge": None, "op": None}
    supernets = [(state.mask, nothing)] + [
        (pruning.without(state.mask, candidate[None]), _place(space, candidate))
        for candidate in candidates
    ]
    return [
        Row(state.round, repeat, mask, {"round": state.round, "repeat": repeat, **place})
        for repeat in repeats
        for mask, place in supernets
    ]


def _changes(config: SearchConfig, supernet: np.ndarray, pruned: np.ndarray) -> np.ndarray:
    return ranking.differences(
        supernet, pruned, difference=config.difference, decimals=config.decimals
    )


def _undecided(
    config: SearchConfig,
    changes: Float[np.ndarray, "candidate metric repeat"],
    state: pruning.PruneState,
    candidates: Int[np.ndarray, "candidate 3"],
    groups: Sequence[pruning.Group],
) -> Int[np.ndarray, " undecided"]:
    """Indices of the candidates of which it is not settled whether they are pruned."""

    def pruned(means: Float[np.ndarray, "candidate metric"]) -> Bool[np.ndarray, " candidate"]:
        order = ranking.pruning_order(means, directions(config), config.combination)
        mask = pruning.prune_step(state, candidates, order, groups)[0].mask
        gone: np.ndarray = ~mask[tuple(candidates.T)]
        return gone

    probability = pruning_probabilities(changes, pruned, seed=config.seed)
    confidence = config.auto_repeats.confidence
    open_fate = (probability > 1 - confidence) & (probability < confidence)
    return np.flatnonzero(open_fate)


def _entry(
    config: SearchConfig,
    space: SearchSpace,
    state: pruning.PruneState,
    candidates: Int[np.ndarray, "candidate 3"],
    supernet: Float[np.ndarray, "metric repeat"],
    changes: Float[np.ndarray, "candidate metric repeat"],
    info: pruning.PruneInfo,
) -> dict[str, Any]:
    """What `result.json` says about a round; numbers that are not finite are left as they are."""
    signs = directions(config)
    means, errors = ranking.mean_differences(changes), ranking.standard_errors(changes)
    importance = ranking.importance(means, signs, config.combination)
    repeats = (~np.isnan(changes)).any(1).sum(-1)

    def named(numbers: Float[np.ndarray, " metric"]) -> dict[str, float]:
        return dict(zip(signs, numbers.tolist(), strict=True))

    return {
        "round": state.round,
        "mask": state.mask.tolist(),
        "metrics": named(supernet.mean(axis=-1)),
        "candidates": [
            {
                **_place(space, candidate),
                "repeats": int(repeats[i]),
                "differences": named(means[i]),
                "standard_errors": named(errors[i]),
                "importance": int(importance[i]),
            }
            for i, candidate in enumerate(candidates)
        ],
        "pruned": [_place(space, candidate) for candidate in info.pruned],
    }


def _place(space: SearchSpace, candidate: Int[np.ndarray, "3"]) -> dict[str, Any]:
    cell, edge, op = candidate
    return {"cell": space.cell_types[cell], "edge": int(edge), "op": space.ops[op]}

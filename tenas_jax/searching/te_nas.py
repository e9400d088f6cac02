"""TE-NAS's strategy: prune a supernet operator by operator."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from tenas_jax.architectures.space import Group, SearchSpace, place
from tenas_jax.errors import InputError
from tenas_jax.searching import pruning, ranking
from tenas_jax.searching.config import SearchConfig
from tenas_jax.searching.problem import Problem
from tenas_jax.searching.repeats import probabilities, summarized
from tenas_jax.searching.rows import Found, Note, Row, Run, Work


def evaluations_per_round(space: SearchSpace, prune_number: int) -> list[int]:
    """Number of candidates in each pruning round, which does not depend on the measurements.

    Args:
        space: the search space.
        prune_number: operators pruned per edge and round.

    Returns:
        Candidates, one number per round.

    Raises:
        InputError: there is nothing to prune.

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
    if not counts:
        raise InputError(f"{space.name} has a single architecture: there is nothing to search")
    return counts


def prune(problem: Problem) -> Run:
    """TE-NAS (arXiv 2102.11535, Algorithm 1): prune the supernet until an architecture is left.

    With `repeats` auto every candidate gets the minimum number of repeats; then candidates whose
    decision is still uncertain are measured again, up to the maximum.

    Args:
        problem: what is searched.

    Returns:
        A generator that was not started.
    """
    config, space = problem.config, problem.space
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
            undecided = _undecided(problem, changes, state, candidates, groups)
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
        order = ranking.pruning_order(means, problem.directions, config.combination)
        next_state, info = pruning.prune_step(state, candidates, order, groups)
        rounds.append(_entry(problem, state, candidates, supernet, changes, info))
        yield Note([{"round": state.round, **each} for each in rounds[-1]["candidates"]])
        state = next_state
    return Found(state.mask, sum(len(entry["candidates"]) for entry in rounds), rounds)


def _supernet_rows(
    space: SearchSpace,
    state: pruning.PruneState,
    candidates: Int[np.ndarray, "candidate 3"],
    repeats: Sequence[int],
) -> list[Row]:
    """For each repeat: the supernet, then the supernet without each candidate.

    Common random numbers: all rows of a repeat have the same key, whatever they prune.
    """
    nothing = {"cell": None, "edge": None, "op": None}
    supernets = [(state.mask, nothing)] + [
        (pruning.without(state.mask, candidate[None]), place(space, *candidate.tolist()))
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
    problem: Problem,
    changes: Float[np.ndarray, "candidate metric repeat"],
    state: pruning.PruneState,
    candidates: Int[np.ndarray, "candidate 3"],
    groups: Sequence[Group],
) -> Int[np.ndarray, " undecided"]:
    """Indices of the candidates whose pruning is still uncertain."""
    config = problem.config

    def pruned(means: Float[np.ndarray, "candidate metric"]) -> Bool[np.ndarray, " candidate"]:
        order = ranking.pruning_order(means, problem.directions, config.combination)
        mask = pruning.prune_step(state, candidates, order, groups)[0].mask
        gone: np.ndarray = ~mask[tuple(candidates.T)]
        return gone

    probability = probabilities(changes, pruned, seed=config.seed)
    confidence = config.auto_repeats.confidence
    open_fate = (probability > 1 - confidence) & (probability < confidence)
    return np.flatnonzero(open_fate)


def _entry(
    problem: Problem,
    state: pruning.PruneState,
    candidates: Int[np.ndarray, "candidate 3"],
    supernet: Float[np.ndarray, "metric repeat"],
    changes: Float[np.ndarray, "candidate metric repeat"],
    info: pruning.PruneInfo,
) -> dict[str, Any]:
    """The entry of a round in `result.json`; values that are not finite stay as they are."""
    signs, config, space = problem.directions, problem.config, problem.space
    means, errors = ranking.mean_differences(changes), ranking.standard_errors(changes)
    importance = ranking.importance(means, signs, config.combination)
    repeats = (~np.isnan(changes)).any(1).sum(-1)

    def named(numbers: Float[np.ndarray, " metric"]) -> dict[str, float]:
        return dict(zip(signs, numbers.tolist(), strict=True))

    return {
        "round": state.round,
        "mask": state.mask.tolist(),
        **summarized(signs, supernet),
        "candidates": [
            {
                **place(space, *candidate.tolist()),
                "repeats": int(repeats[i]),
                "differences": named(means[i]),
                "standard_errors": named(errors[i]),
                "importance": importance[i].item(),
            }
            for i, candidate in enumerate(candidates)
        ],
        "pruned": [place(space, *candidate.tolist()) for candidate in info.pruned],
    }

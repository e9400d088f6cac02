"""Pruning by importance (TE-NAS, arXiv 2102.11535, Algorithm 1) as pure steps on a mask.

The same step serves both stages of the search. First the operators of each edge compete until every
edge has one. Then, in spaces where a node keeps only some of its edges, the edges into a node
compete, node by node. The mask alone determines the next step:

    state = init(space)
    while not done(space, state):
        rows = candidates(space, state)
        order = ...  # measure and rank the rows
        state, info = prune_step(state, rows, order, groups(space, state, prune_number))
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from tenas_jax.architectures.space import Group, Mask, SearchSpace
from tenas_jax.errors import InputError


class PruneState(NamedTuple):
    """The state needed by the next step: the operators kept, and the number of steps done."""

    mask: Mask
    round: int


class PruneInfo(NamedTuple):
    """What a step did: the (cell, edge, op) it pruned, group by group, in order."""

    pruned: Int[np.ndarray, "pruned 3"]


def init(space: SearchSpace) -> PruneState:
    """The state before the first step, which keeps every operator except `none`.

    Example:
        >>> from tenas_jax.spaces import NAS_BENCH_201
        >>> int(init(NAS_BENCH_201).mask.sum())
        24
    """
    return PruneState(space.initial_mask(), 0)


def groups(space: SearchSpace, state: PruneState, prune_number: int = 1) -> list[Group]:
    """The groups that the next step prunes; empty when the search is done.

    Args:
        space: the search space.
        state: the current state.
        prune_number: operators to prune per edge and step, but never the last one of an edge.

    Raises:
        InputError: nothing would be pruned.

    Example:
        >>> from tenas_jax.spaces import NAS_BENCH_201
        >>> groups(NAS_BENCH_201, init(NAS_BENCH_201), prune_number=7)[-1]
        Group(cell=0, edges=(5,), prune=3)
    """
    if prune_number < 1:
        raise InputError(f"prune_number is {prune_number}: prune at least 1 operator per edge")
    return space.groups(state.mask, prune_number)


def done(space: SearchSpace, state: PruneState) -> bool:
    """Whether a genotype is left: one operator per edge, and no surplus edges into any node.

    Example:
        >>> from tenas_jax.spaces import NAS_BENCH_201
        >>> done(NAS_BENCH_201, init(NAS_BENCH_201))
        False
    """
    return not groups(space, state)


def candidates(space: SearchSpace, state: PruneState) -> Int[np.ndarray, "candidate 3"]:
    """The operators that the next step chooses from, as sorted (cell, edge, op).

    Example:
        >>> from tenas_jax.spaces import NAS_BENCH_201
        >>> candidates(NAS_BENCH_201, init(NAS_BENCH_201))[:2]
        array([[0, 0, 1],
               [0, 0, 2]])
    """
    competing = np.zeros_like(state.mask)
    for cell, edges, _ in groups(space, state):
        competing[cell, list(edges)] = state.mask[cell, list(edges)]
    return np.argwhere(competing)


def without(mask: Mask, pruned: Int[np.ndarray, "pruned 3"]) -> Mask:
    """A copy of the mask without some operators.

    Args:
        mask: operators kept.
        pruned: (cell, edge, op) of the operators to remove.

    Example:
        >>> without(np.ones((1, 1, 3), bool), np.array([[0, 0, 1]]))
        array([[[ True, False,  True]]])
    """
    mask = mask.copy()
    mask[tuple(pruned.T)] = False
    return mask


def prune_step(
    state: PruneState,
    candidates: Int[np.ndarray, "candidate 3"],
    order: Int[np.ndarray, " candidate"],
    groups: Sequence[Group],
) -> tuple[PruneState, PruneInfo]:
    """Prune the first candidates of each group.

    Args:
        state: the current state.
        candidates: (cell, edge, op) of the operators that were measured.
        order: indices of the candidates in pruning order (see `ranking.pruning_order`).
        groups: the groups, from the function `groups`.

    Returns:
        The next state, whose mask is `without(state.mask, info.pruned)`, and what was pruned.

    Example:
        >>> state = PruneState(np.ones((1, 2, 2), bool), 0)
        >>> rows = np.array([[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1]])
        >>> by_edge = [Group(0, (0,), 1), Group(0, (1,), 1)]
        >>> prune_step(state, rows, np.array([3, 0, 1, 2]), by_edge)[1].pruned
        array([[0, 0, 0],
               [0, 1, 1]])
    """
    ordered = candidates[order]
    cell, edge, _ = ordered.T
    pruned = np.concatenate(
        [ordered[(cell == g.cell) & np.isin(edge, g.edges)][: g.prune] for g in groups]
    )
    return PruneState(without(state.mask, pruned), state.round + 1), PruneInfo(pruned)

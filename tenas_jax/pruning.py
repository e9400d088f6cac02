"""Pruning by importance (TE-NAS, arXiv 2102.11535, Algorithm 1) as pure steps on a mask.

One step serves both stages of the search. First the operators of an edge compete until every edge
has one; then, in spaces where a node keeps only some of its edges, the edges into a node compete,
node after node. What comes next follows from the mask alone:

    state = init(space)
    while not done(space, state):
        rows = candidates(space, state)
        order = ...  # measure and rank the rows
        state, info = prune_step(state, rows, order, groups(space, state, prune_number))
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from tenas_jax.errors import InputError
from tenas_jax.spaces import SearchSpace


class PruneState(NamedTuple):
    """What the next step needs: the operators kept, and how many steps were made."""

    mask: Bool[np.ndarray, "cell edge op"]
    round: int


class PruneInfo(NamedTuple):
    """What a step did: the (cell, edge, op) it pruned, group by group, first pruned first."""

    pruned: Int[np.ndarray, "pruned 3"]


class Group(NamedTuple):
    """Edges of one cell type whose operators compete, and how many of them to prune."""

    cell: int
    edges: tuple[int, ...]
    prune: int


def init(space: SearchSpace) -> PruneState:
    """The state before the first step: everything is kept but `none`.

    Example:
        >>> from tenas_jax.spaces import NAS_BENCH_201
        >>> int(init(NAS_BENCH_201).mask.sum())
        24
    """
    return PruneState(space.initial_mask(), 0)


def groups(space: SearchSpace, state: PruneState, prune_number: int = 1) -> list[Group]:
    """The groups of edges in which the next step prunes; none when the search is done.

    While some edge has several operators, each such edge is a group. Afterwards there is one group:
    the edges into the first node that has more of them than it may keep, so that the next node is
    measured without what was pruned there.

    The original bounds the number pruned on every edge by what is left on the first edge
    (prune_tenas.py:80); here every edge counts for itself.

    Args:
        space: the search space.
        state: the state so far.
        prune_number: operators to prune on an edge in one step, though never its last one; the
            surplus edges of a node go in one step whatever this number is.

    Raises:
        InputError: nothing would be pruned.

    Example:
        >>> from tenas_jax.spaces import NAS_BENCH_201
        >>> groups(NAS_BENCH_201, init(NAS_BENCH_201), prune_number=7)[-1]
        Group(cell=0, edges=(5,), prune=3)
    """
    if prune_number < 1:
        raise InputError(f"prune_number is {prune_number}: prune at least 1 operator per edge")

    def surplus(cell: int, edges: Sequence[int], keep: int) -> int:
        return int(state.mask[cell, list(edges)].sum()) - keep

    cells = range(len(space.cell_types))
    by_edge = [
        Group(cell, (edge,), min(prune_number, surplus(cell, (edge,), 1)))
        for cell in cells
        for edge in range(len(space.edges))
    ]
    by_node = [
        Group(cell, edges, surplus(cell, edges, space.edges_kept(node)))
        for cell in cells
        for node in space.intermediate_nodes
        for edges in [space.incoming(node)]
    ]
    crowded_edges = [group for group in by_edge if group.prune > 0]
    return crowded_edges or [group for group in by_node if group.prune > 0][:1]


def done(space: SearchSpace, state: PruneState) -> bool:
    """Whether a genotype is left: one operator on an edge, and no more edges than a node keeps.

    Example:
        >>> from tenas_jax.spaces import NAS_BENCH_201
        >>> done(NAS_BENCH_201, init(NAS_BENCH_201))
        False
    """
    return not groups(space, state)


def candidates(space: SearchSpace, state: PruneState) -> Int[np.ndarray, "candidate 3"]:
    """The operators that the next step chooses from, as (cell, edge, op) in this order.

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


def without(
    mask: Bool[np.ndarray, "cell edge op"], pruned: Int[np.ndarray, "pruned 3"]
) -> Bool[np.ndarray, "cell edge op"]:
    """A copy of the mask without some operators.

    Args:
        mask: operators kept.
        pruned: (cell, edge, op) of those to leave out.

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
    """Prune in each group the candidates that come first.

    Args:
        state: the state so far.
        candidates: (cell, edge, op) of the operators that were measured.
        order: indices of the candidates, first to prune first (`tenas_jax.ranking.pruning_order`).
        groups: what is to be pruned where, from the function `groups`.

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

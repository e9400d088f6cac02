"""The architectures of a space as masks: all of them, random ones, neighbors."""

import itertools
import math

import numpy as np
from jaxtyping import Bool

from tenas_jax.errors import InputError
from tenas_jax.spaces import SearchSpace

Choice = tuple[tuple[int, int], ...]  # the (edge, op) pairs into one node
TOO_MANY = 10**6


def count(space: SearchSpace) -> int:
    """How many architectures a space has.

    Args:
        space: the search space.

    Returns:
        A number.

    Example:
        >>> from tenas_jax.spaces import DARTS, NAS_BENCH_201
        >>> count(NAS_BENCH_201), f"{count(DARTS):.0e}"
        (15625, '1e+18')
    """
    return math.prod(len(choices) for _, choices in _choices(space))


def enumerate_all(space: SearchSpace) -> Bool[np.ndarray, "architecture cell edge op"]:
    """All architectures of a space.

    Args:
        space: the search space.

    Returns:
        Masks, the choice of the last node changing fastest.

    Raises:
        InputError: there are too many to list.

    Example:
        >>> from tenas_jax.spaces import NAS_BENCH_201
        >>> enumerate_all(NAS_BENCH_201).shape
        (15625, 1, 6, 5)
    """
    if count(space) > TOO_MANY:
        raise InputError(
            f"{space.name} has {count(space):.0e} architectures, too many to measure all: "
            "draw a sample of them"
        )
    cells = [cell for cell, _ in _choices(space)]
    return np.stack(
        [
            _mask(space, list(zip(cells, chosen, strict=True)))
            for chosen in itertools.product(*(choices for _, choices in _choices(space)))
        ]
    )


def sample(
    space: SearchSpace, size: int, rng: np.random.Generator
) -> Bool[np.ndarray, "architecture cell edge op"]:
    """Different architectures, drawn uniformly.

    Args:
        space: the search space.
        size: how many.
        rng: draws them.

    Returns:
        Masks.

    Raises:
        InputError: the space has fewer.

    Example:
        >>> from tenas_jax.spaces import NAS_BENCH_201
        >>> sample(NAS_BENCH_201, 15626, np.random.default_rng(0))
        Traceback (most recent call last):
        ...
        tenas_jax.errors.InputError: nas-bench-201 has 15625 architectures, not 15626: ask for fewer
    """
    if size > count(space):
        raise InputError(
            f"{space.name} has {count(space)} architectures, not {size}: ask for fewer"
        )
    nodes = _choices(space)
    drawn: dict[tuple[int, ...], None] = {}
    while len(drawn) < size:
        drawn[tuple(int(rng.integers(len(choices))) for _, choices in nodes)] = None
    return np.stack(
        [
            _mask(
                space, [(cell, choices[i]) for (cell, choices), i in zip(nodes, each, strict=True)]
            )
            for each in drawn
        ]
    )


def mutate(
    space: SearchSpace, mask: Bool[np.ndarray, "cell edge op"], rng: np.random.Generator
) -> Bool[np.ndarray, "cell edge op"]:
    """A neighbor of an architecture: another operator on an edge, or another edge into a node.

    Args:
        space: the search space.
        mask: an architecture.
        rng: chooses among all neighbors, each as likely.

    Returns:
        A mask that differs in one operator.

    Example:
        >>> from tenas_jax.spaces import NAS_BENCH_201
        >>> mask = enumerate_all(NAS_BENCH_201)[0]
        >>> int((mutate(NAS_BENCH_201, mask, np.random.default_rng(0)) & mask).sum())
        5
    """
    neighbors = []
    for cell, choices in _choices(space):
        edges = sorted({edge for choice in choices for edge, _ in choice})
        current = {(edge, int(op)) for edge in edges for op in np.flatnonzero(mask[cell, edge])}
        neighbors += [
            (cell, current, choice) for choice in choices if len(current - set(choice)) == 1
        ]
    cell, current, choice = neighbors[rng.integers(len(neighbors))]
    mutant = mask.copy()
    for edge, op in current:
        mutant[cell, edge, op] = False
    for edge, op in choice:
        mutant[cell, edge, op] = True
    return mutant


def _choices(space: SearchSpace) -> list[tuple[int, list[Choice]]]:
    """For each node of each cell type what may lead into it."""
    # Where a genotype leaves out edges it has no use for `none`.
    ops = [i for i, op in enumerate(space.ops) if op != "none" or space.edges_per_node is None]
    return [
        (
            cell,
            [
                tuple(zip(edges, chosen, strict=True))
                for edges in itertools.combinations(space.incoming(node), space.edges_kept(node))
                for chosen in itertools.product(ops, repeat=len(edges))
            ],
        )
        for cell in range(len(space.cell_types))
        for node in space.intermediate_nodes
    ]


def _mask(space: SearchSpace, chosen: list[tuple[int, Choice]]) -> Bool[np.ndarray, "cell edge op"]:
    mask = np.zeros(space.shape, bool)
    for cell, choice in chosen:
        for edge, op in choice:
            mask[cell, edge, op] = True
    return mask

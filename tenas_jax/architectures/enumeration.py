"""The architectures of a space as masks: enumeration, random samples, mutations."""

import itertools
import math

import numpy as np

from tenas_jax.architectures.space import Choice, Mask, Masks, SearchSpace
from tenas_jax.errors import InputError

TOO_MANY = 10**6


def count(space: SearchSpace) -> int:
    """Number of architectures in a space.

    Args:
        space: the search space.

    Example:
        >>> from tenas_jax.spaces import DARTS, NAS_BENCH_201
        >>> count(NAS_BENCH_201), f"{count(DARTS):.0e}"
        (15625, '1e+18')
    """
    return math.prod(len(choices) for _, choices in space.decisions())


def can_list(space: SearchSpace) -> bool:
    """Whether a space is small enough for `enumerate_all`.

    Args:
        space: the search space.

    Example:
        >>> from tenas_jax.spaces import DARTS, NAS_BENCH_201
        >>> can_list(NAS_BENCH_201), can_list(DARTS)
        (True, False)
    """
    return count(space) <= TOO_MANY


def enumerate_all(space: SearchSpace) -> Masks:
    """All architectures of a space.

    Args:
        space: the search space.

    Returns:
        Masks; the choice of the last node changes fastest.

    Raises:
        InputError: there are too many to list.

    Example:
        >>> from tenas_jax.spaces import NAS_BENCH_201
        >>> enumerate_all(NAS_BENCH_201).shape
        (15625, 1, 6, 5)
    """
    if not can_list(space):
        raise InputError(
            f"{space.name} has {count(space):.0e} architectures, too many to measure all: "
            "draw a sample of them"
        )
    cells, choices = zip(*space.decisions(), strict=True)
    return np.stack(
        [
            _mask(space, list(zip(cells, chosen, strict=True)))
            for chosen in itertools.product(*choices)
        ]
    )


def sample(space: SearchSpace, size: int, rng: np.random.Generator) -> Masks:
    """Draw architectures uniformly, without replacement.

    Args:
        space: the search space.
        size: number of architectures.
        rng: the random generator.

    Returns:
        Masks.

    Raises:
        InputError: the space has fewer architectures.

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
    decisions = space.decisions()
    drawn: dict[tuple[int, ...], None] = {}
    while len(drawn) < size:
        drawn[tuple(int(rng.integers(len(choices))) for _, choices in decisions)] = None
    return np.stack(
        [
            _mask(
                space,
                [(cell, choices[i]) for (cell, choices), i in zip(decisions, each, strict=True)],
            )
            for each in drawn
        ]
    )


def mutate(space: SearchSpace, mask: Mask, rng: np.random.Generator) -> Mask:
    """Draw a neighbor of an architecture: one operator or one edge into a node is replaced.

    Args:
        space: the search space.
        mask: an architecture.
        rng: the random generator; all neighbors are equally likely.

    Returns:
        A mask that differs in one operator.

    Example:
        >>> from tenas_jax.spaces import NAS_BENCH_201
        >>> mask = enumerate_all(NAS_BENCH_201)[0]
        >>> int((mutate(NAS_BENCH_201, mask, np.random.default_rng(0)) & mask).sum())
        5
    """
    neighbors = []
    for cell, choices in space.decisions():
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


def _mask(space: SearchSpace, chosen: list[tuple[int, Choice]]) -> Mask:
    mask = np.zeros(space.shape, bool)
    for cell, choice in chosen:
        for edge, op in choice:
            mask[cell, edge, op] = True
    return mask

"""Expressivity: the number of linear regions that contain samples."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Int, PyTree, Shaped, UInt32

from tenas_jax.errors import InputError
from tenas_jax.metrics.activations import activation_patterns
from tenas_jax.numerics import mix, require_numbers

WORD = 32
Patterns = Shaped[Array | np.ndarray, "..."]
"""Booleans [n, neurons]; anything else is rejected."""


def linear_regions(
    apply_fn: Callable[[PyTree, Any], Array],
    params: PyTree,
    x: Any,
    *,
    sample_axis: int | None = None,
    smooth: str = "refuse",
    max_pooling: bool = False,
) -> Int[Array, ""]:
    """Number of linear regions of a model that contain samples, R; higher is more expressive.

    This is the number of distinct activation patterns (TE-NAS, equations 4 and 5) of all
    piecewise-linear nonlinearities of `x` found by `activation_patterns`. Use small images, such as
    TE-NAS's 3 x 3 pixels: the patterns of larger images are all distinct.

    Args:
        apply_fn: maps `(params, x)` to one array [n, ...], samples first; see
            `activation_patterns` for its neurons.
        params: parameters, a pytree of arrays.
        x: the samples, in any form that `apply_fn` takes.
        sample_axis: see `activation_patterns`.
        smooth: see `activation_patterns`: `refuse`, `ignore`, or `sign`.
        max_pooling: see `activation_patterns`.

    Returns:
        An integer from 1 to n.

    Raises:
        InputError: `activation_patterns` cannot read the model, or `params` or `x` contain NaN.
            Inside `jit` and `vmap` values are unknown, and NaN counts as inactive.

    Example:
        >>> from jax.nn import relu
        >>> params = jnp.array([[1.0, -1.0]])
        >>> x = jnp.array([[2.0], [-2.0], [3.0]])
        >>> int(linear_regions(lambda params, x: relu(x @ params), params, x))
        2
    """
    require_numbers(params=params, x=x)
    patterns = activation_patterns(
        apply_fn, argnum=1, sample_axis=sample_axis, smooth=smooth, max_pooling=max_pooling
    )
    return count_linear_regions(patterns(params, x))


def count_linear_regions(patterns: Patterns) -> Int[Array, ""]:
    """Number of distinct activation patterns, R (TE-NAS, equations 4 and 5).

    The count is exact: samples are sorted by a hash of 64 bits, and those with the same hash are
    compared. If different patterns have the same hash, samples are ranked by one word after the
    other instead, O(n log n) each. The original uses n x n products in half precision.

    Args:
        patterns: which neurons are active for each sample; repeated columns change nothing.

    Returns:
        An integer from 1 to n.

    Raises:
        InputError: `patterns` is not a matrix of booleans with at least one row.

    Example:
        >>> int(count_linear_regions(jnp.array([[True, False], [True, True], [True, False]])))
        2
    """
    words = pack(require_patterns(patterns))
    n = len(words)

    def refine(i: Int[Array, ""], rank: Int[Array, "n"]) -> Int[Array, "n"]:
        """Ranks by the words up to the i-th, from ranks by the previous words."""
        rank, word, order = lax.sort((rank, words[:, i], jnp.arange(n)), num_keys=2)
        differs = (rank[1:] != rank[:-1]) | (word[1:] != word[:-1])
        refined = jnp.concatenate([jnp.zeros(1, int), jnp.cumsum(differs)])
        return jnp.zeros(n, int).at[order].set(refined, unique_indices=True)

    first, second, order = lax.sort((*_hashes(words), jnp.arange(n)), num_keys=2)
    differ = (first[1:] != first[:-1]) | (second[1:] != second[:-1])
    by_hash = words[order]
    collide = jnp.any((by_hash[1:] != by_hash[:-1]).any(1) & ~differ)
    passes = jnp.where(collide, words.shape[1], 0)
    rank = lax.fori_loop(0, passes, refine, jnp.zeros(n, int))
    return jnp.where(collide, rank.max(), differ.sum()) + 1


def _hashes(words: UInt32[Array, "n words"]) -> UInt32[Array, "hash n"]:
    """Two independent hashes of each row: sums of pseudorandom functions of word and position."""
    position = mix(jnp.arange(1, 2 * words.shape[1] + 1, dtype=jnp.uint32)).reshape(2, 1, -1)
    return mix(words[None] ^ position).sum(-1, dtype=jnp.uint32)


def require_patterns(patterns: Any) -> Bool[Array, "n neurons"]:
    """Check that patterns are a matrix of booleans with at least one sample.

    Raises:
        InputError: they are not.

    Example:
        >>> require_patterns(jnp.ones((2, 3)))
        Traceback (most recent call last):
        ...
        tenas_jax.errors.InputError: patterns are float32 of shape (2, 3): give booleans [n, \
neurons], n of 1 or more
    """
    kind, shape = jnp.result_type(patterns), jnp.shape(patterns)
    if not jnp.issubdtype(kind, jnp.bool_) or len(shape) != 2 or not shape[0]:
        raise InputError(
            f"patterns are {kind} of shape {shape}: give booleans [n, neurons], n of 1 or more"
        )
    return jnp.asarray(patterns)


def pack(patterns: Bool[Array, "n neurons"]) -> UInt32[Array, "n words"]:
    """Pack the bits of each sample into 32-bit words, padded with zeros."""
    n, neurons = patterns.shape
    padded = jnp.pad(patterns, ((0, 0), (0, -neurons % WORD))).reshape(n, -1, WORD)
    values = jnp.left_shift(jnp.uint32(1), jnp.arange(WORD, dtype=jnp.uint32))
    return (padded * values[None, None]).sum(-1, dtype=jnp.uint32)

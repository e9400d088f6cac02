"""Expressivity: the number of linear regions that samples fall into."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int, UInt32

WORD = 32


def count_linear_regions(patterns: Bool[Array, "n neurons"]) -> Int[Array, ""]:
    """Number of distinct activation patterns, R (TE-NAS, equations 4 and 5).

    Exact: the patterns are packed into words and the samples ranked by one word after the other,
    O(n log n) for each, instead of the original's n x n products in half precision.

    Args:
        patterns: which neurons are active for each sample; a column more or less that repeats
            another one changes nothing.

    Returns:
        An integer from 1 to n.

    Example:
        >>> int(count_linear_regions(jnp.array([[True, False], [True, True], [True, False]])))
        2
    """
    n = patterns.shape[0]

    def refine(rank: Int[Array, "n"], word: UInt32[Array, "n"]) -> tuple[Int[Array, "n"], None]:
        """Ranks by (rank, word) from ranks by the words before."""
        rank, word, order = lax.sort((rank, word, jnp.arange(n)), num_keys=2)
        differs = (rank[1:] != rank[:-1]) | (word[1:] != word[:-1])
        refined = jnp.concatenate([jnp.zeros(1, int), jnp.cumsum(differs)])
        return jnp.zeros(n, int).at[order].set(refined, unique_indices=True), None

    rank, _ = lax.scan(refine, jnp.zeros(n, int), pack(patterns).T)
    return rank.max() + 1


def pack(patterns: Bool[Array, "n neurons"]) -> UInt32[Array, "n words"]:
    """The bits of each sample, 32 to a word, the last word filled up with zeros."""
    n, neurons = patterns.shape
    padded = jnp.pad(patterns, ((0, 0), (0, -neurons % WORD))).reshape(n, -1, WORD)
    values = jnp.left_shift(jnp.uint32(1), jnp.arange(WORD, dtype=jnp.uint32))
    return (padded * values[None, None]).sum(-1, dtype=jnp.uint32)

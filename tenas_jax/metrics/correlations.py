"""Standardize rows for Pearson's correlation, and detect constant rows."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def varies(x: Float[Array, "..."], axis: int = -1) -> Bool[Array, "..."]:
    """Whether the elements along an axis differ by more than rounding errors; keeps the axis.

    Args:
        x: numbers.
        axis: the axis.

    Example:
        >>> varies(jnp.array([[1.0, 2.0], [1.0, 1.0 + 1e-7]])).tolist()
        [[True], [False]]
    """
    rounding = 4 * jnp.finfo(x.dtype).eps * jnp.abs(x).max(axis, keepdims=True)
    return x.max(axis, keepdims=True) - x.min(axis, keepdims=True) > rounding


def standardized(x: Float[Array, "... elements"]) -> Float[Array, "... elements"]:
    """Center rows and scale them to norm 1, so that inner products are correlations.

    Args:
        x: rows along the last axis, of any scale.

    Returns:
        Rows of the same shape; zeros for a constant row, which has no correlation.

    Example:
        >>> standardized(jnp.array([[1.0, 1.0, 4.0, 4.0], [2.0, 2.0, 2.0, 2.0]])).tolist()
        [[-0.5, -0.5, 0.5, 0.5], [0.0, 0.0, 0.0, 0.0]]
    """
    # Divide by the largest element first: its square may underflow or overflow.
    largest = jnp.abs(x).max(-1, keepdims=True)
    scaled = x / jnp.where(largest == 0, 1, largest)
    centered = scaled - scaled.mean(-1, keepdims=True)
    norm = jnp.sqrt(jnp.square(centered).sum(-1, keepdims=True))
    constant = ~varies(x) & jnp.isfinite(largest)
    return jnp.where(constant, 0, centered / jnp.where(constant, 1, norm))

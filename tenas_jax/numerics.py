"""Precision and range of the numbers that all rooms share."""

import jax
import numpy as np
from jax import lax
from jaxtyping import PyTree

from tenas_jax.errors import InputError

# On GPUs and TPUs the default rounds the factors of a product to 10 bits or fewer; a condition
# number of thousands needs them all.
PRECISION = lax.Precision.HIGHEST
MAX_SEED = 2**32 - 1


def require_numbers(**arrays: PyTree) -> None:
    """Refuse arrays that hold NaN, where that can be known: not under `jit` or `vmap`.

    Args:
        **arrays: pytrees of arrays by name.

    Raises:
        InputError: one holds NaN.

    Example:
        >>> require_numbers(x=np.array([1.0, np.nan]))
        Traceback (most recent call last):
        ...
        tenas_jax.errors.InputError: x holds NaN: give numbers
    """
    for name, tree in arrays.items():
        known = [leaf for leaf in jax.tree.leaves(tree) if not isinstance(leaf, jax.core.Tracer)]
        floats = [
            leaf for leaf in known if jax.numpy.issubdtype(jax.numpy.result_type(leaf), np.floating)
        ]
        # Not `jnp`: in a function that is traced it would make tracers of constants.
        if any(np.isnan(np.asarray(leaf)).any() for leaf in floats):
            raise InputError(f"{name} holds NaN: give numbers")

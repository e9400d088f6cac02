"""Precision, limits and mixing of numbers, shared by all rooms."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Key, PyTree, UInt32

from tenas_jax.errors import InputError

# On GPUs and TPUs the default rounds the factors of a product to 10 bits or fewer; a condition
# number of thousands needs full precision.
PRECISION = lax.Precision.HIGHEST
MAX_SEED = 2**32 - 1
PRNG = "threefry2x32"  # fixed, because JAX's default may change


def backend() -> str:
    """The backend that programs are traced for: `cpu`, `gpu` or `tpu`.

    Returns:
        That of `jax.default_device`, else that of JAX's default backend.

    Example:
        >>> with jax.default_device(jax.devices("cpu")[0]):
        ...     backend()
        'cpu'
    """
    device = jax.config.values["jax_default_device"]
    if device is None:
        return jax.default_backend()
    return device if isinstance(device, str) else str(device.platform)


@contextmanager
def highest_precision() -> Iterator[None]:
    """Trace all products at `PRECISION`, including those of a user's layers; also a decorator.

    Only products without an explicit precision change, and only on GPUs and TPUs: a CPU has no
    other precision. Any value of `jax.default_matmul_precision` or `JAX_DEFAULT_MATMUL_PRECISION`,
    such as "default", turns this off.

    Example:
        >>> with jax.default_matmul_precision("bfloat16"), highest_precision():
        ...     jax.config.jax_default_matmul_precision
        'bfloat16'
    """
    own = jax.config.values["jax_default_matmul_precision"]
    unchanged = own is not None or backend() == "cpu"
    with nullcontext() if unchanged else jax.default_matmul_precision("highest"):
        yield


def random_key(seed: int) -> Key[Array, ""]:
    """The random key of a seed, for the pinned random generator.

    Args:
        seed: a seed from 0 to `MAX_SEED`.

    Example:
        >>> with jax.default_prng_impl("rbg"):
        ...     jax.random.key_impl(random_key(0))
        'threefry2x32'
    """
    return jax.random.key(seed, impl=PRNG)


def mix(x: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """A permutation of 32-bit words without structure: a finalizer of low bias.

    Example:
        >>> mix(jnp.arange(3, dtype=jnp.uint32)).tolist()
        [0, 1753845952, 3507691905]
    """
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


def require_arrays(**trees: PyTree) -> None:
    """Reject trees with leaves other than arrays and numbers, such as functions.

    Args:
        **trees: pytrees by name.

    Raises:
        InputError: a tree has another leaf.

    Example:
        >>> require_arrays(params={"kernel": np.ones(2), "activation": abs})
        Traceback (most recent call last):
        ...
        tenas_jax.errors.InputError: params['activation'] is a builtin_function_or_method: give \
arrays and numbers, and close over the rest
    """
    for name, tree in trees.items():
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            dtype = getattr(leaf, "dtype", object)
            kinds = (jnp.number, jnp.bool_, jax.dtypes.extended)
            is_array = any(jnp.issubdtype(dtype, kind) for kind in kinds)
            if not (is_array or isinstance(leaf, bool | int | float | complex)):
                raise InputError(
                    f"{name}{jax.tree_util.keystr(path)} is a {type(leaf).__name__}: give arrays "
                    "and numbers, and close over the rest"
                )


MAX_CELLS = 1000  # tracing a network takes time for each cell
MAX_STEPS = 2**31 - 1  # optimizers count in 32 bits


def require_numbers(**arrays: PyTree) -> None:
    """Reject arrays that contain NaN; under `jit` or `vmap` this cannot be checked.

    Trees with other leaves are rejected as well; see `require_arrays`.

    Args:
        **arrays: pytrees of arrays by name.

    Raises:
        InputError: an array contains NaN, or a leaf is not an array.

    Example:
        >>> require_numbers(x=np.array([1.0, np.nan]))
        Traceback (most recent call last):
        ...
        tenas_jax.errors.InputError: x holds NaN: give numbers
    """
    require_arrays(**arrays)
    for name, tree in arrays.items():
        known = [leaf for leaf in jax.tree.leaves(tree) if not isinstance(leaf, jax.core.Tracer)]
        floats = [leaf for leaf in known if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)]
        # Not `jnp`, which would turn constants into tracers in a traced function.
        if any(np.isnan(np.asarray(leaf)).any() for leaf in floats):
            raise InputError(f"{name} holds NaN: give numbers")

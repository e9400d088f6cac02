"""Named weight initializers, and the weights of a network from a single random draw.

The original passes a misspelt name and silently falls back to PyTorch's default; here an unknown
name raises and lists the choices.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.random import define_prng_impl
from jaxtyping import Array, Float, Key, PyTree

from tenas_jax.numerics import mix
from tenas_jax.resolve import resolve


@dataclass(frozen=True)
class Initializer:
    """Independent weights of mean 0 and variance `gain / fan`."""

    gain: float
    fan: Literal["in", "out"]
    draw: Callable[..., Array]
    """A function of a key, a shape and a data type that draws weights of variance 1."""

    def std(self, shape: tuple[int, ...]) -> float:
        """Standard deviation of a kernel [..., in, out]; the fans count the pixels it covers."""
        *pixels, inputs, outputs = shape
        fan = math.prod(pixels) * (inputs if self.fan == "in" else outputs)
        return math.sqrt(self.gain / fan)

    def __call__(self, key: Key[Array, ""], shape: tuple[int, ...], dtype: Any = None) -> Array:
        """A kernel, with Flax's signature; a leading axis of parallel edges counts in no fan."""
        return self.draw(key, shape, dtype or jnp.float32) * self.std(shape[-4:])


def _uniform(key: Key[Array, ""], shape: tuple[int, ...], dtype: Any) -> Array:
    bound = math.sqrt(3.0)
    return jax.random.uniform(key, shape, dtype, -bound, bound)


INITIALIZERS: dict[str, Initializer] = {
    # kaiming_uniform(a=sqrt(5)), PyTorch's default: uniform with bound 1 / sqrt(fan_in).
    "pytorch": Initializer(1.0 / 3.0, "in", _uniform),
    "kaiming_normal_fan_in": Initializer(2.0, "in", jax.random.normal),
    "kaiming_normal_fan_out": Initializer(2.0, "out", jax.random.normal),
}


DEFAULT = "default"
"""The initializer of the space, or those of the user's Flax module."""


def get_initializer(name: str) -> Initializer:
    """Look up an initializer by name.

    Args:
        name: a key of `INITIALIZERS`, or `module:object`.

    Returns:
        The initializer.

    Raises:
        InputError: the name is unknown.

    Example:
        >>> get_initializer("kaiming_normal")
        Traceback (most recent call last):
        ...
        tenas_jax.errors.InputError: unknown initializer 'kaiming_normal' (did you mean \
'kaiming_normal_fan_in'?): choose from pytorch, kaiming_normal_fan_in, kaiming_normal_fan_out, or \
write module:object
    """
    return resolve(name, INITIALIZERS, Initializer, "initializer")


def quick_key(key: Key[Array, ""]) -> Key[Array, ""]:
    """A key whose generator compiles a hundred times faster than JAX's own.

    A program that initializes a user's module draws once per kernel. On a CPU, XLA takes about 10 s
    to compile each draw of JAX's generator, 20 unrolled rounds. This generator hashes the index of
    each number (two rounds of `tenas_jax.numerics.mix`) and compiles in 0.15 s.

    Args:
        key: a key of any generator with two words of state.

    Example:
        >>> draws = jax.random.normal(quick_key(jax.random.key(0)), (4, 1000))
        >>> bool((abs(draws.mean(1)) < 0.1).all() & (abs(draws.std(1) - 1) < 0.1).all())
        True
    """
    quick: Array = jax.random.wrap_key_data(jax.random.key_data(key), impl=_HASH)
    return quick


def _hash_seed(seed: Array) -> Array:
    word = jnp.asarray(seed).astype(jnp.uint32)
    return mix(jnp.stack([word, word ^ jnp.uint32(0x9E3779B9)]))


def _hash_fold_in(key: Array, data: Array | int) -> Array:
    words = jnp.asarray(data).astype(jnp.uint32) + jnp.array([0x9E3779B9, 0x85EBCA6B], jnp.uint32)
    return mix(key ^ mix(words))


def _hash_split(key: Array, shape: tuple[int, ...]) -> Array:
    numbers = jnp.arange(1, 1 + math.prod(shape), dtype=jnp.uint32)
    return jax.vmap(partial(_hash_fold_in, key))(numbers).reshape(*shape, 2)


def _hash_bits(key: Array, bit_width: int, shape: tuple[int, ...]) -> Array:
    def words(salt: int) -> Array:
        index = lax.iota(jnp.uint32, math.prod(shape)) + jnp.uint32(salt)
        return mix(mix(index + key[0]) ^ key[1]).reshape(shape)

    if bit_width == 64:
        return (words(0).astype(jnp.uint64) << 32) | words(1 << 31).astype(jnp.uint64)
    return words(0).astype(f"uint{bit_width}")


_HASH = define_prng_impl(
    key_shape=(2,),
    seed=_hash_seed,
    split=_hash_split,
    random_bits=_hash_bits,
    fold_in=_hash_fold_in,
    name="tenas_jax_hash",
    tag="hash",
)


def initialize(
    shapes: PyTree[jax.ShapeDtypeStruct], name: str, key: Key[Array, ""]
) -> PyTree[Float[Array, "..."]]:
    """Initial parameters of a network of this library.

    Scales of batch normalizations are 1, biases are 0, everything else is a random kernel. A
    leading axis of parallel edges does not count in the fans. All kernels come from a single draw,
    because one generator per kernel would dominate XLA's compile time.

    Args:
        shapes: shapes of the parameters, from `jax.eval_shape` of the network's `init`; the last
            key of a parameter's path is its role.
        name: a key of `INITIALIZERS`.
        key: key of the draw.

    Returns:
        A pytree of arrays like `shapes`.

    Raises:
        InputError: the name is unknown.

    Example:
        >>> shapes = {"kernel": jax.ShapeDtypeStruct((3, 3, 8, 16), jnp.float32)}
        >>> kernel = initialize(shapes, "kaiming_normal_fan_in", jax.random.key(0))["kernel"]
        >>> bool(abs(kernel.std() - (2 / (3 * 3 * 8)) ** 0.5) < 0.01)
        True
    """
    initializer = get_initializer(name)
    constants = {"scale": 1.0, "bias": 0.0}
    leaves, structure = jax.tree_util.tree_flatten_with_path(shapes)
    roles = [path[-1].key for path, _ in leaves]
    sizes = [
        0 if role in constants else leaf.size for role, (_, leaf) in zip(roles, leaves, strict=True)
    ]
    draws = initializer.draw(key, (sum(sizes),), leaves[0][1].dtype)
    parameters = []
    for role, (_, leaf), end in zip(roles, leaves, itertools.accumulate(sizes), strict=True):
        if role in constants:
            parameters.append(jnp.full(leaf.shape, constants[role], leaf.dtype))
        else:
            values = draws[end - leaf.size : end].reshape(leaf.shape)
            parameters.append(values * initializer.std(leaf.shape[-4:]))
    return jax.tree.unflatten(structure, parameters)

"""Named weight initializers, and the weights of a whole network from one draw of random numbers.

The original passes a misspelt name and falls through in silence to PyTorch's default; here an
unknown name raises and lists the choices.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from tenas_jax.errors import InputError


@dataclass(frozen=True)
class Initializer:
    """Independent weights of mean 0 and variance `gain / fan`."""

    gain: float
    fan: Literal["in", "out"]
    draw: Callable[..., Array]
    """Draws weights of variance 1 from a key, a shape and a data type."""

    def std(self, shape: tuple[int, ...]) -> float:
        """Standard deviation of a kernel [..., in, out]; the fans count the pixels it covers."""
        *pixels, inputs, outputs = shape
        fan = math.prod(pixels) * (inputs if self.fan == "in" else outputs)
        return math.sqrt(self.gain / fan)

    def __call__(self, key: Key[Array, ""], shape: tuple[int, ...], dtype: Any = None) -> Array:
        """A kernel, as Flax asks for it; a leading axis of parallel edges counts in no fan."""
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


def get_initializer(name: str) -> Initializer:
    """The initializer of that name.

    Args:
        name: a key of `INITIALIZERS`.

    Returns:
        The initializer.

    Raises:
        InputError: the name is unknown.

    Example:
        >>> get_initializer("kaiming_normal")
        Traceback (most recent call last):
        ...
        tenas_jax.errors.InputError: unknown initializer 'kaiming_normal': choose one of \
kaiming_normal_fan_in, kaiming_normal_fan_out, pytorch
    """
    if name not in INITIALIZERS:
        choices = ", ".join(sorted(INITIALIZERS))
        raise InputError(f"unknown initializer {name!r}: choose one of {choices}")
    return INITIALIZERS[name]


def initialize(
    shapes: PyTree[jax.ShapeDtypeStruct], name: str, key: Key[Array, ""]
) -> PyTree[Float[Array, "..."]]:
    """Parameters of a network of this library at initialization.

    Scales of batch normalizations are 1, biases 0, everything else is a random kernel. A leading
    axis of parallel edges does not count in the fans. All kernels come from one draw: a generator
    for each of them is most of what XLA would compile.

    Args:
        shapes: shapes of the parameters, as `jax.eval_shape` of the network's `init` gives them; a
            parameter's role is the last key of its path.
        name: a key of `INITIALIZERS`.
        key: of the draw.

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

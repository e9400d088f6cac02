"""The weights and logits of a model for gradient metrics; biases are recognized by name."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree, Shaped

from tenas_jax.errors import InputError, quantity
from tenas_jax.numerics import require_numbers

ApplyFn = Callable[[PyTree, Any], Float[Array, "n classes"]]
Select = Callable[[tuple[Any, ...]], bool]
Labels = Shaped[Array | np.ndarray, "..."]

# Flax, Equinox and PyTorch: `bias`, `bias_hh`; Haiku: `b`, and `offset` of normalizations, which
# Keras calls `beta`. By hand: `b1`, `b_out`, `conv_b`. Not `lora_b`, a factor of a matrix.
_BIAS = re.compile(r"(?i:.*bias.*)|b\d*|b_\w+|(?!lora_)(.*_)?(b|beta|offset)")
# Names that a list of weights has, where the position says nothing.
_WEIGHT = re.compile(r"(?i:.*(kernel|weight|embed).*)|[wW]\d*|[wW]_\w+|.*_[wW]|gamma|scale")
# Attributes by which Flax boxes an array.
_BOXES = ("value", "raw_value")


def is_weight(path: tuple[Any, ...]) -> bool:
    """Whether a parameter is a weight rather than a bias, by the last name on its path.

    The original differentiates parameters with `weight` in their name: convolution kernels, scales
    of batch normalizations and the classifier's kernel (`lib/procedures/ntk.py`, line 46). Biases
    are `bias` and names that contain it; `b` and names such as `b1`, `b_out` and `conv_b`; and
    `offset` and `beta` of normalizations. Positions in lists, and the `value` in which Flax NNX
    boxes an array, do not count as names. Names of nested dictionaries may be joined by `/` or `.`,
    or be tuples.

    Args:
        path: a path from `jax.tree_util.tree_leaves_with_path`.

    Raises:
        InputError: there is no name, or it names a list that may contain both.

    Example:
        >>> params = {"linear": {"w": 1.0, "b": 0.0}}  # Haiku
        >>> [is_weight(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        [False, True]
        >>> is_weight((jax.tree_util.SequenceKey(0), jax.tree_util.SequenceKey(1)))
        Traceback (most recent call last):
        ...
        tenas_jax.errors.InputError: no name tells whether the parameter [0][1] is a weight or a \
bias: name it, or give select=, such as select=lambda path: path[-1].idx == 0
    """
    names = [name for key in path for name in _names(key)]
    named = len(names)
    while named and (not names[named - 1] or names[named - 1].isdecimal()):
        named -= 1
    name = names[named - 1] if named else ""
    if _BIAS.fullmatch(name):
        return False
    if not name or (named < len(names) and not _WEIGHT.fullmatch(name)):
        raise InputError(
            f"no name tells whether the parameter {jax.tree_util.keystr(path)} is a weight or a "
            "bias: name it, or give select=, such as select=lambda path: path[-1].idx == 0"
        )
    return True


def select_leaves(tree: PyTree, select: Select) -> list[Array]:
    """The leaves of a tree at selected paths, in at least single precision.

    Args:
        tree: parameters or their gradients.
        select: whether the leaf at a path is selected.

    Raises:
        InputError: none is selected.

    Example:
        >>> select_leaves({"kernel": jnp.float16(2), "bias": 1.0}, is_weight)
        [Array(2., dtype=float32)]
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    selected = [leaf for path, leaf in leaves if select(path)]
    if not selected:
        raise InputError("no parameter is selected: a metric of gradients needs at least one")
    return [jnp.asarray(leaf, at_least_single(jnp.result_type(leaf))) for leaf in selected]


def at_least_single(dtype: Any) -> Any:
    """The data type, at least single, for sums, products and eigenvalues of this type.

    Example:
        >>> print(at_least_single(jnp.bfloat16))
        float32
    """
    return jnp.promote_types(dtype, jnp.float32)


def require_weights(params: PyTree, select: Select) -> None:
    """Reject parameters that a gradient metric cannot use.

    Args:
        params: parameters, a pytree of arrays.
        select: whether the parameter at a path is used.

    Raises:
        InputError: no parameter is selected; a selected one does not have real floating-point
            numbers; or a leaf contains NaN or is not an array.

    Example:
        >>> require_weights({"kernel": 2.0, "step": 1}, is_weight)
        Traceback (most recent call last):
        ...
        tenas_jax.errors.InputError: params['step'] is int32, and a gradient needs real \
floating-point numbers: leave it out by select=, or close over it
    """
    require_numbers(params=params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        kind = getattr(leaf, "dtype", None) or jnp.result_type(leaf)
        if select(path) and not jnp.issubdtype(kind, jnp.floating):
            raise InputError(
                f"params{jax.tree_util.keystr(path)} is {kind}, and a gradient needs real "
                "floating-point numbers: leave it out by select=, or close over it"
            )
    select_leaves(params, select)


def require_outputs(outputs: Any) -> None:
    """Reject outputs of a model that are not an array of real numbers.

    Raises:
        InputError: the outputs are something else or empty.

    Example:
        >>> require_outputs(jnp.ones((2, 3), complex))
        Traceback (most recent call last):
        ...
        tenas_jax.errors.InputError: apply_fn returns complex64: it must return real \
floating-point numbers
    """
    if not isinstance(outputs, jax.Array):
        raise InputError(f"apply_fn returns {type(outputs).__name__}: it must return one array")
    if not jnp.issubdtype(outputs.dtype, jnp.floating):
        raise InputError(
            f"apply_fn returns {outputs.dtype}: it must return real floating-point numbers"
        )
    if not outputs.size:
        raise InputError(f"apply_fn returns shape {outputs.shape}: give it at least one sample")


def require_logits(outputs: Any) -> None:
    """Reject outputs of a model that are not one matrix [n, classes] of real numbers.

    Raises:
        InputError: the outputs are something else or empty.

    Example:
        >>> require_logits(jnp.ones(3))
        Traceback (most recent call last):
        ...
        tenas_jax.errors.InputError: apply_fn returns shape (3,): it must return one array \
[n, classes]
    """
    if not isinstance(outputs, jax.Array) or outputs.ndim != 2:
        kind = f"shape {outputs.shape}" if hasattr(outputs, "shape") else type(outputs).__name__
        raise InputError(f"apply_fn returns {kind}: it must return one array [n, classes]")
    require_outputs(outputs)


def require_labels(labels: Labels, n: int, classes: int) -> None:
    """Reject labels that are not one class for each of n samples.

    Args:
        labels: class of each sample, from 0; under `jit` or `vmap` their values are unknown.
        n: number of samples.
        classes: number of classes.

    Raises:
        InputError: their shape or data type is wrong, or one is not a class.

    Example:
        >>> require_labels(jnp.array([0.5]), 1, 2)
        Traceback (most recent call last):
        ...
        tenas_jax.errors.InputError: labels are float32: give integers from 0 to 1
    """
    if labels.shape != (n,):
        raise InputError(
            f"labels of shape {labels.shape} for {quantity(n, 'sample')}: give one label for each"
        )
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise InputError(f"labels are {labels.dtype}: give integers from 0 to {classes - 1}")
    require_classes(labels, classes)


def require_classes(labels: Labels, classes: int | None = None) -> None:
    """Reject labels that are not classes; under `jit` or `vmap` this cannot be checked.

    Args:
        labels: labels of any shape.
        classes: number of classes; None: unknown.

    Raises:
        InputError: one is negative, or not below the number of classes.

    Example:
        >>> require_classes(jnp.array([0, 2]), 2)
        Traceback (most recent call last):
        ...
        tenas_jax.errors.InputError: labels from 0 to 2: give integers from 0 to 1
    """
    if isinstance(labels, jax.core.Tracer) or not labels.size:
        return
    # Not `jnp`, which would turn constants into tracers in a traced function.
    first, last = np.asarray(labels).min(), np.asarray(labels).max()
    if first < 0 or (classes is not None and last >= classes):
        most = "" if classes is None else f" to {classes - 1}"
        raise InputError(f"labels from {first} to {last}: give integers from 0{most}")


def _names(key: Any) -> list[str]:
    """The names in an entry of a path; positions are decimal."""
    if isinstance(key, jax.tree_util.GetAttrKey):
        return [] if key.name in _BOXES else [key.name]
    entry = getattr(key, "key", getattr(key, "idx", key))
    parts = entry if isinstance(entry, tuple) else (entry,)
    return [name for part in parts for name in re.split(r"[/.]", str(part))]

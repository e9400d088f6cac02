"""Whether the samples of a batch interact in a model, as in train-mode batch normalization."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from tenas_jax.metrics.model import ApplyFn, at_least_single


def one_sample(apply_fn: ApplyFn, params: PyTree, sample: Any) -> Float[Array, "classes"]:
    """The outputs of a model for a batch of one sample.

    Args:
        apply_fn: maps `(params, x)` to the outputs [n, classes].
        params: parameters.
        sample: a batch without its first axis.

    Example:
        >>> one_sample(lambda p, x: x * p, 2.0, jnp.ones(3)).tolist()
        [2.0, 2.0, 2.0]
    """
    return apply_fn(params, jax.tree.map(lambda leaf: leaf[None], sample))[0]


class Interaction(NamedTuple):
    """The relative difference between gradients of single samples and those within their batch."""

    difference: Float[Array, ""]
    """0 up to rounding if samples do not interact; NaN if gradients are not finite."""
    rounding: Float[Array, ""]
    """The difference explained by rounding: the square root of the gradients' precision."""


def interaction(apply_fn: ApplyFn, params: PyTree, x: Any) -> Interaction:
    """The difference between gradients of single samples and those within their batch.

    Let c be a random cotangent, J_ik the gradient of output k of sample i within the batch, and
    J_ik' that of the sample alone. The difference is
    || sum_ik c_ik (J_ik - J_ik') || / || sum_ik c_ik J_ik ||. If one gradient differs, so do the
    sums, except with probability zero. This takes two forward and backward passes of the batch.

    Args:
        apply_fn: maps `(params, x)` to the outputs [n, classes].
        params: the parameters to differentiate by.
        x: the batch, a pytree of arrays whose first axis is that of the samples.

    Returns:
        The difference, and the part explained by rounding.

    Example:
        >>> x, w = jnp.array([[1.0], [3.0]]), jnp.ones(())
        >>> float(interaction(lambda w, x: x * w, w, x).difference)
        0.0
        >>> float(interaction(lambda w, x: (x - x.mean(0, keepdims=True)) * w, w, x).difference)
        1.0
    """

    def alone(params: PyTree) -> Float[Array, "n classes"]:
        outputs: Array = jax.vmap(lambda sample: one_sample(apply_fn, params, sample))(x)
        return outputs

    precisions = [jnp.finfo(jnp.result_type(leaf)).eps for leaf in jax.tree.leaves(params)]

    def combined(f: Any) -> list[Array]:
        outputs, pullback = jax.vjp(f, params)
        precisions.append(jnp.finfo(outputs.dtype).eps)
        cotangent = np.random.default_rng(0).standard_normal(outputs.shape)
        gradients = jax.tree.leaves(pullback(jnp.asarray(cotangent, outputs.dtype))[0])
        return [leaf.astype(at_least_single(leaf.dtype)) for leaf in gradients]

    def norm(leaves: list[Array]) -> Array:
        return jnp.sqrt(jnp.stack([jnp.square(leaf).sum() for leaf in leaves]).sum())

    whole, own = combined(lambda params: apply_fn(params, x)), combined(alone)
    difference = norm([left - right for left, right in zip(whole, own, strict=True)])
    relative = difference / jnp.where(difference == 0, 1, norm(whole))
    return Interaction(relative, jnp.asarray(max(precisions) ** 0.5, relative.dtype))

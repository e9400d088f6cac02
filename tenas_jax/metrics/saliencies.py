"""Saliencies of weights, summed over a network, as pure functions of arrays.

They come from pruning, which keeps weights of high saliency. SNIP and synflow are such sums as well
and are in `tenas_jax.metrics.proxies`, whose notes on parameters and layers apply here.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree, Shaped

from tenas_jax.metrics.model import (
    ApplyFn,
    Select,
    is_weight,
    require_weights,
    select_leaves,
)
from tenas_jax.metrics.proxies import Flow, loss_gradient, never, positive_flow, sum_of_norms
from tenas_jax.numerics import PRECISION, highest_precision


def plain(
    apply_fn: ApplyFn,
    params: PyTree,
    x: Any,
    labels: Shaped[Array, "n"],
    *,
    select: Select = is_weight,
) -> Float[Array, ""]:
    """Sum of theta dL/dtheta, signs kept (Mozer & Smolensky 1989; Abdelfattah et al. 2021).

    L is the mean cross-entropy. Batch normalization cancels any scale of the preceding weights, so
    their terms sum to nearly zero, and the classifier's weights dominate.

    Args:
        apply_fn: see `grad_norm`.
        params: see `grad_norm`.
        x: see `grad_norm`.
        labels: see `grad_norm`.
        select: see `grad_norm`.

    Returns:
        A scalar; higher is better in the published code. 0 if the loss depends on no weight.

    Raises:
        InputError: see `grad_norm`.

    Example:
        >>> params, x = {"kernel": jnp.array([[3.0, 1.0]])}, jnp.array([[0.0], [2.0]])
        >>> value = plain(lambda p, x: x @ p["kernel"], params, x, jnp.array([0, 1]))
        >>> round(float(value), 3)  # 2 (3 - 1) / (1 + exp(-4)) / 2
        1.964
    """
    require_weights(params, select)
    return signed_saliency(params, loss_gradient(params, apply_fn, x, labels), select)


def signed_saliency(
    params: PyTree, gradient: PyTree, select: Select = is_weight
) -> Float[Array, ""]:
    """Compute `plain` from a gradient: the sum of theta g over parameters theta, gradients g.

    Args:
        params: parameters.
        gradient: gradient of the loss, a tree like `params`.
        select: whether the parameter at a path is used.

    Raises:
        InputError: no parameter is selected.

    Example:
        >>> float(signed_saliency({"kernel": jnp.array([2.0])}, {"kernel": jnp.array([-3.0])}))
        -6.0
    """
    theta, g = (ravel_pytree(select_leaves(tree, select))[0] for tree in (params, gradient))
    return (theta * g).sum()


@highest_precision()
def grasp(
    apply_fn: ApplyFn,
    params: PyTree,
    x: Any,
    labels: Shaped[Array, "n"],
    *,
    select: Select = is_weight,
) -> Float[Array, ""]:
    """GraSP, -sum of theta H g (Wang et al. 2020, eq. 8; summed: Abdelfattah et al. 2021).

    g and H are the gradient and Hessian of the mean cross-entropy by the selected weights, at
    temperature 1. The sign is that of Abdelfattah et al. and NASLib. The sum is the derivative of
    the slope along g by a common factor of all weights, so the Hessian is never formed.

    Args:
        apply_fn: see `grad_norm`; must be twice differentiable in reverse mode.
        params: see `grad_norm`.
        x: see `grad_norm`.
        labels: see `grad_norm`.
        select: see `grad_norm`.

    Returns:
        A scalar; higher is better in the published code. 0 if the loss depends on no weight.

    Raises:
        InputError: see `grad_norm`.

    Example:
        >>> square = lambda p, x: x * jnp.square(p["w"])[None]  # with one class there is no loss
        >>> float(grasp(square, {"w": jnp.ones(1)}, jnp.ones((2, 1)), jnp.array([0, 0])))
        -0.0
    """
    require_weights(params, select)
    gradient = select_leaves(loss_gradient(params, apply_fn, x, labels), select)

    def slope(factor: Float[Array, ""]) -> Float[Array, ""]:
        """The slope of the loss along `gradient`, with the weights scaled by a factor."""
        scaled = jax.tree_util.tree_map_with_path(
            lambda path, leaf: factor.astype(leaf.dtype) * leaf if select(path) else leaf, params
        )
        there = select_leaves(loss_gradient(scaled, apply_fn, x, labels), select)
        return jnp.vdot(ravel_pytree(gradient)[0], ravel_pytree(there)[0], precision=PRECISION)

    curvature: Array = jax.grad(slope)(jnp.ones((), gradient[0].dtype))
    return -curvature


def l2_norm(
    params: PyTree, *, select: Select = is_weight, stacked: Select = never
) -> Float[Array, ""]:
    """Sum over layers of the norm of their weights (Abdelfattah et al. 2021, their code).

    A supernet or single path still has the weights of pruned operators: set them to zero first, see
    `connected_weights`.

    Args:
        params: parameters, a pytree of arrays; a layer is a leaf.
        select: whether the parameter at a path is used; by default all but biases.
        stacked: whether the leaf at a path stacks several layers along its first axis.

    Returns:
        A scalar; higher is better.

    Raises:
        InputError: no parameter is selected, or one has the wrong data type.

    Example:
        >>> float(l2_norm({"first": {"kernel": jnp.array([[3.0, 4.0]])}, "second": {"w": 2.0}}))
        7.0
    """
    require_weights(params, select)
    return sum_of_norms(params, select, stacked)


def connected_weights(
    params: PyTree, gradient: PyTree, select: Select = is_weight, stacked: Select = never
) -> PyTree:
    """Set weights to zero in layers without gradient, which do not reach the output.

    Args:
        params: parameters.
        gradient: gradient of the loss, a tree like `params`.
        select: whether the parameter at a path is used; others are returned unchanged.
        stacked: whether the leaf at a path stacks several layers along its first axis.

    Example:
        >>> params = {"kernel": jnp.array([3.0, 4.0]), "pruned": {"kernel": jnp.array([1.0])}}
        >>> gradient = {"kernel": jnp.array([0.5, 0.0]), "pruned": {"kernel": jnp.array([0.0])}}
        >>> float(l2_norm(connected_weights(params, gradient)))
        5.0
    """

    def kept(path: tuple[Any, ...], theta: Array, g: Array) -> Array:
        if not select(path):
            return theta
        weights = tuple(range(1 if stacked(path) else 0, g.ndim))
        return jnp.where((g != 0).any(weights, keepdims=True), theta, 0)

    return jax.tree_util.tree_map_with_path(kept, params, gradient)


def log_synflow(
    apply_fn: ApplyFn, params: PyTree, x: Any, *, select: Select = is_weight
) -> Float[Array, ""]:
    """LogSynflow, sum of |theta| log(1 + dR/dtheta) at |theta| (Cavagnero et al. 2023, FreeREA).

    R is the sum of the outputs. As in the published code, there is no normalization and the input
    is ones. That code uses double precision; here the logarithm of the derivative is the sum of
    those of R and of the gradient of log R, so only R must be finite.

    Args:
        apply_fn: see `synflow`.
        params: see `synflow`.
        x: see `synflow`.
        select: see `synflow`.

    Returns:
        A scalar; higher is better. 0 if the outputs are zero or depend on no selected parameter.

    Raises:
        InputError: see `synflow`. Inside `jit` and `vmap` the result is NaN if R overflows or is
            negative.

    Example:
        >>> params = {"kernel": jnp.array([[1.0], [-2.0]])}
        >>> value = log_synflow(lambda p, x: x @ p["kernel"], params, jnp.ones((1, 2)))
        >>> round(float(value), 3)  # 3 log 2
        2.079
    """
    return log_flow(positive_flow(apply_fn, params, x, select=select), select)


def log_flow(flow: Flow, select: Select = is_weight) -> Float[Array, ""]:
    """Compute `log_synflow` from its terms: the sum of theta log(1 + dR/dtheta).

    Args:
        flow: see `positive_flow`.
        select: see `synflow`.

    Example:
        >>> weights = {"kernel": jnp.array([1.0, 2.0])}
        >>> flow = Flow(weights, jnp.array(3.0), {"kernel": jnp.array([1.0, 1.0]) / 3})
        >>> round(float(log_flow(flow)), 3)
        2.079
    """
    theta, g = (
        ravel_pytree(select_leaves(tree, select))[0] for tree in (flow.weights, flow.gradient)
    )
    return (theta * jnp.logaddexp(0, jnp.log(flow.output) + jnp.log(g))).sum()

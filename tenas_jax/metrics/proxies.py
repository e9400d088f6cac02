"""Other training-free proxies of an architecture's accuracy, as pure functions of arrays.

For all of them higher is better. They can be transformed by `jax.jit` and `jax.vmap`; functions
(`apply_fn`, `select`) are static arguments.

Two choices differ from the published implementations (Abdelfattah et al. 2021, Li et al. 2023):

- These use the weights of convolutions and linear layers. Here `select` chooses the parameters, by
  default everything except biases, including scales of normalizations. For the networks of this
  library, `select=lambda path: path[-1].key not in ("scale", "bias")` is their choice.
- A layer is one leaf of `params`. This matters for metrics that are not plain sums over weights:
  `grad_norm` sums norms of layers, `zico` their logarithms. The supernets of this library stack the
  weights of parallel edges: an operator on three edges that leave one node is one layer there, but
  three in a discrete network. `stacked=` separates them, in `zico` and `sum_of_norms`.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, PyTree, Shaped

from tenas_jax.errors import InputError
from tenas_jax.metrics.model import (
    ApplyFn,
    Select,
    at_least_single,
    is_weight,
    require_classes,
    require_labels,
    require_logits,
    require_outputs,
    require_weights,
    select_leaves,
)
from tenas_jax.metrics.nonlinearities import analyze
from tenas_jax.metrics.ntk import condition_number
from tenas_jax.metrics.regions import Patterns, count_linear_regions, require_patterns
from tenas_jax.numerics import highest_precision, require_arrays, require_numbers


def never(path: tuple[Any, ...]) -> bool:
    """The default of `stacked=`: no leaf stacks several layers."""
    return False


def ntk_trace(ntk: Float[Array, "n n"]) -> Float[Array, ""]:
    """Trace norm of the NTK, sum_i lambda_i = sum_i |J_i|^2 (Shu et al. 2022, NASI, equation 9).

    NASI's search bounds the trace by the learning rate (equation 8) and approximates it by the
    gradient of a loss (equation 12); this is neither.

    Args:
        ntk: a symmetric positive semi-definite matrix [n, n]. NASI's trace needs
            `empirical_ntk(..., reduction="trace")`; the default kernel is of the summed outputs.

    Returns:
        A scalar; higher is better.

    Example:
        >>> float(ntk_trace(jnp.array([[2.0, 1.0], [1.0, 4.0]])))
        6.0
    """
    return jnp.trace(ntk)


def ntk_mean_eigenvalue(ntk: Float[Array, "n n"]) -> Float[Array, ""]:
    """Mean eigenvalue of the NTK, sum_i lambda_i / n (Shu et al. 2022, NASI, proposition 1).

    It is the trace divided by n: for batches of the same size it ranks exactly like `ntk_trace`.

    Args:
        ntk: a symmetric positive semi-definite matrix [n, n]; see `ntk_trace`. NASI's kernel has
            n times classes eigenvalues, so its mean is smaller by the number of classes.

    Returns:
        A scalar; higher is better.

    Example:
        >>> float(ntk_mean_eigenvalue(jnp.array([[2.0, 1.0], [1.0, 4.0]])))
        3.0
    """
    return ntk_trace(ntk) / len(ntk)


def naswot(patterns: Patterns, *, counts: Int[Array, "neurons"] | int = 1) -> Float[Array, ""]:
    """NASWOT, log |det K_H| with K_H[i, j] = neurons - hamming(i, j) (Mellor et al. 2021, eq. 2).

    The original takes the logarithm of rounding errors for a singular kernel.

    Args:
        patterns: which neurons are active for each sample.
        counts: how often each neuron occurs in the network. A supernet of this library has one ReLU
            for all edges that leave a node by the same operator; a discrete network has one per
            such edge, or none.

    Returns:
        A scalar; higher is better. Minus infinity if the kernel is singular to its precision, for
        example because two samples have the same pattern; see `condition_number`.

    Example:
        >>> round(float(naswot(jnp.eye(2, dtype=bool))), 3)  # log of det [[2, 0], [0, 2]]
        1.386
        >>> float(naswot(jnp.ones((2, 5), bool)))
        -inf
    """
    active = require_patterns(patterns)

    def agreements(bits: Bool[Array, "n neurons"]) -> Float[Array, "n n"]:
        ones = bits.astype(float)
        return (jnp.atleast_2d(counts) * ones) @ ones.T  # small integers: exact in any precision

    kernel = agreements(active) + agreements(~active)
    return jnp.where(jnp.isinf(condition_number(kernel)), -jnp.inf, jnp.linalg.slogdet(kernel)[1])


def swap(patterns: Patterns) -> Int[Array, ""]:
    """SWAP score: the number of distinct sample-wise activation patterns (Peng et al. 2024).

    The pattern of a neuron is the set of samples for which it is active. This counts columns, while
    `count_linear_regions` counts rows. The paper's regularization by model size is left out.

    Args:
        patterns: which neurons are active for each sample. Repeated neurons change nothing; those
            of pruned operators, which are active for no sample, together count as one.

    Returns:
        An integer from 1 to the number of neurons; higher is better.

    Example:
        >>> int(swap(jnp.array([[True, False, True], [True, True, True]])))
        2
    """
    return count_linear_regions(require_patterns(patterns).T)


class Flow(NamedTuple):
    """The terms of synflow and log-synflow; see `positive_flow`."""

    weights: PyTree
    """The absolute values of the parameters."""
    output: Float[Array, ""]
    """R, the sum of the outputs."""
    gradient: PyTree
    """The gradient of log R by the weights; zero if R is zero."""


@highest_precision()
def positive_flow(apply_fn: ApplyFn, params: PyTree, x: Any, *, select: Select = is_weight) -> Flow:
    """The sum of the outputs with positive parameters, and the gradient of its logarithm.

    Args:
        apply_fn: see `synflow`.
        params: see `synflow`.
        x: see `synflow`.
        select: see `synflow`.

    Raises:
        InputError: see `synflow`.

    Example:
        >>> params = {"kernel": jnp.array([[1.0], [-2.0]])}
        >>> flow = positive_flow(lambda p, x: x @ p["kernel"], params, jnp.ones((1, 2)))
        >>> float(flow.output), [round(float(g), 3) for g in flow.gradient["kernel"][:, 0]]
        (3.0, [0.333, 0.333])
    """
    require_weights(params, select)
    require_numbers(x=x)
    inputs = len(jax.tree.leaves(x))
    program = jax.make_jaxpr(apply_fn)(params, x)
    if analyze(program, [False] * (len(program.in_avals) - inputs) + [True] * inputs).takes_roots():
        raise InputError("the model takes a root of x, as normalizations do: synflow needs none")

    def summed(params: PyTree) -> Float[Array, ""]:
        outputs = apply_fn(params, x)
        require_outputs(outputs)
        return outputs.sum(dtype=at_least_single(outputs.dtype))

    magnitudes = jax.tree.map(_magnitude, params)
    total, pullback = jax.vjp(summed, magnitudes)
    known = not isinstance(total, jax.core.Tracer)
    if known and not 0 <= total < jnp.inf:
        raise InputError(
            f"the outputs sum to {total} where all parameters are positive, and synflow is their "
            "logarithm: give smaller x, or a model without normalization and subtraction"
        )
    (gradient,) = pullback(jnp.where(total == 0, 0, 1 / total))
    return Flow(magnitudes, total, gradient)


def synflow(
    apply_fn: ApplyFn, params: PyTree, x: Any, *, select: Select = is_weight
) -> Float[Array, ""]:
    """Logarithm of synflow, log sum |theta dR/dtheta| at |theta| (Tanaka et al. 2020).

    R is the sum of the outputs. It grows exponentially with depth, so the published code uses
    double precision. Here the score is log R + log sum |theta d(log R)/dtheta|, which is finite if
    R is.

    Args:
        apply_fn: maps `(params, x)` to the outputs, without normalization: that would cancel the
            scale of the weights, which synflow measures. Abdelfattah et al. 2021 also replace
            normalization by the identity.
        params: parameters, a pytree of arrays; their absolute values are used.
        x: the input, one image of ones. If R overflows, use a smaller constant: without biases R is
            proportional to it, and all architectures' results decrease by the same amount.
        select: whether the sum includes the parameter at a path; by default all but biases.

    Returns:
        A scalar; higher is better. Minus infinity if the outputs are zero or depend on no selected
        parameter.

    Raises:
        InputError: the model normalizes, R overflows or is negative, no parameter is selected, or
            one has the wrong data type. Inside `jit` and `vmap`, where R is unknown, the result is
            NaN if R overflows or is negative.

    Example:
        >>> params = {"kernel": jnp.array([[1.0], [-2.0]])}
        >>> score = synflow(lambda p, x: x @ p["kernel"], params, jnp.ones((1, 2)))
        >>> round(float(jnp.exp(score)), 3)
        3.0
    """
    return flow_of_weights(positive_flow(apply_fn, params, x, select=select), select)


def flow_of_weights(flow: Flow, select: Select = is_weight) -> Float[Array, ""]:
    """Compute `synflow` from its terms: the logarithm of the flow through all selected weights.

    Args:
        flow: see `positive_flow`.
        select: see `synflow`.

    Example:
        >>> weights = {"kernel": jnp.array([1.0, 2.0])}
        >>> flow = Flow(weights, jnp.array(3.0), {"kernel": jnp.array([1.0, 1.0]) / 3})
        >>> round(float(jnp.exp(flow_of_weights(flow))), 3)
        3.0
    """
    return jnp.log(flow.output) + jnp.log(saliency(flow.weights, flow.gradient, select))


def _magnitude(leaf: Any) -> Any:
    return jnp.abs(leaf) if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact) else leaf


def grad_norm(
    apply_fn: ApplyFn,
    params: PyTree,
    x: Any,
    labels: Shaped[Array, "n"],
    *,
    select: Select = is_weight,
) -> Float[Array, ""]:
    """Gradient norm, sum over layers l of |dL/dtheta_l|_2 (Abdelfattah et al. 2021).

    L is the mean cross-entropy. As in their code, the norms of the layers are summed, which differs
    from the norm of the whole gradient.

    Args:
        apply_fn: maps `(params, x)` to the logits [n, classes]; differentiable in reverse mode.
        params: parameters, a pytree of arrays; a layer is a leaf.
        x: the batch, in any form that `apply_fn` takes.
        labels: class of each sample, from 0.
        select: whether the parameter at a path is used; by default all but biases.

    Returns:
        A scalar; higher is better.

    Raises:
        InputError: logits or labels have the wrong shape, labels are not classes, no parameter is
            selected, or one has the wrong data type.

    Example:
        >>> params, x = {"kernel": jnp.zeros((1, 2))}, jnp.array([[2.0]])
        >>> round(float(grad_norm(lambda p, x: x @ p["kernel"], params, x, jnp.array([0]))), 3)
        1.414
    """
    require_weights(params, select)
    return sum_of_norms(loss_gradient(params, apply_fn, x, labels), select)


def snip(
    apply_fn: ApplyFn,
    params: PyTree,
    x: Any,
    labels: Shaped[Array, "n"],
    *,
    select: Select = is_weight,
) -> Float[Array, ""]:
    """SNIP, sum |theta dL/dtheta| (Lee et al. 2019; summed: Abdelfattah et al. 2021).

    L is the mean cross-entropy.

    Args:
        apply_fn: see `grad_norm`.
        params: see `grad_norm`.
        x: see `grad_norm`.
        labels: see `grad_norm`.
        select: see `grad_norm`.

    Returns:
        A scalar; higher is better.

    Raises:
        InputError: see `grad_norm`.

    Example:
        >>> params, x = {"kernel": jnp.array([[3.0, 3.0]])}, jnp.array([[2.0]])
        >>> round(float(snip(lambda p, x: x @ p["kernel"], params, x, jnp.array([0]))), 3)
        6.0
    """
    require_weights(params, select)
    return saliency(params, loss_gradient(params, apply_fn, x, labels), select)


def zico(
    apply_fn: ApplyFn,
    params: PyTree,
    x: Any,
    labels: Shaped[Array, "batch n"],
    *,
    select: Select = is_weight,
    stacked: Select = never,
) -> Float[Array, ""]:
    """ZiCo, sum over layers of log(sum over weights of mean |g| / std g) (Li et al. 2023, eq. 15).

    g are the gradients of the mean cross-entropy in two or more batches. As in the published code,
    the standard deviation is of g (in the paper of |g|); weights with zero deviation, and layers
    with only such weights, are left out. Unlike in that code, which does not reset gradients, those
    of a batch do not include earlier batches.

    Args:
        apply_fn: maps `(params, x[i])` to the logits [n, classes]; differentiable in reverse mode.
        params: parameters, a pytree of arrays; a layer is a leaf.
        x: the batches along the first axis, in any form that `apply_fn` takes; the paper has 2.
        labels: class of each sample, from 0.
        select: whether the parameter at a path is used; by default all but biases.
        stacked: whether the leaf at a path stacks several layers along its first axis.

    Returns:
        A scalar; higher is better.

    Raises:
        InputError: there are fewer than two batches, or their numbers differ; also see `grad_norm`.

    Example:
        >>> params, x = {"kernel": jnp.zeros((1, 2))}, jnp.array([[[1.0]], [[3.0]]])
        >>> labels = jnp.array([[0], [0]])  # gradients -0.5, 0.5 and -1.5, 1.5
        >>> round(float(jnp.exp(zico(lambda p, x: x @ p["kernel"], params, x, labels))), 3)
        4.0
    """
    require_weights(params, select)
    require_numbers(x=x)
    batches = sorted({leaf.shape[0] for leaf in jax.tree.leaves((x, labels))})
    if len(batches) > 1:
        raise InputError(f"x and labels have {batches[0]} and {batches[1]} batches: give as many")
    if batches[0] < 2:
        raise InputError("ZiCo of 1 batch has no deviation: give 2 or more along the first axis")
    require_classes(labels)

    def gradients(batch: tuple[Any, Shaped[Array, "n"]]) -> list[Array]:
        return select_leaves(loss_gradient(params, apply_fn, *batch), select)

    def ratios(gradients: Float[Array, "batch ..."]) -> Float[Array, "..."]:
        deviation = gradients.std(0)
        varies = deviation > 0
        return jnp.where(varies, jnp.abs(gradients).mean(0) / jnp.where(varies, deviation, 1), 0)

    def logarithm(ratios: Array) -> Float[Array, ""]:
        """A layer's term; 0 if no weight's gradient varies."""
        total = ratios.sum()
        return jnp.log(jnp.where(total > 0, total, 1))

    leaves = [ratios(leaf) for leaf in lax.map(gradients, (x, labels))]
    return _sum_over_layers(logarithm, leaves, _selected(stacked, params, select))


def parameters(params: PyTree) -> int:
    """Number of parameters, including biases; a Python int, known without their values.

    Args:
        params: parameters, or their shapes from `jax.eval_shape`.

    Returns:
        A count; higher is better.

    Raises:
        InputError: a leaf is not an array.

    Example:
        >>> parameters({"kernel": jnp.zeros((3, 4)), "bias": jnp.zeros(4)})
        16
    """
    require_arrays(params=params)
    return sum(math.prod(jnp.shape(leaf)) for leaf in jax.tree.leaves(params))


def cross_entropy(
    params: PyTree, apply_fn: ApplyFn, x: Any, labels: Shaped[Array, "n"]
) -> Float[Array, ""]:
    """Mean cross-entropy of a batch, the loss L of `grad_norm`, `snip` and `zico`.

    Args:
        params: parameters; the first argument, so that it can be differentiated.
        apply_fn: maps `(params, x)` to the logits [n, classes].
        x: the batch.
        labels: class of each sample, from 0.

    Returns:
        A scalar, in nats.

    Raises:
        InputError: the logits are not a matrix of real numbers, the number of labels is wrong, or a
            label is not a class. Inside `jit` and `vmap` the values of labels are unknown.

    Example:
        >>> loss = cross_entropy(0.0, lambda _, x: x, jnp.zeros((3, 2)), jnp.array([0, 1, 0]))
        >>> round(float(loss), 3)  # log 2
        0.693
    """
    # Imported here, so that searches without a loss need not wait for it.
    import optax  # type: ignore[import-untyped]

    logits = apply_fn(params, x)
    require_logits(logits)
    n, classes = logits.shape
    require_labels(labels, n, classes)
    losses: Array = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return losses.mean()


@highest_precision()
def loss_gradient(params: PyTree, apply_fn: ApplyFn, x: Any, labels: Shaped[Array, "n"]) -> PyTree:
    """Gradient of `cross_entropy` by all parameters; float0 for integer parameters.

    Args:
        params: parameters.
        apply_fn: maps `(params, x)` to the logits [n, classes].
        x: the batch.
        labels: class of each sample, from 0.

    Raises:
        InputError: see `cross_entropy`, or `x` holds NaN.

    Example:
        >>> x, labels = jnp.zeros((1, 2)), jnp.array([0])
        >>> loss_gradient(x, lambda params, x: params + x, x, labels).tolist()
        [[-0.5, 0.5]]
    """
    require_numbers(x=x)
    gradient: PyTree = jax.grad(cross_entropy, allow_int=True)(params, apply_fn, x, labels)
    return gradient


def sum_of_norms(
    gradient: PyTree, select: Select = is_weight, stacked: Select = never
) -> Float[Array, ""]:
    """Compute `grad_norm` from a gradient: the sum over layers of the norm of their gradient.

    Args:
        gradient: gradient of the loss, one leaf per layer.
        select: whether the layer at a path is used.
        stacked: whether the leaf at a path stacks several layers along its first axis.

    Raises:
        InputError: no parameter is selected.

    Example:
        >>> float(sum_of_norms({"kernel": jnp.array([3.0, 4.0])}))
        5.0
    """

    def norm(layer: Array) -> Array:
        return jnp.sqrt(jnp.square(layer).sum())

    layers = select_leaves(gradient, select)
    return _sum_over_layers(norm, layers, _selected(stacked, gradient, select))


def saliency(params: PyTree, gradient: PyTree, select: Select = is_weight) -> Float[Array, ""]:
    """Compute `snip` from a gradient: the sum of |theta g| over parameters theta, gradients g.

    Args:
        params: parameters.
        gradient: gradient of the loss, a tree like `params`.
        select: whether the parameter at a path is used.

    Raises:
        InputError: no parameter is selected.

    Example:
        >>> float(saliency({"kernel": jnp.array([2.0])}, {"kernel": jnp.array([-3.0])}))
        6.0
    """
    theta, g = (ravel_pytree(select_leaves(tree, select))[0] for tree in (params, gradient))
    return jnp.abs(theta * g).sum()


def _selected(stacked: Select, tree: PyTree, select: Select) -> list[bool]:
    """Whether the selected leaves of a tree are stacked."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [stacked(path) for path, _ in leaves if select(path)]


def _sum_over_layers(
    value: Callable[[Array], Array], leaves: Sequence[Array], stacked: Sequence[bool]
) -> Float[Array, ""]:
    """Sum a function of each layer's weights, vectorized over layers of the same size."""
    by_size: dict[int, list[Float[Array, "layer weights"]]] = {}
    for leaf, several in zip(leaves, stacked, strict=True):
        layers = leaf.reshape(len(leaf) if several else 1, -1)
        by_size.setdefault(layers.shape[1], []).append(layers)
    return jnp.concatenate(
        [jax.vmap(value)(jnp.concatenate(each)) for each in by_size.values()]
    ).sum()

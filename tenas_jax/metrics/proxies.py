"""Other training-free proxies of an architecture's accuracy, as pure functions of arrays.

For all of them higher is better. They can be transformed by `jax.jit` and `jax.vmap`, where
functions (`apply_fn`, `select`) are static.

Two choices differ from the published implementations (Abdelfattah et al. 2021, Li et al. 2023):

- They take the weights of convolutions and linear layers. Here `select` chooses, by default
  everything but biases, scales of normalizations included; for the networks of this library
  `select=lambda path: path[-1].key not in ("scale", "bias")` is theirs.
- A layer is one leaf of `params`, which matters where layers are not simply added up: `grad_norm`
  sums their norms, `zico` their logarithms. The supernets of this library stack the weights of
  parallel edges, so that an operator on three edges that leave one node is one layer there and
  three in a discrete network. `stacked=` tells them apart, in `zico` and `sum_of_norms`.
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
    """No leaf is several layers: the default of `stacked=`."""
    return False


def ntk_trace(ntk: Float[Array, "n n"]) -> Float[Array, ""]:
    """Trace norm of the NTK, sum_i lambda_i = sum_i |J_i|^2 (Shu et al. 2022, NASI, equation 9).

    NASI's search bounds the trace by the learning rate (equation 8) and approximates it by the
    gradient of a loss (equation 12); this is neither.

    Args:
        ntk: a symmetric positive semi-definite matrix [n, n]. The trace is NASI's if it is
            `empirical_ntk(..., reduction="trace")`; the default is of the summed outputs.

    Returns:
        A scalar; higher is better.

    Example:
        >>> float(ntk_trace(jnp.array([[2.0, 1.0], [1.0, 4.0]])))
        6.0
    """
    return jnp.trace(ntk)


def ntk_mean_eigenvalue(ntk: Float[Array, "n n"]) -> Float[Array, ""]:
    """Mean eigenvalue of the NTK, sum_i lambda_i / n (Shu et al. 2022, NASI, proposition 1).

    It is the trace over n: with batches of one size it ranks exactly as `ntk_trace` does.

    Args:
        ntk: a symmetric positive semi-definite matrix [n, n]; see `ntk_trace`. NASI's kernel has
            n times classes eigenvalues, so that its mean is less by that factor.

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
        counts: how many times each neuron is in the network. A supernet of this library has one
            ReLU for all edges that leave a node by the same operator, a discrete network has as
            many as there are such edges, or none.

    Returns:
        A scalar; higher is better. Minus infinity where the kernel is singular to its precision, as
        it is if two samples have the same pattern; see `condition_number`.

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

    The pattern of a neuron is the set of samples that it is active for: columns are counted, where
    `count_linear_regions` counts rows. Without the paper's regularization by model size.

    Args:
        patterns: which neurons are active for each sample. How many times a neuron is in the
            network changes nothing, except that those of pruned operators, active for no sample,
            count as one together.

    Returns:
        An integer from 1 to the number of neurons; higher is better.

    Example:
        >>> int(swap(jnp.array([[True, False, True], [True, True, True]])))
        2
    """
    return count_linear_regions(require_patterns(patterns).T)


class Flow(NamedTuple):
    """What synflow and log-synflow are made of; see `positive_flow`."""

    weights: PyTree
    """The absolute values of the parameters."""
    output: Float[Array, ""]
    """R, the sum of the outputs."""
    gradient: PyTree
    """Of log R by the weights; zero where R is."""


@highest_precision()
def positive_flow(apply_fn: ApplyFn, params: PyTree, x: Any, *, select: Select = is_weight) -> Flow:
    """The sum of the outputs where all parameters are positive, and the gradient of its logarithm.

    Args:
        apply_fn: see `synflow`, like all arguments.
        params: parameters.
        x: the input.
        select: which parameters take part.

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

    R is the sum of the outputs. It grows exponentially with depth, so that the published code works
    in double precision; here the score is log R + log sum |theta d(log R)/dtheta|, which is finite
    where R is.

    Args:
        apply_fn: maps `(params, x)` to the outputs, without normalization of `x`: that would undo
            the scale of the weights, which is what synflow measures. Abdelfattah et al. 2021
            replace it by the identity as well.
        params: parameters, a pytree of arrays; all take their absolute values.
        x: the input, one image of ones. If R overflows, a smaller constant: without biases R is
            proportional to it, and the result is less by the same amount for all architectures.
        select: whether the parameter at a path takes part in the sum; by default all but biases.

    Returns:
        A scalar; higher is better. Minus infinity where the outputs are zero or depend on no
        selected parameter.

    Raises:
        InputError: the model normalizes, R overflows or is negative, no parameter is selected, or
            one has the wrong data type. Inside `jit` and `vmap`, where R is not known, the result
            is NaN if it overflows or is negative.

    Example:
        >>> params = {"kernel": jnp.array([[1.0], [-2.0]])}
        >>> score = synflow(lambda p, x: x @ p["kernel"], params, jnp.ones((1, 2)))
        >>> round(float(jnp.exp(score)), 3)
        3.0
    """
    return flow_of_weights(positive_flow(apply_fn, params, x, select=select), select)


def flow_of_weights(flow: Flow, select: Select = is_weight) -> Float[Array, ""]:
    """The logarithm of the flow through all selected weights, which `synflow` is.

    Args:
        flow: see `positive_flow`.
        select: which parameters take part.

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

    L is the mean cross-entropy. As in their code the norms of the layers are added, which is not
    the norm of the whole gradient.

    Args:
        apply_fn: maps `(params, x)` to the logits [n, classes]; differentiable in reverse mode.
        params: parameters, a pytree of arrays; a layer is a leaf.
        x: the batch, in whatever form `apply_fn` takes.
        labels: class of each sample, from 0.
        select: whether the parameter at a path takes part; by default all but biases.

    Returns:
        A scalar; higher is better.

    Raises:
        InputError: logits or labels have the wrong shape, labels are no classes, no parameter is
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
        apply_fn: see `grad_norm`, like all arguments.
        params: parameters.
        x: the batch.
        labels: class of each sample.
        select: which parameters take part.

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

    g are the gradients of the mean cross-entropy in two or more batches. As in the published code
    the deviation is of g, in the paper it is of |g|; weights without any deviation and layers
    without any such weight are left out. Unlike in that code, which does not reset them, gradients
    of one batch do not contain those of the batches before.

    Args:
        apply_fn: maps `(params, x[i])` to the logits [n, classes]; differentiable in reverse mode.
        params: parameters, a pytree of arrays; a layer is a leaf.
        x: the batches along the first axis, in whatever form `apply_fn` takes; the paper has 2.
        labels: class of each sample, from 0.
        select: whether the parameter at a path takes part; by default all but biases.
        stacked: whether the leaf at a path is several layers along its first axis.

    Returns:
        A scalar; higher is better.

    Raises:
        InputError: there are fewer than two batches, their numbers differ, or see `grad_norm`.

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
        """A layer's term; 0 where no weight's gradient varies."""
        total = ratios.sum()
        return jnp.log(jnp.where(total > 0, total, 1))

    leaves = [ratios(leaf) for leaf in lax.map(gradients, (x, labels))]
    return _sum_over_layers(logarithm, leaves, _selected(stacked, params, select))


def parameters(params: PyTree) -> int:
    """Number of parameters, biases included; a plain number, known without their values.

    Args:
        params: parameters, or their shapes as `jax.eval_shape` gives them.

    Returns:
        A count; higher is better.

    Raises:
        InputError: something in it is no array.

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
        params: parameters; the first argument, by which it is differentiated.
        apply_fn: maps `(params, x)` to the logits [n, classes].
        x: the batch.
        labels: class of each sample, from 0.

    Returns:
        A scalar, in nats.

    Raises:
        InputError: the logits are no matrix of real numbers, there is not one label for each
            sample, or a label is no class. Inside `jit` and `vmap` values of labels are not known.

    Example:
        >>> loss = cross_entropy(0.0, lambda _, x: x, jnp.zeros((3, 2)), jnp.array([0, 1, 0]))
        >>> round(float(loss), 3)  # log 2
        0.693
    """
    # Here, because a search that needs no loss need not wait for it.
    import optax  # type: ignore[import-untyped]

    logits = apply_fn(params, x)
    require_logits(logits)
    n, classes = logits.shape
    require_labels(labels, n, classes)
    losses: Array = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return losses.mean()


@highest_precision()
def loss_gradient(params: PyTree, apply_fn: ApplyFn, x: Any, labels: Shaped[Array, "n"]) -> PyTree:
    """Gradient of `cross_entropy` by all parameters, float0 by those that are integers.

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
    """Sum over layers of the norm of their gradient, which `grad_norm` is.

    Args:
        gradient: of the loss, a leaf for each layer.
        select: whether the layer at a path takes part.
        stacked: whether the leaf at a path is several layers along its first axis.

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
    """Sum of |theta g| over parameters theta and their gradients g, which `snip` is.

    Args:
        params: parameters.
        gradient: of the loss, a tree like `params`.
        select: whether the parameter at a path takes part.

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
    """The sum of a value of each layer's weights, computed at once for layers of the same size."""
    by_size: dict[int, list[Float[Array, "layer weights"]]] = {}
    for leaf, several in zip(leaves, stacked, strict=True):
        layers = leaf.reshape(len(leaf) if several else 1, -1)
        by_size.setdefault(layers.shape[1], []).append(layers)
    return jnp.concatenate(
        [jax.vmap(value)(jnp.concatenate(each)) for each in by_size.values()]
    ).sum()

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
  three in a discrete network. To tell them apart, unstack `params` and stack them in `apply_fn`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PyTree

from tenas_jax.errors import InputError
from tenas_jax.metrics.ntk import ApplyFn, condition_number, is_weight
from tenas_jax.metrics.regions import count_linear_regions

Select = Callable[[tuple[Any, ...]], bool]


def _never(path: tuple[Any, ...]) -> bool:
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


def naswot(
    patterns: Bool[Array, "n neurons"], *, counts: Int[Array, "neurons"] | int = 1
) -> Float[Array, ""]:
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

    def agreements(bits: Bool[Array, "n neurons"]) -> Float[Array, "n n"]:
        ones = bits.astype(float)
        return (jnp.atleast_2d(counts) * ones) @ ones.T  # small integers: exact in any precision

    kernel = agreements(patterns) + agreements(~patterns)
    return jnp.where(jnp.isinf(condition_number(kernel)), -jnp.inf, jnp.linalg.slogdet(kernel)[1])


def swap(patterns: Bool[Array, "n neurons"]) -> Int[Array, ""]:
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
    return count_linear_regions(patterns.T)


def synflow(
    apply_fn: ApplyFn, params: PyTree, x: Any, *, select: Select = is_weight
) -> Float[Array, ""]:
    """Logarithm of synflow, log sum |theta dR/dtheta| at |theta| (Tanaka et al. 2020).

    R is the sum of the outputs. It grows exponentially with depth, so that the published code works
    in double precision; here the score is log R + log sum |theta d(log R)/dtheta|, which is finite
    where R is.

    Args:
        apply_fn: maps `(params, x)` to the outputs, without batch normalization: that would undo
            the scale of the weights, which is what synflow measures. Abdelfattah et al. 2021
            replace it by the identity as well.
        params: parameters, a pytree of floating-point arrays; all take their absolute values.
        x: the input, one image of ones. If R overflows, a smaller constant: without biases R is
            proportional to it, and the result is less by the same amount for all architectures.
        select: whether the parameter at a path takes part in the sum; by default all but biases.

    Returns:
        A scalar; higher is better. Minus infinity where the outputs are zero or depend on no
        selected parameter, NaN where R overflows or is negative.

    Raises:
        InputError: no parameter is selected.

    Example:
        >>> params = {"kernel": jnp.array([[1.0], [-2.0]])}
        >>> score = synflow(lambda p, x: x @ p["kernel"], params, jnp.ones((1, 2)))
        >>> round(float(jnp.exp(score)), 3)
        3.0
    """
    magnitudes = jax.tree.map(jnp.abs, params)
    total, pullback = jax.vjp(lambda params: apply_fn(params, x).sum(), magnitudes)
    (gradient,) = pullback(jnp.where(total == 0, 0, 1 / total))
    return jnp.log(total) + jnp.log(saliency(magnitudes, gradient, select))


def grad_norm(
    apply_fn: ApplyFn,
    params: PyTree,
    x: Any,
    labels: Int[Array, "n"],
    *,
    select: Select = is_weight,
) -> Float[Array, ""]:
    """Gradient norm, sum over layers l of |dL/dtheta_l|_2 (Abdelfattah et al. 2021).

    L is the mean cross-entropy. As in their code the norms of the layers are added, which is not
    the norm of the whole gradient.

    Args:
        apply_fn: maps `(params, x)` to the logits [n, classes]; differentiable in reverse mode.
        params: parameters, a pytree of floating-point arrays; a layer is a leaf.
        x: the batch, in whatever form `apply_fn` takes.
        labels: class of each sample, from 0.
        select: whether the parameter at a path takes part; by default all but biases.

    Returns:
        A scalar; higher is better.

    Raises:
        InputError: logits or labels have the wrong shape, or no parameter is selected.

    Example:
        >>> params, x = {"kernel": jnp.zeros((1, 2))}, jnp.array([[2.0]])
        >>> round(float(grad_norm(lambda p, x: x @ p["kernel"], params, x, jnp.array([0]))), 3)
        1.414
    """
    return sum_of_norms(jax.grad(cross_entropy)(params, apply_fn, x, labels), select)


def snip(
    apply_fn: ApplyFn,
    params: PyTree,
    x: Any,
    labels: Int[Array, "n"],
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
    return saliency(params, jax.grad(cross_entropy)(params, apply_fn, x, labels), select)


def zico(
    apply_fn: ApplyFn,
    params: PyTree,
    x: Any,
    labels: Int[Array, "batch n"],
    *,
    select: Select = is_weight,
    stacked: Select = _never,
) -> Float[Array, ""]:
    """ZiCo, sum over layers of log(sum over weights of mean |g| / std g) (Li et al. 2023, eq. 15).

    g are the gradients of the mean cross-entropy in two or more batches. As in the published code
    the deviation is of g, in the paper it is of |g|; weights without any deviation and layers
    without any such weight are left out. Unlike in that code, which does not reset them, gradients
    of one batch do not contain those of the batches before.

    Args:
        apply_fn: maps `(params, x[i])` to the logits [n, classes]; differentiable in reverse mode.
        params: parameters, a pytree of floating-point arrays; a layer is a leaf.
        x: the batches along the first axis, in whatever form `apply_fn` takes; the paper has 2.
        labels: class of each sample, from 0.
        select: whether the parameter at a path takes part; by default all but biases.
        stacked: whether the leaf at a path is several layers along its first axis.

    Returns:
        A scalar; higher is better.

    Raises:
        InputError: there are fewer than two batches, their numbers differ, logits or labels have
            the wrong shape, or no parameter is selected.

    Example:
        >>> params, x = {"kernel": jnp.zeros((1, 2))}, jnp.array([[[1.0]], [[3.0]]])
        >>> labels = jnp.array([[0], [0]])  # gradients -0.5, 0.5 and -1.5, 1.5
        >>> round(float(jnp.exp(zico(lambda p, x: x @ p["kernel"], params, x, labels))), 3)
        4.0
    """
    batches = sorted({leaf.shape[0] for leaf in jax.tree.leaves((x, labels))})
    if len(batches) > 1:
        raise InputError(f"x and labels have {batches[0]} and {batches[1]} batches: give as many")
    if batches[0] < 2:
        raise InputError("ZiCo of 1 batch has no deviation: give 2 or more along the first axis")

    def gradient(batch: tuple[Any, Int[Array, "n"]]) -> PyTree:
        return jax.grad(cross_entropy)(params, apply_fn, *batch)

    def ratios(gradients: Float[Array, "batch ..."]) -> Float[Array, "..."]:
        deviation = gradients.std(0)
        varies = deviation > 0
        return jnp.where(varies, jnp.abs(gradients).mean(0) / jnp.where(varies, deviation, 1), 0)

    def logarithm(ratios: Array) -> Float[Array, ""]:
        """A layer's term; 0 where no weight's gradient varies."""
        total = ratios.sum()
        return jnp.log(jnp.where(total > 0, total, 1))

    by_weight = jax.tree.map(ratios, lax.map(gradient, (x, labels)))
    return _sum_over_layers(logarithm, by_weight, select, stacked)


def parameters(params: PyTree) -> int:
    """Number of parameters, biases included; a plain number, known without their values.

    Args:
        params: parameters, or their shapes as `jax.eval_shape` gives them.

    Returns:
        A count; higher is better.

    Example:
        >>> parameters({"kernel": jnp.zeros((3, 4)), "bias": jnp.zeros(4)})
        16
    """
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def cross_entropy(
    params: PyTree, apply_fn: ApplyFn, x: Any, labels: Int[Array, "n"]
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
        InputError: the logits are no matrix, or there is not one label for each sample.

    Example:
        >>> loss = cross_entropy(0.0, lambda _, x: x, jnp.zeros((3, 2)), jnp.array([0, 1, 0]))
        >>> round(float(loss), 3)  # log 2
        0.693
    """
    # Here, because a search that needs no loss need not wait for it.
    import optax  # type: ignore[import-untyped]

    logits = apply_fn(params, x)
    if logits.ndim != 2:
        raise InputError(f"the outputs have shape {logits.shape}: they have to be [n, classes]")
    if labels.shape != logits.shape[:1]:
        raise InputError(
            f"labels of shape {labels.shape} for {len(logits)} samples: give one label for each"
        )
    losses: Array = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return losses.mean()


def sum_of_norms(
    gradient: PyTree, select: Select = is_weight, stacked: Select = _never
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

    return _sum_over_layers(norm, gradient, select, stacked)


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
    pairs = zip(_leaves(params, select), _leaves(gradient, select), strict=True)
    return jnp.stack([jnp.abs(theta * g).sum() for theta, g in pairs]).sum()


def _sum_over_layers(
    value: Callable[[Array], Array], tree: PyTree, select: Select, stacked: Select
) -> Float[Array, ""]:
    def values(path: tuple[Any, ...], leaf: Array) -> Float[Array, "layer"]:
        return jax.vmap(value)(leaf) if stacked(path) else value(leaf)[None]

    by_leaf = jax.tree_util.tree_map_with_path(values, tree)
    return jnp.concatenate(_leaves(by_leaf, select)).sum()


def _leaves(params: PyTree, select: Select) -> list[Array]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    selected = [leaf for path, leaf in leaves if select(path)]
    if not selected:
        raise InputError("no parameter is selected: a proxy of the gradient needs at least one")
    return selected

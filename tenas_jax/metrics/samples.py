"""Metrics of the gradients of single samples, as pure functions of any model.

As in the published code, each sample goes through the network alone, so batch normalization uses
the statistics of its pixels. The gradients of n samples cost little more than that of a batch of n.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, PyTree, Shaped

from tenas_jax.metrics.model import (
    ApplyFn,
    Select,
    at_least_single,
    is_weight,
    require_logits,
    require_weights,
    select_leaves,
)
from tenas_jax.metrics.proxies import loss_gradient, never
from tenas_jax.numerics import PRECISION, highest_precision, require_numbers

# Weight of the uniform distribution in the probabilities of `vkdnw`, as in its code.
_SMOOTHING = 0.05
_DECILES = tuple(tenths / 10 for tenths in range(1, 10))


def grad_sign(
    apply_fn: ApplyFn,
    params: PyTree,
    x: Any,
    labels: Shaped[Array, "n"],
    *,
    select: Select = is_weight,
) -> Float[Array, ""]:
    """GradSign, sum over weights of |sum over samples of sign g| (Zhang & Jia 2022, algorithm 1).

    g is the gradient of a sample's cross-entropy. The sum is the paper's; its code takes the mean
    over weights, which ignores the size of a network.

    Args:
        apply_fn: maps `(params, x)` to the logits [n, classes], also for a batch of one sample;
            differentiable in reverse mode.
        params: parameters, a pytree of arrays.
        x: the batch, a pytree of arrays whose first axis is that of the samples.
        labels: class of each sample, from 0.
        select: whether the parameter at a path is used; by default all but biases.

    Returns:
        A scalar from 0 (no sample has a gradient) to n times the number of weights; higher is
        better. A gradient that is zero up to rounding errors, such as that of the scale of a kernel
        before a batch normalization, has a random sign.

    Raises:
        InputError: see `grad_norm`.

    Example:
        >>> params, x = {"kernel": jnp.zeros((1, 2))}, jnp.array([[1.0], [1.0], [-2.0]])
        >>> labels = jnp.array([0, 0, 0])  # signs of the gradients: - +, - +, + -
        >>> float(grad_sign(lambda p, x: x @ p["kernel"], params, x, labels))
        2.0
    """
    gradients = sample_gradients(apply_fn, params, x, labels, select=select)
    return agreement(gradients)


def fisher(
    apply_fn: ApplyFn,
    params: PyTree,
    x: Any,
    labels: Shaped[Array, "n"],
    *,
    select: Select = is_weight,
) -> Float[Array, ""]:
    """Fisher, sum over weights of mean over samples of (theta g)^2 / 2 (Theis et al. 2018).

    It is the increase of the loss when a weight is removed, summed over all weights; to second
    order, with the empirical Fisher information as the Hessian. g is the gradient of a sample's
    cross-entropy. Turner et al. 2020 and Abdelfattah et al. 2021 remove channels instead of
    weights; the signal of a channel is the sum of activation times gradient over pixels. For a
    kernel without bias that is the sum of theta g over the channel's weights. If a sample is alone
    in its batch, a batch normalization after the kernel makes that sum zero, so here each weight is
    squared.

    Args:
        apply_fn: see `grad_sign`.
        params: see `grad_sign`.
        x: see `grad_sign`.
        labels: see `grad_sign`.
        select: see `grad_sign`.

    Returns:
        A scalar of at least 0; higher is better. 0 if the loss depends on no weight.

    Raises:
        InputError: see `grad_norm`.

    Example:
        >>> params, x = {"kernel": jnp.array([[2.0, 2.0]])}, jnp.array([[1.0], [3.0]])
        >>> value = fisher(lambda p, x: x @ p["kernel"], params, x, jnp.array([0, 0]))
        >>> float(value)  # (1 + 1 + 9 + 9) / 2 / 2
        5.0
    """
    gradients = sample_gradients(apply_fn, params, x, labels, select=select)
    return information_of_weights(params, gradients, select)


class SampleGradients(NamedTuple):
    """Statistics of the gradients g of single samples, for `grad_sign` and `fisher`.

    Each list has one array per selected parameter.
    """

    signs: list[Array]
    """The sum of sign g over samples."""
    squares: list[Array]
    """The mean of g^2."""


def sample_gradients(
    apply_fn: ApplyFn,
    params: PyTree,
    x: Any,
    labels: Shaped[Array, "n"],
    *,
    select: Select = is_weight,
) -> SampleGradients:
    """Statistics over samples of the gradients of their cross-entropy, computed sequentially.

    Args:
        apply_fn: see `grad_sign`.
        params: see `grad_sign`.
        x: see `grad_sign`.
        labels: see `grad_sign`.
        select: see `grad_sign`.

    Raises:
        InputError: see `grad_norm`.

    Example:
        >>> params, x = {"kernel": jnp.zeros((1, 2))}, jnp.array([[1.0], [3.0]])
        >>> apply_fn = lambda p, x: x @ p["kernel"]
        >>> (signs,), (squares,) = sample_gradients(apply_fn, params, x, jnp.array([0, 0]))
        >>> signs.tolist(), squares.tolist()
        ([[-2.0, 2.0]], [[1.25, 1.25]])
    """
    require_weights(params, select)
    require_numbers(x=x)

    def add(
        sums: SampleGradients, sample: tuple[Any, Shaped[Array, ""]]
    ) -> tuple[SampleGradients, None]:
        one, label = jax.tree.map(lambda leaf: leaf[None], sample)
        gradient = select_leaves(loss_gradient(params, apply_fn, one, label), select)
        signs = jax.tree.map(lambda total, g: total + jnp.sign(g), sums.signs, gradient)
        squares = jax.tree.map(lambda total, g: total + g**2 / n, sums.squares, gradient)
        return SampleGradients(signs, squares), None

    n = len(labels)
    zeros = jax.tree.map(jnp.zeros_like, select_leaves(params, select))
    sums, _ = lax.scan(add, SampleGradients(zeros, zeros), (x, jnp.asarray(labels)))
    return sums


def agreement(gradients: SampleGradients) -> Float[Array, ""]:
    """Compute `grad_sign` from gradients: the sum over weights of |sum over samples of sign g|.

    Args:
        gradients: see `sample_gradients`.

    Example:
        >>> float(agreement(SampleGradients([jnp.array([2.0, -1.0])], [jnp.zeros(2)])))
        3.0
    """
    return jnp.abs(ravel_pytree(gradients.signs)[0]).sum()


def information_of_weights(
    params: PyTree, gradients: SampleGradients, select: Select = is_weight
) -> Float[Array, ""]:
    """Compute `fisher` from gradients: half the sum over weights of theta^2 mean g^2.

    Args:
        params: parameters.
        gradients: see `sample_gradients`.
        select: see `grad_sign`.

    Example:
        >>> gradients = SampleGradients([jnp.zeros(1)], [jnp.array([1.5])])
        >>> float(information_of_weights({"kernel": jnp.array([2.0])}, gradients))
        3.0
    """
    theta = ravel_pytree(select_leaves(params, select))[0]
    return (jnp.square(theta) * ravel_pytree(gradients.squares)[0]).sum() / 2


def vkdnw(
    apply_fn: ApplyFn,
    params: PyTree,
    x: Any,
    *,
    select: Select = is_weight,
    stacked: Select = never,
) -> Float[Array, ""]:
    """VKDNW, the entropy of the deciles of the Fisher information's spectrum (Tybl & Neumann 2025).

    Let J_n [classes, layer] be the Jacobian of a sample's logits by the first weight of each layer,
    and p_n its probabilities. The information is F = mean_n J_n' (diag p_n - p_n p_n') J_n. With
    the deciles q_1 to q_9 of its eigenvalues and r_k = q_k / sum_i q_i, the entropy is
    -sum_k r_k log r_k.

    As in the published code, probabilities are smoothed by 5 % of the uniform distribution. The
    paper's ranking also adds the number of layers, which is left out here. Only selected weights
    are used; the published code also uses biases and affine parameters. Layers whose weight has no
    influence on any sample, such as those of pruned operators, do not count.

    Args:
        apply_fn: maps `(params, x)` to the logits [n, classes], also for a batch of one sample;
            differentiable in reverse mode.
        params: parameters, a pytree of arrays; a layer is a leaf.
        x: the batch, a pytree of arrays whose first axis is that of the samples. The published code
            uses Gaussian noise by default.
        select: whether the parameter at a path is used; by default all but biases.
        stacked: whether the leaf at a path stacks several layers along its first axis.

    Returns:
        A scalar from 0 to log 9; higher is better. NaN if all deciles are zero, as in a network
        without connections.

    Raises:
        InputError: no parameter is selected, or a parameter or the logits have the wrong data type.

    Example:
        >>> params = {"first": {"w": jnp.ones(1)}, "second": {"w": jnp.ones(1)}}
        >>> x = jnp.array([[1.0, 0.0], [0.0, 1.0]])  # the same for each weight
        >>> def apply_fn(params, x):
        ...     return x * jnp.concatenate([params["first"]["w"], params["second"]["w"]])[None]
        >>> bool(jnp.isclose(vkdnw(apply_fn, params, x), jnp.log(9)))
        True
    """
    information, present = fisher_information(apply_fn, params, x, select=select, stacked=stacked)
    return decile_entropy(information, present)


@highest_precision()
def fisher_information(
    apply_fn: ApplyFn,
    params: PyTree,
    x: Any,
    *,
    select: Select = is_weight,
    stacked: Select = never,
) -> tuple[Float[Array, "layer layer"], Bool[Array, "layer"]]:
    """The empirical Fisher information of the first weight of each layer.

    Args:
        apply_fn: see `vkdnw`.
        params: see `vkdnw`.
        x: see `vkdnw`.
        select: see `vkdnw`.
        stacked: see `vkdnw`.

    Returns:
        The information, and which layers have any influence on the logits.

    Raises:
        InputError: see `vkdnw`.

    Example:
        >>> params, x = {"w": jnp.zeros(1)}, jnp.array([[1.0, -1.0]])
        >>> information, present = fisher_information(lambda p, x: p["w"][None] * x, params, x)
        >>> round(float(information[0, 0]), 3), present.tolist()
        (1.0, [True])
    """
    require_weights(params, select)
    require_numbers(x=x)
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    several = [stacked(path) for path in paths if select(path)]

    def first_weights(tree: PyTree) -> Float[Array, "layer"]:
        leaves = zip(select_leaves(tree, select), several, strict=True)
        return jnp.concatenate(
            [leaf.reshape(len(leaf) if layers else 1, -1)[:, 0] for leaf, layers in leaves]
        )

    def jacobian(sample: Any) -> tuple[Float[Array, "classes layer"], Float[Array, "classes"]]:
        def logits(params: PyTree) -> Float[Array, "classes"]:
            outputs = apply_fn(params, jax.tree.map(lambda leaf: leaf[None], sample))
            require_logits(outputs)
            return outputs[0]

        outputs, pullback = jax.vjp(logits, params)
        classes = jnp.eye(len(outputs), dtype=outputs.dtype)
        # Not `vmap`: convolutions of several cotangents take minutes to compile.
        rows = lax.map(lambda cotangent: first_weights(pullback(cotangent)[0]), classes)
        return rows, outputs.astype(at_least_single(outputs.dtype))

    jacobians, logits = lax.map(jacobian, x)
    classes = logits.shape[1]
    p = (1 - _SMOOTHING) * jax.nn.softmax(logits) + _SMOOTHING / classes
    # J' (diag p - p p') J is the covariance of the rows of J, weighted by p.
    mean = jnp.einsum("nc,ncl->nl", p, jacobians, precision=PRECISION)
    centered = jnp.sqrt(p)[..., None] * (jacobians - mean[:, None])
    rows = centered.reshape(-1, centered.shape[-1])
    present = (jacobians != 0).any((0, 1))
    return jnp.matmul(rows.T, rows, precision=PRECISION) / len(logits), present


def decile_entropy(
    information: Float[Array, "layer layer"], present: Bool[Array, "layer"]
) -> Float[Array, ""]:
    """Compute `vkdnw` from the information: the entropy of its spectrum's normalized deciles.

    Args:
        information: a symmetric positive semi-definite matrix, zero where layers are not present.
        present: which rows and columns belong to a layer of the network.

    Returns:
        A scalar; NaN if all deciles are zero.

    Example:
        >>> present = jnp.array([True, True, False])
        >>> float(jnp.exp(decile_entropy(jnp.diag(jnp.array([2.0, 2.0, 0.0])), present)))
        9.0
    """
    spectrum = jnp.clip(jnp.linalg.eigvalsh(information), 0)
    last = present.sum() - 1  # absent layers come first, as zeros
    places = len(present) - 1 - last + jnp.array(_DECILES) * last
    below = jnp.clip(jnp.floor(places).astype(int), 0, len(present) - 1)
    above = jnp.minimum(below + 1, len(present) - 1)
    deciles = spectrum[below] + (places - below) * (spectrum[above] - spectrum[below])
    shares = deciles / deciles.sum()
    return -jax.scipy.special.xlogy(shares, shares).sum()

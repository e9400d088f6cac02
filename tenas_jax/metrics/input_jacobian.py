"""Metrics of the input Jacobian: the gradients of a model's outputs by its samples."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from tenas_jax.errors import InputError
from tenas_jax.metrics.correlations import standardized, varies
from tenas_jax.metrics.model import at_least_single, require_labels, require_logits
from tenas_jax.numerics import PRECISION, highest_precision, require_numbers

Jacobian = Shaped[Array | np.ndarray, "..."]
"""A matrix of real numbers [n, inputs]; anything else is rejected."""
# Added to eigenvalues and correlations before their logarithm; k in both publications.
OFFSET = 1e-5
# From more classes than this, EPE-NAS compares their scores, which it otherwise adds.
MANY_CLASSES = 100


@highest_precision()
def input_jacobian(
    f: Callable[[Any], Float[Array, "n classes"]], x: Any
) -> tuple[Float[Array, "n inputs"], Float[Array, "n classes"]]:
    """The gradient of the sum of all outputs by each sample (Mellor et al. 2020).

    This takes a single backward pass. If the samples of a batch interact, as in train-mode batch
    normalization, the gradient by a sample is that of the outputs of all samples, as in the
    published code.

    Args:
        f: maps the samples to the logits [n, classes]; differentiable in reverse mode.
        x: the samples, a pytree of real floating-point arrays [n, ...].

    Returns:
        The gradients [n, inputs], one row per sample, and the logits [n, classes].

    Raises:
        InputError: `x` contains NaN or other values, or `f` does not return logits.

    Example:
        >>> x = jnp.array([[1.0, 2.0], [3.0, 4.0]])
        >>> jacobian, logits = input_jacobian(lambda x: jnp.square(x) @ jnp.ones((2, 3)), x)
        >>> jacobian.tolist(), logits.shape
        ([[6.0, 12.0], [18.0, 24.0]], (2, 3))
    """
    require_numbers(x=x)
    for leaf in jax.tree.leaves(x):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise InputError(
                f"the samples are {jnp.result_type(leaf)}: a gradient by them needs real "
                "floating-point numbers"
            )
    logits, pullback = jax.vjp(f, x)
    require_logits(logits)
    (gradient,) = pullback(jnp.ones_like(logits))
    rows = [
        leaf.reshape(len(logits), -1).astype(at_least_single(leaf.dtype))
        for leaf in jax.tree.leaves(gradient)
    ]
    return jnp.concatenate(rows, 1), logits


def jacov(jacobian: Jacobian) -> Float[Array, ""]:
    """Jacobian covariance, -sum_i log(v_i + k) + 1 / (v_i + k) (Mellor et al. 2020, version 1).

    v are the eigenvalues of the correlation matrix of the Jacobian's rows; k is 1e-5. This is the
    score of the first version of "Neural Architecture Search without Training"
    (arXiv 2006.04647v1), as computed by NASLib; the score of later versions is `naswot`.

    Unlike in the published code, the eigenvalues are squared singular values of the normalized
    Jacobian. They are the same numbers, but rounding makes none of them negative, so single
    precision suffices for their reciprocals.

    Args:
        jacobian: the gradient of the outputs by each sample, from `input_jacobian`.

    Returns:
        A scalar of at most about -n, the value if no two samples are correlated; higher is better.
        NaN if a row is constant and has no correlation, as in a network without connections.

    Raises:
        InputError: the Jacobian is not a matrix of real floating-point numbers.

    Example:
        >>> float(jacov(jnp.array([[1.0, -1.0, 0.0, 0.0], [0.0, 0.0, 1.0, -1.0]])).round(2))
        -2.0
        >>> float(jacov(jnp.zeros((2, 4))))
        nan
    """
    rows = _rows(jacobian)
    finite = jnp.isfinite(rows).all()
    singular_values = jnp.linalg.svd(jnp.where(finite, rows, 0), compute_uv=False)
    missing = len(rows) - len(singular_values)  # with fewer inputs than samples
    shifted = jnp.square(jnp.pad(singular_values, (0, missing))) + OFFSET
    return jnp.where(finite, -(jnp.log(shifted) + 1 / shifted).sum(), jnp.nan)


def epe_nas(
    jacobian: Jacobian, labels: Shaped[Array | np.ndarray, "..."], *, num_classes: int
) -> Float[Array, ""]:
    """EPE-NAS, sum over classes c of |sum_ij log(|R_c,ij| + k)| (Lopes et al. 2021).

    R_c are the correlations between the Jacobian's rows of samples of class c; k is 1e-5. With more
    than 100 classes, the inner sums s_c are divided by the number of samples of the class, and the
    score is sum_cd |s_c - s_d| divided by the number of classes.

    As in the published code and NASLib, classes without samples do not count. Classes with a single
    sample add the logarithm of 1 + k; with more than 100 classes they do not count either.

    Args:
        jacobian: the gradient of the outputs by each sample, from `input_jacobian`.
        labels: class of each sample, from 0.
        num_classes: outputs of the model.

    Returns:
        A scalar of at least 0; higher is better. NaN if a row is constant and has no correlation,
        or if there are more than 100 classes and no class has two samples.

    Raises:
        InputError: the Jacobian is not a matrix of real floating-point numbers, or labels are not
            one class per sample.

    Example:
        >>> jacobian = jnp.array([[1.0, -1.0, 0.0, 0.0], [0.0, 0.0, 1.0, -1.0]])
        >>> score = epe_nas(jacobian, jnp.array([0, 0]), num_classes=2)
        >>> round(float(score), 3)  # -2 log k: the two are not correlated
        23.026
    """
    rows = _rows(jacobian)
    require_labels(labels, len(rows), num_classes)
    correlations = jnp.clip(jnp.matmul(rows, rows.T, precision=PRECISION), -1, 1)
    members = jax.nn.one_hot(labels, num_classes, dtype=rows.dtype)
    logarithms = jnp.log(jnp.abs(correlations) + OFFSET)
    scores = (members * jnp.matmul(logarithms, members, precision=PRECISION)).sum(0)
    if num_classes <= MANY_CLASSES:
        return jnp.abs(scores).sum()
    sizes = members.sum(0)
    counts = sizes > 1
    means = scores / jnp.maximum(sizes, 1)
    differences = jnp.abs(means[:, None] - means[None])
    return jnp.where(counts[:, None] & counts[None], differences, 0).sum() / counts.sum()


def _rows(jacobian: Jacobian) -> Float[Array, "n inputs"]:
    """The standardized rows; constant rows become NaN."""
    if jacobian.ndim != 2 or not jnp.issubdtype(jacobian.dtype, jnp.floating):
        raise InputError(
            f"the Jacobian is {jacobian.dtype} of shape {jacobian.shape}: give real numbers "
            "[n, inputs]"
        )
    rows = jnp.asarray(jacobian)
    return jnp.where(varies(rows), standardized(rows), jnp.nan)

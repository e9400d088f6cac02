"""Trainability: the empirical neural tangent kernel at initialization and its condition number."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree, Shaped

from tenas_jax.errors import InputError
from tenas_jax.metrics import neural_tangents
from tenas_jax.metrics.convolutions import with_fast_convolutions
from tenas_jax.metrics.model import (
    ApplyFn,
    Select,
    at_least_single,
    is_weight,
    require_logits,
    require_weights,
)
from tenas_jax.numerics import PRECISION, highest_precision, require_numbers

Kernel = Shaped[Array | np.ndarray, "..."]
"""A square matrix of real numbers; anything else is refused in one line."""
Jacobian = Callable[[Float[Array, "classes"]], Float[Array, "n weights"]]
ENGINES = ("chunked", "neural-tangents")
REDUCTIONS = ("sum", "trace")


@highest_precision()
def empirical_ntk(
    apply_fn: ApplyFn,
    params: PyTree,
    x: Any,
    x2: Any = None,
    *,
    engine: str = "chunked",
    reduction: str = "sum",
    chunk_size: int | None = None,
    select: Select = is_weight,
) -> Float[Array, "n m"]:
    """Empirical NTK of a model (TE-NAS, equation 3), over pairs of samples.

    With J_ik = d f_k(x_i) / d(params), the gradient of output k of sample i, it is
    K_ij = <sum_k J_ik, sum_k J_jk> of the summed outputs, as in the original code, or the trace
    K_ij = sum_k <J_ik, J_jk>. The samples of a batch may interact, as they do in train-mode batch
    normalization: each gradient is a backward pass of the whole batch.

    Args:
        apply_fn: maps `(params, x)` to the outputs [n, classes]; differentiable in reverse mode.
        params: parameters, a pytree of arrays, those selected of real floating-point numbers.
        x: the batch, in whatever form `apply_fn` takes.
        x2: another batch, for the kernel between the two; None: `x` itself. Each batch goes through
            a forward pass of its own.
        engine: `chunked` (vector-Jacobian products over chunks of cotangents) or `neural-tangents`
            (its JACOBIAN_CONTRACTION: all cotangents at once).
        reduction: over the outputs: `sum`, or `trace`, which takes as many times the backward
            passes as there are classes.
        chunk_size: cotangents per backward pass of the chunked engine. By default 1 on a CPU, where
            more push the activations out of cache, and all elsewhere, which takes the most memory.
        select: whether the parameter at a path takes part in the kernel; by default all but biases.

    Returns:
        The kernel [n, m] between the n samples of `x` and the m samples of `x2`, [n, n] without
            `x2`, in the data type of the outputs, but float32 at least. In bfloat16 and float16 the
            gradients themselves are rounded, to 8 and 11 bits.

    Raises:
        InputError: the engine or the reduction is unknown, no parameter is selected, `params` or
            `x` hold anything but numbers, a selected parameter is not of real floating-point
            numbers, `is_weight` cannot tell what a parameter is, or `apply_fn` returns anything but
            one array [n, classes] of such numbers for one sample or more.

    Example:
        >>> x = jnp.array([[1.0, 0.0], [1.0, 2.0]])
        >>> empirical_ntk(lambda p, x: x @ p["kernel"], {"kernel": jnp.ones((2, 3))}, x).tolist()
        [[3.0, 3.0], [3.0, 15.0]]
        >>> x2 = jnp.array([[0.0, 1.0]])
        >>> params = {"kernel": jnp.ones((2, 3))}
        >>> empirical_ntk(lambda p, x: x @ p["kernel"], params, x, x2).tolist()
        [[0.0], [6.0]]
    """
    if engine not in ENGINES:
        raise InputError(f"unknown engine {engine!r}: choose one of {', '.join(ENGINES)}")
    if reduction not in REDUCTIONS:
        raise InputError(f"unknown reduction {reduction!r}: choose one of {', '.join(REDUCTIONS)}")
    require_weights(params, select)
    require_numbers(x=x, x2=x2)
    leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    selected = [leaf for path, leaf in leaves if select(path)]

    def outputs(selected: list[Array], x: Any) -> Float[Array, "n classes"]:
        weights = iter(selected)
        merged = [next(weights) if select(path) else leaf for path, leaf in leaves]
        logits = apply_fn(jax.tree.unflatten(structure, merged), x)
        require_logits(logits)
        return logits

    if engine == "neural-tangents":
        trace = reduction == "trace"
        contracted = neural_tangents.empirical_ntk(outputs, selected, x, x2, trace=trace)
        return contracted.astype(at_least_single(contracted.dtype))

    def jacobian(x: Any) -> tuple[Jacobian, Float[Array, "n classes"]]:
        """The Jacobian of the outputs' product with a direction, and the outputs."""
        logits, pullback = jax.vjp(lambda weights: outputs(weights, x), selected)
        n = len(logits)
        chunk = min(chunk_size or default_chunk_size(n), n)

        def rows(direction: Float[Array, "classes"]) -> Float[Array, "n weights"]:
            def row(sample: Float[Array, "n"]) -> Float[Array, "weights"]:
                return ravel_pytree(pullback(sample[:, None] * direction[None]))[0]

            def all_rows(samples: Float[Array, "n n"]) -> Float[Array, "n weights"]:
                rows: Array = lax.map(row, samples, batch_size=None if chunk == 1 else chunk)
                return rows

            samples = jnp.eye(n, dtype=logits.dtype)
            # In a loop XLA's CPU compiler would take its naive path for backward passes.
            on_cpu = jax.default_backend() == "cpu"
            jacobian = (with_fast_convolutions(all_rows) if on_cpu else all_rows)(samples)
            return jacobian.astype(at_least_single(logits.dtype))

        return rows, logits

    left, logits = jacobian(x)
    right = left if x2 is None else jacobian(x2)[0]

    def kernel(direction: Float[Array, "classes"]) -> Float[Array, "n m"]:
        rows = left(direction)
        columns = rows if right is left else right(direction)
        return jnp.matmul(rows, columns.T, precision=PRECISION)

    classes = logits.shape[1]
    if reduction == "sum":
        return kernel(jnp.ones(classes, logits.dtype))
    traced: Array = lax.map(kernel, jnp.eye(classes, dtype=logits.dtype)).sum(0)
    return traced


def default_chunk_size(n: int) -> int:
    """Cotangents per backward pass, of n: on a CPU caches decide, elsewhere kernel launches.

    On one core, 72 images, three dense layers take 0.44 s with 1, 0.51 with 2, 0.52 with 4, three
    convolutions with batch normalization 15.7, 15.5 and 16.2; on a GPU not measured. Supernets have
    their own, `tenas_jax.networks.backends.chunk_size`.
    """
    return 1 if jax.default_backend() == "cpu" else n


def spectrum(ntk: Kernel) -> Float[Array, " n"]:
    """Eigenvalues of a kernel in ascending order; NaN where the kernel is not finite.

    Args:
        ntk: a symmetric positive semi-definite matrix [n, n].

    Returns:
        The eigenvalues [n], in the data type of the kernel, but float32 at least.

    Raises:
        InputError: the kernel is not a square matrix of real numbers, or empty.

    Example:
        >>> spectrum(jnp.diag(jnp.array([4.0, 1.0]))).tolist()
        [1.0, 4.0]
    """
    kind, shape = jnp.result_type(ntk), jnp.shape(ntk)
    if len(shape) != 2 or shape[0] != shape[1] or not shape[0] or kind.kind == "c":
        raise InputError(
            f"the kernel is {kind} of shape {shape}: give a square matrix of real numbers"
        )
    ntk = jnp.asarray(ntk, at_least_single(kind))
    finite = jnp.isfinite(ntk).all()
    eigenvalues = jnp.linalg.eigvalsh(jnp.where(finite, ntk, jnp.eye(len(ntk), dtype=ntk.dtype)))
    return jnp.where(finite, eigenvalues, jnp.nan)


def condition_number(ntk: Kernel) -> Float[Array, ""]:
    """Condition number of a kernel, kappa = lambda_max / lambda_min (TE-NAS, equation 3).

    Args:
        ntk: a symmetric positive semi-definite matrix [n, n].

    Returns:
        A scalar of at least 1. Infinite where the kernel is singular to its precision,
        lambda_min <= n eps lambda_max: there the quotient is noise, of either sign. (Eigenvalues of
        a kernel in half precision are computed in float32; of such a kernel it is infinite where
        lambda_min is not above the rounding of the elements, eps / 2 lambda_max.) NaN only where
        the kernel itself is not finite.

    Raises:
        InputError: the kernel is not a square matrix of real numbers, or empty.

    Example:
        >>> float(condition_number(jnp.diag(jnp.array([1.0, 4.0]))))
        4.0
        >>> float(condition_number(jnp.ones((2, 2))))
        inf
    """
    eigenvalues = spectrum(ntk)
    smallest, largest = eigenvalues[0], eigenvalues[-1]
    precision = len(ntk) * jnp.finfo(eigenvalues.dtype).eps
    if jnp.issubdtype(jnp.result_type(ntk), jnp.floating):
        precision = max(precision, jnp.finfo(jnp.result_type(ntk)).eps / 2)
    singular = smallest <= precision * largest
    kappa = jnp.where(singular, jnp.inf, largest / jnp.where(singular, 1, smallest))
    return jnp.where(jnp.isnan(largest), jnp.nan, kappa)


def ntk_condition_number(
    apply_fn: ApplyFn,
    params: PyTree,
    x: Any,
    *,
    engine: str = "chunked",
    reduction: str = "sum",
    chunk_size: int | None = None,
    select: Select = is_weight,
) -> Float[Array, ""]:
    """Condition number of the empirical NTK of a model; lower is more trainable.

    Args:
        apply_fn: see `empirical_ntk`, like all arguments.
        params: parameters.
        x: the batch.
        engine: how the kernel is computed.
        reduction: over the outputs.
        chunk_size: cotangents per backward pass.
        select: which parameters take part.

    Returns:
        A scalar; see `condition_number`. NaN where `params` or `x` hold NaN.

    Raises:
        InputError: see `empirical_ntk`.

    Example:
        >>> x = jnp.array([[1.0, 0.0], [0.0, 2.0]])
        >>> params = {"kernel": jnp.ones((2, 1))}
        >>> float(ntk_condition_number(lambda p, x: x @ p["kernel"], params, x))
        4.0
    """
    kernel = empirical_ntk(
        apply_fn,
        params,
        x,
        engine=engine,
        reduction=reduction,
        chunk_size=chunk_size,
        select=select,
    )
    return condition_number(kernel)


def ntk_spectrum(
    apply_fn: ApplyFn,
    params: PyTree,
    x: Any,
    *,
    engine: str = "chunked",
    reduction: str = "sum",
    chunk_size: int | None = None,
    select: Select = is_weight,
) -> Float[Array, " n"]:
    """Eigenvalues of the empirical NTK of a model; their largest quotient is kappa.

    Args:
        apply_fn: see `empirical_ntk`, like all arguments.
        params: parameters.
        x: the batch.
        engine: how the kernel is computed.
        reduction: over the outputs.
        chunk_size: cotangents per backward pass.
        select: which parameters take part.

    Returns:
        The eigenvalues [n] in ascending order, in the data type of the kernel.

    Raises:
        InputError: see `empirical_ntk`.

    Example:
        >>> x = jnp.array([[1.0, 0.0], [0.0, 2.0]])
        >>> params = {"kernel": jnp.ones((2, 1))}
        >>> ntk_spectrum(lambda p, x: x @ p["kernel"], params, x).tolist()
        [1.0, 4.0]
    """
    return spectrum(
        empirical_ntk(
            apply_fn,
            params,
            x,
            engine=engine,
            reduction=reduction,
            chunk_size=chunk_size,
            select=select,
        )
    )

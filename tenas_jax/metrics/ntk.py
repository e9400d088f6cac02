"""Trainability: the empirical neural tangent kernel at initialization and its condition number."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, PyTree, Shaped

from tenas_jax.errors import InputError
from tenas_jax.metrics import neural_tangents
from tenas_jax.metrics.compiled import compiled
from tenas_jax.metrics.interaction import Interaction, interaction
from tenas_jax.metrics.jacobian import (
    of_single_samples,
    products,
    require_samples_first,
    within_batch,
)
from tenas_jax.metrics.model import (
    ApplyFn,
    Select,
    at_least_single,
    is_weight,
    require_logits,
    require_weights,
)
from tenas_jax.numerics import highest_precision, require_numbers

Kernel = Shaped[Array | np.ndarray, "..."]
"""A square matrix of real numbers; anything else is rejected."""
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
    per_sample: bool = False,
    implementation: str = "jacobian_contraction",
    max_bytes: int | None = None,
    select: Select = is_weight,
) -> Float[Array, "n m"]:
    """Empirical NTK of a model (TE-NAS, equation 3), over pairs of samples.

    Let J_ik = d f_k(x_i) / d(params) be the gradient of output k of sample i. The kernel is
    K_ij = <sum_k J_ik, sum_k J_jk>, of the summed outputs as in the original code, or the trace
    K_ij = sum_k <J_ik, J_jk>. The samples of a batch may interact, as in train-mode batch
    normalization: each gradient is a backward pass of the whole batch.

    Outside of a trace, the whole computation runs as one compiled program. A second call with the
    same model and shapes reuses it, even if `apply_fn` is a new function. Each call traces the
    model again; for many calls use `jax.jit`.

    Args:
        apply_fn: maps `(params, x)` to the outputs [n, classes]; differentiable in reverse mode.
        params: parameters, a pytree of arrays; selected ones have real floating-point numbers.
        x: the batch, in any form that `apply_fn` takes.
        x2: another batch, for the kernel between the two; None: `x` itself. Each batch has its own
            forward pass.
        engine: `chunked` (vector-Jacobian products over chunks of cotangents) or `neural-tangents`
            (its `trace_axes` follow `reduction`, its `vmap_axes` follow `per_sample`). `chunked` is
            the default because it is faster on a CPU: a supernet of NAS-Bench-201, 72 images, takes
            0.71 s and 505 MiB on one core, with `neural-tangents` 1.12 s and 1317 MiB. Compiled for
            an H100 they launch about as many kernels; neither has been timed there.
        reduction: over the outputs: `sum`, or `trace`, which multiplies the number of backward
            passes by the number of classes.
        chunk_size: cotangents per backward pass of the chunked engine. The default is 1 on a CPU,
            where more push the activations out of cache, and all of them elsewhere, which needs the
            most memory.
        per_sample: whether each sample passes through the model alone, which needs n times less
            work. This is valid where samples do not interact: layer or group normalization, or
            batch normalization in eval mode. Where they do interact it is refused: the gradients of
            the batch along a random cotangent are compared with those of single samples, up to the
            square root of their precision. Under `jit` and `vmap` nothing can be refused; there the
            kernel is NaN instead. `apply_fn` must accept a batch of one sample, and the arrays of
            `x` have samples along their first axis.
        implementation: of neural-tangents: `jacobian_contraction`, or `ntk_vector_products`, which
            needs forward-mode differentiation. The others do not work on current JAX.
        max_bytes: limit for the Jacobian [n, weights] of the chunked engine; by default a quarter
            of the device's memory. A larger Jacobian is never stored. Instead, blocks of its rows
            are recomputed for their products with the others: b blocks take (b + 1) / 2 times as
            long. At least two rows must fit.
        select: whether the kernel includes the parameter at a path; by default all but biases.

    Returns:
        The kernel [n, m] between the n samples of `x` and the m samples of `x2`, or [n, n] without
            `x2`. Its data type is that of the outputs, but at least float32. In bfloat16 and
            float16 the gradients themselves are rounded, to 8 and 11 bits.

    Raises:
        InputError: the engine, the reduction or the implementation is unknown; samples interact
            under `per_sample`; `max_bytes` is not positive; no parameter is selected; `params` or
            `x` contain anything but numbers; a selected parameter does not have real floating-point
            numbers; `is_weight` cannot classify a parameter; or `apply_fn` does not return one
            array [n, classes] of such numbers for at least one sample.

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
    if max_bytes is not None and max_bytes < 1:
        raise InputError(f"max_bytes {max_bytes}: give a positive number of bytes")
    require_weights(params, select)
    require_numbers(x=x, x2=x2)
    batches = (x,) if x2 is None else (x, x2)
    if per_sample:
        for batch in batches:
            require_samples_first(batch)

    def computed(params: PyTree, *batches: Any) -> tuple[Float[Array, "n m"], list[Interaction]]:
        """The kernel, and how far samples interact in each batch, where that matters."""
        leaves, structure = jax.tree_util.tree_flatten_with_path(params)
        selected = [leaf for path, leaf in leaves if select(path)]

        def outputs(selected: list[Array], x: Any) -> Float[Array, "n classes"]:
            weights = iter(selected)
            merged = [next(weights) if select(path) else leaf for path, leaf in leaves]
            logits = apply_fn(jax.tree.unflatten(structure, merged), x)
            require_logits(logits)
            return logits

        if engine == "chunked":
            trace = reduction == "trace"
            kernel = _chunked(outputs, selected, batches, trace, per_sample, chunk_size, max_bytes)
        else:
            kernel = neural_tangents.empirical_ntk(
                outputs,
                selected,
                *batches,
                implementation=implementation,
                trace=reduction == "trace",
                per_sample=per_sample,
            )
        found = [interaction(outputs, selected, batch) for batch in batches if per_sample]
        return kernel.astype(at_least_single(kernel.dtype)), found

    kernel: Array
    kernel, found = compiled(computed)(params, *batches)
    for difference, rounding in found:
        interact = difference > rounding
        if isinstance(interact, jax.core.Tracer):
            kernel = jnp.where(interact, jnp.nan, kernel)
        elif interact:
            raise InputError(
                f"samples interact, by {float(difference):.1e} of their gradients, as in "
                "train-mode batch normalization: leave out per_sample"
            )
    return kernel


def _chunked(
    outputs: ApplyFn,
    weights: list[Array],
    batches: Sequence[Any],
    trace: bool,
    per_sample: bool,
    chunk_size: int | None,
    max_bytes: int | None,
) -> Float[Array, "n m"]:
    """The kernel by vector-Jacobian products over chunks of cotangents."""
    of = of_single_samples if per_sample else within_batch
    jacobians = [of(outputs, weights, batch, chunk_size) for batch in batches]
    left, logits = jacobians[0]

    def kernel(direction: Float[Array, "classes"]) -> Float[Array, "n m"]:
        right = None if len(jacobians) == 1 else jacobians[1][0](direction)
        return products(left(direction), right, sum(map(jnp.size, weights)), max_bytes)

    classes = logits.shape[1]
    if not trace:
        return kernel(jnp.ones(classes, logits.dtype))
    traced: Array = lax.map(kernel, jnp.eye(classes, dtype=logits.dtype)).sum(0)
    return traced


def spectrum(ntk: Kernel) -> Float[Array, " n"]:
    """Eigenvalues of a kernel in ascending order; NaN if the kernel is not finite.

    Args:
        ntk: a symmetric positive semi-definite matrix [n, n].

    Returns:
        The eigenvalues [n], in the data type of the kernel, but at least float32.

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
        A scalar of at least 1. Infinite if the kernel is singular to its precision,
        lambda_min <= n eps lambda_max, because the quotient is then noise of either sign. (For a
        kernel in half precision, eigenvalues are computed in float32, and the result is infinite if
        lambda_min is not above the rounding of the elements, eps / 2 lambda_max.) NaN only if the
        kernel itself is not finite.

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
    per_sample: bool = False,
    implementation: str = "jacobian_contraction",
    max_bytes: int | None = None,
    select: Select = is_weight,
) -> Float[Array, ""]:
    """Condition number of the empirical NTK of a model; lower is more trainable.

    Args:
        apply_fn: see `empirical_ntk`.
        params: see `empirical_ntk`.
        x: see `empirical_ntk`.
        engine: see `empirical_ntk`.
        reduction: see `empirical_ntk`.
        chunk_size: see `empirical_ntk`.
        per_sample: see `empirical_ntk`.
        implementation: see `empirical_ntk`.
        max_bytes: see `empirical_ntk`.
        select: see `empirical_ntk`.

    Returns:
        A scalar; see `condition_number`. NaN if `params` or `x` contain NaN.

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
        per_sample=per_sample,
        implementation=implementation,
        max_bytes=max_bytes,
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
    per_sample: bool = False,
    implementation: str = "jacobian_contraction",
    max_bytes: int | None = None,
    select: Select = is_weight,
) -> Float[Array, " n"]:
    """Eigenvalues of the empirical NTK of a model; the largest over the smallest is kappa.

    Args:
        apply_fn: see `empirical_ntk`.
        params: see `empirical_ntk`.
        x: see `empirical_ntk`.
        engine: see `empirical_ntk`.
        reduction: see `empirical_ntk`.
        chunk_size: see `empirical_ntk`.
        per_sample: see `empirical_ntk`.
        implementation: see `empirical_ntk`.
        max_bytes: see `empirical_ntk`.
        select: see `empirical_ntk`.

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
            per_sample=per_sample,
            implementation=implementation,
            max_bytes=max_bytes,
            select=select,
        )
    )

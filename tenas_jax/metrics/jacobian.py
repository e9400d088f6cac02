"""Rows of the Jacobian of a model's outputs, and their products within a memory limit."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from tenas_jax.errors import InputError
from tenas_jax.host.memory import device_memory, memory
from tenas_jax.metrics.fast_forms import in_fast_form
from tenas_jax.metrics.interaction import one_sample
from tenas_jax.metrics.model import ApplyFn, at_least_single
from tenas_jax.numerics import PRECISION, backend

Direction = Float[Array, "classes"]
LARGE = 2**15  # elements of an array worth a product of its own
BLOCK = 2**13  # columns of a product at once, which fit into a CPU's cache
STEP = 8  # rows of a stored block per row that is recomputed beside it


class Rows(NamedTuple):
    """The rows of a Jacobian, before they are computed."""

    row: Callable[[PyTree], list[Float[Array, "_"]]]
    """A function of a sample that returns its row, a gradient, in parts."""
    samples: PyTree
    """The input of each row, along the first axis."""
    chunk: int
    """Number of rows computed at once."""
    dtype: Any
    """The data type of the outputs."""

    def compute(self, samples: PyTree) -> list[Float[Array, "n _"]]:
        """The parts of the rows of these samples, in at least float32."""

        def rows(samples: PyTree) -> list[Float[Array, "n _"]]:
            n = len(jax.tree.leaves(samples)[0])
            chunk = min(self.chunk, n)
            parts: list[Array] = lax.map(
                self.row, samples, batch_size=None if chunk == 1 else chunk
            )
            return parts

        # XLA's CPU compiler would use slower paths for backward passes.
        parts = (in_fast_form(rows) if backend() == "cpu" else rows)(samples)
        return [part.astype(at_least_single(self.dtype)) for part in parts]


Jacobian = Callable[[Direction], Rows]
"""The Jacobian of the outputs' product with a direction."""


def within_batch(
    apply_fn: ApplyFn, weights: PyTree, x: Any, chunk_size: int | None
) -> tuple[Jacobian, Float[Array, "n classes"]]:
    """The Jacobian, with a backward pass of the whole batch per row.

    Args:
        apply_fn: maps `(weights, x)` to the outputs [n, classes].
        weights: the weights to differentiate by.
        x: the batch.
        chunk_size: rows computed at once; None: by the backend.

    Returns:
        The Jacobian, and the outputs.

    Example:
        >>> jacobian, outputs = within_batch(lambda w, x: x * w, 1.0, jnp.ones((2, 1)), None)
        >>> rows = jacobian(jnp.ones(1))
        >>> [part.tolist() for part in rows.compute(rows.samples)]
        [[[1.0], [1.0]]]
    """
    outputs, pullback = jax.vjp(lambda weights: apply_fn(weights, x), weights)
    n = len(outputs)

    def jacobian(direction: Direction) -> Rows:
        def row(sample: Float[Array, "n"]) -> list[Float[Array, "_"]]:
            return _parts(pullback(sample[:, None] * direction[None]))

        samples = jnp.eye(n, dtype=outputs.dtype)
        return Rows(row, samples, chunk_size or default_chunk_size(n), outputs.dtype)

    return jacobian, outputs


def of_single_samples(
    apply_fn: ApplyFn, weights: PyTree, x: Any, chunk_size: int | None
) -> tuple[Jacobian, jax.ShapeDtypeStruct]:
    """The Jacobian, with a forward and a backward pass of one sample per row.

    Args:
        apply_fn: maps `(weights, x)` to the outputs [n, classes].
        weights: the weights to differentiate by.
        x: the batch, a pytree of arrays whose first axis is that of the samples.
        chunk_size: rows computed at once; None: by the backend.

    Returns:
        The Jacobian, and the shape of the outputs [n, classes].

    Raises:
        InputError: the first axes of `x` differ.

    Example:
        >>> x = jnp.array([[1.0], [2.0]])
        >>> jacobian, _ = of_single_samples(lambda w, x: x * w, 1.0, x, None)
        >>> rows = jacobian(jnp.ones(1))
        >>> [part.tolist() for part in rows.compute(rows.samples)]
        [[[1.0], [2.0]]]
    """
    n = require_samples_first(x)
    first = jax.tree.map(lambda leaf: leaf[0], x)
    output = jax.eval_shape(lambda weights: one_sample(apply_fn, weights, first), weights)

    def jacobian(direction: Direction) -> Rows:
        def row(sample: PyTree) -> list[Float[Array, "_"]]:
            _, pullback = jax.vjp(lambda weights: one_sample(apply_fn, weights, sample), weights)
            return _parts(pullback(direction))

        return Rows(row, x, chunk_size or default_chunk_size(n), output.dtype)

    return jacobian, jax.ShapeDtypeStruct((n, *output.shape), output.dtype)


def _parts(gradient: PyTree) -> list[Float[Array, "_"]]:
    """A gradient as vectors: large arrays as they are, the others in one."""
    leaves = jax.tree.leaves(gradient)
    small = [leaf for leaf in leaves if leaf.size < LARGE]
    large = [leaf.ravel() for leaf in leaves if leaf.size >= LARGE]
    return [ravel_pytree(small)[0], *large] if small else large


def require_samples_first(x: Any) -> int:
    """The number of samples along the first axis of each array.

    Raises:
        InputError: the first axes differ.

    Example:
        >>> require_samples_first({"image": jnp.ones((2, 3)), "scale": jnp.ones(())})
        Traceback (most recent call last):
        ...
        tenas_jax.errors.InputError: x has arrays of shapes (2, 3), (): per_sample needs the \
samples along the first axis of each
    """
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(x)]
    sizes = {shape[:1] for shape in shapes}
    if len(sizes) != 1 or sizes == {()}:
        raise InputError(
            f"x has arrays of shapes {', '.join(map(str, shapes))}: per_sample needs the samples "
            "along the first axis of each"
        )
    return int(shapes[0][0])


def default_chunk_size(n: int) -> int:
    """Cotangents per backward pass, of n: limited by caches on a CPU, by kernel launches elsewhere.

    On one core with 32 images, three dense layers take 0.11 s with 1 and 0.19 with 8, a small
    transformer 1.07 and 2.25, ResNet-18 of width 16 2.2 with 1 and 2.9 with 2. Not measured on
    GPUs. For supernets see `tenas_jax.networks.backends.chunk_size`.
    """
    return 1 if backend() == "cpu" else n


def default_max_bytes() -> int:
    """The limit of a Jacobian in bytes: a quarter of the device's or the machine's memory."""
    limit = None if backend() == "cpu" else device_memory(jax.local_devices()[:1])
    return (limit or memory()) // 4


def products(
    left: Rows, right: Rows | None, weights: int, max_bytes: int | None
) -> Float[Array, "n m"]:
    """The inner products of rows with rows.

    Jacobians above the limit are never stored. A block of rows is kept while the rows after it are
    recomputed, an eighth of a block at a time; b blocks compute (b + 1) / 2 times the rows.

    Args:
        left: rows of the matrix of products.
        right: its columns; None: `left` itself.
        weights: number of elements of a row.
        max_bytes: limit for the rows in memory; None: by the available memory. At least two rows
            must fit.

    Returns:
        The matrix of products.

    Example:
        >>> rows = Rows(lambda sample: [sample[None]], jnp.array([1.0, 2.0, 3.0]), 1, jnp.float32)
        >>> products(rows, None, 1, 8).tolist()
        [[1.0, 2.0, 3.0], [2.0, 4.0, 6.0], [3.0, 6.0, 9.0]]
    """
    sides = [left] if right is None else [left, right]
    total = sum(len(jax.tree.leaves(rows.samples)[0]) for rows in sides)
    affordable = (max_bytes or default_max_bytes()) // (
        weights * at_least_single(left.dtype).itemsize
    )
    if total > affordable:
        return _products_of_blocks(left, right, max(affordable, 2))
    jacobian = left.compute(left.samples)
    columns = jacobian if right is None else right.compute(right.samples)
    return _product(jacobian, columns)


def _product(
    left: list[Float[Array, "n _"]], right: list[Float[Array, "m _"]]
) -> Float[Array, "n m"]:
    """The products of rows in parts."""
    return functools.reduce(jnp.add, map(_product_of_part, left, right))


def _product_of_part(
    left: Float[Array, "n weights"], right: Float[Array, "m weights"]
) -> Float[Array, "n m"]:
    """The products of rows; on a CPU in blocks of columns.

    A CPU took 73 ms for 32 rows of 800,000 columns at once, 25 ms in blocks.
    """
    width = left.shape[1]
    if backend() != "cpu" or width < LARGE:
        return jnp.matmul(left, right.T, precision=PRECISION)

    def with_block(i: Array, kernel: Array) -> Array:
        columns = [lax.dynamic_slice_in_dim(rows, i * BLOCK, BLOCK, 1) for rows in (left, right)]
        product: Array = jnp.matmul(columns[0], columns[1].T, precision=PRECISION)
        return kernel + product

    blocks = width // BLOCK
    end = blocks * BLOCK
    kernel = jnp.matmul(left[:, end:], right[:, end:].T, precision=PRECISION)
    total: Array = lax.fori_loop(0, blocks, with_block, kernel)
    return total


def _products_of_blocks(left: Rows, right: Rows | None, affordable: int) -> Float[Array, "n m"]:
    """The products, with at most `affordable` rows in memory."""
    symmetric, right = right is None, right or left
    n, m = (len(jax.tree.leaves(rows.samples)[0]) for rows in (left, right))
    step = max(1, affordable // (STEP + 1))
    most = affordable // step - 1  # steps of a block
    blocks = math.ceil(n / (step * most))
    block = step * math.ceil(n / (step * blocks))
    width = max(block * blocks, step * math.ceil(m / step))
    dtype = at_least_single(left.dtype)

    def some(rows: Rows, start: Any, size: int) -> list[Float[Array, "rows _"]]:
        count = len(jax.tree.leaves(rows.samples)[0])
        places = jnp.minimum(start + jnp.arange(size), count - 1)  # padded with the last
        return rows.compute(jax.tree.map(lambda leaf: jnp.asarray(leaf)[places], rows.samples))

    def of_block(i: Array) -> Float[Array, "rows columns"]:
        kept = some(left, i * block, block)

        def with_step(k: Array, kernel: Array) -> Array:
            columns = some(right, k * step, step)
            return lax.dynamic_update_slice_in_dim(kernel, _product(kept, columns), k * step, 1)

        kernel = jnp.zeros((block, width), dtype)
        first: Any = 0
        if symmetric:
            kernel = lax.dynamic_update_slice_in_dim(kernel, _product(kept, kept), i * block, 1)
            first = (i + 1) * (block // step)
        filled: Array = lax.fori_loop(first, math.ceil(m / step), with_step, kernel)
        return filled

    kernel: Array = lax.map(of_block, jnp.arange(blocks)).reshape(-1, width)[:n, :m]
    return jnp.triu(kernel) + jnp.triu(kernel, 1).T if symmetric else kernel

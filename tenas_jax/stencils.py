"""Operators of the batch-minor layout [h, c, w, n] without matrix products: pooling and depthwise stencils.

Everything is computed row by row, a row being [c, w * n]: it stays in cache, and a shift by a pixel is an
offset of n (see `tenas_jax.batch_minor`).
"""

from collections.abc import Callable
from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

Rows = Float[Array, "h c w*n"]


def take_rows(rows: Rows, start: Array | int, count: int) -> Rows:
    """`count` rows from `start` on, which is within bounds."""
    sizes = (count, *rows.shape[1:])
    return lax.dynamic_slice(rows, (start, 0, 0), sizes, allow_negative_indices=False)


def map_rows(row: Callable[[Array], Float[Array, "c l"]], count: int) -> Float[Array, "h c l"]:
    """`row(h)` for each h below `count`, one after the other."""
    # `lax.map` would loop over an array of indices: twice the kernels to compile.
    result = jax.eval_shape(row, jax.ShapeDtypeStruct((), jnp.int32))
    return _write_rows(row, jnp.zeros((count, *result.shape), result.dtype), count, 0, 0)


def bordered(
    row: Callable[[Array], Float[Array, "c w*n"]],
    shape: tuple[int, ...],
    border: int,
    dtype: jnp.dtype,
) -> Rows:
    """The rows `row(h)` of images of `shape` [h, c, w, n], with a border of zero pixels."""
    height, channels, width, n = shape
    buffer = jnp.zeros((height + 2 * border, channels, (width + 2 * border) * n), dtype)
    return _write_rows(row, buffer, height, border, border * n)


def _write_rows(
    row: Callable[[Array], Array], buffer: Array, count: int, first: int, left: int
) -> Array:
    def write(h: Array, buffer: Array) -> Array:
        start = (h + first, 0, left)
        return lax.dynamic_update_slice(buffer, row(h)[None], start, allow_negative_indices=False)

    return lax.fori_loop(0, count, write, buffer)


def dilate(x: Array, stride: int, height: int, width: int, low: int = 0) -> Array:
    """Zeros between the pixels, `low` zeros before them, and up to `height` x `width` after them."""
    high_h = height - (x.shape[0] - 1) * stride - 1
    high_w = width - (x.shape[2] - 1) * stride - 1
    pads = ((low, high_h, stride - 1), (0, 0, 0), (low, high_w, stride - 1), (0, 0, 0))
    return lax.pad(x, jnp.zeros((), x.dtype), pads)


def _box(x: Float[Array, "h c w n"]) -> Float[Array, "h c w n"]:
    """Sum over the 3 x 3 neighborhood."""
    height, channels, width, n = x.shape
    rows = x.reshape(height, channels, width * n)
    padded = bordered(lambda h: take_rows(rows, h, 1)[0], x.shape, 1, x.dtype)

    def row(h: Array) -> Array:
        column = sum(take_rows(padded, h, 3))
        return sum(column[:, j * n : (j + width) * n] for j in range(3))

    return map_rows(row, height).reshape(x.shape)


def _counts(height: int, width: int, dtype: jnp.dtype) -> Float[np.ndarray, "h 1 w 1"]:
    """How many pixels of each 3 x 3 neighborhood lie inside the image."""

    def along(pixels: int) -> np.ndarray:
        return np.convolve(np.ones(pixels), np.ones(3), "same")

    return np.outer(along(height), along(width))[:, None, :, None].astype(dtype)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def avg_pool(x: Float[Array, "h c w n"], stride: int) -> Float[Array, "h2 c w2 n"]:
    """3 x 3 average with padding 1 over the pixels inside the image."""
    return (_box(x) / _counts(x.shape[0], x.shape[2], x.dtype))[::stride, :, ::stride]


def _avg_pool_forward(x: Array, stride: int) -> tuple[Array, Array]:
    return avg_pool(x, stride), jnp.zeros((0, *x.shape), x.dtype)


def _avg_pool_backward(stride: int, residuals: Array, cotangent: Array) -> tuple[Array]:
    _, height, _, width, _ = residuals.shape
    if stride > 1:
        cotangent = dilate(cotangent, stride, height, width)
    return (_box(cotangent / _counts(height, width, cotangent.dtype)),)


avg_pool.defvjp(_avg_pool_forward, _avg_pool_backward)


def _taps(size: int, step: int = 1) -> list[tuple[int, int]]:
    """Offsets of the pixels of a window, row by row."""
    return list(product(range(0, size * step, step), repeat=2))


def _max_pool_forward(x: Array, stride: int) -> tuple[Array, Array]:
    height, _, width, n = x.shape
    lowest = jnp.full((1, *x.shape[1:]), -jnp.inf, x.dtype)
    rows = jnp.concatenate([lowest, x, lowest])
    border = jnp.full((*rows.shape[:2], 1, n), -jnp.inf, x.dtype)
    padded = jnp.concatenate([border, rows, border], 2)
    maximum, index = padded[:height, :, :width], jnp.zeros(x.shape, jnp.int8)
    for tap, (i, j) in enumerate(_taps(3)):
        value = padded[i : i + height, :, j : j + width]
        index = jnp.where(value > maximum, jnp.int8(tap), index)
        maximum = jnp.maximum(value, maximum)
    return maximum[::stride, :, ::stride], index


def _max_pool_backward(stride: int, index: Array, cotangent: Array) -> tuple[Array]:
    height, channels, width, n = index.shape
    if stride > 1:
        cotangent = dilate(cotangent, stride, height, width)
    border = jnp.zeros((1, *cotangent.shape[1:]), cotangent.dtype)
    rows = jnp.concatenate([border, cotangent, border])
    border = jnp.zeros((*rows.shape[:2], 1, n), cotangent.dtype)
    padded = jnp.concatenate([border, rows, border], 2)
    index = jnp.pad(index, ((1, 1), (0, 0), (1, 1), (0, 0)))
    total = jnp.zeros(cotangent.shape, cotangent.dtype)
    for tap, (i, j) in enumerate(_taps(3)):
        hit = (slice(2 - i, 2 - i + height), slice(None), slice(2 - j, 2 - j + width))
        total += jnp.where(index[hit] == tap, padded[hit], 0)
    return (total,)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def max_pool(x: Float[Array, "h c w n"], stride: int) -> Float[Array, "h2 c w2 n"]:
    """3 x 3 maximum with padding 1."""
    return _max_pool_forward(x, stride)[0]

max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def depthwise_conv(x: Array, kernel: Array, stride: int, padding: int, dilation: int) -> Array:
    raise NotImplementedError

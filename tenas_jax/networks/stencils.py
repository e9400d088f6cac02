"""Operators of the batch-minor layout [h, c, w, n] without matrix products: pools, stencils.

Most of them work row by row. A row, [c, w * n], stays in cache, and a shift by a pixel is an offset
of n (see `tenas_jax.networks.batch_minor`).
"""

from collections.abc import Callable
from functools import partial, reduce
from operator import add
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int8

Rows = Float[Array, "_ _ _"]  # [h, c, w * n]


def take_rows(rows: Rows, start: Array | int, count: int) -> Rows:
    """`count` rows from `start` on, within bounds."""
    sizes = (count, *rows.shape[1:])
    return lax.dynamic_slice(rows, (start, 0, 0), sizes, allow_negative_indices=False)


def put_row(rows: Rows, row: Float[Array, "c l"], h: Array | int, left: int = 0) -> Rows:
    """Replace row `h` from column `left` on, in place if XLA can."""
    return lax.dynamic_update_slice(rows, row[None], (h, 0, left), allow_negative_indices=False)


def map_rows(row: Callable[[Array], Float[Array, "c l"]], count: int) -> Float[Array, "h c l"]:
    """`row(h)` for each h below `count`, sequentially."""
    # `lax.map` would loop over an array of indices, with twice the kernels to compile.
    result = jax.eval_shape(row, 0)
    return _write_rows(row, jnp.zeros((count, *result.shape), result.dtype), count, 0, 0)


def _write_rows(
    row: Callable[[Array], Array], buffer: Array, count: int, first: int, left: int
) -> Array:
    def write(h: Array, buffer: Array) -> Array:
        return put_row(buffer, row(h), h + first, left)

    written: Array = lax.fori_loop(0, count, write, buffer)
    return written


def dilate(x: Array, stride: int, height: int, width: int) -> Array:
    """Insert zeros between the pixels, and after them up to `height` x `width`."""
    high_h = height - (x.shape[0] - 1) * stride - 1
    high_w = width - (x.shape[2] - 1) * stride - 1
    pads = ((0, high_h, stride - 1), (0, 0, 0), (0, high_w, stride - 1), (0, 0, 0))
    return lax.pad(x, jnp.zeros((), x.dtype), pads)


def _seen(pixels: int, dtype: jnp.dtype) -> Float[Array, "pixel"]:
    """Number of pixels among each pixel and its neighbors along an axis."""
    pixel = jnp.arange(pixels)
    seen = jnp.minimum(pixel + 1, pixels - 1) - jnp.maximum(pixel - 1, 0) + 1
    return seen.astype(dtype)


def _box(
    x: Float[Array, "h c w n"], rows: Float[Array, "h"], columns: Float[Array, "w"]
) -> Float[Array, "h c w n"]:
    """Sum over the 3 x 3 neighborhood of the pixels, weighted by row and by column."""
    height, channels, width, n = x.shape
    count = min(3, height)
    # Row h reads `count` rows; rows that are not its neighbors have weight zero.
    row = jnp.arange(height)[:, None]
    read = jnp.clip(row - 1, 0, height - count) + jnp.arange(count)[None]
    by_row = jnp.where(abs(read - row) < 2, rows[read], 0)
    by_column = jnp.broadcast_to(columns[:, None], (width, n)).reshape(1, -1)
    pixels = x.reshape(height, channels, width * n)

    def add_row(h: Array, state: tuple[Array, Rows]) -> tuple[Array, Rows]:
        padded, total = state
        seen = take_rows(pixels, jnp.clip(h - 1, 0, height - count), count)
        weights = lax.dynamic_slice(by_row, (h, 0), (1, count), allow_negative_indices=False)
        sums = reduce(add, [weights[0, i] * row for i, row in enumerate(seen)])
        padded = lax.dynamic_update_slice(
            padded, sums * by_column, (0, n), allow_negative_indices=False
        )
        result = reduce(add, [padded[:, j * n : (j + width) * n] for j in range(3)])
        return padded, put_row(total, result, h)

    padded = jnp.zeros((channels, (width + 2) * n), x.dtype)
    total: Array = lax.fori_loop(0, height, add_row, (padded, jnp.zeros_like(pixels)))[1]
    return total.reshape(x.shape)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def avg_pool(x: Float[Array, "h c w n"], stride: int) -> Float[Array, "h2 c w2 n"]:
    """3 x 3 average with padding 1 over the pixels inside the image."""
    rows, columns = (jnp.ones(pixels, x.dtype) for pixels in x.shape[::2])
    height, width = (_seen(pixels, x.dtype) for pixels in x.shape[::2])
    average = _box(x, rows, columns) / (height[:, None] * width[None])[:, None, :, None]
    return average[::stride, :, ::stride]


def _avg_pool_forward(x: Array, stride: int) -> tuple[Array, Array]:
    return avg_pool(x, stride), jnp.zeros((0, *x.shape), x.dtype)


def _avg_pool_backward(stride: int, residuals: Array, cotangent: Array) -> tuple[Array]:
    _, height, _, width, _ = residuals.shape
    if stride > 1:
        cotangent = dilate(cotangent, stride, height, width)
    rows, columns = (1 / _seen(pixels, cotangent.dtype) for pixels in (height, width))
    return (_box(cotangent, rows, columns),)


avg_pool.defvjp(_avg_pool_forward, _avg_pool_backward)


def _neighbors(x: Array, axis: int, outside: float) -> list[Array]:
    """The previous, the same and the next pixel along an axis, for every pixel."""
    shape = list(x.shape)
    shape[axis] = 1
    border = jnp.full(shape, outside, x.dtype)
    padded = jnp.concatenate([border, x, border], axis)
    return [lax.slice_in_dim(padded, i, i + x.shape[axis], axis=axis) for i in range(3)]


def _first_maximum(x: Array, axis: int) -> tuple[Array, Int8[Array, "h c w n"]]:
    """Maximum of each pixel and its two neighbors along an axis, and the index of the first."""
    maximum, *others = _neighbors(x, axis, -jnp.inf)
    index = jnp.zeros(x.shape, jnp.int8)
    for i, other in enumerate(others, 1):
        index = jnp.where(other > maximum, jnp.int8(i), index)
        maximum = jnp.maximum(other, maximum)
    return maximum, index


def _to_maximum(cotangent: Array, index: Int8[Array, "h c w n"], axis: int) -> Array:
    """The transpose of `_first_maximum`."""
    indices, cotangents = _neighbors(index, axis, 0.0), _neighbors(cotangent, axis, 0.0)
    # A pixel is the previous neighbor (index 0) of the next pixel, and vice versa.
    return reduce(add, [jnp.where(indices[2 - i] == i, cotangents[2 - i], 0) for i in range(3)])


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def max_pool(x: Float[Array, "h c w n"], stride: int) -> Float[Array, "h2 c w2 n"]:
    """3 x 3 maximum with padding 1.

    The first of equal maxima in row-major order receives the gradient, as in PyTorch. The maximum
    is taken along rows, then along columns; only the two positions are saved, one byte each. On one
    core (batch 72, 3 channels at 32 x 32) a backward pass takes 0.8 ms; with nine comparisons per
    pixel instead of these six it takes 2.0 ms.
    """
    return _max_pool_forward(x, stride)[0]


def _max_pool_forward(x: Array, stride: int) -> tuple[Array, tuple[Array, Array]]:
    row_maximum, column = _first_maximum(x, 2)
    maximum, row = _first_maximum(row_maximum, 0)
    return maximum[::stride, :, ::stride], (row, column)


def _max_pool_backward(
    stride: int, residuals: tuple[Array, Array], cotangent: Array
) -> tuple[Array]:
    row, column = residuals
    if stride > 1:
        cotangent = dilate(cotangent, stride, row.shape[0], row.shape[2])
    return (_to_maximum(_to_maximum(cotangent, row, 0), column, 2),)


max_pool.defvjp(_max_pool_forward, _max_pool_backward)


class _Stencil(NamedTuple):
    """Geometry of a depthwise convolution at stride 1."""

    size: int
    dilation: int
    pixels: int  # output pixels of a row times images
    n: int

    @property
    def rows(self) -> int:
        """Number of input rows that an output row reads."""
        return self.dilation * (self.size - 1) + 1

    def taps(self, rows: Rows, h: Array) -> list[Float[Array, "c l"]]:
        """The factors of the kernel's elements, row by row, in output row h."""
        window = take_rows(rows, h, self.rows)
        steps = range(0, self.rows, self.dilation)
        return [window[i, :, j * self.n : j * self.n + self.pixels] for i in steps for j in steps]


def _padded(x: Float[Array, "h c w n"], border: int) -> Rows:
    height, channels, width, n = x.shape
    rows = x.reshape(height, channels, -1)
    buffer = jnp.zeros((height + 2 * border, channels, (width + 2 * border) * n), x.dtype)
    return _write_rows(lambda h: take_rows(rows, h, 1)[0], buffer, height, border, border * n)


def _convolve(
    padded: Rows, kernel: Float[Array, "k k 1 c"], dilation: int, n: int
) -> Float[Array, "h c w n"]:
    size, channels = kernel.shape[0], kernel.shape[-1]
    reach = dilation * (size - 1)
    stencil = _Stencil(size, dilation, padded.shape[2] - reach * n, n)
    weights = kernel.reshape(size * size, channels, 1)

    def row(h: Array) -> Array:
        taps = stencil.taps(padded, h)
        return reduce(add, [weights[i] * tap for i, tap in enumerate(taps)])

    return map_rows(row, padded.shape[0] - reach).reshape(-1, channels, stencil.pixels // n, n)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def depthwise_conv(
    x: Float[Array, "h c w n"],
    kernel: Float[Array, "k k 1 c"],
    stride: int,
    padding: int,
    dilation: int,
) -> Float[Array, "h2 c w2 n"]:
    """Depthwise convolution: each channel has its own kernel.

    On one core (batch 14, kernel 5 x 5) a backward pass takes 1.1 ms with 4 channels at 32 x 32 and
    0.7 ms with 16 at 16 x 16. As a matrix product with a mostly empty kernel it takes 0.7 and
    0.75 ms, but that grows with the square of the channels.
    """
    return _depthwise_conv_forward(x, kernel, stride, padding, dilation)[0]


def _depthwise_conv_forward(
    x: Array, kernel: Array, stride: int, padding: int, dilation: int
) -> tuple[Array, tuple[Rows, Array]]:
    padded = _padded(x, padding)
    y = _convolve(padded, kernel, dilation, x.shape[3])
    return y[::stride, :, ::stride], (padded, kernel)


def _depthwise_conv_backward(
    stride: int, padding: int, dilation: int, residuals: tuple[Rows, Array], cotangent: Array
) -> tuple[Array, Array]:
    padded, kernel = residuals
    size, n = kernel.shape[0], cotangent.shape[3]
    reach = dilation * (size - 1)
    if stride > 1:
        cotangent = dilate(cotangent, stride, padded.shape[0] - reach, padded.shape[2] // n - reach)
    rows = cotangent.reshape(*cotangent.shape[:2], -1)
    stencil = _Stencil(size, dilation, rows.shape[2], n)

    def add_row(h: Array, total: Array) -> Array:
        return total + jnp.stack(stencil.taps(padded, h)) * take_rows(rows, h, 1)

    zeros = jnp.zeros((size * size, *rows.shape[1:]), rows.dtype)
    # Pixels and images are summed once at the end: XLA sums each row element by element.
    gradient = lax.fori_loop(0, rows.shape[0], add_row, zeros) @ jnp.ones(rows.shape[2], rows.dtype)
    x = _convolve(_padded(cotangent, reach - padding), kernel[::-1, ::-1], dilation, n)
    return x, gradient.reshape(kernel.shape)


depthwise_conv.defvjp(_depthwise_conv_forward, _depthwise_conv_backward)

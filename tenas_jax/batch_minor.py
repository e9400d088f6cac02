"""The fast layout for supernets of one to a few dozen channels: batch-minor, [h, c, w, n].

A kernel of n images takes n backward passes through the supernet, so the backward pass is all that
counts. XLA's own convolution runs at 1 GFLOP/s on a CPU when there are 3 channels; these forms
reach 40 to 100 on one core (AMD EPYC 9005, batch 72, 3 channels at 32 x 32 to 12 at 8 x 8):

- The batch is the last axis, so that vector units run over images, and the axes w and n are merged:
  a shift by a pixel is an offset of n. A row of the image with all its channels is contiguous, so
  the k rows that a kernel sees are one matrix [k * c, w * n] without a copy.
- A convolution is one matrix product for each row: 3 x 3 at 3 / 6 / 12 channels with the 3 edges of
  a node side by side 42 / 75 / 96 GFLOP/s, against 26 / 21 / 2 for sums of shifted and scaled
  images. Its patches are made while a row is in cache: saving k or k * k times the images instead
  takes 4 or 20 % more time, as all cotangents read them anew.
- Its input gradient is the same product with the flipped kernel; each row is folded while it is in
  cache. The rows that the kernel sees are kept in a ring, and the kernel is turned instead: a step
  of the loop writes one row, where XLA would copy k of them for the product. A 1 x 1 kernel sees
  one row: all its products are one call.
- Convolution and batch normalization are one function. With G = <cotangent, patches>, which the
  kernel's gradient needs anyway, the sums over the batch in the gradient of batch normalization are
  products of small matrices, and no pass over the images is spent on them.
- A convolution whose edges are all pruned is skipped at run time (`lax.cond`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, reduce
from operator import add
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Shaped

from tenas_jax.layers import EPSILON, PRECISION
from tenas_jax.stencils import (
    Rows,
    avg_pool,
    depthwise_conv,
    map_rows,
    max_pool,
    put_row,
    take_rows,
)


class Window(NamedTuple):
    """Geometry of a convolution of stride 1: side of the kernel, padding before and after."""

    size: int
    low: int
    high: int

    def outputs(self, pixels: int) -> int:
        """Output pixels along an axis of that many input pixels."""
        return pixels + self.low + self.high - self.size + 1


@dataclass(frozen=True)
class BatchMinor:
    """Images as [h, c, w, n]; see the module's docstring."""

    channel_axis: int = 1
    few_channels: int = 16  # measured at `tenas_jax.stencils.depthwise_conv`

    def from_nhwc(self, images: Float[Array, "n h w c"]) -> Float[Array, "h c w n"]:
        return images.transpose(1, 3, 2, 0)

    def per_sample(self, x: Shaped[Array, "h c w n"]) -> Shaped[Array, "n d"]:
        return x.reshape(-1, x.shape[-1]).T

    def conv(
        self, x: Array, kernel: Array, *, stride: int, padding: int, dilation: int, groups: int
    ) -> Array:
        if groups == 1 and dilation == 1:
            return _conv(*_with_stride_1(x, kernel, stride, padding))
        return depthwise_conv(x, kernel, stride, padding, dilation)

    def batch_norm(self, x: Array, scale: Array, bias: Array) -> Array:
        mean = x.mean((0, 2, 3), keepdims=True)
        variance = jnp.square(x - mean).mean((0, 2, 3), keepdims=True)
        factor = scale[None, :, None, None] * lax.rsqrt(variance + EPSILON)
        return (x - mean) * factor + bias[None, :, None, None]

    def conv_batch_norm(
        self,
        x: Array,
        kernel: Array,
        scale: Array,
        bias: Array,
        *,
        stride: int,
        padding: int,
        groups: int,
        active: Bool[Array, ""] | bool,
    ) -> Array:
        dense = kernel if groups == 1 else _block_diagonal(kernel, groups)
        x, dense, window = _with_stride_1(x, dense, stride, padding)
        return _conv_batch_norm(x, dense, scale, bias, jnp.asarray(active), window)

    def avg_pool(self, x: Array, *, stride: int) -> Array:
        return avg_pool(x, stride)

    def max_pool(self, x: Array, *, stride: int) -> Array:
        return max_pool(x, stride)

    def halve(self, x: Array) -> Array:
        h, c, w, n = x.shape
        return x.reshape(h // 2, 2, c, w // 2, 2, n).mean((1, 4))

    def shift(self, x: Array) -> Array:
        return jnp.pad(x, ((0, 1), (0, 0), (0, 1), (0, 0)))[1:, :, 1:]

    def mean_pixel(self, x: Array) -> Float[Array, "n c"]:
        return x.mean((0, 2)).T


BATCH_MINOR = BatchMinor()


def _block_diagonal(kernel: Array, groups: int) -> Array:
    """A grouped kernel [k, k, i, groups * o] as a dense one [k, k, groups * i, groups * o]."""
    height, width, inputs, outputs = kernel.shape
    blocks = kernel.reshape(height, width, inputs, groups, outputs // groups)
    identity = jnp.eye(groups, dtype=kernel.dtype)
    dense = blocks[:, :, None] * identity[None, None, :, None, :, None]
    return dense.reshape(height, width, groups * inputs, outputs)


def _stack(rows: Rows, start: Array | int, count: int) -> Float[Array, "kc wn"]:
    """`count` rows from `start` on as one matrix; contiguous, so that nothing is moved."""
    return take_rows(rows, start, count).reshape(count * rows.shape[1], rows.shape[2])


def _with_stride_1(
    x: Float[Array, "h c w n"], kernel: Float[Array, "k k i o"], stride: int, padding: int
) -> tuple[Float[Array, "..."], Float[Array, "..."], Window]:
    """Images, kernel and window of stride 1 for a convolution of stride 1 or 2.

    Each 2 x 2 block of pixels becomes one pixel of four times the channels, so that a kernel that
    moves by two pixels moves by one.
    """
    size = kernel.shape[0]
    if stride == 1:
        return x, kernel, Window(size, padding, padding)
    height, channels, width, n = x.shape
    x = jnp.pad(x, ((0, height % 2), (0, 0), (0, width % 2), (0, 0)))
    x = x.reshape(-(-height // 2), 2, channels, -(-width // 2), 2, n)
    x = x.transpose(0, 1, 4, 2, 3, 5).reshape(x.shape[0], 4 * channels, x.shape[3], n)
    low = -(-padding // 2)
    before = 2 * low - padding
    blocks = -(-(before + size) // 2)
    pads = (before, 2 * blocks - before - size)
    kernel = jnp.pad(kernel, (pads, pads, (0, 0), (0, 0)))
    kernel = kernel.reshape(blocks, 2, blocks, 2, channels, -1)
    kernel = kernel.transpose(0, 2, 1, 3, 4, 5).reshape(blocks, blocks, 4 * channels, -1)
    return x, kernel, Window(blocks, low, blocks - 1 - low)


def _pad(x: Float[Array, "h c w n"], window: Window) -> Float[Array, "h2 c w2n"]:
    """Rows between borders of zero pixels."""
    pad = (window.low, window.high, 0)
    x = lax.pad(x, jnp.zeros((), x.dtype), (pad, (0, 0, 0), pad, (0, 0, 0)))
    return x.reshape(*x.shape[:2], -1)


def _columns(row: Float[Array, "c w2n"], window: Window, n: int) -> Float[Array, "kc wn"]:
    """What the columns of a kernel see of a padded row."""
    length = row.shape[1] - (window.size - 1) * n
    return jnp.concatenate([row[:, j * n : j * n + length] for j in range(window.size)])


def _patches(rows: Rows, h: Array | int, window: Window, n: int) -> Float[Array, "kkc wn"]:
    """What a kernel sees of padded rows from `h` on."""
    seen = take_rows(rows, h, window.size)
    return jnp.concatenate([_columns(row, window, n) for row in seen])


def _matrix(kernel: Float[Array, "k k i o"]) -> Float[Array, "o kki"]:
    return kernel.reshape(-1, kernel.shape[-1]).T


def _convolve(rows: Rows, kernel: Array, window: Window, n: int) -> Rows:
    matrix = _matrix(kernel)

    def row(h: Array) -> Array:
        return lax.dot(matrix, _patches(rows, h, window, n), precision=PRECISION)

    return map_rows(row, len(rows) - window.size + 1)


def _place(
    ring: Float[Array, "kc l"], row: Float[Array, "c l2"], place: Array | int, left: int = 0
) -> Float[Array, "kc l"]:
    """The ring of k rows with another one, from `left` on, in a place."""
    start = (place * len(row), left)
    return lax.dynamic_update_slice(ring, row, start, allow_negative_indices=False)


def _inner(a: Float[Array, "i l"], b: Float[Array, "j l"]) -> Float[Array, "i j"]:
    return lax.dot_general(a, b, (((1,), (1,)), ((), ())), precision=PRECISION)


def _correlate(rows: Rows, cotangent: Rows, window: Window, n: int) -> Float[Array, "o kki"]:
    """<cotangent, patches> over pixels and images: the gradient of a kernel as a matrix."""
    height, outputs, length = cotangent.shape
    size, channels = window.size, rows.shape[1]
    if size == 1:
        by_row = lax.dot_general(cotangent, rows, (((2,), (2,)), ((0,), (0,))), precision=PRECISION)
        return by_row.sum(0)

    ring = jnp.zeros((size * size * channels, length), rows.dtype)
    for r in range(size - 1):
        ring = _place(ring, _columns(rows[r], window, n), r + 1)

    def add_row(h: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        ring, totals = state
        turn = _turn(h, size)
        ring = _place(ring, _columns(take_rows(rows, h + size - 1, 1)[0], window, n), turn)
        # The long factor first: 23 against 18 GFLOP/s at 3 channels.
        product = _inner(ring, take_rows(cotangent, h, 1)[0])
        return ring, put_row(totals, take_rows(totals, turn, 1)[0] + product, turn)

    # One sum for each turn of the ring, and only these are turned back.
    totals = jnp.zeros((size, len(ring), outputs), cotangent.dtype)
    _, totals = lax.fori_loop(0, height, add_row, (ring, totals))
    turns = [jnp.roll(total, -(i + 1) * size * channels, 0) for i, total in enumerate(totals)]
    return reduce(add, turns).T


def _turn(h: Array, size: int) -> Array:
    """How far a ring of that size is turned when row h of the result is computed.

    The last of the rows that it needs is in this place then, the first in the next one.
    """
    return lax.rem(h, jnp.asarray(size, h.dtype))


def _input_gradient(
    gradient: Callable[[Array | int, int], Rows],
    kernel: Array,
    window: Window,
    input_shape: tuple[int, ...],
) -> Float[Array, "h c w n"]:
    """Gradient of a convolution's input; `gradient(h, count)` are rows of that of its output."""
    height, channels, width, n = input_shape
    size, outputs, rows = window.size, kernel.shape[-1], window.outputs(height)
    flipped = kernel[::-1].transpose(1, 2, 0, 3)
    if size == 1:
        matrices = jnp.broadcast_to(flipped[0, :, 0], (height, channels, outputs))
        by_row = lax.dot_general(
            matrices, gradient(0, height), (((2,), (1,)), ((0,), (0,))), precision=PRECISION
        )
        return by_row.reshape(input_shape)
    before = size - 1 - window.low  # rows and columns of zeros
    ring = jnp.zeros((size * outputs, (width + size - 1) * n), kernel.dtype)
    count = min(window.low, rows)
    first = gradient(0, count).reshape(count * outputs, window.outputs(width) * n)
    ring = lax.dynamic_update_slice(ring, first, ((before + 1) * outputs, before * n))
    turned = jnp.stack([jnp.roll(flipped, turn + 1, 2) for turn in range(size)])
    turned = turned.reshape(size, size * channels, size * outputs)

    def fold(h: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        ring, x = state
        turn, last = _turn(h, size), h + window.low
        row = jnp.where(last < rows, gradient(jnp.minimum(last, rows - 1), 1)[0], 0)
        ring = _place(ring, row, turn, before * n)
        columns = lax.dot(take_rows(turned, turn, 1)[0], ring, precision=PRECISION)
        columns = columns.reshape(size, channels, -1)
        starts = [(size - 1 - j) * n for j in range(size)]
        row = reduce(
            add, [columns[j, :, start : start + width * n] for j, start in enumerate(starts)]
        )
        return ring, put_row(x, row, h)

    x: Array = jnp.zeros((height, channels, width * n), kernel.dtype)
    _, x = lax.fori_loop(0, height, fold, (ring, x))
    return x.reshape(input_shape)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv(x: Array, kernel: Array, window: Window) -> Array:
    return _conv_forward(x, kernel, window)[0]


def _conv_forward(
    x: Array, kernel: Array, window: Window
) -> tuple[Array, tuple[Array, Array, Array]]:
    padded = _pad(x, window)
    y = _convolve(padded, kernel, window, x.shape[3])
    shape = (y.shape[0], y.shape[1], window.outputs(x.shape[2]), x.shape[3])
    # Only the shape of x is needed again; an array without elements carries it as a residual.
    return y.reshape(shape), (padded, kernel, jnp.zeros((0, *x.shape), x.dtype))


def _conv_backward(
    window: Window, residuals: tuple[Array, Array, Array], cotangent: Array
) -> tuple[Array, Array]:
    padded, kernel, shape = residuals
    rows = cotangent.reshape(*cotangent.shape[:2], -1)
    gradient = _correlate(padded, rows, window, shape.shape[-1]).T.reshape(kernel.shape)
    x = _input_gradient(partial(take_rows, rows), kernel, window, shape.shape[1:])
    return x, gradient


_conv.defvjp(_conv_forward, _conv_backward)


class _Normalized(NamedTuple):
    """What the backward pass of convolution and batch normalization needs."""

    padded: Rows  # its input
    y: Rows  # the convolution's output
    mean: Float[Array, "o"]
    inverse_std: Float[Array, "o"]
    gram: Float[Array, "kki kki"]  # <patches, patches>
    total: Float[Array, "kki"]  # <patches, 1>


_Residuals = tuple[_Normalized, Array, Array, Array, Array]


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def _conv_batch_norm(
    x: Array, kernel: Array, scale: Array, bias: Array, active: Array, window: Window
) -> Array:
    return _conv_batch_norm_forward(x, kernel, scale, bias, active, window)[0]


def _conv_batch_norm_forward(
    x: Array, kernel: Array, scale: Array, bias: Array, active: Array, window: Window
) -> tuple[Array, _Residuals]:
    padded = _pad(x, window)
    matrix = _matrix(kernel)
    outputs, size = matrix.shape
    shape = (window.outputs(x.shape[0]), outputs, window.outputs(x.shape[2]), x.shape[3])
    height, length = shape[0], shape[2] * shape[3]

    def add_row(h: Array, sums: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        y, gram, total = sums
        patches = _patches(padded, h, window, x.shape[3])
        row = lax.dot(matrix, patches, precision=PRECISION)
        return put_row(y, row, h), gram + _inner(patches, patches), total + patches.sum(1)

    zeros = [jnp.zeros(s, x.dtype) for s in ((height, outputs, length), (size, size), (size,))]
    y, gram, total = lax.fori_loop(0, height, add_row, tuple(zeros))
    mean = y.mean((0, 2), keepdims=True)
    variance = jnp.square(y - mean).mean((0, 2))
    inverse_std = lax.rsqrt(variance + EPSILON)
    result = (y - mean) * (scale * inverse_std)[None, :, None] + bias[None, :, None]
    saved = _Normalized(padded, y, mean.reshape(-1), inverse_std, gram, total)
    return result.reshape(shape), (saved, kernel, scale, active, jnp.zeros((0, *x.shape), x.dtype))


def _conv_batch_norm_backward(
    window: Window, residuals: _Residuals, cotangent: Array
) -> tuple[Array, Array, Array, Array, None]:
    saved, kernel, scale, active, shape = residuals
    rows = cotangent.reshape(*cotangent.shape[:2], -1)
    height, outputs, length = rows.shape
    # Outside the branch, where XLA computes it once for all operators that share the cotangent.
    ones = jnp.ones((1, length), rows.dtype)
    bias = _inner(rows.reshape(height * outputs, length), ones).reshape(height, outputs).sum(0)

    def compute() -> tuple[Array, Array, Array]:
        # With y = W p for the patches p, z = (y - mean) inverse_std and c the cotangent of
        # scale z + bias, the gradient of y is scale inverse_std (c - mean(c) - z mean(c z)): it is
        # a c + b y + d with constants for each channel; they and the products with p follow from
        # <c, p>, <p, p> and <1, p>.
        products = _correlate(saved.padded, rows, window, shape.shape[-1])
        matrix = _matrix(kernel)
        mean, inverse_std = saved.mean, saved.inverse_std
        scale_gradient = ((matrix * products).sum(1) - mean * bias) * inverse_std
        a = scale * inverse_std
        b = -a * inverse_std * scale_gradient / (height * length)
        d = -a * bias / (height * length) - b * mean
        a, b, d = a[:, None], b[:, None], d[:, None]

        def y_gradient(h: Array | int, count: int) -> Rows:
            c, y = take_rows(rows, h, count), take_rows(saved.y, h, count)
            return a[None] * c + b[None] * y + d[None]

        projected = lax.dot(matrix, saved.gram, precision=PRECISION)
        gradient = a * products + b * projected + d * saved.total[None]
        x = _input_gradient(y_gradient, kernel, window, shape.shape[1:])
        return x, gradient.T.reshape(kernel.shape), scale_gradient

    shapes = (shape.shape[1:], kernel.shape, scale.shape)
    zeros = tuple(jnp.zeros(each, rows.dtype) for each in shapes)
    return (*lax.cond(active, compute, lambda: zeros), bias, None)


_conv_batch_norm.defvjp(_conv_batch_norm_forward, _conv_batch_norm_backward)

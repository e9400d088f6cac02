"""The fast layout for supernets of one to a few dozen channels: batch-minor, [h, c, w, n].

A kernel of n images takes n backward passes through the supernet, so the backward pass is all that
counts. XLA's own convolution runs at about 1 GFLOP/s with 3 channels on a CPU; these forms reach 40 to
100 on one core (AMD EPYC 9005, batch 72, 3 channels at 32 x 32 to 12 channels at 8 x 8):

- The batch is the last axis, so that vector units run over images, and the `w` and `n` axes are merged:
  a shift by a pixel is an offset of n. A row of the image with all its channels is contiguous, so the k
  rows a kernel sees are one matrix [k * c, w * n] without a copy.
- A convolution unfolds columns only (k times the memory, not k * k) and is one matrix product per row:
  3 x 3 at 3 / 6 / 12 channels 42 / 75 / 96 GFLOP/s with the 3 edges of a node side by side, against 26 / 21 /
  2 for sums of shifted, scaled images.
- Its input gradient is the same product with the flipped kernel; each row is folded while it is in cache.
  The gradient is written into a zero-bordered buffer row by row: `lax.pad` runs at 6 GB/s, this at 30.
- Convolution and batch normalization are one function. With G = <cotangent, patches>, which the
  kernel's gradient needs anyway, the sums over the batch that batch normalization's gradient asks for
  are products of small matrices, and no pass over the images is spent on them.
- A convolution whose edges are all pruned is skipped at run time (`lax.cond`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

from tenas_jax.layers import EPSILON, PRECISION
from tenas_jax.stencils import (
    Rows,
    avg_pool,
    bordered,
    depthwise_conv,
    dilate,
    map_rows,
    max_pool,
    take_rows,
)

class Window(NamedTuple):
    """Geometry of a convolution: square kernel, the same stride and padding in both directions."""

    size: int
    stride: int
    padding: int

    def outputs(self, pixels: int) -> int:
        """Output pixels along an axis of that many input pixels."""
        return (pixels + 2 * self.padding - self.size) // self.stride + 1


@dataclass(frozen=True)
class BatchMinor:
    """Images as [h, c, w, n]; see the module's docstring."""

    channel_axis: int = 1

    def from_nhwc(self, images: Float[Array, "n h w c"]) -> Float[Array, "h c w n"]:
        return images.transpose(1, 3, 2, 0)

    def per_sample(self, x: Float[Array, "h c w n"]) -> Float[Array, "n d"]:
        return x.reshape(-1, x.shape[-1]).T

    def conv(
        self, x: Array, kernel: Array, *, stride: int, padding: int, dilation: int, groups: int
    ) -> Array:
        if groups == 1 and dilation == 1:
            return _conv(x, kernel, Window(kernel.shape[0], stride, padding))
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
        window = Window(kernel.shape[0], stride, padding)
        dense = kernel if groups == 1 else _block_diagonal(kernel, groups)
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
    dense = blocks[:, :, None] * identity[:, None, :, None]
    return dense.reshape(height, width, groups * inputs, outputs)


def _stack(rows: Rows, start: Array | int, count: int) -> Float[Array, "k*c w*n"]:
    """`count` rows from `start` on as one matrix; contiguous, so that nothing is moved."""
    return take_rows(rows, start, count).reshape(count * rows.shape[1], rows.shape[2])


def _unfold(x: Float[Array, "h c w n"], window: Window) -> Rows:
    """Padded rows whose channels are the `size` columns a kernel sees: [h + 2p, size * c, w' * n]."""
    _, channels, width, n = x.shape
    pad = (window.padding, window.padding, 0)
    x = lax.pad(x, jnp.zeros((), x.dtype), (pad, (0, 0, 0), pad, (0, 0, 0)))
    outputs, stride = window.outputs(width), window.stride
    columns = [
        lax.slice_in_dim(x, j, j + (outputs - 1) * stride + 1, stride, axis=2)
        for j in range(window.size)
    ]
    return jnp.concatenate(columns, 1).reshape(-1, window.size * channels, outputs * n)


def _matrix(kernel: Float[Array, "k k i o"]) -> Float[Array, "o k*k*i"]:
    return kernel.reshape(-1, kernel.shape[-1]).T


def _convolve(columns: Rows, kernel: Array, window: Window) -> Rows:
    matrix = _matrix(kernel)
    count = (columns.shape[0] - window.size) // window.stride + 1

    def row(h: Array) -> Array:
        return lax.dot(matrix, _stack(columns, h * window.stride, window.size), precision=PRECISION)

    return map_rows(row, count)


def _correlate(columns: Rows, cotangent: Rows, window: Window) -> Float[Array, "o k*k*i"]:
    """<cotangent, patches> over pixels and images: the gradient of a kernel as a matrix."""

    def add_row(h: Array, total: Array) -> Array:
        patches = _stack(columns, h * window.stride, window.size)
        return total + _inner(patches, take_rows(cotangent, h, 1)[0])

    # The long factor first: 23 against 18 GFLOP/s at 3 channels.
    shape = (window.size * columns.shape[1], cotangent.shape[1])
    zeros = jnp.zeros(shape, cotangent.dtype)
    return lax.fori_loop(0, cotangent.shape[0], add_row, zeros).T


def _inner(a: Float[Array, "i l"], b: Float[Array, "j l"]) -> Float[Array, "i j"]:
    return lax.dot_general(a, b, (((1,), (1,)), ((), ())), precision=PRECISION)


def _input_gradient(
    row: Callable[[Array], Float[Array, "o w*n"]],
    kernel: Array,
    window: Window,
    input_shape: tuple[int, ...],
    dtype: jnp.dtype,
) -> Float[Array, "h c w n"]:
    """Gradient of the input of a convolution whose output has the gradient `row(h)` in row h."""
    height, channels, width, n = input_shape
    size, stride, outputs = window.size, window.stride, kernel.shape[-1]
    border = size - 1 - window.padding
    flipped = kernel[::-1].transpose(1, 2, 0, 3).reshape(size * channels, size * outputs)
    if size == stride == 1:
        return map_rows(
            lambda h: lax.dot(flipped, row(h), precision=PRECISION), height
        ).reshape(input_shape)
    shape = (window.outputs(height), outputs, window.outputs(width), n)
    if stride == 1:
        gradient = bordered(row, shape, border, dtype)
    else:  # the two residual blocks, once per network: zeros between the pixels
        rows = map_rows(row, shape[0]).reshape(shape)
        rows = dilate(rows, stride, height + window.padding, width + window.padding, border)
        gradient = rows.reshape(rows.shape[0], outputs, -1)

    def fold(h: Array) -> Array:
        columns = lax.dot(flipped, _stack(gradient, h, size), precision=PRECISION)
        columns = columns.reshape(size, channels, -1)
        starts = [(size - 1 - j) * n for j in range(size)]
        return sum(columns[j, :, start : start + width * n] for j, start in enumerate(starts))

    return map_rows(fold, height).reshape(input_shape)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv(x: Array, kernel: Array, window: Window) -> Array:
    return _conv_forward(x, kernel, window)[0]


def _conv_forward(x: Array, kernel: Array, window: Window) -> tuple[Array, tuple]:
    columns = _unfold(x, window)
    y = _convolve(columns, kernel, window)
    shape = (y.shape[0], y.shape[1], window.outputs(x.shape[2]), x.shape[3])
    # Only the shape of x is needed again; an array without elements carries it as a residual.
    return y.reshape(shape), (columns, kernel, jnp.zeros((0, *x.shape), x.dtype))


def _conv_backward(window: Window, residuals: tuple, cotangent: Array) -> tuple[Array, Array]:
    columns, kernel, shape = residuals
    rows = cotangent.reshape(*cotangent.shape[:2], -1)
    gradient = _correlate(columns, rows, window).T.reshape(kernel.shape)
    x = _input_gradient(lambda h: take_rows(rows, h, 1)[0], kernel, window, shape.shape[1:], rows.dtype)
    return x, gradient


_conv.defvjp(_conv_forward, _conv_backward)


class _Normalized(NamedTuple):
    """What the backward pass of convolution and batch normalization needs."""

    columns: Rows
    y: Rows  # the convolution's output
    mean: Float[Array, "o"]
    inverse_std: Float[Array, "o"]
    gram: Float[Array, "k*k*i k*k*i"]  # <patches, patches>
    total: Float[Array, "k*k*i"]  # <patches, 1>


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def _conv_batch_norm(
    x: Array, kernel: Array, scale: Array, bias: Array, active: Array, window: Window
) -> Array:
    return _conv_batch_norm_forward(x, kernel, scale, bias, active, window)[0]


def _conv_batch_norm_forward(
    x: Array, kernel: Array, scale: Array, bias: Array, active: Array, window: Window
) -> tuple[Array, tuple]:
    columns = _unfold(x, window)
    y = _convolve(columns, kernel, window)
    mean = y.mean((0, 2))
    variance = jnp.square(y - mean[:, None]).mean((0, 2))
    inverse_std = lax.rsqrt(variance + EPSILON)
    factor = scale * inverse_std
    result = (y - mean[:, None]) * factor[:, None] + bias[:, None]

    def add_row(h: Array, sums: tuple[Array, Array]) -> tuple[Array, Array]:
        patches = _stack(columns, h * window.stride, window.size)
        return sums[0] + _inner(patches, patches), sums[1] + patches.sum(1)

    size = window.size * columns.shape[1]
    zeros = jnp.zeros((size, size), x.dtype), jnp.zeros((size,), x.dtype)
    gram, total = lax.fori_loop(0, y.shape[0], add_row, zeros)
    saved = _Normalized(columns, y, mean, inverse_std, gram, total)
    shape = (y.shape[0], y.shape[1], window.outputs(x.shape[2]), x.shape[3])
    return result.reshape(shape), (saved, kernel, scale, active, jnp.zeros((0, *x.shape), x.dtype))


def _conv_batch_norm_backward(window: Window, residuals: tuple, cotangent: Array) -> tuple:
    saved, kernel, scale, active, shape = residuals

    def compute() -> tuple[Array, Array, Array, Array]:
        # With y = W p for the patches p, normalized = (y - m) r and c the cotangent of
        # s * normalized + b: the gradient of y is s r (c - mean(c) - normalized * mean(c * normalized)),
        # which is a c + b y + d with constants for each channel; those, and the products with p, follow
        # from G = <c, p>, <p, p> and <1, p>.
        rows = cotangent.reshape(*cotangent.shape[:2], -1)
        height, outputs, length = rows.shape
        products = _correlate(saved.columns, rows, window)
        ones = jnp.ones((1, length), rows.dtype)
        bias = _inner(rows.reshape(height * outputs, length), ones).reshape(height, outputs).sum(0)
        matrix = _matrix(kernel)
        mean, inverse_std = saved.mean, saved.inverse_std
        scale_gradient = ((matrix * products).sum(1) - mean * bias) * inverse_std
        a = scale * inverse_std
        b = -a * inverse_std * scale_gradient / (height * length)
        d = -a * bias / (height * length) - b * mean
        a, b, d = a[:, None], b[:, None], d[:, None]
        projected = lax.dot(matrix, saved.gram, precision=PRECISION)
        gradient = a * products + b * projected + d * saved.total
        x = _input_gradient(
            lambda h: a * take_rows(rows, h, 1)[0] + b * take_rows(saved.y, h, 1)[0] + d,
            kernel,
            window,
            shape.shape[1:],
            rows.dtype,
        )
        return x, gradient.T.reshape(kernel.shape), scale_gradient, bias

    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(compute))
    return (*lax.cond(active, compute, lambda: zeros), None)


_conv_batch_norm.defvjp(_conv_batch_norm_forward, _conv_batch_norm_backward)

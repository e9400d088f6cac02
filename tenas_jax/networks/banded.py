"""The layout for TPUs: images as [c, h, w * n], convolutions as products with banded matrices.

A matrix unit multiplies 128 x 128 matrices, and a supernet has 3 channels. So the rows of all
channels are one axis, and a convolution is a product with a matrix that is zero for rows out of
reach: [o * h, k * c * h] times the images shifted by each column of the kernel. Most factors are
zeros, but no array has to be copied into another order, and none is padded: the last two axes, h
and w * n, fill the registers of 8 x 128 numbers. A shift by a pixel is an offset of n. JAX
differentiates this as it is: the gradient of the input is one product too, and so is that of the
matrix, whose diagonals are summed. Images are square.
"""

import sys
from dataclasses import dataclass
from functools import partial, reduce
from operator import add
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Shaped

from tenas_jax.networks.layouts import EPSILON, Layout, block_diagonal
from tenas_jax.networks.stencils import max_pool
from tenas_jax.numerics import PRECISION


@dataclass(frozen=True)
class Banded(Layout):
    """Square images as [c, h, w * n]; see the module's docstring.

    Args:
        channel_axis: see `tenas_jax.networks.layouts.Layout`, like the next two.
        loops: whether edges may be computed in loops.
        few_channels: up to how many channels two convolutions are one.
    """

    channel_axis: int = 0
    loops: bool = True
    few_channels: int = sys.maxsize  # the matrices are dense anyway

    def from_nhwc(self, images: Float[Array, "n h w c"]) -> Float[Array, "c h wn"]:
        return _merge(images.transpose(3, 1, 2, 0))

    def to_nhwc(self, x: Float[Array, "c h wn"]) -> Float[Array, "n h w c"]:
        return _split(x).transpose(3, 1, 2, 0)

    def per_sample(self, x: Shaped[Array, "c h wn"]) -> Shaped[Array, "n d"]:
        return x.reshape(-1, _images(x)).T

    def conv(
        self, x: Array, kernel: Array, *, stride: int, padding: int, dilation: int, groups: int
    ) -> Array:
        window = _Window(len(kernel), stride, padding, dilation, x.shape[1], _images(x))
        return _conv(x, block_diagonal(kernel, groups), window)

    def batch_norm(self, x: Array, scale: Array, bias: Array) -> Array:
        mean = x.mean((1, 2), keepdims=True)
        variance = jnp.square(x - mean).mean((1, 2), keepdims=True)
        return (x - mean) * (scale[:, None, None] * lax.rsqrt(variance + EPSILON)) + bias[
            :, None, None
        ]

    def avg_pool(self, x: Array, *, stride: int) -> Array:
        height, n = x.shape[1], _images(x)
        pixel = np.arange(height)
        near = (np.abs(pixel[::stride, None] - pixel) < 2).astype(x.dtype)
        average = near / near.sum(1, keepdims=True)
        padded = jnp.pad(x, ((0, 0), (0, 0), (n, n)))
        columns = sum(_columns(padded, shift, stride, len(near), n) for shift in range(3))
        rows = jnp.einsum("hr,crl->chl", average, columns, precision=PRECISION)
        return rows / np.repeat(near.sum(1), n)[None, None]

    def max_pool(self, x: Array, *, stride: int) -> Array:
        return _merge(max_pool(_split(x).swapaxes(0, 1), stride).swapaxes(0, 1))

    def halve(self, x: Array) -> Array:
        c, h, length = x.shape
        return x.reshape(c, h // 2, 2, h // 2, 2, -1).mean((2, 4)).reshape(c, h // 2, length // 2)

    def shift(self, x: Array) -> Array:
        n = _images(x)
        return jnp.pad(x, ((0, 0), (0, 1), (0, n)))[:, 1:, n:]

    def mean_pixel(self, x: Array) -> Float[Array, "n c"]:
        return _split(x.mean(1, keepdims=True), x.shape[1]).mean((1, 2)).T


def _images(x: Shaped[Array, "c h wn"]) -> int:
    """The number of images."""
    return x.shape[2] // x.shape[1]


def _split(x: Float[Array, "c h wn"], width: int | None = None) -> Float[Array, "c h w n"]:
    return x.reshape(*x.shape[:2], width or x.shape[1], -1)


def _merge(x: Float[Array, "c h w n"]) -> Float[Array, "c h wn"]:
    return x.reshape(*x.shape[:2], -1)


def _columns(
    x: Float[Array, "c h wn"], first: int, stride: int, count: int, n: int
) -> Float[Array, "c h w2n"]:
    """`count` columns of n images: every `stride`-th from `first` on."""
    if stride == 1:
        return x[:, :, first * n : (first + count) * n]
    split = x.reshape(*x.shape[:2], -1, n)
    return _merge(split[:, :, first : first + (count - 1) * stride + 1 : stride])


class _Window(NamedTuple):
    """Geometry of a convolution, and the size of its input."""

    size: int
    stride: int
    padding: int
    dilation: int
    height: int
    images: int

    @property
    def outputs(self) -> int:
        """Number of rows, and of columns, of the output."""
        reach = self.dilation * (self.size - 1)
        return (self.height + 2 * self.padding - reach - 1) // self.stride + 1

    def columns(self, x: Float[Array, "c h wn"]) -> Float[Array, "k c h w2n"]:
        """The columns that each column of the kernel reads."""
        border = self.padding * self.images
        padded = jnp.pad(x, ((0, 0), (0, 0), (border, border)))
        shifts = range(0, self.size * self.dilation, self.dilation)
        common = self.stride, self.outputs, self.images
        return jnp.stack([_columns(padded, shift, *common) for shift in shifts])

    def rows(self, x: Float[Array, "k c h l"]) -> Float[Array, "k k c h2 l"]:
        """The rows that each row of the kernel reads."""
        padded = jnp.pad(x, ((0, 0), (0, 0), (self.padding, self.padding), (0, 0)))
        last = (self.outputs - 1) * self.stride + 1
        shifts = range(0, self.size * self.dilation, self.dilation)
        return jnp.stack([padded[:, :, i : i + last : self.stride] for i in shifts])

    def matrix(self, kernel: Float[Array, "k k i o"]) -> Float[Array, "oh kir"]:
        """The kernel as a matrix, by the rows of the output and of the input."""
        first = np.arange(self.outputs)[:, None] * self.stride - self.padding
        shifts = range(0, self.size * self.dilation, self.dilation)
        rows = np.arange(self.height)
        parts = [
            jnp.where((first + shift == rows)[None, :, None, None], taps[:, None, :, :, None], 0)
            for shift, taps in zip(shifts, kernel.transpose(0, 3, 1, 2), strict=True)
        ]
        matrix = reduce(add, parts).reshape(kernel.shape[-1] * self.outputs, -1)
        result: Array = lax.optimization_barrier(matrix)
        return result


def _convolve(x: Array, matrix: Float[Array, "oh kir"], window: _Window) -> Float[Array, "o h l"]:
    columns = window.columns(x)
    columns = lax.optimization_barrier(columns.reshape(matrix.shape[1], -1))
    y = lax.optimization_barrier(lax.dot(matrix, columns, precision=PRECISION))
    images: Array = y.reshape(-1, window.outputs, y.shape[1])
    return images


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv(x: Array, kernel: Array, window: _Window) -> Array:
    return _convolve(x, window.matrix(kernel), window)


def _conv_forward(x: Array, kernel: Array, window: _Window) -> tuple[Array, tuple[Array, Array]]:
    return _conv(x, kernel, window), (x, kernel)


def _conv_backward(
    window: _Window, residuals: tuple[Array, Array], cotangent: Array
) -> tuple[Array, Array]:
    x, kernel = residuals
    patches = window.rows(window.columns(x))
    patches = lax.optimization_barrier(patches.reshape(-1, *patches.shape[3:]))
    gradient = jnp.einsum("ohl,mhl->om", cotangent, patches, precision=PRECISION)
    gradient = lax.optimization_barrier(gradient)
    matrix = window.matrix(kernel)
    flat = lax.optimization_barrier(cotangent.reshape(len(matrix), -1))
    columns = lax.dot(matrix.T, flat, precision=PRECISION)
    columns = lax.optimization_barrier(columns)
    columns = columns.reshape(window.size, *x.shape[:2], -1)
    (x,) = jax.linear_transpose(window.columns, x)(columns)
    return x, gradient.T.reshape(kernel.shape)


_conv.defvjp(_conv_forward, _conv_backward)

BANDED = Banded()

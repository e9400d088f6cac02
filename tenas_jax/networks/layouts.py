"""Memory layouts of images; the only place that distinguishes NHWC from batch-minor.

A `Layout` is a set of pure functions on arrays of images. Operators, cells and networks are written
once on top of them. The same network then runs on `NHWC`, the plain layout that GPU libraries are
tuned for, or on `tenas_jax.networks.batch_minor.BATCH_MINOR`, the fast layout for the tiny channel
counts of a supernet on a CPU. `tenas_jax.networks.backends` chooses. Batch normalization always
uses the statistics of the batch: an untrained network has no others.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from tenas_jax.numerics import PRECISION

EPSILON = 1e-5  # of every batch normalization in the original


@runtime_checkable
class Layout(Protocol):
    """The functions of a memory layout that operators use. Images are `x`; kernels are HWIO."""

    @property
    def channel_axis(self) -> int:
        """The axis of the channels."""

    @property
    def few_channels(self) -> int:
        """Channel count up to which fusing depthwise and pointwise convolutions is faster."""

    @property
    def loops(self) -> bool:
        """Whether edges may be computed in loops, which compile faster; see `Cell`."""

    def from_nhwc(self, images: Float[Array, "n h w c"]) -> Float[Array, "..."]:
        """Images in this layout."""

    def to_nhwc(self, x: Array) -> Float[Array, "n h w c"]:
        """The inverse of `from_nhwc`."""

    def per_sample(self, x: Array) -> Array:
        """The values of each sample as a row: [n, h * w * c]."""

    def conv(
        self, x: Array, kernel: Array, *, stride: int, padding: int, dilation: int, groups: int
    ) -> Array:
        """Convolution without bias."""

    def batch_norm(self, x: Array, scale: Array, bias: Array) -> Array:
        """Normalization of each channel by its mean and variance over this batch."""

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
        dilation: int = 1,
        active: Bool[Array, ""] | bool,
    ) -> Array:
        """`batch_norm(conv(x))`; if not `active`, scale and bias are zero."""
        del active  # zero scale and bias make the result zero
        y = self.conv(x, kernel, stride=stride, padding=padding, dilation=dilation, groups=groups)
        return self.batch_norm(y, scale, bias)

    def avg_pool(self, x: Array, *, stride: int) -> Array:
        """3 x 3 average, padding 1, over the pixels inside the image."""

    def max_pool(self, x: Array, *, stride: int) -> Array:
        """3 x 3 maximum, padding 1."""

    def halve(self, x: Array) -> Array:
        """2 x 2 average, stride 2."""

    def shift(self, x: Array) -> Array:
        """The images shifted by one pixel up and left, filled with zeros."""

    def mean_pixel(self, x: Array) -> Float[Array, "n c"]:
        """Global average pooling."""


@dataclass(frozen=True)
class ChannelsLast(Layout):
    """NHWC with `jax.lax`, differentiated by JAX: the reference for the fast layout.

    Args:
        channel_axis: see `Layout`.
        few_channels: see `Layout`.
        loops: see `Layout`.
        dense: whether grouped convolutions use dense, block-diagonal kernels.
        precision: precision of convolutions.
    """

    channel_axis: int = -1
    few_channels: int = 16
    loops: bool = True
    dense: bool = False
    precision: lax.Precision | None = PRECISION

    def from_nhwc(self, images: Array) -> Array:
        return images

    def to_nhwc(self, x: Array) -> Array:
        return x

    def per_sample(self, x: Array) -> Array:
        return x.reshape(x.shape[0], -1)

    def conv(
        self, x: Array, kernel: Array, *, stride: int, padding: int, dilation: int, groups: int
    ) -> Array:
        if self.dense:
            kernel, groups = block_diagonal(kernel, groups), 1
        return lax.conv_general_dilated(
            x,
            kernel,
            (stride, stride),
            ((padding, padding), (padding, padding)),
            rhs_dilation=(dilation, dilation),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
            precision=self.precision,
        )

    def batch_norm(self, x: Array, scale: Array, bias: Array) -> Array:
        mean = x.mean((0, 1, 2), keepdims=True)
        variance = jnp.square(x - mean).mean((0, 1, 2), keepdims=True)
        normalized = (x - mean) * lax.rsqrt(variance + EPSILON)
        return normalized * scale[None, None, None] + bias[None, None, None]

    def avg_pool(self, x: Array, *, stride: int) -> Array:
        pads = ((1, 1), (1, 1))
        pooled: Array = nn.avg_pool(x, (3, 3), (stride, stride), pads, count_include_pad=False)
        return pooled.astype(x.dtype)  # Flax counts the pixels in float64 if that is enabled

    def max_pool(self, x: Array, *, stride: int) -> Array:
        pooled: Array = nn.max_pool(x, (3, 3), (stride, stride), ((1, 1), (1, 1)))
        return pooled

    def halve(self, x: Array) -> Array:
        pooled: Array = nn.avg_pool(x, (2, 2), (2, 2))
        return pooled

    def shift(self, x: Array) -> Array:
        return jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))[:, 1:, 1:]

    def mean_pixel(self, x: Array) -> Array:
        return x.mean((1, 2))


class WithoutBatchNorm(ChannelsLast):
    """NHWC without normalization; scale and bias, which contain the edge weights, remain."""

    def batch_norm(self, x: Array, scale: Array, bias: Array) -> Array:
        return x * scale[None, None, None] + bias[None, None, None]


NHWC = ChannelsLast()
NHWC_WITHOUT_BATCH_NORM = WithoutBatchNorm()


def block_diagonal(kernel: Array, groups: int) -> Array:
    """A grouped kernel [k, k, i, groups * o] as a dense one [k, k, groups * i, groups * o].

    Example:
        >>> block_diagonal(jnp.ones((1, 1, 1, 2)), 2)[0, 0].tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    if groups == 1:
        return kernel
    height, width, inputs, outputs = kernel.shape
    # Few dimensions: XLA's library for CPUs crashes in some gradients of seven (JAX 0.10.2).
    blocks = kernel.reshape(height * width, inputs, groups, outputs // groups)
    identity = jnp.eye(groups, dtype=kernel.dtype)
    dense = blocks[:, None] * identity[None, :, None, :, None]
    return dense.reshape(height, width, groups * inputs, outputs)


def shape_after(layout: Layout, x: Array, stride: int) -> tuple[int, ...]:
    """The shape of images after an operator with a stride that keeps their channels."""
    shape: tuple[int, ...] = jax.eval_shape(partial(layout.avg_pool, stride=stride), x).shape
    return shape


def spread(layout: Layout, x: Array, weight: Float[Array, "edge"]) -> Array:
    """Copy the images for each edge, weighted; channels are grouped by edge."""
    # Not one broadcast product: its transpose, a sum over edges, is ten times as slow on a CPU.
    return jnp.concatenate([weight[i] * x for i in range(weight.size)], layout.channel_axis)


def join(layout: Layout, parts: Sequence[Array], edges: int) -> Array:
    """Concatenate channels that are grouped by edge, edge by edge."""
    axis = layout.channel_axis % parts[0].ndim
    grouped = [
        part.reshape(*part.shape[:axis], edges, part.shape[axis] // edges, *part.shape[axis + 1 :])
        for part in parts
    ]
    channels = jnp.concatenate(grouped, axis + 1)
    return channels.reshape(*parts[0].shape[:axis], -1, *parts[0].shape[axis + 1 :])

"""Candidate operators. Each serves the parallel edges that leave one node of a cell.

Called with images and one weight for each edge, an operator returns its weighted outputs with the
channels grouped by edge; a weight of zero means that the operator is pruned there. All convolutions
are without bias, all batch normalizations affine with epsilon 1e-5 (the original's
`cell_operations.py`).
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from tenas_jax.initializers import get_initializer
from tenas_jax.layers import (
    ConvBatchNorm,
    Layer,
    Layout,
    join,
    side_by_side,
    spread,
    subsample,
)

# The Flax collections into which activation patterns are sown, and for each of their neurons how
# many operators that are kept read it.
PATTERNS, READERS = "patterns", "readers"


def relu(module: nn.Module, layout: Layout, x: Array, readers: Array | int = 1) -> Array:
    """ReLU that sows its activation pattern, [n, neurons]; all zeros where nothing reads it.

    Args:
        module: the calling module, whose collections `PATTERNS` and `READERS` take what is sown if
            they are mutable.
        layout: memory layout of `x`.
        x: images.
        readers: how many operators that are kept read the result; broadcasts against `x`.
    """
    if not module.is_initializing():
        if module.is_mutable_collection(PATTERNS):
            module.sow(PATTERNS, "relu", layout.per_sample((x > 0) & (jnp.asarray(readers) > 0)))
        if module.is_mutable_collection(READERS):
            everywhere = jnp.broadcast_to(jnp.asarray(readers), x.shape)
            module.sow(READERS, "relu", layout.per_sample(everywhere)[0])
    return jax.nn.relu(x)


def _kept(weight: Float[Array, "edge"] | None) -> Array | int:
    """On how many edges an operator is kept."""
    return 1 if weight is None else (weight > 0).sum()


class Op(nn.Module):
    """A candidate operator.

    Args:
        features: output channels of each edge.
        layout: memory layout of the images.
        initializer: name of the kernels' initializer.
        edges: number of parallel edges that read the same images.
        stride: 1, or 2 to halve the images.
    """

    features: int
    layout: Layout
    initializer: str
    edges: int = 1
    stride: int = 1

    def __call__(self, x: Array, weight: Float[Array, "edge"]) -> Array:
        """Weighted outputs [.., edges * features, ..] of images [.., channels, ..]."""
        raise NotImplementedError


class Zero(Op):
    """The operator `none`: no connection."""

    def __call__(self, x: Array, weight: Float[Array, "edge"]) -> Array:
        """Zeros."""
        return jnp.zeros_like(spread(self.layout, subsample(self.layout, x, self.stride), weight))


class SkipConnect(Op):
    """Identity; with stride 2 a factorized reduction."""

    @nn.compact
    def __call__(self, x: Array, weight: Float[Array, "edge"]) -> Array:
        """The images, weighted by edge."""
        if self.stride == 1:
            return spread(self.layout, x, weight)
        return FactorizedReduction(self.features, self.layout, self.initializer, self.edges)(
            x, weight
        )


class FactorizedReduction(nn.Module):
    """ReLU, two 1 x 1 convolutions of stride 2, the second a pixel further, batch normalization."""

    features: int
    layout: Layout
    initializer: str
    edges: int = 1

    @nn.compact
    def __call__(self, x: Array, weight: Float[Array, "edge"] | None = None) -> Array:
        """Half as large images, weighted by edge; without weights, once for each edge."""
        x = relu(self, self.layout, x, _kept(weight))
        halves = []
        for i, (features, shifted) in enumerate(
            ((self.features // 2, x), (self.features - self.features // 2, self.layout.shift(x)))
        ):
            if features:
                conv = ConvBatchNorm(
                    self.layout,
                    self.initializer,
                    self.edges,
                    features=features,
                    stride=2,
                    name=f"half_{i}",
                )
                halves.append(conv(shifted, weight))
        return join(self.layout, halves, self.edges)


class ReLUConvBatchNorm(Op):
    """ReLU, k x k convolution, batch normalization."""

    kernel_size: int = 3

    @nn.compact
    def __call__(self, x: Array, weight: Float[Array, "edge"] | None = None) -> Array:
        """Convolved images, weighted by edge; without weights, once for each edge."""
        conv = ConvBatchNorm(
            self.layout,
            self.initializer,
            self.edges,
            features=self.features,
            kernel_size=self.kernel_size,
            stride=self.stride,
            name="conv",
        )
        return conv(relu(self, self.layout, x, _kept(weight)), weight)


class SeparableConvBatchNorm(Layer):
    """Depthwise k x k and pointwise 1 x 1 convolution, batch normalization, weighted by edge.

    Args:
        features: output channels of each edge.
        kernel_size: side of the depthwise kernel; the padding keeps the image size.
        stride: step of the depthwise kernel in both directions.
        dilation: distance between the pixels that the depthwise kernel reads.
        grouped: whether the input channels are grouped by edge; otherwise all edges read them all.
    """

    features: int = 1
    kernel_size: int = 3
    stride: int = 1
    dilation: int = 1
    grouped: bool = False

    @nn.compact
    def __call__(self, x: Array, weight: Float[Array, "edge"]) -> Array:
        """Convolved images, weighted by edge."""
        layout, edges, size = self.layout, self.edges, self.kernel_size
        groups = edges if self.grouped else 1
        inputs = x.shape[layout.channel_axis] // groups
        initializer = get_initializer(self.initializer)
        depthwise: Array = self.param(
            "depthwise", initializer, (edges, size, size, 1, inputs), x.dtype
        )
        shape = (edges, 1, 1, inputs, self.features)
        pointwise: Array = self.param("pointwise", initializer, shape, x.dtype)
        scale, bias = self.affine(self.features, x.dtype)
        stride, padding = self.stride, self.dilation * (size // 2)
        if edges * inputs <= layout.few_channels:
            # Nothing stands between the two convolutions: they are one, with the product of their
            # kernels.
            product = jnp.swapaxes(depthwise, 3, 4) * pointwise
            kernel = _dilate(side_by_side(product), self.dilation)
        else:
            x = layout.conv(
                x if self.grouped else spread(layout, x, jnp.ones_like(weight)),
                side_by_side(depthwise),
                stride=stride,
                padding=padding,
                dilation=self.dilation,
                groups=edges * inputs,
            )
            kernel, stride, padding, groups = side_by_side(pointwise), 1, 0, edges
        return layout.conv_batch_norm(
            x,
            kernel,
            (weight[:, None] * scale).reshape(-1),
            (weight[:, None] * bias).reshape(-1),
            stride=stride,
            padding=padding,
            groups=groups,
            active=(weight > 0).any(),
        )


def _dilate(kernel: Float[Array, "k k i o"], dilation: int) -> Float[Array, "d d i o"]:
    """The kernel with zeros between its elements."""
    between, none = (0, 0, dilation - 1), (0, 0, 0)
    return lax.pad(kernel, jnp.zeros((), kernel.dtype), (between, between, none, none))


class SeparableConv(Op):
    """ReLU, depthwise and pointwise convolution, batch normalization, `repeats` times.

    The stride is that of the first time. A pruned edge has weight zero from there on, so that its
    later activation patterns are all zeros.
    """

    kernel_size: int = 3
    dilation: int = 1
    repeats: int = 1

    @nn.compact
    def __call__(self, x: Array, weight: Float[Array, "edge"]) -> Array:
        """Convolved images, weighted by edge."""
        kept = weight > 0
        channels = x.shape[self.layout.channel_axis]
        for i in range(self.repeats):
            first, last = i == 0, i == self.repeats - 1
            conv = SeparableConvBatchNorm(
                self.layout,
                self.initializer,
                self.edges,
                features=self.features if last else channels,
                kernel_size=self.kernel_size,
                stride=self.stride if first else 1,
                dilation=self.dilation,
                grouped=not first,
                name=f"conv_{i}",
            )
            if first:
                readers = kept.sum()
            else:  # the channels of an edge are read on that edge
                shape = [1] * 4
                shape[self.layout.channel_axis] = kept.size * channels
                readers = jnp.repeat(kept, channels).astype(int).reshape(shape)
            activations = relu(self, self.layout, x, readers)
            x = conv(activations, weight if last else kept.astype(x.dtype))
        return x


class Pool(Op):
    """3 x 3 average or maximum."""

    maximum: bool = False

    def __call__(self, x: Array, weight: Float[Array, "edge"]) -> Array:
        """Pooled images, weighted by edge."""
        pool = self.layout.max_pool if self.maximum else self.layout.avg_pool
        return spread(self.layout, pool(x, stride=self.stride), weight)


OPS: dict[str, Callable[..., Op]] = {
    "none": Zero,
    "skip_connect": SkipConnect,
    "nor_conv_1x1": partial(ReLUConvBatchNorm, kernel_size=1),
    "nor_conv_3x3": partial(ReLUConvBatchNorm, kernel_size=3),
    "sep_conv_3x3": partial(SeparableConv, kernel_size=3, repeats=2),
    "sep_conv_5x5": partial(SeparableConv, kernel_size=5, repeats=2),
    "dil_conv_3x3": partial(SeparableConv, kernel_size=3, dilation=2),
    "dil_conv_5x5": partial(SeparableConv, kernel_size=5, dilation=2),
    "avg_pool_3x3": Pool,
    "max_pool_3x3": partial(Pool, maximum=True),
}

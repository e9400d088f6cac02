"""Layers with weights, for several parallel edges at once, in any memory layout."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from tenas_jax.networks.initializers import get_initializer
from tenas_jax.networks.layouts import EPSILON, Layout

# The Flax collection for the logarithms of the standard deviations by which batch normalizations
# divide.
DEVIATIONS = "deviations"


def side_by_side(kernel: Float[Array, "edge k k i o"]) -> Float[Array, "k k i eo"]:
    """The kernels of parallel edges as one kernel whose output channels are grouped by edge."""
    edges, height, width, inputs, outputs = kernel.shape
    return kernel.transpose(1, 2, 3, 0, 4).reshape(height, width, inputs, edges * outputs)


class Layer(nn.Module):
    """The base of all layers with weights.

    A layer computes `edges` parallel edges of a cell at once, each with its own weights: its kernel
    has shape [edge, k, k, in, out], and the channels of its output are grouped by edge. The edges
    that leave one node are then a single, wider convolution. `edges=1` is the plain layer.

    Args:
        layout: memory layout of the images.
        initializer: name of the kernels' initializer.
        edges: number of parallel edges.
    """

    layout: Layout
    initializer: str
    edges: int = 1

    def kernel(self, size: int, inputs: int, outputs: int, dtype: jnp.dtype) -> Array:
        """The parameter `kernel` as one wide HWIO kernel."""
        shape = (self.edges, size, size, inputs, outputs)
        initializer = get_initializer(self.initializer)
        return side_by_side(self.param("kernel", initializer, shape, dtype))

    def affine(self, outputs: int, dtype: jnp.dtype) -> tuple[Array, Array]:
        """The parameters `scale` and `bias` of a batch normalization, [edge, out]."""
        shape = (self.edges, outputs)
        scale = self.param("scale", nn.initializers.ones, shape, dtype)
        return scale, self.param("bias", nn.initializers.zeros, shape, dtype)

    def conv_batch_norm(
        self,
        x: Array,
        kernel: Array,
        weight: Float[Array, "edge"] | None,
        *,
        features: int,
        stride: int,
        padding: int,
        groups: int,
        dilation: int = 1,
        parts: int = 1,
    ) -> Array:
        """Convolution and the layer's own batch normalization, weighted by edge.

        If the collection `DEVIATIONS` is mutable and the layout convolves any groups, it receives
        for each edge half the logarithm of the mean variance of its channels, or 0 if the weight is
        0. If a batch normalization is split into several parts, each part has its share.
        """
        scale, bias = self.affine(features, x.dtype)
        active: Array | bool = True
        if weight is not None:
            # Scaling the result is scaling its affine parameters: it costs nothing per pixel.
            scale, bias = weight[:, None] * scale, weight[:, None] * bias
            active = (weight > 0).any()
        if self.is_mutable_collection(DEVIATIONS) and not self.is_initializing():
            y = self.layout.conv(
                x, kernel, stride=stride, padding=padding, dilation=dilation, groups=groups
            )
            pixels = self.layout.to_nhwc(y).reshape(-1, self.edges, features)
            deviations = jnp.log(pixels.var(0).mean(1) + EPSILON) / (2 * parts)
            kept = True if weight is None else weight > 0
            self.sow(DEVIATIONS, "batch_norm", jnp.where(kept, deviations, 0))
        return self.layout.conv_batch_norm(
            x,
            kernel,
            scale.reshape(-1),
            bias.reshape(-1),
            stride=stride,
            padding=padding,
            groups=groups,
            dilation=dilation,
            active=active,
        )


class PointwiseConv(Layer):
    """1 x 1 convolution."""

    features: int = 1

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.kernel(1, x.shape[self.layout.channel_axis], self.features, x.dtype)
        return self.layout.conv(x, kernel, stride=1, padding=0, dilation=1, groups=1)


class BatchNorm(Layer):
    """Batch normalization by the statistics of the batch."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale, bias = self.affine(x.shape[self.layout.channel_axis], x.dtype)
        return self.layout.batch_norm(x, scale.reshape(-1), bias.reshape(-1))


class ConvBatchNorm(Layer):
    """Convolution and batch normalization, weighted by edge.

    Args:
        features: output channels of each edge.
        kernel_size: side of the kernel; the padding keeps the image size.
        stride: stride of the kernel in both directions.
        grouped: whether the input channels are grouped by edge; otherwise all edges read all.
        parts: number of layers, side by side, that together form one batch normalization.
    """

    features: int = 1
    kernel_size: int = 1
    stride: int = 1
    grouped: bool = False
    parts: int = 1

    @nn.compact
    def __call__(self, x: Array, weight: Float[Array, "edge"] | None = None) -> Array:
        groups = self.edges if self.grouped else 1
        inputs = x.shape[self.layout.channel_axis] // groups
        kernel = self.kernel(self.kernel_size, inputs, self.features, x.dtype)
        return self.conv_batch_norm(
            x,
            kernel,
            weight,
            features=self.features,
            stride=self.stride,
            padding=self.kernel_size // 2,
            groups=groups,
            parts=self.parts,
        )

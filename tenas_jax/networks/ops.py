"""Candidate operators. Each one computes the parallel edges that leave one node of a cell.

Called with images and one weight per edge, an operator returns its weighted outputs with the
channels grouped by edge; a weight of zero means that it is pruned on that edge. Convolutions have
no bias; batch normalizations are affine with epsilon 1e-5 (the original's `cell_operations.py`).
"""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, PyTree

from tenas_jax.errors import InputError
from tenas_jax.metrics.activations import executed_patterns
from tenas_jax.networks.initializers import get_initializer
from tenas_jax.networks.layers import DEVIATIONS, ConvBatchNorm, Layer, side_by_side
from tenas_jax.networks.layouts import Layout, join, shape_after, spread

# The Flax collections for activation patterns, and for the number of kept operators that read each
# neuron.
PATTERNS, READERS = "patterns", "readers"
# The parameters of a Flax module with its own initializers, within those of an operator.
OWN_PARAMETERS = "module"


def relu(module: nn.Module, layout: Layout, x: Array, readers: Array | int = 1) -> Array:
    """ReLU that sows its activation pattern, [n, neurons]; zeros for unread neurons.

    Args:
        module: the calling module; sows into its collections `PATTERNS` and `READERS` if they are
            mutable.
        layout: memory layout of `x`.
        x: images.
        readers: number of kept operators that read the result; broadcasts against `x`.
    """
    if not module.is_initializing():
        if module.is_mutable_collection(PATTERNS):
            module.sow(PATTERNS, "relu", layout.per_sample((x > 0) & (jnp.asarray(readers) > 0)))
        if module.is_mutable_collection(READERS):
            everywhere = jnp.broadcast_to(jnp.asarray(readers), x.shape)
            module.sow(READERS, "relu", layout.per_sample(everywhere)[0])
    return jax.nn.relu(x)


def _kept(weight: Float[Array, "edge"] | None) -> Array | int:
    """The number of edges on which an operator is kept."""
    return 1 if weight is None else (weight > 0).sum()


class Op(nn.Module):
    """A candidate operator; subclass it to write your own.

    Args:
        features: output channels of each edge.
        layout: memory layout of the images.
        initializer: name of the kernels' initializer.
        edges: number of parallel edges that read the same images.
        stride: 1, or 2 to halve the images.

    Attributes:
        is_identity: whether it returns the images unchanged if their size and channels stay the
            same.
    """

    is_identity: ClassVar[bool] = False

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
        shape = list(shape_after(self.layout, x, self.stride))
        shape[self.layout.channel_axis] = weight.size * self.features
        return jnp.zeros(shape, x.dtype)


class SkipConnect(Op):
    """Identity; a factorized reduction if the size or the channels change."""

    is_identity = True

    @nn.compact
    def __call__(self, x: Array, weight: Float[Array, "edge"]) -> Array:
        """The images, weighted by edge."""
        if self.stride == 1 and x.shape[self.layout.channel_axis] == self.features:
            return spread(self.layout, x, weight)
        reduction = FactorizedReduction(
            self.features, self.layout, self.initializer, self.edges, self.stride
        )
        return reduction(x, weight)


class FactorizedReduction(nn.Module):
    """ReLU, two strided 1 x 1 convolutions, one shifted by a pixel, batch normalization."""

    features: int
    layout: Layout
    initializer: str
    edges: int = 1
    stride: int = 2

    @nn.compact
    def __call__(self, x: Array, weight: Float[Array, "edge"] | None = None) -> Array:
        """Smaller images, weighted by edge; without weights, one copy per edge."""
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
                    stride=self.stride,
                    parts=min(self.features, 2),
                    name=f"half_{i}",
                )
                halves.append(conv(shifted, weight))
        return join(self.layout, halves, self.edges)


class ReLUConvBatchNorm(Op):
    """ReLU, k x k convolution, batch normalization."""

    kernel_size: int = 3

    @nn.compact
    def __call__(self, x: Array, weight: Float[Array, "edge"] | None = None) -> Array:
        """Convolved images, weighted by edge; without weights, one copy per edge."""
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
        stride: stride of the depthwise kernel in both directions.
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
        stride, padding, dilation = self.stride, self.dilation * (size // 2), self.dilation
        if edges * inputs <= layout.few_channels:
            # Nothing is between the two convolutions, so they are one convolution with the product
            # of their kernels.
            product = jnp.swapaxes(depthwise, 3, 4) * pointwise
            kernel = side_by_side(product)
        else:
            x = layout.conv(
                x if self.grouped else spread(layout, x, jnp.ones_like(weight)),
                side_by_side(depthwise),
                stride=stride,
                padding=padding,
                dilation=dilation,
                groups=edges * inputs,
            )
            kernel, stride, padding, dilation, groups = side_by_side(pointwise), 1, 0, 1, edges
        return self.conv_batch_norm(
            x,
            kernel,
            weight,
            features=self.features,
            stride=stride,
            padding=padding,
            groups=groups,
            dilation=dilation,
        )


class SeparableConv(Op):
    """ReLU, depthwise and pointwise convolution, batch normalization, `repeats` times.

    Only the first repetition has the stride. It also applies the weights, so the later activation
    patterns of a pruned edge are zeros.
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
            else:  # each edge reads its own channels
                shape = [1] * x.ndim
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


class FlaxOp(Op):
    """An operator made of an ordinary Flax module for NHWC images; see `flax_op`.

    Args:
        make: makes the module of one edge.
    """

    make: Callable[..., nn.Module] = nn.Module

    @nn.compact
    def __call__(self, x: Array, weight: Float[Array, "edge"]) -> Array:
        """The module's images, weighted by edge; a pruned edge is not computed."""
        layout, images = self.layout, self.layout.to_nhwc(x)
        if self.is_mutable_collection(DEVIATIONS) and not self.is_initializing():
            raise InputError(
                f"operator {self.make.__name__} does not expose the variances that its batch "
                "normalizations divide by: leave out the metric zen"
            )
        options: dict[str, Any] = {"features": self.features, "stride": self.stride}
        if hasattr(layout, "train"):  # a trainable network: one edge, with running statistics
            if "train" in inspect.signature(self.make).parameters:
                options["train"] = layout.train
            elif layout.train and "batch_stats" in self.variables:
                raise InputError(
                    f"operator {self.make.__name__} has running statistics but no field train: "
                    "give it one that says whether to update them"
                )
            module = self.make(**options, name=OWN_PARAMETERS)
            return cast(Array, module(images))
        module = self.make(**options, parent=None)

        def init(key: Array) -> PyTree:
            keys = jax.random.split(key, weight.size)
            return jax.vmap(lambda key: module.init(key, images)["params"])(keys)

        def apply(params: PyTree, images: Array) -> Array:
            variables = {"params": params}
            return cast(Array, module.apply(variables, images, mutable=["batch_stats"])[0])

        # Not `self.param`, which would compare shapes with those of another initialization.
        stacked: PyTree
        if self.has_variable("params", OWN_PARAMETERS):
            stacked = self.get_variable("params", OWN_PARAMETERS)
        else:
            stacked = self.param(OWN_PARAMETERS, init)
        outputs = []
        for i in range(weight.size):
            params = jax.tree.map(lambda leaf, i=i: leaf[i], stacked)
            shape = jax.eval_shape(apply, params, images)
            zeros = partial(jnp.zeros, shape.shape, shape.dtype)
            kept = weight[i] > 0
            y = lax.cond(kept, apply, lambda *_, zeros=zeros: zeros(), params, images)
            outputs.append(weight[i] * y)
            self._sow_patterns(partial(apply, params), images, kept)
        return layout.from_nhwc(jnp.concatenate(outputs, -1))

    def _sow_patterns(
        self, f: Callable[[Array], Array], images: Array, kept: Bool[Array, ""]
    ) -> None:
        mutable = [self.is_mutable_collection(name) for name in (PATTERNS, READERS)]
        if self.is_initializing() or not any(mutable):
            return
        run = executed_patterns(f, required=False, smooth="ignore")
        patterns, executed = run(images)
        present = executed & kept
        for collection, value in ((PATTERNS, patterns & present[None]), (READERS, present)):
            if self.is_mutable_collection(collection):
                self.sow(collection, "relu", value)


def flax_op(make: Callable[..., nn.Module]) -> Callable[..., Op]:
    """Turn an ordinary Flax module into an operator for `CellSpace`.

    The module is written for one edge and NHWC images. Subclasses of `Op` that use the layers of
    this library compute all edges of a node at once, in any memory layout.

    Args:
        make: a Flax module class, or a function, called with `features` (channels of the result)
            and `stride` (1, or 2 to halve the images). Its normalization must use the statistics of
            the batch; in a trainable network an optional field `train` says when.

    Returns:
        An entry for `CellSpace.operators`.

    Example:
        >>> class Blur(nn.Module):
        ...     features: int
        ...     stride: int
        ...
        ...     @nn.compact
        ...     def __call__(self, x):
        ...         x = nn.avg_pool(x, (3, 3), (self.stride, self.stride), "SAME")
        ...         return nn.Conv(self.features, (1, 1))(x)
        >>> from tenas_jax.networks.layouts import NHWC
        >>> op = flax_op(Blur)(features=4, layout=NHWC, initializer="pytorch", edges=2, stride=2)
        >>> images, weights = jnp.ones((1, 8, 8, 3)), jnp.ones(2)
        >>> op.init_with_output(jax.random.key(0), images, weights)[0].shape
        (1, 4, 4, 8)
    """
    return partial(FlaxOp, make=make)


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


def operators(*names: str) -> tuple[tuple[str, Callable[..., Op]], ...]:
    """Operators of this library by name, for `CellSpace`.

    Args:
        *names: keys of `OPS`.

    Example:
        >>> operators("none")[0][1].__name__
        'Zero'
    """
    return tuple((name, OPS[name]) for name in names)

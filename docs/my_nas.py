"""A custom search space, operator and metric."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp

from tenas_jax import ChoiceSpace, Draw, Metric, flax_op, mixed
from tenas_jax.spaces import NAS_BENCH_201


class Block(nn.Module):
    """A residual block that halves the image size."""

    features: int
    kernel: int
    width: int = 1

    @nn.compact
    def __call__(self, x):
        """Return images of half the size."""
        y = nn.Conv(self.width * self.features, (1, 1), use_bias=False)(x)
        y = nn.relu(nn.BatchNorm(use_running_average=False)(y))
        y = nn.Conv(self.features, (self.kernel, self.kernel), strides=2, use_bias=False)(y)
        y = nn.BatchNorm(use_running_average=False)(y)
        return y + nn.Conv(self.features, (1, 1), strides=2, use_bias=False)(x)


OPTIONS = {f"conv{kernel}_w{width}": (kernel, width) for kernel in (3, 5) for width in (1, 2)}


class Net(nn.Module):
    """A network of three searchable blocks."""

    num_classes: int
    channels: int = 8

    @nn.compact
    def __call__(self, images, mask):
        """Return logits; mask[i] says which options of choice i are kept."""
        x = nn.Conv(self.channels, (3, 3), strides=2, use_bias=False)(images)
        for i in range(3):
            features = self.channels * 2**i
            x = mixed(mask[i], [Block(features, *option) for option in OPTIONS.values()], x)
            x = nn.relu(x)
            self.sow("features", "cells", x)
        return nn.Dense(self.num_classes)(x.mean((1, 2)))


SPACE = ChoiceSpace("my-net", {f"block_{i}": tuple(OPTIONS) for i in range(3)}, Net)


class Dilated(nn.Module):
    """An operator for cell spaces: ReLU, dilated 3 x 3 convolution, batch normalization."""

    features: int
    stride: int
    train: bool = True

    @nn.compact
    def __call__(self, x):
        """Return the convolved images."""
        strides = {"strides": self.stride} if self.stride > 1 else {"kernel_dilation": 2}
        x = nn.Conv(self.features, (3, 3), use_bias=False, **strides)(nn.relu(x))
        return nn.BatchNorm(use_running_average=not self.train)(x)


CELLS = dataclasses.replace(
    NAS_BENCH_201,
    name="nas-bench-201-dilated",
    operators=(*NAS_BENCH_201.operators, ("dil_conv_3x3", flax_op(Dilated))),
)


def progressivity(draw: Draw):
    """The least gain in expressivity from cell to cell (AZ-NAS, Lee and Ham, CVPR 2024)."""
    expressivity = []
    for x in draw.features():
        pixels = x.reshape(-1, x.shape[-1])
        pixels -= pixels.mean(0, keepdims=True)
        eigenvalues = jnp.linalg.eigvalsh(pixels.T @ pixels)
        share = jnp.maximum(eigenvalues / eigenvalues.sum(), 1e-12)
        expressivity.append(-(share * jnp.log(share)).sum())
    return jnp.diff(jnp.stack(expressivity)).min()


PROGRESSIVITY = Metric("progressivity", +1, progressivity, source="Lee and Ham 2024")

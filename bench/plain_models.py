"""Ordinary networks: plain Flax, and the same in PyTorch.

Both are functions of the same parameters, by path in the Flax tree. Flax uses HWIO kernels and NHWC
images; `torch_logits` uses PyTorch's orders.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import numpy as np
from jaxtyping import Array

if TYPE_CHECKING:
    from torch import Tensor

CLASSES = 10
EPSILON = 1e-5
Conv = partial(nn.Conv, use_bias=False)
Norm = partial(nn.BatchNorm, use_running_average=False, epsilon=EPSILON)


class BasicBlock(nn.Module):
    """Two convolutions and a shortcut; normalization comes after each, or before it if wide.

    Args:
        features: channels.
        stride: of the first convolution.
        preactivated: whether normalization and ReLU come before the convolutions.
    """

    features: int
    stride: int
    preactivated: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel, strides, same = (3, 3), (self.stride, self.stride), ((1, 1), (1, 1))
        changed = self.stride > 1 or x.shape[-1] != self.features
        shortcut = x
        if self.preactivated:
            x = nn.relu(Norm(name="norm1")(x))
            shortcut = x if changed else shortcut
        if changed:
            shortcut = Conv(self.features, (1, 1), strides, name="shortcut")(shortcut)
        x = Conv(self.features, kernel, strides, same, name="conv1")(x)
        if self.preactivated:
            x = nn.relu(Norm(name="norm2")(x))
            return shortcut + Conv(self.features, kernel, padding=same, name="conv2")(x)
        x = nn.relu(Norm(name="norm1")(x))
        x = Norm(name="norm2")(Conv(self.features, kernel, padding=same, name="conv2")(x))
        return nn.relu(x + shortcut)


class ResNet(nn.Module):
    """ResNet with CIFAR's stem: ResNet-18 (He et al. 2016) or a WideResNet.

    Args:
        stem: channels of the first convolution.
        features: channels of each stage.
        blocks: in each stage.
        preactivated: see `BasicBlock`.
    """

    stem: int
    features: tuple[int, ...]
    blocks: int
    preactivated: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = Conv(self.stem, (3, 3), padding=((1, 1), (1, 1)), name="stem")(x)
        x = x if self.preactivated else nn.relu(Norm(name="norm")(x))
        for stage, features in enumerate(self.features):
            for block in range(self.blocks):
                stride = 2 if stage and not block else 1
                name = f"block{stage}{block}"
                x = BasicBlock(features, stride, self.preactivated, name=name)(x)
        x = nn.relu(Norm(name="norm")(x)) if self.preactivated else x
        logits: Array = nn.Dense(CLASSES, name="head")(x.mean((1, 2)))
        return logits


class ViT(nn.Module):
    """A small vision transformer, pre-norm, without a class token.

    Args:
        width: of a token.
        depth: blocks.
        heads: of attention.
        patch: pixels along the side of a patch.
    """

    width: int
    depth: int
    heads: int
    patch: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        size = (self.patch, self.patch)
        x = nn.Conv(self.width, size, size, "VALID", name="embed")(x)
        x = x.reshape(len(x), -1, self.width)
        norm = partial(nn.LayerNorm, epsilon=EPSILON)
        for i in range(self.depth):
            qkv = nn.Dense(3 * self.width, name=f"qkv{i}")(norm(name=f"norm{i}a")(x))
            heads = qkv.reshape(*qkv.shape[:2], 3, self.heads, -1)
            mixed = nn.dot_product_attention(*heads.transpose(2, 0, 1, 3, 4))
            x = x + nn.Dense(self.width, name=f"out{i}")(mixed.reshape(x.shape))
            hidden = nn.Dense(4 * self.width, name=f"up{i}")(norm(name=f"norm{i}b")(x))
            x = x + nn.Dense(self.width, name=f"down{i}")(nn.gelu(hidden))
        logits: Array = nn.Dense(CLASSES, name="head")(norm(name="norm")(x).mean(1))
        return logits


class MLP(nn.Module):
    """Dense layers with ReLU.

    Args:
        width: of a hidden layer.
        depth: hidden layers.
    """

    width: int
    depth: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = x.reshape(len(x), -1)
        for i in range(self.depth):
            x = nn.relu(nn.Dense(self.width, name=f"dense{i}")(x))
        logits: Array = nn.Dense(CLASSES, name="head")(x)
        return logits


MODELS: dict[str, nn.Module] = {
    "ResNet-18, width 16": ResNet(16, (16, 32, 64, 128), 2),
    "ResNet-18": ResNet(64, (64, 128, 256, 512), 2),
    "WRN-10-2": ResNet(16, (32, 64, 128), 1, preactivated=True),
    "ViT": ViT(64, 4, 4, 4),
    "MLP": MLP(256, 3),
}


def torch_parameters(params: Mapping[str, np.ndarray]) -> "dict[str, Tensor]":
    """Parameters of Flax in PyTorch's order of dimensions.

    Args:
        params: by path, joined by `/`.

    Returns:
        Tensors by the same paths.
    """
    import torch

    orders = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}
    return {
        path: torch.from_numpy(np.ascontiguousarray(value.transpose(orders[value.ndim])))
        for path, value in params.items()
    }


def torch_logits(model: nn.Module) -> "Callable[[Mapping[str, Tensor], Tensor], Tensor]":
    """The forward pass in PyTorch.

    Args:
        model: one of `MODELS`.

    Returns:
        A function of the parameters and images [n, channels, h, w] that returns the logits.
    """
    return partial(_TORCH[type(model)], model)


def _torch_block(block: BasicBlock, p: "Mapping[str, Tensor]", name: str, x: "Tensor") -> "Tensor":
    from torch.nn.functional import conv2d, relu

    def norm(x: "Tensor", layer: str) -> "Tensor":
        return _torch_norm(p, f"{name}/{layer}", x)

    shortcut, changed = x, f"{name}/shortcut/kernel" in p
    if block.preactivated:
        x = relu(norm(x, "norm1"))
        shortcut = x if changed else shortcut
    if changed:
        shortcut = conv2d(shortcut, p[f"{name}/shortcut/kernel"], stride=block.stride)
    x = conv2d(x, p[f"{name}/conv1/kernel"], stride=block.stride, padding=1)
    if block.preactivated:
        x = relu(norm(x, "norm2"))
        return shortcut + conv2d(x, p[f"{name}/conv2/kernel"], padding=1)
    x = conv2d(relu(norm(x, "norm1")), p[f"{name}/conv2/kernel"], padding=1)
    return relu(norm(x, "norm2") + shortcut)


def _torch_norm(p: "Mapping[str, Tensor]", name: str, x: "Tensor") -> "Tensor":
    from torch.nn.functional import batch_norm

    scale, bias = p[f"{name}/scale"], p[f"{name}/bias"]
    return batch_norm(x, None, None, scale, bias, training=True, eps=EPSILON)


def _torch_resnet(model: ResNet, p: "Mapping[str, Tensor]", x: "Tensor") -> "Tensor":
    from torch.nn.functional import conv2d, linear, relu

    x = conv2d(x, p["stem/kernel"], padding=1)
    x = x if model.preactivated else relu(_torch_norm(p, "norm", x))
    for stage, features in enumerate(model.features):
        for i in range(model.blocks):
            block = BasicBlock(features, 2 if stage and not i else 1, model.preactivated)
            x = _torch_block(block, p, f"block{stage}{i}", x)
    x = relu(_torch_norm(p, "norm", x)) if model.preactivated else x
    return linear(x.mean((2, 3)), p["head/kernel"], p["head/bias"])


def _torch_vit(model: ViT, p: "Mapping[str, Tensor]", x: "Tensor") -> "Tensor":
    from torch.nn.functional import conv2d, gelu, layer_norm, linear, scaled_dot_product_attention

    def dense(x: "Tensor", layer: str) -> "Tensor":
        return linear(x, p[f"{layer}/kernel"], p[f"{layer}/bias"])

    def norm(x: "Tensor", layer: str) -> "Tensor":
        return layer_norm(x, (model.width,), p[f"{layer}/scale"], p[f"{layer}/bias"], EPSILON)

    x = conv2d(x, p["embed/kernel"], p["embed/bias"], stride=model.patch)
    x = x.flatten(2).transpose(1, 2)
    for i in range(model.depth):
        qkv = dense(norm(x, f"norm{i}a"), f"qkv{i}")
        heads = qkv.unflatten(2, (3, model.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        x = x + dense(mixed, f"out{i}")
        hidden = gelu(dense(norm(x, f"norm{i}b"), f"up{i}"), approximate="tanh")
        x = x + dense(hidden, f"down{i}")
    return dense(norm(x, "norm").mean(1), "head")


def _torch_mlp(model: MLP, p: "Mapping[str, Tensor]", x: "Tensor") -> "Tensor":
    from torch.nn.functional import linear, relu

    x = x.permute(0, 2, 3, 1).flatten(1)
    for i in range(model.depth):
        x = relu(linear(x, p[f"dense{i}/kernel"], p[f"dense{i}/bias"]))
    return linear(x, p["head/kernel"], p["head/bias"])


_TORCH: dict[type, Callable[..., Any]] = {ResNet: _torch_resnet, ViT: _torch_vit, MLP: _torch_mlp}

"""A straightforward NAS-Bench-201 supernet: one Flax module per edge and operator.

It is a baseline for `tenas_jax.networks.supernet` and takes its weights; NHWC, `nn.Conv`,
`nn.BatchNorm` with the statistics of the batch.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from tenas_jax.networks.layouts import EPSILON
from tenas_jax.networks.supernet import edge_weights
from tenas_jax.spaces import NAS_BENCH_201

CHANNELS, STAGES = 3, 3
PADDED = ((1, 1), (1, 1))
Norm = partial(nn.BatchNorm, use_running_average=False, epsilon=EPSILON)


class ReLUConvNorm(nn.Module):
    """ReLU, convolution, batch normalization."""

    features: int
    size: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: Array) -> Array:
        strides, padding = (self.stride, self.stride), PADDED if self.size == 3 else "VALID"
        kernel = (self.size, self.size)
        conv = nn.Conv(
            self.features,
            kernel,
            strides,
            padding,
            use_bias=False,
            precision="highest",
            name="conv",
        )
        normalized: Array = Norm(name="norm")(conv(nn.relu(x)))
        return normalized


class Cell(nn.Module):
    """Four nodes with all operators on all edges between them."""

    features: int

    @nn.compact
    def __call__(self, x: Array, weights: Float[Array, "edge op"]) -> Array:
        nodes = [x]
        for target in range(1, NAS_BENCH_201.num_nodes):
            total = jnp.zeros_like(x)
            for edge in NAS_BENCH_201.incoming(target):
                source = nodes[NAS_BENCH_201.edges[edge][0]]
                outputs = {
                    "skip_connect": source,
                    "nor_conv_1x1": ReLUConvNorm(self.features, 1, name=f"{edge}_1x1")(source),
                    "nor_conv_3x3": ReLUConvNorm(self.features, 3, name=f"{edge}_3x3")(source),
                    "avg_pool_3x3": nn.avg_pool(
                        source, (3, 3), padding=PADDED, count_include_pad=False
                    ),
                }
                for name, output in outputs.items():
                    total = total + weights[edge, NAS_BENCH_201.ops.index(name)] * output
            nodes.append(total)
        return nodes[-1]


class Supernet(nn.Module):
    """Stem, three stages with residual blocks between them, classifier."""

    num_classes: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w 3"], mask: Bool[Array, "cell edge op"]
    ) -> Float[Array, "n classes"]:
        weights = edge_weights(mask[0], x.dtype)
        stem = nn.Conv(
            CHANNELS, (3, 3), padding=PADDED, use_bias=False, precision="highest", name="stem"
        )
        x = Norm(name="stem_norm")(stem(x))
        for stage in range(STAGES):
            features = CHANNELS * 2**stage
            if stage:
                y = ReLUConvNorm(features, 3, 2, name=f"block_{stage}_a")(x)
                y = ReLUConvNorm(features, 3, name=f"block_{stage}_b")(y)
                shortcut = nn.Conv(
                    features, (1, 1), use_bias=False, precision="highest", name=f"shortcut_{stage}"
                )
                x = shortcut(nn.avg_pool(x, (2, 2), (2, 2))) + y
            x = Cell(features, name=f"cell_{stage}")(x, weights)
        x = nn.relu(Norm(name="norm")(x)).mean((1, 2))
        classifier = nn.Dense(self.num_classes, precision="highest", name="classifier")
        logits: Array = classifier(x)
        return logits


def from_supernet(params: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the weights of our supernet for this one.

    Args:
        params: parameters of the supernet of `NAS_BENCH_201`.

    Returns:
        Parameters of `Supernet`.
    """

    def pick(layer: Mapping[str, np.ndarray], edge: int = 0) -> dict[str, Any]:
        return {
            "conv": {"kernel": layer["kernel"][edge]},
            "norm": {name: layer[name][edge] for name in ("scale", "bias")},
        }

    stem, norm = pick(params["stem"]), params["norm"]
    plain: dict[str, Any] = {
        "stem": stem["conv"],
        "stem_norm": stem["norm"],
        "norm": {name: norm[name][0] for name in ("scale", "bias")},
        "classifier": params["classifier"],
    }
    for stage in range(STAGES):
        if stage:
            block = params[f"block_{stage}"]
            for part in "ab":
                plain[f"block_{stage}_{part}"] = pick(block[f"conv_{part}"]["conv"])
            plain[f"shortcut_{stage}"] = {"kernel": block["shortcut"]["kernel"][0]}
        cell = params[f"cell_{stage}_0"]
        plain[f"cell_{stage}"] = {
            f"{edge}_{size}": pick(cell[f"node_{source}_nor_conv_{size}"]["conv"], place)
            for source in range(NAS_BENCH_201.num_nodes - 1)
            for place, edge in enumerate(NAS_BENCH_201.outgoing(source))
            for size in ("1x1", "3x3")
        }
    return plain

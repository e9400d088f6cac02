"""What networks of genotypes share, to be trained and used.

They are made of the same operators as supernets (`tenas_jax.networks.ops`), of which each edge has
one, on a layout whose batch normalization keeps running statistics. The macro networks are with
their spaces.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from tenas_jax.architectures.cell_space import NONE, CellSpace
from tenas_jax.architectures.space import Mask
from tenas_jax.errors import InputError
from tenas_jax.networks.layouts import EPSILON, ChannelsLast
from tenas_jax.networks.ops import Zero

Stem = Literal["cifar", "imagenet"]
Edge = tuple[int, int, str]  # source node, target node, operator
Logits = Float[Array, "n classes"]

INITIALIZER = "pytorch"  # the default of the original projects
MOMENTUM = 0.9  # of the running statistics


@dataclass(frozen=True)
class RunningStatistics(ChannelsLast):
    """NHWC for training: batch normalization keeps running statistics, and uses them afterwards.

    The module that normalizes holds them in the collection `batch_stats`. Parameters and statistics
    have the data type they were made with; the rest is computed in that of the images.

    Args:
        train: whether to normalize by the statistics of the batch, and update the running ones.
    """

    few_channels: int = 0  # two convolutions are the smaller work, and what others count
    precision: lax.Precision | None = None  # what the accelerator is fastest with
    train: bool = False

    def conv(
        self, x: Array, kernel: Array, *, stride: int, padding: int, dilation: int, groups: int
    ) -> Array:
        return super().conv(
            x,
            kernel.astype(x.dtype),
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
        )

    def batch_norm(self, x: Array, scale: Array, bias: Array) -> Array:
        # Flax makes it a part of the module that is being called.
        normalize = nn.BatchNorm(
            use_running_average=not self.train,
            momentum=MOMENTUM,
            epsilon=EPSILON,
            dtype=scale.dtype,
            use_scale=False,
            use_bias=False,
            name="statistics",
        )
        y: Array = normalize(x) * scale[None, None, None] + bias[None, None, None]
        return y.astype(x.dtype)


def drop_path(
    x: Float[Array, "n h w c"], rate: Float[Array, ""] | float, key: Array
) -> Float[Array, "n h w c"]:
    r"""Leave out the images of some samples (Larsson et al., 2017).

    .. math:: y_i = \frac{b_i}{1 - p} x_i, \quad b_i \sim \mathrm{Bernoulli}(1 - p)

    Args:
        x: images.
        rate: the probability p to leave one out, below 1.
        key: random key.

    Returns:
        Images with the same expectation.

    Example:
        >>> y = drop_path(jnp.ones((8, 1, 1, 1)), 0.5, jax.random.key(0))
        >>> sorted(set(y.ravel().tolist()))
        [0.0, 2.0]
    """
    kept = jax.random.bernoulli(key, 1.0 - rate, (x.shape[0], 1, 1, 1))
    return x * (kept / (1.0 - rate)).astype(x.dtype)


def operator_name(source: int, target: int, op: str) -> str:
    """The name of an operator's module in its cell.

    Example:
        >>> operator_name(0, 2, "skip_connect")
        'skip_connect_0_2'
    """
    return f"{op}_{source}_{target}"


class DiscreteCell(nn.Module):
    """A cell with one operator on each edge of a genotype.

    Args:
        space: the search space.
        edges: the edges, by ascending target.
        features: channels of each node.
        layout: memory layout of the images.
        stride: of the edges that leave the cell's inputs.
    """

    space: CellSpace
    edges: tuple[Edge, ...]
    features: int
    layout: RunningStatistics
    stride: int = 1

    @nn.compact
    def __call__(
        self, inputs: Sequence[Array], drop_path_rate: Float[Array, ""] | float | None
    ) -> list[Array]:
        """The values of all nodes, the inputs first."""
        nodes, operators = dict(enumerate(inputs)), {NONE: Zero, **dict(self.space.operators)}
        for source, target, op in self.edges:
            stride = self.stride if source < len(inputs) else 1
            operator = operators[op](
                self.features,
                self.layout,
                self.space.initializer,
                1,
                stride,
                name=operator_name(source, target, op),
            )
            output = operator(nodes[source], jnp.ones(1, nodes[source].dtype))
            if drop_path_rate is not None and (op != "skip_connect" or stride > 1):
                output = drop_path(output, drop_path_rate, self.make_rng("drop_path"))
            nodes[target] = nodes[target] + output if target in nodes else output
        return [nodes[node] for node in sorted(nodes)]


class Network(nn.Module):
    """What the networks of all spaces of cells have in common.

    Args:
        space: the search space.
        cells_edges: the edges of each type of cell.
        num_classes: outputs of the classifier.
        channels: of the nodes of the first cell.
        cells: number of cells, in NAS-Bench-201 of each stage.
        stem: what comes before the first cell.
        auxiliary: whether there is an auxiliary head.
        dtype: data type of the images inside; parameters and logits are float32.
    """

    space: CellSpace
    cells_edges: tuple[tuple[Edge, ...], ...]
    num_classes: int
    channels: int
    cells: int
    stem: Stem
    auxiliary: bool
    dtype: DTypeLike

    def prepare(self, images: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        """The images in the data type of the computation, if they can be halved often enough."""
        multiple = 32 if self.stem == "imagenet" else 4
        if any(side % multiple for side in images.shape[1:3]):
            height, width = images.shape[1:3]
            raise InputError(f"images of {height} x {width}: sides must be multiples of {multiple}")
        # Parameters get the data type of the images that the network is initialized with.
        return images.astype(jnp.float32 if self.is_initializing() else self.dtype)

    def __call__(
        self,
        images: Float[Array, "n h w c"],
        *,
        train: bool = False,
        drop_path_rate: Float[Array, ""] | float | None = None,
    ) -> tuple[Logits, Logits | None]:
        """Logits of the images, and in training those of the auxiliary head where there is one.

        Args:
            images: normalized images.
            train: whether to normalize by the statistics of the batch, and update the running
                ones, in the collection `batch_stats`.
            drop_path_rate: in training, the probability to leave out an operator for an image,
                which needs the random key `drop_path`; None: all operators take part.

        Raises:
            InputError: the images' sides are not multiples of 4, with the stem for ImageNet of 32.
        """
        raise NotImplementedError


def genotype_edges(space: CellSpace, mask: Mask) -> tuple[tuple[Edge, ...], ...]:
    """The edges of each type of cell of a genotype.

    Args:
        space: the search space.
        mask: operators kept, one on each edge of the genotype.
    """
    return tuple(
        tuple((*space.edges[edge], space.ops[op]) for edge, op in np.argwhere(mask_of_cell))
        for mask_of_cell in mask
    )

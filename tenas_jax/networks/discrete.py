"""Trainable networks of genotypes: the parts shared by all spaces.

They use the same operators as supernets (`tenas_jax.networks.ops`), one per edge, on a layout whose
batch normalization has running statistics. The macro networks are in the files of their spaces.
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
    """NHWC for training: batch normalization updates running statistics, for use in inference.

    The normalizing module has them in the collection `batch_stats`. Parameters and statistics keep
    the data type of their initialization; everything else is computed in that of the images.

    Args:
        train: whether to normalize by the statistics of the batch, and update the running ones.
    """

    few_channels: int = 0  # two convolutions need fewer FLOPs, and others count them so
    precision: lax.Precision | None = None  # the accelerator's fastest
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
        # Flax attaches it to the module that is being called.
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
    r"""Drop path: zero the images of random samples (Larsson et al., 2017).

    .. math:: y_i = \frac{b_i}{1 - p} x_i, \quad b_i \sim \mathrm{Bernoulli}(1 - p)

    Args:
        x: images.
        rate: the probability p of dropping a sample, below 1.
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
    """The base of the networks of all cell spaces.

    Args:
        space: the search space.
        cells_edges: the edges of each cell type.
        num_classes: outputs of the classifier.
        channels: channels of the nodes of the first cell.
        cells: number of cells, in NAS-Bench-201 per stage.
        stem: the layers before the first cell.
        auxiliary: whether there is an auxiliary head.
        dtype: data type of the activations; parameters and logits are float32.
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
        """Check the size of the images, and convert them to the data type of the computation."""
        multiple = 32 if self.stem == "imagenet" else 4
        if any(side % multiple for side in images.shape[1:3]):
            height, width = images.shape[1:3]
            raise InputError(f"images of {height} x {width}: sides must be multiples of {multiple}")
        # Parameters get the data type of the images used for initialization.
        return images.astype(jnp.float32 if self.is_initializing() else self.dtype)

    def __call__(
        self,
        images: Float[Array, "n h w c"],
        *,
        train: bool = False,
        drop_path_rate: Float[Array, ""] | float | None = None,
    ) -> tuple[Logits, Logits | None]:
        """Logits of the images; in training also those of the auxiliary head, if it has one.

        Args:
            images: normalized images.
            train: whether to normalize by the statistics of the batch, and update the running
                ones, in the collection `batch_stats`.
            drop_path_rate: in training, the probability of dropping an operator for an image,
                which needs the random key `drop_path`; None: no dropping.

        Raises:
            InputError: the images' sides are not multiples of 4, with the stem for ImageNet of 32.
        """
        raise NotImplementedError


def genotype_edges(space: CellSpace, mask: Mask) -> tuple[tuple[Edge, ...], ...]:
    """The edges of each cell type of a genotype.

    Args:
        space: the search space.
        mask: operators kept, one on each edge of the genotype.
    """
    return tuple(
        tuple((*space.edges[edge], space.ops[op]) for edge, op in np.argwhere(mask_of_cell))
        for mask_of_cell in mask
    )

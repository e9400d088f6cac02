"""Discrete networks: the network of a genotype, to be trained and used.

They are made of the supernet's operators (`tenas_jax.ops`), of which each edge has one, on a layout
whose batch normalization keeps running statistics. The macro networks are those of NAS-Bench-201
(Dong and Yang, 2020) and of DARTS (Liu et al., 2019), for CIFAR and for ImageNet.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from tenas_jax.errors import InputError
from tenas_jax.genotype import from_string, to_string
from tenas_jax.initializers import get_initializer
from tenas_jax.layers import EPSILON, BatchNorm, ChannelsLast, ConvBatchNorm
from tenas_jax.ops import OPS, FactorizedReduction, ReLUConvBatchNorm, relu
from tenas_jax.spaces import DARTS, NAS_BENCH_201, SearchSpace, get_space
from tenas_jax.supernet import ResidualBlock, classifier
from tenas_jax.workdir import read_json

Stem = Literal["cifar", "imagenet"]
Edge = tuple[int, int, str]  # source node, target node, operator
Logits = Float[Array, "n classes"]

INITIALIZER = "pytorch"  # the default that both projects train from
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


class Cell(nn.Module):
    """A cell with one operator on each edge of a genotype.

    Args:
        edges: the edges, by ascending target.
        features: channels of each node.
        layout: memory layout of the images.
        stride: of the edges that leave the cell's inputs.
    """

    edges: tuple[Edge, ...]
    features: int
    layout: RunningStatistics
    stride: int = 1

    @nn.compact
    def __call__(
        self, inputs: Sequence[Array], drop_path_rate: Float[Array, ""] | float | None
    ) -> list[Array]:
        """The values of all nodes, the inputs first."""
        nodes = dict(enumerate(inputs))
        for source, target, op in self.edges:
            stride = self.stride if source < len(inputs) else 1
            operator = OPS[op](
                self.features,
                self.layout,
                INITIALIZER,
                1,
                stride,
                name=operator_name(source, target, op),
            )
            output = operator(nodes[source], jnp.ones(1, nodes[source].dtype))
            if drop_path_rate is not None and (op != "skip_connect" or stride > 1):
                output = drop_path(output, drop_path_rate, self.make_rng("drop_path"))
            nodes[target] = nodes[target] + output if target in nodes else output
        return [nodes[node] for node in sorted(nodes)]


class DARTSCell(nn.Module):
    """A DARTS cell with the preprocessing of its inputs.

    Args:
        edges: the edges, by ascending target.
        features: channels of each node.
        layout: memory layout of the images.
        reduction: whether it halves the images.
        after_reduction: whether its older input has twice the size of the newer one.
    """

    edges: tuple[Edge, ...]
    features: int
    layout: RunningStatistics
    reduction: bool
    after_reduction: bool

    @nn.compact
    def __call__(
        self, older: Array, newer: Array, drop_path_rate: Float[Array, ""] | float | None
    ) -> Array:
        """The intermediate nodes, concatenated."""
        common = (self.features, self.layout, INITIALIZER)
        first: nn.Module
        if self.after_reduction:
            first = FactorizedReduction(*common, name="input_0")
        else:
            first = ReLUConvBatchNorm(*common, kernel_size=1, name="input_0")
        second = ReLUConvBatchNorm(*common, kernel_size=1, name="input_1")
        cell = Cell(
            self.edges, self.features, self.layout, 2 if self.reduction else 1, name="nodes"
        )
        nodes = cell([first(older), second(newer)], drop_path_rate)
        return jnp.concatenate(nodes[DARTS.input_nodes :], self.layout.channel_axis)


class AuxiliaryHead(nn.Module):
    """DARTS's second classifier, which helps to train the cells before it.

    Args:
        num_classes: outputs.
        layout: memory layout of the images.
        stem: its kind of network: for ImageNet the pooling overlaps more, and one batch
            normalization is missing, as in the experiments of DARTS.
    """

    num_classes: int
    layout: RunningStatistics
    stem: Stem

    @nn.compact
    def __call__(self, x: Array) -> Logits:
        """Logits of images of 8 x 8 (CIFAR) or 7 x 7 (ImageNet) pixels."""
        layout, stride = self.layout, 2 if self.stem == "imagenet" else 3
        x = nn.avg_pool(jax.nn.relu(x), (5, 5), (stride, stride))
        x = jax.nn.relu(ConvBatchNorm(layout, INITIALIZER, features=128, name="conv_a")(x))
        initializer = get_initializer(INITIALIZER)
        x = nn.Conv(
            768,
            (2, 2),
            padding="VALID",
            use_bias=False,
            dtype=x.dtype,
            kernel_init=initializer,
            name="conv_b",
        )(x)
        if self.stem == "cifar":
            x = BatchNorm(layout, INITIALIZER, name="norm")(x)
        x = jax.nn.relu(x).reshape(x.shape[0], -1)
        return classifier(self.num_classes, INITIALIZER)(x)


class Network(nn.Module):
    """What the networks of both spaces have in common; made by `build`.

    Args:
        cells_edges: the edges of each type of cell.
        num_classes: outputs of the classifier.
        channels: of the nodes of the first cell.
        cells: number of cells, in NAS-Bench-201 of each stage.
        stem: what comes before the first cell.
        auxiliary: whether there is an auxiliary head.
        dtype: data type of the images inside; parameters and logits are float32.
    """

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


class NASBench201Network(Network):
    """The network of NAS-Bench-201."""

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "n h w c"],
        *,
        train: bool = False,
        drop_path_rate: Float[Array, ""] | float | None = None,
    ) -> tuple[Logits, Logits | None]:
        """Logits of the images."""
        layout, rate = RunningStatistics(train=train), drop_path_rate if train else None
        stem = ConvBatchNorm(
            layout, INITIALIZER, features=self.channels, kernel_size=3, name="stem"
        )
        x = stem(self.prepare(images))
        for stage in range(3):
            features = self.channels * 2**stage
            if stage > 0:
                x = ResidualBlock(features, layout, INITIALIZER, name=f"block_{stage}")(x)
            for i in range(stage * self.cells, (stage + 1) * self.cells):
                cell = Cell(self.cells_edges[0], features, layout, name=f"cell_{i}")
                x = cell([x], rate)[-1]
        x = relu(self, layout, BatchNorm(layout, INITIALIZER, name="norm")(x))
        return classifier(self.num_classes, INITIALIZER)(layout.mean_pixel(x)), None


class DARTSNetwork(Network):
    """The network of DARTS: reduction cells after a third and two thirds of the cells."""

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "n h w c"],
        *,
        train: bool = False,
        drop_path_rate: Float[Array, ""] | float | None = None,
    ) -> tuple[Logits, Logits | None]:
        """Logits of the images, and in training those of the auxiliary head where there is one."""
        layout, rate = RunningStatistics(train=train), drop_path_rate if train else None
        older, newer, after_reduction = self._stem(self.prepare(images), layout)
        features, auxiliary_logits = self.channels, None
        for i in range(self.cells):
            reduction = i in (self.cells // 3, 2 * self.cells // 3)
            features *= 2 if reduction else 1
            cell = DARTSCell(
                self.cells_edges[int(reduction)],
                features,
                layout,
                reduction,
                after_reduction,
                name=f"{DARTS.cell_types[int(reduction)]}_{i}",
            )
            older, newer, after_reduction = newer, cell(older, newer, rate), reduction
            if self.auxiliary and i == 2 * self.cells // 3 and (train or self.is_initializing()):
                head = AuxiliaryHead(self.num_classes, layout, self.stem, name="auxiliary")
                auxiliary_logits = head(newer)
        logits = classifier(self.num_classes, INITIALIZER)(layout.mean_pixel(newer))
        return logits, auxiliary_logits

    def _stem(self, x: Array, layout: RunningStatistics) -> tuple[Array, Array, bool]:
        """The inputs of the first cell, and whether the older has twice the size of the newer."""
        if self.stem == "cifar":
            # DARTS's stem multiplier.
            stem = ConvBatchNorm(
                layout, INITIALIZER, features=3 * self.channels, kernel_size=3, name="stem"
            )
            x = stem(x)
            return x, x, False
        first, second = (
            ConvBatchNorm(
                layout, INITIALIZER, features=features, kernel_size=3, stride=2, name=name
            )
            for features, name in ((self.channels // 2, "stem_a"), (self.channels, "stem_b"))
        )
        third = ReLUConvBatchNorm(self.channels, layout, INITIALIZER, stride=2, name="stem_c")
        older = second(jax.nn.relu(first(x)))
        return older, third(older), True


NETWORKS: dict[str, type[Network]] = {
    NAS_BENCH_201.name: NASBench201Network,
    DARTS.name: DARTSNetwork,
}
# Channels and cells of the published networks, by space and stem.
PUBLISHED_SIZES: dict[tuple[str, Stem], tuple[int, int]] = {
    (NAS_BENCH_201.name, "cifar"): (16, 5),
    (DARTS.name, "cifar"): (36, 20),
    (DARTS.name, "imagenet"): (48, 14),
}


def build(
    space: SearchSpace,
    mask: Bool[np.ndarray, "cell edge op"],
    *,
    num_classes: int,
    channels: int | None = None,
    cells: int | None = None,
    stem: Stem = "cifar",
    auxiliary: bool = False,
    dtype: DTypeLike = jnp.float32,
) -> Network:
    """The network of a genotype, uninitialized.

    Args:
        space: the search space.
        mask: operators kept, one on each edge of the genotype, of shape `space.shape`.
        num_classes: outputs of the classifier.
        channels: of the nodes of the first cell; None: as published.
        cells: number of cells, in NAS-Bench-201 of each of its three stages; None: as published.
        stem: `cifar`, or for DARTS `imagenet`, whose stem makes the images 8 times as small.
        auxiliary: whether to add DARTS's auxiliary head, for training; its images have 32 x 32
            pixels (CIFAR) or 224 x 224 (ImageNet).
        dtype: data type of the images inside; parameters and logits are float32.

    Returns:
        A module that is called as `Network.__call__`.

    Raises:
        InputError: the mask is not a genotype, or there is no such network.

    Example:
        >>> from tenas_jax.genotype import from_string
        >>> text = "|none~0|+|none~0|none~1|+|nor_conv_3x3~0|none~1|none~2|"
        >>> mask = from_string(NAS_BENCH_201, text)
        >>> module = build(NAS_BENCH_201, mask, num_classes=10, channels=2, cells=1)
        >>> images = jnp.zeros((2, 32, 32, 3))
        >>> logits_and_variables = lambda key: module.init_with_output(key, images)
        >>> (logits, _), variables = jax.eval_shape(logits_and_variables, jax.random.key(0))
        >>> sorted(variables), logits.shape
        (['batch_stats', 'params'], (2, 10))
    """
    to_string(space, mask)  # raises if the mask is not a genotype
    if space.name not in NETWORKS:
        raise InputError(f"{space.name} has no network: choose from {', '.join(NETWORKS)}")
    if (space.name, stem) not in PUBLISHED_SIZES:
        stems = ", ".join(stem for name, stem in PUBLISHED_SIZES if name == space.name)
        raise InputError(f"{space.name} has no stem {stem!r}: choose from {stems}")
    if auxiliary and space.name != DARTS.name:
        raise InputError(f"{space.name} has no auxiliary head: use auxiliary=False")
    published_channels, published_cells = PUBLISHED_SIZES[space.name, stem]
    channels = published_channels if channels is None else channels
    cells = published_cells if cells is None else cells
    fewest_channels = 2 if stem == "imagenet" else 1  # the first convolution has half of them
    for name, value, minimum in (
        ("num_classes", num_classes, 1),
        ("channels", channels, fewest_channels),
        ("cells", cells, 1),
    ):
        if value < minimum:
            raise InputError(f"{name} must be at least {minimum}, not {value}")
    edges = tuple(
        tuple((*space.edges[edge], space.ops[op]) for edge, op in np.argwhere(mask_of_cell))
        for mask_of_cell in mask
    )
    return NETWORKS[space.name](edges, num_classes, channels, cells, stem, auxiliary, dtype)


def load_genotype(text: str) -> tuple[SearchSpace, Bool[np.ndarray, "cell edge op"]]:
    """The genotype that a user names.

    Args:
        text: a genotype in the notation of either space, or the path of the work directory of a
            finished search.

    Returns:
        The search space, and the operators kept, of shape `space.shape`.

    Raises:
        InputError: it is no genotype, or the directory holds no result.

    Example:
        >>> space, mask = load_genotype("|none~0|+|none~0|none~1|+|none~0|none~1|none~2|")
        >>> space.name, mask.shape
        ('nas-bench-201', (1, 6, 5))
    """
    if text.lstrip().startswith("Genotype("):
        return DARTS, from_string(DARTS, text)
    if text.lstrip().startswith(("|", "Structure(")):
        return NAS_BENCH_201, from_string(NAS_BENCH_201, text)
    path = Path(text) / "result.json"
    try:
        is_folder = path.parent.is_dir()
    except OSError:  # a name that is too long
        is_folder = False
    if not is_folder:
        raise InputError(
            f"{text!r} is no genotype and no folder: write |op~0|+..., Genotype(...), "
            "or name the work directory of a search"
        )
    if not path.exists():
        raise InputError(
            f"{text} holds no result.json: name the work directory of a finished search"
        )
    result = read_json(path)
    if not isinstance(result, dict) or not {"space", "genotype"} <= result.keys():
        raise InputError(f"{path} names no space and genotype: name the result of a search")
    space = get_space(result["space"])
    return space, from_string(space, result["genotype"])

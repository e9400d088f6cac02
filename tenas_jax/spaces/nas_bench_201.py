"""NAS-Bench-201 (Dong and Yang, 2020, arXiv 2001.00326): a cell with six edges, five operators."""

from collections.abc import Callable
from typing import ClassVar

import flax.linen as nn
from jaxtyping import Array, Bool, Float

from tenas_jax.architectures.cell_space import CellSpace
from tenas_jax.architectures.genotype import Cells, EdgeList, Nodes
from tenas_jax.architectures.literals import read_numbers
from tenas_jax.architectures.space import ProxySize, require_mask
from tenas_jax.errors import InputError
from tenas_jax.networks.discrete import (
    INITIALIZER,
    DiscreteCell,
    Logits,
    Network,
    RunningStatistics,
    Stem,
)
from tenas_jax.networks.layers import BatchNorm, ConvBatchNorm, PointwiseConv
from tenas_jax.networks.layouts import Layout
from tenas_jax.networks.macro import CellMacro
from tenas_jax.networks.ops import ReLUConvBatchNorm, operators, relu
from tenas_jax.networks.supernet import Cell, classifier, sow_features

STAGES = 3
# NASLib's own order of operators and edges (naslib/search_spaces/nasbench201/conversions.py).
NASLIB_OPS = ("skip_connect", "none", "nor_conv_3x3", "nor_conv_1x1", "avg_pool_3x3")
NASLIB_EDGES = ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3))


class Notation(EdgeList):
    """The benchmark's notation; also reads NASLib's six numbers.

    NASLib numbers the operators as in `NASLIB_OPS` (0 is `skip_connect` and 1 is `none`, unlike the
    benchmark) and lists the edges by source node, as in `NASLIB_EDGES`; this package lists them by
    target node. NASLib's third number, for example, is the edge from node 0 to node 3.

    Example:
        >>> from tenas_jax.spaces import NAS_BENCH_201
        >>> NAS_BENCH_201.to_string(NAS_BENCH_201.from_string("(4, 0, 3, 1, 4, 3)"))
        '|avg_pool_3x3~0|+|skip_connect~0|none~1|+|nor_conv_1x1~0|avg_pool_3x3~1|nor_conv_1x1~2|'
    """

    def read(self, space: Cells, text: str) -> list[Nodes]:
        """The inverse of `write`; also reads a tuple or list of NASLib's six numbers."""
        numbers = read_numbers(text)
        if numbers is None:
            return super().read(space, text)
        if len(numbers) != len(NASLIB_EDGES):
            raise InputError(f"{len(numbers)} numbers: {space.name} in NASLib's order has 6")
        for position, number in enumerate(numbers, start=1):
            if not 0 <= number < len(NASLIB_OPS):
                raise InputError(f"number {position} is {number}: choose from 0 to 4")
        ops = dict(zip(NASLIB_EDGES, (NASLIB_OPS[number] for number in numbers), strict=True))
        return [
            [
                [(ops[source, node], source) for source in range(node)]
                for node in space.intermediate_nodes
            ]
        ]

    def recognizes(self, text: str) -> bool:
        """Whether a text looks like this notation."""
        return super().recognizes(text) or len(read_numbers(text) or ()) == len(NASLIB_EDGES)


class ResidualBlock(nn.Module):
    """The block between two stages, which doubles the channels and halves the image size."""

    features: int
    layout: Layout
    initializer: str

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Images of half the size."""
        common = (self.features, self.layout, self.initializer)
        y = ReLUConvBatchNorm(*common, stride=2, name="conv_a")(x)
        y = ReLUConvBatchNorm(*common, name="conv_b")(y)
        shortcut = PointwiseConv(
            self.layout, self.initializer, features=self.features, name="shortcut"
        )
        return shortcut(self.layout.halve(x)) + y


def stages(
    module: nn.Module,
    x: Array,
    cell: Callable[[Array, int, int, int], Array],
    *,
    channels: int,
    cells: int,
    num_classes: int,
    layout: Layout,
    initializer: str,
) -> Float[Array, "n classes"]:
    """The macro network around cells of any kind; returns logits.

    Args:
        module: the calling module; the layers become its submodules.
        x: the images, in the layout.
        cell: a function of `(images, features, stage, number)`; the number counts within a stage.
        channels: of the first stage; the second and third have twice and four times as many.
        cells: cells in each of the three stages.
        num_classes: outputs of the classifier.
        layout: memory layout of the images.
        initializer: name of the kernels' initializer.
    """
    x = ConvBatchNorm(layout, initializer, features=channels, kernel_size=3, name="stem")(x)
    for stage in range(STAGES):
        features = channels * 2**stage
        if stage > 0:
            x = ResidualBlock(features, layout, initializer, name=f"block_{stage}")(x)
        for number in range(cells):
            x = cell(x, features, stage, number)
    x = relu(module, layout, BatchNorm(layout, initializer, name="norm")(x))
    return classifier(num_classes, initializer)(layout.mean_pixel(x))


class Supernet(nn.Module):
    """The macro network over supernet cells.

    Args:
        space: the search space.
        channels: of the first stage.
        cells: cells in each of the three stages.
        num_classes: outputs of the classifier.
        layout: memory layout of the images.
        initializer: name of the kernels' initializer.
        single_path: see `Cell`.
        rolled: see `Cell`.
    """

    space: CellSpace
    channels: int
    cells: int
    num_classes: int
    layout: Layout
    initializer: str
    single_path: bool = False
    rolled: bool = False

    @nn.compact
    def __call__(
        self, images: Float[Array, "n h w c"], mask: Bool[Array, "cell edge op"]
    ) -> Float[Array, "n classes"]:
        """Logits of the images."""
        require_mask(self.space, mask)

        def cell(x: Array, features: int, stage: int, number: int) -> Array:
            nodes = Cell(
                self.space,
                features,
                self.layout,
                self.initializer,
                single_path=self.single_path,
                rolled=self.rolled,
                name=f"cell_{stage}_{number}",
            )
            x = nodes([x], mask[0])[-1]
            sow_features(self, x)
            return x

        return stages(
            self,
            self.layout.from_nhwc(images),
            cell,
            channels=self.channels,
            cells=self.cells,
            num_classes=self.num_classes,
            layout=self.layout,
            initializer=self.initializer,
        )


class RegionNetwork(nn.Module):
    """Cells of one width without a stem, then batch normalization and ReLU.

    Its ReLUs sow the activation patterns into the collection `patterns`.
    """

    space: CellSpace
    cells: int
    layout: Layout
    initializer: str
    single_path: bool = False

    @nn.compact
    def __call__(
        self, patches: Float[Array, "n h w channels"], mask: Bool[Array, "cell edge op"]
    ) -> Array:
        """The last activations, in the layout's axis order."""
        require_mask(self.space, mask)
        layout, initializer = self.layout, self.initializer
        x = layout.from_nhwc(patches)
        features = patches.shape[-1]
        for i in range(self.cells):
            name = f"cell_{i}" if i else "cell"
            common = features, layout, initializer
            cell = Cell(self.space, *common, 1, self.single_path, self.single_path, name=name)
            x = cell([x], mask[0])[-1]
        return relu(self, layout, BatchNorm(layout, initializer, name="norm")(x))


class DiscreteNetwork(Network):
    """The trainable network of an architecture."""

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

        def cell(x: Array, features: int, stage: int, number: int) -> Array:
            name = f"cell_{stage * self.cells + number}"
            nodes = DiscreteCell(self.space, self.cells_edges[0], features, layout, name=name)
            return nodes([x], rate)[-1]

        logits = stages(
            self,
            self.prepare(images),
            cell,
            channels=self.channels,
            cells=self.cells,
            num_classes=self.num_classes,
            layout=layout,
            initializer=INITIALIZER,
        )
        return logits, None


class Macro(CellMacro):
    """Three stages of cells with residual blocks between them."""

    module = DiscreteNetwork
    published: ClassVar[dict[Stem, tuple[int, int]]] = {"cifar": (16, 5)}
    has_single_paths = True

    def supernet(self, space: CellSpace, size: ProxySize, layout: Layout) -> nn.Module:
        """The network for the kernel, by default with 3 channels and one cell per stage."""
        return Supernet(
            space,
            3 if size.channels is None else size.channels,
            1 if size.cells is None else size.cells,
            size.num_classes,
            layout,
            size.initializer,
            size.single_path,
            size.rolled,
        )

    def region_network(self, space: CellSpace, size: ProxySize, layout: Layout) -> nn.Module:
        """The network for the regions, by default a single cell."""
        cells = 1 if size.cells is None else size.cells
        return RegionNetwork(space, cells, layout, size.initializer, size.single_path)


NAS_BENCH_201 = CellSpace(
    name="nas-bench-201",
    operators=operators("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3"),
    edges=tuple((source, target) for target in range(1, 4) for source in range(target)),
    cell_types=("cell",),
    input_nodes=1,
    notation=Notation(),
    macro=Macro(),
    image_multiple=4,
    same_size=("cell",),
)

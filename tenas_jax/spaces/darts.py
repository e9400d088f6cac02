"""DARTS (Liu et al., 2019, arXiv 1806.09055): two cell types with 14 edges, eight operators."""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from tenas_jax.architectures.cell_space import CellSpace
from tenas_jax.architectures.genotype import GENOTYPE
from tenas_jax.architectures.space import ProxySize, require_mask
from tenas_jax.errors import InputError
from tenas_jax.networks.discrete import (
    INITIALIZER,
    DiscreteCell,
    Edge,
    Logits,
    Network,
    RunningStatistics,
    Stem,
)
from tenas_jax.networks.initializers import get_initializer
from tenas_jax.networks.layers import BatchNorm, ConvBatchNorm
from tenas_jax.networks.layouts import Layout
from tenas_jax.networks.macro import CellMacro
from tenas_jax.networks.ops import FactorizedReduction, ReLUConvBatchNorm, operators, relu
from tenas_jax.networks.supernet import Cell, classifier, sow_features

NORMAL, REDUCE = "normal", "reduce"


def proxy_cells(cells: int) -> tuple[str, ...]:
    """Types of the cells of a proxy network, with reductions at the published positions.

    Args:
        cells: number of cells. With two, as in the paper, the second is a reduction.

    Raises:
        InputError: `cells` is less than one.

    Example:
        >>> proxy_cells(2), proxy_cells(5)
        (('normal', 'reduce'), ('normal', 'reduce', 'normal', 'reduce', 'normal'))
    """
    if cells < 1:
        raise InputError(f"cells must be at least 1, not {cells}")
    reductions = (1,) if cells == 2 else (cells // 3, 2 * cells // 3)
    return tuple(REDUCE if i in reductions and cells > 1 else NORMAL for i in range(cells))


class Cells(nn.Module):
    """A sequence of DARTS cells (Liu et al., 2019); each reads the outputs of the previous two.

    A reduction cell doubles the channels and halves the image size.

    Args:
        space: the search space.
        channels: of the nodes before the first reduction cell.
        layout: memory layout of the images.
        initializer: name of the kernels' initializer.
        cells: the cells' types, in order.
        single_path: see `Cell`.
    """

    space: CellSpace
    channels: int
    layout: Layout
    initializer: str
    cells: tuple[str, ...]
    single_path: bool = False

    @nn.compact
    def __call__(self, x: Array, mask: Bool[Array, "cell edge op"]) -> Array:
        """The output of the last cell: its intermediate nodes, concatenated."""
        layout, initializer = self.layout, self.initializer
        previous, features, after_reduction = [x, x], self.channels, False
        for i, cell_type in enumerate(self.cells):
            reduction = cell_type == REDUCE
            features *= 2 if reduction else 1
            common = (features, layout, initializer)
            # After a reduction, the output of the cell before it has twice the size.
            older: nn.Module
            if after_reduction:
                older = FactorizedReduction(*common, name=f"input_{i}_0")
            else:
                older = ReLUConvBatchNorm(*common, kernel_size=1, name=f"input_{i}_0")
            newer = ReLUConvBatchNorm(*common, kernel_size=1, name=f"input_{i}_1")
            inputs = [older(previous[0]), newer(previous[1])]
            stride = 2 if reduction else 1
            cell = Cell(self.space, *common, stride, self.single_path, True, name=f"cell_{i}")
            nodes = cell(inputs, mask[self.space.cell_types.index(cell_type)])
            output = jnp.concatenate(nodes[self.space.input_nodes :], layout.channel_axis)
            sow_features(self, output)
            previous, after_reduction = [previous[1], output], reduction
        return previous[1]


class Supernet(nn.Module):
    """The macro network over supernet cells.

    Args:
        space: the search space.
        channels: of the stem and of the nodes before the first reduction cell.
        num_classes: outputs of the classifier.
        layout: memory layout of the images.
        initializer: name of the kernels' initializer.
        cells: the cells' types, in order.
        single_path: see `Cell`.
    """

    space: CellSpace
    channels: int
    num_classes: int
    layout: Layout
    initializer: str
    cells: tuple[str, ...]
    single_path: bool = False
    rolled = True

    @nn.compact
    def __call__(
        self, images: Float[Array, "n h w c"], mask: Bool[Array, "cell edge op"]
    ) -> Float[Array, "n classes"]:
        """Logits of the images."""
        require_mask(self.space, mask)
        layout, initializer = self.layout, self.initializer
        stem = ConvBatchNorm(
            layout, initializer, features=self.channels, kernel_size=3, name="stem"
        )
        cells = Cells(
            self.space,
            self.channels,
            layout,
            initializer,
            self.cells,
            self.single_path,
            name="cells",
        )
        x = cells(stem(layout.from_nhwc(images)), mask)
        x = relu(self, layout, BatchNorm(layout, initializer, name="norm")(x))
        return classifier(self.num_classes, initializer)(layout.mean_pixel(x))


class RegionNetwork(nn.Module):
    """The cells without a stem, then batch normalization and ReLU.

    Its ReLUs sow the activation patterns into the collection `patterns`.
    """

    space: CellSpace
    layout: Layout
    initializer: str
    cells: tuple[str, ...]
    single_path: bool = False

    @nn.compact
    def __call__(
        self, patches: Float[Array, "n h w channels"], mask: Bool[Array, "cell edge op"]
    ) -> Array:
        """The last activations, in the layout's axis order."""
        require_mask(self.space, mask)
        layout, initializer = self.layout, self.initializer
        channels = patches.shape[-1]
        cells = Cells(
            self.space, channels, layout, initializer, self.cells, self.single_path, name="cells"
        )
        x = cells(layout.from_nhwc(patches), mask)
        return relu(self, layout, BatchNorm(layout, initializer, name="norm")(x))


class PreprocessedCell(nn.Module):
    """A discrete cell that preprocesses its inputs.

    Args:
        space: the search space.
        edges: the edges, by ascending target.
        features: channels of each node.
        layout: memory layout of the images.
        reduction: whether it halves the image size.
        after_reduction: whether its older input has twice the size of its newer input.
    """

    space: CellSpace
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
        stride = 2 if self.reduction else 1
        cell = DiscreteCell(
            self.space, self.edges, self.features, self.layout, stride, name="nodes"
        )
        nodes = cell([first(older), second(newer)], drop_path_rate)
        return jnp.concatenate(nodes[self.space.input_nodes :], self.layout.channel_axis)


class AuxiliaryHead(nn.Module):
    """DARTS's auxiliary classifier, which helps to train the earlier cells.

    Args:
        num_classes: outputs.
        layout: memory layout of the images.
        stem: the kind of stem. For ImageNet the pooling overlaps more and one batch normalization
            is missing, as in the DARTS experiments.
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


class DiscreteNetwork(Network):
    """The network of a genotype, with reduction cells after one third and two thirds of it."""

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "n h w c"],
        *,
        train: bool = False,
        drop_path_rate: Float[Array, ""] | float | None = None,
    ) -> tuple[Logits, Logits | None]:
        """Logits of the images; in training also those of the auxiliary head, if it has one."""
        layout, rate = RunningStatistics(train=train), drop_path_rate if train else None
        older, newer, after_reduction = self._stem(self.prepare(images), layout)
        features, auxiliary_logits = self.channels, None
        for i in range(self.cells):
            reduction = i in (self.cells // 3, 2 * self.cells // 3)
            features *= 2 if reduction else 1
            cell = PreprocessedCell(
                self.space,
                self.cells_edges[int(reduction)],
                features,
                layout,
                reduction,
                after_reduction,
                name=f"{self.space.cell_types[int(reduction)]}_{i}",
            )
            older, newer, after_reduction = newer, cell(older, newer, rate), reduction
            if self.auxiliary and i == 2 * self.cells // 3 and (train or self.is_initializing()):
                head = AuxiliaryHead(self.num_classes, layout, self.stem, name="auxiliary")
                auxiliary_logits = head(newer)
        logits = classifier(self.num_classes, INITIALIZER)(layout.mean_pixel(newer))
        return logits, auxiliary_logits

    def _stem(self, x: Array, layout: RunningStatistics) -> tuple[Array, Array, bool]:
        """The two inputs of the first cell, and whether the older has twice the newer's size."""
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


class Macro(CellMacro):
    """A chain of cells; each reads the outputs of the previous two."""

    module = DiscreteNetwork
    published: ClassVar[dict[Stem, tuple[int, int]]] = {"cifar": (36, 20), "imagenet": (48, 14)}
    has_auxiliary_head = True
    has_single_paths = True

    def supernet(self, space: CellSpace, size: ProxySize, layout: Layout) -> nn.Module:
        """The network for the kernel, by default with 1 channel and 2 cells."""
        return Supernet(
            space,
            1 if size.channels is None else size.channels,
            size.num_classes,
            layout,
            size.initializer,
            proxy_cells(2 if size.cells is None else size.cells),
            size.single_path,
        )

    def region_network(self, space: CellSpace, size: ProxySize, layout: Layout) -> nn.Module:
        """The network for the regions, by default with 2 cells."""
        cells = proxy_cells(2 if size.cells is None else size.cells)
        return RegionNetwork(space, layout, size.initializer, cells, size.single_path)


DARTS = CellSpace(
    name="darts",
    operators=operators(
        "none",
        "skip_connect",
        "sep_conv_3x3",
        "sep_conv_5x5",
        "dil_conv_3x3",
        "dil_conv_5x5",
        "avg_pool_3x3",
        "max_pool_3x3",
    ),
    edges=tuple((source, target) for target in range(2, 6) for source in range(target)),
    cell_types=(NORMAL, REDUCE),
    input_nodes=2,
    notation=GENOTYPE,
    macro=Macro(),
    edges_per_node=2,
    none_is_choice=False,
    concatenate=True,
    same_size=(NORMAL,),
)

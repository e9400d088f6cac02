"""TransNAS-Bench-101 micro (Duan et al., CVPR 2021, arXiv 2105.11871): six edges, 4 operators."""

import itertools
import re
import string
from collections.abc import Callable
from typing import ClassVar

import flax.linen as nn
from jaxtyping import Array, Bool, Float

from tenas_jax.architectures.cell_space import CellSpace
from tenas_jax.architectures.genotype import Cells, Nodes
from tenas_jax.architectures.literals import Misread
from tenas_jax.architectures.space import ProxySize, require_mask
from tenas_jax.errors import InputError
from tenas_jax.networks.discrete import (
    DiscreteCell,
    Logits,
    Network,
    RunningStatistics,
    Stem,
)
from tenas_jax.networks.layers import ConvBatchNorm
from tenas_jax.networks.layouts import Layout
from tenas_jax.networks.macro import CellMacro
from tenas_jax.networks.ops import ReLUConvBatchNorm, operators
from tenas_jax.networks.supernet import Cell, classifier, sow_features
from tenas_jax.spaces.nas_bench_201 import RegionNetwork

MODULES = "41414"  # an even digit doubles the channels; a digit above 2 halves the image size
PREFIX = f"64-{MODULES}-"
DIGITS = frozenset(string.digits)


class Digits:
    """The benchmark's notation `64-41414-a_bc_def`, with one operator number per edge."""

    def write(self, space: Cells, cells: list[Nodes]) -> str:
        """The text of the operators into each node of the cell."""
        nodes = ["".join(str(space.ops.index(op)) for op, _ in pairs) for pairs in cells[0]]
        return PREFIX + "_".join(nodes)

    def read(self, space: Cells, text: str) -> list[Nodes]:
        """The inverse of `write`; also reads the tuple `(a, b, c, d, e, f)`."""
        sources = [[space.edges[e][0] for e in space.incoming(n)] for n in space.intermediate_nodes]
        groups = "_".join("0" * len(node) for node in sources)
        digits = text.strip().removeprefix(PREFIX)
        if not _TUPLE.fullmatch(digits):
            index = _deviation(digits, groups)
            if index is not None:
                fault = Misread("this differs", text.index(digits) + index)
                raise fault.explain(space.name, text, PREFIX + groups)
        rest = iter(re.findall("[0-9]", digits))
        nodes = [[(int(next(rest)), source) for source in node] for node in sources]
        for node, pairs in zip(space.intermediate_nodes, nodes, strict=True):
            for op, source in pairs:
                if op >= len(space.ops):
                    raise InputError(
                        f"edge {node}<-{source} has operator {op}: choose from 0 to "
                        f"{len(space.ops) - 1}"
                    )
        return [[[(space.ops[op], source) for op, source in pairs] for pairs in nodes]]

    def recognizes(self, text: str) -> bool:
        """Whether a text looks like this notation."""
        return text.strip().startswith(PREFIX) or bool(_TUPLE.fullmatch(text.strip()))


_TUPLE = re.compile(r"\(\s*[0-9](\s*,\s*[0-9]){5}\s*,?\s*\)")


def _deviation(text: str, form: str) -> int | None:
    """Index of the first difference to a form in which 0 stands for any digit, or None."""
    pairs = itertools.zip_longest(text, form)
    return next(
        (
            index
            for index, (given, wanted) in enumerate(pairs)
            if not (given == wanted or (wanted == "0" and given is not None and given in DIGITS))
        ),
        None,
    )


def modules(
    x: Array, cell: Callable[[Array, int, int, int], Array], *, channels: int, cells: int
) -> Array:
    """The modules, made of cells of any kind.

    Args:
        x: images in a layout, with `channels` channels.
        cell: a function of `(images, features, stride, number)`; the number counts through all
            modules.
        channels: number of channels of the images.
        cells: cells per module; the first one changes channels and size.
    """
    for i, digit in enumerate(map(int, MODULES)):
        channels *= 2 if digit % 2 == 0 else 1
        for number in range(cells):
            stride = 2 if digit > 2 and number == 0 else 1
            x = cell(x, channels, stride, i * cells + number)
    return x


class Supernet(nn.Module):
    """The macro network over supernet cells, with a stem for small images.

    Args:
        space: the search space.
        channels: of the stem.
        cells: cells per module.
        num_classes: outputs of the classifier.
        layout: memory layout of the images.
        initializer: name of the kernels' initializer.
        single_path: see `Cell`.
    """

    space: CellSpace
    channels: int
    cells: int
    num_classes: int
    layout: Layout
    initializer: str
    single_path: bool = False
    rolled = True

    @nn.compact
    def __call__(
        self, images: Float[Array, "n h w c"], mask: Bool[Array, "cell edge op"]
    ) -> Float[Array, "n classes"]:
        """Logits of the images."""
        require_mask(self.space, mask)
        layout, initializer = self.layout, self.initializer

        def cell(x: Array, features: int, stride: int, number: int) -> Array:
            nodes = Cell(
                self.space,
                features,
                layout,
                initializer,
                stride,
                single_path=self.single_path,
                rolled=True,
                name=f"cell_{number}",
            )
            x = nodes([x], mask[0])[-1]
            sow_features(self, x)
            return x

        stem = ConvBatchNorm(
            layout, initializer, features=self.channels, kernel_size=3, name="stem"
        )
        x = modules(stem(layout.from_nhwc(images)), cell, channels=self.channels, cells=self.cells)
        return classifier(self.num_classes, initializer)(layout.mean_pixel(x))


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
        initializer, x = self.space.initializer, self.prepare(images)

        def cell(x: Array, features: int, stride: int, number: int) -> Array:
            nodes = DiscreteCell(
                self.space, self.cells_edges[0], features, layout, stride, name=f"cell_{number}"
            )
            return nodes([x], rate)[-1]

        if self.stem == "imagenet":
            x = ConvBatchNorm(
                layout,
                initializer,
                features=self.channels // 2,
                kernel_size=3,
                stride=2,
                name="stem_a",
            )(x)
            x = ReLUConvBatchNorm(self.channels, layout, initializer, stride=2, name="stem_b")(x)
        else:
            x = ConvBatchNorm(
                layout, initializer, features=self.channels, kernel_size=3, name="stem"
            )(x)
        x = modules(x, cell, channels=self.channels, cells=self.cells)
        return classifier(self.num_classes, initializer)(layout.mean_pixel(x)), None


class Macro(CellMacro):
    """Five modules of cells, three of which double the channels and halve the image size."""

    module = DiscreteNetwork
    published: ClassVar[dict[Stem, tuple[int, int]]] = {"imagenet": (64, 2), "cifar": (64, 2)}
    counted = ("imagenet", 75, 256)
    has_single_paths = True

    def supernet(self, space: CellSpace, size: ProxySize, layout: Layout) -> nn.Module:
        """The network for the kernel, by default with 3 channels and 2 cells per module."""
        return Supernet(
            space,
            3 if size.channels is None else size.channels,
            2 if size.cells is None else size.cells,
            size.num_classes,
            layout,
            size.initializer,
            size.single_path,
        )

    def region_network(self, space: CellSpace, size: ProxySize, layout: Layout) -> nn.Module:
        """The network for the regions, as in NAS-Bench-201: a cell, batch normalization, ReLU."""
        cells = 1 if size.cells is None else size.cells
        return RegionNetwork(space, cells, layout, size.initializer, size.single_path)


TRANSNAS_BENCH_101 = CellSpace(
    name="transnas-bench-101",
    operators=operators("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3"),
    edges=tuple((source, target) for target in range(1, 4) for source in range(target)),
    cell_types=("cell",),
    input_nodes=1,
    notation=Digits(),
    macro=Macro(),
    initializer="kaiming_normal_fan_out",
)

"""Supernets: macro networks whose cells take a traced mask of the operators kept.

An edge's weights are `mask / max(number kept, 1)`, which is the original's softmax over 0 (kept)
and -1000 (pruned); an edge with everything pruned contributes zero.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, PyTree

from tenas_jax.initializers import get_initializer
from tenas_jax.layers import PRECISION, BatchNorm, ConvBatchNorm, Layout, PointwiseConv
from tenas_jax.ops import OPS, FactorizedReduction, ReLUConvBatchNorm, relu
from tenas_jax.spaces import DARTS, NAS_BENCH_201, SearchSpace, connecting

Pullback = Callable[[Array], tuple[PyTree, Array]]


def edge_weights(mask: Bool[Array, "edge op"], dtype: DTypeLike) -> Float[Array, "edge op"]:
    """Weight of each operator: one over the number kept on its edge, zero where pruned.

    Example:
        >>> edge_weights(jnp.array([[True, True], [False, False]]), jnp.float32).tolist()
        [[0.5, 0.5], [0.0, 0.0]]
    """
    return mask.astype(dtype) / jnp.maximum(mask.sum(-1, keepdims=True), 1).astype(dtype)


class Cell(nn.Module):
    """A cell with all operators of a space on all edges.

    All edges that leave a node are computed at once: an operator's weights for them are stacked.

    Args:
        space: the search space.
        features: channels of each node.
        layout: memory layout of the images.
        initializer: name of the kernels' initializer.
        stride: of the edges that leave the cell's inputs.
        single_path: promises that no edge keeps two operators. Only those are computed then that
            lie on a path from an input to the output, and no activation patterns are sown.
    """

    space: SearchSpace
    features: int
    layout: Layout
    initializer: str
    stride: int = 1
    single_path: bool = False

    @nn.compact
    def __call__(self, inputs: Sequence[Array], mask: Bool[Array, "edge op"]) -> list[Array]:
        """The values of all nodes, the inputs first."""
        nodes = dict(enumerate(inputs))
        compute = self._all
        if self.single_path and not self.is_initializing():
            compute = self._kept
            mask &= jnp.stack(connecting(self.space, mask))[:, None]
        for node in range(self.space.num_nodes - 1):
            edges = self.space.outgoing(node)
            stride = self.stride if node < self.space.input_nodes else 1
            outputs = compute(nodes[node], mask[jnp.array(edges)], node, stride)
            for edge, output in zip(edges, outputs, strict=True):
                target = self.space.edges[edge][1]
                nodes[target] = nodes[target] + output if target in nodes else output
        return [nodes[node] for node in range(self.space.num_nodes)]

    def _all(
        self, x: Array, mask: Bool[Array, "edge op"], node: int, stride: int
    ) -> Sequence[Array]:
        """The outputs of the edges that leave a node."""
        edges, weights = len(mask), edge_weights(mask, x.dtype)
        outputs = sum(
            OPS[name](
                self.features,
                self.layout,
                self.initializer,
                edges,
                stride,
                name=f"node_{node}_{name}",
            )(x, weights[:, i])
            for i, name in enumerate(self.space.ops)
        )
        return jnp.split(outputs, edges, self.layout.channel_axis)

    def _kept(
        self, x: Array, mask: Bool[Array, "edge op"], node: int, stride: int
    ) -> Sequence[Array]:
        """The same if an edge keeps one operator or none: no other is computed."""
        params = self.variables["params"]

        def branch(name: str, edge: int) -> Callable[[Array], tuple[Array, Array]]:
            op = OPS[name](self.features, self.layout, self.initializer, 1, stride, parent=None)
            stacked = params.get(f"node_{node}_{name}", {})
            own = jax.tree.map(lambda leaf: leaf[edge : edge + 1], stacked)

            def apply(own: PyTree, x: Array) -> Array:
                return cast(Array, op.apply({"params": own}, x, jnp.ones(1, x.dtype)))

            return partial(_passing(apply), own)

        outputs = []
        for edge, kept in enumerate(mask):
            index = jnp.where(kept.any(), kept.argmax(), self.space.ops.index("none"))
            x, output = lax.switch(index, [branch(name, edge) for name in self.space.ops], x)
            outputs.append(output)
        return outputs


def _passing(
    apply: Callable[[PyTree, Array], Array],
) -> Callable[[PyTree, Array], tuple[Array, Array]]:
    """The function of `(params, x)` with x itself as a first result.

    The edges that leave a node pass x on from one to the next. Backwards each adds its cotangent to
    that of x where it computes it; otherwise `lax.switch` would write zeros for `none`, and each
    sum over edges would be another pass over the images.
    """

    @jax.custom_vjp
    def both(params: PyTree, x: Array) -> tuple[Array, Array]:
        return x, apply(params, x)

    def forward(params: PyTree, x: Array) -> tuple[tuple[Array, Array], Pullback]:
        y, pullback = jax.vjp(apply, params, x)
        return (x, y), pullback

    def backward(pullback: Pullback, cotangents: tuple[Array, Array]) -> tuple[PyTree, Array]:
        params, x = pullback(cotangents[1])
        return params, cotangents[0] + x

    both.defvjp(forward, backward)
    return both


class ResidualBlock(nn.Module):
    """NAS-Bench-201's block between stages: twice the channels, half the size."""

    features: int
    layout: Layout
    initializer: str

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Images with half the size."""
        common = (self.features, self.layout, self.initializer)
        y = ReLUConvBatchNorm(*common, stride=2, name="conv_a")(x)
        y = ReLUConvBatchNorm(*common, name="conv_b")(y)
        shortcut = PointwiseConv(
            self.layout, self.initializer, features=self.features, name="shortcut"
        )
        return shortcut(self.layout.halve(x)) + y


def classifier(num_classes: int, initializer: str) -> nn.Dense:
    """The linear layer at the end of a network; its bias, zero here, is not part of the kernel."""
    kernel = get_initializer(initializer)
    return nn.Dense(num_classes, kernel_init=kernel, precision=PRECISION, name="classifier")


class NASBench201Supernet(nn.Module):
    """The macro network of NAS-Bench-201 (Dong and Yang, 2020) over supernet cells.

    Args:
        channels: of the first stage; the second and third have twice and four times as many.
        cells: cells in each of the three stages.
        num_classes: outputs of the classifier.
        layout: memory layout of the images.
        initializer: name of the kernels' initializer.
        single_path: see `Cell`.
    """

    channels: int
    cells: int
    num_classes: int
    layout: Layout
    initializer: str
    single_path: bool = False

    @nn.compact
    def __call__(
        self, images: Float[Array, "n h w c"], mask: Bool[Array, "cell edge op"]
    ) -> Float[Array, "n classes"]:
        """Logits of the images."""
        layout, initializer = self.layout, self.initializer
        x = layout.from_nhwc(images)
        x = ConvBatchNorm(layout, initializer, features=self.channels, kernel_size=3, name="stem")(
            x
        )
        for stage in range(3):
            features = self.channels * 2**stage
            if stage > 0:
                x = ResidualBlock(features, layout, initializer, name=f"block_{stage}")(x)
            for i in range(self.cells):
                cell = Cell(
                    NAS_BENCH_201,
                    features,
                    layout,
                    initializer,
                    single_path=self.single_path,
                    name=f"cell_{stage}_{i}",
                )
                x = cell([x], mask[0])[-1]
        x = relu(self, layout, BatchNorm(layout, initializer, name="norm")(x))
        return classifier(self.num_classes, initializer)(layout.mean_pixel(x))


class NASBench201Regions(nn.Module):
    """The region network of NAS-Bench-201: one cell without stem, batch normalization, ReLU.

    Its result is what its ReLUs sow into the collection `patterns`.
    """

    channels: int
    layout: Layout
    initializer: str

    @nn.compact
    def __call__(
        self, patches: Float[Array, "n h w channels"], mask: Bool[Array, "cell edge op"]
    ) -> Array:
        """The last activations, as images of the layout."""
        layout, initializer = self.layout, self.initializer
        x = layout.from_nhwc(patches)
        cell = Cell(NAS_BENCH_201, self.channels, layout, initializer, name="cell")
        x = cell([x], mask[0])[-1]
        return relu(self, layout, BatchNorm(layout, initializer, name="norm")(x))


class DARTSCells(nn.Module):
    """A sequence of DARTS cells (Liu et al., 2019): each reads the outputs of the two before it.

    A reduction cell has twice the channels and half the size of the cell before it.

    Args:
        channels: of the nodes before the first reduction cell.
        layout: memory layout of the images.
        initializer: name of the kernels' initializer.
        cells: the cells' types, in order; the paper's two are one of each.
    """

    channels: int
    layout: Layout
    initializer: str
    cells: tuple[str, ...] = DARTS.cell_types

    @nn.compact
    def __call__(self, x: Array, mask: Bool[Array, "cell edge op"]) -> Array:
        """The output of the last cell: its intermediate nodes, concatenated."""
        layout, initializer = self.layout, self.initializer
        previous, features, after_reduction = [x, x], self.channels, False
        for i, cell_type in enumerate(self.cells):
            reduction = cell_type == "reduce"
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
            cell = Cell(DARTS, *common, stride=2 if reduction else 1, name=f"cell_{i}")
            nodes = cell(inputs, mask[DARTS.cell_types.index(cell_type)])
            output = jnp.concatenate(nodes[DARTS.input_nodes :], layout.channel_axis)
            previous, after_reduction = [previous[1], output], reduction
        return previous[1]


class DARTSSupernet(nn.Module):
    """The macro network of DARTS over supernet cells.

    Args:
        channels: of the stem and of the nodes before the first reduction cell.
        num_classes: outputs of the classifier.
        layout: memory layout of the images.
        initializer: name of the kernels' initializer.
        cells: the cells' types, in order.
    """

    channels: int
    num_classes: int
    layout: Layout
    initializer: str
    cells: tuple[str, ...] = DARTS.cell_types

    @nn.compact
    def __call__(
        self, images: Float[Array, "n h w c"], mask: Bool[Array, "cell edge op"]
    ) -> Float[Array, "n classes"]:
        """Logits of the images."""
        layout, initializer = self.layout, self.initializer
        stem = ConvBatchNorm(
            layout, initializer, features=self.channels, kernel_size=3, name="stem"
        )
        cells = DARTSCells(self.channels, layout, initializer, self.cells, name="cells")
        x = cells(stem(layout.from_nhwc(images)), mask)
        x = relu(self, layout, BatchNorm(layout, initializer, name="norm")(x))
        return classifier(self.num_classes, initializer)(layout.mean_pixel(x))


class DARTSRegions(nn.Module):
    """The region network of DARTS: its cells without stem, batch normalization, ReLU.

    Its result is what its ReLUs sow into the collection `patterns`.
    """

    channels: int
    layout: Layout
    initializer: str

    @nn.compact
    def __call__(
        self, patches: Float[Array, "n h w channels"], mask: Bool[Array, "cell edge op"]
    ) -> Array:
        """The last activations, as images of the layout."""
        layout, initializer = self.layout, self.initializer
        cells = DARTSCells(self.channels, layout, initializer, name="cells")
        x = cells(layout.from_nhwc(patches), mask)
        return relu(self, layout, BatchNorm(layout, initializer, name="norm")(x))


# The networks of both measurements by the name of the space, with the paper's channels and cells;
# called with (num_classes, layout, initializer), the second with (layout, initializer).
NTK_NETWORKS: dict[str, Callable[[int, Layout, str], nn.Module]] = {
    NAS_BENCH_201.name: partial(NASBench201Supernet, 3, 1),
    DARTS.name: partial(DARTSSupernet, 1),
}
# The first for masks that keep an operator an edge at most, where that pays: with the 14 edges of
# DARTS apart, each with 8 operators, XLA would compile for five minutes.
SINGLE_PATH_NETWORKS: dict[str, Callable[[int, Layout, str], nn.Module]] = {
    NAS_BENCH_201.name: partial(NASBench201Supernet, 3, 1, single_path=True),
}
REGION_NETWORKS: dict[str, Callable[[Layout, str], nn.Module]] = {
    NAS_BENCH_201.name: partial(NASBench201Regions, 1),
    DARTS.name: partial(DARTSRegions, 1),
}

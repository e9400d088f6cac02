"""Cells of supernets, which take a traced mask of the operators kept.

An edge's weights are `mask / max(number kept, 1)`, which equals the original's softmax over 0
(kept) and -1000 (pruned). An edge without operators contributes zero.
"""

from collections.abc import Callable, Sequence
from functools import partial, reduce
from operator import add
from typing import cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, PyTree

from tenas_jax.architectures.cell_space import NONE, CellSpace
from tenas_jax.errors import InputError
from tenas_jax.networks.initializers import get_initializer
from tenas_jax.networks.layers import DEVIATIONS
from tenas_jax.networks.layouts import Layout, shape_after
from tenas_jax.networks.ops import PATTERNS, READERS, Op, Zero
from tenas_jax.networks.rolled import Compute, Steps, scan_all, scan_kept
from tenas_jax.numerics import PRECISION

ComputeEdges = Callable[[Array, Array, int, int], Sequence[Array]]
Pullback = Callable[[Array], tuple[PyTree, Array]]

# The Flax collection for the images after each cell, in the network's layout.
FEATURES = "features"
# Edges per step of a loop. With 1, matrix products have a single row; with more, there is more
# padding and grouped convolutions have more zeros in their kernels. A row of darts-cifar10 takes
# 0.20, 0.28 and 0.26 s with 2 to 4.
EDGES_AT_ONCE = 2


def edge_weights(mask: Bool[Array, "edge op"], dtype: DTypeLike) -> Float[Array, "edge op"]:
    """Weight of each operator: one over the number kept on its edge, zero where pruned.

    Example:
        >>> edge_weights(jnp.array([[True, True], [False, False]]), jnp.float32).tolist()
        [[0.5, 0.5], [0.0, 0.0]]
    """
    return mask.astype(dtype) / jnp.maximum(mask.sum(-1, keepdims=True), 1).astype(dtype)


class Cell(nn.Module):
    """A cell with all operators of a space on all edges.

    All edges that leave a node are computed at once, with stacked weights of each operator.

    Args:
        space: the search space.
        features: channels of each node.
        layout: memory layout of the images.
        initializer: name of the kernels' initializer.
        stride: stride of the edges that leave the cell's inputs.
        single_path: no edge keeps two operators. Then only the operators on a path from an input to
            the output are computed; if patterns are sown, all operators kept.
        rolled: whether to compute edges in loops (see `tenas_jax.networks.rolled`), if the layout
            supports them. Single paths that are not rolled sow no activation patterns.
    """

    space: CellSpace
    features: int
    layout: Layout
    initializer: str
    stride: int = 1
    single_path: bool = False
    rolled: bool = False

    @nn.compact
    def __call__(self, inputs: Sequence[Array], mask: Bool[Array, "edge op"]) -> list[Array]:
        """The values of all nodes, the inputs first."""
        edges_and_ops = self.space.shape[1:]
        if mask.shape != edges_and_ops:
            raise InputError(
                f"the mask of a cell has shape {mask.shape}: {self.space.name} needs "
                f"{edges_and_ops} (edges, operators)"
            )
        if self.is_initializing():
            return self._one_by_one(self._all, inputs, mask)
        deviations, patterns = map(self.is_mutable_collection, (DEVIATIONS, PATTERNS))
        if (self.single_path or deviations) and not patterns:
            mask &= jnp.stack(self.space.connecting(mask))[:, None]
        if self.rolled and self.layout.loops:
            return self._in_loops(inputs, mask)
        return self._one_by_one(self._kept if self.single_path else self._all, inputs, mask)

    @property
    def _options(self) -> dict[str, Callable[..., Op]]:
        """The options of an edge in a single path: each operator, or no operator."""
        return {**dict(self.space.operators), NONE: Zero}

    def _one_by_one(
        self, compute: ComputeEdges, inputs: Sequence[Array], mask: Bool[Array, "edge op"]
    ) -> list[Array]:
        nodes = dict(enumerate(inputs))
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
            op(
                self.features,
                self.layout,
                self.initializer,
                edges,
                stride,
                name=f"node_{node}_{name}",
            )(x, weights[:, i])
            for i, (name, op) in enumerate(dict(self.space.operators).items())
        )
        return jnp.split(outputs, edges, self.layout.channel_axis)

    def _in_loops(self, inputs: Sequence[Array], mask: Bool[Array, "edge op"]) -> list[Array]:
        """The values of all nodes, by a loop over the edges; two loops if the inputs are larger."""
        layout, first = self.layout, jnp.stack(inputs)
        shape = list(shape_after(layout, inputs[0], self.stride))
        shape[layout.channel_axis] = self.features
        values = jnp.zeros((self.space.num_nodes + 1, *shape), first.dtype)
        readers = tuple(range(self.space.num_nodes - 1))
        if first.shape[1:] == values.shape[1:]:
            values = self._loop(values.at[: len(inputs)].set(first), None, readers, mask)
            return list(values[:-1])
        values = self._loop(values, first, readers[: len(inputs)], mask)
        values = self._loop(values, None, readers[len(inputs) :], mask)
        return [*inputs, *values[len(inputs) : -1]]

    def _loop(
        self,
        values: Float[Array, "node ..."],
        inputs: Float[Array, "input ..."] | None,
        nodes: tuple[int, ...],
        mask: Bool[Array, "edge op"],
    ) -> Float[Array, "node ..."]:
        """Add the outputs of the edges that leave some nodes to the values."""
        operators = self._options if self.single_path else dict(self.space.operators)
        steps = Steps(self.space, nodes, 1 if self.single_path else EDGES_AT_ONCE)
        stride = 1 if inputs is None else self.stride
        common = self.features, self.layout, self.initializer, steps.width, stride
        stored = self.variables.get("params", {})
        params = {
            name: steps.stack([stored.get(f"node_{node}_{name}", {}) for node in nodes])
            for name in operators
        }
        collections = (PATTERNS, READERS, DEVIATIONS)
        wanted = [each for each in collections if self.is_mutable_collection(each)]

        def apply(name: str, params: PyTree, x: Array, weight: Array) -> tuple[Array, PyTree]:
            op = operators[name](*common, parent=None)
            y, sown = op.apply({"params": params}, x, weight, mutable=wanted)
            found = {each: jax.tree.leaves(sown[each]) for each in wanted if each in sown}
            # Neurons first, so that several operators form one array.
            return y, {
                each: jnp.concatenate([x.T for x in leaves]) for each, leaves in found.items()
            }

        def apply_one(name: str, params: PyTree, x: Array) -> tuple[Array, PyTree]:
            return apply(name, params, x, jnp.ones(1, x.dtype))

        def apply_all(params: PyTree, x: Array, weights: Array) -> tuple[Array, PyTree]:
            each = [
                _skippable(partial(apply, name))(params[name], x, weights[:, i])
                for i, name in enumerate(operators)
            ]
            images, sown = zip(*each, strict=True)
            return reduce(add, images), sown

        if self.single_path:
            mask = mask[steps.edges[:, 0]]
            kept = jnp.where(mask.any(1), mask.argmax(1), list(operators).index(NONE))
            branches = [partial(apply_one, name) for name in operators]
            own = list(params.values())
            values, sown = scan_kept(branches, own, kept, values, inputs, steps)
        else:
            weights = jnp.pad(edge_weights(mask, values.dtype), ((0, 1), (0, 0)))
            axis, by_step = self.layout.channel_axis, weights[steps.edges]
            values, sown = scan_all(apply_all, params, by_step, values, inputs, steps, axis)
        for leaf in jax.tree.leaves(sown):
            if leaf.dtype == bool:
                samples = self.layout.per_sample(values[0]).shape[0]
                self.sow(PATTERNS, f"relus_{nodes[0]}", leaf.reshape(-1, samples).T)
            elif jnp.issubdtype(leaf.dtype, jnp.floating):
                self.sow(DEVIATIONS, f"batch_norms_{nodes[0]}", leaf.reshape(-1))
            else:
                self.sow(READERS, f"relus_{nodes[0]}", leaf.reshape(-1))
        return values

    def _kept(
        self, x: Array, mask: Bool[Array, "edge op"], node: int, stride: int
    ) -> Sequence[Array]:
        """The same if an edge keeps at most one operator; no other is computed."""
        params = self.variables["params"]
        operators = self._options
        nothing = list(operators).index(NONE)

        def branch(name: str, edge: int) -> Callable[[Array], tuple[Array, Array]]:
            common = self.features, self.layout, self.initializer, 1, stride
            op = operators[name](*common, parent=None)
            stacked = params.get(f"node_{node}_{name}", {})
            own = jax.tree.map(lambda leaf: leaf[edge : edge + 1], stacked)

            def apply(own: PyTree, x: Array) -> Array:
                return cast(Array, op.apply({"params": own}, x, jnp.ones(1, x.dtype)))

            return partial(_passing(apply), own)

        outputs = []
        for edge, kept in enumerate(mask):
            index = jnp.where(kept.any(), kept.argmax(), nothing)
            x, output = lax.switch(index, [branch(name, edge) for name in operators], x)
            outputs.append(output)
        return outputs


def _skippable(apply: Compute) -> Compute:
    """The function of `(params, x, weights)`, whose backward pass is skipped if all weights are 0.

    The branches of a conditional are compiled apart from what is around it. Otherwise XLA computes
    parts of the backward passes again and again within the sum over the operators of an edge: in
    DARTS, batch 14, that took a fifth of a kernel's time.
    """

    @jax.custom_vjp
    def skippable(params: PyTree, x: Array, weights: Array) -> tuple[Array, PyTree]:
        return apply(params, x, weights)

    def forward(
        params: PyTree, x: Array, weights: Array
    ) -> tuple[tuple[Array, PyTree], tuple[Pullback, Array]]:
        y, pullback, sown = jax.vjp(lambda p, x: apply(p, x, weights), params, x, has_aux=True)
        return (y, sown), (pullback, (weights > 0).any())

    def backward(
        residuals: tuple[Pullback, Array], cotangents: tuple[Array, PyTree]
    ) -> tuple[PyTree, Array, None]:
        pullback, active = residuals
        shapes = jax.eval_shape(pullback, cotangents[0])
        zeros = jax.tree.map(lambda each: jnp.zeros(each.shape, each.dtype), shapes)
        params, x = lax.cond(active, pullback, lambda _: zeros, cotangents[0])
        return params, x, None

    skippable.defvjp(forward, backward)
    return skippable


def _passing(
    apply: Callable[[PyTree, Array], Array],
) -> Callable[[PyTree, Array], tuple[Array, Array]]:
    """The function of `(params, x)` that also returns x, as its first result.

    The edges that leave a node pass x on from one to the next. In the backward pass each edge adds
    its cotangent to that of x where it computes it. Otherwise `lax.switch` would write zeros for
    `none`, and each sum over edges would be another pass over the images.
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


def classifier(num_classes: int, initializer: str) -> nn.Dense:
    """The linear layer at the end of a network; its bias is zero and not part of the kernel."""
    kernel = get_initializer(initializer)
    return nn.Dense(num_classes, kernel_init=kernel, precision=PRECISION, name="classifier")


def sow_features(module: nn.Module, x: Array) -> None:
    """Sow the images after a cell, if the caller asks for them.

    Args:
        module: the calling module; sows into its collection `FEATURES` if it is mutable.
        x: the images in the layout; the same array that the next cell reads.
    """
    if not module.is_initializing() and module.is_mutable_collection(FEATURES):
        module.sow(FEATURES, "cells", x)

"""Cells as loops over their edges, so that an operator is compiled once instead of once per edge.

XLA compiles a loop's body once, however often it runs. In the DARTS space the two cells of a proxy
network have 28 edges with 8 operators each. As three loops (the edges of the normal cell, and those
of the reduction cell that halve the images and that do not), kappa and regions compile in a third
of the time.

The values of a cell's nodes are one array, [node + 1, ...]; the last entry collects unused values.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, PyTree, Shaped

from tenas_jax.architectures.cell_space import CellSpace

# Maps the parameters of a step, its images and other inputs to images and sown values.
Compute = Callable[[PyTree, Array, PyTree], tuple[Array, PyTree]]
Branch = Callable[[PyTree, Array], tuple[Array, PyTree]]


@dataclass(frozen=True)
class Steps:
    """The edges that leave some nodes of a cell, in steps of several edges of a node.

    Args:
        space: the search space.
        nodes: the nodes, in ascending order.
        width: number of edges per step; the last step of a node may have fewer.

    Example:
        >>> from tenas_jax.spaces import NAS_BENCH_201
        >>> steps = Steps(NAS_BENCH_201, (0, 1, 2), 2)
        >>> steps.sources.tolist(), steps.edges.tolist()  # there is no edge 6
        ([0, 0, 1, 2], [[0, 1], [3, 6], [2, 4], [5, 6]])
        >>> steps.targets.tolist()
        [[1, 2], [3, 4], [2, 3], [3, 4]]
    """

    space: CellSpace
    nodes: tuple[int, ...]
    width: int

    @property
    def _by_node(self) -> list[tuple[int, Int[np.ndarray, "step width"]]]:
        nobody = len(self.space.edges)
        by_node = []
        for node in self.nodes:
            edges = np.array(self.space.outgoing(node))
            padded = np.pad(edges, (0, -len(edges) % self.width), constant_values=nobody)
            by_node.append((node, padded.reshape(-1, self.width)))
        return by_node

    @property
    def sources(self) -> Int[np.ndarray, " step"]:
        """The node that the edges of a step leave."""
        return np.concatenate([np.full(len(edges), node) for node, edges in self._by_node])

    @property
    def edges(self) -> Int[np.ndarray, "step width"]:
        """The edges of a step, padded with one past the last edge."""
        return np.concatenate([edges for _, edges in self._by_node])

    @property
    def targets(self) -> Int[np.ndarray, "step width"]:
        """The nodes in which they end, padded with one past the last node."""
        ends = [target for _, target in self.space.edges]
        targets: np.ndarray = np.array([*ends, self.space.num_nodes])[self.edges]
        return targets

    def stack(self, by_node: Sequence[PyTree]) -> PyTree[Float[Array, "step width ..."]]:
        """The parameters of each node's parallel edges, [edge, ...], by step."""

        def stacked(*leaves: Array) -> Array:
            parts = [
                jnp.pad(leaf, [(0, -len(leaf) % self.width)] + [(0, 0)] * (leaf.ndim - 1))
                for leaf in leaves
            ]
            return jnp.concatenate(parts).reshape(-1, self.width, *leaves[0].shape[1:])

        return jax.tree.map(stacked, *by_node)


def scan_all(
    compute: Compute,
    params: PyTree[Float[Array, "step ..."]],
    given: PyTree[Float[Array, "step ..."]],
    values: Float[Array, "node ..."],
    inputs: Float[Array, "input ..."] | None,
    steps: Steps,
    channel_axis: int,
) -> tuple[Float[Array, "node ..."], PyTree]:
    """Apply all operators of the edges to their sources, and add the results to the targets.

    Args:
        compute: computes a step: the images of its edges side by side, and the sown values.
        params: parameters of each step.
        given: other inputs of each step.
        values: values of the nodes.
        inputs: the sources, if their size differs from that of `values`.
        steps: the edges.
        channel_axis: the axis along which the edges' images are side by side.

    Returns:
        The values, and the sown values, [step, ...].
    """

    def step(values: Array, each: tuple[Any, ...]) -> tuple[Array, PyTree]:
        source, targets, params, given = each
        if inputs is None:
            x, values = _read(values, source)
        else:
            x = _take(inputs, source)
        outputs, sown = compute(params, x, given)
        for i, output in enumerate(jnp.split(outputs, steps.width, channel_axis)):
            values = _add(values, targets[i], output)
        return values, sown

    each = (jnp.array(steps.sources), jnp.array(steps.targets), params, given)
    result: tuple[Array, PyTree] = lax.scan(step, values, each)
    return result


def scan_kept(
    branches: Sequence[Branch],
    params: Sequence[PyTree[Float[Array, "step ..."]]],
    kept: Int[Array, " step"],
    values: Float[Array, "node ..."],
    inputs: Float[Array, "input ..."] | None,
    steps: Steps,
) -> tuple[Float[Array, "node ..."], PyTree]:
    """Apply one operator of each edge to its source, and add the result to the target.

    Only that operator is computed. Its residuals are stored in an array as large as the most
    demanding operator needs; JAX would store, and copy, the residuals of all operators.

    Args:
        branches: the operators; each maps its parameters and images to images and sown values.
        params: parameters of each operator, for each step.
        kept: the operator of each step.
        values: values of the nodes.
        inputs: the sources, if their size differs from that of `values`.
        steps: the edges, of width 1.

    Returns:
        The values, and the sown values as one array [step, ...] per leaf, padded with zeros for
        operators that sow less.
    """
    numbers = jnp.arange(len(steps.sources))
    each = (numbers, jnp.array(steps.sources), jnp.array(steps.targets[:, 0]), kept)

    def own(params: PyTree, i: Array) -> PyTree:
        return jax.tree.map(lambda leaf: _take(leaf, i), params)

    def apply(branch: Branch, params: PyTree, i: Array, x: Array) -> tuple[Array, PyTree, PyTree]:
        y, pullback, sown = jax.vjp(branch, own(params, i), x, has_aux=True)
        return y, sown, pullback

    # `jax.jit` caches the trace, which is needed twice: for the shapes and in the loop.
    applied = [jax.jit(partial(apply, branch)) for branch in branches]
    x = values[0] if inputs is None else inputs[0]
    shapes = [jax.eval_shape(f, own, numbers[0], x) for f, own in zip(applied, params, strict=True)]
    sown_by = _Union([shape[1] for shape in shapes])
    saved_by = _Union([shape[2] for shape in shapes])
    gradients = _Union([jax.tree.map(lambda leaf: leaf[0], own) for own in params])

    @jax.custom_vjp
    def scan(
        params: list[PyTree], each: tuple[Array, ...], values: Array, inputs: Array | None
    ) -> tuple[Array, PyTree]:
        return forward(params, each, values, inputs)[0]

    def forward(
        params: list[PyTree], each: tuple[Array, ...], values: Array, inputs: Array | None
    ) -> tuple[tuple[Array, PyTree], PyTree]:
        def branch(k: int, i: Array, x: Array) -> tuple[Array, PyTree, PyTree]:
            y, sown, pullback = applied[k](params[k], i, x)
            return y, sown_by.pack(sown), saved_by.pack(pullback)

        def step(values: Array, each: tuple[Array, ...]) -> tuple[Array, tuple[PyTree, PyTree]]:
            i, source, target, kept = each
            x = _take(values if inputs is None else inputs, source)
            options = [partial(branch, k) for k in range(len(branches))]
            y, sown, saved = lax.switch(kept, options, i, x)
            return _add(values, target, y), (sown, saved)

        zeros = None if inputs is None else jnp.zeros_like(inputs)
        values, (sown, saved) = lax.scan(step, values, each)
        return (values, sown), (saved, each, zeros)

    def backward(residuals: PyTree, cotangent: tuple[Array, PyTree]) -> tuple[PyTree, ...]:
        saved, each, inputs = residuals

        def branch(k: int, i: Array, cotangent: Array) -> tuple[PyTree, Array]:
            pullback = saved_by.unpack(k, own(saved, i))
            gradient, x = pullback(cotangent)
            return gradients.pack(gradient), x

        def step(
            state: tuple[Array, Array | None], each: tuple[Array, ...]
        ) -> tuple[PyTree, PyTree]:
            (values, inputs), (i, source, target, kept) = state, each
            options = [partial(branch, k) for k in range(len(branches))]
            gradient, x = lax.switch(kept, options, i, _take(values, target))
            if inputs is None:
                return (_add(values, source, x), None), gradient
            return (values, _add(inputs, source, x)), gradient

        state, packed = lax.scan(step, (cotangent[0], inputs), each, reverse=True)

        def of_branch(k: int) -> PyTree:
            there = [jnp.where((each[-1] == k)[:, None], leaf, 0) for leaf in packed]
            return jax.vmap(partial(gradients.unpack, k))(there)

        return [of_branch(k) for k in range(len(branches))], None, *state

    scan.defvjp(forward, backward)
    return scan(list(params), each, values, inputs)


def _take(values: Shaped[Array, "i ..."], i: Int[Array, ""]) -> Shaped[Array, "..."]:
    """`values[i]` for i within bounds."""
    sizes = (1, *values.shape[1:])
    taken = lax.dynamic_slice(values, _start(values, i), sizes, allow_negative_indices=False)
    return taken[0]


@jax.custom_vjp
def _add(values: Float[Array, "i ..."], i: Int[Array, ""], y: Array) -> Float[Array, "i ..."]:
    """Add `y` to the i-th value, in place if XLA can."""
    sums, start = (_take(values, i) + y)[None], _start(values, i)
    return lax.dynamic_update_slice(values, sums, start, allow_negative_indices=False)


def _start(values: Array, i: Array) -> list[Array | int]:
    return [i, *[0] * (values.ndim - 1)]


_add.defvjp(
    lambda values, i, y: (_add(values, i, y), i),
    lambda i, cotangent: (cotangent, None, _take(cotangent, i)),
)


@jax.custom_vjp
def _read(values: Float[Array, "i ..."], i: Int[Array, ""]) -> tuple[Array, Float[Array, "i ..."]]:
    """The i-th value, and the values; its cotangent is added to theirs in place."""
    return _take(values, i), values


_read.defvjp(
    lambda values, i: (_read(values, i), i),
    lambda i, cotangents: (_add(cotangents[1], i, cotangents[0]), None),
)


class _Union:
    """A union of pytrees: arrays of the same size hold any one of several structures.

    Args:
        structures: the pytrees, of arrays or shapes.
    """

    def __init__(self, structures: Sequence[PyTree]) -> None:
        self._leaves, self._trees = zip(*map(jax.tree.flatten, structures), strict=True)
        self._sizes: dict[Any, int] = {}
        for leaves in self._leaves:
            for dtype in dict.fromkeys(leaf.dtype for leaf in leaves):
                size = sum(leaf.size for leaf in leaves if leaf.dtype == dtype)
                self._sizes[dtype] = max(size, self._sizes.get(dtype, 0))

    def pack(self, tree: PyTree) -> list[Array]:
        """Pack the arrays of a pytree into one per data type, padded with zeros."""
        leaves, packed = jax.tree.leaves(tree), []
        for dtype, size in self._sizes.items():
            flat = [leaf.reshape(-1) for leaf in leaves if leaf.dtype == dtype]
            missing = size - sum(part.size for part in flat)
            packed.append(jnp.concatenate([*flat, jnp.zeros(missing, dtype)]))
        return packed

    def unpack(self, k: int, packed: Sequence[Array]) -> PyTree:
        """The inverse of `pack` for a pytree of the k-th structure."""
        arrays, start = dict(zip(self._sizes, packed, strict=True)), dict.fromkeys(self._sizes, 0)
        leaves = []
        for leaf in self._leaves[k]:
            first = start[leaf.dtype]
            start[leaf.dtype] += leaf.size
            leaves.append(arrays[leaf.dtype][first : start[leaf.dtype]].reshape(leaf.shape))
        return jax.tree.unflatten(self._trees[k], leaves)

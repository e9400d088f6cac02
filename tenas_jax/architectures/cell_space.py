"""Cell spaces: a cell is a directed graph whose edges all choose from the same operators."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Array, Bool

from tenas_jax.architectures import genotype
from tenas_jax.architectures.genotype import Notation
from tenas_jax.architectures.space import (
    Bit,
    Choice,
    Costs,
    Decision,
    Group,
    Mask,
    ProxySize,
    SearchSpace,
    require_mask,
    require_masks,
)
from tenas_jax.errors import InputError
from tenas_jax.resolve import named_pairs, require_names

NONE = "none"
"""The name of the zero operator, which interrupts paths."""


Operators = Iterable[tuple[str, Callable[..., Any]]] | Mapping[str, Callable[..., Any]]


@runtime_checkable
class Macro(Protocol):
    """How the cells of a space form networks; see `SearchSpace` for the methods."""

    @property
    def has_single_paths(self) -> bool:
        """Whether there is a faster supernet for masks with at most one operator per edge."""

    def supernet(self, space: "CellSpace", size: ProxySize, layout: Any) -> Any:
        """The network to measure metrics on."""

    def region_network(self, space: "CellSpace", size: ProxySize, layout: Any) -> Any:
        """The network to count linear regions on, or None."""

    @property
    def network(self) -> Callable[..., Any]:
        """A function of `(space, mask, *, num_classes, ...)` that returns a network."""

    def costs(self, space: "CellSpace", masks: np.ndarray) -> Costs:
        """Parameters and FLOPs of the network of each mask."""


@dataclass(frozen=True)
class CellSpace:
    """A search space whose cells are directed graphs; every edge chooses from the same operators.

    Nodes are numbered from 0, starting with the inputs of the cell. To add an operator, replace
    `operators`; everything else follows:

        dataclasses.replace(NAS_BENCH_201, name="mine", operators=[*NAS_BENCH_201.operators,
                                                                   ("my_conv", MyConv)])

    Args:
        name: the name used in files and messages.
        operators: (name, class) of each operator (see `tenas_jax.networks.ops.Op`), or a mapping;
            stored as a tuple of pairs. The operator named `none` is the zero operator.
        edges: (source node, target node), in the order in which a genotype lists them.
        cell_types: names of the cell types, which are searched together.
        input_nodes: number of inputs of a cell.
        notation: how genotypes are written.
        macro: how cells form networks.
        edges_per_node: number of incoming edges that a node keeps in a genotype; None: all.
        none_is_choice: whether a genotype may list `none`.
        concatenate: whether the output of a cell is the concatenation of its intermediate nodes;
            otherwise it is the last node.
        initializer: name of the initializer that `default` stands for.
        image_multiple: image sides must be multiples of this.
        same_size: cell types whose nodes always have the size and channels of the cell's inputs.
            In other cells, an operator with `is_identity` on an edge from an input does not count
            as the identity.

    Raises:
        InputError: names are missing, repeated or not of letters, digits and underscores.

    Example:
        >>> from tenas_jax.spaces import NAS_BENCH_201
        >>> NAS_BENCH_201.num_nodes, NAS_BENCH_201.shape
        (4, (1, 6, 5))
    """

    name: str
    operators: Operators
    edges: tuple[tuple[int, int], ...]
    cell_types: tuple[str, ...]
    input_nodes: int
    notation: Notation
    macro: Macro
    edges_per_node: int | None = None
    none_is_choice: bool = True
    concatenate: bool = False
    initializer: str = "pytorch"
    image_multiple: int = 1
    same_size: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        pairs = named_pairs(self.operators)
        require_names(f"{self.name}: operator", [name for name, _ in pairs])
        require_names(f"{self.name}: cell type", self.cell_types)
        object.__setattr__(self, "operators", pairs)  # a tuple can be hashed
        if set(self.ops) <= {NONE}:
            raise InputError(f"{self.name} has no operator to choose: give it some besides 'none'")

    @property
    def ops(self) -> tuple[str, ...]:
        """Names of the operators."""
        return tuple(dict(self.operators))

    @property
    def num_nodes(self) -> int:
        """Number of nodes of a cell, including its inputs."""
        return 1 + max(target for _, target in self.edges)

    @property
    def intermediate_nodes(self) -> range:
        """The nodes that are not inputs, in order."""
        return range(self.input_nodes, self.num_nodes)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of a mask: (cell types, edges, operators)."""
        return len(self.cell_types), len(self.edges), len(self.ops)

    @property
    def edge_names(self) -> tuple[str, ...]:
        """Each edge as `target<-source`."""
        return tuple(f"{target}<-{source}" for source, target in self.edges)

    @property
    def has_single_paths(self) -> bool:
        """Whether `supernet` has a faster network for masks with at most one operator per edge."""
        return self.macro.has_single_paths

    def op_names(self, edge: int) -> tuple[str, ...]:
        """Names of the operators, which are the same on every edge."""
        return self.ops

    def is_identity(self, cell: int, edge: int, op: int) -> bool:
        """Whether an operator returns its input unchanged, wherever its cell is in a network.

        Args:
            cell: index of the cell type.
            edge: index of the edge.
            op: index of the operator.

        Example:
            >>> from tenas_jax.spaces import DARTS
            >>> skip = DARTS.ops.index("skip_connect")
            >>> [DARTS.is_identity(cell, 0, skip) for cell in (0, 1)]  # a reduction cell is smaller
            [True, False]
        """
        operator = dict(self.operators)[self.ops[op]]
        resized = self.edges[edge][0] < self.input_nodes and (
            self.cell_types[cell] not in self.same_size
        )
        return bool(getattr(operator, "is_identity", False)) and not resized

    def outgoing(self, node: int) -> tuple[int, ...]:
        """Indices of the edges that start in a node.

        Example:
            >>> from tenas_jax.spaces import NAS_BENCH_201
            >>> NAS_BENCH_201.outgoing(1)
            (2, 4)
        """
        return tuple(i for i, (source, _) in enumerate(self.edges) if source == node)

    def incoming(self, node: int) -> tuple[int, ...]:
        """Indices of the edges that end in a node.

        Example:
            >>> from tenas_jax.spaces import NAS_BENCH_201
            >>> NAS_BENCH_201.incoming(2)
            (1, 2)
        """
        return tuple(i for i, (_, target) in enumerate(self.edges) if target == node)

    def edges_kept(self, node: int) -> int:
        """Number of incoming edges that a node has in a genotype.

        Example:
            >>> from tenas_jax.spaces import DARTS, NAS_BENCH_201
            >>> NAS_BENCH_201.edges_kept(3), DARTS.edges_kept(3)
            (3, 2)
        """
        return self.edges_per_node or len(self.incoming(node))

    @property
    def op_choices(self) -> tuple[str, ...]:
        """The operators that a genotype may list."""
        return tuple(op for op in self.ops if op != NONE or self.none_is_choice)

    def initial_mask(self) -> Mask:
        """The mask of the supernet that a search starts from: every operator except `none`.

        Example:
            >>> from tenas_jax.spaces import NAS_BENCH_201
            >>> NAS_BENCH_201.initial_mask()[0, 0]
            array([False,  True,  True,  True,  True])
        """
        return np.tile(np.array(self.ops) != NONE, (*self.shape[:2], 1))

    def decisions(self) -> list[Decision]:
        """One decision per node of each cell type: its incoming edges and their operators."""
        ops = [self.ops.index(op) for op in self.op_choices]
        return [
            Decision(cell, _choices(self.incoming(node), self.edges_kept(node), ops))
            for cell in range(len(self.cell_types))
            for node in self.intermediate_nodes
        ]

    def groups(self, mask: Mask, prune_number: int = 1) -> list[Group]:
        """The groups of edges that the next step prunes; empty once a single path is left.

        While some edge has several operators, each such edge is a group. Afterwards the only group
        is the edges into the first node that has more of them than it may keep. Nodes are pruned
        one at a time, so each is measured on the network that the previous one left.

        The original limits the number pruned on every edge by the operators left on the first edge
        (prune_tenas.py:80); here each edge has its own limit.

        Args:
            mask: operators kept.
            prune_number: operators to prune per edge and step, but never the last one of an edge.
                The surplus edges of a node are always pruned in one step.

        Example:
            >>> from tenas_jax.spaces import NAS_BENCH_201
            >>> NAS_BENCH_201.groups(NAS_BENCH_201.initial_mask(), prune_number=7)[-1]
            Group(cell=0, edges=(5,), prune=3)
        """

        def surplus(cell: int, edges: Sequence[int], keep: int) -> int:
            return int(mask[cell, list(edges)].sum()) - keep

        cells = range(len(self.cell_types))
        by_edge = [
            Group(cell, (edge,), min(prune_number, surplus(cell, (edge,), 1)))
            for cell in cells
            for edge in range(len(self.edges))
        ]
        by_node = [
            Group(cell, edges, surplus(cell, edges, self.edges_kept(node)))
            for cell in cells
            for node in self.intermediate_nodes
            for edges in [self.incoming(node)]
        ]
        crowded_edges = [group for group in by_edge if group.prune > 0]
        return crowded_edges or [group for group in by_node if group.prune > 0][:1]

    def to_string(self, mask: Mask) -> str:
        """The genotype of a mask that keeps a single path; see `tenas_jax.architectures.genotype`.

        Raises:
            InputError: the mask has another shape or is not a genotype (yet).
        """
        require_mask(self, mask)
        return genotype.to_string(self, mask)

    def from_string(self, text: str) -> Mask:
        """The mask of a genotype; see `tenas_jax.architectures.genotype`.

        Raises:
            InputError: the text is not a genotype of this space.
        """
        return genotype.from_string(self, text)

    def recognizes(self, text: str) -> bool:
        """Whether a text looks like the notation of this space."""
        return self.notation.recognizes(text)

    def occupied(
        self, mask: Bool[Array | np.ndarray, "edge op"]
    ) -> Bool[Array | np.ndarray, "edge"]:
        """Which edges of a cell have an operator other than `none`.

        Args:
            mask: operators kept in the cell; may be traced.

        Example:
            >>> from tenas_jax.spaces import NAS_BENCH_201
            >>> mask = np.eye(6, 5, dtype=bool)  # `none` on the first edge, nothing on the last
            >>> NAS_BENCH_201.occupied(mask)
            array([False,  True,  True,  True,  True, False])
        """
        there: Array | np.ndarray = (mask & (np.array(self.ops) != NONE)[None]).any(-1)
        return there

    def connecting(self, mask: Bool[Array | np.ndarray, "edge op"]) -> list[Bit]:
        """Whether each edge lies on a path from an input to the output of a cell.

        Args:
            mask: operators kept in the cell; may be traced.

        Example:
            >>> from tenas_jax.spaces import NAS_BENCH_201
            >>> mask = np.zeros((6, 5), bool)
            >>> mask[[0, 3], 1] = True  # nothing leaves node 1, where the first edge ends
            >>> [bool(edge) for edge in NAS_BENCH_201.connecting(mask)]
            [False, False, False, True, False, False]
        """
        kept = list(self.occupied(mask))
        nodes = np.arange(self.num_nodes)
        reached: list[Bit] = list(nodes < self.input_nodes)
        for (source, target), there in zip(self.edges, kept, strict=True):
            reached[target] = reached[target] | reached[source] & there
        first_output = self.input_nodes if self.concatenate else self.num_nodes - 1
        read: list[Bit] = list(nodes >= first_output)
        for (source, target), there in reversed(list(zip(self.edges, kept, strict=True))):
            read[source] = read[source] | read[target] & there
        edges = zip(self.edges, kept, strict=True)
        return [reached[source] & there & read[target] for (source, target), there in edges]

    def connected(self, mask: Bool[Array | np.ndarray, "cell edge op"]) -> Bit:
        """Whether the input of some cell reaches its output; the mask may be traced."""
        edges = [edge for cell in mask for edge in self.connecting(cell)]
        result = edges[0]
        for edge in edges[1:]:
            result = result | edge
        return result

    def on_paths(self, mask: Mask) -> Mask:
        """The operators that lie on a path from an input to the output of their cell."""
        edges = np.array([self.connecting(cell) for cell in mask])
        kept: Mask = mask & edges[..., None]
        return kept

    def supernet(self, size: ProxySize, layout: Any) -> Any:
        """The Flax module that metrics are measured on; its inputs are `(images, mask)`."""
        return self.macro.supernet(self, self._with_initializer(size), layout)

    def region_network(self, size: ProxySize, layout: Any) -> Any:
        """The Flax module for linear regions, called like `supernet`; or None."""
        return self.macro.region_network(self, self._with_initializer(size), layout)

    def network(self, mask: Mask, **options: Any) -> Any:
        """The trainable Flax module of an architecture; the options are those of its macro.

        Raises:
            InputError: the mask is not a single path, or there is no such network.
        """
        self.to_string(mask)
        return self.macro.network(self, mask, **options)

    def costs(self, masks: Bool[np.ndarray, "*batch cell edge op"]) -> Costs:
        """Parameters and FLOPs of the network of each mask, at its published size.

        Raises:
            InputError: the masks have another shape.
        """
        require_masks(self, masks)
        return self.macro.costs(self, masks)

    def _with_initializer(self, size: ProxySize) -> ProxySize:
        return (
            dataclasses.replace(size, initializer=self.initializer)
            if size.initializer == "default"
            else size
        )


def has_dead_operators(space: SearchSpace, mask: Mask) -> bool:
    """Whether some operator lies on no path from an input to the output of its cell.

    Such an operator has parameters but no effect. `none` does not count as an operator: it
    interrupts paths.

    Args:
        space: the search space.
        mask: operators kept, of shape `space.shape`.

    Example:
        >>> from tenas_jax.spaces import NAS_BENCH_201
        >>> mask = np.zeros(NAS_BENCH_201.shape, bool)
        >>> mask[0, 3, 1] = True  # from node 0 to node 3, the output
        >>> has_dead_operators(NAS_BENCH_201, mask)
        False
        >>> mask[0, 0, 1] = True  # from node 0 to node 1, which nothing reads
        >>> has_dead_operators(NAS_BENCH_201, mask)
        True
    """
    dead = np.argwhere(mask & ~space.on_paths(mask)).tolist()
    return any(space.op_names(int(edge))[op] != NONE for _, edge, op in dead)


def _choices(edges: Sequence[int], kept: int, ops: Sequence[int]) -> list[Choice]:
    return [
        tuple(zip(chosen_edges, chosen, strict=True))
        for chosen_edges in itertools.combinations(edges, kept)
        for chosen in itertools.product(ops, repeat=kept)
    ]

"""Search spaces: which operators may stand on which edges of a cell."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Array, Bool

from tenas_jax.errors import InputError


@dataclass(frozen=True)
class SearchSpace:
    """A cell as a directed graph whose edges each choose among the same operators.

    Nodes are numbered from 0, the inputs of the cell first. A supernet or an architecture is a
    boolean mask of `shape`: which operators are kept on which edge of which cell type.

    Args:
        name: the name users give on the command line.
        ops: operator names; `none`, where there is one, is the zero operator.
        edges: (source node, target node), in the order in which a genotype lists them.
        cell_types: names of the cells searched for at the same time.
        input_nodes: number of inputs of a cell.
        edges_per_node: how many incoming edges a node keeps in a genotype; None: all of them.

    Example:
        >>> NAS_BENCH_201.num_nodes, NAS_BENCH_201.shape
        (4, (1, 6, 5))
    """

    name: str
    ops: tuple[str, ...]
    edges: tuple[tuple[int, int], ...]
    cell_types: tuple[str, ...]
    input_nodes: int
    edges_per_node: int | None

    @property
    def num_nodes(self) -> int:
        """Number of nodes of a cell, its inputs included."""
        return 1 + max(target for _, target in self.edges)

    @property
    def intermediate_nodes(self) -> range:
        """The nodes that are computed from others, in order."""
        return range(self.input_nodes, self.num_nodes)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of a mask: (cell types, edges, operators)."""
        return len(self.cell_types), len(self.edges), len(self.ops)

    def outgoing(self, node: int) -> tuple[int, ...]:
        """Indices of the edges that start in a node.

        Example:
            >>> NAS_BENCH_201.outgoing(1)
            (2, 4)
        """
        return tuple(i for i, (source, _) in enumerate(self.edges) if source == node)

    def incoming(self, node: int) -> tuple[int, ...]:
        """Indices of the edges that end in a node.

        Example:
            >>> NAS_BENCH_201.incoming(2)
            (1, 2)
        """
        return tuple(i for i, (_, target) in enumerate(self.edges) if target == node)

    def edges_kept(self, node: int) -> int:
        """How many incoming edges a node has in a genotype.

        Example:
            >>> NAS_BENCH_201.edges_kept(3), DARTS.edges_kept(3)
            (3, 2)
        """
        return self.edges_per_node or len(self.incoming(node))

    def initial_mask(self) -> Bool[np.ndarray, "cell edge op"]:
        """The supernet that a search starts from: everything kept but `none`.

        Example:
            >>> NAS_BENCH_201.initial_mask()[0, 0]
            array([False,  True,  True,  True,  True])
        """
        return np.tile(np.array(self.ops) != "none", (*self.shape[:2], 1))


NAS_BENCH_201 = SearchSpace(
    name="nas-bench-201",
    ops=("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3"),
    edges=tuple((source, target) for target in range(1, 4) for source in range(target)),
    cell_types=("cell",),
    input_nodes=1,
    edges_per_node=None,
)

DARTS = SearchSpace(
    name="darts",
    ops=(
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
    cell_types=("normal", "reduce"),
    input_nodes=2,
    edges_per_node=2,
)

SPACES = {"nas-bench-201": NAS_BENCH_201, "darts": DARTS}


def get_space(name: str) -> SearchSpace:
    """The search space of that name.

    Args:
        name: a key of `SPACES`.

    Raises:
        InputError: no space has this name.

    Example:
        >>> get_space("darts").cell_types
        ('normal', 'reduce')
    """
    if name not in SPACES:
        raise InputError(f"unknown search space {name!r}: choose from {', '.join(SPACES)}")
    return SPACES[name]


def has_dead_operators(space: SearchSpace, mask: Bool[np.ndarray, "cell edge op"]) -> bool:
    """Whether some operator lies on no path from an input to the output of its cell.

    Such an operator costs parameters but cannot matter. `none` is no operator: it interrupts
    paths.

    Args:
        space: the search space.
        mask: operators kept, of shape `space.shape`.

    Example:
        >>> mask = np.zeros(NAS_BENCH_201.shape, bool)
        >>> mask[0, 3, 1] = True  # from node 0 to node 3, the output
        >>> has_dead_operators(NAS_BENCH_201, mask)
        False
        >>> mask[0, 0, 1] = True  # from node 0 to node 1, from which nothing goes on
        >>> has_dead_operators(NAS_BENCH_201, mask)
        True
    """
    return any((occupied(space, cell) & ~np.array(connecting(space, cell))).any() for cell in mask)


def occupied(
    space: SearchSpace, mask: Bool[Array | np.ndarray, "edge op"]
) -> Bool[Array | np.ndarray, "edge"]:
    """On which edges of a cell there is an operator; `none` is no operator.

    Args:
        space: the search space.
        mask: operators kept in the cell; may be traced.

    Example:
        >>> mask = np.eye(6, 5, dtype=bool)  # `none` on the first edge, nothing on the last
        >>> occupied(NAS_BENCH_201, mask)
        array([False,  True,  True,  True,  True, False])
    """
    there: Array | np.ndarray = (mask & (np.array(space.ops) != "none")[None]).any(-1)
    return there


Bit = bool | np.bool | Bool[Array, ""]


def connecting(space: SearchSpace, mask: Bool[Array | np.ndarray, "edge op"]) -> list[Bit]:
    """Whether each edge lies on a path from an input to the output of a cell.

    The output is the last node, or every intermediate node where a space concatenates them.

    Args:
        space: the search space.
        mask: operators kept in the cell; may be traced.

    Example:
        >>> mask = np.zeros((6, 5), bool)
        >>> mask[[0, 3], 1] = True  # nothing leaves node 1, where the first edge ends
        >>> [bool(edge) for edge in connecting(NAS_BENCH_201, mask)]
        [False, False, False, True, False, False]
    """
    kept = list(occupied(space, mask))
    nodes = np.arange(space.num_nodes)
    reached: list[Bit] = list(nodes < space.input_nodes)
    for (source, target), there in zip(space.edges, kept, strict=True):
        reached[target] = reached[target] | reached[source] & there
    read: list[Bit] = list(
        nodes >= (space.input_nodes if space.edges_per_node else space.num_nodes - 1)
    )
    for (source, target), there in reversed(list(zip(space.edges, kept, strict=True))):
        read[source] = read[source] | read[target] & there
    edges = zip(space.edges, kept, strict=True)
    return [reached[source] & there & read[target] for (source, target), there in edges]

"""Notations of cells: convert architectures from masks to text and back.

- `EDGE_LIST`, the notation of NAS-Bench-201, lists every edge with its source node:
  `|op~0|+|op~0|op~1|+|op~0|op~1|op~2|`. Several cell types are listed by name: `normal=|op~0|,
  reduce=|op~0|`.
- `GENOTYPE`, the notation of DARTS, lists the edges that each node keeps:
  `Genotype(normal=[('op', 0), ('op', 1), ...], normal_concat=range(2, 6), reduce=[...],
  reduce_concat=range(2, 6))`.

Both can be read from logs and source files: in quotes, after `genotype =` or a logger's prefix,
over several lines.
"""

import re
from collections.abc import Sequence
from itertools import chain, islice
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool

from tenas_jax.architectures.literals import (
    Located,
    Misread,
    read_call,
    require_end,
    without_colors,
)
from tenas_jax.errors import InputError

Pair = tuple[str, int]  # operator, source node
Nodes = list[list[Pair]]  # the inputs of each intermediate node


@runtime_checkable
class Cells(Protocol):
    """The part of a `CellSpace` that a notation needs."""

    @property
    def name(self) -> str:
        """The name of the space."""

    @property
    def edges(self) -> tuple[tuple[int, int], ...]:
        """(source node, target node) of each edge."""

    @property
    def cell_types(self) -> tuple[str, ...]:
        """Names of the cell types."""

    @property
    def ops(self) -> tuple[str, ...]:
        """Names of the operators."""

    @property
    def op_choices(self) -> tuple[str, ...]:
        """The operators that a genotype may list."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of a mask."""

    @property
    def intermediate_nodes(self) -> range:
        """The nodes that are not inputs."""

    @property
    def notation(self) -> "Notation":
        """How genotypes are written."""

    def incoming(self, node: int) -> tuple[int, ...]:
        """Indices of the edges that end in a node."""

    def edges_kept(self, node: int) -> int:
        """Number of incoming edges that a node has in a genotype."""


@runtime_checkable
class Notation(Protocol):
    """How the architectures of a cell space are written."""

    def write(self, space: Cells, cells: list[Nodes]) -> str:
        """The text of the operators into each node of each cell type."""

    def read(self, space: Cells, text: str) -> list[Nodes]:
        """The inverse of `write`; raises `InputError` for any other text."""

    def recognizes(self, text: str) -> bool:
        """Whether a text looks like this notation."""


def to_string(space: Cells, mask: Bool[np.ndarray, "cell edge op"]) -> str:
    """The genotype of a mask that keeps a single path.

    Args:
        space: the search space.
        mask: operators kept, of shape `space.shape`.

    Returns:
        The text in the notation of the space, the inputs of a node in ascending order.

    Raises:
        InputError: the mask is not a genotype (yet).

    Example:
        >>> from tenas_jax.spaces import NAS_BENCH_201
        >>> to_string(NAS_BENCH_201, np.tile(np.arange(5) == 0, (1, 6, 1)))
        '|none~0|+|none~0|none~1|+|none~0|none~1|none~2|'
    """
    cells = [
        [_kept_pairs(space, mask, cell, node) for node in space.intermediate_nodes]
        for cell in range(len(space.cell_types))
    ]
    return space.notation.write(space, cells)


def from_string(space: Cells, text: str) -> Bool[np.ndarray, "cell edge op"]:
    """The mask of a genotype.

    Variants found in logs are accepted: `Structure(4 nodes with |...|)` around a NAS-Bench-201
    string; and in a DARTS genotype lists instead of ranges, a list for each node, NumPy's numbers,
    and fields that are `None`.

    Args:
        space: the search space.
        text: a genotype in the notation of the space.

    Returns:
        Operators kept, of shape `space.shape`: one on each edge of the genotype, none elsewhere.

    Raises:
        InputError: the text is not a genotype of this space; the message says where and why.

    Example:
        >>> from tenas_jax.spaces import NAS_BENCH_201
        >>> text = "|none~0|+|none~0|none~1|+|none~0|none~1|skip_connect~2|"
        >>> from_string(NAS_BENCH_201, text)[0, -1]
        array([False,  True, False, False, False])
    """
    cells = space.notation.read(space, without_colors(text))
    mask = np.zeros(space.shape, bool)
    for cell, nodes in enumerate(cells):
        for node, pairs in zip(space.intermediate_nodes, nodes, strict=True):
            _check_pairs(space, f"{space.cell_types[cell]} node {node}", node, pairs)
            for op, source in pairs:
                mask[cell, space.edges.index((source, node)), space.ops.index(op)] = True
    return mask


class EdgeList:
    """NAS-Bench-201's notation: every edge, node by node."""

    def write(self, space: Cells, cells: list[Nodes]) -> str:
        """The text of the operators into each node of each cell type."""
        texts = [_node_texts(nodes) for nodes in cells]
        if len(texts) == 1:
            return texts[0]
        return ", ".join(
            f"{name}={text}" for name, text in zip(space.cell_types, texts, strict=True)
        )

    def read(self, space: Cells, text: str) -> list[Nodes]:
        """The inverse of `write`; also reads `Structure(4 nodes with |...|)`."""
        sources = [[space.edges[e][0] for e in space.incoming(n)] for n in space.intermediate_nodes]
        form = self.write(space, [[[("op", s) for s in node] for node in sources]] * space.shape[0])
        try:
            return _edge_lists(space.cell_types, len(sources), text)
        except Misread as error:
            raise error.explain(space.name, text, form) from None

    def recognizes(self, text: str) -> bool:
        """Whether a text looks like this notation."""
        return bool(re.search(r"\|[\w.-]+~[0-9]", text))


class Genotype:
    """DARTS's notation: the edges that each node keeps."""

    def write(self, space: Cells, cells: list[Nodes]) -> str:
        """The text of the operators into each node of each cell type."""
        fields = [
            f"{name}={list(chain.from_iterable(nodes))}, {name}_concat={space.intermediate_nodes}"
            for name, nodes in zip(space.cell_types, cells, strict=True)
        ]
        return f"Genotype({', '.join(fields)})"

    def read(self, space: Cells, text: str) -> list[Nodes]:
        """The inverse of `write`; see `from_string` for the variants accepted."""
        nodes, op = space.intermediate_nodes, space.op_choices[0]
        form = ", ".join(f"{c}=[('{op}', 0), ...], {c}_concat={nodes}" for c in space.cell_types)
        needed = [name for each in space.cell_types for name in (each, f"{each}_concat")]
        try:
            fields = read_call(text, "Genotype", needed)
            for name, (value, at) in fields.items():
                if name not in needed and value is not None:
                    raise Misread("there is no such field", at)
            for name in needed:
                if name not in fields:
                    raise Misread(f"the field {name} is missing")
            listed = [_by_node(fields[name]) for name in space.cell_types]
        except Misread as error:
            raise error.explain(space.name, text, f"Genotype({form})") from None
        for name in needed[1::2]:
            if _numbers(fields[name]) != list(nodes):
                raise InputError(f"{name} differs: {space.name} needs {nodes}")
        return [self._nodes(space, *each) for each in zip(space.cell_types, listed, strict=True)]

    def recognizes(self, text: str) -> bool:
        """Whether a text looks like this notation."""
        return bool(re.search(r"\bGenotype\s*\(", without_colors(text)))

    def _nodes(self, space: Cells, name: str, listed: list[list[Pair]]) -> Nodes:
        """The pairs of each node, from one list per node or from one list of all pairs."""
        counts = [space.edges_kept(node) for node in space.intermediate_nodes]
        if len(listed) > 1:
            if [len(pairs) for pairs in listed] != counts:
                lengths = ", ".join(str(len(pairs)) for pairs in listed)
                raise InputError(
                    f"{name} lists {lengths} pairs by node: {space.name} needs {_listed(counts)}"
                )
            return listed
        if len(listed[0]) != sum(counts):
            raise InputError(
                f"{name} lists {len(listed[0])} pairs: {space.name} needs {sum(counts)}"
            )
        rest = iter(listed[0])
        return [list(islice(rest, count)) for count in counts]


EDGE_LIST, GENOTYPE = EdgeList(), Genotype()


def _kept_pairs(space: Any, mask: np.ndarray, cell: int, node: int) -> list[Pair]:
    pairs = [
        (space.ops[op], space.edges[edge][0])
        for edge in space.incoming(node)
        for op in np.flatnonzero(mask[cell, edge])
    ]
    _check_pairs(space, f"not a single path: {space.cell_types[cell]} node {node}", node, pairs)
    return pairs


def _check_pairs(space: Any, where: str, node: int, pairs: list[Pair]) -> None:
    sources = [source for _, source in pairs]
    choices = [space.edges[edge][0] for edge in space.incoming(node)]
    if len(pairs) != space.edges_kept(node) or len(set(sources)) != len(pairs):
        inputs = f"inputs {sorted(set(sources))}" if len(pairs) < 10 else "its inputs"
        raise InputError(
            f"{where} has {len(pairs)} operators on {inputs}: "
            f"{space.name} needs one on each of {space.edges_kept(node)} inputs"
        )
    for op, source in pairs:
        if source not in choices:
            raise InputError(f"{where} has input {source}: choose from {_listed(choices)}")
        if op not in space.op_choices:
            given = repr(op) if len(op) < 30 else "another operator"
            raise InputError(f"{where} has {given}: choose from {_listed(space.op_choices)}")


def _node_texts(nodes: Nodes) -> str:
    return "+".join(f"|{'|'.join(f'{op}~{source}' for op, source in pairs)}|" for pairs in nodes)


def _listed(choices: Sequence[Any]) -> str:
    return ", ".join(map(str, choices))


def _edge_lists(cell_types: Sequence[str], nodes: int, text: str) -> list[Nodes]:
    """The cells of a text in NAS-Bench-201's notation."""
    at = _start(text, "|" if len(cell_types) == 1 else f"{cell_types[0]}=")
    cells: list[Nodes] = []
    for name in cell_types:
        if len(cell_types) > 1:
            label = re.compile(rf"\s*{',' if cells else ''}\s*{re.escape(name)}\s*=\s*").match(
                text, at
            )
            if label is None:
                raise Misread(f"{name}= is missing", at)
            at = label.end()
        cell, at = _edge_list(text, at)
        if len(cell) < nodes:
            raise Misread(f"'operator~node|' or '+' for node {len(cell) + 1} is missing", at)
        if len(cell) > nodes:
            raise Misread(f"there are {len(cell)} nodes, not {nodes}")
        cells.append(cell)
    require_end(text, at)
    return cells


def _start(text: str, first: str) -> int:
    """Where a genotype starts; text before it must end in a space or a punctuation mark."""
    for following in (r"\s*\|?[\w.-]+~[0-9]", ""):  # bars may separate the fields of a log
        before = re.compile(
            rf"(.*?[\s\"'`=:,(\[])??(?={re.escape(first)}{following})", re.DOTALL
        ).match(text)
        if before is not None:
            return before.end()
    raise Misread(f"there is no {first}")


def _edge_list(text: str, at: int) -> tuple[Nodes, int]:
    """The operators into each node of the cell at an index of the text, and the cell's end."""
    nodes: Nodes = []
    while True:
        pairs: list[Pair] = []
        if not text.startswith("|", at):
            raise Misread("'|' is missing", at)
        while pair := _PAIR.match(text, at):
            pairs.append((pair[1], int(pair[2])))
            at = pair.end() - 1
        if not pairs:
            raise Misread("'operator~node|' is missing", at + 1)
        nodes.append(pairs)
        plus = _PLUS.match(text, at)
        if plus is None:
            return nodes, at + 1
        at = plus.end()


_PAIR = re.compile(r"\|([\w.-]+)~([0-9]{1,3})\|")
_PLUS = re.compile(r"\|\s*\+\s*")


def _by_node(field: Located) -> list[list[Pair]]:
    """The pairs of a field: one list per node if the field is nested, otherwise one list."""
    if not isinstance(field.value, list):
        raise Misread("this is not a list of (operator, node)", field.at)
    nested = all(isinstance(each.value, list) for each in field.value) and any(
        isinstance(part.value, list) for each in field.value for part in each.value
    )
    return [list(map(_pair, node.value)) for node in (field.value if nested else [field])]


def _pair(item: Located) -> Pair:
    parts = [part.value for part in item.value] if isinstance(item.value, list) else []
    if [type(part) for part in parts] != [str, int]:
        raise Misread("this is not a pair (operator, node)", item.at)
    return parts[0], parts[1]


def _numbers(field: Located) -> list[Any]:
    value = field.value
    if isinstance(value, range):
        return list(value[:1000])
    return [each.value for each in value] if isinstance(value, list) else []

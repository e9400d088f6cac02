"""Notations of cells: the text of an architecture, to and from its mask.

- `EDGE_LIST`, as NAS-Bench-201 writes it, lists every edge: `|op~0|+|op~0|op~1|+|op~0|op~1|op~2|`,
  where the number is the source node. Several cell types are listed by name: `normal=|op~0|,
  reduce=|op~0|`.
- `GENOTYPE`, as DARTS writes it, lists the edges that each node keeps:
  `Genotype(normal=[('op', 0), ('op', 1), ...], normal_concat=range(2, 6), reduce=[...],
  reduce_concat=range(2, 6))`.
"""

import ast
import re
from collections.abc import Sequence
from itertools import chain, islice
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool

from tenas_jax.errors import InputError

Pair = tuple[str, int]  # operator, source node
Nodes = list[list[Pair]]  # the inputs of each intermediate node


@runtime_checkable
class Cells(Protocol):
    """What a notation needs to know of a space; see `CellSpace`."""

    @property
    def name(self) -> str:
        """The name of the space."""

    @property
    def edges(self) -> tuple[tuple[int, int], ...]:
        """(source node, target node) of each edge."""

    @property
    def cell_types(self) -> tuple[str, ...]:
        """Names of the cells."""

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
        """The nodes that are computed from others."""

    @property
    def notation(self) -> "Notation":
        """How genotypes are written."""

    def incoming(self, node: int) -> tuple[int, ...]:
        """Indices of the edges that end in a node."""

    def edges_kept(self, node: int) -> int:
        """How many incoming edges a node has in a genotype."""


@runtime_checkable
class Notation(Protocol):
    """How the architectures of a space of cells are written."""

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

    What TE-NAS logs is read as well: `Structure(4 nodes with |...|)` around a NAS-Bench-201 string,
    lists in place of ranges in a DARTS genotype.

    Args:
        space: the search space.
        text: in the notation of the space.

    Returns:
        Operators kept, of shape `space.shape`: one on each edge of the genotype, none on others.

    Raises:
        InputError: the text is not a genotype of this space.

    Example:
        >>> from tenas_jax.spaces import NAS_BENCH_201
        >>> text = "|none~0|+|none~0|none~1|+|none~0|none~1|skip_connect~2|"
        >>> from_string(NAS_BENCH_201, text)[0, -1]
        array([False,  True, False, False, False])
    """
    cells = space.notation.read(space, text)
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
        """The inverse of `write`; `Structure(4 nodes with |...|)` is read as well."""
        logged = re.fullmatch(r"Structure\(\d+ nodes with (.*)\)", text.strip())
        plain = logged[1] if logged else text.strip()
        parts = [plain]
        if len(space.cell_types) > 1:
            named = [part.partition("=") for part in re.split(r",\s*", plain)]
            if [name for name, _, _ in named] != list(space.cell_types):
                raise self._fault(space, text)
            parts = [part for _, _, part in named]
        return [self._read_cell(space, part, text) for part in parts]

    def recognizes(self, text: str) -> bool:
        """Whether a text looks like this notation."""
        return bool(re.match(r"\s*(Structure\(|([\w.-]+=)?\|)", text))

    def _read_cell(self, space: Cells, part: str, text: str) -> Nodes:
        nodes = part.split("+")
        well_formed = all(re.fullmatch(r"\|([\w.-]+~[0-9]{1,3}\|)+", node) for node in nodes)
        if not well_formed or len(nodes) != len(space.intermediate_nodes):
            raise self._fault(space, text)
        return [[(op, int(n)) for op, n in re.findall(r"([\w.-]+)~(\d+)", node)] for node in nodes]

    def _fault(self, space: Cells, text: str) -> InputError:
        sources = [[space.edges[e][0] for e in space.incoming(n)] for n in space.intermediate_nodes]
        nodes = [[("op", source) for source in node] for node in sources]
        form = self.write(space, [nodes] * len(space.cell_types))
        return InputError(f"{excerpt(text)} is not a genotype of {space.name}: write {form}")


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
        """The inverse of `write`; lists in place of ranges are read as well."""
        nodes, op = space.intermediate_nodes, space.op_choices[0]
        form = ", ".join(f"{c}=[('{op}', 0), ...], {c}_concat={nodes}" for c in space.cell_types)
        try:
            fields = _call_arguments(text.strip(), "Genotype")
            flat = [fields.pop(name) for name in space.cell_types]
            concats = {name: fields.pop(name) for name in [f"{c}_concat" for c in space.cell_types]}
            if fields or not all(map(_is_list_of_pairs, flat)):
                raise ValueError(text)
        except (SyntaxError, ValueError, TypeError, KeyError, RecursionError, MemoryError) as error:
            fault = f"{excerpt(text)} is not a genotype of {space.name}"
            raise InputError(f"{fault}: write Genotype({form})") from error
        for name, concat in concats.items():
            if concat not in (nodes, list(nodes), tuple(nodes)):
                raise InputError(f"{name} is {excerpt(str(concat))}: {space.name} needs {nodes}")
        needed = sum(map(space.edges_kept, nodes))
        for name, pairs in zip(space.cell_types, flat, strict=True):
            if len(pairs) != needed:
                raise InputError(f"{name} lists {len(pairs)} pairs: {space.name} needs {needed}")
        rest = [iter(pairs) for pairs in flat]
        return [[list(islice(pairs, space.edges_kept(node))) for node in nodes] for pairs in rest]

    def recognizes(self, text: str) -> bool:
        """Whether a text looks like this notation."""
        return text.lstrip().startswith("Genotype(")


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
        raise InputError(
            f"{where} has {len(pairs)} operators on inputs {sorted(set(sources))}: "
            f"{space.name} needs one on each of {space.edges_kept(node)} inputs"
        )
    for op, source in pairs:
        if source not in choices:
            raise InputError(f"{where} has input {source}: choose from {_listed(choices)}")
        if op not in space.op_choices:
            raise InputError(f"{where} has {op!r}: choose from {_listed(space.op_choices)}")


def _node_texts(nodes: Nodes) -> str:
    return "+".join(f"|{'|'.join(f'{op}~{source}' for op, source in pairs)}|" for pairs in nodes)


def _call_arguments(text: str, function: str) -> dict[str | None, Any]:
    """The keyword arguments of a call, literals or ranges; ValueError for anything else."""
    call = ast.parse(text, mode="eval").body
    if not isinstance(call, ast.Call) or ast.unparse(call.func) != function or call.args:
        raise ValueError(text)
    arguments = {keyword.arg: _literal(keyword.value) for keyword in call.keywords}
    if len(arguments) != len(call.keywords):
        raise ValueError(text)
    return arguments


def _literal(node: ast.expr) -> object:
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "range":
        return range(*map(ast.literal_eval, node.args))
    return ast.literal_eval(node)


def _is_list_of_pairs(value: object) -> bool:
    return isinstance(value, list | tuple) and all(
        isinstance(pair, list | tuple) and [type(part) for part in pair] == [str, int]
        for pair in value
    )


def _listed(choices: Sequence[Any]) -> str:
    return ", ".join(map(str, choices))


def excerpt(text: str) -> str:
    """A text for a message, in quotes and not too long.

    Example:
        >>> excerpt("x" * 99) == repr("x" * 57 + "...")
        True
    """
    return repr(text if len(text) <= 60 else f"{text[:57]}...")

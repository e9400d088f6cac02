"""Genotypes: the text of an architecture, to and from its mask.

Two notations, each as its own project prints and reads it:

- NAS-Bench-201, every edge of the one cell: `|op~0|+|op~0|op~1|+|op~0|op~1|op~2|`, where the
  number is the source node;
- DARTS, the edges that each node keeps, two by two: `Genotype(normal=[('op', 0), ('op', 1), ...],
  normal_concat=range(2, 6), reduce=[...], reduce_concat=range(2, 6))`.
"""

import ast
import re
from itertools import chain, islice
from typing import Any

import numpy as np
from jaxtyping import Bool

from tenas_jax.errors import InputError
from tenas_jax.spaces import SearchSpace

Pair = tuple[str, int]  # operator, source node
Nodes = list[list[Pair]]  # the inputs of each intermediate node


def to_string(space: SearchSpace, mask: Bool[np.ndarray, "cell edge op"]) -> str:
    """The genotype of a mask that keeps a single path.

    Args:
        space: the search space.
        mask: operators kept, of shape `space.shape`.

    Returns:
        A NAS-Bench-201 string or a DARTS genotype, the inputs of a node in ascending order.

    Raises:
        InputError: the mask has another shape or is not a genotype (yet).

    Example:
        >>> from tenas_jax.spaces import NAS_BENCH_201
        >>> to_string(NAS_BENCH_201, np.tile(np.arange(5) == 0, (1, 6, 1)))
        '|none~0|+|none~0|none~1|+|none~0|none~1|none~2|'
    """
    if mask.shape != space.shape:
        raise InputError(f"the mask has shape {mask.shape}: {space.name} needs {space.shape}")
    cells = [
        [_kept_pairs(space, mask, cell, node) for node in space.intermediate_nodes]
        for cell in range(len(space.cell_types))
    ]
    if _lists_all_edges(space):
        return _bench_text(cells[0])
    concat = space.intermediate_nodes
    fields = [
        f"{name}={list(chain.from_iterable(nodes))}, {name}_concat={concat}"
        for name, nodes in zip(space.cell_types, cells, strict=True)
    ]
    return f"Genotype({', '.join(fields)})"


def from_string(space: SearchSpace, text: str) -> Bool[np.ndarray, "cell edge op"]:
    """The mask of a genotype.

    What TE-NAS logs is read as well: `Structure(4 nodes with |...|)` around a NAS-Bench-201 string,
    lists in place of ranges in a DARTS genotype.

    Args:
        space: the search space.
        text: a NAS-Bench-201 string or a DARTS genotype, whichever the space uses.

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
    cells = _parse_bench(space, text) if _lists_all_edges(space) else _parse_darts(space, text)
    mask = np.zeros(space.shape, bool)
    for cell, nodes in enumerate(cells):
        for node, pairs in zip(space.intermediate_nodes, nodes, strict=True):
            _check_pairs(space, f"{space.cell_types[cell]} node {node}", node, pairs)
            for op, source in pairs:
                mask[cell, space.edges.index((source, node)), space.ops.index(op)] = True
    return mask


def _lists_all_edges(space: SearchSpace) -> bool:
    return space.edges_per_node is None


def _op_choices(space: SearchSpace) -> list[str]:
    # Where a genotype leaves out edges it has no use for `none`.
    return [op for op in space.ops if op != "none" or _lists_all_edges(space)]


def _kept_pairs(space: SearchSpace, mask: np.ndarray, cell: int, node: int) -> list[Pair]:
    pairs = [
        (space.ops[op], space.edges[edge][0])
        for edge in space.incoming(node)
        for op in np.flatnonzero(mask[cell, edge])
    ]
    _check_pairs(space, f"not a single path: {space.cell_types[cell]} node {node}", node, pairs)
    return pairs


def _check_pairs(space: SearchSpace, where: str, node: int, pairs: list[Pair]) -> None:
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
        if op not in _op_choices(space):
            raise InputError(f"{where} has {op!r}: choose from {_listed(_op_choices(space))}")


def _bench_text(nodes: Nodes) -> str:
    return "+".join(f"|{'|'.join(f'{op}~{source}' for op, source in pairs)}|" for pairs in nodes)


def _parse_bench(space: SearchSpace, text: str) -> list[Nodes]:
    logged = re.fullmatch(r"Structure\(\d+ nodes with (.*)\)", text.strip())
    nodes = (logged[1] if logged else text.strip()).split("+")
    well_formed = all(re.fullmatch(r"\|(\w+~[0-9]{1,3}\|)+", node) for node in nodes)
    if not well_formed or len(nodes) != len(space.intermediate_nodes):
        sources = [[space.edges[e][0] for e in space.incoming(n)] for n in space.intermediate_nodes]
        form = _bench_text([[("op", source) for source in node] for node in sources])
        raise InputError(f"{_excerpt(text)} is not a genotype of {space.name}: write {form}")
    return [[[(op, int(n)) for op, n in re.findall(r"(\w+)~(\d+)", node)] for node in nodes]]


def _parse_darts(space: SearchSpace, text: str) -> list[Nodes]:
    nodes, op = space.intermediate_nodes, _op_choices(space)[0]
    form = ", ".join(f"{c}=[('{op}', 0), ...], {c}_concat={nodes}" for c in space.cell_types)
    try:
        fields = _call_arguments(text.strip(), "Genotype")
        flat = [fields.pop(name) for name in space.cell_types]
        concats = {name: fields.pop(name) for name in [f"{c}_concat" for c in space.cell_types]}
        if fields or not all(map(_is_list_of_pairs, flat)):
            raise ValueError(text)
    except (SyntaxError, ValueError, TypeError, KeyError, RecursionError, MemoryError) as error:
        fault = f"{_excerpt(text)} is not a genotype of {space.name}"
        raise InputError(f"{fault}: write Genotype({form})") from error
    for name, concat in concats.items():
        if concat not in (nodes, list(nodes), tuple(nodes)):
            raise InputError(f"{name} is {_excerpt(str(concat))}: {space.name} needs {nodes}")
    needed = sum(map(space.edges_kept, nodes))
    for name, pairs in zip(space.cell_types, flat, strict=True):
        if len(pairs) != needed:
            raise InputError(f"{name} lists {len(pairs)} pairs: {space.name} needs {needed}")
    rest = [iter(pairs) for pairs in flat]
    return [[list(islice(pairs, space.edges_kept(node))) for node in nodes] for pairs in rest]


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


def _listed(choices: list[Any]) -> str:
    return ", ".join(map(str, choices))


def _excerpt(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")

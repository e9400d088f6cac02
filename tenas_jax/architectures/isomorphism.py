"""Isomorphic architectures: different genotypes of the same network.

A cell is reduced to a graph of layers. Each layer has its own weights and reads a sum of other
layers. `none` and operators that lie on no path are dropped; an identity is not a layer, so the
node it leads to adds the node it comes from. Two architectures are isomorphic if renumbering the
layers turns one graph into the other. Their networks then differ only in which random weights each
layer gets.

NAS-Bench-201 counts 6,466 architectures by comparing strings (Dong and Yang, 2020, section 2.1).
Strings distinguish sums whose terms come in another order, and they do not distinguish one layer
that is read twice from two layers with the same input. Graphs give 5,425.
"""

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from tenas_jax.architectures.cell_space import CellSpace, has_dead_operators
from tenas_jax.architectures.space import Mask, Masks, SearchSpace, require_masks
from tenas_jax.errors import InputError

OUTPUT = -1  # in place of an operator

Terms = tuple[tuple[int, int], ...]
"""(layer, number of times it is added); -1, -2, ... are the inputs of the cell."""


class Layer(NamedTuple):
    """An operator of a cell, or an output."""

    op: int
    reads: Terms
    """The terms of its input, a sum."""
    readers: Terms
    """The layers that read it."""


def first_of_each_class(
    space: SearchSpace, masks: Masks
) -> tuple[Int[np.ndarray, " class"], Int[np.ndarray, " architecture"]]:
    """One architecture of each class of isomorphic ones.

    Args:
        space: the search space; unless it is a `CellSpace`, each architecture is its own class.
        masks: architectures.

    Returns:
        The index of the first architecture of each class, if possible the first one without dead
        operators; and the class number of each architecture, with which
        `values_of_classes[inverse]` gives the values of all architectures.

    Raises:
        InputError: the masks have another shape, or keep several operators on an edge.

    Example:
        >>> from tenas_jax.spaces import NAS_BENCH_201
        >>> texts = ["|none~0|+|none~0|none~1|+|nor_conv_3x3~0|none~1|none~2|",
        ...          "|none~0|+|none~0|none~1|+|nor_conv_1x1~0|none~1|none~2|",
        ...          "|skip_connect~0|+|none~0|none~1|+|none~0|nor_conv_3x3~1|none~2|"]
        >>> masks = np.stack([NAS_BENCH_201.from_string(text) for text in texts])
        >>> [each.tolist() for each in first_of_each_class(NAS_BENCH_201, masks)]
        [[0, 1], [0, 1, 0]]
    """
    require_masks(space, masks)
    members: dict[Hashable, list[int]] = {}
    for i, mask in enumerate(masks):
        members.setdefault(canonical_form(space, mask), []).append(i)
    inverse = np.empty(len(masks), int)
    first = []
    for number, indices in enumerate(members.values()):
        inverse[indices] = number
        alive = (i for i in indices if not has_dead_operators(space, masks[i]))
        first.append(next(alive, indices[0]))
    return np.array(first, int), inverse


def canonical_form(space: SearchSpace, mask: Mask) -> Hashable:
    """A value that is equal for isomorphic architectures, and only for these.

    Args:
        space: the search space; only a `CellSpace` has isomorphic architectures.
        mask: an architecture, of shape `space.shape`.

    Returns:
        A hashable value.

    Raises:
        InputError: the mask keeps several operators on an edge.
    """
    if not isinstance(space, CellSpace):
        return mask.tobytes()
    if mask.sum(-1).max() > 1:
        raise InputError(
            "a mask keeps several operators on an edge: only architectures are isomorphic"
        )
    cells = (_layers(space, cell, kept) for cell, kept in enumerate(mask))
    return tuple(_numbered(layers, [layer.op for layer in layers]) for layers in cells)


def _layers(space: CellSpace, cell: int, mask: Bool[np.ndarray, "edge op"]) -> list[Layer]:
    """The layers of a cell that lie on a path, and its outputs."""
    ops: list[int] = []
    reads: list[Counter[int]] = []
    values: list[Counter[int]] = [Counter({-1 - node: 1}) for node in range(space.input_nodes)]
    used = space.connecting(mask)
    for node in space.intermediate_nodes:
        total: Counter[int] = Counter()
        for edge in space.incoming(node):
            if used[edge]:
                source, op = space.edges[edge][0], int(mask[edge].argmax())
                if space.is_identity(cell, edge, op):
                    total.update(values[source])
                else:
                    total[len(ops)] += 1
                    ops.append(op)
                    reads.append(values[source])
        values.append(total)
    outputs = values[space.input_nodes :] if space.concatenate else values[-1:]
    ops += [OUTPUT] * len(outputs)
    reads += outputs
    readers: list[dict[int, int]] = [{} for _ in ops]
    for reader, total in enumerate(reads):
        for read, times in total.items():
            if read >= 0:
                readers[read][reader] = times
    return [
        Layer(op, tuple(sorted(total.items())), tuple(sorted(readers[i].items())))
        for i, (op, total) in enumerate(zip(ops, reads, strict=True))
    ]


def _numbered(layers: Sequence[Layer], colors: Sequence[int]) -> tuple[Hashable, ...]:
    """The layers in an order that does not depend on their numbering.

    Color refinement: layers with different operators or neighbors get different colors. If layers
    still share a color, each of them in turn is individualized, and the smallest result is taken.
    """
    before, count = -1, 0
    while before < count < len(layers):
        neighbors = [
            (color, _colored(layer.reads, colors), _colored(layer.readers, colors))
            for layer, color in zip(layers, colors, strict=True)
        ]
        ranks = {each: rank for rank, each in enumerate(sorted(set(neighbors)))}
        before, count, colors = count, len(ranks), [ranks[each] for each in neighbors]
    if count == len(layers):
        order = sorted(range(count), key=colors.__getitem__)
        return tuple((layers[i].op, _colored(layers[i].reads, colors)) for i in order)
    color = min(color for color, places in Counter(colors).items() if places > 1)
    # Layers with the same neighbors are interchangeable: one of them suffices.
    different = {layer[1:]: i for i, layer in enumerate(layers) if colors[i] == color}
    choices = (
        _numbered(layers, [2 * each + (i == chosen) for i, each in enumerate(colors)])
        for chosen in different.values()
    )
    return min(choices)


def _colored(terms: Terms, colors: Sequence[int]) -> Terms:
    """Replace layers by their colors; inputs keep their numbers."""
    return tuple(sorted([(colors[i] if i >= 0 else i, times) for i, times in terms]))

"""Which architectures are the same network, written differently.

A cell is reduced to its layers: `none` and what lies on no path are left out, and an identity is no
layer, so that its target adds what its source is. What is left is a graph of layers, each with its
own weights, that read sums of others. Architectures are isomorphic if a renumbering of layers turns
one of these graphs into the other: their networks then differ only in which weights are drawn for
which layer.

NAS-Bench-201 counts 6,466 architectures by comparing strings (Dong and Yang, 2020, section 2.1).
Strings tell sums apart that list the same terms in another order, and do not tell apart one layer
that is read twice from two layers that read the same: by graphs there are 5,425.
"""

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from tenas_jax.architectures.cell_space import CellSpace, has_dead_operators
from tenas_jax.architectures.space import Mask, Masks, SearchSpace, require_masks
from tenas_jax.errors import InputError

OUTPUT = -1  # stands for an operator

Terms = tuple[tuple[int, int], ...]
"""Which layers, and how many times each; -1, -2, ... are the inputs of the cell."""


class Layer(NamedTuple):
    """An operator of a cell, or an output."""

    op: int
    reads: Terms
    """The sum that it is applied to."""
    readers: Terms
    """The layers that read it."""


def first_of_each_class(
    space: SearchSpace, masks: Masks
) -> tuple[Int[np.ndarray, " class"], Int[np.ndarray, " architecture"]]:
    """One architecture of each class of isomorphic ones.

    Args:
        space: the search space; in one that is no `CellSpace` each architecture is a class.
        masks: architectures.

    Returns:
        The index of the first architecture of each class, if possible of one without dead
        operators; and for each architecture the number of its class, so that
        `values_of_classes[inverse]` are those of the architectures.

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
    """What isomorphic architectures have in common, and no others.

    Args:
        space: the search space; one that is no `CellSpace` has no isomorphic architectures.
        mask: an architecture, of shape `space.shape`.

    Returns:
        A value to compare.

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
    """The layers in an order that does not depend on how they were numbered.

    Layers get colors, those with different operators or neighbors different ones. Where some have
    the same, each of them in turn is made different, and the least result is taken.
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
    # Those with the same neighbors can change places: one of them is as good as another.
    different = {layer[1:]: i for i, layer in enumerate(layers) if colors[i] == color}
    choices = (
        _numbered(layers, [2 * each + (i == chosen) for i, each in enumerate(colors)])
        for chosen in different.values()
    )
    return min(choices)


def _colored(terms: Terms, colors: Sequence[int]) -> Terms:
    """Terms with colors in place of layers; inputs keep their numbers."""
    return tuple(sorted([(colors[i] if i >= 0 else i, times) for i, times in terms]))

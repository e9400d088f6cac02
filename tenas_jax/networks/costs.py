"""The costs of a network: exact numbers of parameters and of multiply-adds per image.

Multiply-adds are read from the program that JAX traces, not from formulas per layer. As in the
tables of NAS-Bench-201 and the papers on the DARTS space, convolutions, matrix products and the
additions of the classifier's bias count; batch normalization, activations and pooling do not.
Networks are counted as used for inference, without an auxiliary head.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, PyTree

from tenas_jax.architectures.cell_space import NONE, CellSpace
from tenas_jax.architectures.space import Costs
from tenas_jax.errors import InputError
from tenas_jax.metrics.flops import MARK, Path, products
from tenas_jax.networks.discrete import Edge, Network, operator_name

ROOT = "(itself)"  # computations of a module outside of its submodules
MakeNetwork = Callable[[CellSpace, tuple[tuple[Edge, ...], ...]], Network]
"""Makes the network to count, from the edges of each cell type."""


class LayerCosts(NamedTuple):
    """A layer of a network: its name, output shape without the batch axis, and costs."""

    name: str
    output: tuple[int, ...]
    costs: Costs


def network_costs(network: nn.Module, image_size: int, channels: int = 3) -> Costs:
    """The costs of a network for images of a given size.

    Args:
        network: a module called with images [n, size, size, channels].
        image_size: height and width of the images.
        channels: number of channels of the images.

    Returns:
        Its parameters and multiply-adds, both integers.

    Raises:
        InputError: the network does not take images of this size.

    Example:
        >>> from tenas_jax.spaces import NAS_BENCH_201
        >>> text = "|none~0|+|none~0|none~1|+|nor_conv_3x3~0|none~1|none~2|"
        >>> network = NAS_BENCH_201.network(NAS_BENCH_201.from_string(text), num_classes=10)
        >>> network_costs(network, 32)
        Costs(parameters=316346, flops=43172490)
    """
    return total_costs(layer_costs(network, image_size, channels))


def total_costs(layers: Sequence[LayerCosts]) -> Costs:
    """The total costs of layers.

    Args:
        layers: the costs of each layer.

    Example:
        >>> total_costs([LayerCosts("a", (4,), Costs(1, 20)), LayerCosts("b", (4,), Costs(2, 5))])
        Costs(parameters=3, flops=25)
    """
    return Costs(
        sum(layer.costs.parameters for layer in layers), sum(layer.costs.flops for layer in layers)
    )


def layer_costs(network: nn.Module, image_size: int, channels: int = 3) -> list[LayerCosts]:
    """The costs of each layer of a network for images of a given size.

    Args:
        network: a module called with images [n, size, size, channels].
        image_size: height and width of the images.
        channels: number of channels of the images.

    Returns:
        Its outermost modules in the order of execution.

    Raises:
        InputError: the network does not take images of this size.
    """
    parameters, products, outputs = _trace(network, image_size, channels)
    return [
        LayerCosts(name, shape, Costs(_below(parameters, name), _below(products, name)))
        for name, shape in outputs.items()
    ]


def architecture_costs(
    space: CellSpace,
    masks: Bool[np.ndarray, "*batch cell edge op"],
    make: MakeNetwork,
    image_size: int,
) -> Costs:
    """The costs of the networks of many genotypes.

    Costs are additive: a part shared by all networks, plus a part for each operator on each edge.

    Args:
        space: the search space.
        masks: operators kept, of shape [..., *space.shape].
        make: makes the networks; a hashable function.
        image_size: height and width of the images.

    Returns:
        Parameters and multiply-adds, each an int64 array of shape [...].

    Example:
        >>> from tenas_jax.spaces import NAS_BENCH_201
        >>> only_none = np.tile(np.arange(5) == 0, (1, 6, 1))
        >>> parameters, flops = NAS_BENCH_201.costs(only_none)
        >>> int(parameters), int(flops)
        (73306, 7783050)
    """
    base, table = _cost_table(space, make, image_size)
    totals = base + np.tensordot(masks.astype(np.int64), table, 3)
    return Costs(totals[..., 0], totals[..., 1])


@cache
def _cost_table(
    space: CellSpace, make: MakeNetwork, image_size: int
) -> tuple[Int[np.ndarray, "2"], Int[np.ndarray, "cell edge op 2"]]:
    """Parameters and FLOPs shared by all networks, and those of each operator on each edge."""
    # An operator costs the same on all edges from inputs of a cell, and the same on all other
    # edges. The first edge of each kind gets all operators, so a single network is traced.
    kinds = [source < space.input_nodes for source, _ in space.edges]
    typical = [kinds.index(kind) for kind in kinds]
    edges = tuple(
        (*edge, op)
        for i, edge in enumerate(space.edges)
        for op in (space.ops if i in typical else (NONE,))
    )
    places = {
        (cell_type, operator_name(*space.edges[i], op)): (cell, i, column)
        for cell, cell_type in enumerate(space.cell_types)
        for i in set(typical)
        for column, op in enumerate(space.ops)
    }
    network = make(space, (edges,) * len(space.cell_types))
    base, table = np.zeros(2, np.int64), np.zeros((*space.shape, 2), np.int64)
    for column, counts in enumerate(_trace(network, image_size)[:2]):
        for path, count in counts.items():
            cell_type = path[0].rpartition("_")[0]
            place = next((places[key] for name in path if (key := (cell_type, name)) in places), ())
            (table[place] if place else base)[column] += count
    return base, table[:, typical]


def _below(counts: Counter[Path], layer: str) -> int:
    """The total count of the modules in a layer."""
    return sum(count for path, count in counts.items() if path[:1] == (layer,))


def _trace(
    network: nn.Module, image_size: int, channels: int = 3
) -> tuple[Counter[Path], Counter[Path], dict[str, tuple[int, ...]]]:
    """Parameters and multiply-adds by module, and the outermost modules' outputs in order."""
    if image_size < 1:
        raise InputError(f"image_size must be at least 1, not {image_size}")
    if isinstance(network, Network):
        network = network.clone(auxiliary=False)
    image = jax.ShapeDtypeStruct((1, image_size, image_size, channels), jnp.float32)
    variables = jax.eval_shape(network.init, jax.random.key(0), image)
    parameters: Counter[Path] = Counter()
    for path, leaf in flax.traverse_util.flatten_dict(variables["params"]).items():
        parameters[path[:-1] or (ROOT,)] += math.prod(leaf.shape)

    outputs: dict[str, tuple[int, ...]] = {}

    def mark(
        call: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        context: nn.module.InterceptorContext,
    ) -> Any:
        path = context.module.path or (ROOT,)
        with jax.named_scope(MARK + ".".join(path)):
            output = call(*args, **kwargs)
        if len(path) == 1 and context.method_name == "__call__":
            # The last node of a cell is its output.
            outputs[path[0]] = jax.tree.leaves(output)[-1].shape[1:]
        return output

    def apply(variables: PyTree, image: Array) -> Any:
        return network.apply(variables, image, mutable=["batch_stats"])[0]

    with nn.intercept_methods(mark):
        jaxpr = jax.make_jaxpr(apply)(variables, image).jaxpr
    counts = products(jaxpr, ())
    if isinstance(network, Network):
        counts["classifier",] += network.num_classes  # the additions of its bias
    used = {path[0] for path in (*parameters, *counts)}
    return (
        parameters,
        counts,
        {name: outputs[name] for name in outputs if name != ROOT or ROOT in used},
    )

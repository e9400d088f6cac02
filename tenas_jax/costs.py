"""What a network costs: parameters, and multiply-adds for an image, both counted exactly.

Multiply-adds are read from the program that JAX traces, not from formulas for each layer. Following
the tables of NAS-Bench-201 and the papers on the DARTS space, those of convolutions and matrix
products count, and the additions of the classifier's bias; batch normalization, activations and
pooling do not. Networks are counted as they are used, without an auxiliary head.
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
from jax.extend import core
from jaxtyping import Bool, Int

from tenas_jax.errors import InputError
from tenas_jax.network import NETWORKS, PUBLISHED_SIZES, Network, operator_name
from tenas_jax.spaces import SearchSpace

Path = tuple[str, ...]  # names of modules, from the outermost to the innermost

CIFAR_CLASSES, CIFAR_PIXELS = 10, 32
MARK = "@"  # before the names of modules among the scopes of a program


class Costs(NamedTuple):
    """Number of parameters, and of multiply-adds for one image."""

    parameters: Any  # an int, or an integer array with the leading axes of the masks
    flops: Any


class LayerCosts(NamedTuple):
    """A layer of a network, the shape of its output without the batch axis, and its costs."""

    name: str
    output: tuple[int, ...]
    costs: Costs


def flops(f: Callable[..., Any], *args: Any) -> int:
    """Multiply-adds of all convolutions and matrix products in one call of a function.

    Args:
        f: a function that JAX can trace.
        *args: its arguments; shapes suffice (`jax.ShapeDtypeStruct`).

    Raises:
        InputError: they depend on values: a loop of unknown length, or branches that differ.

    Example:
        >>> flops(jnp.matmul, jnp.zeros((2, 3)), jnp.zeros((3, 5)))
        30
    """
    return sum(_products(jax.make_jaxpr(f)(*args).jaxpr, ()).values())


def network_costs(network: Network, image_size: int) -> Costs:
    """What a network costs for images of a size.

    Args:
        network: a discrete network (`tenas_jax.network.build`).
        image_size: height and width of its images.

    Returns:
        Its parameters and multiply-adds, both integers.

    Raises:
        InputError: the network does not take images of this size.

    Example:
        >>> from tenas_jax.genotype import from_string
        >>> from tenas_jax.network import build
        >>> from tenas_jax.spaces import NAS_BENCH_201
        >>> text = "|none~0|+|none~0|none~1|+|nor_conv_3x3~0|none~1|none~2|"
        >>> mask = from_string(NAS_BENCH_201, text)
        >>> network_costs(build(NAS_BENCH_201, mask, num_classes=10), 32)
        Costs(parameters=316346, flops=43172490)
    """
    return total_costs(layer_costs(network, image_size))


def total_costs(layers: Sequence[LayerCosts]) -> Costs:
    """What layers cost together.

    Args:
        layers: what each costs.

    Example:
        >>> total_costs([LayerCosts("a", (4,), Costs(1, 20)), LayerCosts("b", (4,), Costs(2, 5))])
        Costs(parameters=3, flops=25)
    """
    return Costs(
        sum(layer.costs.parameters for layer in layers), sum(layer.costs.flops for layer in layers)
    )


def layer_costs(network: Network, image_size: int) -> list[LayerCosts]:
    """What each layer of a network costs for images of a size.

    Args:
        network: a discrete network (`tenas_jax.network.build`).
        image_size: height and width of its images.

    Returns:
        Its outermost modules in the order of their execution.

    Raises:
        InputError: the network does not take images of this size.
    """
    parameters, products, outputs = _trace(network, image_size)
    return [
        LayerCosts(name, shape, Costs(_below(parameters, name), _below(products, name)))
        for name, shape in outputs.items()
    ]


def architecture_costs(space: SearchSpace, masks: Bool[np.ndarray, "*batch cell edge op"]) -> Costs:
    """What the networks of many genotypes cost on CIFAR-10, in their published sizes.

    Costs are additive: a part that all networks share, and for each edge and operator its own.

    Args:
        space: the search space.
        masks: operators kept, of shape [..., *space.shape].

    Returns:
        Parameters and multiply-adds, each an int64 array of shape [...].

    Raises:
        InputError: the masks have another shape, or the space has no network.

    Example:
        >>> from tenas_jax.spaces import NAS_BENCH_201
        >>> only_none = np.tile(np.arange(5) == 0, (1, 6, 1))
        >>> parameters, flops = architecture_costs(NAS_BENCH_201, only_none)
        >>> int(parameters), int(flops)
        (73306, 7783050)
    """
    if masks.shape[-3:] != space.shape:
        raise InputError(f"masks of shape {masks.shape} do not end in {space.shape}")
    base, table = _cost_table(space)
    totals = base + np.tensordot(masks.astype(np.int64), table, 3)
    return Costs(totals[..., 0], totals[..., 1])


@cache
def _cost_table(
    space: SearchSpace,
) -> tuple[Int[np.ndarray, "2"], Int[np.ndarray, "cell edge op 2"]]:
    """What all networks share, and what each operator on each edge adds: parameters and FLOPs."""
    if space.name not in NETWORKS:
        raise InputError(f"{space.name} has no networks: choose from {', '.join(NETWORKS)}")
    # An operator costs the same on all edges that leave inputs of a cell, and on all others. The
    # first of each kind gets all operators at once: so there is a single network to be traced.
    kinds = [source < space.input_nodes for source, _ in space.edges]
    typical = [kinds.index(kind) for kind in kinds]
    edges = tuple(
        (*edge, op)
        for i, edge in enumerate(space.edges)
        for op in (space.ops if i in typical else ("none",))
    )
    places = {
        (cell_type, operator_name(*space.edges[i], op)): (cell, i, column)
        for cell, cell_type in enumerate(space.cell_types)
        for i in set(typical)
        for column, op in enumerate(space.ops)
    }
    channels, cells = PUBLISHED_SIZES[space.name, "cifar"]
    network = NETWORKS[space.name](
        cells_edges=(edges,) * len(space.cell_types),
        num_classes=CIFAR_CLASSES,
        channels=channels,
        cells=cells,
        stem="cifar",
        auxiliary=False,
        dtype=jnp.float32,
    )
    base, table = np.zeros(2, np.int64), np.zeros((*space.shape, 2), np.int64)
    for column, counts in enumerate(_trace(network, CIFAR_PIXELS)[:2]):
        for path, count in counts.items():
            cell_type = path[0].rpartition("_")[0]
            place = next((places[key] for name in path if (key := (cell_type, name)) in places), ())
            (table[place] if place else base)[column] += count
    return base, table[:, typical]


def _below(counts: Counter[Path], layer: str) -> int:
    """What the modules in a layer count together."""
    return sum(count for path, count in counts.items() if path[0] == layer)


def _trace(
    network: Network, image_size: int
) -> tuple[Counter[Path], Counter[Path], dict[str, tuple[int, ...]]]:
    """Parameters and multiply-adds by module, and the outermost modules' outputs in order."""
    if image_size < 1:
        raise InputError(f"image_size must be at least 1, not {image_size}")
    network = network.clone(auxiliary=False)
    image = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    variables = jax.eval_shape(network.init, jax.random.key(0), image)
    parameters: Counter[Path] = Counter()
    for path, leaf in flax.traverse_util.flatten_dict(variables["params"]).items():
        parameters[path[:-1]] += math.prod(leaf.shape)

    outputs: dict[str, tuple[int, ...]] = {}

    def mark(
        call: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        context: nn.module.InterceptorContext,
    ) -> Any:
        path = context.module.path
        with jax.named_scope(MARK + ".".join(path)):
            output = call(*args, **kwargs)
        if len(path) == 1 and context.method_name == "__call__":
            # Of the nodes of a cell the last one is its output.
            outputs[path[0]] = jax.tree.leaves(output)[-1].shape[1:]
        return output

    with nn.intercept_methods(mark):
        jaxpr = jax.make_jaxpr(network.apply)(variables, image).jaxpr
    products = _products(jaxpr, ())
    products["classifier",] += network.num_classes  # the additions of its bias
    return parameters, products, outputs


def _products(jaxpr: core.Jaxpr, path: Path) -> Counter[Path]:
    """Multiply-adds of a program by the module they belong to."""
    counts: Counter[Path] = Counter()
    for equation in jaxpr.eqns:
        primitive = equation.primitive.name
        scopes = str(equation.source_info.name_stack).split("/")
        marked = [scope for scope in scopes if scope.startswith(MARK)]
        here = tuple(marked[-1].removeprefix(MARK).split(".")) if marked else path
        if primitive in PRODUCTS:
            counts[here] += PRODUCTS[primitive](equation)
        programs = [_products(part, here) for part in core.jaxprs_in_params(equation.params)]
        if primitive == "cond":
            if any(each != programs[0] for each in programs):
                raise InputError("the branches of a cond cost differently: there is no exact count")
            programs = programs[:1]
        if primitive == "while" and any(programs):
            raise InputError("a loop runs an unknown number of times: there is no exact count")
        times = equation.params["length"] if primitive == "scan" else 1
        for program in programs:
            for module, count in program.items():
                counts[module] += times * count
    return counts


def _convolution(equation: core.JaxprEqn) -> int:
    kernel = _shape(equation.invars[1])
    outputs: int = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
    return math.prod(_shape(equation.outvars[0])) * math.prod(kernel) // outputs


def _matrix_product(equation: core.JaxprEqn) -> int:
    left = _shape(equation.invars[0])
    (contracted, _), _ = equation.params["dimension_numbers"]
    each: int = math.prod(left[axis] for axis in contracted)
    return math.prod(_shape(equation.outvars[0])) * each


def _shape(variable: Any) -> tuple[int, ...]:
    shape: tuple[int, ...] = variable.aval.shape
    return shape


PRODUCTS: dict[str, Callable[[core.JaxprEqn], int]] = {
    "conv_general_dilated": _convolution,
    "dot_general": _matrix_product,
}

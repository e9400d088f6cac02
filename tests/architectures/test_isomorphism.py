"""Isomorphic architectures, by comparison with all orders of the layers, and with strings."""

import dataclasses
import itertools
from collections import Counter, defaultdict

import jax
import numpy as np
import pytest
from my_nas import SPACE

from tenas_jax.architectures import EDGE_LIST, canonical_form, first_of_each_class
from tenas_jax.architectures.cell_space import has_dead_operators
from tenas_jax.architectures.enumeration import enumerate_all, sample
from tenas_jax.errors import InputError
from tenas_jax.networks.layouts import NHWC
from tenas_jax.networks.ops import ReLUConvBatchNorm, operators
from tenas_jax.networks.supernet import Cell
from tenas_jax.spaces import DARTS, NAS_BENCH_201, TRANSNAS_BENCH_101

MASKS = enumerate_all(NAS_BENCH_201)
OPS = [[NAS_BENCH_201.ops[i] for i in edges] for edges in MASKS[:, 0].argmax(-1)]
EDGES = NAS_BENCH_201.edges


def text_of_output(ops, zeros):
    """What NAS-Bench-201 compares (`Structure.to_unique_str`)."""
    nodes = ["0"]
    for node in (1, 2, 3):
        terms = []
        for (source, target), op in zip(EDGES, ops, strict=True):
            if target != node:
                continue
            if zeros and (op == "none" or nodes[source] == "#"):
                terms.append("#")
            elif op == "skip_connect":
                terms.append(nodes[source])
            else:
                terms.append(f"({nodes[source]})@{op}")
        nodes.append("+".join(sorted(terms)))
    return nodes[-1]


def least_of_all_orders(ops):
    """The graph of the layers that the output needs, in the order whose description is least."""
    layers, values = {}, [Counter({"x": 1}), Counter(), Counter(), Counter()]
    for edge, ((source, target), op) in enumerate(zip(EDGES, ops, strict=True)):
        if op == "none" or not values[source]:
            continue
        if op == "skip_connect":
            values[target] += values[source]
        else:
            layers[edge] = op, Counter(values[source])
            values[target] += Counter({edge: 1})
    needed, new = set(), set(values[3])
    while new:
        needed |= new
        new = {each for layer in new - {"x"} for each in layers[layer][1]} - needed
    needed = sorted(needed - {"x"})

    def described(order):
        names = {layer: i for i, layer in enumerate(order)} | {"x": -1}

        def named(value):
            return tuple(sorted((names[each], times) for each, times in value.items()))

        return (
            tuple((layers[each][0], named(layers[each][1])) for each in order),
            named(values[3]),
        )

    return min(map(described, itertools.permutations(needed)))


@pytest.fixture(scope="module")
def classes():
    return first_of_each_class(NAS_BENCH_201, MASKS)


def test_classes_of_nas_bench_201_are_those_of_brute_force(classes):
    first, inverse = classes
    assert len(first) == 5425
    numbers, expected = inverse[::3].tolist(), list(map(least_of_all_orders, OPS[::3]))
    pairs = set(zip(numbers, expected, strict=True))
    assert len(set(numbers)) == len(set(expected)) == len(pairs) > 2000


def test_strings_give_the_published_counts_and_other_classes(classes):
    """Of 6,466 strings some are the same graph, and some stand for several."""
    assert len({text_of_output(ops, zeros=False) for ops in OPS}) == 12751
    texts = [text_of_output(ops, zeros=True) for ops in OPS]
    assert len(set(texts)) == 6466
    numbers = defaultdict(set)
    for text, number in zip(texts, classes[1].tolist(), strict=True):
        numbers[text].add(number)
    assert max(map(len, numbers.values())) == 3
    assert sum(map(len, numbers.values())) == 7122  # in 5,425 classes


@pytest.mark.parametrize(
    ("one", "two", "same"),
    [
        pytest.param("3 00 000", "1 30 001", False, id="no path"),
        pytest.param("3 00 010", "0 00 300", True, id="skip after"),
        pytest.param("1 00 030", "0 00 300", True, id="skip before"),
        pytest.param("3 02 301", "3 20 013", False, id="other layer read"),
        pytest.param("0 20 301", "2 00 310", True, id="nodes exchanged"),
        pytest.param("3 01 011", "3 01 311", False, id="one layer twice, or three"),
        pytest.param("3 11 001", "1 33 001", False, id="one layer and x, or two layers"),
        pytest.param("3 01 011", "3 00 310", False, id="one layer twice, or two layers"),
        pytest.param("2 31 100", "0 00 100", True, id="dead operators"),
        pytest.param("0 00 000", "3 44 000", True, id="nothing arrives"),
        pytest.param("0 03 003", "0 00 000", True, id="nothing is read"),
        pytest.param("1 11 001", "1 01 011", True, id="x twice"),
        pytest.param("1 11 001", "1 01 001", False, id="x twice, or once"),
        pytest.param("0 40 001", "0 30 001", False, id="other operator"),
        pytest.param("3 33 111", "3 33 111", True, id="itself"),
    ],
)
def test_pairs(one, two, same):
    forms = [form(NAS_BENCH_201, text) for text in (one, two)]
    assert (forms[0] == forms[1]) == same


def of_numbers(space, digits):
    """The mask of the operators of six edges by their numbers."""
    numbers = list(map(int, digits.replace(" ", "")))
    return np.eye(len(space.ops), dtype=bool)[numbers][None]


def form(space, digits):
    return canonical_form(space, of_numbers(space, digits))


@pytest.mark.parametrize(
    ("one", "two", "layer", "edges"),
    [
        pytest.param("3 00 010", "0 00 300", "node_0_nor_conv_3x3", [2, 1, 0], id="skip after"),
        pytest.param("0 20 301", "2 00 310", "node_0_nor_conv_1x1", [1, 0, 2], id="exchanged"),
        pytest.param("2 31 100", "0 00 100", "node_0_nor_conv_1x1", [0, 1, 2], id="dead"),
    ],
)
def test_isomorphic_cells_compute_the_same(one, two, layer, edges):
    """When the weights of a layer are those of the edge where the other cell has it."""
    cell, rng = Cell(NAS_BENCH_201, 2, NHWC, "pytorch"), np.random.default_rng(0)
    x = jax.numpy.array(rng.normal(size=(3, 4, 4, 2)), "float32")
    first, second = (jax.numpy.array(of_numbers(NAS_BENCH_201, digits)[0]) for digits in (one, two))
    shapes = jax.eval_shape(cell.init, jax.random.key(0), [x], first)["params"]
    params = jax.tree.map(
        lambda leaf: jax.numpy.array(rng.normal(size=leaf.shape), "float32"), shapes
    )
    moved = jax.tree.map(lambda leaf: leaf[np.array(edges)], params[layer])
    apply = jax.jit(lambda params, mask: cell.apply({"params": params}, [x], mask)[-1])
    output = apply(params, first)
    assert np.std(output) > 0.1
    np.testing.assert_allclose(output, apply({**params, layer: moved}, second), atol=1e-4)


def test_representatives_have_no_dead_operators_and_costs_are_those_of_a_class(classes):
    first, inverse = classes
    assert (np.diff(first) > 0).all()
    assert (inverse[first] == np.arange(len(first))).all()
    assert not any(has_dead_operators(NAS_BENCH_201, MASKS[i]) for i in first)
    alive = NAS_BENCH_201.costs(np.stack([NAS_BENCH_201.on_paths(mask) for mask in MASKS]))
    for costs in alive:
        np.testing.assert_array_equal(costs, costs[first][inverse])
    # The first one is dead here: the second stands for both.
    dead, alive = (NAS_BENCH_201.from_string(f"|none~0|+|{op}~0|none~1|+|skip_connect~0|none~1|"
                   "none~2|") for op in ("nor_conv_3x3", "none"))  # fmt: skip
    assert first_of_each_class(NAS_BENCH_201, np.stack([dead, alive]))[0].tolist() == [1]
    assert first_of_each_class(NAS_BENCH_201, dead[None])[0].tolist() == [0]


def test_a_skip_connection_that_makes_images_smaller_is_a_layer():
    """From the input of a cell of TransNAS-Bench-101; between its nodes it is the identity."""
    assert form(TRANSNAS_BENCH_101, "1 00 030") != form(TRANSNAS_BENCH_101, "0 00 300")
    assert form(TRANSNAS_BENCH_101, "3 00 010") == form(TRANSNAS_BENCH_101, "0 00 300")


def test_the_name_of_an_operator_does_not_make_it_an_identity():
    named = [*operators("none"), ("skip_connect", ReLUConvBatchNorm), *operators("nor_conv_1x1")]
    space = dataclasses.replace(NAS_BENCH_201, name="mine", operators=named)
    assert form(space, "2 00 010") != form(space, "0 00 200")


DARTS_CELL = "sep_conv_3x3 0, skip_connect 1, max_pool_3x3 0, sep_conv_5x5 1"


def darts(normal, reduce):
    cells = [
        f"{name}={[(op, int(node)) for op, node in map(str.split, text.split(', '))]}, "
        f"{name}_concat=range(2, 6)"
        for name, text in (("normal", normal), ("reduce", reduce))
    ]
    return DARTS.from_string(f"Genotype({', '.join(cells)})")


def test_nodes_whose_outputs_are_concatenated_can_be_exchanged():
    end = ", skip_connect 2, dil_conv_3x3 3, max_pool_3x3 0, max_pool_3x3 1"
    exchanged = ", ".join([*DARTS_CELL.split(", ")[2:], *DARTS_CELL.split(", ")[:2]])
    other_end = ", dil_conv_3x3 2, skip_connect 3, max_pool_3x3 0, max_pool_3x3 1"
    plain, moved, wrong = DARTS_CELL + end, exchanged + other_end, exchanged + end
    masks = [
        darts(*pair) for pair in ((plain,) * 2, (moved, plain), (plain, moved), (wrong, plain))
    ]
    assert first_of_each_class(DARTS, np.stack(masks))[1].tolist() == [0, 0, 0, 1]


def test_many_layers_that_are_alike_are_quick():
    """Twelve parallel layers have half a billion orders."""
    nodes = range(1, 13)
    space = dataclasses.replace(
        NAS_BENCH_201,
        name="star",
        operators=operators("none", "skip_connect", "nor_conv_1x1"),
        edges=(*((0, node) for node in nodes), *((node, 13) for node in nodes)),
        notation=EDGE_LIST,
    )
    before = np.eye(3, dtype=bool)[[2] * 12 + [1] * 12][None]
    after = np.eye(3, dtype=bool)[[1] * 12 + [2] * 12][None]
    mixed = np.eye(3, dtype=bool)[[2] * 11 + [1] * 13][None]
    masks = np.stack([before, after, mixed])
    assert first_of_each_class(space, masks)[1].tolist() == [0, 0, 1]


def test_choices_of_a_module_have_no_isomorphic_ones():
    masks = enumerate_all(SPACE)
    first, inverse = first_of_each_class(SPACE, masks)
    assert first.tolist() == inverse.tolist() == list(range(len(masks)))


def test_a_supernet_and_other_shapes_are_refused():
    with pytest.raises(InputError, match="keeps several operators on an edge"):
        first_of_each_class(NAS_BENCH_201, NAS_BENCH_201.initial_mask()[None])
    with pytest.raises(InputError, match="do not end in"):
        first_of_each_class(NAS_BENCH_201, sample(DARTS, 2, np.random.default_rng(0)))

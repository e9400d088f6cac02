"""TransNAS-Bench-101: published counts, and a plain NumPy network written from its description."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenas_jax.architectures import enumeration as architectures
from tenas_jax.architectures.space import ProxySize
from tenas_jax.errors import InputError
from tenas_jax.metrics.proxies import parameters as count_parameters
from tenas_jax.networks.batch_minor import BATCH_MINOR
from tenas_jax.networks.costs import layer_costs, network_costs
from tenas_jax.networks.layouts import NHWC
from tenas_jax.networks.supernet import FEATURES
from tenas_jax.searching.measurement import initialized
from tenas_jax.spaces import DARTS, NAS_BENCH_201, TRANSNAS_BENCH_101, load_genotype

OPS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3")
EDGES = [(0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3)]
AFFINE = ("scale", "bias")
MODULES = [(2, 2), (1, 1), (2, 2), (1, 1), (2, 2)]  # 41414 as (factor of the channels, stride)
SMALL = {"num_classes": 5, "channels": 2, "cells": 1}
# What NASLib counts for the networks of 100 classes, in millions: parameters and operations.
PUBLISHED = {
    (1, 0, 1, 0, 0, 1): (0.244612, 117.9264),
    (0, 1, 0, 1, 0, 1): (0.418436, 144.009728),
    (2, 0, 0, 0, 1, 0): (0.755844, 237.234688),
    (1, 1, 2, 2, 1, 1): (1.96058, 459.729408),
    (1, 2, 2, 1, 0, 2): (2.817668, 630.057472),
    (0, 1, 3, 1, 1, 1): (8.091268, 1656.515072),
    (3, 1, 1, 2, 1, 3): (14.727044, 3062.065664),
    (3, 3, 3, 3, 3, 3): (41.462916, 8488.086016),
}


def one_hot(operators):
    """The mask of one operator for each edge, by number."""
    return np.eye(len(OPS), dtype=bool)[None, list(operators)]


# Notation.


def test_a_genotype_by_hand():
    text = "64-41414-3_20_113"
    mask = TRANSNAS_BENCH_101.from_string(text)
    kept = [
        (TRANSNAS_BENCH_101.edge_names[edge], TRANSNAS_BENCH_101.ops[op])
        for edge, op in np.argwhere(mask[0])
    ]
    assert kept == [
        ("1<-0", "nor_conv_3x3"),
        ("2<-0", "nor_conv_1x1"),
        ("2<-1", "none"),
        ("3<-0", "skip_connect"),
        ("3<-1", "skip_connect"),
        ("3<-2", "nor_conv_3x3"),
    ]
    assert TRANSNAS_BENCH_101.to_string(mask) == text


@pytest.mark.parametrize(
    "text",
    [" 64-41414-3_20_113\n", "(3, 2, 0, 1, 1, 3)", "(3,2,0,1,1,3)", " (3, 2, 0, 1, 1, 3,)"],
)
def test_the_same_genotype_otherwise(text):
    assert TRANSNAS_BENCH_101.recognizes(text)
    mask = TRANSNAS_BENCH_101.from_string(text)
    np.testing.assert_array_equal(mask, one_hot((3, 2, 0, 1, 1, 3)))


def test_numbers_do_not_tell_the_space():
    with pytest.raises(InputError, match="may be of nas-bench-201 or of transnas-bench-101: write"):
        load_genotype("(3, 2, 0, 1, 1, 3)")
    assert load_genotype("64-41414-3_20_113")[0] is TRANSNAS_BENCH_101


@given(st.tuples(*[st.integers(0, 3)] * 6))
def test_round_trip(operators):
    mask = one_hot(operators)
    a, b, c, d, e, f = operators
    text = TRANSNAS_BENCH_101.to_string(mask)
    assert text == f"64-41414-{a}_{b}{c}_{d}{e}{f}"
    np.testing.assert_array_equal(TRANSNAS_BENCH_101.from_string(text), mask)
    np.testing.assert_array_equal(TRANSNAS_BENCH_101.from_string(str(operators)), mask)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"transnas-bench-101: this differs at the end: write 64-41414-0_00_000$"),
        ("32-41414-3_20_113", "this differs at character 2: write 64-41414-"),
        ("64-41411-3_20_113", "this differs at character 2: write 64-41414-"),
        ("64-41414-64-41414-3_20_113", "this differs at character 11: write"),
        ("64-41414-4_20_113", "edge 1<-0 has operator 4: choose from 0 to 3$"),
        ("(3, 2, 0, 1, 1, 4)", "edge 3<-2 has operator 4: choose from 0 to 3$"),
        ("64-41414-3_20_11", "this differs at the end"),
        ("(3, 2, 0, 1, 1)", "this differs at character 1: "),
        ("64-41414-3_20_1131", "this differs at character 18"),
        ("(3, 2, 0, 1, 1, 3, 1)", "this differs at character 1: "),
        ("(3, 2, 0, 1, 1, 13)", "this differs at character 1: "),
        ("64-41414-32_0_113", "this differs at character 11"),
        ("64-41414-320113", "this differs at character 11"),
        ("64-41414-3_2 _113", "this differs at character 13"),
        ("64-41414-3_20_1\n3", "this differs at character 16 of line 1"),
        ("64-41414-\u0663_20_113", "this differs at character 10"),
        ("(\u0663, 2, 0, 1, 1, 3)", "this differs at character 1: "),
        ("64-41414-\u00b3_20_113", "this differs at character 10"),
        ("64-41414-basic", "this differs at character 10"),
        ("x\n" * 1000, "this differs at character 1 of line 1: "),
    ],
)
def test_bad_texts(text, message):
    with pytest.raises(InputError, match=message) as error:
        TRANSNAS_BENCH_101.from_string(text)
    assert len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) < 200


def test_no_other_notation_is_taken_for_this_one():
    assert not DARTS.recognizes("(3, 2, 0, 1, 1, 3)")
    for space in (NAS_BENCH_201, DARTS):
        mask = architectures.sample(space, 1, np.random.default_rng(0))[0]
        assert not TRANSNAS_BENCH_101.recognizes(space.to_string(mask))
        assert not space.recognizes("64-41414-3_20_113")


# The space.


def test_the_space_has_4096_architectures_of_four_operators():
    assert TRANSNAS_BENCH_101.ops == OPS
    assert list(TRANSNAS_BENCH_101.edges) == EDGES
    assert architectures.count(TRANSNAS_BENCH_101) == 4096


def test_a_search_starts_from_everything_but_zero():
    expected = np.tile([False, True, True, True], (1, 6, 1))
    np.testing.assert_array_equal(TRANSNAS_BENCH_101.initial_mask(), expected)


# Counts.


@pytest.mark.parametrize("operators", PUBLISHED)
def test_parameters_are_the_published_ones(operators):
    network = TRANSNAS_BENCH_101.network(one_hot(operators), num_classes=100, stem="imagenet")
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    shapes = jax.eval_shape(network.init, jax.random.key(0), images)
    assert count_parameters(shapes["params"]) == round(1e6 * PUBLISHED[operators][0])


def test_costs_are_the_published_ones():
    """NASLib counts the same products, and other operations that we do not count."""
    operators = np.array(list(PUBLISHED))
    masks = np.stack([one_hot(each) for each in operators])
    parameters, multiply_adds = TRANSNAS_BENCH_101.costs(masks)
    # In an image of 256 x 256, the values at the inputs and outputs of the ten cells, of all and of
    # the three that halve: two cells each of 128, 128, 256, 256 and 512 channels.
    halving_in = 64 * 64**2 + 128 * 32**2 + 256 * 16**2
    halving_out = 128 * 32**2 + 256 * 16**2 + 512 * 8**2
    all_out = 2 * (2 * 128 * 32**2 + 2 * 256 * 16**2 + 512 * 8**2)
    all_in = all_out - halving_out + halving_in
    # A ReLU counts one operation for each value, batch normalization two.
    skips, convolutions = operators == 1, operators >= 2
    from_input = np.array([source == 0 for source, _ in EDGES])
    others = (
        3 * 32 * 128**2  # stem: batch normalization, ReLU
        + 2 * 64 * 64**2  # batch normalization
        + 512 * 9**2  # average of 8 x 8 pixels, of which it counts one more along each axis
        + (skips & from_input).sum(1) * (halving_in + 2 * halving_out)
        + convolutions.sum(1) * 2 * all_out
        + (convolutions & from_input).sum(1) * all_in
        + (convolutions & ~from_input).sum(1) * all_out
    )
    # It has 25 classes more, and does not count their biases.
    published = np.array([PUBLISHED[tuple(each)] for each in operators])
    expected = np.rint(1e6 * published).astype(int)
    np.testing.assert_array_equal(parameters + 25 * (512 + 1), expected[:, 0])
    np.testing.assert_array_equal(multiply_adds + 25 * 512 - 75 + others, expected[:, 1])


def test_costs_are_those_of_each_single_network():
    masks = architectures.sample(TRANSNAS_BENCH_101, 3, np.random.default_rng(0))
    table = TRANSNAS_BENCH_101.costs(masks)
    for i, mask in enumerate(masks):
        network = TRANSNAS_BENCH_101.network(mask, num_classes=75, stem="imagenet")
        assert network_costs(network, 256) == (table.parameters[i], table.flops[i])


def test_modules_double_the_channels_and_halve_the_images():
    mask = one_hot((3, 2, 0, 1, 1, 3))
    network = TRANSNAS_BENCH_101.network(mask, num_classes=75, stem="imagenet")
    sizes = [(32, 32, 128)] * 4 + [(16, 16, 256)] * 4 + [(8, 8, 512)] * 2
    assert [(layer.name, layer.output) for layer in layer_costs(network, 256)] == [
        ("stem_a", (128, 128, 32)),
        ("stem_b", (64, 64, 64)),
        *[(f"cell_{i}", size) for i, size in enumerate(sizes)],
        ("classifier", (75,)),
    ]
    supernet, images = TRANSNAS_BENCH_101.supernet(ProxySize(), NHWC), jnp.ones((2, 32, 32, 3))

    def features(mask):
        variables = supernet.init(jax.random.key(0), images, mask)
        return supernet.apply(variables, images, mask, mutable=FEATURES)[1]

    sown = jax.tree.leaves(jax.eval_shape(features, jnp.asarray(mask)))
    sizes = [(16, 16, 6)] * 4 + [(8, 8, 12)] * 4 + [(4, 4, 24)] * 2
    assert [leaf.shape[1:] for leaf in sown] == sizes


# Networks.


def naive_conv(x, kernel, stride):
    """Convolution [n, h, w, c] with [k, k, in, out], which is padded to keep the size."""
    k = len(kernel)
    n, height, width, _ = x.shape
    padded = np.zeros((n, height + k - 1, width + k - 1, x.shape[3]))
    padded[:, k // 2 : k // 2 + height, k // 2 : k // 2 + width] = x
    y = np.zeros((n, -(-height // stride), -(-width // stride), kernel.shape[3]))
    for i in range(y.shape[1]):
        for j in range(y.shape[2]):
            window = padded[:, i * stride : i * stride + k, j * stride : j * stride + k]
            y[:, i, j] = np.tensordot(window, kernel, 3)
    return y


def naive_batch_norm(x, scale, bias):
    pixels = x.reshape(-1, x.shape[-1])
    normalized = (pixels - pixels.mean(0, keepdims=True)) / np.sqrt(
        pixels.var(0, keepdims=True) + 1e-5
    )
    return (normalized * scale[None] + bias[None]).reshape(x.shape)


def naive_layer(layer, edge, x, stride=1):
    """The convolution of one of the parallel edges, and its batch normalization."""
    y = naive_conv(x, layer["kernel"][edge], stride)
    return naive_batch_norm(y, layer["scale"][edge], layer["bias"][edge])


def naive_operator(op, layers, edge, x, features, stride):
    x_positive = np.maximum(x, 0)
    if op == "none":
        return np.zeros((*x[:, ::stride, ::stride].shape[:3], features))
    if op.startswith("nor_conv"):
        return naive_layer(layers["conv"], edge, x_positive, stride)
    if stride == 1 and x.shape[3] == features:
        return x
    halves = [layers["FactorizedReduction_0"][f"half_{i}"] for i in range(2)]
    further = np.zeros_like(x)
    further[:, :-1, :-1] = x_positive[:, 1:, 1:]
    convolved = [
        naive_conv(images, half["kernel"][edge], stride)
        for images, half in zip((x_positive, further), halves, strict=True)
    ]
    scale, bias = (np.concatenate([half[leaf][edge] for half in halves]) for leaf in AFFINE)
    return naive_batch_norm(np.concatenate(convolved, 3), scale, bias)


def naive_cells(x, kept, layers_of):
    """The cells of all modules, one each.

    Args:
        x: images after the stem.
        kept: names of the operators kept on each edge, whose mean the edge is.
        layers_of: the layers of a cell, source, target and operator, and which edge is theirs.
    """
    for cell, (factor, cell_stride) in enumerate(MODULES):
        features, nodes = factor * x.shape[3], [x]
        for target in range(1, 4):
            node = 0.0
            for source in range(target):
                stride = cell_stride if source == 0 else 1
                ops = kept[EDGES.index((source, target))]
                for op in ops:
                    layers, edge = layers_of(cell, source, target, op)
                    y = naive_operator(op, layers, edge, nodes[source], features, stride)
                    node = node + y / len(ops)
            nodes.append(node)
        x = nodes[-1]
    return x


def naive_classifier(params, x):
    return x.mean((1, 2)) @ params["classifier"]["kernel"] + params["classifier"]["bias"][None]


def random_params(module, *args):
    """Parameters in float64 with no ones and zeros among them, so that each of them matters."""
    random = np.random.default_rng(0)

    def draw(path, leaf):
        if path[-1].key in AFFINE:
            return random.uniform(0.5, 1.5, leaf.shape)
        return random.normal(size=leaf.shape)

    shapes = jax.eval_shape(module.init, jax.random.key(0), *args)
    return jax.tree_util.tree_map_with_path(draw, shapes["params"])


# On the edges two operators, three with zero among them, all, one, none.
KEPT = [
    ("skip_connect", "nor_conv_3x3"),
    ("none", "skip_connect", "nor_conv_1x1"),
    OPS,
    ("skip_connect",),
    (),
    ("nor_conv_1x1", "nor_conv_3x3"),
]
MASK = np.array([[[op in ops for op in OPS] for ops in KEPT]])


def relative_error(actual, expected):
    return np.linalg.norm(actual - expected) / np.linalg.norm(expected)


def test_the_supernet_is_the_one_described():
    images = np.random.default_rng(1).normal(size=(3, 10, 10, 3))  # halved to 5, 3, 2 pixels
    network = TRANSNAS_BENCH_101.supernet(ProxySize(**SMALL), NHWC)
    params = random_params(network, images, MASK)

    def layers_of(cell, source, target, op):
        return params[f"cell_{cell}"].get(f"node_{source}_{op}"), target - source - 1

    x = naive_cells(naive_layer(params["stem"], 0, images), KEPT, layers_of)
    expected = naive_classifier(params, x)

    def logits(layout, dtype):
        network = TRANSNAS_BENCH_101.supernet(ProxySize(**SMALL), layout)
        with jax.enable_x64(dtype == np.float64):
            inputs = {"params": params}, images
            arrays = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), inputs)
            return np.asarray(jax.jit(network.apply)(*arrays, jnp.asarray(MASK)))

    exact = logits(NHWC, np.float64)
    assert exact.dtype == np.float64
    assert relative_error(exact, expected) < 1e-9
    assert relative_error(logits(BATCH_MINOR, np.float32), exact) < 1e-4


@pytest.mark.parametrize(("stem", "size"), [("imagenet", 32), ("cifar", 8)])
def test_the_network_of_an_architecture_is_the_one_described(stem, size):
    operators = (3, 1, 1, 2, 0, 3)
    images = np.random.default_rng(1).normal(size=(3, size, size, 3))
    with jax.enable_x64(True):
        network = TRANSNAS_BENCH_101.network(
            one_hot(operators), stem=stem, dtype=jnp.float64, **SMALL
        )
        params = random_params(network, images)
        statistics = jax.eval_shape(network.init, jax.random.key(0), images)["batch_stats"]
        variables = {
            "params": params,
            "batch_stats": jax.tree.map(lambda leaf: np.ones(leaf.shape), statistics),
        }

        @jax.jit
        def run(variables, images):
            return network.apply(variables, images, train=True, mutable="batch_stats")[0]

        logits, auxiliary = run(variables, images)
    assert auxiliary is None

    def layers_of(cell, source, target, op):
        return params[f"cell_{cell}"].get(f"{op}_{source}_{target}"), 0

    if stem == "imagenet":
        x = naive_layer(params["stem_a"], 0, images, stride=2)
        x = naive_layer(params["stem_b"]["conv"], 0, np.maximum(x, 0), stride=2)
    else:
        x = naive_layer(params["stem"], 0, images)
    x = naive_cells(x, [(OPS[op],) for op in operators], layers_of)
    assert relative_error(np.asarray(logits), naive_classifier(params, x)) < 1e-9


def test_kernels_are_kaiming_normal_with_the_fan_of_their_outputs():
    images, mask = jnp.ones((2, 32, 32, 3)), jnp.asarray(TRANSNAS_BENCH_101.initial_mask())
    draw = jax.jit(partial(initialized, TRANSNAS_BENCH_101.supernet, ProxySize()))
    params = draw(jax.random.key(0), images, mask)
    layers = params["cell_8"]  # the first of the last module: from 12 to 24 channels
    kernel = layers["node_0_nor_conv_3x3"]["conv"]["kernel"]
    assert kernel.shape == (3, 3, 3, 12, 24)
    np.testing.assert_allclose(kernel.std(), (2 / (3 * 3 * 24)) ** 0.5, rtol=0.03)
    assert 3 < abs(kernel).max() / kernel.std() < 6  # a uniform distribution ends at 1.7
    half = layers["node_0_skip_connect"]["FactorizedReduction_0"]["half_1"]["kernel"]
    assert half.shape == (3, 1, 1, 12, 12)
    np.testing.assert_allclose(half.std(), (2 / 12) ** 0.5, rtol=0.15)

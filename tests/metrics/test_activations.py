"""Activation patterns of models of all kinds against patterns computed by hand."""

import dataclasses
import re
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax.sharding import AxisType, PartitionSpec

from tenas_jax.architectures.space import ProxySize
from tenas_jax.errors import InputError
from tenas_jax.metrics.activations import activation_patterns, executed_patterns
from tenas_jax.metrics.regions import count_linear_regions, linear_regions
from tenas_jax.networks.layouts import NHWC
from tenas_jax.networks.ops import PATTERNS
from tenas_jax.spaces import NAS_BENCH_201

N, WIDTH, LAYERS = 7, 5, 3
ZEROS = jnp.zeros((1, WIDTH))


def case(seed=0):
    """Square weights of some layers, and a batch."""
    generator = np.random.default_rng(seed)
    weights = generator.normal(size=(LAYERS, WIDTH, WIDTH)).astype(np.float32)
    return weights, generator.normal(size=(N, WIDTH)).astype(np.float32)


def by_hand(weights, x, slope=0):
    """Signs of the hidden layers of a perceptron, one after the other."""
    patterns = []
    for weight in weights:
        x = x @ weight
        x = np.maximum(x, slope * x)
        patterns.append(x > 0)
    return np.concatenate(patterns, 1)


def perceptron(relu, weights, x):
    for weight in weights:
        x = relu(x @ weight)
    return x.sum(1, keepdims=True)


@jax.custom_vjp
def relu_with_vjp(x):
    return jnp.maximum(x, 0)


relu_with_vjp.defvjp(
    lambda x: (relu_with_vjp(x), x > 0), lambda active, cotangent: (cotangent * active,)
)


@jax.custom_jvp
def relu_with_jvp(x):
    return jnp.maximum(x, 0)


relu_with_jvp.defjvp(lambda x, t: (relu_with_jvp(*x), t[0] * (x[0] > 0)))

RELUS = {
    "relu": jax.nn.relu,
    "maximum": lambda x: jnp.maximum(x, 0),
    "zero_first": lambda x: jnp.maximum(0.0, x),
    "zeros": lambda x: jnp.maximum(x, jnp.zeros((1, WIDTH))),
    "zeros_like": lambda x: jnp.maximum(jnp.zeros_like(x), x),
    "constant": lambda x: jnp.maximum(x, ZEROS),
    "numpy_constant": lambda x: jnp.maximum(x, np.zeros((1, WIDTH), np.float32)),
    "argument_of_jit": lambda x: jax.jit(jnp.maximum)(x, ZEROS),
    "clip": lambda x: jnp.clip(x, 0),
    "jit": jax.jit(lambda x: jnp.maximum(x, ZEROS)),
    "remat": jax.checkpoint(jax.nn.relu),
    "custom_vjp": relu_with_vjp,
    "custom_jvp": relu_with_jvp,
    "vmap": jax.vmap(jax.nn.relu),
    "vmap_of_vjp": jax.vmap(relu_with_vjp),
    "where": lambda x: jnp.where(x > 0, x, 0),
    "where_not": lambda x: jnp.where(x <= 0, 0, x),
    "leaky": jax.nn.leaky_relu,
    "leaky_maximum": lambda x: jnp.maximum(x, 0.1 * x),
    "indicator": lambda x: x * (x > 0),
    "indicator_first": lambda x: (x > 0).astype(x.dtype) * x,
    "select": lambda x: lax.select(x > 0, x, jnp.zeros_like(x)),
    "minimum": lambda x: -jnp.minimum(-x, 0),
    "abs": lambda x: (x + jnp.abs(x)) / 2,
    "sign": lambda x: x * (1 + jnp.sign(x)) / 2,
    "nested": jax.jit(jax.checkpoint(jax.vmap(jax.jit(relu_with_vjp)))),
}


LEAKY = {"leaky": 0.01, "leaky_maximum": 0.1}


@pytest.mark.parametrize("name", RELUS)
def test_every_way_to_write_a_relu_counts_once(name):
    weights, x = case()
    patterns = activation_patterns(partial(perceptron, RELUS[name]))
    np.testing.assert_array_equal(patterns(weights, x), by_hand(weights, x, LEAKY.get(name, 0)))
    np.testing.assert_array_equal(
        jax.jit(patterns)(weights, x), by_hand(weights, x, LEAKY.get(name, 0))
    )


def scanned(weights, x, **kwargs):
    def layer(x, weight):
        return jax.nn.relu(x @ weight), x.sum(1)

    x, sums = lax.scan(layer, x, weights, **kwargs)
    return x + sums.sum(0)[:, None]


def looped(weights, x):
    return lax.fori_loop(0, LAYERS, lambda i, x: jnp.maximum(x @ weights[i], ZEROS), x)


def scanned_twice(weights, x):
    """The first scan has one step, whose body is a scan of all layers."""
    return lax.scan(lambda x, _: (scanned(weights, x), None), x, length=1)[0]


@pytest.mark.parametrize("model", [scanned, looped, scanned_twice, jax.jit(scanned)])
def test_the_steps_of_a_scan_count_in_order_of_execution(model):
    weights, x = case()
    patterns = activation_patterns(model)
    np.testing.assert_array_equal(patterns(weights, x), by_hand(weights, x))
    np.testing.assert_array_equal(jax.jit(patterns)(weights, x), by_hand(weights, x))


def test_a_reversed_scan_counts_backwards():
    weights, x = case()
    patterns = activation_patterns(partial(scanned, reverse=True))(weights, x)
    np.testing.assert_array_equal(patterns, by_hand(weights[::-1], x))


def test_two_relus_in_a_step_count_one_after_the_other():
    weights, x = case()

    def layer(x, weight):
        return jax.nn.relu(jax.nn.relu(x @ weight[0]) @ weight[1]), None

    pairs = np.stack([weights, weights[::-1]], 1)
    patterns = activation_patterns(lambda x: lax.scan(layer, x, pairs)[0])(x)
    np.testing.assert_array_equal(patterns, by_hand(pairs.reshape(-1, WIDTH, WIDTH), x))


def test_vmap_over_parameters_and_batches():
    cases = [case(seed) for seed in (0, 1)]
    weights, x = (np.stack(each) for each in zip(*cases, strict=True))
    for model in (scanned, partial(perceptron, jax.nn.relu)):
        patterns = jax.jit(jax.vmap(activation_patterns(model)))(weights, x)
        np.testing.assert_array_equal(patterns, np.stack([by_hand(*each) for each in cases]))
        counts = jax.jit(jax.vmap(partial(linear_regions, model)))(weights, x)
        assert counts.tolist() == [len({tuple(row) for row in p}) for p in patterns.tolist()]


@pytest.mark.parametrize("features", [N, 4])
def test_flax_normalizations_are_no_neurons(features):
    """They clamp variances by a maximum with zero, one of them as long as the batch."""

    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Dense(features)(x)
            x = jnp.maximum(nn.BatchNorm(use_running_average=False)(x), 0)
            x = nn.relu(nn.LayerNorm()(nn.Dense(6)(x)))
            return nn.Dense(3)(nn.GroupNorm(2)(x))

    _, x = case()
    variables = jax.jit(Network().init)(jax.random.key(0), x)

    def model(params, x):
        return Network().apply({**variables, "params": params}, x, mutable=["batch_stats"])[0]

    params = variables["params"]
    x = np.asarray(x, np.float64)
    x = x @ np.float64(params["Dense_0"]["kernel"])
    first = np.maximum((x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5), 0)
    x = first @ np.float64(params["Dense_1"]["kernel"])
    second = x - x.mean(1, keepdims=True)
    expected = np.concatenate([first, second], 1) > 0
    patterns = jax.jit(activation_patterns(model))(params, case()[1])
    np.testing.assert_array_equal(patterns, expected)


def test_a_variance_averaged_over_batches_is_no_neuron():
    def model(x, running):
        variance = jnp.maximum(0.0, (x * x).mean(0) - x.mean(0) ** 2)
        averaged = 0.9 * running + 0.1 * variance
        averaged = lax.select(running.sum() == 0, variance, averaged)
        return jax.nn.relu(x - x.mean(0)[None]) / jnp.sqrt(averaged + 1e-5)[None]

    x = np.random.default_rng(0).normal(size=(N, N)).astype(np.float32)
    patterns = activation_patterns(model, argnum=0)(x, jnp.zeros(N))
    np.testing.assert_array_equal(patterns, x - x.mean(0) > 0)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Perceptron:
    """A model that is a pytree and maps one sample, as in Equinox."""

    weights: list[jax.Array]

    def __call__(self, x):
        for weight in self.weights:
            x = jax.nn.relu(weight.T @ x)
        return x


def test_models_that_are_pytrees_and_models_that_are_closures():
    weights, x = case()
    model = Perceptron([jnp.asarray(weight) for weight in weights])
    expected = by_hand(weights, x)
    of_argument = activation_patterns(lambda model, x: jax.vmap(model)(x))
    np.testing.assert_array_equal(of_argument(model, x), expected)
    np.testing.assert_array_equal(activation_patterns(jax.vmap(model))(x), expected)
    np.testing.assert_array_equal(jax.jit(activation_patterns(jax.vmap(model)))(x), expected)

    def apply(params, state, rng, x):
        hidden = jax.nn.relu(x @ params["linear"]["w"] + state["offset"])
        return hidden, state

    state = {"offset": jnp.ones((1, WIDTH))}
    patterns = activation_patterns(lambda params, x: apply(params, state, None, x)[0])
    np.testing.assert_array_equal(
        patterns({"linear": {"w": weights[0]}}, x), x @ weights[0] + 1 > 0
    )


def test_convolutions_flatten_the_pixels_of_each_sample():
    images = np.random.default_rng(0).normal(size=(4, 3, 3, 2)).astype(np.float32)
    patterns = activation_patterns(lambda x: nn.max_pool(nn.relu(x), (3, 3)))(images)
    np.testing.assert_array_equal(patterns, (images > 0).reshape(4, -1))


def test_the_region_network_has_the_patterns_that_it_sows():
    network = NAS_BENCH_201.region_network(
        ProxySize(cells=1, initializer="kaiming_normal_fan_in"), NHWC
    )
    generator = np.random.default_rng(0)
    patches = generator.normal(size=(12, 3, 3, 1)).astype(np.float32)[
        generator.integers(12, size=40)
    ]
    mask = jnp.asarray(NAS_BENCH_201.initial_mask())
    params = jax.jit(network.init)(jax.random.key(0), patches, mask)["params"]

    @jax.jit
    def both(patches):
        _, sown = network.apply({"params": params}, patches, mask, mutable=[PATTERNS])
        read = activation_patterns(lambda x: network.apply({"params": params}, x, mask))(patches)
        return jnp.concatenate(jax.tree.leaves(sown), 1), read

    sown, read = (np.asarray(patterns) for patterns in both(patches))
    assert 1 < len(np.unique(read, axis=0)) <= 12
    # In another order: that of the names.
    assert sorted(map(tuple, read.T.tolist())) == sorted(map(tuple, sown.T.tolist()))


def pieces(x, *thresholds):
    """Patterns of an elementwise function that is linear between thresholds."""
    return np.concatenate([x > threshold for threshold in thresholds], 1)


def below(x, low, high):
    """Patterns of a function with a lower and an upper threshold, written by a minimum."""
    return np.concatenate([x > low, x < high], 1)


def greatest(x):
    """Patterns of a maximum over pairs of features."""
    pairs = x[:, :4].reshape(N, 2, 2)
    return (pairs == pairs.max(-1, keepdims=True)).reshape(N, -1)


THRESHOLDS = {
    "relu6": (jax.nn.relu6, lambda x: below(x, 0, 6)),
    "clamp": (lambda x: lax.clamp(0.0, x, 6.0), lambda x: below(x, 0, 6)),
    "clip": (lambda x: jnp.clip(x, -0.5, 0.5), lambda x: below(x, -0.5, 0.5)),
    "hard_tanh": (jax.nn.hard_tanh, lambda x: pieces(x, 1, -1)),
    "maximum_with_one": (lambda x: jnp.maximum(x, 1), lambda x: pieces(x, 1)),
    "abs": (jnp.abs, lambda x: pieces(x, 0)),
    "two": (lambda x: jnp.maximum(x, x[:, ::-1]), lambda x: x > x[:, ::-1]),
    "smaller": (lambda x: jnp.where(x < x[:, ::-1], x, -x), lambda x: x[:, ::-1] > x),
    "maxout": (lambda x: x[:, :4].reshape(-1, 2, 2).max(-1), greatest),
    "stack": (
        lambda x: jnp.stack([x, -x]).max(0),
        lambda x: np.stack([x > 0, x < 0]).transpose(1, 0, 2).reshape(N, -1),
    ),
    "argmax": (
        lambda x: jax.nn.one_hot(x[:, :4].reshape(-1, 2, 2).argmax(-1), 2).sum(-1),
        greatest,
    ),
    "running_maximum": (
        lambda x: lax.scan(lambda c, y: (jnp.maximum(c, y), None), jnp.zeros(N), x.T)[0],
        lambda x: np.maximum.accumulate(np.pad(x, ((0, 0), (1, 0))), 1)[:, :-1].clip(0) > x,
    ),
}


@pytest.mark.parametrize("name", THRESHOLDS)
def test_piecewise_linear_functions_have_a_neuron_for_each_threshold(name):
    f, expected = THRESHOLDS[name]
    x = 3 * case()[1]
    np.testing.assert_array_equal(activation_patterns(f)(x), expected(x))


@pytest.mark.parametrize("padding", ["VALID", "SAME"])
def test_max_pooling_counts_by_choice(padding):
    images = np.random.default_rng(0).normal(size=(4, 5, 5, 2)).astype(np.float32)

    def model(x):
        return nn.max_pool(nn.relu(x) + x, (2, 3), (2, 1), padding).sum((1, 2))

    relu = (images > 0).reshape(4, -1)
    np.testing.assert_array_equal(activation_patterns(model)(images), relu)
    patterns = activation_patterns(model, max_pooling=True)(images)
    x = images + np.maximum(images, 0)
    if padding == "SAME":
        x = np.pad(x, ((0, 0), (0, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(x, (2, 3), (1, 2))[:, ::2]
    windows = windows.reshape(*windows.shape[:4], 6)
    expected = windows == windows.max(-1, keepdims=True)
    np.testing.assert_array_equal(patterns, np.concatenate([relu, expected.reshape(4, -1)], 1))


def dropped(x):
    """Dropout as Flax has it: uniform numbers have a maximum in them."""
    return nn.Dropout(0.5, deterministic=False).apply({}, x, rngs={"dropout": jax.random.key(0)})


NO_NEURONS = {
    "parameter": lambda p, x: x @ jax.nn.relu(p),
    "clipped_parameter": lambda p, x: x @ jnp.clip(p, 0.1),
    "dropout": lambda p, x: dropped(x),
    "linear": lambda p, x: x @ p,
    "unused": lambda p, x: (jax.nn.relu(x), x)[1],
    "while": lambda p, x: lax.while_loop(
        lambda c: c[0] < 2, lambda c: (c[0] + 1, c[1] @ jnp.maximum(p, 0)), (0, x)
    )[1],
    "masked": lambda p, x: jnp.where(p[:1] > 0, x, 0),
}


@pytest.mark.parametrize("name", NO_NEURONS)
def test_what_does_not_depend_on_the_samples_has_no_neurons(name):
    (params, *_), x = case()
    with pytest.raises(
        InputError, match=r"^the model has no piecewise-linear nonlinearity of its "
    ):
        activation_patterns(NO_NEURONS[name])(params, x)
    patterns = activation_patterns(lambda p, x: NO_NEURONS[name](p, jax.nn.relu(x)))(params, x)
    np.testing.assert_array_equal(patterns, x > 0)
    same = np.tile(x[:1], (N, 1))
    assert linear_regions(lambda p, x: NO_NEURONS[name](p, jax.nn.relu(x)), params, same) == 1


SMOOTH = {
    "softplus": jax.nn.softplus,
    "gelu": jax.nn.gelu,
    "exact gelu": partial(jax.nn.gelu, approximate=False),
    "silu": jax.nn.silu,
    "elu": jax.nn.elu,
    "selu": jax.nn.selu,
    "mish": jax.nn.mish,
    "soft_sign": jax.nn.soft_sign,
    "logistic": jax.nn.sigmoid,
    "tanh": jnp.tanh,
    "sin": jnp.sin,
    "softmax": jax.nn.softmax,
    "log_softmax": jax.nn.log_softmax,
    "square": jnp.square,
    "mul": lambda x: x * x[:, ::-1],
    "dot_general": lambda x: jax.nn.relu(x) @ x.T,
    "div": lambda x: x / (1 + jnp.abs(x)),
    "sqrt": lambda x: jnp.sqrt(1 + x.sum(1)),
    "hard_silu": jax.nn.hard_silu,
    "sort": lambda x: jnp.sort(x, 1),
    "round": jnp.round,
    "convert_element_type": lambda x: jnp.maximum(x.astype(int), 0),
}
WITHOUT_SIGN = ("square", "mul", "dot_general", "div", "sqrt")


@pytest.mark.parametrize("name", SMOOTH)
def test_smooth_nonlinearities_are_named(name):
    """Also where there is a ReLU beside them."""
    named = name.removeprefix("exact ")
    for f in (SMOOTH[name], lambda x: jax.nn.relu(SMOOTH[name](x))):
        with pytest.raises(InputError, match=rf"^the model is smooth in {named}\b.* smooth='sign'"):
            activation_patterns(f)(case()[1])


@pytest.mark.parametrize("name", sorted({*SMOOTH} - {*WITHOUT_SIGN, "convert_element_type"}))
def test_signs_of_the_arguments_of_smooth_nonlinearities(name):
    x = case()[1]
    patterns = activation_patterns(lambda x: SMOOTH[name](x - 0.1), smooth="sign")(x)
    assert count_linear_regions(patterns) == len(np.unique(x > 0.1, axis=0))
    beside = activation_patterns(lambda x: SMOOTH[name](x) + jax.nn.relu(x), smooth="ignore")(x)
    if name not in ("elu", "selu"):  # they have two pieces, of which one is smooth
        np.testing.assert_array_equal(beside, x > 0)
    assert count_linear_regions(beside) == len(np.unique(x > 0, axis=0))


def test_an_unknown_treatment_of_smooth_nonlinearities_is_refused():
    with pytest.raises(
        InputError, match=r"unknown smooth='no': choose one of refuse, ignore, sign"
    ):
        activation_patterns(jax.nn.gelu, smooth="no")


NORMALIZATIONS = {
    "standardize": lambda x: (x - x.mean(0)[None]) / jnp.sqrt(x.var(0)[None] + 1e-5),
    "haiku": lambda x: (x - x.mean(0)[None]) * (lax.rsqrt(x.var(0)[None] + 1e-5) * 0.5),
    "equinox": jax.vmap(lambda x: (x - x.mean()) * lax.rsqrt(jnp.maximum(0, x.var()) + 1e-5)),
    "deviation": lambda x: x / (x.std(1, keepdims=True) + 0.1),
    "power": lambda x: x * (jnp.mean(x**2, 1, keepdims=True) + 0.1) ** -0.5,
    "inverse": lambda x: x * (1 / jnp.sqrt((x**2).mean(1) + 1))[:, None],
    "unit_norm": lambda x: x / jnp.maximum(jnp.linalg.norm(x, axis=1, keepdims=True), 1e-6),
    "response": lambda x: (
        x / (1 + lax.reduce_window(x**2, 0.0, lax.add, (1, 3), (1, 1), "SAME")) ** 0.75
    ),
    "rms": lambda x: nn.RMSNorm().apply({"params": {"scale": jnp.ones(WIDTH)}}, x),
}


@pytest.mark.parametrize("n", [1, N])
@pytest.mark.parametrize("name", NORMALIZATIONS)
def test_normalizations_are_neither_neurons_nor_smooth(name, n):
    x = case()[1][:n]
    normalized = NORMALIZATIONS[name](x)
    patterns = activation_patterns(lambda x: NORMALIZATIONS[name](x) @ jnp.eye(WIDTH))
    with pytest.raises(InputError, match="no piecewise-linear nonlinearity"):
        patterns(x)
    patterns = activation_patterns(lambda x: jax.nn.relu(NORMALIZATIONS[name](x)))
    np.testing.assert_array_equal(patterns(x), np.asarray(normalized) > 0)


# Layers of generated models: the function, the same in NumPy, and its patterns.
def layer(f, reference, patterns):
    return f, reference, patterns


LAYERS_TO_DRAW = [
    layer(jax.nn.relu, lambda x: np.maximum(x, 0), lambda x: [x > 0]),
    layer(lambda x: jnp.where(x > 0, x, 0), lambda x: np.maximum(x, 0), lambda x: [x > 0]),
    layer(lambda x: x * (x > 0), lambda x: np.maximum(x, 0), lambda x: [x > 0]),
    layer(lambda x: -jnp.minimum(-x, 0), lambda x: np.maximum(x, 0), lambda x: [x > 0]),
    layer(jax.nn.relu6, lambda x: x.clip(0, 6), lambda x: [x > 0, x < 6]),
    layer(lambda x: lax.clamp(0.0, x, 6.0), lambda x: x.clip(0, 6), lambda x: [x > 0, x < 6]),
    layer(jax.nn.hard_tanh, lambda x: x.clip(-1, 1), lambda x: [x > -1, x > 1]),
    layer(jnp.abs, np.abs, lambda x: [x > 0]),
    layer(jax.nn.leaky_relu, lambda x: np.where(x >= 0, x, x / 100), lambda x: [x > 0]),
    layer(
        lambda x: jnp.maximum(x, x[:, ::-1]),
        lambda x: np.maximum(x, x[:, ::-1]),
        lambda x: [x > x[:, ::-1]],
    ),
]
WRAPPERS = [lambda f: f, jax.jit, jax.checkpoint, lambda f: lambda x: lax.cond(True, f, f, x)]


@settings(max_examples=20)
@given(st.data())
def test_generated_models_have_the_regions_of_their_numpy_twins(data):
    """Layers and ways to call them at random, with nonlinearities of parameters between them."""
    draw = data.draw
    layers = draw(st.lists(st.sampled_from(LAYERS_TO_DRAW), min_size=1, max_size=3))
    wrappers = [draw(st.sampled_from(WRAPPERS)) for _ in layers]
    generator = np.random.default_rng(draw(st.integers(0, 1000)))
    weights = generator.integers(-4, 5, size=(3, WIDTH, WIDTH)).astype(np.float32)
    x = generator.integers(-2, 3, size=(N, WIDTH)).astype(np.float32) + np.float32(0.25)
    x = x[generator.integers(draw(st.integers(1, N)), size=N)]

    def model(weights, x):
        for i, (f, *_) in enumerate(layers):
            x = wrappers[i](f)(x @ (jnp.maximum(weights[i], 0) + jnp.minimum(weights[i], 0)))
        return x

    patterns, hidden = [], x
    for (_, reference, active), weight in zip(layers, weights, strict=False):
        hidden = (hidden @ weight).astype(np.float32)
        patterns += active(hidden)
        hidden = reference(hidden)
    expected = len(np.unique(np.concatenate(patterns, 1), axis=0))
    assert linear_regions(model, weights, x) == expected


def whiled(x):
    return lax.while_loop(lambda x: x.sum() > 1, lambda x: jax.nn.relu(x) / 2, x)


def whiled_in_a_branch(x):
    return lax.cond(x.sum() > 0, jnp.negative, whiled, x)


def sharded(x):
    mesh = jax.make_mesh((1,), ("row",), axis_types=(AxisType.Auto,))
    rows = PartitionSpec("row")
    return jax.shard_map(jax.nn.relu, mesh=mesh, in_specs=rows, out_specs=rows)(x)


@pytest.mark.parametrize(
    ("model", "primitive"),
    [
        (whiled, "while"),
        (jax.jit(whiled), "while"),
        (whiled_in_a_branch, "while"),
        (sharded, "shard_map"),
    ],
)
def test_a_relu_that_may_be_left_out_is_refused(model, primitive):
    with pytest.raises(InputError) as raised:
        activation_patterns(model)(case()[1])
    # Without the notes that JAX adds where it has called the model.
    assert re.fullmatch(f"a nonlinearity inside the primitive '{primitive}' .*", str(raised.value))


def branched(use, weights, x):
    def two_layers(x):
        return jax.nn.relu(jnp.maximum(x @ weights[0], ZEROS) @ weights[1])

    return lax.cond(use, two_layers, RELUS["nested"], x @ weights[2])


def branched_by_hand(use, weights, x):
    """The neurons of the branch for False come first: it is the first of the primitive."""
    x = x @ weights[2]
    one, two = x > 0, by_hand(weights[:2], x)
    patterns = np.concatenate([0 * one, two] if use else [one, 0 * two], 1).astype(bool)
    return patterns, np.repeat([not use, use, use], WIDTH)


@pytest.mark.parametrize("model", [branched, jax.jit(branched)])
def test_a_branch_that_is_not_taken_is_inactive(model):
    weights, x = case()
    patterns = activation_patterns(model)
    compiled = jax.jit(patterns)
    for use in (True, False):
        expected, executed = branched_by_hand(use, weights, x)
        assert expected.any(0).sum() > 1
        np.testing.assert_array_equal(patterns(use, weights, x), expected)
        np.testing.assert_array_equal(compiled(use, weights, x), expected)
        both = executed_patterns(model)(use, weights, x)
        np.testing.assert_array_equal(both[0], expected)
        np.testing.assert_array_equal(both[1], executed)


def test_vmap_over_what_chooses_a_branch():
    weights, x = case()
    both = jax.jit(jax.vmap(executed_patterns(branched), (0, None, None)))
    expected = [branched_by_hand(use, weights, x) for use in (False, True)]
    for actual, wanted in zip(
        both(jnp.array([False, True]), weights, x), zip(*expected, strict=True), strict=True
    ):
        np.testing.assert_array_equal(actual, np.stack(wanted))
    # Where each sample chooses for itself, all of both branches is computed.
    of_samples = jax.vmap(lambda x: lax.cond(x[0] > 0, jax.nn.relu, jnp.negative, x))
    # The choice is a neuron of its own.
    patterns, executed = executed_patterns(of_samples)(x)
    np.testing.assert_array_equal(patterns, np.concatenate([x[:, :1], x], 1) > 0)
    assert executed.all()


@pytest.mark.parametrize("reverse", [False, True])
def test_each_step_of_a_scan_takes_its_own_branch(reverse):
    weights, x = case()

    def layer(x, step):
        index, weight = step
        branches = [jax.jit(lambda x: jnp.maximum(x @ weight, ZEROS)), jnp.negative]
        return lax.switch(index, branches, x), None

    def model(indices, x):
        return lax.scan(layer, x, (indices, weights), reverse=reverse)[0]

    indices = np.array([0, 1, 0])
    order = range(LAYERS)[:: -1 if reverse else 1]
    expected, executed, hidden = [], [], x
    for i in order:
        after = -hidden if indices[i] else np.maximum(hidden @ weights[i], 0)
        expected.append((after > 0) & (indices[i] == 0))
        executed += [indices[i] == 0] * WIDTH
        hidden = after
    for nested in (model, jax.jit(model)):
        patterns = executed_patterns(nested)
        for run in (patterns, jax.jit(patterns)):
            actual = run(indices, x)
            np.testing.assert_array_equal(actual[0], np.concatenate(expected, 1))
            np.testing.assert_array_equal(actual[1], executed)


def test_branches_in_branches_around_a_scan():
    weights, x = case()

    def inner(weights, x):
        return lax.cond(x[0, 0] < 1e6, scanned, lambda weights, x: x @ weights[0], weights, x)

    def outer(use, weights, x):
        return lax.cond(use, jax.jit(inner), lambda weights, x: jax.nn.relu(x), weights, x)

    both = jax.jit(executed_patterns(outer))
    layers, own = by_hand(weights, x), x > 0
    for use in (True, False):
        patterns, executed = both(use, weights, x)
        expected = [0 * own, layers] if use else [own, 0 * layers]
        np.testing.assert_array_equal(patterns, np.concatenate(expected, 1))
        np.testing.assert_array_equal(executed, np.repeat([not use, *[use] * LAYERS], WIDTH))


def test_what_a_model_prints_does_not_count(capfd):
    def model(x):
        jax.debug.print("{}", jnp.abs(x).max())
        return jax.nn.relu(x)

    x = case()[1]
    np.testing.assert_array_equal(activation_patterns(model)(x), x > 0)
    jax.effects_barrier()
    assert float(capfd.readouterr().out) == pytest.approx(np.abs(x).max(), rel=1e-5)


def test_branches_and_loops_without_a_relu_are_computed():
    weights, x = case()

    def model(x):
        x = lax.cond(x[0, 0] > 1e6, lambda x: x / 2, jnp.negative, x)
        x = lax.while_loop(lambda x: jnp.abs(x).max() < 8, lambda x: 2 * x, x)
        return jax.nn.relu(x @ weights[0])

    np.testing.assert_array_equal(activation_patterns(model)(x), -x @ weights[0] > 0)


def pixels(x):
    """A convolution of 1 x 1 as a product, with as many channels as there are samples."""
    rows = jnp.reshape(x, (-1, 1, N)) + jnp.zeros((1, 2, 1))
    return jax.nn.relu(jnp.reshape(rows, (-1, N))).reshape(-1, 2 * N)


def with_table(x):
    """A model that takes no other number of samples."""
    return jax.nn.relu((x + jnp.arange(N, dtype=float)[:, None]).T).T


@pytest.mark.parametrize("n", [4, WIDTH, N])
def test_the_axis_of_samples_is_found_wherever_it_is(n):
    """Also where there are as many features or pixels, and two nonlinearities differ in it."""
    x = case()[1][:n]
    np.testing.assert_array_equal(activation_patterns(jax.nn.relu)(x), x > 0)
    np.testing.assert_array_equal(activation_patterns(lambda x: jax.nn.relu(x.T).T)(x), x > 0)
    patterns = activation_patterns(lambda x: jax.nn.relu(jnp.abs(x.T).T - 1))
    expected = np.concatenate([x > 0, np.abs(x) > 1], 1)
    np.testing.assert_array_equal(patterns(x), expected)
    np.testing.assert_array_equal(jax.jit(patterns)(x), expected)
    images = jnp.ones((1, n, 1)) * x[:, None]
    moved = activation_patterns(lambda x: jax.nn.relu(jnp.moveaxis(x, 0, 2)).sum((0, 1))[:, None])
    np.testing.assert_array_equal(moved(images), np.repeat(x > 0, n, 0).reshape(n, -1))


def test_an_axis_of_samples_that_cannot_be_told_is_asked_for():
    square = np.random.default_rng(0).normal(size=(N, N)).astype(np.float32)
    ask = (
        r"max has shape \(7, 7\) where the model returns 7 samples: give sample_axis= to say which"
    )
    with pytest.raises(InputError, match=ask):
        activation_patterns(with_table)(square)
    shifted = square + np.arange(N)[:, None] > 0
    for axis in (1, -1):
        patterns = activation_patterns(with_table, sample_axis=axis)(square)
        np.testing.assert_array_equal(patterns, shifted)
        regions = linear_regions(lambda _, x: with_table(x), (), square, sample_axis=axis)
        assert regions == len(np.unique(shifted, axis=0))
    with pytest.raises(InputError, match=ask):
        activation_patterns(with_table, sample_axis=2)(square)


@pytest.mark.parametrize(
    "model",
    [
        lambda x: lax.map(jax.nn.relu, x),
        lambda x: x + jax.nn.relu(x[0, 0]),
        lambda x: x + jax.nn.relu(x.mean(0))[None],
        lambda x: jax.nn.relu(x.reshape(-1)).reshape(x.shape),
        lambda x: x + jax.nn.relu(jnp.ones((2, N, N)) * x[0, 0]).sum(),
        lambda x: pixels(jnp.pad(x, ((0, 0), (0, N - x.shape[1])))),
    ],
)
@pytest.mark.parametrize("features", [WIDTH, N])
def test_a_nonlinearity_without_an_axis_of_samples_is_refused(features, model):
    """Also where another axis is as long."""
    x = np.random.default_rng(0).normal(size=(N, features)).astype(np.float32)
    message = r"^the output of max has shape .* 7 samples: keep the samples on an axis of their own"
    with pytest.raises(InputError, match=message):
        activation_patterns(model)(x)


def test_a_model_returns_one_array():
    _, x = case()
    with pytest.raises(InputError, match=r"returns arrays of shapes \[\(7, 5\), \(7, 5\)\]: it "):
        activation_patterns(lambda x: (jax.nn.relu(x), x))(x)
    with pytest.raises(InputError, match=r"shapes \[\(\)\]: it must return one array \[n, \.\.\.]"):
        activation_patterns(lambda x: jax.nn.relu(x).sum())(x)


def test_nan_is_inactive():
    x = jnp.array([[jnp.nan, 1.0, -1.0]])
    assert activation_patterns(jax.nn.relu)(x).tolist() == [[False, True, False]]

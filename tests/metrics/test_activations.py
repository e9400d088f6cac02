"""Activation patterns of models of all kinds against patterns computed by hand."""

import dataclasses
import re
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilation import quick_jit
from jax import lax
from jax.sharding import AxisType, PartitionSpec

from tenas_jax.architectures.space import ProxySize
from tenas_jax.errors import InputError
from tenas_jax.metrics.activations import activation_patterns, executed_patterns
from tenas_jax.metrics.regions import linear_regions
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


def by_hand(weights, x):
    """Signs of the hidden layers of a perceptron, one after the other."""
    patterns = []
    for weight in weights:
        x = np.maximum(x @ weight, 0)
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
    "relu6": lambda x: jax.nn.relu6(x / 100) * 100,
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
    "nested": jax.jit(jax.checkpoint(jax.vmap(jax.jit(relu_with_vjp)))),
}


@pytest.mark.parametrize("name", RELUS)
def test_every_way_to_write_a_relu_counts_once(name):
    weights, x = case()
    patterns = activation_patterns(partial(perceptron, RELUS[name]))
    np.testing.assert_array_equal(patterns(weights, x), by_hand(weights, x))
    np.testing.assert_array_equal(quick_jit(patterns)(weights, x), by_hand(weights, x))


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
    np.testing.assert_array_equal(quick_jit(patterns)(weights, x), by_hand(weights, x))


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
        patterns = quick_jit(jax.vmap(activation_patterns(model)))(weights, x)
        np.testing.assert_array_equal(patterns, np.stack([by_hand(*each) for each in cases]))
        counts = quick_jit(jax.vmap(partial(linear_regions, model)))(weights, x)
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
    variables = quick_jit(Network().init)(jax.random.key(0), x)

    def model(params, x):
        return Network().apply({**variables, "params": params}, x, mutable=["batch_stats"])[0]

    params = variables["params"]
    x = np.asarray(x, np.float64)
    x = x @ np.float64(params["Dense_0"]["kernel"])
    first = np.maximum((x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5), 0)
    x = first @ np.float64(params["Dense_1"]["kernel"])
    second = x - x.mean(1, keepdims=True)
    expected = np.concatenate([first, second], 1) > 0
    patterns = quick_jit(activation_patterns(model))(params, case()[1])
    np.testing.assert_array_equal(patterns, expected)


def test_a_variance_averaged_over_batches_is_no_neuron():
    def model(x, running):
        variance = jnp.maximum(0.0, (x * x).mean(0) - x.mean(0) ** 2)
        averaged = 0.9 * running + 0.1 * variance
        averaged = lax.select(running.sum() == 0, variance, averaged)
        return jax.nn.relu(x - x.mean(0)[None]) / jnp.sqrt(averaged + 1e-5)[None]

    x = np.random.default_rng(0).normal(size=(N, N)).astype(np.float32)
    patterns = activation_patterns(model)(x, jnp.zeros(N))
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
    np.testing.assert_array_equal(quick_jit(activation_patterns(jax.vmap(model)))(x), expected)

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
    params = quick_jit(network.init)(jax.random.key(0), patches, mask)["params"]

    @quick_jit
    def both(patches):
        _, sown = network.apply({"params": params}, patches, mask, mutable=[PATTERNS])
        read = activation_patterns(lambda x: network.apply({"params": params}, x, mask))(patches)
        return jnp.concatenate(jax.tree.leaves(sown), 1), read

    sown, read = (np.asarray(patterns) for patterns in both(patches))
    assert 1 < len(np.unique(read, axis=0)) <= 12
    # In another order: that of the names.
    assert sorted(map(tuple, read.T.tolist())) == sorted(map(tuple, sown.T.tolist()))


SMOOTH = {
    "softplus": jax.nn.softplus,
    "gelu": jax.nn.gelu,
    "elu": jax.nn.elu,
    "leaky_relu": jax.nn.leaky_relu,
    "running_maximum": lambda x: lax.scan(
        lambda c, y: (jnp.maximum(c, y), None), jnp.zeros(N), x.T
    )[0],
    "maximum_with_one": lambda x: jnp.maximum(x, 1),
    "integers": lambda x: jnp.maximum(x.astype(int), 0),
}


@pytest.mark.parametrize("name", SMOOTH)
def test_a_model_without_a_relu_is_refused(name):
    with pytest.raises(InputError, match=r"^the model has no ReLU: use jax.nn.relu or [^\n]*$"):
        activation_patterns(SMOOTH[name])(case()[1])


def whiled(x):
    return lax.while_loop(lambda x: x.sum() > 1, lambda x: jax.nn.relu(x) / 2, x)


def whiled_in_a_branch(x):
    return lax.cond(x.sum() > 0, jnp.tanh, whiled, x)


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
    assert re.fullmatch(f"a ReLU inside the primitive '{primitive}' .*", str(raised.value))


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
    compiled = quick_jit(patterns)
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
    both = quick_jit(jax.vmap(executed_patterns(branched), (0, None, None)))
    expected = [branched_by_hand(use, weights, x) for use in (False, True)]
    for actual, wanted in zip(
        both(jnp.array([False, True]), weights, x), zip(*expected, strict=True), strict=True
    ):
        np.testing.assert_array_equal(actual, np.stack(wanted))
    # Where each sample chooses for itself, all of both branches is computed.
    of_samples = jax.vmap(lambda x: lax.cond(x[0] > 0, jax.nn.relu, jnp.negative, x))
    patterns, executed = executed_patterns(of_samples)(x)
    np.testing.assert_array_equal(patterns, x > 0)
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
        for run in (patterns, quick_jit(patterns)):
            actual = run(indices, x)
            np.testing.assert_array_equal(actual[0], np.concatenate(expected, 1))
            np.testing.assert_array_equal(actual[1], executed)


def test_branches_in_branches_around_a_scan():
    weights, x = case()

    def inner(weights, x):
        return lax.cond(x[0, 0] < 1e6, scanned, lambda weights, x: x @ weights[0], weights, x)

    def outer(use, weights, x):
        return lax.cond(use, jax.jit(inner), lambda weights, x: jax.nn.relu(x), weights, x)

    both = quick_jit(executed_patterns(outer))
    layers, own = by_hand(weights, x), x > 0
    for use in (True, False):
        patterns, executed = both(use, weights, x)
        expected = [0 * own, layers] if use else [own, 0 * layers]
        np.testing.assert_array_equal(patterns, np.concatenate(expected, 1))
        np.testing.assert_array_equal(executed, np.repeat([not use, *[use] * LAYERS], WIDTH))


def test_branches_and_loops_without_a_relu_are_computed():
    weights, x = case()

    def model(x):
        x = lax.cond(x[0, 0] > 1e6, jnp.tanh, jnp.negative, x)
        x = lax.while_loop(lambda x: jnp.abs(x).max() < 8, lambda x: 2 * x, x)
        return jax.nn.relu(x @ weights[0])

    np.testing.assert_array_equal(activation_patterns(model)(x), -x @ weights[0] > 0)


def test_samples_are_told_by_their_number():
    _, x = case()
    np.testing.assert_array_equal(activation_patterns(lambda x: jax.nn.relu(x.T).T)(x), x > 0)
    square = x[:WIDTH]
    np.testing.assert_array_equal(activation_patterns(jax.nn.relu)(square), square > 0)
    advice = r"samples: it must have them on its first axis or on the only one of that length"
    with pytest.raises(InputError, match=r"output has shape \(5,\) where the .* 7 " + advice):
        activation_patterns(lambda x: lax.map(jax.nn.relu, x))(x)
    with pytest.raises(InputError, match=r"output has shape \(\) where .* 7 " + advice):
        activation_patterns(lambda x: x * jax.nn.relu(x[0, 0]))(x)
    with pytest.raises(InputError, match=r"output has shape \(2, 7, 7\) where .* 7 " + advice):
        activation_patterns(lambda x: jax.nn.relu(jnp.ones((2, N, N)) * x[0, 0])[0])(x)


def test_a_model_returns_one_array():
    _, x = case()
    with pytest.raises(InputError, match=r"returns arrays of shapes \[\(7, 5\), \(7, 5\)\]: it "):
        activation_patterns(lambda x: (jax.nn.relu(x), x))(x)
    with pytest.raises(InputError, match=r"shapes \[\(\)\]: it must return one array \[n, \.\.\.]"):
        activation_patterns(lambda x: jax.nn.relu(x).sum())(x)


def test_nan_is_inactive():
    x = jnp.array([[jnp.nan, 1.0, -1.0]])
    assert activation_patterns(jax.nn.relu)(x).tolist() == [[False, True, False]]

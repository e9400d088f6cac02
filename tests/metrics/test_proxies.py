"""Proxies against gradients derived by hand, naive counts and naive discrete networks."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from scipy.stats import kendalltau

from tenas_jax.architectures.space import ProxySize
from tenas_jax.errors import InputError
from tenas_jax.metrics import proxies
from tenas_jax.metrics.draw import Draw
from tenas_jax.metrics.ntk import empirical_ntk
from tenas_jax.metrics.proxies import (
    cross_entropy,
    grad_norm,
    naswot,
    ntk_mean_eigenvalue,
    ntk_trace,
    parameters,
    snip,
    swap,
    synflow,
    zico,
)
from tenas_jax.metrics.registry import METRICS
from tenas_jax.networks.initializers import initialize
from tenas_jax.networks.layers import DEVIATIONS
from tenas_jax.networks.layouts import EPSILON, NHWC, NHWC_WITHOUT_BATCH_NORM
from tenas_jax.networks.supernet import FEATURES
from tenas_jax.searching.measurement import _patterns_and_counts
from tenas_jax.spaces import NAS_BENCH_201

N, INPUTS, HIDDEN, CLASSES = 6, 4, 5, 3


def everything(path):
    return True


def only_kernels(path):
    return path[-1].key not in ("scale", "bias")


def mlp(params, x):
    first, second = params["first"], params["second"]
    hidden = jax.nn.relu(x @ first["kernel"] + first["bias"][None])
    return hidden @ second["kernel"] + second["bias"][None]


# Compiled once for all tests: the proxies of the MLP, for its weights and for all its parameters.
mlp_grad_norm, mlp_snip, mlp_zico, mlp_synflow = (
    {
        "weights": jax.jit(partial(proxy, mlp)),
        "all": jax.jit(partial(proxy, mlp, select=everything)),
    }
    for proxy in (grad_norm, snip, zico, synflow)
)
SELECTED = {"weights": only_kernels, "all": everything}
selections = pytest.mark.parametrize("selection", SELECTED)
score_patterns, count_columns = jax.jit(naswot), jax.jit(swap)


@pytest.fixture
def case():
    """Parameters of the MLP, two batches and their labels, in double precision."""
    generator = np.random.default_rng(0)
    shapes = {
        "first": {"kernel": (INPUTS, HIDDEN), "bias": (HIDDEN,)},
        "second": {"kernel": (HIDDEN, CLASSES), "bias": (CLASSES,)},
    }
    with jax.enable_x64(True):
        params = jax.tree.map(
            lambda shape: jnp.asarray(generator.normal(size=shape)),
            shapes,
            is_leaf=lambda node: isinstance(node, tuple),
        )
        # A neuron that is active for no sample: its weights have no gradient.
        params["first"]["bias"] = params["first"]["bias"].at[2].set(-100)
        x = jnp.asarray(generator.normal(size=(2, N, INPUTS)))
        yield params, x, jnp.asarray(generator.integers(CLASSES, size=(2, N)))


def numpy_gradient(params, x, labels):
    """Gradient of the mean cross-entropy of the MLP, derived by hand."""
    params, x = jax.tree.map(np.asarray, params), np.asarray(x)
    before = x @ params["first"]["kernel"] + params["first"]["bias"]
    hidden = np.maximum(before, 0)
    logits = hidden @ params["second"]["kernel"] + params["second"]["bias"]
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    error = (probabilities - np.eye(CLASSES)[np.asarray(labels)]) / len(x)
    hidden_error = (error @ params["second"]["kernel"].T) * (before > 0)
    return {
        "first": {"kernel": x.T @ hidden_error, "bias": hidden_error.sum(0)},
        "second": {"kernel": hidden.T @ error, "bias": error.sum(0)},
    }


def weights_of(tree, select=only_kernels):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [np.asarray(leaf) for path, leaf in leaves if select(path)]


@selections
def test_grad_norm_is_the_sum_of_the_norms_of_the_layers(case, selection):
    params, x, labels = case
    gradient = numpy_gradient(params, x[0], labels[0])
    layers = weights_of(gradient, SELECTED[selection])
    expected = sum(np.sqrt((layer**2).sum()) for layer in layers)
    score = mlp_grad_norm[selection](params, x[0], labels[0])
    np.testing.assert_allclose(score, expected, rtol=1e-10)


@selections
def test_snip_is_the_sum_of_the_absolute_products(case, selection):
    params, x, labels = case
    gradient = numpy_gradient(params, x[0], labels[0])
    selected = SELECTED[selection]
    layers = zip(weights_of(params, selected), weights_of(gradient, selected), strict=True)
    expected = sum(np.abs(theta * g).sum() for theta, g in layers)
    score = mlp_snip[selection](params, x[0], labels[0])
    np.testing.assert_allclose(score, expected, rtol=1e-10)


def naive_zico(gradients, selected):
    """Li et al. 2023 for gradients of several batches, one weight at a time."""
    score = 0.0
    for layer in zip(*(weights_of(gradient, selected) for gradient in gradients), strict=True):
        total = 0.0
        for values in np.stack(layer).reshape(len(layer), -1).T:
            if values.std() > 0:
                total += np.abs(values).mean() / values.std()
        if total > 0:
            score += np.log(total)
    return score


@selections
def test_zico_is_the_sum_of_the_logarithms_of_the_layers(case, selection):
    params, x, labels = case
    gradients = [numpy_gradient(params, *batch) for batch in zip(x, labels, strict=True)]
    assert (weights_of(gradients[0])[0][:, 2] == 0).all()  # there are weights without deviation
    score = mlp_zico[selection](params, x, labels)
    np.testing.assert_allclose(score, naive_zico(gradients, SELECTED[selection]), rtol=1e-8)


def test_zico_takes_more_than_two_batches(case):
    params, x, labels = case
    x, labels = jnp.concatenate([x, 2 * x]), jnp.concatenate([labels, labels])
    gradients = [numpy_gradient(params, *batch) for batch in zip(x, labels, strict=True)]
    score = mlp_zico["weights"](params, x, labels)
    np.testing.assert_allclose(score, naive_zico(gradients, only_kernels), rtol=1e-8)


def test_zico_leaves_out_layers_whose_gradients_do_not_vary(case):
    params, x, labels = case
    score = mlp_zico["weights"](params, x, labels)
    with_unused = {**params, "unused": {"kernel": jnp.ones((2, 2))}}
    np.testing.assert_allclose(mlp_zico["weights"](with_unused, x, labels), score, rtol=1e-12)
    same = jnp.array([0, 0])
    assert mlp_zico["weights"](params, x[same], labels[same]) == 0


def test_the_order_of_samples_and_batches_does_not_matter(case):
    params, x, labels = case
    order = np.random.default_rng(1).permutation(N)
    for proxy in (mlp_grad_norm, mlp_snip):
        score = proxy["weights"](params, x[0], labels[0])
        shuffled = proxy["weights"](params, x[0][order], labels[0][order])
        np.testing.assert_allclose(shuffled, score, rtol=1e-10)
    score = mlp_zico["weights"](params, x, labels)
    shuffled = mlp_zico["weights"](params, x[::-1, order], labels[::-1, order])
    np.testing.assert_allclose(shuffled, score, rtol=1e-8)


def test_an_unstacked_leaf_is_as_many_layers(case):
    params, x, labels = case
    rows = [{"kernel": row[None]} for row in params["first"]["kernel"]]
    unstacked = {"rows": rows, "bias": params["first"]["bias"], "second": params["second"]}

    def stacked(params, x):
        kernel = jnp.concatenate([row["kernel"] for row in params["rows"]])
        first = {"kernel": kernel, "bias": params["bias"]}
        return mlp({"first": first, "second": params["second"]}, x)

    gradients = [numpy_gradient(params, *batch) for batch in zip(x, labels, strict=True)]
    layers = [[*g["first"]["kernel"], g["second"]["kernel"]] for g in gradients]
    norms = [np.linalg.norm(layer) for layer in layers[0]]
    score = jax.jit(partial(grad_norm, stacked))(unstacked, x[0], labels[0])
    np.testing.assert_allclose(score, sum(norms), rtol=1e-10)
    score = jax.jit(partial(zico, stacked))(unstacked, x, labels)
    np.testing.assert_allclose(score, naive_zico(layers, everything), rtol=1e-8)


@selections
def test_synflow_of_a_network_with_biases(case, selection):
    params = case[0]
    first, second = ({k: np.abs(v) for k, v in params[layer].items()} for layer in params)
    x = np.full(INPUTS, 0.5)
    hidden = x @ first["kernel"] + first["bias"]  # positive: ReLU is the identity
    onwards = second["kernel"].sum(1)
    terms = {
        "first": {"kernel": (x @ first["kernel"]) @ onwards, "bias": first["bias"] @ onwards},
        "second": {"kernel": hidden @ onwards, "bias": second["bias"].sum()},
    }
    score = mlp_synflow[selection](params, jnp.asarray(x[None]))
    expected = np.log(sum(weights_of(terms, SELECTED[selection])))
    np.testing.assert_allclose(score, expected, rtol=1e-10)


def test_synflow_ignores_signs_and_adds_the_logarithm_of_a_layers_scale(case):
    params, x, score = case[0], jnp.ones((1, INPUTS)), mlp_synflow["weights"]
    params = {layer: {**params[layer], "bias": 0 * params[layer]["bias"]} for layer in params}
    expected = score(params, x)
    opposite = jax.tree.map(lambda leaf: -leaf, params)
    np.testing.assert_allclose(score(opposite, x), expected, rtol=1e-12)
    scaled = {**params, "second": jax.tree.map(lambda leaf: 7 * leaf, params["second"])}
    np.testing.assert_allclose(score(scaled, x), expected + np.log(7), rtol=1e-12)
    np.testing.assert_allclose(score(params, 3 * x), expected + np.log(3), rtol=1e-12)


def test_synflow_of_a_deep_network_does_not_overflow_from_a_small_input():
    depth, width = 48, 9
    params = {"kernel": -jnp.ones((depth, width, width))}

    def chain(params, x):
        return jax.lax.scan(lambda x, kernel: (x @ kernel, None), x, params["kernel"])[0]

    score = jax.jit(partial(synflow, chain))
    # R = width^(depth + 1) is 6e46, and each of the layers contributes as much.
    expected = np.log(depth) + (depth + 1) * np.log(width)
    tiny = score(params, jnp.full((1, width), 1e-30))
    np.testing.assert_allclose(tiny, expected + np.log(1e-30), rtol=1e-6)
    assert jnp.isnan(score(params, jnp.ones((1, width))))


def test_synflow_of_a_disconnected_network_is_minus_infinity():
    params, x = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}, jnp.ones((1, 2))
    for apply_fn in (lambda p, x: 0 * x @ p["kernel"], lambda p, x: p["bias"]):
        assert jax.jit(partial(synflow, apply_fn))(params, x) == -jnp.inf


def test_trace_and_mean_eigenvalue(case):
    params, x, _ = case
    kernel = jax.jit(partial(empirical_ntk, mlp))(params, x[0])
    spectrum = np.linalg.eigvalsh(kernel)
    np.testing.assert_allclose(ntk_trace(kernel), spectrum.sum(), rtol=1e-10)
    np.testing.assert_allclose(ntk_mean_eigenvalue(kernel), spectrum.mean(), rtol=1e-10)
    jacobian = jax.jit(jax.jacobian(lambda params: mlp(params, x[0]).sum(1)))(params)
    squares = sum((layer**2).sum() for layer in weights_of(jacobian))
    np.testing.assert_allclose(ntk_trace(kernel), squares, rtol=1e-10)


def test_trace_of_the_kernel_of_all_outputs(case):
    params, x, _ = case
    kernel = jax.jit(partial(empirical_ntk, mlp, reduction="trace"))(params, x[0])
    jacobian = jax.jit(jax.jacobian(lambda params: mlp(params, x[0])))(params)
    squares = sum((layer**2).sum() for layer in weights_of(jacobian))  # NASI, equation 9
    np.testing.assert_allclose(ntk_trace(kernel), squares, rtol=1e-10)


def naive_naswot(patterns):
    """Mellor et al. 2021, one pair of samples after the other."""
    n, neurons = patterns.shape
    kernel = [[neurons - (a != b).sum() for b in patterns] for a in patterns]
    if np.linalg.matrix_rank(kernel) < n:
        return -np.inf
    return np.linalg.slogdet(np.array(kernel, float))[1]


def random_patterns(n, neurons, seed=0):
    return np.random.default_rng(seed).random((n, neurons)) < 0.4


@pytest.mark.parametrize("n, neurons", [(2, 1), (5, 40), (32, 500), (64, 3000)])
def test_naswot_equals_the_naive_one(n, neurons):
    patterns = random_patterns(n, neurons)
    patterns[0, 0], patterns[1, 0] = True, False
    score = score_patterns(patterns)
    np.testing.assert_allclose(score, naive_naswot(patterns), rtol=1e-5, atol=1e-6)


def test_naswot_is_invariant_and_bounded():
    patterns = random_patterns(12, 60)
    score = score_patterns(patterns)
    generator = np.random.default_rng(1)
    shuffled = generator.permutation(generator.permutation(patterns, axis=0), axis=1)
    flipped = patterns ^ (generator.random(60) < 0.5)  # agreement does not see it
    for other in (shuffled, flipped):
        np.testing.assert_allclose(score_patterns(other), score, rtol=1e-5)
    assert score < 12 * np.log(60)  # Hadamard: the product of the diagonal


def test_naswot_of_neurons_that_are_there_several_times_or_not_at_all():
    patterns = random_patterns(6, 50)
    counts = np.random.default_rng(1).integers(4, size=50)
    assert (counts == 0).any()
    score = score_patterns(patterns, counts=counts)
    repeated = np.repeat(patterns, counts, 1)
    np.testing.assert_allclose(score, naive_naswot(repeated), rtol=1e-5)


@pytest.mark.parametrize("n", [8, 32, 72])
def test_naswot_of_a_singular_kernel_is_minus_infinity(n):
    patterns = random_patterns(n, 200)
    patterns[-1] = patterns[0]
    assert score_patterns(patterns) == -jnp.inf
    few_neurons = random_patterns(n, 6)  # all patterns may differ, but the rank is at most 7
    assert naive_naswot(few_neurons) == -np.inf
    assert score_patterns(few_neurons) == -jnp.inf


@pytest.mark.parametrize("n, neurons", [(4, 100), (70, 64)])
def test_swap_equals_the_number_of_distinct_columns(n, neurons):
    generator = np.random.default_rng(1)
    patterns = random_patterns(n, neurons)[:, generator.integers(neurons, size=neurons)]
    expected = len({tuple(column) for column in patterns.T})
    assert expected < neurons
    shuffled = generator.permutation(generator.permutation(patterns, axis=0), axis=1)
    for same in (patterns, shuffled):
        assert count_columns(same) == expected


def test_the_number_of_parameters_needs_no_values(case):
    expected = (INPUTS + 1) * HIDDEN + (HIDDEN + 1) * CLASSES
    assert parameters(case[0]) == expected
    assert parameters(jax.eval_shape(lambda: case[0])) == expected


def test_can_be_compiled_and_vectorized(case):
    params, x, labels = case
    one = jnp.ones((1, INPUTS))
    pairs = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), params)
    pattern_pairs = jnp.asarray(np.stack([random_patterns(6, 50, seed) for seed in (0, 1)]))

    for proxy, compiled, batch, inputs in (
        (partial(grad_norm, mlp), mlp_grad_norm["weights"], pairs, (x[0], labels[0])),
        (partial(snip, mlp), mlp_snip["weights"], pairs, (x[0], labels[0])),
        (partial(zico, mlp), mlp_zico["weights"], pairs, (x, labels)),
        (partial(synflow, mlp), mlp_synflow["weights"], pairs, (one,)),
        (naswot, score_patterns, pattern_pairs, ()),
        (swap, count_columns, pattern_pairs, ()),
    ):
        singles = [jax.tree.map(lambda leaf, i=i: leaf[i], batch) for i in (0, 1)]
        scores = [compiled(single, *inputs) for single in singles]
        assert scores[0] != scores[1]
        axes = (0, *[None] * len(inputs))
        together = jax.jit(jax.vmap(proxy, axes))(batch, *inputs)
        np.testing.assert_allclose(together, scores, rtol=1e-8)


def test_bad_input_is_named(case):
    params, x, labels = case

    def trace(proxy, *inputs, apply_fn=mlp, **keywords):
        jax.eval_shape(partial(proxy, apply_fn, **keywords), params, *inputs)

    with pytest.raises(InputError, match=r"labels of shape \(5,\) for 6 samples: give one"):
        trace(grad_norm, x[0], labels[0, :5])
    with pytest.raises(InputError, match=r"shape \(6, 3, 1\): it must return one array"):
        trace(snip, x[0], labels[0], apply_fn=lambda params, x: mlp(params, x)[..., None])
    with pytest.raises(InputError, match="ZiCo of 1 batch has no deviation: give 2 or more"):
        trace(zico, x[:1], labels[:1])
    with pytest.raises(InputError, match="x and labels have 1 and 2 batches: give as many"):
        trace(zico, x[:1], labels)
    for proxy, inputs in (
        (grad_norm, (x[0], labels[0])),
        (snip, (x[0], labels[0])),
        (zico, (x, labels)),
        (synflow, (x[0],)),
    ):
        with pytest.raises(InputError, match="no parameter is selected"):
            trace(proxy, *inputs, select=lambda path: False)


def test_cross_entropy_is_minus_the_mean_log_probability():
    logits = np.random.default_rng(0).normal(size=(4, 3))
    labels = [2, 0, 0, 1]
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = -np.mean([np.log(p[label]) for p, label in zip(probabilities, labels, strict=True)])
    loss = cross_entropy(0.0, lambda _, x: x, jnp.asarray(logits), jnp.asarray(labels))
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


# Discrete networks of NAS-Bench-201 in NumPy, with the weights of the supernet.


def numpy_conv(x, kernel, stride=1):
    pad = kernel.shape[0] // 2
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel.shape[:2], (1, 2))
    return np.einsum("nhwckl,klco->nhwo", windows[:, ::stride, ::stride], kernel, optimize=True)


def numpy_average(x):
    """3 x 3 average over the pixels inside the image."""
    ones = np.ones((3, 3, 1, 1))
    sums = [numpy_conv(x[..., c : c + 1], ones) for c in range(x.shape[-1])]
    return np.concatenate(sums, -1) / numpy_conv(np.ones_like(x[..., :1]), ones)


def on_paths(ops):
    """Whether each edge is on a path through operators other than `none`."""
    edges = [edge for edge, name in zip(NAS_BENCH_201.edges, ops, strict=True) if name != "none"]
    before, after = {0}, {3}
    for _ in range(3):
        before |= {target for source, target in edges if source in before}
        after |= {source for source, target in edges if target in after}
    return [(e in edges and e[0] in before and e[1] in after) for e in NAS_BENCH_201.edges]


def discrete_network(params, ops, x, *, normalized):
    """Of the network with one operator on each edge logits, activation patterns, last features.

    And the logarithms of what convolutions on paths are normalized by.
    """
    patterns, deviations = [], []

    def norm(x):
        mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
        return (x - mean) / np.sqrt(variance + EPSILON) if normalized else x

    def relu(x):
        patterns.append((x > 0).reshape(len(x), -1))
        return np.maximum(x, 0)

    def conv_norm(x, kernel, stride=1, counts=True):
        y = numpy_conv(x, kernel, stride)
        if counts:
            deviations.append(np.log(np.sqrt(y.var((0, 1, 2)).mean() + EPSILON)))
        return norm(y)

    def relu_conv_norm(x, layer, edge=0, stride=1, counts=True):
        return conv_norm(relu(x), layer["conv"]["kernel"][edge], stride, counts)

    def cell(x, params):
        nodes = [x, 0, 0, 0]
        for (source, target), name, counts in zip(
            NAS_BENCH_201.edges, ops, on_paths(ops), strict=True
        ):
            y = nodes[source]
            if name == "avg_pool_3x3":
                nodes[target] = nodes[target] + numpy_average(y)
            elif name == "skip_connect":
                nodes[target] = nodes[target] + y
            elif name == "none":
                nodes[target] = nodes[target] + 0 * y
            else:
                edge = target - source - 1
                y = relu_conv_norm(y, params[f"node_{source}_{name}"], edge, counts=counts)
                nodes[target] = nodes[target] + y
        return nodes[-1]

    x = conv_norm(x, params["stem"]["kernel"][0])
    for stage in range(3):
        if stage > 0:
            block = params[f"block_{stage}"]
            y = relu_conv_norm(relu_conv_norm(x, block["conv_a"], stride=2), block["conv_b"])
            n, h, w, c = x.shape
            halved = x.reshape(n, h // 2, 2, w // 2, 2, c).mean((2, 4))
            x = y + numpy_conv(halved, block["shortcut"]["kernel"][0])
        x = cell(x, params[f"cell_{stage}_0"])
    logits = relu(norm(x)).mean((1, 2)) @ params["classifier"]["kernel"]
    return logits, np.concatenate(patterns, 1), x, deviations


def naive_synflow(params, ops, x):
    """Sum of theta dR/dtheta over the kernels: the derivative of R by a common factor of them."""

    def total(factor):
        kernels = jax.tree.map(lambda leaf: factor * np.abs(leaf), params)
        return discrete_network(kernels, ops, x, normalized=False)[0].sum()

    step = 1e-5
    return (total(1 + step) - total(1 - step)) / (2 * step)


@pytest.fixture(scope="module")
def architectures():
    """50 random architectures, the weights of all of them, and images."""
    generator = np.random.default_rng(0)
    choices = generator.integers(len(NAS_BENCH_201.ops), size=(50, len(NAS_BENCH_201.edges)))
    choices[0] = NAS_BENCH_201.ops.index("none")
    ops = [[NAS_BENCH_201.ops[i] for i in choice] for choice in choices]
    masks = np.eye(len(NAS_BENCH_201.ops), dtype=bool)[choices][:, None]
    with jax.enable_x64(True):
        images = jnp.asarray(generator.normal(size=(8, 8, 8, 3)))
        network = NAS_BENCH_201.supernet(ProxySize(10), NHWC)
        shapes = jax.eval_shape(network.init, jax.random.key(0), images, masks[0])["params"]
        params = jax.jit(lambda key: initialize(shapes, "pytorch", key))(jax.random.key(0))
        yield ops, jnp.asarray(masks), params, images


def assert_same_ranking(scores, expected):
    connected = np.isfinite(expected)
    assert 40 < connected.sum() < 50
    np.testing.assert_array_equal(scores[~connected], -np.inf)
    np.testing.assert_allclose(scores[connected], expected[connected], rtol=1e-6)
    assert kendalltau(scores[connected], expected[connected]).statistic > 0.9


def test_naswot_ranks_architectures_as_discrete_networks_do(architectures):
    ops, masks, params, images = architectures
    network = NAS_BENCH_201.supernet(ProxySize(10), NHWC)

    def scores(mask):
        draw = Draw(network.apply, params, images, mask=mask)
        draw._patterns_and_counts = _patterns_and_counts(
            NAS_BENCH_201, network, params, images, mask
        )
        return METRICS["naswot"].measure(draw), METRICS["swap"].measure(draw)

    score = jax.jit(lambda masks: jax.lax.map(scores, masks))
    numpy_params = jax.tree.map(np.asarray, params)
    naive = [discrete_network(numpy_params, o, np.asarray(images), normalized=True)[1] for o in ops]
    naswots, swaps = score(masks)
    assert_same_ranking(np.asarray(naswots), np.array([naive_naswot(p) for p in naive]))
    columns = np.array([len(np.unique(p.T, axis=0)) for p in naive])
    np.testing.assert_array_equal(swaps, columns)


def test_synflow_ranks_architectures_as_discrete_networks_do(architectures):
    ops, masks, params, images = architectures
    ones = jnp.ones_like(images[:1])
    network = NAS_BENCH_201.supernet(ProxySize(10), NHWC_WITHOUT_BATCH_NORM)

    @jax.jit
    def score(masks):
        def one(mask):
            def logits(params, x):
                return network.apply({"params": params}, x, mask)

            return synflow(logits, params, ones, select=only_kernels)

        return jax.lax.map(one, masks)

    numpy_params = jax.tree.map(np.asarray, params)
    naive = np.array([naive_synflow(numpy_params, o, np.asarray(ones)) for o in ops])
    expected = np.log(naive, where=naive > 0, out=np.full(len(naive), -np.inf))
    assert_same_ranking(np.asarray(score(masks)), expected)


@pytest.mark.parametrize("single_path", [False, True])
def test_zen_has_the_features_and_deviations_of_discrete_networks(architectures, single_path):
    ops, masks, params, images = architectures
    size = ProxySize(10, single_path=single_path, rolled=single_path)
    network = NAS_BENCH_201.supernet(size, NHWC)

    @jax.jit
    def sown(masks):
        def one(mask):
            sown = network.apply({"params": params}, images, mask, mutable=[FEATURES, DEVIATIONS])[
                1
            ]
            return jax.tree.leaves(sown[FEATURES])[-1], ravel_pytree(sown[DEVIATIONS])[0].sum()

        return jax.lax.map(one, masks)

    params_and_images = jax.tree.map(np.asarray, (params, images))
    for names, features, total in zip(ops[:12], *sown(masks[:12]), strict=True):
        *_, expected, deviations = discrete_network(
            params_and_images[0], names, params_and_images[1], normalized=True
        )
        np.testing.assert_allclose(features, expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(total, sum(deviations), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32"])
def test_labels_of_any_type_are_the_same_classes(dtype):
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(3, 300)), jnp.float32)
    labels = np.array([0, 127, 5])
    expected = float(proxies.cross_entropy({}, lambda _, x: x, logits, jnp.asarray(labels)))
    given = jnp.asarray(labels, dtype)
    assert float(proxies.cross_entropy({}, lambda _, x: x, logits, given)) == expected


@pytest.mark.parametrize("labels", [[0, -1], [0, 2], [10**9, 1]])
def test_labels_of_no_class_are_refused(labels):
    given = jnp.asarray(labels)
    with pytest.raises(InputError, match=r"labels from .* to .*: give integers from 0 to 1"):
        proxies.cross_entropy({}, lambda _, x: x, jnp.ones((2, 2)), given)
    if min(labels) < 0:
        x = {"kernel": jnp.ones((1, 2))}, jnp.ones((2, 1, 1))
        with pytest.raises(InputError, match=r"labels from -1 to 0: give integers from 0$"):
            proxies.zico(lambda p, x: x @ p["kernel"], *x, given[:, None])

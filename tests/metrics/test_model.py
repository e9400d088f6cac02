"""Which parameters are weights, and what metrics of gradients refuse."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.tree_util import DictKey, FlattenedIndexKey, GetAttrKey, SequenceKey, register_dataclass

import tenas_jax
from tenas_jax.errors import InputError
from tenas_jax.metrics.model import is_weight
from tenas_jax.metrics.ntk import condition_number, ntk_condition_number, spectrum
from tenas_jax.metrics.proxies import grad_norm, parameters, snip, synflow, zico
from tenas_jax.metrics.regions import count_linear_regions, linear_regions

N, INPUTS, HIDDEN, CLASSES = 6, 4, 5, 3
GENERATOR = np.random.default_rng(0)
W1, B1 = GENERATOR.normal(size=(INPUTS, HIDDEN)), GENERATOR.normal(size=HIDDEN)
W2, B2 = GENERATOR.normal(size=(HIDDEN, CLASSES)), GENERATOR.normal(size=CLASSES)
W1, B1, W2, B2 = (jnp.asarray(each, jnp.float32) for each in (W1, B1, W2, B2))
X = jnp.asarray(GENERATOR.normal(size=(N, INPUTS)), jnp.float32)
LABELS = jnp.asarray(GENERATOR.integers(CLASSES, size=N))
PARAMS = {"first": {"kernel": W1, "bias": B1}, "second": {"kernel": W2, "bias": B2}}


def perceptron(w1, b1, w2, b2, x):
    return jax.nn.relu(x @ w1 + b1[None]) @ w2 + b2[None]


def apply_fn(params, x):
    layers = params["first"], params["second"]
    return perceptron(*(layer[name] for layer in layers for name in ("kernel", "bias")), x)


class Layer(NamedTuple):
    weight: jax.Array
    bias: jax.Array


@partial(register_dataclass, data_fields=["weight", "bias"], meta_fields=[])
class Linear:
    """A module that is a pytree, as in Equinox."""

    def __init__(self, weight, bias):
        self.weight, self.bias = weight, bias


def of_nnx():
    model = nnx.Sequential(
        nnx.Linear(INPUTS, HIDDEN, rngs=nnx.Rngs(0)),
        nnx.relu,
        nnx.Linear(HIDDEN, CLASSES, rngs=nnx.Rngs(0)),
    )
    for layer, weight, bias in ((0, W1, B1), (2, W2, B2)):
        model.layers[layer].kernel[...] = weight
        model.layers[layer].bias[...] = bias
    graph, state = nnx.split(model)
    return state, lambda state, x: nnx.merge(graph, state)(x)


def of_linen():
    model = linen.Sequential([linen.Dense(HIDDEN), linen.relu, linen.Dense(CLASSES)])
    params = {"layers_0": PARAMS["first"], "layers_2": PARAMS["second"]}
    return params, lambda params, x: model.apply({"params": params}, x)


def boxed(array):
    return linen.Partitioned(array, names=(None,) * array.ndim)


MODELS = {
    "linen": of_linen(),
    "nnx": of_nnx(),
    "haiku": (
        {"mlp/~/linear_0": {"w": W1, "b": B1}, "mlp/~/linear_1": {"w": W2, "b": B2}},
        lambda p, x: perceptron(*(p[f"mlp/~/linear_{i}"][k] for i in (0, 1) for k in "wb"), x),
    ),
    "equinox": (
        [Linear(W1, B1), Linear(W2, B2)],
        lambda p, x: perceptron(p[0].weight, p[0].bias, p[1].weight, p[1].bias, x),
    ),
    "named tuples": (
        (Layer(W1, B1), Layer(W2, B2)),
        lambda p, x: perceptron(*p[0], *p[1], x),
    ),
    "boxes": (
        jax.tree.map(boxed, PARAMS),
        lambda p, x: apply_fn(linen.unbox(p), x),
    ),
    "flat": (
        {"first/w": W1, "first/b": B1, "second.weight": W2, "second.bias": B2},
        lambda p, x: perceptron(
            *(p[k] for k in ("first/w", "first/b", "second.weight", "second.bias")), x
        ),
    ),
    "tuples as keys": (
        {("first", "kernel"): W1, ("first", "bias"): B1, ("second", "w"): W2, ("second", "b"): B2},
        lambda p, x: perceptron(
            *(
                p[k]
                for k in (("first", "kernel"), ("first", "bias"), ("second", "w"), ("second", "b"))
            ),
            x,
        ),
    ),
    "numbers": (
        {"w1": W1, "b1": B1, "w_out": W2, "b_out": B2},
        lambda p, x: perceptron(p["w1"], p["b1"], p["w_out"], p["b_out"], x),
    ),
    "lists by name": (
        {"weights": [W1, W2], "biases": [B1, B2]},
        lambda p, x: perceptron(*(p[name][i] for i in (0, 1) for name in ("weights", "biases")), x),
    ),
}
METRICS = {
    "kappa": ntk_condition_number,
    "snip": partial(snip, labels=LABELS),
    "grad_norm": partial(grad_norm, labels=LABELS),
    "zico": lambda f, p, x, **kw: zico(f, p, x.reshape(2, 3, INPUTS), LABELS.reshape(2, 3), **kw),
    "synflow": lambda f, p, x, **kw: synflow(f, p, jnp.ones((1, INPUTS)), **kw),
}


def score(metric, f, params, x=X, **options):
    """A metric's value, compiled as a whole."""
    return float(jax.jit(lambda p, x: METRICS[metric](f, p, x, **options))(params, x))


def without_biases(metric):
    """The metric by the weights alone, biases closed over (synflow makes them positive)."""
    sign = jnp.abs if metric == "synflow" else lambda bias: bias
    weights = {"first": {"kernel": W1}, "second": {"kernel": W2}}

    def apply(weights, x):
        first, second = weights["first"]["kernel"], weights["second"]["kernel"]
        return perceptron(first, sign(B1), second, sign(B2), x)

    return score(metric, apply, weights)


@pytest.mark.parametrize("metric", METRICS)
def test_biases_take_no_part_whatever_the_library_calls_them(metric):
    expected = without_biases(metric)
    with_biases = score(metric, apply_fn, PARAMS, select=lambda path: True)
    assert abs(with_biases - expected) > 1e-2 * abs(expected)
    for name in MODELS if metric == "snip" else ("nnx", "haiku"):
        params, apply = MODELS[name]
        assert score(metric, apply, params) == pytest.approx(expected, rel=1e-4), name


NAMELESS = {
    "pairs": [(W1, B1), (W2, B2)],
    "pairs in a dict": {"layers": [(W1, B1), (W2, B2)]},
    "a pair by name": {"first": (W1, B1), "second": (W2, B2)},
    "numbered": {0: W1, 1: B1, 2: W2, 3: B2},
    "numbered by strings": {"0": W1, "1": B1, "2": W2, "3": B2},
    "nnx list": nnx.state(nnx.List([nnx.Param(each) for each in (W1, B1, W2, B2)])),
    "one array": jnp.concatenate([each.ravel() for each in (W1, B1, W2, B2)]),
}


def unnamed(params, x):
    leaves = jax.tree.leaves(params)
    if len(leaves) == 1:
        sizes = np.cumsum([W1.size, B1.size, W2.size])
        leaves = [
            part.reshape(like.shape)
            for part, like in zip(jnp.split(leaves[0], sizes), (W1, B1, W2, B2), strict=True)
        ]
    return perceptron(*leaves, x)


@pytest.mark.parametrize("metric", METRICS)
def test_where_no_name_tells_weights_the_user_has_to(metric):
    for params in NAMELESS.values():
        with pytest.raises(
            InputError, match=r"^no name tells whether the parameter .* give select="
        ):
            METRICS[metric](unnamed, params, X)
    value = score(metric, unnamed, NAMELESS["pairs"], select=lambda path: path[-1].idx == 0)
    assert value == pytest.approx(without_biases(metric), rel=1e-4)


def test_measure_takes_select_as_well():
    pairs = NAMELESS["pairs"]
    with pytest.raises(InputError, match="give select="):
        tenas_jax.measure(unnamed, pairs, X, metrics="kappa")
    metrics = "snip"
    values, expected = (
        tenas_jax.measure(f, params, X, labels=LABELS, metrics=metrics, **options)
        for f, params, options in (
            (unnamed, pairs, {"select": lambda path: path[-1].idx == 0}),
            (apply_fn, PARAMS, {}),
        )
    )
    assert values == pytest.approx(expected, rel=1e-4)


BIASES = ["bias", "b", "b1", "b_2", "b_out", "fc_b", "in_proj_bias", "bias_hh", "offset", "bn_beta"]
WEIGHTS = [
    "kernel",
    "weight",
    "w",
    "W",
    "w1",
    "w_i",
    "fc_w",
    "scale",
    "gamma",
    "embedding",
    "weight_hh",
]
OTHERS = ["alpha", "cls_token", "base", "lora_b"]
MODULES = ["bias", "b", "linear", "value", "beta", "layers"]
POSITIONS = st.one_of(
    st.builds(SequenceKey, st.integers(0, 3)),
    st.builds(FlattenedIndexKey, st.integers(0, 3)),
    st.builds(DictKey, st.integers(0, 3)),
    st.just(DictKey("12")),
)


def key_of(name):
    return st.sampled_from(
        [DictKey(name), GetAttrKey(name), DictKey(f"mlp/{name}"), DictKey(("mlp", name))]
    )


@settings(max_examples=200)
@given(st.data())
def test_only_the_last_name_on_generated_paths_decides(data):
    draw = data.draw
    modules = st.one_of(st.sampled_from(MODULES).map(DictKey), POSITIONS)
    before = draw(st.lists(modules, max_size=3))
    name = draw(st.sampled_from([*BIASES, *WEIGHTS, *OTHERS]))
    positions = draw(st.lists(POSITIONS, max_size=2))
    boxes = draw(st.sampled_from([[], [GetAttrKey("value")]]))
    path = (*before, draw(key_of(name)), *positions, *boxes)
    if name in OTHERS and positions:
        with pytest.raises(InputError, match="no name tells"):
            is_weight(path)
    else:
        assert is_weight(path) == (name not in BIASES)
    if positions:
        with pytest.raises(InputError, match="no name tells"):
            is_weight((*positions, *boxes))


@settings(max_examples=15)
@given(st.data())
def test_generated_trees_have_the_snip_of_their_weights(data):
    """A linear model whose terms are at random places of a tree."""
    names = data.draw(st.lists(st.sampled_from([*BIASES, *WEIGHTS]), min_size=1, max_size=4))
    nest = [
        lambda name, leaf: {name: leaf},
        lambda name, leaf: {name: [leaf]},
        lambda name, leaf: {"module": {name: leaf}},
        lambda name, leaf: [{"b": {name: (leaf,)}}],
        lambda name, leaf: {name: boxed(leaf)},
    ]
    values = data.draw(st.lists(st.integers(1, 5), min_size=len(names), max_size=len(names)))
    params = [
        data.draw(st.sampled_from(nest))(name, jnp.full((1, 2), float(value)))
        for name, value in zip(names, values, strict=True)
    ]
    expected = sum(v for name, v in zip(names, values, strict=True) if name in WEIGHTS)

    def model(params, x):
        return x * sum(jax.tree.leaves(params))

    x, labels = jnp.ones((1, 1)), jnp.array([0])
    if not expected:
        with pytest.raises(InputError, match="no parameter is selected"):
            snip(model, params, x, labels)
    else:
        # The gradient of each of a term's two elements is minus or plus one half.
        assert float(snip(model, params, x, labels)) == pytest.approx(expected)


REFUSED = {
    "complex": (W1.astype(complex), r"^params\['extra'\] is complex64, and a gradient needs real"),
    "integers": (jnp.arange(3), r"^params\['extra'\] is int32, and a gradient needs real"),
    "booleans": (jnp.ones(3, bool), r"^params\['extra'\] is bool, and a gradient needs real"),
    "a number": (3, r"^params\['extra'\] is int32, and a gradient needs real .* select=, or close"),
    "a key": (jax.random.key(0), r"^params\['extra'\] is key<fry>, and a gradient needs real"),
    "a function": (jax.nn.relu, r"^params\['extra'\] is a .*: give arrays and numbers, and close"),
    "a word": ("relu", r"^params\['extra'\] is a str: give arrays and numbers, and close over"),
    "NaN": (jnp.array([jnp.nan]), r"^params holds NaN: give numbers"),
    "complex NaN": (jnp.array([jnp.nan + 1j]), r"^params holds NaN: give numbers"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_parameters_of_other_types_are_refused_in_one_line(kind):
    leaf, message = REFUSED[kind]
    params = {**PARAMS, "extra": leaf}
    for metric in METRICS.values():
        with pytest.raises(InputError, match=message) as error:
            metric(apply_fn, params, X)
        assert "\n" not in str(error.value)
    for metrics in ("kappa", "snip"):
        with pytest.raises(InputError, match=message):
            tenas_jax.measure(apply_fn, params, X, labels=LABELS, metrics=metrics)
    if kind in ("a function", "a word"):
        for f in (lambda: parameters(params), lambda: linear_regions(apply_fn, params, X)):
            with pytest.raises(InputError, match=message):
                f()


@pytest.mark.parametrize("metric", METRICS)
def test_integers_and_booleans_that_are_not_selected_change_nothing(metric):
    expected = score(metric, apply_fn, PARAMS)
    params = {**PARAMS, "step": jnp.array(3), "use": jnp.ones(2, bool), "key": jax.random.key(0)}
    assert score(metric, apply_fn, params, select=lambda p: p[-1].key == "kernel") == expected


def complex_outputs(params, x):
    return apply_fn(params, x).astype(complex)


BAD = [W1.astype(complex), jnp.arange(3), jnp.ones(2, bool), 3, "relu", jax.nn.relu, jnp.nan]


@settings(max_examples=25)
@given(st.data())
def test_generated_trees_of_all_types_have_the_right_value_or_are_refused(data):
    """Half precision makes no difference, and another type only one where it is selected."""
    draw = data.draw
    dtypes = st.sampled_from([jnp.float32, jnp.bfloat16, jnp.float16])
    params = {
        f"layer_{i}": {"kernel": jnp.full((1, 2), float(value), draw(dtypes))}
        for i, value in enumerate(draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    }
    expected = sum(float(layer["kernel"][0, 0]) for layer in params.values())
    bad = draw(st.sampled_from([None, *range(len(BAD))]))
    name = draw(st.sampled_from(["extra", "bias"]))
    tree = params if bad is None else {**params, "other": {name: BAD[bad]}}

    def model(params, x):
        kernels = [params[name]["kernel"] for name in params if name != "other"]
        return x * sum(each.astype(jnp.float32) for each in kernels)

    score = partial(snip, model, tree, jnp.ones((1, 1)), jnp.array([0]))
    # NaN and what is no array are refused everywhere.
    if bad is None or (name == "bias" and bad < 4):
        assert float(score()) == pytest.approx(expected)
    else:
        with pytest.raises(InputError) as error:
            score()
        assert "\n" not in str(error.value)


OUTPUTS = {
    "complex": (complex_outputs, "apply_fn returns complex64: it must return real floating-point"),
    "integers": (lambda p, x: apply_fn(p, x).astype(int), "apply_fn returns int32: it must return"),
    "a tuple": (lambda p, x: (apply_fn(p, x), 0), "apply_fn returns tuple: it must return one"),
    "no sample": (
        lambda p, x: apply_fn(p, x[:0]),
        r"apply_fn returns shape \(0, 3\): give it at least",
    ),
}


@pytest.mark.parametrize("kind", OUTPUTS)
def test_outputs_of_other_types_are_refused_in_one_line(kind):
    f, message = OUTPUTS[kind]
    for metric in METRICS.values():
        with pytest.raises(InputError, match=message) as error:
            metric(f, PARAMS, X)
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=message):
        ntk_condition_number(f, PARAMS, X, engine="neural-tangents")


def test_no_samples_are_refused_in_one_line():
    with pytest.raises(InputError, match=r"the model returns no samples: give at least one"):
        linear_regions(apply_fn, PARAMS, X[:0])
    with pytest.raises(
        InputError, match=r"bool of shape \(0, 4\): give booleans \[n, neurons\], n "
    ):
        count_linear_regions(jnp.ones((0, 4), bool))
    for score in (tenas_jax.naswot, tenas_jax.swap, count_linear_regions):
        with pytest.raises(InputError, match=r"patterns are .*: give booleans \[n, neurons\]"):
            score(np.zeros((0, 4), bool))
        with pytest.raises(InputError, match=r"int\d+ of shape \(2, 3\): give booleans"):
            score(np.ones((2, 3), int))


@pytest.mark.parametrize(
    "kernel", [jnp.ones((0, 0)), jnp.ones((2, 3)), jnp.ones(4), jnp.eye(2).astype(complex)]
)
def test_what_is_no_kernel_is_refused_in_one_line(kernel):
    for f in (condition_number, spectrum):
        with pytest.raises(
            InputError, match=r"^the kernel is .* of shape .*: give a square matrix"
        ):
            f(kernel)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (LABELS.astype(float), "labels are float32: give integers from 0 to 2"),
        (LABELS + 1, "labels from 1 to 3: give integers from 0 to 2"),
        (LABELS - 1, "labels from -1 to 1: give integers from 0 to 2"),
    ],
)
def test_labels_that_are_no_classes_are_refused_in_one_line(labels, message):
    assert set(LABELS.tolist()) == {0, 1, 2}
    for proxy in (snip, grad_norm):
        with pytest.raises(InputError, match=f"^{message}"):
            proxy(apply_fn, PARAMS, X, labels)


@pytest.mark.parametrize(
    ("engine", "dtype"), [("chunked", jnp.bfloat16), ("neural-tangents", jnp.float16)]
)
def test_models_in_half_precision_have_nearly_the_same_condition_number(engine, dtype):
    params, x = jax.tree.map(lambda leaf: leaf.astype(dtype), (PARAMS, X))
    kappa = jax.jit(partial(ntk_condition_number, apply_fn, engine=engine))
    assert kappa(params, x).dtype == jnp.float32
    assert float(kappa(params, x)) == pytest.approx(float(kappa(PARAMS, X)), rel=0.02)
    assert kappa(params, x[jnp.array([0, 1, 2, 3, 4, 0])]) == jnp.inf


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_kernels_in_half_precision(dtype):
    kernel = jnp.diag(jnp.array([1, 4], dtype))
    assert spectrum(kernel).tolist() == [1, 4]
    assert condition_number(kernel) == 4
    assert condition_number(jnp.diag(jnp.array([1, 4]))) == 4  # integers
    # Rounding makes such a kernel regular.
    factor = np.random.default_rng(0).normal(size=(30, 29))
    assert condition_number(jnp.asarray(factor @ factor.T, dtype)) == jnp.inf


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("metric", ["snip", "grad_norm", "zico", "synflow"])
def test_proxies_in_half_precision_neither_overflow_nor_lose_small_terms(metric, dtype):
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), PARAMS)
    value = score(metric, lambda p, x: apply_fn(p, x.astype(dtype)), params)
    assert value == pytest.approx(score(metric, apply_fn, PARAMS), rel=0.05)
    many = {"w": jnp.full((300, 300), 1.0, dtype)}
    assert float(tenas_jax.metrics.proxies.sum_of_norms(many)) == 300
    assert float(tenas_jax.metrics.proxies.saliency(many, many)) == 90000


NORMALIZED = {
    "layer": lambda x: linen.LayerNorm().apply(
        {"params": {"scale": jnp.ones(HIDDEN), "bias": jnp.zeros(HIDDEN)}}, x
    ),
    "batch": lambda x: (x - x.mean(0)[None]) / jnp.sqrt(x.var(0) + 1e-5)[None],
}


@pytest.mark.parametrize("name", NORMALIZED)
def test_synflow_of_a_model_with_normalization_is_refused(name):
    def normalized(params, x):
        hidden = NORMALIZED[name](x @ params["first"]["kernel"])
        return jax.nn.relu(hidden) @ params["second"]["kernel"]

    score = partial(synflow, normalized)
    message = r"^the model takes a root of x, as normalizations do: synflow needs none"
    with pytest.raises(InputError, match=message):
        score(PARAMS, jnp.ones((2, INPUTS)))
    with pytest.raises(InputError, match=message):
        tenas_jax.measure(normalized, PARAMS, X, metrics="synflow")
    with pytest.raises(InputError, match=message):
        jax.eval_shape(score, PARAMS, X)


def test_synflow_of_a_sum_that_has_no_logarithm_is_refused():
    ones, message = jnp.ones((1, INPUTS)), r"^the outputs sum to {} where all parameters are pos"
    with pytest.raises(InputError, match=message.format("-[0-9.]+")):
        synflow(lambda p, x: apply_fn(p, x) - 1000, PARAMS, ones)
    with pytest.raises(InputError, match=message.format("inf")):
        synflow(apply_fn, PARAMS, 1e38 * ones)

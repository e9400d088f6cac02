"""Discrete networks: against PyTorch, and what training relies on."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tenas_jax.architectures.genotype import from_string
from tenas_jax.errors import InputError
from tenas_jax.host.files import write_json
from tenas_jax.networks.discrete import DiscreteCell, RunningStatistics, drop_path
from tenas_jax.spaces import DARTS, NAS_BENCH_201
from tenas_jax.spaces.registry import load_genotype

BENCH = "|nor_conv_3x3~0|+|nor_conv_1x1~0|none~1|+|skip_connect~0|avg_pool_3x3~1|nor_conv_3x3~2|"
BENCH_EDGES = [
    ("nor_conv_3x3", 0, 1),
    ("nor_conv_1x1", 0, 2),
    ("none", 1, 2),
    ("skip_connect", 0, 3),
    ("avg_pool_3x3", 1, 3),
    ("nor_conv_3x3", 2, 3),
]
SKIPS = "|skip_connect~0|+|none~0|skip_connect~1|+|none~0|none~1|skip_connect~2|"
# Every operator, in the reduction cell with stride 2.
DARTS_EDGES = {
    "normal": [
        ("skip_connect", 0, 2),
        ("sep_conv_3x3", 1, 2),
        ("sep_conv_5x5", 0, 3),
        ("dil_conv_3x3", 2, 3),
        ("dil_conv_5x5", 1, 4),
        ("avg_pool_3x3", 3, 4),
        ("max_pool_3x3", 0, 5),
        ("sep_conv_3x3", 4, 5),
    ],
    "reduce": [
        ("skip_connect", 0, 2),
        ("sep_conv_3x3", 1, 2),
        ("sep_conv_5x5", 0, 3),
        ("dil_conv_3x3", 1, 3),
        ("dil_conv_5x5", 0, 4),
        ("avg_pool_3x3", 1, 4),
        ("max_pool_3x3", 0, 5),
        ("skip_connect", 2, 5),
    ],
}
DARTS_TEXT = "Genotype({})".format(
    ", ".join(
        f"{kind}={[(op, source) for op, source, _ in edges]}, {kind}_concat=range(2, 6)"
        for kind, edges in DARTS_EDGES.items()
    )
)
BENCH_MASK = from_string(NAS_BENCH_201, BENCH)
DARTS_MASK = from_string(DARTS, DARTS_TEXT)
SMALL = {"num_classes": 5, "channels": 4, "cells": 1}


def images(size, n=4):
    return jax.random.normal(jax.random.key(1), (n, size, size, 3))


def initialized(module, size):
    """Variables with no ones and zeros among them, so that each of them matters; no compilation."""
    random = np.random.default_rng(2)

    def draw(shape):
        if len(shape) < 4:
            return random.uniform(0.5, 1.5, shape).astype(np.float32)
        return random.normal(size=shape, scale=1 / np.sqrt(np.prod(shape[-4:-1]))).astype(
            np.float32
        )

    variables = jax.eval_shape(module.init, jax.random.key(0), images(size, n=1))
    return jax.tree.map(lambda leaf: draw(leaf.shape), variables)


def assert_close(actual, expected):
    expected = expected.numpy()
    assert np.linalg.norm(actual - expected) < 1e-4 * np.linalg.norm(expected)


@pytest.fixture(scope="module")
def bench():
    module = NAS_BENCH_201.network(BENCH_MASK, **SMALL)
    return module, initialized(module, 16)


def apply(module, variables, x, **options):
    """Logits of both heads, and in training the new statistics."""
    mutable = ["batch_stats"] if options.get("train") else False
    return jax.jit(partial(module.apply, mutable=mutable, **options))(variables, x)


@pytest.mark.parametrize("train", [False, True])
def test_nas_bench_201_equals_pytorch(bench, train):
    pytest.importorskip("torch")
    from pytorch_networks import PyTorchNetwork, torch

    module, variables = bench
    x = images(16)
    result = apply(module, variables, x, train=train)
    logits, auxiliary = result[0] if train else result
    assert auxiliary is None
    nchw = torch.tensor(np.asarray(x)).permute(0, 3, 1, 2)
    expected = PyTorchNetwork(variables, train).nas_bench_201(nchw, BENCH_EDGES, cells=1)
    assert_close(logits, expected)


@pytest.mark.parametrize(("stem", "size"), [("cifar", 32), ("imagenet", 224)])
def test_darts_equals_pytorch(stem, size):
    pytest.importorskip("torch")
    from pytorch_networks import PyTorchNetwork, torch

    module = DARTS.network(
        DARTS_MASK, num_classes=5, channels=3, cells=3, stem=stem, auxiliary=True
    )
    variables, x = initialized(module, size), images(size)
    nchw = torch.tensor(np.asarray(x)).permute(0, 3, 1, 2)
    expected = [
        PyTorchNetwork(variables, train).darts(nchw, DARTS_EDGES, 3, stem == "imagenet")
        for train in (True, False)
    ]
    (logits, auxiliary), _ = apply(module, variables, x, train=True)
    assert_close(logits, expected[0][0])
    assert_close(auxiliary, expected[0][1])
    logits, auxiliary = apply(module, variables, x)
    assert auxiliary is None
    assert_close(logits, expected[1][0])


def test_statistics_move_towards_those_of_the_batch(bench):
    module, variables = bench
    x = images(16)
    _, updated = apply(module, variables, x, train=True)
    kernel = jnp.array(variables["params"]["stem"]["kernel"][0])
    y = RunningStatistics().conv(x, kernel, stride=1, padding=1, dilation=1, groups=1)
    before, after = (each["batch_stats"]["stem"]["statistics"] for each in (variables, updated))
    for name, batch in (("mean", y.mean((0, 1, 2))), ("var", y.var((0, 1, 2)))):
        np.testing.assert_allclose(after[name], 0.9 * before[name] + 0.1 * batch, rtol=1e-4)
    moved = jax.tree.map(
        lambda a, b: bool((a != b).all()), updated, {"batch_stats": variables["batch_stats"]}
    )
    assert all(jax.tree.leaves(moved))


def test_bfloat16_computes_with_float32_parameters(bench):
    exact, variables = bench
    module = NAS_BENCH_201.network(BENCH_MASK, **SMALL, dtype=jnp.bfloat16)
    fresh = jax.eval_shape(module.init, jax.random.key(0), images(16))
    assert {leaf.dtype for leaf in jax.tree.leaves(fresh)} == {jnp.dtype("float32")}
    jaxpr = jax.make_jaxpr(partial(module.apply, train=False))(variables, images(16)).jaxpr
    convolutions = [eqn for eqn in jaxpr.eqns if eqn.primitive.name == "conv_general_dilated"]
    factors = {variable.aval.dtype for eqn in convolutions for variable in eqn.invars}
    assert factors == {jnp.dtype("bfloat16")}
    logits, _ = apply(module, variables, images(16))
    assert logits.dtype == jnp.float32
    expected, _ = apply(exact, variables, images(16))
    error = np.linalg.norm(logits - expected) / np.linalg.norm(expected)
    assert 1e-6 < error < 0.05


def test_drop_path_leaves_out_operators_of_some_samples():
    x = images(4, n=64)
    # With the edge under test alone, the last node is what is left of it.
    for op, stride, dropped in (("max_pool_3x3", 1, True), ("skip_connect", 1, False)):
        cell = DiscreteCell(DARTS, ((0, 1, op),), 3, RunningStatistics(train=True), stride)
        whole = cell.apply({}, [x], None)[-1]
        output = cell.apply({}, [x], 0.25, rngs={"drop_path": jax.random.key(3)})[-1]
        kept = np.asarray(output.any((1, 2, 3)))
        assert 36 < kept.sum() < 60 if dropped else kept.all()
        np.testing.assert_allclose(output[kept], whole[kept] / (0.75 if dropped else 1), rtol=1e-6)
    np.testing.assert_array_equal(drop_path(x, 0.0, jax.random.key(0)), x)


def test_a_skip_that_reduces_is_no_identity():
    cell = DiscreteCell(
        DARTS, ((0, 2, "skip_connect"), (1, 2, "skip_connect")), 3, RunningStatistics(), 2
    )
    variables = jax.eval_shape(cell.init, jax.random.key(0), [images(4)] * 2, None)
    rngs = {"drop_path": jax.random.key(0)}
    jaxprs = [
        str(jax.make_jaxpr(partial(cell.apply, rngs=rngs))(variables, [images(4)] * 2, rate))
        for rate in (0.5, None)
    ]
    assert ["random_bits" in jaxpr for jaxpr in jaxprs] == [True, False]


def test_drop_path_rests_outside_of_training(bench):
    module, variables = bench
    rngs = {"drop_path": jax.random.key(0)}

    def draws(**options):
        call = partial(module.apply, rngs=rngs, mutable=["batch_stats"], **options)
        return "random_bits" in str(jax.make_jaxpr(call)(variables, images(16)))

    assert draws(train=True, drop_path_rate=jnp.float32(0.5))
    assert not draws(train=False, drop_path_rate=jnp.float32(0.5))
    assert not draws(train=True)


def test_reduction_cells_and_the_auxiliary_head_are_where_darts_has_them():
    module = DARTS.network(DARTS_MASK, num_classes=10, auxiliary=True)
    small = module.clone(channels=2)
    params = jax.eval_shape(small.init, jax.random.key(0), images(32, n=1))["params"]
    cells = {name for name in params if name.startswith(("normal", "reduce"))}
    assert cells == {f"{'reduce' if i in (6, 13) else 'normal'}_{i}" for i in range(20)}
    assert (module.channels, module.cells) == (36, 20)
    assert params["stem"]["kernel"].shape[-1] == 6
    assert params["auxiliary"]["conv_a"]["kernel"].shape[-2:] == (4 * 2 * 4, 128)
    assert DARTS.network(DARTS_MASK, num_classes=9, stem="imagenet").cells == 14


@pytest.mark.parametrize(
    ("space", "mask", "options", "message"),
    [
        (NAS_BENCH_201, NAS_BENCH_201.initial_mask(), {}, "not a single path"),
        (NAS_BENCH_201, BENCH_MASK, {"stem": "imagenet"}, "no stem 'imagenet': choose from cifar"),
        (NAS_BENCH_201, BENCH_MASK, {"auxiliary": True}, "no auxiliary head"),
        (DARTS, DARTS_MASK, {"cells": 0}, "cells must be at least 1, not 0"),
        (DARTS, DARTS_MASK, {"channels": 1, "stem": "imagenet"}, "channels must be at least 2"),
        (DARTS, DARTS_MASK, {"num_classes": 0}, "num_classes must be at least 1, not 0"),
        (NAS_BENCH_201, DARTS_MASK, {}, r"the mask has shape \(2, 14, 8\): nas-bench"),
    ],
)
def test_networks_that_do_not_exist(space, mask, options, message):
    with pytest.raises(InputError, match=message):
        space.network(mask, **({"num_classes": 10} | options))


@pytest.mark.parametrize(("stem", "size"), [("cifar", 30), ("imagenet", 48)])
def test_images_that_cannot_be_halved(stem, size):
    module = DARTS.network(DARTS_MASK, **SMALL, stem=stem)
    with pytest.raises(InputError, match=f"images of {size} x {size}: sides must be multiples of"):
        jax.eval_shape(module.init, jax.random.key(0), images(size))


def test_genotypes_are_read_from_text_and_from_work_directories(tmp_path):
    for text, space, mask in ((BENCH, NAS_BENCH_201, BENCH_MASK), (DARTS_TEXT, DARTS, DARTS_MASK)):
        loaded_space, loaded = load_genotype(text)
        assert loaded_space is space
        np.testing.assert_array_equal(loaded, mask)
    write_json(tmp_path / "result.json", {"space": "nas-bench-201", "genotype": BENCH})
    space, loaded = load_genotype(str(tmp_path))
    assert space is NAS_BENCH_201
    np.testing.assert_array_equal(loaded, BENCH_MASK)


def test_genotypes_that_cannot_be_read(tmp_path):
    for text, message in (
        ("nowhere", "'nowhere' is neither a genotype nor a folder: write"),
        ("", "'' is neither a genotype nor a folder: write"),
        (" ", "' ' is neither a genotype nor a folder: write"),
        ("x" * 300, "the text of 300 characters is neither a genotype nor a folder: write"),
        ("DARTS = Genotype(normal=[" + 300 * " ", "not a genotype of darts: '\\)' is missing at"),
    ):
        with pytest.raises(InputError, match=message):
            load_genotype(text)
    with pytest.raises(InputError, match="holds no result"):
        load_genotype(str(tmp_path))
    for content, message in (
        ("{", "is damaged"),
        ("[]", "is damaged"),
        ("[" * 100_000, "is damaged"),
        ("{}", "has no checksum, so it is of another version: name the genotype instead"),
    ):
        (tmp_path / "result.json").write_text(content)
        with pytest.raises(InputError, match=message):
            load_genotype(str(tmp_path))
    for result in ({}, {"space": [], "genotype": 3}):
        write_json(tmp_path / "result.json", result)
        with pytest.raises(InputError, match="names no space"):
            load_genotype(str(tmp_path))

"""Convolutions and products in the form that is fast on a CPU compute what they computed before."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend.core import jaxprs_in_params
from jax.flatten_util import ravel_pytree

from tenas_jax.metrics.fast_forms import in_fast_form


class Network(nn.Module):
    """Strides, groups, dilation, even kernels, recomputation, batch normalization."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (3, 3), strides=2)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=False)(x))
        x = nn.Conv(8, (3, 3), feature_group_count=4, kernel_dilation=2)(x)
        x = nn.remat(nn.Conv)(6, (2, 2))(x)
        return nn.ConvTranspose(5, (3, 3), strides=(2, 2))(x).mean((1, 2))


@pytest.fixture(scope="module")
def model():
    network, x = Network(), jax.random.normal(jax.random.key(0), (4, 9, 7, 3))
    params = network.init(jax.random.key(1), x)["params"]

    def logits(params, x):
        return network.apply({"params": params}, x, mutable=["batch_stats"])[0]

    return logits, params, x


def dimension_numbers(jaxpr, primitive):
    """Those of all convolutions, or of all products, of a program."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == primitive:
            yield tuple(eqn.params["dimension_numbers"])
        for inner in jaxprs_in_params(eqn.params):
            yield from dimension_numbers(inner, primitive)


def test_backward_passes_in_a_loop_and_a_branch_are_the_same(model):
    logits, params, x = model

    def gradients(params, x):
        _, pullback = jax.vjp(lambda params: logits(params, x), params)

        def row(sample):
            cotangent = sample[:, None] * jnp.ones((1, 5))
            gradient = lax.cond(
                sample[0] < 0.5,
                lambda: pullback(cotangent)[0],
                lambda: jax.tree.map(jnp.zeros_like, params),
            )
            return ravel_pytree(gradient)[0]

        return lax.map(row, jnp.eye(len(x)))

    fast = in_fast_form(gradients)
    expected, actual = jax.jit(gradients)(params, x), jax.jit(fast)(params, x)
    assert np.abs(expected[1:]).max() > 0
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)
    program = jax.make_jaxpr(fast)(params, x).jaxpr
    orders = list(dimension_numbers(program, "conv_general_dilated"))
    assert len(orders) > 8
    images, kernels = (0, 3, 1, 2), (3, 2, 0, 1)
    assert set(orders) == {(images, kernels, images)}


def test_other_orders_of_dimensions_are_the_same():
    x, kernel = jax.random.normal(jax.random.key(0), (2, 3, 6, 5)), jnp.ones((4, 3, 2, 2))
    for numbers in (("NCHW", "OIHW", "NCHW"), ("NCHW", "OIHW", "NHWC"), ("NCWH", "IOHW", "CNHW")):
        left = x.transpose(0, 1, 3, 2) if numbers[0] == "NCWH" else x
        right = kernel.transpose(1, 0, 2, 3) if numbers[1] == "IOHW" else kernel

        def f(x, kernel, numbers=numbers):
            return lax.conv_general_dilated(x, kernel, (1, 2), "SAME", dimension_numbers=numbers)

        actual = in_fast_form(f)(left, right)
        np.testing.assert_allclose(actual, f(left, right), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("contracted", "batch", "merged"),
    [
        (((1, 2), (0, 1)), ((), ()), ((1,), (0,))),
        (((2, 1), (1, 0)), ((), ()), ((1,), (0,))),
        (((2, 3), (1, 2)), ((1, 0), (0, 3)), ((2,), (1,))),
        (((0, 1, 2), (3, 0, 1)), ((), ()), None),  # not in the same order
        (((1, 3), (0, 2)), ((), ()), None),  # not adjacent
        (((), ()), ((), ()), None),
    ],
)
def test_products_over_adjacent_dimensions_are_over_one(contracted, batch, merged):
    sizes = {"left": [0] * 4, "right": [0] * 4}
    pairs = [*zip(*contracted, strict=True), *zip(*batch, strict=True)]
    for size, (i, j) in enumerate(pairs, start=2):
        sizes["left"][i] = sizes["right"][j] = size
    keys = jax.random.split(jax.random.key(0))
    left, right = (
        jax.random.normal(key, [size or 6 for size in each])
        for key, each in zip(keys, sizes.values(), strict=True)
    )

    def f(left, right):
        return lax.dot_general(left, right, (contracted, batch))

    actual, expected = in_fast_form(f)(left, right), f(left, right)
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)
    program = jax.make_jaxpr(in_fast_form(f))(left, right).jaxpr
    ((found, _),) = dimension_numbers(program, "dot_general")
    assert found == (merged or contracted)


def test_gradients_of_dense_layers_over_tokens_are_products_over_one_dimension():
    layer, x = nn.Dense(5), jax.random.normal(jax.random.key(0), (2, 3, 4))
    params = layer.init(jax.random.key(1), x)

    def gradients(params, scales):
        def gradient(scale):
            return jax.grad(lambda params: (scale * layer.apply(params, x)).sum())(params)

        return lax.map(gradient, scales)

    fast, scales = in_fast_form(gradients), jnp.array([1.0, 2.0])
    jax.tree.map(
        lambda left, right: np.testing.assert_allclose(left, right, rtol=1e-5),
        fast(params, scales),
        gradients(params, scales),
    )
    program = jax.make_jaxpr(fast)(params, scales).jaxpr
    products = dimension_numbers(program, "dot_general")
    assert all(len(left) == len(right) == 1 for (left, right), _ in products)


def test_it_can_be_transformed(model):
    logits, params, x = model
    fast = in_fast_form(logits)
    batches = jnp.stack([x, 2 * x])
    expected = jax.vmap(logits, (None, 0))(params, batches)
    np.testing.assert_allclose(
        jax.vmap(fast, (None, 0))(params, batches), expected, rtol=1e-4, atol=1e-5
    )
    left, right = (jax.grad(lambda x, f=f: f(params, x).sum())(x) for f in (fast, logits))
    np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-6)

"""Convolutions in the form that is fast in loops compute what they computed before."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend.core import jaxprs_in_params
from jax.flatten_util import ravel_pytree

from tenas_jax.metrics.convolutions import with_fast_convolutions


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


def dimension_orders(jaxpr):
    """The orders of dimensions of all convolutions of a program."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "conv_general_dilated":
            yield tuple(eqn.params["dimension_numbers"])
        for inner in jaxprs_in_params(eqn.params):
            yield from dimension_orders(inner)


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

    fast = with_fast_convolutions(gradients)
    expected, actual = jax.jit(gradients)(params, x), jax.jit(fast)(params, x)
    assert np.abs(expected[1:]).max() > 0
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)
    program = jax.make_jaxpr(fast)(params, x).jaxpr
    assert len(list(dimension_orders(program))) > 8
    images, kernels = (0, 3, 1, 2), (3, 2, 0, 1)
    assert set(dimension_orders(program)) == {(images, kernels, images)}


def test_other_orders_of_dimensions_are_the_same():
    x, kernel = jax.random.normal(jax.random.key(0), (2, 3, 6, 5)), jnp.ones((4, 3, 2, 2))
    for numbers in (("NCHW", "OIHW", "NCHW"), ("NCHW", "OIHW", "NHWC"), ("NCWH", "IOHW", "CNHW")):
        left = x.transpose(0, 1, 3, 2) if numbers[0] == "NCWH" else x
        right = kernel.transpose(1, 0, 2, 3) if numbers[1] == "IOHW" else kernel

        def f(x, kernel, numbers=numbers):
            return lax.conv_general_dilated(x, kernel, (1, 2), "SAME", dimension_numbers=numbers)

        actual = with_fast_convolutions(f)(left, right)
        np.testing.assert_allclose(actual, f(left, right), rtol=1e-5, atol=1e-6)


def test_it_can_be_transformed(model):
    logits, params, x = model
    fast = with_fast_convolutions(logits)
    batches = jnp.stack([x, 2 * x])
    expected = jax.vmap(logits, (None, 0))(params, batches)
    np.testing.assert_allclose(
        jax.vmap(fast, (None, 0))(params, batches), expected, rtol=1e-4, atol=1e-5
    )
    left, right = (jax.grad(lambda x, f=f: f(params, x).sum())(x) for f in (fast, logits))
    np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-6)

"""Saliencies against a NumPy network of two layers, differentiated by differences."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from perceptron import (
    HIDDEN,
    INPUTS,
    differences,
    numpy_logits,
    numpy_loss,
    perceptron,
    random_case,
    unravel,
)

from tenas_jax.metrics.saliencies import (
    connected_weights,
    grasp,
    l2_norm,
    log_synflow,
    plain,
)


@pytest.fixture
def case():
    with jax.enable_x64(True):
        yield random_case()


def test_grasp_is_minus_the_product_of_weights_hessian_and_gradient(case):
    theta, params, x, labels = case

    def gradient(theta):
        return differences(lambda t: numpy_loss(t, x, labels), theta, 1e-4)

    hessian = differences(gradient, theta, 1e-4)
    np.testing.assert_allclose(hessian, hessian.T, atol=1e-6)
    expected = -theta @ hessian @ gradient(theta)
    assert abs(expected) > 1e-3
    value = jax.jit(partial(grasp, perceptron))(params, x, labels)
    np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_grasp_of_some_weights_is_that_of_their_block_of_the_hessian(case):
    theta, params, x, labels = case
    first, second = np.split(theta, [INPUTS * HIDDEN])

    def gradient(second):
        return differences(
            lambda t: numpy_loss(np.concatenate([first, t]), x, labels), second, 1e-4
        )

    expected = -second @ differences(gradient, second, 1e-4) @ gradient(second)
    score = partial(grasp, perceptron, select=lambda path: path[0].key == "second")
    np.testing.assert_allclose(jax.jit(score)(params, x, labels), expected, rtol=1e-5)


def test_plain_is_the_sum_of_the_signed_products(case):
    theta, params, x, labels = case
    expected = theta @ differences(lambda t: numpy_loss(t, x, labels), theta)
    value = jax.jit(partial(plain, perceptron))(params, x, labels)
    np.testing.assert_allclose(value, expected, rtol=1e-6)


def test_l2_norm_is_the_sum_of_the_norms_of_the_layers(case):
    theta, params, _, _ = case
    first, second = unravel(theta)
    layers = [first, second]
    np.testing.assert_allclose(l2_norm(params), sum(map(np.linalg.norm, layers)), rtol=1e-12)
    rows = [*first, second]
    stacked = l2_norm(params, stacked=lambda path: path[0].key == "first")
    np.testing.assert_allclose(stacked, sum(map(np.linalg.norm, rows)), rtol=1e-12)


def test_layers_without_a_gradient_are_not_in_the_network():
    params = {"a": {"kernel": jnp.arange(1.0, 7).reshape(3, 2)}, "b": {"kernel": jnp.ones(2)}}
    gradient = {
        "a": {"kernel": jnp.array([[0.0, 0.0], [0.0, 1.0], [0.0, 0.0]])},
        "b": {"kernel": jnp.zeros(2)},
    }
    kept = connected_weights(params, gradient, stacked=lambda path: path[0].key == "a")
    assert kept["a"]["kernel"].tolist() == [[0, 0], [3, 4], [0, 0]]
    assert kept["b"]["kernel"].tolist() == [0, 0]
    whole = connected_weights(params, gradient)
    np.testing.assert_array_equal(whole["a"]["kernel"], params["a"]["kernel"])


def test_log_synflow_is_the_sum_over_weights_of_the_logarithm(case):
    theta, params, _, _ = case
    ones = np.ones((1, INPUTS))
    positive = np.abs(theta)
    gradient = differences(lambda t: numpy_logits(t, ones).sum(), positive)
    expected = positive @ np.log(1 + gradient)
    value = jax.jit(partial(log_synflow, perceptron))(params, ones)
    np.testing.assert_allclose(value, expected, rtol=1e-7)


def test_log_synflow_of_a_deep_network_takes_derivatives_that_overflow():
    """R is 1e35, and the derivative by the second weight larger than any float32."""
    params = {
        "first": {"kernel": jnp.array(1e-3)},
        "second": {"kernel": jnp.array(1e-6)},
        "bias": jnp.array(1e22),  # a factor that is not selected
    }

    def product(params, x):
        hidden = params["bias"] * (params["first"]["kernel"] * x)
        return params["bias"] * (params["second"]["kernel"] * hidden)

    value = jax.jit(partial(log_synflow, product))(params, jnp.ones((1, 1)))
    np.testing.assert_allclose(value, 1e-3 * np.log(1e38) + 1e-6 * np.log(1e41), rtol=1e-5)
    tiny = {**params, "first": {"kernel": jnp.array(0.0)}}
    value = jax.jit(partial(log_synflow, product))(tiny, jnp.ones((1, 1)))
    assert value == 0  # R is

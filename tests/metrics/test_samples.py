"""Metrics of single samples' gradients against differences and naive sums in NumPy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from perceptron import (
    CLASSES,
    HIDDEN,
    INPUTS,
    N,
    differences,
    numpy_logits,
    numpy_loss,
    perceptron,
    random_case,
)

from tenas_jax.errors import InputError
from tenas_jax.metrics.samples import (
    decile_entropy,
    fisher,
    fisher_information,
    grad_sign,
    vkdnw,
)


@pytest.fixture
def case():
    with jax.enable_x64(True):
        yield random_case()


def test_grad_sign_counts_the_signs_of_each_samples_gradient(case):
    theta, params, x, labels = case
    gradients = [
        differences(lambda t, i=i: numpy_loss(t, x[i : i + 1], labels[i : i + 1]), theta)
        for i in range(N)
    ]
    signs = np.sign(np.where(np.abs(gradients) < 1e-8, 0, gradients))
    assert (signs == 0).any()  # behind a ReLU that is off
    expected = np.abs(signs.sum(0)).sum()
    assert expected < np.abs(signs).sum()
    value = jax.jit(partial(grad_sign, perceptron))(params, x, labels)
    assert value == expected


def test_fisher_is_half_the_squared_products_of_weights_and_gradients(case):
    theta, params, x, labels = case
    expected = 0.0
    for i in range(N):
        gradient = differences(lambda t, i=i: numpy_loss(t, x[i : i + 1], labels[i : i + 1]), theta)
        expected += sum((theta[k] * gradient[k]) ** 2 for k in range(len(theta))) / (2 * N)
    value = jax.jit(partial(fisher, perceptron))(params, x, labels)
    np.testing.assert_allclose(value, expected, rtol=1e-6)


def naive_information(theta, x, weights):
    """Tybl & Neumann 2025, one sample and one pair of classes after the other."""
    total = np.zeros((len(weights), len(weights)))
    for one in x:
        jacobian = differences(lambda t, one=one: numpy_logits(t, one[None])[0], theta)[weights]
        logits = numpy_logits(theta, one[None])[0]
        p = 0.95 * np.exp(logits) / np.exp(logits).sum() + 0.05 / CLASSES
        for a in range(CLASSES):
            for b in range(CLASSES):
                covariance = p[a] * (a == b) - p[a] * p[b]
                total += covariance * np.outer(jacobian[:, a], jacobian[:, b])
    return total / len(x)


def naive_entropy(information):
    deciles = np.quantile(np.linalg.eigvalsh(information), np.arange(1, 10) / 10)
    shares = deciles / deciles.sum()
    return -sum(share * np.log(share) for share in shares if share > 0)


# By row, each is a layer of its own: first [INPUTS, HIDDEN], second [HIDDEN, CLASSES].
EACH_ROW = [row * HIDDEN for row in range(INPUTS)] + [
    INPUTS * HIDDEN + row * CLASSES for row in range(HIDDEN)
]


def test_fisher_information_is_that_of_the_first_weight_of_each_layer(case):
    theta, params, x, _ = case
    information, present = jax.jit(partial(fisher_information, perceptron))(params, x)
    expected = naive_information(theta, x, [0, INPUTS * HIDDEN])
    np.testing.assert_allclose(information, expected, rtol=1e-6, atol=1e-12)
    assert present.all()
    score = jax.jit(partial(vkdnw, perceptron, stacked=lambda path: True))
    expected = naive_entropy(naive_information(theta, x, EACH_ROW))
    assert 0.1 < expected < np.log(9)
    np.testing.assert_allclose(score(params, x), expected, rtol=1e-6)


def test_layers_that_are_not_in_the_network_change_nothing(case):
    _, params, x, _ = case
    score = jax.jit(partial(vkdnw, perceptron, stacked=lambda path: True))
    with_pruned = {**params, "pruned": {"kernel": jnp.ones((7, 2))}}
    np.testing.assert_allclose(score(with_pruned, x), score(params, x), rtol=1e-9)


@pytest.mark.parametrize("layers", [1, 2, 3, 11, 44])
def test_deciles_are_those_of_numpy(layers):
    factor = np.random.default_rng(layers).normal(size=(layers, layers))
    information = np.zeros((layers + 3, layers + 3))
    information[1 : layers + 1, 1 : layers + 1] = factor @ factor.T
    present = np.zeros(layers + 3, bool)
    present[1 : layers + 1] = True
    expected = naive_entropy(factor @ factor.T)
    value = jax.jit(decile_entropy)(jnp.asarray(information), jnp.asarray(present))
    np.testing.assert_allclose(value, expected, rtol=1e-4)


def test_vkdnw_of_a_network_without_connections_is_undefined():
    params, x = {"kernel": jnp.ones((2, 3))}, jnp.ones((4, 2))
    assert jnp.isnan(jax.jit(partial(vkdnw, lambda p, x: 0 * x @ p["kernel"]))(params, x))


@pytest.mark.parametrize("metric", [grad_sign, fisher])
def test_samples_of_a_network_without_connections_have_no_gradient(metric):
    params, x = {"kernel": jnp.ones((2, 3))}, jnp.ones((4, 2))
    score = partial(metric, lambda p, x: 0 * x @ p["kernel"])
    assert jax.jit(score)(params, x, jnp.array([0, 1, 2, 0])) == 0


def test_bad_input_is_named():
    params, x = {"kernel": jnp.ones((2, 3))}, jnp.ones((4, 2))
    with pytest.raises(InputError, match=r"shape \(1, 3, 1\): it must return one array"):
        vkdnw(lambda p, x: (x @ p["kernel"])[..., None], params, x)
    with pytest.raises(InputError, match="no parameter is selected"):
        grad_sign(lambda p, x: x, params, x, jnp.zeros(4, int), select=lambda path: False)

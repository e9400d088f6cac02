"""Initial weights have the variance they should, and unknown names are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tenas_jax.errors import InputError
from tenas_jax.networks.initializers import get_initializer, initialize

KERNEL = (2, 3, 3, 20, 40)  # two parallel edges
STD = {  # fan_in = 180, fan_out = 360
    "pytorch": (1 / (3 * 180)) ** 0.5,
    "kaiming_normal_fan_in": (2 / 180) ** 0.5,
    "kaiming_normal_fan_out": (2 / 360) ** 0.5,
}


def shapes():
    layer = {"kernel": KERNEL, "scale": (2, 40), "bias": (2, 40)}
    tree = {"conv": layer, "classifier": {"kernel": (180, 10), "bias": (10,)}}
    return jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32),
        tree,
        is_leaf=lambda node: isinstance(node, tuple),
    )


@pytest.mark.parametrize(("name", "std"), STD.items())
def test_kernels_have_the_initializers_deviation(name, std):
    parameters = initialize(shapes(), name, jax.random.key(0))
    for edge in parameters["conv"]["kernel"]:
        np.testing.assert_allclose(edge.std(), std, rtol=0.03)
    np.testing.assert_allclose(
        get_initializer(name)(jax.random.key(1), KERNEL).std(), std, rtol=0.03
    )


def test_pytorchs_default_is_uniform_within_its_bound():
    kernel = initialize(shapes(), "pytorch", jax.random.key(0))["classifier"]["kernel"]
    bound = 180**-0.5
    assert 0.99 * bound < jnp.abs(kernel).max() <= bound


def test_scales_are_one_and_biases_zero():
    parameters = initialize(shapes(), "pytorch", jax.random.key(0))
    assert (parameters["conv"]["scale"] == 1).all()
    assert (parameters["conv"]["bias"] == 0).all()
    assert (parameters["classifier"]["bias"] == 0).all()


def test_no_two_weights_share_a_draw():
    parameters = initialize(shapes(), "kaiming_normal_fan_in", jax.random.key(0))
    kernel, classifier = parameters["conv"]["kernel"], parameters["classifier"]["kernel"]
    units = [
        (kernel / STD["kaiming_normal_fan_in"]).ravel(),
        (classifier / (2 / 180) ** 0.5).ravel(),
    ]
    assert len(np.unique(np.concatenate(units))) > 0.99 * (kernel.size + classifier.size)


def test_an_unknown_name_lists_the_choices():
    with pytest.raises(InputError, match=r"kaiming_norm_fanin.*pytorch"):
        initialize(shapes(), "kaiming_norm_fanin", jax.random.key(0))

"""Kernels within a bound of memory, and those of samples that do not interact."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from tenas_jax.errors import InputError
from tenas_jax.metrics import jacobian, ntk_condition_number
from tenas_jax.metrics.jacobian import Rows, products
from tenas_jax.metrics.ntk import REDUCTIONS, empirical_ntk

WEIGHTS = 4 * 5 + 5 * 3


def separate(params, x):
    """A network whose samples do not interact."""
    hidden = jnp.tanh(x @ params["first"]["kernel"] + params["first"]["bias"][None])
    return hidden @ params["second"]["kernel"]


def coupled(params, x):
    """The same with the mean over the batch taken off."""
    return separate(params, x - x.mean(0, keepdims=True))


@pytest.fixture
def model():
    keys = jax.random.split(jax.random.key(0), 4)
    params = {
        "first": {"kernel": jax.random.normal(keys[0], (4, 5)), "bias": jnp.ones(5)},
        "second": {"kernel": jax.random.normal(keys[1], (5, 3))},
    }
    return params, jax.random.normal(keys[2], (11, 4)), jax.random.normal(keys[3], (5, 4))


def largest_array(jaxpr):
    """Elements of the largest array that a program makes."""
    inner = [largest_array(each) for eqn in jaxpr.eqns for each in jaxprs_in_params(eqn.params)]
    return max([0, *inner, *(v.aval.size for eqn in jaxpr.eqns for v in eqn.outvars)])


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 10, 20])
@pytest.mark.parametrize("second", [False, True])
def test_products_of_blocks_are_those_of_the_whole(model, rows, second):
    generator = np.random.default_rng(0)
    left, right = (generator.standard_normal((n, 9), np.float32) for n in (11, 5))

    def rows_of(samples):
        return Rows(
            lambda sample: [1 * sample[:4], 1 * sample[4:]], jnp.asarray(samples), 1, jnp.float32
        )

    columns = rows_of(right) if second else None
    actual = products(rows_of(left), columns, 9, max_bytes=rows * 9 * 4)
    np.testing.assert_allclose(actual, left @ (right if second else left).T, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("width", [7, 8, 9, 12, 23])
def test_products_in_blocks_of_columns(width, monkeypatch):
    monkeypatch.setattr(jacobian, "LARGE", 8)
    monkeypatch.setattr(jacobian, "BLOCK", 4)
    generator = np.random.default_rng(0)
    left, right = (generator.standard_normal((n, width), np.float32) for n in (3, 2))
    sides = [
        Rows(lambda sample: [1 * sample], jnp.asarray(samples), 1, jnp.float32)
        for samples in (left, right)
    ]
    actual = products(*sides, width, max_bytes=None)
    np.testing.assert_allclose(actual, left @ right.T, rtol=1e-5, atol=1e-6)


def test_large_arrays_have_products_of_their_own(model, monkeypatch):
    params, x, _ = model
    expected = empirical_ntk(coupled, params, x)
    monkeypatch.setattr(jacobian, "LARGE", 4 * 5)  # the first layer is large, the second is not
    monkeypatch.setattr(jacobian, "BLOCK", 8)
    jacobians, _ = jacobian.within_batch(coupled, params, x, None)
    assert [part.size for part in jacobians(jnp.ones(3)).row(jnp.eye(11)[0])] == [5 + 15, 20]
    np.testing.assert_allclose(empirical_ntk(coupled, params, x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_jacobian_that_does_not_fit_is_not_stored(model, reduction, per_sample):
    params, x, x2 = model
    f, options = separate, {"reduction": reduction, "per_sample": per_sample}
    bound = 4 * 4 * WEIGHTS  # four rows

    def kernel(params, *batches, max_bytes=None):
        return empirical_ntk(f, params, *batches, max_bytes=max_bytes, **options)

    for batches in ((x,), (x, x2)):
        whole, blocks = (kernel(params, *batches, max_bytes=each) for each in (None, bound))
        np.testing.assert_allclose(blocks, whole, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(
        kernel(params, x, max_bytes=bound).T, kernel(params, x, max_bytes=bound)
    )
    sizes = [
        largest_array(jax.make_jaxpr(lambda p, b=b: kernel(p, x, max_bytes=b))(params).jaxpr)
        for b in (None, bound)
    ]
    assert sizes[0] == 11 * WEIGHTS
    assert sizes[1] <= 3 * 11 * 11  # kernels of single outputs


def test_convolutions_in_blocks():
    model = nn.Sequential([nn.Conv(4, (3, 3)), nn.relu, lambda x: x.mean((1, 2))])
    x = jax.random.normal(jax.random.key(0), (5, 6, 6, 2))
    params = model.init(jax.random.key(1), x)
    whole = empirical_ntk(model.apply, params, x)
    blocks = empirical_ntk(model.apply, params, x, max_bytes=3 * 72 * 4)
    np.testing.assert_allclose(blocks, whole, rtol=1e-5)


@pytest.mark.parametrize("engine", ["chunked", "neural-tangents"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_one_by_one_is_the_kernel_of_the_batch(model, engine, reduction):
    params, x, x2 = model
    for batches in ((x,), (x, x2)):
        expected = empirical_ntk(separate, params, *batches, reduction=reduction)
        for chunk in (1, 4):
            actual = empirical_ntk(
                separate,
                params,
                *batches,
                engine=engine,
                reduction=reduction,
                per_sample=True,
                chunk_size=chunk,
            )
            np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


class Norm(nn.Module):
    """Normalization of one kind after a convolution."""

    norm: nn.Module

    @nn.compact
    def __call__(self, x):
        x = nn.relu(self.norm(nn.Conv(4, (3, 3), strides=2)(x)))
        return nn.Dense(3, kernel_init=nn.initializers.zeros)(x.mean((1, 2)))


def applied(norm):
    """A function of the parameters and the samples, and parameters, with a head of zeros."""
    x = jax.random.normal(jax.random.key(1), (5, 6, 6, 2))
    model = Norm(norm)
    variables = model.init(jax.random.key(0), x)
    rest = {name: value for name, value in variables.items() if name != "params"}

    def f(params, x):
        return model.apply({"params": params, **rest}, x, mutable=["batch_stats"])[0]

    return f, variables["params"], x


@pytest.mark.parametrize(
    "norm",
    [
        nn.LayerNorm(),
        nn.GroupNorm(2),
        nn.BatchNorm(use_running_average=True),
    ],
    ids=["layer", "group", "eval batch"],
)
def test_normalizations_that_keep_samples_apart(norm):
    f, params, x = applied(norm)
    expected = empirical_ntk(f, params, x)
    np.testing.assert_allclose(empirical_ntk(f, params, x, per_sample=True), expected, rtol=1e-4)


def stopped(params, x):
    """Statistics of the batch that no gradient goes through."""
    return separate(params, x - jax.lax.stop_gradient(x.mean(0, keepdims=True)))


def last_two(params, x):
    """Only the last two samples interact; a batch of one has none."""
    outputs = separate(params, x)
    return outputs.at[-1].add(outputs[-2]) if len(x) > 1 else outputs


@pytest.mark.parametrize("engine", ["chunked", "neural-tangents"])
@pytest.mark.parametrize("f", [coupled, stopped, last_two])
def test_samples_that_interact_are_refused(model, f, engine):
    params, x, x2 = model
    kernel = {"engine": engine, "per_sample": True}
    with pytest.raises(InputError, match=r"^samples interact, by .*e[+-]0. of their gradients"):
        empirical_ntk(f, params, x, **kernel)
    with pytest.raises(InputError, match=r"^samples interact"):
        empirical_ntk(f, params, x[:1], x2, **kernel)  # one sample has none to interact with
    traced = jax.jit(lambda params: empirical_ntk(f, params, x, **kernel))(params)
    assert np.isnan(traced).all()
    assert np.isnan(jax.jit(lambda p: ntk_condition_number(f, p, x, **kernel))(params))


def test_a_head_of_zeros_hides_no_interaction():
    """The outputs are zero in the batch and alone; the gradients differ."""
    f, params, x = applied(nn.BatchNorm(use_running_average=False))
    assert not f(params, x).any()
    with pytest.raises(InputError, match=r"^samples interact"):
        empirical_ntk(f, params, x, per_sample=True)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float64])
def test_rounding_is_no_interaction(model, dtype):
    with jax.enable_x64(dtype == jnp.float64):
        params, x, _ = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), model)
        assert np.isfinite(empirical_ntk(separate, params, x, per_sample=True)).all()
        with pytest.raises(InputError, match=r"^samples interact"):
            empirical_ntk(coupled, params, x, per_sample=True)


def test_bad_arguments_are_named(model):
    params, x, _ = model
    with pytest.raises(InputError, match=r"^x has arrays of shapes \(11, 4\), \(\): per_sample"):
        empirical_ntk(
            lambda p, x: separate(p, x[0] * x[1]), params, (x, jnp.ones(())), per_sample=True
        )
    with pytest.raises(InputError, match=r"^max_bytes 0: give a positive number of bytes$"):
        empirical_ntk(separate, params, x, max_bytes=0)
    with pytest.raises(InputError, match=r"not work on current JAX: use jacobian_contraction"):
        empirical_ntk(
            separate, params, x, engine="neural-tangents", implementation="structured_derivatives"
        )

"""Kernels and condition numbers against naive float64 oracles and the original's values."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tenas_jax.errors import InputError
from tenas_jax.metrics.ntk import (
    ENGINES,
    REDUCTIONS,
    condition_number,
    empirical_ntk,
    ntk_condition_number,
    ntk_spectrum,
    spectrum,
)

N = 6


def coupled_network(params, x):
    """Two layers with train-mode batch normalization between them: the samples interact."""
    hidden = x @ params["first"]["kernel"]
    hidden = (hidden - hidden.mean(0, keepdims=True)) / (hidden.std(0, keepdims=True) + 0.1)
    hidden = jax.nn.relu(hidden * params["first"]["scale"][None] + params["first"]["bias"][None])
    return hidden @ params["second"]["kernel"] + params["second"]["bias"][None]


def case(seed=0, dtype=jnp.float64):
    keys = jax.random.split(jax.random.key(seed), 6)
    params = {
        "first": {
            "kernel": jax.random.normal(keys[0], (4, 5), dtype),
            "scale": jax.random.normal(keys[1], (5,), dtype),
            "bias": jax.random.normal(keys[2], (5,), dtype),
        },
        "second": {
            "kernel": jax.random.normal(keys[3], (5, 3), dtype),
            "bias": jax.random.normal(keys[4], (3,), dtype),
        },
    }
    return params, jax.random.normal(keys[5], (N, 4), dtype)


def naive_kernel(params, x, with_biases=False):
    """One gradient of the whole batch for each sample, and their inner products."""
    rows = []
    for i in range(len(x)):
        gradient = jax.grad(lambda p, i=i: coupled_network(p, x)[i].sum())(params)
        leaves = jax.tree_util.tree_leaves_with_path(gradient)
        kept = [leaf for path, leaf in leaves if with_biases or path[-1].key != "bias"]
        rows.append(np.concatenate([np.asarray(leaf).ravel() for leaf in kept]))
    return np.stack(rows) @ np.stack(rows).T


def naive_trace(params, x):
    """The whole Jacobian [n, classes, weights], and its products summed over the classes."""
    jacobian = jax.jacobian(coupled_network)(params, x)
    leaves = jax.tree_util.tree_leaves_with_path(jacobian)
    kept = [np.asarray(leaf) for path, leaf in leaves if path[-1].key != "bias"]
    flat = np.concatenate([leaf.reshape(*leaf.shape[:2], -1) for leaf in kept], 2)
    return np.einsum("ikp,jkp->ij", flat, flat)


NAIVE = {"sum": naive_kernel, "trace": naive_trace}


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("engine", ENGINES)
def test_equals_the_naive_kernel_also_under_jit_and_vmap(engine, reduction):
    naive_kernel = NAIVE[reduction]
    with jax.enable_x64(True):
        params, x = case()
        expected = naive_kernel(params, x)

        def kernel(params, x):
            return empirical_ntk(coupled_network, params, x, engine=engine, reduction=reduction)

        def kappa(params, x):
            return ntk_condition_number(
                coupled_network, params, x, engine=engine, reduction=reduction
            )

        np.testing.assert_allclose(jax.jit(kappa)(params, x), np.linalg.cond(expected), rtol=1e-8)

        np.testing.assert_allclose(jax.jit(kernel)(params, x), expected, rtol=1e-10)
        pairs = [case(seed) for seed in (0, 1)]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *pairs)
        expected = np.stack([naive_kernel(*pair) for pair in pairs])
        np.testing.assert_allclose(jax.jit(jax.vmap(kernel))(*stacked), expected, rtol=1e-10)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("chunk_size", [1, 2, 4, 100])
def test_the_chunk_size_does_not_matter(chunk_size, reduction):
    with jax.enable_x64(True):
        params, x = case()
        kernel = empirical_ntk(
            coupled_network, params, x, chunk_size=chunk_size, reduction=reduction
        )
        np.testing.assert_allclose(kernel, NAIVE[reduction](params, x), rtol=1e-10)


def test_of_a_single_output_sum_and_trace_are_the_same():
    params, x = case(dtype=jnp.float32)

    def single(params, x):
        return coupled_network(params, x)[:, :1]

    summed, traced = (empirical_ntk(single, params, x, reduction=each) for each in REDUCTIONS)
    np.testing.assert_allclose(traced, summed, rtol=1e-6)


def test_biases_take_part_where_they_are_selected():
    with jax.enable_x64(True):
        params, x = case()
        kernel = empirical_ntk(coupled_network, params, x, select=lambda path: True)
        np.testing.assert_allclose(kernel, naive_kernel(params, x, with_biases=True), rtol=1e-10)


def test_single_precision_is_close_to_double():
    params, x = case(dtype=jnp.float32)
    kernel = empirical_ntk(coupled_network, params, x)
    with jax.enable_x64(True):
        expected = naive_kernel(jax.tree.map(jnp.float64, params), jnp.float64(x))
    assert np.linalg.norm(kernel - expected) < 1e-5 * np.linalg.norm(expected)


def test_is_symmetric_positive_semidefinite_and_scale_invariant():
    params, x = case(dtype=jnp.float32)
    kernel = empirical_ntk(coupled_network, params, x)
    np.testing.assert_array_equal(kernel, kernel.T)
    assert np.linalg.eigvalsh(np.float64(kernel))[0] > -1e-5 * np.linalg.norm(kernel)
    kappa = condition_number(kernel)
    np.testing.assert_allclose(condition_number(1000 * kernel), kappa, rtol=1e-3)
    np.testing.assert_allclose(ntk_condition_number(coupled_network, params, x), kappa, rtol=1e-3)


def test_bad_arguments_are_named():
    params, x = case(dtype=jnp.float32)
    with pytest.raises(InputError, match="unknown engine 'fast': choose one of chunked, neural"):
        empirical_ntk(coupled_network, params, x, engine="fast")
    with pytest.raises(InputError, match=r"unknown reduction 'mean': choose one of sum, trace$"):
        ntk_condition_number(coupled_network, params, x, reduction="mean")
    with pytest.raises(InputError, match="no parameter is selected"):
        empirical_ntk(coupled_network, params, x, select=lambda path: False)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_outputs_of_another_shape_are_refused(engine, reduction):
    params, x = case(dtype=jnp.float32)
    kernel = partial(empirical_ntk, params=params, x=x, engine=engine, reduction=reduction)
    with pytest.raises(InputError, match=r"apply_fn returns shape \(6,\): it must return one arr"):
        kernel(lambda params, x: coupled_network(params, x).sum(1))
    with pytest.raises(InputError, match=r"apply_fn returns shape \(6, 3, 1\): it must return"):
        kernel(lambda params, x: coupled_network(params, x)[..., None])
    with pytest.raises(InputError, match=r"returns tuple: it must return one array \[n, classes\]"):
        kernel(lambda params, x: (coupled_network(params, x), {}))


def test_condition_number_of_known_spectra():
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(8, 8)))[0]
    for largest in (1.0, 10.0, 1e4):
        spectrum = np.geomspace(1, largest, 8)
        kernel = jnp.float32(rotation * spectrum[None] @ rotation.T)
        np.testing.assert_allclose(condition_number(kernel), largest, rtol=2e-2)


@pytest.mark.parametrize("size", [2, 14, 72])
def test_singular_kernels_are_infinite_whatever_the_sign_of_the_noise(size):
    generator = np.random.default_rng(size)
    for _ in range(20):
        factor = generator.normal(size=(size, size - 1))
        kernel = jnp.float32(factor @ factor.T)
        assert condition_number(kernel) == jnp.inf
    assert condition_number(jnp.zeros((size, size))) == jnp.inf


def test_a_kernel_that_is_not_finite_is_not_a_number():
    kernel = jnp.eye(3).at[0, 1].set(jnp.nan)
    assert jnp.isnan(condition_number(kernel))
    assert jnp.isnan(condition_number(jnp.eye(3).at[2, 2].set(jnp.inf)))


def test_the_originals_singular_case_is_infinite(golden):
    with np.load(golden / "darts_edge_singular.npz") as original:
        assert condition_number(jnp.asarray(original["ntk_f32"])) == jnp.inf
        with jax.enable_x64(True):
            assert condition_number(jnp.asarray(original["ntk_f64"])) == jnp.inf


def test_nan_is_refused_where_it_can_be_seen():
    x = jnp.array([[1.0, jnp.nan], [0.0, 2.0]])
    params = {"kernel": jnp.ones((2, 1))}

    def apply_fn(params, x):
        return x @ params["kernel"]

    with pytest.raises(InputError, match=r"^x holds NaN: give numbers$"):
        ntk_condition_number(apply_fn, params, x)
    with pytest.raises(InputError, match=r"^params holds NaN"):
        empirical_ntk(apply_fn, {"kernel": jnp.full((2, 1), jnp.nan)}, x)
    assert jnp.isnan(jax.jit(lambda x: ntk_condition_number(apply_fn, params, x))(x))


@pytest.mark.parametrize("engine", ["chunked", "neural-tangents"])
@pytest.mark.parametrize("reduction", ["sum", "trace"])
def test_the_kernel_between_two_batches(engine, reduction):
    """Rows of `x`, columns of `x2`: a block of the kernel, where samples do not interact."""
    params = {"kernel": jax.random.normal(jax.random.key(0), (4, 3))}
    x, x2 = (jax.random.normal(jax.random.key(i), (n, 4)) for i, n in ((1, 5), (2, 3)))

    def apply_fn(params, x):
        return jnp.tanh(x @ params["kernel"])

    kernel = empirical_ntk(apply_fn, params, x, x2, engine=engine, reduction=reduction)
    both = empirical_ntk(
        apply_fn, params, jnp.concatenate([x, x2]), engine=engine, reduction=reduction
    )
    assert kernel.shape == (5, 3)
    np.testing.assert_allclose(kernel, both[:5, 5:], rtol=1e-5, atol=1e-6)


def test_the_spectrum_is_that_of_the_kernel():
    params = {"kernel": jax.random.normal(jax.random.key(0), (4, 3))}
    x = jax.random.normal(jax.random.key(1), (5, 4))

    def apply_fn(params, x):
        return jnp.tanh(x @ params["kernel"])

    kernel = np.asarray(empirical_ntk(apply_fn, params, x), np.float64)
    eigenvalues = ntk_spectrum(apply_fn, params, x)
    np.testing.assert_allclose(eigenvalues, np.linalg.eigvalsh(kernel), rtol=1e-3, atol=1e-4)
    assert np.isnan(spectrum(jnp.full((2, 2), jnp.nan))).all()

"""neural-tangents on current JAX: it is loaded without traces, and its kernels are right."""

import os
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tenas_jax.errors import InputError
from tenas_jax.metrics.neural_tangents import IMPLEMENTATIONS, empirical_ntk

LOADING_LEAVES_NOTHING = """
import sys
import types
import jax, jax.core, jax.interpreters.ad
from tenas_jax.metrics import neural_tangents as _neural_tangents

def names():
    return {
        (module.__name__, name)
        for module in (jax, jax.core, jax.interpreters.ad)
        for name, value in vars(module).items()
        if name == "util" or not isinstance(value, types.ModuleType)
    }

before = names()
assert "neural_tangents" not in sys.modules, "loaded before it is needed"
neural_tangents = _neural_tangents.load_neural_tangents()
assert names() == before, names() ^ before
assert sys.modules["neural_tangents"] is neural_tangents
assert _neural_tangents.load_neural_tangents() is neural_tangents
left = {"jax.util", "neural_tangents.experimental", "tensorflow"} & set(sys.modules)
assert not left, left
assert not hasattr(neural_tangents, "experimental")
print("done")
"""


def coupled_network(params, x):
    """Two layers, the hidden one standardized over the batch as train-mode batch norm does."""
    hidden = x @ params["hidden"]
    mean = hidden.mean(axis=0, keepdims=True)
    std = jnp.sqrt(hidden.var(axis=0, keepdims=True) + 1e-5)
    return jax.nn.relu(params["scale"] * (hidden - mean) / std) @ params["out"]


def network_inputs(dtype):
    rng = np.random.default_rng(0)
    params = {
        "hidden": rng.standard_normal((5, 6)),
        "scale": rng.standard_normal((1, 6)),
        "out": rng.standard_normal((6, 3)),
    }
    params = {name: jnp.asarray(value, dtype) for name, value in params.items()}
    return params, jnp.asarray(rng.standard_normal((7, 5)), dtype)


def brute_force_ntk(apply_fn, params, x):
    """J J^T, one reverse pass per sample, of the whole batch."""
    gradient = jax.jit(jax.grad(lambda params, i: apply_fn(params, x)[i].sum()))
    rows = [jax.tree.leaves(gradient(params, i)) for i in range(len(x))]
    jacobian = np.stack([np.concatenate([np.ravel(leaf) for leaf in row]) for row in rows])
    return jacobian @ jacobian.T


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_kernel_equals_brute_force_in_float64(implementation):
    with jax.enable_x64(True):
        params, x = network_inputs(jnp.float64)
        ntk_fn = partial(empirical_ntk, coupled_network, implementation=implementation)
        ntk = jax.jit(ntk_fn)(params, x)
        assert ntk.dtype == jnp.float64
        np.testing.assert_allclose(ntk, brute_force_ntk(coupled_network, params, x), rtol=1e-11)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_the_trace_is_the_sum_of_the_kernels_of_single_outputs(implementation):
    with jax.enable_x64(True):
        params, x = network_inputs(jnp.float64)
        traced = partial(empirical_ntk, coupled_network, implementation=implementation, trace=True)
        ntk = jax.jit(traced)(params, x)
        single = [
            brute_force_ntk(lambda params, x, k=k: coupled_network(params, x)[:, k], params, x)
            for k in range(3)
        ]
        np.testing.assert_allclose(ntk, sum(single), rtol=1e-11)


def test_the_network_of_these_tests_couples_the_samples():
    params, x = network_inputs(jnp.float32)
    whole = brute_force_ntk(coupled_network, params, x)
    part = brute_force_ntk(coupled_network, params, x[:4])
    assert np.abs(whole[:4, :4] - part).max() > 0.1


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_kernel_under_jit_and_vmap(implementation):
    params, x = network_inputs(jnp.float32)
    batches = jnp.stack([x, x[::-1] + 1.0])

    def kernel(x):
        return empirical_ntk(coupled_network, params, x, implementation=implementation)

    expected = [brute_force_ntk(coupled_network, params, batch) for batch in batches]
    np.testing.assert_allclose(jax.jit(jax.vmap(kernel))(batches), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("implementation", ["structured_derivatives", "auto"])
def test_implementations_broken_on_current_jax_are_refused(implementation):
    with pytest.raises(
        InputError,
        match=r"not work on current JAX: use jacobian_contraction or ntk_vector_products",
    ):
        empirical_ntk(coupled_network, *network_inputs(jnp.float32), implementation=implementation)


def test_unknown_implementation_lists_the_choices():
    with pytest.raises(InputError, match="'jacobian': use jacobian_contraction or ntk_vector_prod"):
        empirical_ntk(coupled_network, *network_inputs(jnp.float32), implementation="jacobian")


def test_loading_leaves_jax_as_it_was_and_imports_no_tensorflow():
    process = subprocess.run(
        [sys.executable, "-W", "error", "-c", LOADING_LEAVES_NOTHING],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert process.stdout == "done\n", process.stderr

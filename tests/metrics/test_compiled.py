"""Outside of a trace functions are compiled once, whatever they are called and close over."""

import gc
import weakref

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from tenas_jax.metrics import compiled as compiling
from tenas_jax.metrics.compiled import compiled
from tenas_jax.metrics.ntk import empirical_ntk


@pytest.fixture
def compilations(monkeypatch):
    """The programs compiled during a test, and those kept."""
    monkeypatch.setattr(compiling, "_programs", type(compiling._programs)())
    count = []
    real = jax.stages.Lowered.compile
    monkeypatch.setattr(
        jax.stages.Lowered,
        "compile",
        lambda self, *args: count.append(self) or real(self, *args),
    )
    return count


def test_a_model_defined_anew_is_not_compiled_anew(compilations):
    x = jax.random.normal(jax.random.key(0), (3, 4))
    model = nn.Dense(2)
    params = model.init(jax.random.key(1), x)
    kernels = [
        empirical_ntk(lambda params, x: nn.Dense(2).apply(params, x), params, x) for _ in range(3)
    ]
    assert len(compilations) == 1
    np.testing.assert_array_equal(kernels[0], kernels[2])
    empirical_ntk(model.apply, params, x[:2])
    assert len(compilations) == 2


def scaled_by(factor):
    """A function that closes over an array, in a loop and a branch, too."""
    array = jnp.full(3, factor)

    def f(x):
        looped = lax.map(lambda value: value * array.sum(), x)
        return looped + lax.cond(x[0] > 0, lambda: array, lambda: 2 * array)

    return f


def test_what_is_closed_over_may_change():
    for factor in (1.0, 2.0, 1.0, 3.0):
        np.testing.assert_allclose(compiled(scaled_by(factor))(jnp.ones(3)), 4 * factor)
    state = {"factor": 2.0}
    f = compiled(lambda x: x * state["factor"])
    assert f(jnp.ones(())) == 2
    state["factor"] = 3.0
    assert f(jnp.ones(())) == 3


def test_callbacks_are_those_of_the_function():
    for value in (1.0, 2.0):
        f = compiled(lambda x, v=value: jax.pure_callback(lambda x: x + np.float32(v), x, x))
        assert f(jnp.float32(1)) == 1 + value


def test_nothing_is_held(compilations):
    class Scale:
        def __call__(self, x):
            return x * self.array

    f = Scale()
    f.array = jnp.ones(7)
    compiled(f)(jnp.ones(7))
    alive = weakref.ref(f), weakref.ref(f.array)
    compilations.clear()
    del f
    gc.collect()
    assert [each() for each in alive] == [None, None]


def test_few_programs_are_kept(compilations, monkeypatch):
    monkeypatch.setattr(compiling, "PROGRAMS", 2)
    for size in (1, 2, 3, 3, 1):
        compiled(jnp.sin)(jnp.ones(size))
    assert len(compilations) == 4
    assert len(compiling._programs) == 2


def test_in_a_trace_it_is_the_function_itself(compilations):
    f, x = compiled(lambda x: {"a": jnp.sin(x)}), jnp.ones(3)
    for transformed in (jax.jit(f), jax.vmap(f), lambda x: {"a": jax.jvp(jnp.sin, (x,), (x,))[0]}):
        np.testing.assert_allclose(transformed(x)["a"], jnp.sin(x), rtol=1e-6)
    gradient = jax.grad(lambda x: compiled(lambda y: (y * x).sum())(jnp.ones(3)))(2.0)
    assert gradient == 3
    assert not compilations


def test_python_that_reads_values_runs_as_it_is():
    f = compiled(lambda x: x + 1 if x.sum() > 0 else x - 1)
    assert (float(f(jnp.ones(()))), float(f(-jnp.ones(())))) == (2, -2)
    assert float(compiled(lambda x: jnp.float32(np.asarray(x).sum()))(jnp.ones(2))) == 2
    assert compiled(lambda x, double: 2 * x if double else x)(jnp.ones(()), True) == 2


def test_on_each_device_and_data_type():
    for device in jax.devices()[:2]:
        x = jax.device_put(jnp.ones(3), device)
        assert compiled(jnp.cos)(x).devices() == {device}
    assert compiled(jnp.cos)(np.ones(3, np.float16)).dtype == jnp.float16
    assert compiled(jax.random.uniform)(jax.random.key(0)).shape == ()

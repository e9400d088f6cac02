"""The count of linear regions against a set of tuples, and of regions of known geometry."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenas_jax.errors import InputError
from tenas_jax.metrics import regions
from tenas_jax.metrics.regions import count_linear_regions, linear_regions

count = jax.jit(count_linear_regions)


def brute_force(patterns):
    return len({tuple(row) for row in patterns})


@pytest.mark.parametrize("neurons", [1, 31, 32, 33, 117])
def test_equals_the_number_of_distinct_rows(neurons):
    generator = np.random.default_rng(neurons)
    distinct = generator.random((20, neurons)) < 0.5
    patterns = distinct[generator.integers(20, size=60)]
    assert count(patterns) == brute_force(patterns)


@pytest.mark.parametrize("collisions", [0, 1])
def test_counts_exactly_if_hashes_collide(monkeypatch, collisions):
    hashes = regions._hashes

    def colliding(words):
        """All hashes are the same, or those of the first two rows."""
        found = hashes(words)
        return found.at[:, 1].set(found[:, 0]) if collisions else jnp.zeros_like(found)

    monkeypatch.setattr(regions, "_hashes", colliding)
    patterns = np.random.default_rng(0).random((60, 70)) < 0.02
    patterns[:2] = [[True], [False]]
    assert jax.jit(lambda x: count_linear_regions(x))(patterns) == brute_force(patterns) > 30


def test_hashes_of_patterns_that_differ_in_two_neurons_are_told_apart():
    neurons = 70
    patterns = np.zeros((neurons * neurons, neurons), bool)
    first, second = np.divmod(np.arange(len(patterns)), neurons)
    patterns[np.arange(len(patterns)), first] = True
    patterns[np.arange(len(patterns)), second] = True
    words = np.unique(np.asarray(regions.pack(jnp.asarray(patterns))), axis=0)
    hashes = np.asarray(regions._hashes(jnp.asarray(words))).T
    assert len(np.unique(hashes, axis=0)) == len(words) == neurons * (neurons + 1) // 2
    # Each of the two alone has about as many collisions as random numbers.
    assert all(len(np.unique(column)) >= len(words) - 2 for column in hashes.T)


def test_patterns_that_differ_in_one_neuron_only_are_told_apart():
    patterns = np.zeros((65, 64), bool)
    patterns[:64] = np.eye(64, dtype=bool)
    assert count(patterns) == 65


@settings(max_examples=30)
@given(st.lists(st.lists(st.booleans(), min_size=40, max_size=40), min_size=12, max_size=12))
def test_is_invariant_under_permutation_and_repeated_columns(rows):
    patterns = np.array(rows)
    distinct = int(count(patterns))
    assert distinct == brute_force(patterns)
    assert count(patterns[::-1]) == count(patterns[:, ::-1]) == distinct
    assert count(np.concatenate([patterns, patterns], 1)) == distinct


def test_is_an_integer_between_one_and_the_number_of_samples():
    assert count(jnp.zeros((5, 3), bool)) == 1
    assert count(jnp.eye(7, dtype=bool)) == 7
    assert count(jnp.zeros((5, 3), bool)).dtype == jnp.int32


def lines(params, x):
    """One layer: each neuron's boundary is a line in the plane."""
    return jax.nn.relu(x @ params["normal"] - params["offset"])


@pytest.mark.parametrize("m", [1, 2, 3, 5])
def test_lines_in_general_position_cut_the_plane_into_as_many_regions_as_zaslavsky_says(m):
    angles = np.pi * (np.arange(m) + 0.5) / m
    # All tangent to the unit circle.
    params = {"normal": np.stack([np.cos(angles), np.sin(angles)]), "offset": np.ones((1, m))}
    grid = np.stack(np.meshgrid(*[np.linspace(-12.1, 12.3, 200)] * 2), -1).reshape(-1, 2)
    params, grid = jax.tree.map(jnp.float32, params), jnp.float32(grid)
    assert linear_regions(lines, params, grid) == 1 + m + m * (m - 1) // 2
    assert jax.jit(linear_regions, static_argnums=0)(lines, params, grid) == 1 + m * (m + 1) // 2


def test_nan_is_refused_where_the_values_are_known():
    params = {"normal": jnp.ones((2, 3)), "offset": jnp.zeros((1, 3))}
    x = jnp.array([[1.0, 2.0], [jnp.nan, 0.0]])
    with pytest.raises(InputError, match=r"^x holds NaN: give numbers$"):
        linear_regions(lines, params, x)
    with pytest.raises(InputError, match=r"^params holds NaN"):
        linear_regions(lines, {**params, "offset": x[1:, :1] * jnp.ones((1, 3))}, x[:1])
    assert jax.jit(linear_regions, static_argnums=0)(lines, params, x) == 2


def test_takes_scalars_keys_and_integers():
    def noise(scale, keys):
        return jax.nn.relu(scale * jax.vmap(jax.random.normal)(keys)[:, None])

    keys = jax.random.split(jax.random.key(0), 20)
    for scale in (2.0, jnp.int32(2)):
        assert linear_regions(noise, scale, keys) == 2

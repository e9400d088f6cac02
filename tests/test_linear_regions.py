"""The count of linear regions against a set of tuples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenas_jax.linear_regions import count_linear_regions

count = jax.jit(count_linear_regions)


def brute_force(patterns):
    return len({tuple(row) for row in patterns})


@pytest.mark.parametrize("neurons", [1, 31, 32, 33, 117])
def test_equals_the_number_of_distinct_rows(neurons):
    generator = np.random.default_rng(neurons)
    distinct = generator.random((20, neurons)) < 0.5
    patterns = distinct[generator.integers(20, size=60)]
    assert count(patterns) == brute_force(patterns)


def test_patterns_that_differ_in_one_neuron_only_are_told_apart():
    patterns = np.zeros((65, 64), bool)
    patterns[:64] = np.eye(64, dtype=bool)
    assert count(patterns) == 65


@settings(max_examples=30)
@given(st.lists(st.lists(st.booleans(), min_size=40, max_size=40), min_size=12, max_size=12))
def test_is_invariant_under_permutation_and_repeated_columns(rows):
    patterns = np.array(rows)
    regions = int(count(patterns))
    assert regions == brute_force(patterns)
    assert count(patterns[::-1]) == count(patterns[:, ::-1]) == regions
    assert count(np.concatenate([patterns, patterns], 1)) == regions


def test_is_an_integer_between_one_and_the_number_of_samples():
    assert count(jnp.zeros((5, 3), bool)) == 1
    assert count(jnp.eye(7, dtype=bool)) == 7
    assert count(jnp.zeros((5, 3), bool)).dtype == jnp.int32

"""Architectures of both spaces: as many as there are, all different, neighbors one step apart."""

import math

import numpy as np
import pytest

from tenas_jax.architectures import enumeration as architectures
from tenas_jax.architectures import genotype
from tenas_jax.errors import InputError
from tenas_jax.spaces import DARTS, NAS_BENCH_201, SPACES


def test_all_of_nas_bench_201_are_different_genotypes():
    masks = architectures.enumerate_all(NAS_BENCH_201)
    assert len({mask.tobytes() for mask in masks}) == len(masks) == 5**6
    assert (masks.sum(-1) == 1).all()


def test_darts_has_too_many_to_list():
    pairs_of_edges = (1, 3, 6, 10)  # into the four nodes; 7 operators on each edge
    assert architectures.count(DARTS) == math.prod(pairs * 7**2 for pairs in pairs_of_edges) ** 2
    with pytest.raises(InputError, match=r"darts has 1e\+18 architectures, too many"):
        architectures.enumerate_all(DARTS)


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_a_sample_is_of_different_genotypes_and_decided_by_the_seed(space):
    masks = architectures.sample(space, 200, np.random.default_rng(1))
    texts = [genotype.to_string(space, mask) for mask in masks]
    assert len(set(texts)) == 200
    for mask, text in zip(masks, texts, strict=True):
        np.testing.assert_array_equal(genotype.from_string(space, text), mask)
    again = architectures.sample(space, 200, np.random.default_rng(1))
    np.testing.assert_array_equal(masks, again)
    assert (architectures.sample(space, 200, np.random.default_rng(2)) != masks).any()


def test_a_sample_is_uniform():
    masks = architectures.sample(NAS_BENCH_201, 5000, np.random.default_rng(0))
    shares = masks.mean(0)
    assert abs(shares - 0.2).max() < 0.03


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_a_mutation_replaces_one_operator_anywhere(space):
    rng = np.random.default_rng(0)
    [mask] = architectures.sample(space, 1, rng)
    mutants = [architectures.mutate(space, mask, rng) for _ in range(300)]
    for mutant in mutants:
        genotype.to_string(space, mutant)
        assert (mutant & ~mask).sum() == (mask & ~mutant).sum() == 1
    touched = np.any([mutant != mask for mutant in mutants], axis=0)
    assert touched.any(-1)[mask.any(-1)].all()

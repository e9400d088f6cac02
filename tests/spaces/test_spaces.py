"""The search spaces, spelled out."""

import json

import numpy as np
import pytest

from tenas_jax.errors import InputError
from tenas_jax.spaces import DARTS, NAS_BENCH_201, SPACES, get_space

EDGES = {
    "nas-bench-201": [(0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3)],
    "darts": [
        *[(0, 2), (1, 2)],
        *[(0, 3), (1, 3), (2, 3)],
        *[(0, 4), (1, 4), (2, 4), (3, 4)],
        *[(0, 5), (1, 5), (2, 5), (3, 5), (4, 5)],
    ],
    "transnas-bench-101": [(0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3)],
}


@pytest.mark.parametrize("name", SPACES)
def test_edges_are_in_the_order_of_the_genotype(name):
    assert list(get_space(name).edges) == EDGES[name]


def test_nas_bench_201_is_the_space_of_the_original(golden):
    trace = json.loads((golden / "search_trace_nas201.json").read_text())
    assert list(NAS_BENCH_201.ops) == trace["ops"]
    assert [[target, source] for source, target in NAS_BENCH_201.edges] == trace["edges"]


def test_sizes():
    assert (NAS_BENCH_201.shape, NAS_BENCH_201.num_nodes) == ((1, 6, 5), 4)
    assert (DARTS.shape, DARTS.num_nodes) == ((2, 14, 8), 6)
    assert list(NAS_BENCH_201.intermediate_nodes) == [1, 2, 3]
    assert list(DARTS.intermediate_nodes) == [2, 3, 4, 5]


def test_incoming_edges_are_the_groups_of_the_original():
    assert [NAS_BENCH_201.incoming(node) for node in range(4)] == [(), (0,), (1, 2), (3, 4, 5)]
    groups = [(0, 2), (2, 5), (5, 9), (9, 14)]  # prune_tenas.py:446
    assert [DARTS.incoming(node) for node in range(2, 6)] == [tuple(range(*g)) for g in groups]
    assert [DARTS.edges_kept(node) for node in range(2, 6)] == [2, 2, 2, 2]
    assert [NAS_BENCH_201.edges_kept(node) for node in range(1, 4)] == [1, 2, 3]


@pytest.mark.parametrize("name", SPACES)
def test_a_search_starts_from_everything_but_none(name):
    space = get_space(name)
    mask = space.initial_mask()
    assert mask.shape == space.shape
    assert mask.dtype == bool
    kept = {space.ops[op] for _, _, op in np.argwhere(mask)}
    assert kept == set(space.ops) - {"none"}
    sums = {"nas-bench-201": 6 * 4, "darts": 2 * 14 * 7, "transnas-bench-101": 6 * 3}
    assert mask.sum() == sums[name]


def test_initial_masks_are_independent():
    NAS_BENCH_201.initial_mask()[:] = False
    assert NAS_BENCH_201.initial_mask().any()


def test_a_space_is_found_by_its_own_name():
    assert {name: space.name for name, space in SPACES.items()} == {name: name for name in SPACES}


def test_unknown_space_lists_the_choices():
    with pytest.raises(InputError, match=r"'nats'.*choose from nas-bench-201, darts"):
        get_space("nats")

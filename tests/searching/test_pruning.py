"""Scores in, decisions out: the pruning of both spaces without any network."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenas_jax.architectures.genotype import from_string, to_string
from tenas_jax.architectures.space import Group
from tenas_jax.errors import InputError
from tenas_jax.searching.pruning import (
    PruneState,
    candidates,
    done,
    groups,
    init,
    prune_step,
    without,
)
from tenas_jax.searching.ranking import differences, mean_differences, pruning_order
from tenas_jax.spaces import DARTS, NAS_BENCH_201

DIRECTIONS = {"kappa": -1, "regions": 1}


def search(space, prune_number, order_of):
    """The (state before, candidates, info, state after) of every step of a search."""
    steps, state = [], init(space)
    while not done(space, state):
        rows = candidates(space, state)
        team = groups(space, state, prune_number)
        after, info = prune_step(state, rows, order_of(rows), team)
        steps.append((state, rows, info, after))
        state = after
    return steps


def by_table(table):
    """Order rows by a score per (cell, edge, op): the lowest is pruned first."""
    return lambda rows: np.argsort(table[tuple(rows.T)], kind="stable")


def test_replay_of_the_original_search(golden):
    trace = json.loads((golden / "search_trace_nas201.json").read_text())
    state = init(NAS_BENCH_201)
    for expected in trace["rounds"]:
        assert not done(NAS_BENCH_201, state)
        np.testing.assert_array_equal(state.mask[0], expected["mask"])
        rows = candidates(NAS_BENCH_201, state)
        assert rows.tolist() == [[0, c["edge"], c["op"]] for c in expected["candidates"]]
        pairs = [np.array([c["kappa"], c["regions_as_reported"]]) for c in expected["candidates"]]
        changes = np.concatenate(
            [mean_differences(differences(p[..., 0], p[None, ..., 1], decimals=3)) for p in pairs]
        )
        order = pruning_order(changes, DIRECTIONS)
        state, info = prune_step(state, rows, order, groups(NAS_BENCH_201, state))
        assert sorted(info.pruned.tolist()) == sorted([0, *pair] for pair in expected["pruned"])
        np.testing.assert_array_equal(state.mask[0], expected["mask_after"])
    assert done(NAS_BENCH_201, state)
    assert state.round == 3
    assert to_string(NAS_BENCH_201, state.mask) == trace["genotype"]


@pytest.mark.parametrize(
    ("space", "prune_number", "evaluations"),
    [
        (NAS_BENCH_201, 1, [24, 18, 12]),
        (NAS_BENCH_201, 2, [24, 12]),
        (NAS_BENCH_201, 9, [24]),
        (DARTS, 3, [196, 112, 3, 4, 5, 3, 4, 5]),  # CIFAR-10
        (DARTS, 2, [196, 140, 84, 3, 4, 5, 3, 4, 5]),  # ImageNet
    ],
)
def test_evaluations_of_each_step(space, prune_number, evaluations):
    steps = search(space, prune_number, lambda rows: np.arange(len(rows)))
    assert [len(rows) for _, rows, _, _ in steps] == evaluations


def test_candidates_are_the_kept_operators_of_edges_with_several():
    mask = np.zeros(NAS_BENCH_201.shape, bool)
    mask[0, 1, [1, 3]] = mask[0, 4, [2, 3, 4]] = mask[0, 2, 1] = True
    rows = candidates(NAS_BENCH_201, PruneState(mask, 0))
    assert rows.tolist() == [[0, 1, 1], [0, 1, 3], [0, 4, 2], [0, 4, 3], [0, 4, 4]]


def test_each_edge_loses_the_operators_that_come_first():
    mask = np.zeros(NAS_BENCH_201.shape, bool)
    mask[0, 0, [1, 2, 3, 4]] = mask[0, 1, [1, 3]] = mask[0, 2:, 2] = True
    state = PruneState(mask, 4)
    rows = candidates(NAS_BENCH_201, state)
    table = np.zeros(NAS_BENCH_201.shape)
    table[0, 0] = [0, 40, 10, 30, 20]
    table[0, 1] = [0, 5, 0, 1, 0]
    order = by_table(table)(rows)

    after, info = prune_step(state, rows, order, groups(NAS_BENCH_201, state, 3))

    # Three of edge 0, in their order; of edge 1 one only, its last operator stays.
    assert info.pruned.tolist() == [[0, 0, 2], [0, 0, 4], [0, 0, 3], [0, 1, 3]]
    assert np.argwhere(after.mask[0, :2]).tolist() == [[0, 1], [1, 1]]
    assert after.round == 5


def single_path_of_darts():
    """The mask with one operator per edge: operator 1 + edge % 7."""
    mask = np.zeros(DARTS.shape, bool)
    for edge in range(14):
        mask[:, edge, 1 + edge % 7] = True
    return mask


def test_nodes_keep_their_two_most_important_edges_one_node_at_a_time():
    state = PruneState(single_path_of_darts(), 2)
    scores = {
        # cell, node: importance of its edges; the two highest stay
        (0, 3): [9, 1, 5],
        (0, 4): [1, 2, 3, 4],
        (0, 5): [8, 1, 2, 3, 7],
        (1, 3): [1, 9, 5],
        (1, 4): [4, 3, 2, 1],
        (1, 5): [1, 8, 9, 3, 7],
    }
    kept = {
        (0, 3): [0, 2],
        (0, 4): [2, 3],
        (0, 5): [0, 4],
        (1, 3): [1, 2],
        (1, 4): [0, 1],
        (1, 5): [1, 2],
    }
    for (cell, node), importance in scores.items():
        edges = DARTS.incoming(node)
        rows = candidates(DARTS, state)
        assert rows.tolist() == [[cell, edge, 1 + edge % 7] for edge in edges]
        # Whatever the prune number, a node's surplus goes at once.
        assert groups(DARTS, state, 1) == [Group(cell, edges, len(edges) - 2)]
        state, _ = prune_step(state, rows, np.argsort(importance), groups(DARTS, state, 1))
        sources = [DARTS.edges[edge][0] for edge in edges if state.mask[cell, edge].any()]
        assert sources == kept[cell, node]
    assert done(DARTS, state)
    assert state.mask[:, :2].sum() == 4  # node 2 keeps both of its inputs


def test_both_cell_types_are_ranked_together_but_pruned_apart():
    state = init(DARTS)
    rows = candidates(DARTS, state)
    # Every operator of the reduction cell comes before those of the normal cell.
    order = np.argsort(-rows[:, 0], kind="stable")
    after, info = prune_step(state, rows, order, groups(DARTS, state, 3))
    assert (after.mask.sum(-1) == 4).all()
    assert np.bincount(info.pruned[:, 0]).tolist() == [42, 42]


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.integers(1, 8), st.sampled_from([2, 1000]))
def test_any_scores_end_in_a_darts_genotype(seed, prune_number, levels):
    rng = np.random.default_rng(seed)  # levels=2: nearly everything is tied

    def order_of(rows):
        changes = rng.integers(levels, size=(len(rows), 2)).astype(float)
        changes[rng.random(len(rows)) < 0.1, 0] = -np.inf
        return pruning_order(changes, DIRECTIONS)

    steps = search(DARTS, prune_number, order_of)
    mask = steps[-1][-1].mask
    assert not mask[..., DARTS.ops.index("none")].any()
    assert mask.sum(-1).max() == 1
    for node in DARTS.intermediate_nodes:
        assert mask[:, DARTS.incoming(node)].sum((1, 2)).tolist() == [2, 2]
    np.testing.assert_array_equal(from_string(DARTS, to_string(DARTS, mask)), mask)


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.integers(1, 8), st.sampled_from([NAS_BENCH_201, DARTS]))
def test_every_mask_follows_from_the_one_before(seed, prune_number, space):
    table = np.random.default_rng(seed).random(space.shape)
    for i, (before, rows, info, after) in enumerate(search(space, prune_number, by_table(table))):
        np.testing.assert_array_equal(without(before.mask, info.pruned), after.mask)
        assert before.mask.sum() - after.mask.sum() == len(info.pruned) > 0
        assert {*map(tuple, info.pruned)} <= {*map(tuple, rows)}
        assert (before.round, after.round) == (i, i + 1)
        if i == 0:
            np.testing.assert_array_equal(before.mask, space.initial_mask())  # not mutated


def test_without_leaves_its_argument_alone():
    mask = NAS_BENCH_201.initial_mask()
    smaller = without(mask, np.array([[0, 2, 3], [0, 5, 1]]))
    assert np.argwhere(mask & ~smaller).tolist() == [[0, 2, 3], [0, 5, 1]]
    np.testing.assert_array_equal(mask, NAS_BENCH_201.initial_mask())


def test_nothing_is_left_to_do_for_a_genotype():
    text = "|none~0|+|none~0|none~1|+|none~0|none~1|skip_connect~2|"
    state = PruneState(from_string(NAS_BENCH_201, text), 0)
    assert done(NAS_BENCH_201, state)
    assert candidates(NAS_BENCH_201, state).shape == (0, 3)


@pytest.mark.parametrize("prune_number", [0, -1])
def test_a_search_that_would_not_end_is_refused(prune_number):
    with pytest.raises(InputError, match=f"prune_number is {prune_number}: prune at least 1"):
        groups(NAS_BENCH_201, init(NAS_BENCH_201), prune_number)

"""Differences, ranks and their combination, against the original's trace and plain Python."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tenas_jax.errors import InputError
from tenas_jax.searching import ranking
from tenas_jax.searching.ranking import (
    COMBINATIONS,
    dense_ranks,
    importance,
    mean_differences,
    metric_ranks,
    pruning_order,
    standard_errors,
)

DIRECTIONS = {"kappa": -1, "regions": 1}
INF, NAN = math.inf, math.nan


def relative_differences(full, pruned, *, decimals):
    return mean_differences(ranking.differences(full, pruned, decimals=decimals))


def difference(full, pruned, decimals=3):
    """The difference of one metric and one candidate; full and pruned hold the repeats."""
    result = relative_differences(np.array([full]), np.array([[pruned]]), decimals=decimals)
    assert result.shape == (1, 1)
    return result.item()


@pytest.mark.parametrize("round_index", range(3))
def test_differences_and_ranks_of_the_original(golden, round_index):
    trace = json.loads((golden / "search_trace_nas201.json").read_text())["rounds"][round_index]
    pairs = np.array([[c["kappa"], c["regions_as_reported"]] for c in trace["candidates"]])
    full, pruned = pairs[..., 0], pairs[..., 1]
    # The original measures the supernet anew for every candidate.
    differences = np.concatenate(
        [relative_differences(f, p[None], decimals=3) for f, p in zip(full, pruned, strict=True)]
    )
    expected = [
        [kappa[-1], regions[-1]]
        for kappa, regions in zip(trace["kappa_delta"], trace["regions_delta"], strict=True)
    ]
    np.testing.assert_array_equal(differences, expected)

    rows = [(c["edge"], c["op"]) for c in trace["candidates"]]
    for column, name in enumerate(["kappa_rank", "regions_rank"]):
        golden_ranks = {(edge, op): rank for edge, op, rank in trace[name]}
        ranks = metric_ranks(differences, DIRECTIONS)[:, column]
        assert dict(zip(rows, ranks.tolist(), strict=True)) == golden_ranks


def test_difference_is_the_mean_of_the_rounded_repeats():
    # 0.1004 and 0.2004 round to 0.1 and 0.2; the mean of the unrounded ones would not be 0.15.
    assert difference([1000.0, 1000.0], [899.6, 799.6]) == (0.1 + 0.2) / 2
    assert difference([1000.0, 1000.0], [899.6, 799.6], None) == pytest.approx(0.1504, abs=1e-12)


def test_rounding_is_that_of_python():
    value = 1 - 0.0015
    assert round(value, 3) != np.round(value, 3)  # or the next line would prove nothing
    assert difference([1.0], [0.0015]) == 0.999


@pytest.mark.parametrize(
    ("full", "pruned", "expected"),
    [
        ([2.0, 2.0], [1.0, INF], -INF),  # singular without the candidate
        ([INF, 2.0], [5.0, 1.0], 0.75),  # singular with it: the limit, 1
        ([INF], [5.0], 1.0),
        ([INF, 2.0], [INF, 1.0], 0.5),  # undefined: left out of the mean
        ([NAN, 2.0], [1.0, 1.0], 0.5),
        ([2.0, 2.0], [NAN, 1.0], 0.5),
        ([INF, INF], [INF, INF], 0.0),  # no evidence
        ([INF, 2.0], [3.0, INF], -INF),
        ([0.0], [0.0], 0.0),
        ([-2.0], [-3.0], 0.5),  # a fall is positive, whatever the metric's sign
        ([-INF], [3.0], -1.0),
        ([2.0, 2.0], [-INF, INF], 0.0),
    ],
)
@pytest.mark.parametrize("decimals", [3, None])
def test_values_that_are_not_finite(full, pruned, expected, decimals):
    assert difference(full, pruned, decimals) == expected


def test_a_singular_candidate_is_pruned_last():
    full = np.array([[100.0, 100.0], [10.0, 10.0]])
    pruned = np.array(
        [[[120.0, INF], [10.0, 10.0]], [[900.0, 900.0], [10.0, 10.0]], [[90.0, 90.0], [10.0, 10.0]]]
    )
    differences = relative_differences(full, pruned, decimals=3)
    assert pruning_order(differences, DIRECTIONS).tolist() == [2, 1, 0]


any_float = st.floats(allow_nan=True, allow_infinity=True)


@given(arrays(float, (2, 3), elements=any_float), arrays(float, (4, 2, 3), elements=any_float))
def test_differences_are_never_nan(full, pruned):
    assert not np.isnan(relative_differences(full, pruned, decimals=3)).any()


@given(
    arrays(float, (2, 3), elements=st.floats(1, 1e6)),
    arrays(float, (4, 2, 3), elements=st.floats(1, 1e6)),
)
def test_differences_of_finite_metrics_are_those_of_a_plain_loop(full, pruned):
    expected = [
        [
            np.mean([round((f - p) / f, 3) for f, p in zip(fs, ps, strict=True)])
            for fs, ps in zip(full.tolist(), candidate, strict=True)
        ]
        for candidate in pruned.tolist()
    ]
    np.testing.assert_array_equal(relative_differences(full, pruned, decimals=3), expected)


def test_float32_measurements_are_subtracted_in_float64():
    full, pruned = np.float32([[3.0]]), np.float32([[[0.1]]])
    difference = relative_differences(full, pruned, decimals=None)
    assert difference.item() == (3.0 - float(np.float32(0.1))) / 3.0


@given(
    st.lists(st.sampled_from([-INF, -1.0, -0.0, 0.0, 0.5, 0.5 + 1e-16, 2.0, INF]), max_size=12),
    st.booleans(),
)
def test_dense_ranks_count_the_distinct_values_before(values, descending):
    distinct = sorted(set(values), reverse=descending)
    ranks = dense_ranks(np.array(values, float), descending=descending)
    assert ranks.tolist() == [distinct.index(value) for value in values]


# kappa ranks: 1 0 2 1 3; regions ranks: 1 2 0 1 0.
TABLE = np.array([[0.2, 0.0], [0.5, 0.4], [0.1, -0.3], [0.2, 0.0], [-INF, -0.3]])


@pytest.mark.parametrize(
    ("combination", "scores", "order"),
    [
        ("sum", [2, 2, 2, 2, 3], [1, 0, 3, 2, 4]),  # equal sums: by kappa, then as they come
        ("log_sum", np.log([4, 3, 3, 4, 4]).tolist(), [1, 2, 0, 3, 4]),
        ("min", [1, 0, 0, 1, 0], [1, 2, 4, 0, 3]),
        ("max", [1, 2, 2, 1, 3], [0, 3, 1, 2, 4]),
        ("kappa", [1, 0, 2, 1, 3], [1, 0, 3, 2, 4]),
        ("regions", [1, 2, 0, 1, 0], [2, 4, 0, 3, 1]),
    ],
)
def test_combinations(combination, scores, order):
    assert importance(TABLE, DIRECTIONS, combination).tolist() == pytest.approx(scores)
    assert pruning_order(TABLE, DIRECTIONS, combination).tolist() == order


def test_every_combination_is_tested():
    assert set(COMBINATIONS) == {"sum", "log_sum", "min", "max"}


def test_whole_architectures_are_ranked_the_other_way_round():
    # Ranks from the worst: kappa 2 0 1 2, regions 1 3 0 2.
    values = np.array([[1.0, 5.0], [9.0, 9.0], [3.0, NAN], [1.0, 7.0]])
    for combination, order in [
        ("sum", [3, 0, 1, 2]),
        ("log_sum", [3, 0, 1, 2]),
        ("min", [3, 0, 2, 1]),  # the first whose worst rank is best, then by kappa
        ("max", [1, 0, 3, 2]),
        ("regions", [1, 3, 0, 2]),
        ("test_ranking:mostly_kappa", [3, 0, 2, 1]),
    ]:
        assert ranking.best_first(values, DIRECTIONS, combination).tolist() == order, combination


def test_what_is_not_finite_is_worst_in_either_direction():
    # Of a dead network NASWOT is minus infinity, which is no little NASWOT.
    values = np.array([[-INF], [400.0], [300.0], [NAN]])
    assert ranking.best_first(values, {"naswot": +1}).tolist() == [1, 2, 0, 3]
    assert ranking.best_first(values, {"naswot": -1}).tolist() == [2, 1, 0, 3]


def mostly_kappa(ranks):
    return 10 * ranks[:, 0] + ranks[:, 1]


def one_number(ranks):
    return ranks.sum()


def no_axis(ranks):
    return ranks[:, 5]


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("one_number", r"returned \(\) for ranks \(5, 2\): it must be a number for each row"),
        ("no_axis", r"IndexError: index 5 is out of bounds.*test_ranking.py, line"),
        ("nothing", "has no 'nothing'"),
    ],
)
def test_an_own_combination_that_cannot_be_used(name, fault):
    with pytest.raises(InputError, match=fault):
        importance(TABLE, DIRECTIONS, f"test_ranking:{name}")


def test_the_sum_is_the_default():
    assert importance(TABLE, DIRECTIONS).tolist() == importance(TABLE, DIRECTIONS, "sum").tolist()
    assert pruning_order(TABLE, DIRECTIONS).tolist() == [1, 0, 3, 2, 4]


def test_any_number_of_metrics():
    differences = np.array([[0.1, 0.3, 0.0], [0.2, 0.1, 0.5], [0.3, 0.2, 0.0]])
    directions = {"kappa": -1, "regions": 1, "naswot": 1}
    assert metric_ranks(differences, directions).tolist() == [[2, 2, 0], [1, 0, 1], [0, 1, 0]]
    assert importance(differences, directions).tolist() == [4, 2, 1]
    assert importance(differences, directions, "naswot").tolist() == [0, 1, 0]
    assert importance(differences[:, :1], {"kappa": -1}).tolist() == [2, 1, 0]


def test_a_column_without_direction_is_refused():
    with pytest.raises(ValueError, match="zip"):
        metric_ranks(TABLE, {"kappa": -1})


def test_unknown_combination_lists_the_choices():
    with pytest.raises(
        InputError, match=r"'mean'.*choose from sum, log_sum, min, max, kappa, regions, or"
    ):
        importance(TABLE, DIRECTIONS, "mean")


@given(
    arrays(float, (2, 3), elements=st.floats(1, 1e6)),
    arrays(float, (4, 2, 3), elements=st.floats(1, 1e6)),
)
def test_log_differences_and_standard_errors_are_those_of_a_plain_loop(full, pruned):
    changes = ranking.differences(full, pruned, difference="log", decimals=None)
    for candidate, metric in np.ndindex(4, 2):
        expected = [
            math.log(f) - math.log(p)
            for f, p in zip(full[metric], pruned[candidate, metric], strict=True)
        ]
        assert changes[candidate, metric].tolist() == pytest.approx(expected, abs=1e-12)
        error = standard_errors(changes)[candidate, metric]
        assert error == pytest.approx(np.std(expected, ddof=1) / math.sqrt(3), abs=1e-9)


def test_repeats_that_were_not_measured_are_left_out():
    full, pruned = np.array([[10.0, 10.0, 10.0]]), np.array([[[9.0, NAN, 7.0]]])
    changes = ranking.differences(full, pruned, decimals=None)
    assert mean_differences(changes).item() == pytest.approx(0.2)
    assert standard_errors(changes).item() == pytest.approx(0.1)
    assert np.isnan(standard_errors(changes[..., :2]).item())


def test_a_kernel_that_is_no_longer_singular_is_an_improvement_in_both_differences():
    full, pruned = np.array([[INF]]), np.array([[[10.0]], [[INF]]])
    assert relative_differences(full, pruned, decimals=3)[:, 0].tolist() == [1.0, 0.0]
    logs = mean_differences(ranking.differences(full, pruned, difference="log", decimals=3))
    assert logs[:, 0].tolist() == [INF, 0.0]

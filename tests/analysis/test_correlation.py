"""Rank statistics against brute force and scipy, and what `tenas correlate` makes of two files."""

import itertools
import json
import math
import os
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from genotypes import bench_text
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.image import imread
from scipy import stats

from tenas_jax.analysis import correlation
from tenas_jax.analysis.correlation import Resamples, Score, correlate, quality, rank_sum
from tenas_jax.analysis.nasbench import load_table
from tenas_jax.analysis.scatter import scatter, stretch, ticks
from tenas_jax.analysis.statistics import (
    NDCG_TOP,
    STATISTICS,
    kendall_tau,
    means_of_first,
    ndcg,
    precisions,
    spearman,
)
from tenas_jax.architectures.cell_space import has_dead_operators
from tenas_jax.architectures.genotype import from_string
from tenas_jax.cli import correlate as command
from tenas_jax.errors import InputError
from tenas_jax.spaces import DARTS, NAS_BENCH_201

# Every set of edges.
ARCHS = [bench_text(*ops) for ops in itertools.product(("none", "skip_connect"), repeat=6)]
FEW = st.lists(st.tuples(st.integers(0, 4), st.integers(80, 94)), min_size=2, max_size=12).map(
    lambda pairs: np.array(pairs, float).T
)


def tau_by_pairs(x, y):
    pairs = list(itertools.combinations(range(len(x)), 2))
    signs = np.array([[np.sign(v[i] - v[j]) for i, j in pairs] for v in (x, y)])
    untied = (signs != 0).sum(axis=1)
    return (signs[0] @ signs[1]) / math.sqrt(untied.prod()) if untied.all() else math.nan


def ndcg_by_permutations(score, accuracy):
    """The mean DCG over all orders that the scores allow, relative to that of the best order."""

    def dcg(order):
        return sum((2 ** accuracy[k] - 1) / math.log2(2 + i) for i, k in enumerate(order))

    orders = list(itertools.permutations(range(len(score))))
    allowed = [o for o in orders if all(score[a] >= score[b] for a, b in itertools.pairwise(o))]
    return np.mean([dcg(order) for order in allowed]) / max(map(dcg, orders))


@given(FEW)
def test_kendall_tau_counts_pairs(few):
    np.testing.assert_allclose(kendall_tau(*few), tau_by_pairs(*few), atol=1e-12)


@given(FEW)
def test_spearman_is_that_of_scipy(few):
    constant = any(len(set(values)) == 1 for values in few)
    expected = math.nan if constant else stats.spearmanr(*few).statistic
    np.testing.assert_allclose(spearman(*few), expected, atol=1e-12)


@given(FEW)
def test_ndcg_averages_over_the_orders_of_ties(few):
    score, accuracy = few[:, :6]
    np.testing.assert_allclose(ndcg(score, accuracy), ndcg_by_permutations(score, accuracy))


def test_fractions_are_refused():
    """In percent the order matters, in fractions it hardly would."""
    accuracy = np.array([94.4, 90.1, 93.9, 10.0, 91.5, 89.2])
    scores = {"kappa": Score("condition number", -1, np.array([9.0, 1, 8, 7, 2, 3]))}
    value = correlate(scores, accuracy, resamples=1, seed=0)["kappa"]["ndcg"].value
    assert math.isclose(value, ndcg_by_permutations(-scores["kappa"].values, accuracy))
    assert value < 0.6 < 0.9 < ndcg(-scores["kappa"].values, accuracy / 100)
    with pytest.raises(InputError, match=r"the highest accuracy is 0\.944, as of fractions"):
        correlate(scores, accuracy / 100, resamples=1, seed=0)


def test_ndcg_looks_at_the_first_thousand():
    accuracy = np.linspace(90, 60, NDCG_TOP + 100)
    swapped = -np.arange(len(accuracy), dtype=float)
    swapped[NDCG_TOP:] = swapped[NDCG_TOP:][::-1]
    assert math.isclose(ndcg(swapped, accuracy), 1, rel_tol=1e-12)
    swapped[[NDCG_TOP - 1, NDCG_TOP]] = swapped[[NDCG_TOP, NDCG_TOP - 1]]
    assert ndcg(swapped, accuracy) < 1


@pytest.mark.parametrize("statistic", STATISTICS.values())
def test_statistics_use_nothing_but_the_order_of_scores(statistic):
    rng = np.random.default_rng(0)
    score, accuracy = rng.integers(1, 20, 40).astype(float), rng.uniform(10, 94, 40)
    value = statistic(score, accuracy)
    assert statistic(np.log(score), accuracy) == value
    order = rng.permutation(40)
    assert math.isclose(statistic(score[order], accuracy[order]), value)
    lowest = np.where(score == score.min(), -np.inf, score)
    assert statistic(lowest, accuracy) == value


@pytest.mark.parametrize("statistic", [kendall_tau, spearman])
def test_correlations_are_antisymmetric(statistic):
    score, accuracy = np.random.default_rng(0).integers(0, 30, (2, 25)).astype(float)
    assert math.isclose(statistic(-score, accuracy), -statistic(score, accuracy))


def test_a_constant_score_correlates_with_nothing():
    constant, accuracy = np.ones(4), np.array([90.0, 91, 92, 93])
    assert math.isnan(kendall_tau(constant, accuracy)) and math.isnan(spearman(constant, accuracy))
    # Any order is as likely: the mean gain at every place.
    assert math.isclose(ndcg(constant, accuracy), ndcg_by_permutations(constant, accuracy))
    assert math.isnan(ndcg(accuracy, np.zeros(4)))


@pytest.mark.parametrize("direction", [-1, 1])
@pytest.mark.parametrize("failure", [np.inf, -np.inf, np.nan])
def test_what_is_not_finite_is_the_worst(direction, failure):
    scores = quality(np.array([3.0, failure, 1.0, 2.0]), direction)
    best_first = [0, 3, 2, 1] if direction > 0 else [2, 3, 0, 1]
    assert np.argsort(-scores).tolist() == best_first


def test_rank_sums_share_ranks_and_ignore_scales():
    kappa, regions = np.array([-5.0, -np.inf, -2.0, -2.0]), np.array([1.0, 2.0, 3.0, 4.0])
    np.testing.assert_array_equal(rank_sum([kappa, regions]), [2 + 1, 1 + 2, 3.5 + 3, 3.5 + 4])
    np.testing.assert_array_equal(
        rank_sum([kappa * 7, np.exp(regions)]), rank_sum([kappa, regions])
    )


def first_by_permutations(count):
    """The mean over all orders that the scores allow of the mean accuracy of the first."""

    def mean(score, accuracy):
        orders = allowed_orders(score)
        return np.mean([accuracy[list(order[:count])].mean() for order in orders])

    return mean


def precision_by_permutations(share):
    def precision(score, accuracy):
        count = math.ceil(share * len(score))
        first, best = ([set(o[:count]) for o in allowed_orders(v)] for v in (score, accuracy))
        return np.mean([len(a & b) for a in first for b in best]) / count

    return precision


def allowed_orders(score):
    orders = itertools.permutations(range(len(score)))
    return [o for o in orders if all(score[a] >= score[b] for a, b in itertools.pairwise(o))]


CHOICES = [
    (means_of_first(1), first_by_permutations(1)),
    (means_of_first(3), first_by_permutations(3)),
    (means_of_first(10), first_by_permutations(10)),
    (precisions(0.01), precision_by_permutations(0.01)),
    (precisions(0.5), precision_by_permutations(0.5)),
]


@pytest.mark.parametrize(("resampled", "oracle"), CHOICES)
@given(FEW)
@settings(max_examples=25)
def test_what_comes_first_averages_over_the_orders_of_ties(resampled, oracle, few):
    score, accuracy = few[:, :5]
    score = np.where(score == 0, -np.inf, score)
    one = np.ones((1, len(score)))
    np.testing.assert_allclose(resampled(score, accuracy, one), oracle(score, accuracy))


@pytest.mark.parametrize("name", STATISTICS)
@pytest.mark.parametrize("ties", [False, True])
def test_resamples_are_as_if_architectures_were_repeated(name, ties):
    """Those that are missing, too; among them those of the best score."""
    rng = np.random.default_rng(3)
    score, accuracy = rng.normal(size=(2, 130)) + 90
    if ties:
        score, accuracy = score.round(), accuracy.round()
    score[rng.random(130) < 0.1] = -np.inf
    drawn = Resamples(130, 20, seed=4)
    for weights in (drawn.repeated, drawn.halves):
        rows = [np.repeat(np.arange(130), each) for each in weights]
        expected = [STATISTICS[name](score[row], accuracy[row]) for row in rows]
        values = STATISTICS[name].resampled(score, accuracy, weights)
        np.testing.assert_allclose(values, expected, rtol=1e-12)
    assert set(drawn.halves.sum(1)) == {65} and set(drawn.halves.ravel()) == {0, 1}
    assert set(drawn.repeated.sum(1)) == {130}


def test_precision_and_first_places_of_a_thousand():
    """By sorting, without ties."""
    rng = np.random.default_rng(0)
    score, accuracy = rng.normal(size=(2, 1000)) + 90
    score += accuracy
    order, best = np.argsort(-score), np.argsort(-accuracy)
    expected = {
        "first": accuracy[order[0]],
        "first_10": accuracy[order[:10]].mean(),
        "precision_1_percent": len({*order[:10]} & {*best[:10]}) / 10,
        "precision_5_percent": len({*order[:50]} & {*best[:50]}) / 50,
    }
    assert 0 < expected["precision_1_percent"] < expected["precision_5_percent"] < 1
    for name, value in expected.items():
        assert math.isclose(STATISTICS[name](score, accuracy), value)


def test_bootstrap_agrees_with_scipy():
    rng = np.random.default_rng(1)
    score = rng.normal(size=80)
    accuracy = 80 + score + rng.normal(size=80)
    drawn = Resamples(80, 1000, seed=0)
    ours = drawn.estimate(spearman, score, accuracy)
    theirs = stats.bootstrap(
        (score, accuracy),
        lambda x, y: stats.spearmanr(x, y).statistic,
        paired=True,
        vectorized=False,
        n_resamples=1000,
        method="percentile",
        rng=2,
    ).confidence_interval
    assert ours.value == spearman(score, accuracy)
    np.testing.assert_allclose((ours.low, ours.high), theirs, atol=0.04)
    narrower = drawn.estimate(spearman, score, accuracy, level=0.5)
    assert ours.low < narrower.low < ours.value < narrower.high < ours.high


def test_intervals_depend_on_the_seed_alone():
    score, accuracy = np.random.default_rng(0).uniform(10, 90, (2, 30))
    for statistic in (kendall_tau, STATISTICS["first_10"]):
        first, again, other = (
            Resamples(30, 50, seed).estimate(statistic, score, accuracy) for seed in (0, 0, 1)
        )
        assert first == again and first.low != other.low and first.value == other.value


@pytest.mark.parametrize("ties", [False, True])
def test_influences_are_derivatives(ties):
    """Of tau and rho with weighted pairs, by finite differences."""
    score, accuracy = np.random.default_rng(0).normal(size=(2, 40)) * 3
    accuracy += score
    if ties:
        score, accuracy = score.round(), accuracy.round()
        score[:5] = -np.inf

    def tau(weights):
        x, y = (np.sign(v[:, None] - v) for v in (score.clip(-99), accuracy))
        pairs = np.outer(weights, weights)
        return (pairs * x * y).sum() / math.sqrt((pairs * x**2).sum() * (pairs * y**2).sum())

    def rho(weights):
        less = [(v[:, None] < v) + (v[:, None] == v) / 2 for v in (score, accuracy)]
        x, y = (weights @ each for each in less)
        x, y = (v - weights @ v / weights.sum() for v in (x, y))
        return weights @ (x * y) / math.sqrt((weights @ x**2) * (weights @ y**2))

    for statistic, naive in ((kendall_tau, tau), (spearman, rho)):
        influence = statistic.influence(score, accuracy)
        assert math.isclose(naive(np.ones(40)), statistic(score, accuracy))
        for i in (0, 7, 39):
            step = 1e-5 * (np.arange(40) == i)
            slope = (naive(1 + step) - naive(1 - step)) / 2e-5
            assert math.isclose(influence[i], 40 * slope, abs_tol=1e-7)


@pytest.mark.parametrize("statistic", [kendall_tau, spearman])
def test_intervals_of_many_are_about_those_of_resamples(statistic, monkeypatch):
    rng = np.random.default_rng(1)
    score = rng.normal(size=400)
    accuracy = (80 + score + rng.normal(size=400)).round(1)
    drawn = Resamples(400, 1000, seed=0)
    resampled = drawn.estimate(statistic, score, accuracy)
    monkeypatch.setattr(correlation, "RESAMPLED", 300)
    normal = drawn.estimate(statistic, score, accuracy)
    assert normal != resampled and normal.value == resampled.value
    np.testing.assert_allclose(normal[1:], resampled[1:], atol=0.01)
    constant = drawn.estimate(statistic, np.ones(400), accuracy)
    assert all(map(math.isnan, constant))


def test_first_places_of_halves():
    """The first place of a half is the best in one half of the cases, then the second, ..."""
    score = np.arange(40.0)
    accuracy = 50 + score
    values = STATISTICS["first"].resampled(score, accuracy, Resamples(40, 4000, seed=0).halves)
    shares = [(values == 50 + 39 - place).mean() for place in range(3)]
    assert shares == pytest.approx(
        [20 / 40, 20 / 40 * 20 / 39, 20 / 40 * 19 / 39 * 20 / 38], abs=0.02
    )
    estimate = Resamples(40, 4000, seed=0).estimate(STATISTICS["first"], score, accuracy)
    assert estimate.high == estimate.value == 89 and 84 <= estimate.low <= 86


def test_intervals_of_a_statistic_that_may_be_undefined_are_nan():
    # Three architectures of which two tie: some resample is constant.
    estimate = Resamples(3, 99, seed=0).estimate(
        kendall_tau, np.array([1.0, 1, 2]), np.array([1.0, 2, 3])
    )
    assert math.isfinite(estimate.value) and math.isnan(estimate.low) and math.isnan(estimate.high)


@pytest.mark.parametrize(
    ("count", "flags", "fault"),
    [
        (1, {"resamples": 5, "seed": 0}, "no correlation of 1 architecture: give 2 or more"),
        (3, {"resamples": 0, "seed": 0}, "resamples must be at least 1 and seed at least 0, not 0"),
        (3, {"resamples": 5, "seed": -1}, "seed at least 0, not 5 and -1"),
    ],
)
def test_too_few_of_anything_is_one_line(count, flags, fault):
    with pytest.raises(InputError, match=fault):
        correlate({"s": Score("s", 1, np.arange(count) * 1.0)}, np.arange(count) * 1.0, **flags)


def dead_by_paths(space, mask):
    """Whether a kept operator is on none of the paths from input to output, listed one by one."""
    outputs = [space.num_nodes - 1] if space is NAS_BENCH_201 else space.intermediate_nodes
    for cell in mask:
        kept = {
            edge: ends
            for edge, ends in enumerate(space.edges)
            if any(cell[edge, op] for op, name in enumerate(space.ops) if name != "none")
        }
        alive, paths = set(), [((), node) for node in range(space.input_nodes)]
        while paths:
            path, node = paths.pop()
            if node in outputs:
                alive.update(path)
            paths += [((*path, e), ends[1]) for e, ends in kept.items() if ends[0] == node]
        if set(kept) != alive:
            return True
    return False


def test_dead_operators_are_on_no_path():
    masks = [from_string(NAS_BENCH_201, arch) for arch in ARCHS]
    expected = [dead_by_paths(NAS_BENCH_201, mask) for mask in masks]
    assert [has_dead_operators(NAS_BENCH_201, mask) for mask in masks] == expected
    assert 0 < sum(expected) < len(expected)
    # Of the 2^6 sets of edges, each with as many architectures as 4 operators allow.
    alive = sum(
        4 ** int((~mask[0, :, 0]).sum())
        for mask, dead in zip(masks, expected, strict=True)
        if not dead
    )
    assert alive == 9445


def test_dead_operators_of_darts():
    rng = np.random.default_rng(0)
    # Every intermediate node is an output, so only nodes without an input make operators dead.
    masks = rng.random((60, *DARTS.shape)) < 0.08
    expected = [dead_by_paths(DARTS, mask) for mask in masks]
    assert [has_dead_operators(DARTS, mask) for mask in masks] == expected
    assert 0 < sum(expected) < len(expected)
    assert not has_dead_operators(DARTS, DARTS.initial_mask())


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A table of 64 architectures and scores of 40 of them, in another order."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    accuracies = 10 + 84 * np.sort(rng.random(len(ARCHS)))
    rows = [
        f"{arch},{accuracy:.4f},{71 + i % 5},{0.1 * (1 + i % 7):.2f},{10 + i % 3}"
        for i, (arch, accuracy) in enumerate(zip(ARCHS, accuracies, strict=True))
    ]
    write("table.csv", "arch,cifar10_test,cifar100_test,params_m,flops_m", *rows)
    chosen = rng.permutation(len(ARCHS))[:40]
    kappas = np.where(chosen < 5, np.inf, np.exp(0.1 * (50 - chosen) + rng.normal(size=40)))
    scores = [
        f"{ARCHS[i]},{kappa:.6g},{int(500 + 5 * i + rng.normal(0, 60))},7"
        for i, kappa in zip(chosen, kappas, strict=True)
    ]
    write("scores.csv", "genotype,kappa,regions,synflow", *scores)
    return SimpleNamespace(chosen=chosen, accuracies=accuracies[chosen].round(4), kappas=kappas)


def write(name: str, *lines: str) -> None:
    Path(name).write_text("".join(f"{line}\n" for line in lines))


def run(*words: str) -> int:
    return command.run(["scores.csv", "--accuracy-table", "table.csv", "--resamples", "20", *words])


def test_numbers_are_those_of_the_two_files(files, capsys):
    flags = ["--sums", "kappa+regions, regions+synflow", "--output", "out.json"]
    assert run(*flags) == 0
    result = json.loads(Path("out.json").read_text())
    assert (result["column"], result["resamples"], result["seed"]) == ("cifar10_test", 20, 0)
    everything, alive = (result["architectures"][name] for name in (command.ALL, command.ALIVE))
    assert everything["count"] == 40
    names = [
        "kappa",
        "regions",
        "synflow",
        "kappa+regions",
        "regions+synflow",
        "params_m",
        "flops_m",
    ]
    assert list(everything["scores"]) == names == list(alive["scores"])

    kappa = everything["scores"]["kappa"]
    assert (kappa["direction"], kappa["nonfinite"]) == (-1, int(np.isinf(files.kappas).sum()))
    assert kappa["nonfinite"] > 0
    # With the rounding of the file the order of the architectures is the same.
    expected = stats.kendalltau(-np.minimum(files.kappas, 1e9), files.accuracies).statistic
    assert math.isclose(kappa["kendall_tau"]["value"], expected)
    assert kappa["kendall_tau"]["low"] < expected < kappa["kendall_tau"]["high"]

    synflow = everything["scores"]["synflow"]["kendall_tau"]
    assert synflow == {"value": "nan", "low": "nan", "high": "nan"}
    # A constant adds nothing to a rank sum.
    assert (
        everything["scores"]["regions+synflow"]["spearman"]
        == everything["scores"]["regions"]["spearman"]
    )

    masks = [from_string(NAS_BENCH_201, ARCHS[i]) for i in files.chosen]
    living = np.array([not dead_by_paths(NAS_BENCH_201, mask) for mask in masks])
    assert alive["count"] == living.sum() < 40
    expected = stats.kendalltau(
        -np.minimum(files.kappas, 1e9)[living], files.accuracies[living]
    ).statistic
    assert math.isclose(alive["scores"]["kappa"]["kendall_tau"]["value"], expected)

    shown = capsys.readouterr().out
    for text in ("40 architectures", f"{alive['count']} of them without dead operators", *names):
        assert text in shown
    low, high = (everything["scores"]["kappa"]["spearman"][end] for end in ("low", "high"))
    assert f"{low:.2f}..{high:.2f}" in shown
    assert "nan" in shown and "cifar10_test; intervals: 95 % of 20 resamples" in shown


def test_the_column_and_the_metrics_are_chosen(files):
    assert run("--metrics", "regions", "--sums", "kappa+regions", "--column", "cifar100_test",
               "--output", "out.json", "--seed", "3") == 0  # fmt: skip
    result = json.loads(Path("out.json").read_text())
    scores = result["architectures"]["all"]["scores"]
    assert list(scores) == ["regions", "kappa+regions", "params_m", "flops_m"]
    assert (result["column"], result["seed"]) == ("cifar100_test", 3)
    tau = stats.kendalltau(0.1 * (1 + files.chosen % 7), files.chosen % 5).statistic
    assert math.isclose(scores["params_m"]["kendall_tau"]["value"], tau)


def test_plots_are_written(files):
    assert run("--metrics", "kappa", "--sums", "kappa+regions", "--plots", "new/plots") == 0
    names = {path.name for path in Path("new/plots").iterdir()}
    scores = ("kappa", "kappa+regions", "params_m", "flops_m")
    assert names == {f"{name}.png" for name in scores}
    for name in names:
        assert imread(Path("new/plots") / name).std() > 0.05  # not blank


@pytest.mark.parametrize(("kind", "start"), [("pdf", b"%PDF"), ("svg", b"<?xml"), ("png", b"\x89")])
def test_plots_for_a_column_of_a_paper(files, kind, start):
    """Of a column whose name is no name of a file, and has what tables and plots might read."""
    write_seeds(files, 1)
    text = Path("seed0.csv").read_text().replace("mine", "a/b [red]$x")
    Path("seed0.csv").write_text(text)
    words = ["--metrics", "a/b [red]$x:lower", "--plots", "plots", "--format", kind]
    assert run_seeds("seed0.csv", *words, "--width", "3.3") == 0
    names = {"a_b__red__x", "params_m", "flops_m"}
    assert {path.name for path in Path("plots").iterdir()} == {f"{each}.{kind}" for each in names}
    for path in Path("plots").iterdir():
        assert path.read_bytes().startswith(start)
        assert b"/Type3" not in path.read_bytes()  # rejected by checkers of submissions


@pytest.mark.parametrize("width", [3.3, 6.4])
def test_what_is_written_in_a_plot_fits_into_it(width):
    values = np.array([3.0, 900.0, np.inf, 40.0])
    title = "Kendall tau 0.482 (15625 architectures),\n0.441 (9445 of them without dead operators)"
    figure = scatter(
        Score("NTK condition number", -1, values),
        np.array([90.0, 80.0, 10.0, 94.0]),
        np.array([True, False, True, True]),
        title=title,
        column="cifar10_test",
        log=True,
        width=width,
    )
    figure.draw_without_rendering()
    assert figure.get_figwidth() == width
    [axes] = figure.axes
    for each in (axes.title, axes.xaxis.label, axes.yaxis.label, figure.legends[0]):
        box = each.get_window_extent()
        assert 0 <= box.x0 < box.x1 <= figure.bbox.x1 and 0 <= box.y0 < box.y1 <= figure.bbox.y1
    labels = [each.get_window_extent() for each in axes.get_yticklabels()]
    assert all(low.y1 <= high.y0 + 1 for low, high in itertools.pairwise(labels))


@pytest.mark.parametrize(
    ("values", "direction", "log"),
    [
        ([3.0, 900.0, np.inf], -1, True),
        ([3.0, 900.0, np.nan], 1, True),
        ([3.0, 9.0, 5.0], 1, False),
        ([0.0, 900.0, 5.0], 1, False),
        ([np.nan] * 3, 1, False),
    ],
)
def test_plots_show_every_architecture(values, direction, log):
    values, accuracy = np.array(values), np.array([90.0, 80.0, 10.0])
    assert command._spans_decades(values) == log
    figure = scatter(
        Score("a label", direction, values),
        accuracy,
        np.array([True, False, True]),
        title="a title",
        column="cifar10_test",
        log=log,
    )
    figure.draw_without_rendering()
    axes = figure.axes[0]
    dots = np.concatenate([each.get_offsets() for each in axes.collections])
    triangles = [tuple(point) for line in axes.lines for point in line.get_xydata()]
    finite = np.isfinite(values)
    assert sorted(map(tuple, dots)) == sorted(zip(values[finite], accuracy[finite], strict=True))
    worst = 0.0 if direction > 0 else 1.0
    assert triangles == [(worst, each) for each in accuracy[~finite]]
    assert axes.get_ylim()[0] < 10 and axes.get_ylim()[1] > 90
    assert axes.get_xscale() == ("log" if log else "linear")
    better = "higher" if direction > 0 else "lower"
    assert axes.get_xlabel() == f"a label ({better} is better)"
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    missing = [f"not finite: {(~finite).sum()}"] if (~finite).any() else []
    assert labels == ["no dead operators", "dead operators", *missing]


SCALES = [
    np.array([10.0, 91.0, 94.0]),
    np.array([10.0, 90.7, 90.7, 94.37]),
    np.array([10.0, 12.0, 94.0]),  # the median is nearer to the worst: a linear axis
    np.array([10.0, 94.0, 94.0, 94.0]),
    np.array([70.0, 70.5, 70.9, 71.0]),
]


@pytest.mark.parametrize("accuracy", SCALES)
def test_axes_of_accuracies_show_the_upper_end(accuracy):
    forward, inverse = stretch(accuracy)
    low, middle, high = forward(np.array([accuracy.min(), np.median(accuracy), accuracy.max()]))
    assert low < middle <= high
    np.testing.assert_allclose(inverse(forward(accuracy)), accuracy)
    near = np.median(accuracy) > (accuracy.min() + accuracy.max()) / 2
    place = (middle - low) / (high - low)
    assert place >= 0.5 - 1e-9 if near else place == (middle - 10) / (94 - 10)
    chosen = ticks(forward, accuracy)
    assert len(chosen) >= 4 and (accuracy.min() <= chosen).all() and (chosen <= 94.37).all()
    assert np.diff(forward(chosen)).min() >= 0.06 * (high - low) - 1e-9
    score = Score("a label", 1, np.arange(len(accuracy)) * 1.0)
    alive = np.ones(len(accuracy), bool)
    figure = scatter(score, accuracy, alive, title="", column="top1", log=False)
    figure.draw_without_rendering()
    [dots, _] = figure.axes[0].collections
    heights = figure.axes[0].transData.transform(dots.get_offsets())[:, 1]
    shares = (heights - figure.axes[0].bbox.y0) / figure.axes[0].bbox.height
    assert ((shares > 0.02) & (shares < 0.98)).all()


def test_a_plot_of_equal_accuracies():
    score = Score("a label", 1, np.arange(3.0))
    figure = scatter(score, np.full(3, 90.0), np.ones(3, bool), title="", column="top1", log=False)
    figure.draw_without_rendering()
    assert figure.axes[0].get_yscale() == "linear"


def write_seeds(files, count=3):
    """Files of other seeds, with the architectures in another order; the values of each."""
    values = []
    for seed in range(count):
        rng = np.random.default_rng(seed)
        regions = (files.accuracies + rng.normal(0, 20, 40)).round(2)
        values.append(regions)
        order = rng.permutation(40)
        rows = [f"{ARCHS[files.chosen[i]]},{regions[i]},{-regions[i]}" for i in order]
        write(f"seed{seed}.csv", "genotype,regions,mine", *rows)
    return values


def run_seeds(*words):
    flags = ["--accuracy-table", "table.csv", "--resamples", "20"]
    return command.run([*words, *flags])


def test_several_files_give_mean_and_deviation_over_seeds(files, capsys):
    values = write_seeds(files)
    words = ["seed0.csv", "seed1.csv", "seed2.csv", "--metrics", "regions", "--output", "out.json"]
    assert run_seeds(*words, "--sums", "regions+mine:lower", "--plots", "plots") == 0
    result = json.loads(Path("out.json").read_text())
    assert result["scores"] == ["seed0.csv", "seed1.csv", "seed2.csv"]
    scores = result["architectures"]["all"]["scores"]
    assert list(scores) == ["regions", "regions+mine", "params_m", "flops_m"]
    for name, statistic in STATISTICS.items():
        expected = [statistic(regions, files.accuracies) for regions in values]
        assert len(set(expected)) > 1 or name.startswith("precision")
        got = scores["regions"][name]
        np.testing.assert_allclose(got["values"], expected)
        np.testing.assert_allclose(got["value"], np.mean(expected))
        np.testing.assert_allclose(got["deviation"], np.std(expected, ddof=1), atol=1e-12)
        assert got.keys() == {"value", "deviation", "values"}
    # Both columns of the sum order alike.
    assert scores["regions+mine"]["spearman"] == scores["regions"]["spearman"]
    shown = capsys.readouterr().out
    tau = scores["regions"]["kendall_tau"]
    assert f"{tau['value']:.3f}±{tau['deviation']:.3f}" in shown
    first = scores["regions"]["first"]
    assert f"{first['value']:.2f}±{first['deviation']:.2f}" in shown
    assert "cifar10_test; mean and deviation over 3 files" in shown
    assert len(list(Path("plots").iterdir())) == 4


def test_any_column_in_its_direction(files):
    """Named with its direction; a minus turns it, that of a metric, too, and in sums."""
    [regions] = write_seeds(files, 1)
    words = ["--metrics", "mine:lower,-regions,mine:higher", "--output", "out.json"]
    with pytest.raises(InputError, match="mine is given twice: give every metric once"):
        run_seeds("seed0.csv", *words)
    words[1] = "mine:lower,-regions,-mine:lower"
    sums = "regions+mine:lower,mine:lower+-regions"
    assert run_seeds("seed0.csv", *words, "--sums", sums) == 0
    scores = json.loads(Path("out.json").read_text())["architectures"]["all"]["scores"]
    names = ["mine", "-regions", "-mine", "regions+mine", "mine+-regions", "params_m", "flops_m"]
    assert list(scores) == names
    assert [scores[name]["direction"] for name in names[:3]] == [-1, -1, 1]
    tau = stats.kendalltau(regions, files.accuracies).statistic
    taus = [scores[name]["kendall_tau"]["value"] for name in names[:4]]
    np.testing.assert_allclose(taus, [tau, -tau, -tau, tau])
    assert scores["mine+-regions"]["kendall_tau"]["value"] == "nan"  # all rank sums are the same
    Path("out.json").unlink()
    # Without --metrics a column whose direction --sums says is taken with it.
    assert run_seeds("seed0.csv", "--sums", "regions+mine:lower", "--output", "out.json") == 0
    scores = json.loads(Path("out.json").read_text())["architectures"]["all"]["scores"]
    assert list(scores) == ["regions", "mine", "regions+mine", "params_m", "flops_m"]
    assert scores["mine"]["direction"] == -1


def test_tables_fit_into_100_columns(files, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "100")
    assert run("--sums", "kappa+regions+synflow") == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100 and not any("…" in line for line in lines)
    rows = [line for line in lines if line.startswith("kappa+regions+synflow")]
    assert len(rows) == 4 and all(len(re.findall(r"\d\.\.\d", row)) >= 3 for row in rows)


@pytest.mark.parametrize(
    ("change", "words", "fault"),
    [
        (None, "seed0.csv seed0.csv", "seed0.csv is given twice: give every seed its own file"),
        (None, "", "no scores: give the CSV file of tenas score"),
        (
            lambda rows: rows[:-1],
            "seed0.csv seed1.csv --metrics regions",
            "seed1.csv lacks 1 architecture of the",
        ),
        (
            lambda rows: rows[:-1],
            "seed1.csv seed0.csv --metrics regions",
            "seed1.csv lacks 1 architecture of the",
        ),
        (
            lambda rows: [row.rpartition(",")[0] for row in rows],
            "seed0.csv seed1.csv --metrics regions --sums regions+mine:lower",
            "seed1.csv has 0 columns 'mine'",
        ),
        (
            lambda rows: [rows[0] + ",kappa", *(row + ",1" for row in rows[1:])],
            "seed0.csv seed1.csv --sums regions+mine:lower",
            "seed0.csv and seed1.csv have different columns (kappa): say with --metrics which",
        ),
        (None, "seed0.csv", "mine', which is not a metric (kappa, regions"),
        (None, "seed0.csv", "which way they are better, as in mine:higher"),
        (None, "seed0.csv --metrics mine:better", "mine"),
        (None, "seed0.csv --metrics mine", "unknown metric 'mine'"),
        (None, "seed0.csv --sums regions+-regions", "the rank sum regions+-regions has no two"),
        (None, "seed0.csv --metrics regions,", "unknown metric ''"),
    ],
)
def test_several_files_and_columns_that_do_not_fit(files, change, words, fault):
    write_seeds(files, 2)
    if change is not None:
        write("seed1.csv", *change(Path("seed1.csv").read_text().splitlines()))
    with pytest.raises(InputError) as error:
        run_seeds(*words.split(), "--output", "out.json")
    assert fault in str(error.value) and "\n" not in str(error.value)
    assert not Path("out.json").exists()


def test_without_living_architectures_there_is_one_table(files, capsys):
    dead = [
        arch
        for arch in ARCHS
        if has_dead_operators(NAS_BENCH_201, from_string(NAS_BENCH_201, arch))
    ]
    write(
        "scores.csv", "genotype,regions", f"{ARCHS[0]},1", *(f"{a},{i}" for i, a in enumerate(dead))
    )
    assert run() == 0
    shown = capsys.readouterr().out
    assert "fewer than two architectures have no dead operators" in shown
    assert "of them" not in shown and f"{len(dead) + 1} architectures" in shown


@pytest.mark.parametrize(
    ("scores", "words", "fault"),
    [
        (["genotype,kappa"], "", "scores.csv has no rows"),
        (["arch,kappa", f"{ARCHS[0]},1"], "", "scores.csv has 0 columns 'genotype'"),
        (["genotype,kappa,kappa", f"{ARCHS[0]},1,1"], "", "scores.csv has 2 columns 'kappa'"),
        (["genotype,kappa"] + [f"{ARCHS[0]},1"] * 2, "", "scores.csv, line 3: |none~0|+|none~0|"),
        (
            ["genotype,kappa", "Genotype(),1"],
            "",
            "line 2: not a genotype of nas-bench-201: there is",
        ),
        (
            ["genotype,kappa", f"{ARCHS[0]},x"],
            "",
            "line 2: kappa is 'x': give a number, inf or nan",
        ),
        (
            ["genotype,speed", f"{ARCHS[0]},1"],
            "",
            "has the column 'speed', which is not a metric (kap",
        ),
        (
            ["genotype,kappa", f"{bench_text(*['avg_pool_3x3'] * 6)},1", f"{ARCHS[0]},1"],
            "",
            "table.csv lacks 1 of the 2 architectures of scores.csv (first: line 2, |avg_poo",
        ),
        (["genotype,kappa", f"{ARCHS[0]},1"], "", "no correlation of 1 architecture: give"),
        (
            None,
            "--metrics kapa",
            "unknown metric 'kapa' (did you mean 'kappa'?): choose from kappa, regions",
        ),
        (None, "--metrics kappa,snip", "scores.csv has 0 columns 'snip'"),
        (None, "--metrics snip", "one, or name others by --genotype-column or --metrics"),
        (None, "--sums kappa", "the rank sum kappa has no two different metrics: write e.g."),
        (None, "--sums kappa+kappa", "the rank sum kappa+kappa has no two different metrics"),
        (None, "--sums kappa+snip", "scores.csv has no column 'snip': leave it out of --sums"),
        (
            None,
            "--sums kappa+regoins",
            "unknown metric 'regoins' (did you mean 'regions'?): choose from kappa",
        ),
        (None, "--column imagenet", "table.csv has 0 columns 'imagenet' (arch, cifar10"),
        (None, "--column imagenet", "give it one, or name another by --column or --arch-column"),
        (None, "--resamples 0", "resamples must be at least 1"),
        (None, "--width 0.5", "width must be from 2 to 30 inches, not 0.5"),
        (None, "--seed -1", "seed at least 0"),
        (None, "--accuracy-table none.csv", "cannot use none.csv: No such file or directory"),
        (None, "--output none/out.json", "cannot use none/out.json: No such file or directory"),
        (None, "--plots table.csv", "cannot use table.csv: File exists"),
        (
            None,
            "--plotz here",
            "Unrecognized options: --plotz, here: did you mean --plots? (see tenas",
        ),
    ],
)
def test_bad_input_is_one_line(files, scores, words, fault):
    if scores is not None:
        write("scores.csv", *scores)
    before = set(os.listdir())
    with pytest.raises(InputError) as error:
        run(*words.split())
    assert fault in str(error.value) and "\n" not in str(error.value)
    assert set(os.listdir()) == before


def test_scores_by_index_and_columns_of_other_names(files, capsys):
    """With a table of fractions that has neither parameters nor FLOPs."""
    table = Path("table.csv").read_text().splitlines()
    names = table[0].split(",")
    rows = [dict(zip(names, row.split(","), strict=True)) for row in table[1:]]
    write("scores.csv", "genotype,kappa", *(f"{row['arch']},{i % 7}" for i, row in enumerate(rows)))
    assert run("--output", "by_text.json") == 0
    few = [f"{i},{row['arch']},{float(row['cifar10_test']) / 100!r}" for i, row in enumerate(rows)]
    write("table.csv", "index,cell,top1", *few)
    write("scores.csv", "id,kappa", *(f"{i},{i % 7}" for i in range(len(rows))))
    words = ["--column", "top1", "--arch-column", "cell", "--genotype-column", "id"]
    with pytest.raises(
        InputError, match="as of fractions: give percent, or say that they are frac"
    ):
        run(*words)
    assert run(*words, "--unit", "fraction", "--output", "by_index.json") == 0
    both = [json.loads(Path(f"{name}.json").read_text()) for name in ("by_text", "by_index")]
    kappa = [each["architectures"]["all"]["scores"]["kappa"] for each in both]
    for statistic in ("kendall_tau", "spearman", "ndcg"):
        assert kappa[0][statistic] == pytest.approx(kappa[1][statistic], rel=1e-9)


def test_interruption_is_one_line(files, monkeypatch, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("tenas_jax.analysis.correlation.correlate", interrupt)
    assert run("--output", "out.json") == 130
    assert capsys.readouterr().err == "tenas: interrupted\n"
    assert not Path("out.json").exists()


def test_help_explains_every_flag(capsys):
    with pytest.raises(SystemExit) as exit:
        command.run(["--help"])
    assert exit.value.code == 0
    shown = capsys.readouterr().out
    for flag in ("--accuracy-table", "--metrics", "--sums", "--resamples", "--plots", "--output"):
        assert flag in shown


def test_costs_of_the_whole_space():
    """Against a table of all 15,625 architectures, which is not part of this repository."""
    path = os.environ.get("TENAS_NASBENCH201")
    if path is None:
        pytest.skip("TENAS_NASBENCH201 names no accuracy table")
    table = load_table(Path(path))
    assert len(table) == 15625
    assert round(kendall_tau(table.parameters, table.accuracies), 3) == 0.578
    assert table.rank(table.genotypes[6111]) == 1

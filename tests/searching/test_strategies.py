"""Strategies driven by scores that depend on keys and masks alone."""

import dataclasses
import json
from collections import Counter

import numpy as np
import pytest
from fake_scorer import HashScorer, InterruptedByTest, search, timeless

from tenas_jax.architectures import enumeration
from tenas_jax.architectures.genotype import from_string
from tenas_jax.architectures.isomorphism import first_of_each_class
from tenas_jax.errors import InputError
from tenas_jax.metrics.registry import get_metric
from tenas_jax.searching.config import (
    AutoRepeatsConfig,
    EvolutionConfig,
    SearchConfig,
    ShortlistConfig,
)
from tenas_jax.searching.problem import look_up
from tenas_jax.searching.repeats import probabilities
from tenas_jax.searching.shortlist import largest
from tenas_jax.searching.strategies import get_strategy
from tenas_jax.spaces import DARTS, NAS_BENCH_201

CONFIGS = {
    "random": SearchConfig(strategy="random", budget=30, repeats=2, seed=3),
    "evolution": SearchConfig(
        strategy="evolution",
        budget=60,
        repeats=2,
        seed=3,
        evolution=EvolutionConfig(population=10, tournament=3, children=4),
    ),
    "auto": SearchConfig(repeats="auto", seed=3),
    "shortlist": SearchConfig(
        strategy="shortlist",
        budget=12,
        repeats="auto",
        seed=3,
        auto_repeats=AutoRepeatsConfig(minimum=2, maximum=6),
    ),
}


class CountingScorer(HashScorer):
    """The more 3 x 3 convolutions the better, with a little noise."""

    def score(self, key, mask):
        noise = super().score(key, mask)[0] / 2**32
        convolutions = np.asarray(mask)[0, :, 3].sum()
        return [100.0 - convolutions + 0.1 * noise, 10.0 + convolutions]


class NoisyScorer(HashScorer):
    """Removing from edge 0 decides nothing, elsewhere `skip_connect` is clearly the worst."""

    def score(self, key, mask):
        mask = np.asarray(mask)
        noise = super().score(key, mask)[0] / 2**32
        worst = mask[0, 1:, 1].sum()
        alike = mask[0, 0].sum() < 4
        return [100.0 + 10 * worst + (5 * noise if alike else 0.0), 100.0]


def lines(workdir):
    """The measurements by which a strategy among whole architectures decided."""
    every = [json.loads(line) for line in (workdir / "trace.jsonl").read_text().splitlines()]
    return [line for line in every if "round" not in line]


@pytest.mark.parametrize("name", CONFIGS)
def test_a_kill_changes_nothing(tmp_path, name):
    config = CONFIGS[name]
    expected = search(tmp_path / "whole", HashScorer(), config)
    with pytest.raises(InterruptedByTest):
        search(tmp_path / "killed", HashScorer(dies_at_call=11), config)
    resumed = search(tmp_path / "killed", HashScorer(7), config, resume=True)
    assert timeless(resumed) == timeless(expected)
    traces = [(tmp_path / run / "trace.jsonl").read_bytes() for run in ("whole", "killed")]
    assert traces[0] == traces[1]


def test_random_search_finds_the_best_rank_sum_of_its_sample(tmp_path):
    result = search(tmp_path, HashScorer(), CONFIGS["random"])
    values = {}
    for line in lines(tmp_path):
        values.setdefault(line["genotype"], []).append((line["kappa"], line["regions"]))
    assert len(values) == result["evaluations"] == 30
    means = {name: np.mean(each, 0) for name, each in values.items()}
    kappas = sorted({mean[0] for mean in means.values()})
    regions = sorted({mean[1] for mean in means.values()}, reverse=True)
    sums = {n: (kappas.index(m[0]) + regions.index(m[1]), m[0]) for n, m in means.items()}
    assert result["genotype"] == min(sums, key=sums.get)


def test_singular_architectures_are_never_the_best(tmp_path):
    result = search(tmp_path, HashScorer(singular=180), CONFIGS["random"])
    finite = {line["genotype"] for line in lines(tmp_path) if line["kappa"] == "inf"}
    assert result["nonfinite"] > 20
    assert result["genotype"] not in finite


def test_evolution_climbs_and_keeps_its_budget(tmp_path):
    result = search(tmp_path, CountingScorer(), CONFIGS["evolution"])
    names = [line["genotype"] for line in lines(tmp_path)][::2]
    assert len(names) == len(set(names)) == result["evaluations"] <= 60
    convolutions = [name.count("nor_conv_3x3") for name in names]
    assert np.mean(convolutions[-15:]) > np.mean(convolutions[:10]) + 1
    assert result["genotype"].count("nor_conv_3x3") == max(convolutions)


def test_exhaustive_search_measures_isomorphic_architectures_once(tmp_path):
    config = SearchConfig(strategy="exhaustive", repeats=1)
    result = search(tmp_path, CountingScorer(batch_rows=5425), config)
    names = [line["genotype"] for line in lines(tmp_path)]
    assert len(set(names)) == len(names) == result["evaluations"] == 5425
    assert result["genotype"].count("nor_conv_3x3") == 6


def test_a_metric_turned_round_leads_the_other_way(tmp_path):
    found = {}
    for sign in ("", "-"):
        config = SearchConfig(
            strategy="random", repeats=1, metrics=f"kappa,{sign}regions", combination="regions"
        )
        scorer = CountingScorer(batch_rows=100)
        scorer.metrics = look_up(config).metrics
        found[sign] = search(tmp_path / f"turned{sign}", scorer, config)["genotype"]
    measured = [line["genotype"].count("nor_conv_3x3") for line in lines(tmp_path / "turned")]
    assert found[""].count("nor_conv_3x3") == max(measured) > 2
    assert found["-"].count("nor_conv_3x3") == min(measured) == 0


@pytest.mark.parametrize("strategy", ["random", "evolution", "shortlist", "exhaustive"])
def test_constraints_are_kept(tmp_path, strategy):
    config = SearchConfig(
        strategy=strategy, repeats=1, budget=40, flops="52M:60M", parameters=":0.41M"
    )
    search(tmp_path, CountingScorer(batch_rows=500), config)
    masks = [from_string(NAS_BENCH_201, line["genotype"]) for line in lines(tmp_path)]
    flops, parameters = NAS_BENCH_201.costs(np.stack(masks))[::-1]
    assert 52e6 <= flops.min() <= flops.max() <= 60e6
    assert parameters.max() <= 0.41e6
    everything = enumeration.enumerate_all(NAS_BENCH_201)
    costs = NAS_BENCH_201.costs(everything)
    allowed = (costs.flops >= 52e6) & (costs.flops <= 60e6) & (costs.parameters <= 0.41e6)
    if strategy == "shortlist":
        assert flops.min() >= np.sort(costs.flops[allowed])[-40]
    classes = len(first_of_each_class(NAS_BENCH_201, everything[allowed])[0])
    measured = {"exhaustive": [classes], "evolution": range(21, 41)}.get(strategy, [40])
    assert allowed.sum() == 540
    assert len(masks) in measured


def test_constraints_in_a_space_too_large_to_list():
    config = SearchConfig(space="darts", strategy="random", budget=30, flops=":450M")
    work = next(get_strategy("random")(look_up(config)))
    masks = np.stack([row.mask for row in work.rows[:: config.repeats]])
    assert len(masks) == 30
    assert DARTS.costs(masks).flops.max() <= 450e6
    with pytest.raises(
        InputError, match=r"none of 20000 random .*: they have 2\d\dM to [67]\d\dM FLO"
    ):
        next(get_strategy("random")(look_up(dataclasses.replace(config, flops=":1M"))))


def test_no_architecture_keeps_to_the_constraints():
    config = SearchConfig(strategy="shortlist", flops=":1M")
    with pytest.raises(
        InputError, match=r"they have 7\.78M to 220M FLOPs and 0\.0733M to 1.53M par"
    ):
        next(get_strategy("shortlist")(look_up(config)))


def test_the_shortlist_of_a_space_too_large_to_list_are_the_largest_of_a_pool():
    config = SearchConfig(
        space="darts",
        strategy="shortlist",
        budget=5,
        repeats=1,
        shortlist=ShortlistConfig(by="parameters", pool=300),
    )
    masks = largest(look_up(config))
    pool = enumeration.sample(DARTS, 300, np.random.default_rng(config.seed))
    expected = np.sort(DARTS.costs(pool).parameters)[::-1][:5]
    assert DARTS.costs(masks).parameters.tolist() == expected.tolist()


def test_which_of_equally_large_ones_are_measured_depends_on_the_seed():
    def first(seed):
        problem = look_up(SearchConfig(strategy="shortlist", budget=60, seed=seed))
        return {NAS_BENCH_201.to_string(mask) for mask in largest(problem)}

    ours, others = first(0), first(1)
    assert len(ours) == len(others) == 60
    # 40 architectures have more FLOPs than the 90 that the others are drawn from.
    assert 40 <= len(ours & others) < 60


def test_repeats_of_architectures_go_to_those_that_may_be_the_first(tmp_path):
    class Noisy(HashScorer):
        def score(self, key, mask):
            noise = super().score(key, mask)[0] / 2**32
            threes = int(np.asarray(mask)[0, :, 3].sum())
            return [100.0 - 10 * threes + noise, 10.0]

    config = SearchConfig(
        strategy="shortlist",
        budget=25,
        repeats="auto",
        auto_repeats=AutoRepeatsConfig(minimum=2, maximum=7),
        flops=":185M",  # without the one of six 3 x 3 convolutions
    )
    result = search(tmp_path, Noisy(), config)
    repeats = Counter(line["genotype"] for line in lines(tmp_path))
    fives = {name for name in repeats if name.count("nor_conv_3x3") == 5}
    assert 6 <= len(fives) < 25
    assert {repeats[name] for name in repeats.keys() - fives} == {2}
    assert 2 < max(repeats.values()) <= 7
    assert result["genotype"] in fives
    # Those measured longest are those between which it was open.
    assert repeats[result["genotype"]] == max(repeats.values())


def test_repeats_go_where_the_decision_is_open(tmp_path):
    config = SearchConfig(repeats="auto", auto_repeats=AutoRepeatsConfig(minimum=3, maximum=8))
    result = search(tmp_path, NoisyScorer(), config)
    first = result["rounds"][0]["candidates"]
    by_edge = [[c["repeats"] for c in first if c["edge"] == edge] for edge in range(6)]
    assert by_edge[1:] == [[3] * 4] * 5
    assert max(by_edge[0]) > 3
    assert max(c["repeats"] for entry in result["rounds"] for c in entry["candidates"]) <= 8
    pruned = {(p["edge"], p["op"]) for p in result["rounds"][0]["pruned"]}
    assert pruned >= {(edge, "skip_connect") for edge in range(1, 6)}


def test_automatic_repeats_of_scores_without_noise_are_the_minimum(tmp_path):
    class Exact(HashScorer):
        def score(self, key, mask):
            return super().score(np.zeros(2, np.uint32), mask)

    auto = search(tmp_path / "auto", Exact(), SearchConfig(repeats="auto"))
    fixed = search(tmp_path / "fixed", Exact(), SearchConfig(repeats=3))
    assert auto["genotype"] == fixed["genotype"]
    assert auto["rounds"] == fixed["rounds"]


def test_probabilities_of_two_normal_means():
    # Two candidates, equal errors: P(first > second) of a normal difference is known.
    rng = np.random.default_rng(0)
    repeats = 400
    noise = rng.normal(size=(2, 1, repeats))
    noise -= noise.mean(-1, keepdims=True)
    noise /= noise.std(-1, ddof=1, keepdims=True)
    means = np.array([0.1, 0.0])
    differences = noise + means[:, None, None]
    probability = probabilities(differences, lambda m: m[:, 0] == m[:, 0].max(), seed=0, draws=4000)
    # (0.1 - 0) / sqrt(2 / 400) = 1.414 standard deviations: 0.9214
    assert probability.tolist() == pytest.approx([0.9214, 0.0786], abs=0.015)


def test_other_metrics_drive_the_same_pruning(tmp_path):
    class Scorer(HashScorer):
        metrics = (get_metric("naswot"), get_metric("kappa"), get_metric("flops"))

        def score(self, key, mask):
            kappa, regions = super().score(key, mask)
            return [-regions, kappa, 1.0]

    config = SearchConfig(metrics="naswot,kappa,flops")
    result = search(tmp_path, Scorer(), config)
    assert list(result["rounds"][0]["metrics"]) == ["naswot", "kappa", "flops"]
    assert {c["differences"]["flops"] for c in result["rounds"][0]["candidates"]} == {0.0}
    assert from_string(NAS_BENCH_201, result["genotype"]).sum() == 6


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"metrics": "kappa,speed"}, "unknown metric 'speed': choose from kappa, regions,"),
        ({"metrics": "kappa,kappa"}, "name a metric twice"),
        (
            {"metrics": "kappa", "combination": "regions"},
            "choose from sum, log_sum, min, max, kappa",
        ),
        ({"metrics": "naswot", "difference": "log"}, "needs positive metrics, not naswot"),
        ({"difference": "absolute"}, "choose one of relative, log"),
        ({"strategy": "greedy"}, "choose from prune, shortlist, random, evolution, exhaustive, or"),
        ({"strategy": "evolution", "repeats": "auto"}, "repeats auto is not for the strategy evol"),
        ({"metrics": "kappa,-kappa"}, "name a metric twice"),
        ({"metrics": "kappa,--snip"}, "unknown metric '-snip'"),
        ({"flops": ":120M"}, "flops and parameters are limits for whole architectures"),
        ({"strategy": "random", "flops": "120M"}, "must be an interval such as 50M:120M or"),
        ({"strategy": "random", "parameters": "2M:1M"}, "parameters 2M:1M holds nothing"),
        ({"budget": 0}, "budget must be an integer of at least 1, not 0"),
    ],
)
def test_bad_configurations(fields, fault):
    with pytest.raises(InputError, match=fault):
        get_strategy(look_up(SearchConfig(**fields)).config.strategy)


def test_bad_groups():
    with pytest.raises(InputError, match=r"must be at most evolution.population 5"):
        EvolutionConfig(population=5, tournament=6, children=2)
    with pytest.raises(InputError, match=r"auto_repeats.confidence must be in \[0.5, 1\), not 1.5"):
        AutoRepeatsConfig(confidence=1.5)
    with pytest.raises(InputError, match=r"auto_repeats.maximum must be an integer of at least 5"):
        AutoRepeatsConfig(minimum=5, maximum=4)

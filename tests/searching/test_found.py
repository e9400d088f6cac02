"""What was found is measured at the end: as many repeats as a round has, drawn anew, once."""

import dataclasses
import json

import numpy as np
import pytest
from fake_scorer import CONFIG, HashScorer, InterruptedByTest, search, timeless

from tenas_jax.architectures.genotype import from_string
from tenas_jax.searching.config import AutoRepeatsConfig, SearchConfig
from tenas_jax.searching.found import measured_at_the_end
from tenas_jax.searching.problem import look_up
from tenas_jax.searching.rows import Found, Row, Work
from tenas_jax.spaces import NAS_BENCH_201

SMALL = SearchConfig(budget=6, repeats=3, seed=2)
STRATEGIES = {
    "prune": CONFIG,
    "random": dataclasses.replace(SMALL, strategy="random"),
    "evolution": dataclasses.replace(SMALL, strategy="evolution"),
    "shortlist": dataclasses.replace(SMALL, strategy="shortlist"),
    "auto": dataclasses.replace(
        SMALL,
        strategy="shortlist",
        repeats="auto",
        auto_repeats=AutoRepeatsConfig(minimum=4, maximum=5),
    ),
}


def trace(workdir):
    return [json.loads(line) for line in (workdir / "trace.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_last_lines_of_the_trace_are_of_what_was_found(tmp_path, name):
    scorer = HashScorer()
    result = search(tmp_path, scorer, STRATEGIES[name])
    repeats = {"prune": 2, "auto": 4}.get(name, 3)
    lines = trace(tmp_path)
    last = lines[-repeats:]
    for line in lines[:-repeats]:
        assert "genotype" not in line or "round" not in line
    assert [(line["round"], line["repeat"], line["genotype"]) for line in last] == [
        (3 if name == "prune" else 1, repeat, result["genotype"]) for repeat in range(repeats)
    ]
    found = result["found"]
    assert found["repeats"] == repeats
    for metric in ("kappa", "regions"):
        values = [line[metric] for line in last]
        assert found["metrics"][metric] == np.mean(values)
        error = np.std(values, ddof=1) / np.sqrt(repeats)
        assert found["standard_errors"][metric] == pytest.approx(error, rel=1e-12)
    # Of draws that no decision was made by.
    mask = from_string(NAS_BENCH_201, result["genotype"]).tobytes()
    measured = [row for row in scorer.rows if np.frombuffer(row[1], bool).any()]
    assert [row[1] for row in measured[-repeats:]] == [mask] * repeats
    keys = [key for key, _ in measured]
    assert len(set(keys[-repeats:])) == repeats
    assert not set(keys[-repeats:]) & set(keys[:-repeats])


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("measured", [0, 1])
def test_a_kill_during_it_changes_nothing(tmp_path, name, measured):
    config = STRATEGIES[name]
    whole = HashScorer(batch_rows=1)
    expected = search(tmp_path / "whole", whole, config)
    dies = whole.calls - expected["found"]["repeats"] + measured
    with pytest.raises(InterruptedByTest):
        search(tmp_path / "killed", HashScorer(batch_rows=1, dies_at_call=dies), config)
    assert not (tmp_path / "killed" / "result.json").exists()
    last = HashScorer(batch_rows=1)
    assert timeless(search(tmp_path / "killed", last, config, resume=True)) == timeless(expected)
    assert last.calls == expected["found"]["repeats"] - measured
    files = [(tmp_path / run / "trace.jsonl").read_bytes() for run in ("whole", "killed")]
    assert files[0] == files[1]


def test_rounds_have_standard_errors_as_well(tmp_path):
    result = search(tmp_path)
    first = [line["kappa"] for line in trace(tmp_path)[:50] if line["op"] is None]
    entry = result["rounds"][0]
    assert entry["repeats"] == len(first) == 2
    assert entry["standard_errors"]["kappa"] == pytest.approx(abs(first[0] - first[1]) / 2)


def test_what_is_not_finite_has_no_standard_error(tmp_path):
    found = search(tmp_path, HashScorer(singular=256))["found"]
    assert found["metrics"]["kappa"] == "inf"
    assert found["standard_errors"]["kappa"] == "nan"
    assert found["standard_errors"]["regions"] >= 0


def test_progress_counts_it(tmp_path):
    seen = []
    search(tmp_path, HashScorer(batch_rows=1), STRATEGIES["random"], progress=seen.append)
    assert {each.total for each in seen} == {6 * 3 + 3}
    assert [each.done for each in seen if each.round == each.rounds] == [18, 19, 20, 21]
    assert seen[-1].seconds_left == 0


def test_own_strategies_need_not_know_of_it(tmp_path):
    """Its rows may be of any rounds; a note in between is handed on."""
    problem = look_up(CONFIG)
    mask = from_string(NAS_BENCH_201, "|none~0|+|none~0|none~1|+|none~0|none~1|none~2|")

    def own():
        values = yield Work([Row(7, 0, mask, {"mine": 0}), Row(2, 0, mask, {"mine": 1})], 0, 1, 0)
        assert values.shape == (2, 2)
        return Found(mask, 2, [])

    run = measured_at_the_end(problem, own())
    assert next(run).later == 2
    last = run.send(np.ones((2, 2)))
    assert [row.round for row in last.rows] == [8, 8]
    with pytest.raises(StopIteration) as end:
        run.send(np.array([[10.0, 5.0], [12.0, 5.0]]))
    assert end.value.value[1] == {
        "repeats": 2,
        "metrics": {"kappa": 11.0, "regions": 5.0},
        "standard_errors": {"kappa": 1.0, "regions": 0.0},
    }

"""The host loop against a naive one, and after every kind of interruption."""

import dataclasses
import json
import resource
import subprocess
import sys

import jax
import numpy as np
import pytest
from fake_scorer import CONFIG, HashScorer, InterruptedByTest, search, timeless

from tenas_jax.architectures import enumeration as architectures
from tenas_jax.architectures.genotype import from_string
from tenas_jax.architectures.isomorphism import first_of_each_class
from tenas_jax.errors import InputError
from tenas_jax.host.files import read_json
from tenas_jax.metrics.registry import KAPPA, METRICS
from tenas_jax.networks.ops import operators
from tenas_jax.searching.config import NTKConfig, SearchConfig
from tenas_jax.searching.loop import run_scores, search_settings
from tenas_jax.searching.problem import look_up
from tenas_jax.searching.te_nas import evaluations_per_round
from tenas_jax.spaces import DARTS, NAS_BENCH_201


def naive_search(score, seed, repeats):
    """The algorithm for NAS-Bench-201, operator by operator, without any of the library."""
    kept = {edge: [1, 2, 3, 4] for edge in range(6)}
    for round in range(3):
        round_key = jax.random.fold_in(jax.random.key(seed), round)
        keys = [jax.random.key_data(jax.random.fold_in(round_key, i)) for i in range(repeats)]

        def scores(ops_of, keys=keys):
            mask = np.zeros((1, 6, 5), bool)
            for edge, ops in ops_of.items():
                mask[0, edge, ops] = True
            return [score(key, mask) for key in keys]

        full, changes = scores(kept), {}
        for edge, ops in kept.items():
            for op in ops:
                rest = scores(kept | {edge: [other for other in ops if other != op]})
                changes[edge, op] = [
                    sum(round_to((f[i] - r[i]) / f[i], 3) for f, r in zip(full, rest, strict=True))
                    / repeats
                    for i in range(2)
                ]
        kappas = sorted({change[0] for change in changes.values()}, reverse=True)
        regions = sorted({change[1] for change in changes.values()})
        ranks = {
            place: (kappas.index(change[0]) + regions.index(change[1]), kappas.index(change[0]))
            for place, change in changes.items()
        }
        for edge, ops in kept.items():
            ops.remove(min(ops, key=lambda op, edge=edge: ranks[edge, op]))
    return kept


round_to = round


def test_a_search_equals_the_naive_one(tmp_path):
    result = search(tmp_path)
    kept = naive_search(HashScorer().score, CONFIG.seed, CONFIG.repeats)
    mask = from_string(NAS_BENCH_201, result["genotype"])
    assert {edge: [int(op)] for _, edge, op in np.argwhere(mask)} == kept
    assert result["evaluations"] == 24 + 18 + 12
    assert [len(entry["candidates"]) for entry in result["rounds"]] == [24, 18, 12]
    assert result["nonfinite"] == 0
    assert result["seconds"]["compile"] == 0.25
    assert read_json(tmp_path / "result.json", remedy="") == result
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.json",
        "trace.jsonl",
        "result.json",
    }


def test_the_trace_has_one_line_per_measurement_and_explains_the_result(tmp_path):
    result = search(tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "trace.jsonl").read_text().splitlines()]
    records = [line for line in lines if "cell" in line and "importance" not in line]
    places = [(r["round"], r["repeat"], r["cell"], r["edge"], r["op"]) for r in records]
    assert len(places) == len(set(places)) == 2 * (3 + 24 + 18 + 12)
    supernets = [r["kappa"] for r in records if r["round"] == 1 and r["op"] is None]
    assert len(supernets) == 2
    assert result["rounds"][1]["metrics"]["kappa"] == np.mean(supernets)
    for entry, following in zip(result["rounds"], result["rounds"][1:], strict=False):
        mask = np.array(entry["mask"])
        for place in entry["pruned"]:
            mask[0, place["edge"], NAS_BENCH_201.ops.index(place["op"])] = False
        np.testing.assert_array_equal(mask, following["mask"])


def test_the_trace_has_the_differences_of_each_round_and_their_standard_errors(tmp_path):
    result = search(tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "trace.jsonl").read_text().splitlines()]
    decided = [
        {"round": entry["round"], **candidate}
        for entry in result["rounds"]
        for candidate in entry["candidates"]
    ]
    for line in lines:
        del line["crc32"]
    assert [line for line in lines if "importance" in line] == decided
    first = [line for line in lines[:50] if (line["edge"], line["op"]) == (0, "nor_conv_1x1")]
    full = [line for line in lines[:50] if line["op"] is None]
    changes = [
        round((f["kappa"] - c["kappa"]) / f["kappa"], 3) for f, c in zip(full, first, strict=True)
    ]
    [candidate] = [c for c in decided[:24] if (c["edge"], c["op"]) == (0, "nor_conv_1x1")]
    assert candidate["repeats"] == 2
    assert candidate["differences"]["kappa"] == np.mean(changes)
    error = np.std(changes, ddof=1) / np.sqrt(2)
    assert candidate["standard_errors"]["kappa"] == pytest.approx(error, rel=1e-12)


def test_every_row_is_measured_once_and_repeats_differ_in_the_key_alone(tmp_path):
    scorer = HashScorer(batch_rows=1)
    search(tmp_path, scorer)
    assert len(scorer.rows) == len(set(scorer.rows)) == 2 * (3 + 24 + 18 + 12 + 1)
    first_round = scorer.rows[:50]
    assert [mask for _, mask in first_round[:25]] == [mask for _, mask in first_round[25:]]
    assert [len({key for key, _ in part}) for part in (first_round[:25], first_round[25:])] == [
        1,
        1,
    ]
    assert len({key for key, _ in scorer.rows}) == (3 + 1) * 2


def test_seeds_matter(tmp_path):
    other = dataclasses.replace(CONFIG, seed=6)
    first, second = search(tmp_path / "a"), search(tmp_path / "b", config=other)
    assert first["rounds"][0]["metrics"] != second["rounds"][0]["metrics"]


def test_three_kills_and_other_batch_sizes_change_nothing(tmp_path):
    expected = search(tmp_path / "whole", HashScorer(singular=20))
    workdir = tmp_path / "killed"
    resume = False
    for batch_rows, call in ((4, 0), (4, 3), (7, 5), (3, 11)):
        scorer = HashScorer(batch_rows, dies_at_call=call, singular=20)
        with pytest.raises(InterruptedByTest):
            search(workdir, scorer, resume=resume)
        resume = True
    last = HashScorer(5, singular=20)
    result = search(workdir, last, resume=True)
    assert timeless(result) == timeless(expected)
    trace = "trace.jsonl"
    assert (workdir / trace).read_bytes() == (tmp_path / "whole" / trace).read_bytes()
    measured_before = 3 * 4 + 5 * 7 + 11 * 3
    assert (
        last.calls == np.ceil((50 - 25 * 2) / 5) + np.ceil((38 + 50 - measured_before) / 5) + 6 + 1
    )
    assert expected["nonfinite"] > 0


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from fake_scorer import HashScorer, search
class Suicidal(HashScorer):
    def __call__(self, keys, masks):
        if self.calls == 9:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(keys, masks)
search(Path(sys.argv[2]), Suicidal())
"""


def test_a_killed_process_loses_no_more_than_its_batch(tmp_path, request):
    workdir = tmp_path / "killed"
    words = [sys.executable, "-c", KILLED, str(request.path.parents[1]), str(workdir)]
    assert subprocess.run(words, check=False).returncode == -9
    assert len((workdir / "trace.jsonl").read_bytes().splitlines()) == 9 * 4
    resumed, whole = search(workdir, resume=True), search(tmp_path / "whole")
    assert timeless(resumed) == timeless(whole)


@pytest.mark.parametrize("tear", [b'{"round": 0, "rep', b"\0" * 40, b"\xff\r\n", b"[1]\n"])
def test_a_torn_last_line_is_measured_again(tmp_path, tear):
    expected = search(tmp_path)
    complete = (tmp_path / "trace.jsonl").read_bytes()
    lines = complete.splitlines(keepends=True)
    (tmp_path / "trace.jsonl").write_bytes(b"".join(lines[:60]) + tear)
    (tmp_path / "result.json").unlink()
    assert timeless(search(tmp_path, resume=True)) == timeless(expected)
    assert (tmp_path / "trace.jsonl").read_bytes() == complete


def test_a_whole_record_without_its_newline_counts_as_torn(tmp_path):
    search(tmp_path)
    complete = (tmp_path / "trace.jsonl").read_bytes()
    (tmp_path / "trace.jsonl").write_bytes(complete[:-1])
    (tmp_path / "result.json").unlink()
    scorer = HashScorer()
    search(tmp_path, scorer, resume=True)
    assert scorer.calls == 1
    assert (tmp_path / "trace.jsonl").read_bytes() == complete


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda lines: [*lines[:3], b"{oops}\n", *lines[4:]], "line 4 is damaged"),
        (lambda lines: lines[1:], "line 1 is damaged or of another run"),
        (lambda lines: [*lines[:9], *lines[10:]], "line 10 is damaged"),
        (lambda lines: [*lines, lines[-1], lines[-1]], "line 171 is damaged"),
        (lambda lines: [*lines[:50], lines[51], *lines[51:]], "line 51 is damaged"),
        (lambda lines: [lines[0].replace(b"kappa", b"kapa"), *lines[1:]], "line 1 is damaged"),
        (lambda lines: [lines[0].replace(b'"op"', b'"x": 1, "op"'), *lines[1:]], "line 1 is damag"),
    ],
)
def test_a_trace_of_another_search_is_refused(tmp_path, change, fault):
    search(tmp_path)
    (tmp_path / "result.json").unlink()
    trace = tmp_path / "trace.jsonl"
    trace.write_bytes(b"".join(change(trace.read_bytes().splitlines(keepends=True))))
    before = trace.read_bytes()
    with pytest.raises(InputError, match=fault):
        search(tmp_path, resume=True)
    assert trace.read_bytes() == before
    assert not (tmp_path / "result.json").exists()


def test_a_finished_search_is_not_measured_again(tmp_path):
    expected = search(tmp_path)
    scorer = HashScorer()
    assert search(tmp_path, scorer, resume=True) == expected
    assert scorer.calls == scorer.compiled == 0


def test_another_search_is_refused_by_the_names_of_its_fields(tmp_path):
    search(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    other = dataclasses.replace(CONFIG, seed=8, ntk=NTKConfig(batch_size=30))
    for resume in (False, True):
        with pytest.raises(InputError, match=r"differs in the images, seed, ntk.batch_size:"):
            search(tmp_path, config=other, data_fingerprint="beef", resume=resume)
    with pytest.raises(InputError, match=r"differs in preset:"):
        search(tmp_path, preset="other", resume=True)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "config.json").write_text('{"of": "a training"}')
    with pytest.raises(InputError, match="holds something else: choose another --workdir"):
        search(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    assert (tmp_path / "config.json").read_text() == '{"of": "a training"}'


def test_resume_has_to_be_meant(tmp_path):
    with pytest.raises(InputError, match="holds no search to continue: leave out --resume"):
        search(tmp_path / "new", resume=True)
    with pytest.raises(InterruptedByTest):
        search(tmp_path, HashScorer(dies_at_call=0))
    with pytest.raises(InterruptedByTest):  # nothing was measured: starting again loses nothing
        search(tmp_path, HashScorer(dies_at_call=1))
    with pytest.raises(InputError, match="continue with --resume or choose another --workdir"):
        search(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="is of another version"):
        search(tmp_path, resume=True)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="is damaged"):
        search(tmp_path, resume=True)


def test_a_path_that_cannot_be_a_folder_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot use .*/file/run: Not a directory$"):
        search(tmp_path / "file" / "run")


@pytest.mark.parametrize(("limit", "file"), [(100, "config.json"), (3000, "trace.jsonl")])
def test_a_full_disk_leaves_nothing_half_written(tmp_path, limit, file):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(InputError, match=rf"cannot use .*/{file}: File too large$"):
            search(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".part")]
    if file == "trace.jsonl":
        lines = (tmp_path / file).read_bytes().splitlines(keepends=True)
        assert len(lines) % 4 == 0
        assert all(json.loads(line) and line.endswith(b"\n") for line in lines)
        search(tmp_path, resume=True)
    else:
        assert [path.name for path in tmp_path.iterdir()] == ["trace.jsonl"]
        search(tmp_path)


def test_singular_supernets_are_counted_and_written_as_strings(tmp_path):
    result = search(tmp_path, HashScorer(singular=256))
    assert result["nonfinite"] == 2 * (3 + 24 + 18 + 12 + 1)
    assert result["rounds"][0]["metrics"]["kappa"] == "inf"
    assert {c["differences"]["kappa"] for c in result["rounds"][0]["candidates"]} == {0.0}
    assert '"kappa": "inf"' in (tmp_path / "trace.jsonl").read_text()
    assert "Infinity" not in (tmp_path / "result.json").read_text()


@pytest.mark.parametrize(
    ("prune_number", "evaluations"),
    [(3, [196, 112]), (2, [196, 140, 84])],
    ids=["cifar", "imagenet"],
)
def test_darts_with_its_group_stage(tmp_path, prune_number, evaluations):
    config = SearchConfig(space="darts", repeats=1, prune_number=prune_number)
    groups = [3, 4, 5] * 2
    assert evaluations_per_round(DARTS, prune_number) == evaluations + groups
    with pytest.raises(InterruptedByTest):
        search(tmp_path / "a", HashScorer(32, dies_at_call=sum(evaluations) // 32 + 2), config)
    resumed = search(tmp_path / "a", HashScorer(10), config, resume=True)
    assert [len(entry["candidates"]) for entry in resumed["rounds"]] == evaluations + groups
    assert timeless(resumed) == timeless(search(tmp_path / "b", config=config))
    kept = from_string(DARTS, resumed["genotype"]).sum(axis=-1)
    for node in range(2, 6):
        assert kept[:, DARTS.incoming(node)].sum(axis=-1).tolist() == [2, 2]


def test_progress_counts_every_measurement(tmp_path):
    seen = []
    with pytest.raises(InterruptedByTest):
        search(tmp_path, HashScorer(dies_at_call=14))
    search(tmp_path, resume=True, progress=seen.append)
    done = [each.done for each in seen]
    assert done == sorted(done)
    assert (done[0], done[-1]) == (50, 116)
    assert {(each.rounds, each.total) for each in seen} == {(3, 116)}
    assert sorted({each.round for each in seen}) == [0, 1, 2, 3]
    assert seen[0].seconds_left is None  # nothing was measured by this process yet
    assert seen[-1].seconds_left == 0
    assert 0 < seen[-2].seconds_left < 60


class Part(HashScorer):
    """A scorer of some of the metrics of `HashScorer`."""

    def __init__(self, column, **options):
        super().__init__(**options)
        self.metrics = HashScorer.metrics[column : column + 1]
        self.column = column

    def score(self, key, mask):
        return [float(super().score(key, mask)[self.column])]


def test_scores_are_measured_by_one_scorer_after_the_other(tmp_path):
    """What there is after the first is in the file; killed and resumed nothing is different."""
    problem = look_up(dataclasses.replace(CONFIG, metrics="regions,kappa"))
    masks = architectures.sample(problem.space, 5, np.random.default_rng(0))
    settings = search_settings(problem, "test", "f00d")

    def scores(folder, scorers, **options):
        return run_scores(problem, masks, scorers, folder, settings=settings, **options)

    whole = scores(tmp_path / "a", [HashScorer()])
    with pytest.raises(InterruptedByTest):
        scores(tmp_path / "b", [Part(0), Part(1, dies_at_call=1)])
    header, *rows = (tmp_path / "b" / "scores.csv").read_text().splitlines()
    assert header == "genotype,kappa"
    assert [float(row.rpartition(",")[2]) for row in rows] == whole[:, 1].tolist()
    seen, parts = [], [Part(0), Part(1)]
    resumed = scores(tmp_path / "b", parts, resume=True, progress=seen.append)
    np.testing.assert_array_equal(resumed, whole)
    assert [part.compiled for part in parts] == [0, 1]
    assert [each.compiling for each in seen if each.compiling] == [("regions",)]
    assert seen[-1][:4] == (1, 2, 20, 20)
    seen.clear()
    scores(tmp_path / "c", [Part(0), Part(1)], progress=seen.append)
    files = [(tmp_path / name / "trace.jsonl").read_bytes() for name in "bc"]
    assert files[0] == files[1]
    left = {round: [each.seconds_left for each in seen if each.round == round] for round in (0, 1)}
    assert set(left[0]) == {None}  # the second one may be slower
    assert left[1][-1] == 0


TINY = dataclasses.replace(
    NAS_BENCH_201, name="tiny", operators=operators("none", "skip_connect", "nor_conv_1x1")
)


def test_of_all_architectures_isomorphic_ones_are_measured_once(tmp_path):
    """Each has a line, and its own parameters; those of a sample are all measured."""

    class Counting(HashScorer):
        metrics = METRICS["parameters"], KAPPA

        def __call__(self, keys, masks):
            kappa = super().__call__(keys, masks)[:, 0]
            return np.stack([METRICS["parameters"].count(TINY, masks), kappa], 1)

    config = dataclasses.replace(CONFIG, metrics="parameters,kappa")
    problem = look_up(config, TINY)
    settings = search_settings(problem, "test", "f00d")
    masks = architectures.enumerate_all(TINY)[::-1]
    first, inverse = first_of_each_class(TINY, masks)

    def scores(folder, masks, **options):
        scorer = Counting(batch_rows=50, **options)
        return run_scores(problem, masks, [scorer], folder, settings=settings, resume=None), scorer

    with pytest.raises(InterruptedByTest):
        scores(tmp_path / "a", masks, dies_at_call=2)
    values, scorer = scores(tmp_path / "a", masks)
    assert 0 < len(first) < 200 < len(masks) == 729
    assert scorer.calls == -(-2 * len(first) // 50) - 2
    trace = (tmp_path / "a" / "trace.jsonl").read_text().splitlines()
    assert len(trace) == 2 * len(first)
    np.testing.assert_array_equal(values[:, 0], TINY.costs(masks).parameters)
    assert (values[:, 0] > values[first][inverse][:, 0]).any()  # those of dead operators
    np.testing.assert_array_equal(values[:, 1], values[first][inverse][:, 1])
    assert len(set(values[:, 1])) == len(first)
    written = (tmp_path / "a" / "scores.csv").read_text().splitlines()
    assert written[1:] == [
        ",".join([TINY.to_string(mask), *map(repr, row)])
        for mask, row in zip(masks, values.tolist(), strict=True)
    ]
    sampled, _ = scores(tmp_path / "b", masks[1:])
    assert len(set(sampled[:, 1])) == 728

"""Files of a search that are not what a search wrote are refused, or made again."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from bit_flips import BAD, Scores, Search, Train, survey
from fake_scorer import CONFIG, HashScorer, InterruptedByTest, search, timeless

from tenas_jax.cli.describe import run as describe
from tenas_jax.errors import InputError
from tenas_jax.host.files import checksum, read_json, write_json
from tenas_jax.host.journal import append_journal
from tenas_jax.host.reproducibility import RECORDED, changes, environment, pinned
from tenas_jax.metrics.registry import KAPPA, REGIONS, Metric


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("search") / "whole"
    search(folder)
    return folder


@pytest.fixture
def run(whole, tmp_path):
    """A finished search of which a test changes files."""
    return shutil.copytree(whole, tmp_path / "run")


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def rewrite(folder, change):
    """Change the records of a trace, with checksums as they should be."""
    settings = read_json(folder / "config.json", remedy="")
    path = folder / "trace.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for record in records:
        del record["crc32"]
    change(records)
    path.write_text("")
    append_journal(path, records, checksum(settings))


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"kappa": -5}, "line 1: metric kappa is -5.0, but at least 1 by its definition"),
        ({"kappa": 0.5}, "line 1: metric kappa is 0.5, but at least 1 by its definition"),
        ({"kappa": "-inf"}, "line 1: metric kappa is -inf, but at least 1 by its definition"),
        ({"regions": 0}, "line 1: metric regions is 0.0, but at least 1 by its definition"),
        ({"kappa": True}, "line 1 is not the measurement"),
        ({"kappa": "12"}, "line 1 is not the measurement"),
        ({"kappa": None}, "line 1 is not the measurement"),
        ({"kappa": [3.0]}, "line 1 is not the measurement"),
        ({"kappa": 10**400}, "line 1 is not the measurement"),
        ({"round": 1}, "line 1 is not the measurement"),
        ({"op": "none"}, "line 1 is not the measurement"),
        ({"more": 1}, "line 1 is not the measurement"),
    ],
)
def test_values_that_a_measurement_cannot_have_are_refused(run, values, fault):
    rewrite(run, lambda records: records[0].update(values))
    before = contents(run)
    with pytest.raises(InputError, match=fault):
        search(run, resume=True)
    assert contents(run) == before


@pytest.mark.parametrize("value", ["inf", "nan"])
def test_measurements_that_are_not_finite_are_read(run, value):
    (run / "result.json").unlink()
    rewrite(
        run, lambda records: (records[0].update(kappa=value), records.__delitem__(slice(8, None)))
    )
    assert search(run, resume=True)["nonfinite"] == 1


@pytest.mark.parametrize(("value", "fault"), [(0.25, "kappa is 0.25, but at least 1"), (None, "")])
def test_a_scorer_that_gives_such_a_value_is_refused_at_once(tmp_path, value, fault):
    class Wrong(HashScorer):
        def __call__(self, keys, masks):
            values = super().__call__(keys, masks)
            values[2, 0] = values[2, 0] if value is None else value
            return values

    if value is None:
        search(tmp_path, Wrong())
        return
    with pytest.raises(InputError, match=fault):
        search(tmp_path, Wrong())
    assert (tmp_path / "trace.jsonl").read_bytes() == b""


def test_metrics_know_their_smallest_value():
    assert (KAPPA.minimum, REGIONS.minimum) == (1, 1)
    assert Metric("m", 1, len, positive=True).minimum == 0
    assert Metric("m", 1, len).minimum == -np.inf


@pytest.mark.parametrize("digit", range(0, 100, 9))
def test_a_digit_changed_in_the_trace_never_changes_the_result(run, whole, digit):
    trace = run / "trace.jsonl"
    content = bytearray(trace.read_bytes())
    places = [i for i, byte in enumerate(content) if chr(byte).isdigit()]
    place = places[digit * len(places) // 100]
    content[place] = ord("0") + (content[place] - ord("0") + 1) % 10
    trace.write_bytes(content)
    (run / "result.json").unlink()
    with pytest.raises(InputError, match=r"line \d+ is damaged or of another run: delete it and"):
        search(run, resume=True)
    # The remedy of the message.
    line = content[:place].count(b"\n")
    trace.write_bytes(b"".join(bytes(content).splitlines(keepends=True)[:line]))
    assert timeless(search(run, resume=True)) == timeless(
        read_json(whole / "result.json", remedy="")
    )
    assert trace.read_bytes() == (whole / "trace.jsonl").read_bytes()


def test_the_trace_of_another_seed_is_foreign(run, tmp_path):
    search(tmp_path / "other", config=dataclasses.replace(CONFIG, seed=6))
    shutil.copy(tmp_path / "other" / "trace.jsonl", run)
    with pytest.raises(InputError, match="line 1 is damaged or of another run"):
        search(run, resume=True)


@pytest.mark.parametrize(
    "change",
    [
        {"genotype": "|none~0|+|none~0|none~1|+|none~0|none~1|none~2|"},
        {"seed": 6},
        {"evaluations": 55},
        {"nonfinite": 1},
        {"rounds": []},
        {"found": None},
        {"preset": "other"},
    ],
)
@pytest.mark.parametrize("sealed", [True, False])
def test_a_result_that_does_not_follow_from_the_trace_is_refused(run, whole, change, sealed):
    path = run / "result.json"
    result = {**json.loads(path.read_text()), **change}
    if sealed:
        del result["crc32"]
        write_json(path, result)
    else:
        path.write_text(json.dumps(result))
    before, scorer = contents(run), HashScorer()
    fault = "is not the result of the trace beside it" if sealed else "is damaged"
    with pytest.raises(InputError, match=f"{fault}: delete it, and --resume derives it from"):
        search(run, scorer, resume=True)
    assert contents(run) == before
    if not sealed:
        with pytest.raises(InputError, match="is damaged: name the genotype instead"):
            describe([str(run)])
    path.unlink()
    assert timeless(search(run, scorer, resume=True)) == timeless(
        read_json(whole / "result.json", remedy="")
    )
    assert scorer.compiled == scorer.calls == 0


@pytest.mark.parametrize("name", ["config.json", "result.json"])
def test_files_of_the_version_before_have_no_checksums(run, name):
    value = json.loads((run / name).read_text())
    del value["crc32"]
    (run / name).write_text(json.dumps(value))
    with pytest.raises(InputError, match="has no checksum, so it is of another version: "):
        search(run, resume=True)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"jax": "0.0.1"}, r"jax \(0.0.1, here [\d.]+\)"),
        ({"numpy": "0.0.1"}, r"numpy \(0.0.1, here [\d.]+\)"),
        ({"platform": "tpu"}, r"platform \(tpu, here cpu\)"),
        ({"xla_flags": ["--xla_allow_excess_precision"]}, r"xla_flags \(.*, here \[.*\]\)"),
        (
            {"settings": {**environment()["settings"], "jax_random_seed_offset": "7"}},
            r"jax_random_seed_offset \(7, here 0\)",
        ),
    ],
)
def test_a_resume_elsewhere_is_refused(tmp_path, monkeypatch, change, fault):
    with pytest.raises(InterruptedByTest), monkeypatch.context() as patch:
        there = {**environment(), **change}
        patch.setattr("tenas_jax.searching.loop.environment", lambda: there)
        search(tmp_path, HashScorer(dies_at_call=3))
    before = contents(tmp_path)
    with pytest.raises(InputError, match=f"holds a search that differs in {fault}: give the same"):
        search(tmp_path, resume=True)
    assert contents(tmp_path) == before


def test_what_is_recorded_of_the_environment(monkeypatch):
    monkeypatch.setenv(
        "XLA_FLAGS", "--xla_dump_to=x --xla_b=1 --xla_force_host_platform_device_count=2 --xla_a=1"
    )
    recorded = environment()
    assert recorded["xla_flags"] == ["--xla_a=1", "--xla_b=1"]
    assert recorded["jax"] == jax.__version__
    assert recorded["settings"].keys() == set(RECORDED)
    with jax.default_matmul_precision("bfloat16"):
        assert environment()["settings"]["jax_default_matmul_precision"] == "bfloat16"
    assert changes(recorded, recorded) == []


class DrawingScorer(HashScorer):
    """Draws as networks and images are drawn, by a program that is traced where it runs."""

    def __call__(self, keys, masks):
        def draw(key):
            first, second = jax.random.split(key)
            weights = jax.random.normal(first, (5,))
            order = jax.random.permutation(second, 5)
            return (weights * weights + order).sum() + np.float32(1)

        drawn = jax.vmap(draw)(keys)
        assert drawn.dtype == np.float32
        return np.stack([np.asarray(drawn) + 1 + masks.sum((1, 2, 3)), masks.sum((1, 2, 3)) + 1], 1)


@pinned()
def drawn(folder):
    search(folder, DrawingScorer(batch_rows=64), config=dataclasses.replace(CONFIG, repeats=1))
    return (folder / "trace.jsonl").read_bytes()


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    return drawn(tmp_path_factory.mktemp("usual"))


@pytest.mark.parametrize(
    "setting",
    [
        lambda: jax.enable_x64(True),
        lambda: jax.threefry_partitionable(False),
        lambda: jax.default_prng_impl("rbg"),
        lambda: jax.numpy_dtype_promotion("strict"),
    ],
    ids=["x64", "partitionable", "rbg", "promotion"],
)
def test_settings_of_jax_change_no_numbers(usual, tmp_path, setting):
    with setting():
        assert drawn(tmp_path) == usual


@pytest.mark.parametrize("run", [Search(), Scores(), Train()], ids=lambda run: type(run).__name__)
def test_a_flipped_bit_is_found_or_harmless(run, tmp_path):
    counts, bad = survey(run, flips=60, where=tmp_path)
    assert not bad
    assert not {outcome for _, outcome in counts} & set(BAD)
    assert sum(counts.values()) == 60
    refused = {name for name, outcome in counts if outcome == "refused"}
    assert {"config.json"} <= refused

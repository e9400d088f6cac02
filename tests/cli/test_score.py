"""`tenas score`: a row for each architecture, whatever happens on the way."""

import csv

import jax
import numpy as np
import pytest
from fake_scorer import HashScorer, InterruptedByTest

from tenas_jax import api, cli
from tenas_jax.architectures.genotype import from_string
from tenas_jax.cli import session
from tenas_jax.data.images import ImageSet
from tenas_jax.searching import scorer as scoring
from tenas_jax.spaces import NAS_BENCH_201

ONE = "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|none~0|none~1|avg_pool_3x3~2|"
TWO = "|none~0|+|none~0|skip_connect~1|+|none~0|none~1|avg_pool_3x3~2|"
METRICS = ["--metrics", "kappa,regions"]


@pytest.fixture
def scorer(monkeypatch, tmp_path):
    """Replaces what takes long: images, devices, measurements; runs in an empty folder."""
    fake = HashScorer(batch_rows=4)
    images = ImageSet(np.zeros((80, 32, 32, 3), np.uint8), (0.5,) * 3, (0.2,) * 3, "photos")

    def make_scorer(*_, **__):
        fake.compiled = 0
        return fake

    monkeypatch.setattr(api, "load_images", lambda *_, **__: images)
    monkeypatch.setattr(session, "configure_jax", lambda _: jax.devices("cpu")[:1])
    monkeypatch.setattr(scoring, "make_scorer", make_scorer)
    monkeypatch.chdir(tmp_path)
    return fake


def rows(path):
    with open(path) as file:
        return list(csv.reader(file))


def test_scores_are_the_means_over_the_repeats(scorer, capsys, tmp_path):
    assert cli.main(["score", ONE, TWO, "--repeats", "3", "--seed", "7", *METRICS]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    [folder] = (tmp_path / "tenas-runs").iterdir()
    assert folder.name.startswith("nas-bench-201-scores-seed7-")
    path = f"tenas-runs/{folder.name}/scores.csv"
    assert out.splitlines()[0].startswith("nas-bench-201: 2 architectures of nas-bench-201, 80 im")
    assert " 3 repeats each, random labels" in " ".join(out.split())
    assert out.splitlines()[-1] == f"scores are in {path}"
    header, *scored = rows(tmp_path / path)
    assert header == ["genotype", "kappa", "regions"]
    assert [row[0] for row in scored] == [ONE, TWO]
    first = jax.random.fold_in(jax.random.key(7), 0)
    for text, *values in scored:
        keys = [jax.random.key_data(jax.random.fold_in(first, repeat)) for repeat in range(3)]
        expected = np.mean([scorer.score(key, from_string(NAS_BENCH_201, text)) for key in keys], 0)
        assert list(map(float, values)) == expected.tolist()


def test_scores_of_few_architectures_are_printed(scorer, capsys, tmp_path):
    assert cli.main(["score", ONE, "--workdir", "one", *METRICS]) == 0
    facts, *_, genotype, heading, kappa, regions, last = capsys.readouterr().out.splitlines()
    assert facts.startswith("nas-bench-201: 1 architecture of nas-bench-201, 80 images of photos, ")
    assert " 1 repeat each, " in facts
    [_, values] = rows(tmp_path / "one" / "scores.csv")
    assert (genotype, heading.split()) == (f"1  {ONE}", ["metric", "1"])
    assert kappa.split() == ["kappa", f"{float(values[1]):.5g}"]
    assert regions.split() == ["regions", f"{float(values[2]):.5g}"]
    assert last == "scores are in one/scores.csv"
    assert cli.main(["score", "--sample", "5", "--workdir", "five", *METRICS]) == 0
    out = capsys.readouterr().out
    assert [line.split() for line in out.splitlines() if line.startswith("metric")] == [
        ["metric", "1", "2", "3", "4", "5"]
    ]
    genotypes = [row[0] for row in rows(tmp_path / "five" / "scores.csv")[1:]]
    assert all(f"\n{number}  {text}\n" in out for number, text in enumerate(genotypes, start=1))
    assert cli.main(["score", "--sample", "6", "--workdir", "six", *METRICS]) == 0
    assert "metric" not in capsys.readouterr().out


def test_scores_that_were_edited_are_not_correlated(scorer, capsys, tmp_path):
    words = ["score", ONE, TWO, "--workdir", "run", *METRICS]
    assert cli.main(words) == 0
    path = tmp_path / "run" / "scores.csv"
    whole = path.read_text()
    table = tmp_path / "table.csv"
    rows = [f"{text},{80 + i},1,1" for i, text in enumerate((ONE, TWO))]
    table.write_text("\n".join(["arch,cifar10_test,params_m,flops_m", *rows]))
    correlate = ["correlate", str(path), "--accuracy-table", str(table), "--resamples", "10"]
    path.write_text(whole.replace(".", "1.", 1))
    capsys.readouterr()
    assert cli.main(correlate) == 2
    assert capsys.readouterr().err == (
        f"tenas: {path} is damaged or edited (scores.csv is not the file that was written): write "
        f"it again by tenas score --resume, or delete {path.parent / 'SHA256SUMS'} to use it as it "
        "is\n"
    )
    assert cli.main([*words, "--resume"]) == 0
    assert path.read_text() == whole
    assert cli.main(correlate) == 0
    path.write_text(whole.replace(".", "1.", 1))
    (path.parent / "SHA256SUMS").unlink()
    assert cli.main(correlate) == 0


def test_a_file_a_sample_and_a_preset(scorer, tmp_path):
    (tmp_path / "list").write_text(f"{ONE}\n\n{TWO}\n")
    assert cli.main(["score", "--file", "list", "--workdir", "a", *METRICS]) == 0
    assert [row[0] for row in rows(tmp_path / "a" / "scores.csv")] == ["genotype", ONE, TWO]
    words = ["score", "darts-cifar10", "--sample", "3", "--workdir", "b", *METRICS]
    assert cli.main(words) == 0
    assert all(row[0].startswith("Genotype(") for row in rows(tmp_path / "b" / "scores.csv")[1:])


TINY = """import dataclasses
from tenas_jax.networks.ops import operators
from tenas_jax.spaces import NAS_BENCH_201

TINY = dataclasses.replace(NAS_BENCH_201, name="tiny", operators=operators("none", "skip_connect"))
"""


def test_of_all_architectures_isomorphic_ones_are_measured_once(scorer, capsys, tmp_path):
    """Sums of 0 to 4 paths, each the identity: 64 architectures are five networks."""
    (tmp_path / "tiny_space.py").write_text(TINY)
    words = ["score", "--space", "tiny_space:TINY", "--all", "--workdir", "run", *METRICS]
    assert cli.main(words) == 0
    said = "architectures of tiny (5 to measure, the others are isomorphic), 80 images"
    assert f"custom: 64 {said}" in capsys.readouterr().out
    _, *scored = rows(tmp_path / "run" / "scores.csv")
    assert len({row[0] for row in scored}) == len(scored) == 64
    assert len({tuple(row[1:]) for row in scored}) == 5
    assert len((tmp_path / "run" / "trace.jsonl").read_text().splitlines()) == 5


def test_an_interrupted_run_goes_on(scorer, capsys, tmp_path):
    words = ["score", "--sample", "11", *METRICS]
    assert cli.main([*words, "--workdir", "whole"]) == 0
    scorer.dies_at_call = scorer.calls + 2
    with pytest.raises(InterruptedByTest):
        cli.main([*words, "--workdir", "killed"])
    scorer.dies_at_call, measured = None, scorer.calls
    assert not (tmp_path / "killed" / "scores.csv").exists()
    assert cli.main([*words, "--workdir", "killed"]) == 2
    assert "continue with --resume" in capsys.readouterr().err
    assert cli.main([*words, "--workdir", "killed", "--resume"]) == 0
    assert scorer.calls == measured + 1
    paths = [tmp_path / run / "scores.csv" for run in ("whole", "killed")]
    assert paths[0].read_bytes() == paths[1].read_bytes()


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        ([], "no architecture to score: give genotypes, --file, --sample or --all"),
        ([ONE, "--all"], "give either genotypes, --file, --sample or --all"),
        ([ONE, ONE], "is given twice"),
        (["--file", "nowhere"], "cannot use nowhere: No such file or directory"),
        (["--sample", "0"], "sample must be at least 1, not 0"),
        (["--sample", "20000"], "has 15625 architectures, not 20000: ask for fewer"),
        (["darts-cifar10", "--all"], "architectures, too many to measure all"),
        (["darts-cifar10", ONE], "Genotype"),
        ([ONE.replace("skip_connect", "skip")], "'skip'"),
        ([ONE, "--metrics", "speed"], "unknown metric 'speed': choose from kappa, regions,"),
        ([ONE, "--repeats", "auto"], "repeats auto is for tenas search: give a number"),
        ([ONE, "--seed", "x"], "(see tenas score --help)"),
    ],
)
def test_bad_input_is_one_line(scorer, capsys, words, fault):
    assert cli.main(["score", *words]) == 2
    error = capsys.readouterr().err
    assert fault in error
    assert error.startswith("tenas: ")
    assert error.index("\n") == len(error) - 1
    assert scorer.calls == 0


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_files_of_windows_editors_are_read(scorer, tmp_path, encoding):
    text = f"{ONE}\r\n\r\n(1, 0, 1, 1, 1, 1)\r\n"
    (tmp_path / "list.txt").write_bytes(text.encode(encoding))
    assert cli.main(["score", "--file", "list.txt", "--workdir", "run", *METRICS]) == 0
    second = "|none~0|+|skip_connect~0|none~1|+|none~0|none~1|none~2|"
    assert [row[0] for row in rows(tmp_path / "run" / "scores.csv")] == ["genotype", ONE, second]


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (f"{ONE}\n\n{ONE[:-1]}\n".encode(), "list.txt, line 3: not a genotype of nas-bench-201: "),
        (b"\xff\xff", "list.txt is not text: its byte 1 is not UTF-8; save it as UTF-8"),
        (b"\n", "no architecture to score"),
    ],
)
def test_files_that_list_no_architectures(scorer, tmp_path, capsys, content, fault):
    (tmp_path / "list.txt").write_bytes(content)
    assert cli.main(["score", "--file", "list.txt", *METRICS]) == 2
    error = capsys.readouterr().err
    assert fault in error and error.count("\n") == 1


def test_help_says_which_labels_there_are(capsys):
    with pytest.raises(SystemExit):
        cli.main(["score", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "need labels: random ones by default, those of the data with --labels own." in shown

"""The command line: one line and exit code 2 for bad input, files and summary for good input."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from types import SimpleNamespace
from unittest.mock import Mock

import jax
import numpy as np
import pytest
from fake_scorer import HashScorer
from genotypes import bench_text

from tenas_jax import api, cli, configs
from tenas_jax.analysis import report
from tenas_jax.cli import search, session
from tenas_jax.data.images import ImageSet
from tenas_jax.errors import InputError
from tenas_jax.host import devices as runtime
from tenas_jax.searching import scorer as scoring
from tenas_jax.searching.config import GROUPS
from tenas_jax.spaces import NAS_BENCH_201

WRITE_PLOTS = report.write_plots


@pytest.fixture
def scorer(monkeypatch, tmp_path):
    """Replaces what takes long: images, devices, measurements, plots; runs in an empty folder."""
    fake = HashScorer(batch_rows=16)
    images = ImageSet(np.zeros((80, 32, 32, 3), np.uint8), (0.5,) * 3, (0.2,) * 3, "photos")
    monkeypatch.setattr(api, "load_images", lambda *_, **__: images)
    monkeypatch.setattr(session, "configure_jax", lambda _: jax.devices("cpu")[:1])
    monkeypatch.setattr(scoring, "make_scorer", lambda *_, **__: fake)
    monkeypatch.setattr(report, "write_plots", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    return fake


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        ("serch", "unknown command 'serch': choose one of search, score, correlate"),
        ("search resnet", "unknown preset 'resnet': choose from nas-bench-201, nas-bench-201-be"),
        (
            "search --sede 3",
            "Unrecognized options: --sede, 3: did you mean --seed? (see tenas search --help)",
        ),
        ("search --repeat=3", "options: --repeat=3: did you mean --repeats? (see tenas search --h"),
        ("search --ntk.chanels 3", "--ntk.chanels, 3: did you mean --ntk.channels? (see"),
        ("score --metric kappa --seeed 4", "kappa, --seeed, 4: did you mean --metrics, --seed? (s"),
        ("search --seed 3 nas-bench-201", "Unrecognized options: nas-bench-201 (see"),
        ("search --seed x", "Error parsing --seed: invalid literal for int()"),
        ("search --seed", "argument '--seed': expected 1 value (see tenas search --help)"),
        (
            "search --metrics -snip",
            "'--metrics': expected 1 value; write --metrics=-snip (see tenas",
        ),
        ("search --seed -1", "seed must be an integer of at least 0, not -1"),
        ("search --repeats 0", "repeats must be an integer of at least 1, not 0"),
        ("search --ntk.batch-size 1", "ntk.batch_size must be an integer of at least 2, not 1"),
        ("search --ntk.engine auto", "choose one of chunked, neural-tangents"),
        ("search --regions.initializer he", "unknown initializer 'he': choose from"),
        ("search --images 10", "images 10 is less than ntk.batch_size 72"),
        ("search --space nats", "'nats'"),
        ("search --combination mean", "choose from sum, log_sum, min, max, kappa, regions"),
        ("search --devices 0", "devices must be at least 1, not 0"),
        ("search --compilation-cache-mb 0", "compilation-cache-mb must be at least 1, not 0"),
        ("search --compilation-cache-mb 1.5", "Error parsing --compilation-cache-mb: invalid"),
        ("search --resume", "tenas-runs/nas-bench-201-seed0 holds no search to continue"),
        ("search --workdir /dev/null/run", "cannot use /dev/null/run: Not a directory"),
    ],
)
def test_bad_input_is_one_line(scorer, capsys, words, fault):
    assert cli.main(words.split()) == 2
    error = capsys.readouterr().err
    assert fault in error
    assert error.startswith("tenas: ")
    assert error.index("\n") == len(error) - 1
    assert scorer.calls == 0


def test_long_values_and_line_breaks_stay_one_line(scorer, capsys):
    assert cli.main(["search", "--seed", "a\nb" + "c " * 200]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_process_ends_with_the_line_and_exit_code_2(tmp_path, encoding):
    main = "import sys; from tenas_jax.cli import main; sys.exit(main())"
    run = subprocess.run(
        [sys.executable, "-c", main, "search", "--sede", "3"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONIOENCODING": encoding},
        capture_output=True,
        check=False,
    )
    assert run.returncode == 2
    assert run.stdout == b""
    assert run.stderr == (
        b"tenas: Unrecognized options: --sede, 3: did you mean --seed? (see tenas search --help)\n"
    )


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_alone_it_explains_itself(capsys, words):
    assert cli.main(words) == 0
    assert "search" in capsys.readouterr().out


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert re.fullmatch(r"tenas_jax \d+\.\d+.*\n", capsys.readouterr().out)


def help_of(capsys, *words):
    with pytest.raises(SystemExit) as exit:
        cli.main(list(words))
    assert exit.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", ["search", "score", "train", "correlate"])
def test_help_fits_two_screens(capsys, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "100")
    assert len(help_of(capsys, command, "--help").splitlines()) <= 100


@pytest.mark.parametrize("command", ["search", "score"])
def test_help_says_where_the_rest_is(capsys, command):
    brief, verbose = (help_of(capsys, command, flag) for flag in ("--help", "--help-verbose"))
    for text in (brief, verbose):
        assert "tenas list presets" in text
        assert "--help-verbose explains every flag; tenas list names presets, spaces," in text
    assert set(re.findall(r"--[a-z][\w.-]+", verbose)) == set(re.findall(r"--[a-z][\w.-]+", brief))


def test_verbose_help_explains_every_field(capsys):
    text = help_of(capsys, "search", "--help-verbose")
    flags = {
        f"--{group}{name}".replace("_", "-")
        for group, values in [("", configs.get_preset("nas-bench-201").to_dict())]
        for name in values
    } - {f"--{group}".replace("_", "-") for group in GROUPS}
    flags |= {"--ntk.batch-size", "--regions.patch-size", "--workdir", "--resume", "--devices"}
    for flag in flags:
        assert re.search(rf"{flag} .*\n?.*[A-Z]", text), flag


def test_flags_default_to_the_preset():
    preset, options = search.parse_search(["nas-bench-201-paper", "--ntk.batch-size", "16"])
    assert preset == "nas-bench-201-paper"
    assert options.config.ntk.batch_size == 16
    assert options.config.ntk.initializer == "kaiming_normal_fan_out"
    assert options.config.decimals is None
    assert search.parse_search(["--decimals", "None"])[1].config.decimals is None
    assert search.parse_search([])[1].config == configs.get_preset("nas-bench-201")


def test_a_search_prints_a_line_per_round_and_the_summary(scorer, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(report, "write_plots", WRITE_PLOTS)
    monkeypatch.setattr("tenas_jax.searching.progress.INTERVAL", 1e6)  # no line on a slow machine
    assert cli.main(["search", "--seed", "4"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    workdir = tmp_path / "tenas-runs" / "nas-bench-201-seed4"
    assert {path.name for path in workdir.iterdir()} == {
        *("config.json", "trace.jsonl", "result.json"),
        *("trajectory.png", "pruning.png", "cell.png"),
    }
    lines = out.splitlines()
    assert lines[0].startswith("nas-bench-201: space nas-bench-201, 80 images of photos, 1 x cpu, ")
    assert lines[0].endswith("24 evaluations in round 1, 3 repeats each")
    compiling = "round 1 of 3, compiling kappa, regions"
    begin = [(compiling, 0), ("round 1 of 3", 0)]
    later = [("round 2 of 3", 75), ("round 3 of 3", 132), ("found architecture", 171)]
    for i, (name, done) in enumerate(begin + later, start=1):
        start = re.escape(f"{name}: {done} of 174 measurements done, ")
        time = r"\d+( min \d+)? s"
        left = "" if i <= len(begin) else f", about {time} left"
        assert re.fullmatch(f"{start}{time} elapsed{left}", lines[i])
    assert re.search(r"(?m)^ *found +[\d.e+]+ ± [\d.e+]+ ", out)
    genotype = json.loads((workdir / "result.json").read_text())["genotype"]
    assert f"\ngenotype {genotype}\n" in out
    assert lines[-1] == "files are in tenas-runs/nas-bench-201-seed4"


def test_an_accuracy_table_is_asked_for_what_was_found(scorer, capsys, tmp_path):
    assert cli.main(["search", "--workdir", "first"]) == 0
    found = json.loads((tmp_path / "first" / "result.json").read_text())["genotype"]
    best = ["none", *["nor_conv_3x3"] * 5]
    others = [bench_text(*[op] * 6) for op in NAS_BENCH_201.ops]
    texts = [*others, found, bench_text(*best)]
    rows = [f"{text},{80 + i},1,1" for i, text in enumerate(texts)]
    table = tmp_path / "table.csv"
    table.write_text("\n".join(["arch,cifar10_test,params_m,flops_m", *rows]))
    words = ["search", "--workdir", "first", "--resume"]
    assert cli.main([*words, "--accuracy-table", str(table)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "accuracy 85.00 %, rank 2 of 7, regret 1.00 %" in lines
    words = ["search", "darts-cifar10", "--accuracy-table", str(table)]
    assert cli.main(words) == 2
    assert "an accuracy table is of nas-bench-201, not of darts" in capsys.readouterr().err


def test_a_terminal_shows_a_bar(scorer, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    assert cli.main(["search"]) == 0
    out = capsys.readouterr().out
    assert "174/174" in out
    assert "found architecture" in out  # the last of its names, which is drawn at least once
    assert "measurements done" not in out


def test_a_second_search_in_the_same_folder_is_refused(scorer, capsys):
    assert cli.main(["search", "--workdir", "run"]) == 0
    capsys.readouterr()
    assert cli.main(["search", "--workdir", "run"]) == 2
    assert "already holds this search: continue with --resume" in capsys.readouterr().err
    assert cli.main(["search", "--workdir", "run", "--resume", "--repeats", "4"]) == 2
    assert "differs in repeats:" in capsys.readouterr().err
    calls = scorer.calls
    assert cli.main(["search", "--workdir", "run", "--resume"]) == 0
    assert scorer.calls == calls


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interruption_says_how_to_go_on(scorer, capsys, monkeypatch, number, code):
    measured = HashScorer.__call__

    def interrupted(self, keys, masks):
        if self.calls == 2:
            self.calls += 1
            signal.raise_signal(number)
        return measured(self, keys, masks)

    monkeypatch.setattr(HashScorer, "__call__", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # shells may ignore it
    try:
        assert cli.main(["search", "--workdir", "a run"]) == code
    finally:
        signal.signal(signal.SIGINT, before)
    error = capsys.readouterr().err
    assert error == "tenas: interrupted; continue with: tenas search --workdir 'a run' --resume\n"
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    scorer.compiled = 0
    assert cli.main(shlex.split(error.partition("with: ")[2])[1:]) == 0
    assert (
        len(scorer.rows) == 2 * 16 + (43 + 5) + (57 + 7) + (39 + 9) + 16
    )  # with padding of each round


def test_a_bug_shows_its_traceback(scorer, monkeypatch):
    monkeypatch.setattr(HashScorer, "__call__", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.main(["search"])


CONFIGURE = """
import os, sys
from tenas_jax.host.devices import Machine, configure_jax
devices = configure_jax(Machine(int(sys.argv[1]), sys.argv[2]))
threads = len(os.listdir("/proc/self/task"))
import scipy.linalg
print(len(os.listdir("/proc/self/task")) - threads)
import jax
jax.jit(lambda x: x + 1)(0)
print(len(devices), devices[0].platform, len(os.sched_getaffinity(0)))
print(jax.config.jax_compilation_cache_dir)
"""


@pytest.mark.parametrize(
    ("devices", "cache", "complaint"),
    [
        (3, "cache", ""),
        (
            3,
            "/dev/null/cache",
            "tenas: compiling without the cache /dev/null/cache: Not a directory\n",
        ),
        (1, "cache", ""),
    ],
)
def test_jax_starts_with_its_devices_and_cache(tmp_path, devices, cache, complaint):
    run = subprocess.run(
        [sys.executable, "-c", CONFIGURE, str(devices), cache],
        cwd=tmp_path,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=True,
    )
    lapack_threads, *lines = run.stdout.splitlines()
    assert lapack_threads == "0"
    cores = 1 if devices == 1 else len(os.sched_getaffinity(0))
    assert lines[0] == f"{max(2, devices)} cpu {cores}"
    assert lines[1] == (cache if complaint == "" else "None")
    assert run.stderr == complaint
    assert (tmp_path / "cache").is_dir() == (complaint == "")


def test_more_devices_than_there_are(monkeypatch):
    only = [Mock(spec=jax.Device, platform="gpu")]
    config = SimpleNamespace(update=lambda *_: None, jax_disable_jit=False)
    monkeypatch.setattr(runtime, "jax", SimpleNamespace(config=config, devices=lambda: only))
    assert runtime.configure_jax(runtime.Machine(1, runtime.NO_CACHE)) == only
    with pytest.raises(InputError, match="found 1 device, not 2: lower --devices"):
        runtime.configure_jax(runtime.Machine(2, runtime.NO_CACHE))

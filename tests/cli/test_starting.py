"""How a process starts and ends: signals, streams, backends, threads, memory."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import jax
import numpy as np
import pytest

from tenas_jax import cli
from tenas_jax.cli.messages import complain, how_to_go_on
from tenas_jax.errors import InputError
from tenas_jax.spaces import NAS_BENCH_201

MAIN = "import sys; from tenas_jax.cli import main; sys.exit(main())"
# Looked up here, so that no test waits for the imports.
NONE = NAS_BENCH_201.to_string(np.tile(np.arange(5) == 0, (1, 6, 1)))
# Shells ignore SIGINT in the background, where tests may run.
HANDLING = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
IGNORING = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
# Says when it is there, and then is like a compiler: deaf in one long call.
STUCK = """
import hashlib, sys
from tenas_jax import cli
from tenas_jax.cli import signals
def work(of_command):
    {before}
    print("there", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
class Command:
    run = staticmethod(lambda argv: signals.run_interruptibly(work, lambda: "how to go  on"))
cli.import_module = lambda name: Command
sys.argv = ["tenas", "search"]
sys.exit(cli.main())
"""


def process(program, *words, first=HANDLING, **options):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
    return subprocess.Popen([sys.executable, "-c", first + program, *words], **pipes)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_command_that_is_deaf(number, code):
    stuck = process(STUCK.format(before="pass"))
    assert stuck.stdout.readline() == "there\n"
    started = time.perf_counter()
    stuck.send_signal(number)
    assert stuck.communicate(timeout=30)[1] == "tenas: how to go  on\n"
    assert stuck.returncode == code
    assert time.perf_counter() - started < 1


def test_a_signal_may_be_noted_and_the_second_ends():
    stuck = process(STUCK.format(before="of_command.note_next()"))
    assert stuck.stdout.readline() == "there\n"
    stuck.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert stuck.poll() is None
    stuck.send_signal(signal.SIGINT)
    assert stuck.communicate(timeout=30)[1] == "tenas: how to go  on\n"
    assert stuck.returncode == 130


def test_signals_that_the_shell_ignores_are_ignored():
    stuck = process(STUCK.format(before="pass"), first=IGNORING)
    assert stuck.stdout.readline() == "there\n"
    stuck.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert stuck.poll() is None
    stuck.terminate()
    assert stuck.communicate(timeout=30)[1] == "tenas: how to go  on\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("module", ["jax", "tenas_jax.cli.search", "tyro"])
def test_a_signal_while_importing(number, module):
    """Comes as soon as a library's import has begun."""
    program = f"""
        import os, sys
        from tenas_jax.cli import main
        class Finder:
            def find_spec(name, *_):
                if name == {module!r}:
                    os.kill(os.getpid(), {int(number)})
        sys.meta_path.insert(0, Finder)
        sys.argv = ["tenas", "search", "--sede", "3"]
        sys.exit(main())
    """
    importing = process(textwrap.dedent(program))
    out, error = importing.communicate(timeout=60)
    assert (out, error) == ("", "tenas: interrupted\n")
    assert importing.returncode == 128 + number


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_leaving(number):
    program = f"""
        import atexit, os, signal, sys, time
        from tenas_jax.cli import main
        atexit.register(lambda: (os.kill(os.getpid(), {int(number)}), time.sleep(60)))
        sys.argv = ["tenas", "--version"]
        sys.exit(main())
    """
    leaving = process(textwrap.dedent(program))
    out, error = leaving.communicate(timeout=60)
    assert out.startswith("tenas_jax ") and error == ""
    assert leaving.returncode == -number  # as the shell shows 130 and 143


@pytest.mark.parametrize("words", [["--help"], ["search", "--help"], ["describe", NONE]])
def test_standard_output_that_is_full(words):
    with open("/dev/full", "w") as full:
        run = process(MAIN, *words, stdout=full)
        error = run.communicate(timeout=60)[1]
    assert error == "tenas: cannot use standard output: No space left on device\n"
    assert run.returncode == 2


def test_streams_that_are_narrow_or_closed(tmp_path):
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    path = tmp_path / "κ  ü.png"
    run = process(MAIN, "describe", NONE, "--output", str(path), env=environment)
    out, error = run.communicate(timeout=60)
    assert (run.returncode, error) == (0, "")
    assert out.endswith("\\u03ba  \\xfc.png\n")
    closed = subprocess.run(
        ["sh", "-c", '"$@" >&-', "sh", sys.executable, "-c", MAIN, "describe", NONE],
        capture_output=True,
        check=False,
    )
    assert (closed.returncode, closed.stderr) == (0, b"")


SEARCH, DESCRIBE = ["search", "--images", "80"], ["describe", NONE]


@pytest.mark.parametrize(
    ("environment", "words", "fault"),
    [
        ({"JAX_PLATFORMS": "cuda"}, SEARCH, "JAX cannot start on JAX_PLATFORMS=cuda"),
        ({"JAX_PLATFORMS": "cuda"}, DESCRIBE, "JAX cannot start on JAX_PLATFORMS=cuda"),
        ({"JAX_PLATFORMS": "abacus"}, SEARCH, "JAX cannot start on JAX_PLATFORMS=abacus (Unable t"),
        ({"JAX_DISABLE_JIT": "1"}, SEARCH, "JAX_DISABLE_JIT is set, and everything here is compil"),
    ],
)
def test_jax_that_cannot_start(tmp_path, environment, words, fault):
    if environment.get("JAX_PLATFORMS") == "cuda" and jax.devices()[0].platform == "gpu":
        pytest.skip("it can")
    run = process(MAIN, *words, cwd=tmp_path, env={**os.environ, **environment})
    error = run.communicate(timeout=60)[1]
    assert error.startswith(f"tenas: {fault}")
    assert error.count("\n") == 1
    assert run.returncode == 2


def test_jax_that_has_started(tmp_path):
    program = """
        import sys, jax
        jax.config.update("jax_num_cpu_devices", 2)
        jax.devices()
        from tenas_jax.host.devices import Machine, configure_jax
        print(len(configure_jax(Machine(2, "none"))))
        from tenas_jax.cli import main
        sys.argv = ["tenas", "search", "--images", "80", "--devices", "3"]
        sys.exit(main())
    """
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    run = process(textwrap.dedent(program), cwd=tmp_path, env=environment)
    out, error = run.communicate(timeout=60)
    assert out == "2\n"
    fault = "JAX has started with 2 CPU devices, not 3: start tenas in a process of its own"
    assert error == f"tenas: {fault}\n"
    assert run.returncode == 2


class Command:
    """Stands for the module of a command."""

    def __init__(self, run):
        self.run = run


def raising(error):
    def run(argv):
        raise error

    return Command(run)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            MemoryError("Unable to allocate 9 GB"),
            "out of memory (Unable to allocate 9 GB): use few",
        ),
        (
            jax.errors.JaxRuntimeError(
                "RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes\nmore"
            ),
            "out of memory (RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes): use fewer",
        ),
        (
            PermissionError(13, "Permission denied", "/etc/x"),
            "cannot use /etc/x: Permission denied",
        ),
        (InputError("a\nb  c"), "a b  c"),
    ],
)
def test_what_the_machine_refuses_is_one_line(monkeypatch, capsys, error, line):
    monkeypatch.setattr(cli, "import_module", lambda _: raising(error))
    assert cli.main(["search"]) == 2
    assert capsys.readouterr().err.startswith(f"tenas: {line}")


def test_a_bug_shows_its_traceback(monkeypatch):
    monkeypatch.setattr(cli, "import_module", lambda _: raising(RuntimeError("bug")))
    with pytest.raises(RuntimeError, match="bug"):
        cli.main(["search"])


def test_threads_and_event_loops(capsys):
    async def describe():
        assert cli.main(["correlate", "nowhere.csv", "--accuracy-table", "none.csv"]) == 2

    asyncio.run(describe())
    thread = threading.Thread(target=lambda: asyncio.run(describe()))
    thread.start()
    thread.join()
    error = capsys.readouterr().err
    assert error == "tenas: cannot use none.csv: No such file or directory\n" * 2


def test_advice_can_be_typed(tmp_path):
    words = ["--workdir", "my  run", "it's", "two\nlines\t'", "κ", "--resume"]
    line = how_to_go_on("search", words, resume=True)
    assert "\n" not in line
    advice = line.partition("continue with: ")[2]
    script = f"tenas() {{ printf '%s\\0' \"$@\"; }}; {advice}"
    run = subprocess.run(["bash", "-c", script], capture_output=True, check=True)
    assert run.stdout.decode().split("\0")[:-1] == ["search", *words]


def test_lines_keep_their_spaces(capsys):
    complain("a  b\n  c\u2028d")
    assert capsys.readouterr().err == "tenas: a  b c d\n"


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["describe", ""], "an empty word: give it a value (see tenas describe --help)"),
        (["describe", "  "], "an empty word: give it a value"),
        (["search", "--workdir", ""], "an empty word after --workdir: give it a value"),
        (["search", "--workdir="], "an empty word after --workdir: give it a value"),
        (["train", NONE, "--recipe", "-inf"], "unknown recipe '-inf': choose from cifar10"),
        (["train", NONE, "--recipe=-inf"], "unknown recipe '-inf': choose from cifar10"),
        (["train", NONE, "--recipe", "--epochs", "3"], "unknown recipe '--epochs'"),
        (["train", NONE, "--recipe"], "Missing value for argument '--recipe'"),
        (["train", NONE, "--learning-rate", "inf"], "learning_rate must be more than 0 and finite"),
        (["train", NONE, "--clip-norm", "inf"], "clip_norm must be more than 0 and finite"),
        (["train", NONE, "--cells", "1001"], "cells must be at most 1000, not 1001"),
        (["train", NONE, "--batch-size", "1000000000"], "batch_size 1000000000 with image_size 32"),
        (["describe", NONE, "--cells", "100000"], "cells must be at most 1000, not 100000"),
        (["describe", NONE, "--output", "x.gif"], "cannot draw 'x.gif': give a name that ends in"),
        (
            ["describe", "(3, 2, 0, 1, 1, 3)"],
            "these numbers may be of nas-bench-201 or of transnas",
        ),
        (["search", "--devices", "1000"], "devices must be at most "),
        (["search", "--images", "100000000"], "images 100000000 of 32 x 32: use fewer; they take"),
        (["search", "--image-size", "1000000"], "images 4096 of 1000000 x 1000000: use fewer"),
        (["search", "--padding", "1000000000"], "padding 1000000000: use less; 72 padded images"),
        (["search", "--num-classes", "10000000000"], "num_classes 10000000000 with 3 channels"),
        (["search", "--ntk.channels", "100000000"], "ntk.batch_size 72 with image_size 32 and 100"),
        (["search", "--ntk.cells", "1000000"], "ntk.cells must be at most 1000, not 1000000"),
        (["search", "--regions.cells", "1000000"], "regions.cells must be at most 1000, not 10000"),
        (
            ["search", "--regions.batch-size", "100000000000"],
            "regions.batch_size 100000000000: use",
        ),
        (["search", "--evolution.population", "10000000000"], "evolution.population 10000000000: "),
        (["search", "--repeats", "100000000000"], "24 measurements (budget, sample, operators) in"),
        (
            ["search", "--space", "darts", "--strategy", "random", "--budget", "10000000000"],
            "10000000000 measurements (budget, sample, operators) in 3 repeats: use fewer; they t",
        ),
    ],
)
def test_what_is_asked_for_is_checked_at_once(tmp_path, monkeypatch, capsys, words, fault):
    monkeypatch.chdir(tmp_path)
    started = time.process_time()
    assert cli.main(words) == 2
    assert time.process_time() - started < 2  # of it most is spent on parsing
    error = capsys.readouterr().err
    assert error.startswith(f"tenas: {fault}") and error.count("\n") == 1
    assert not list(tmp_path.iterdir())

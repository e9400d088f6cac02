"""Processes on loopback find what one process finds, and none of them outlives another."""

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
import smaller

from tenas_jax import cli
from tenas_jax.cli.search import parse_search
from tenas_jax.host.processes import HEARTBEAT_SECONDS

MAIN = "import sys; from tenas_jax.cli import main; sys.exit(main())"
# Sends itself a signal when 9 rows are measured.
VICTIM = """
import os, sys
from tenas_jax import cli
from tenas_jax.searching import workdir
append = workdir.Trace.append
def dying(trace, identities, metrics, values):
    append(trace, identities, metrics, values)
    dying.rows += len(values)
    if dying.rows >= 9:
        os.kill(os.getpid(), {number})
dying.rows = 0
workdir.Trace.append = dying
sys.exit(cli.main())
"""
TINY = shlex.split(
    "search --devices 2 --images 16 --image-size 8 --padding 1 --repeats 3 "
    "--ntk.batch-size 4 --regions.batch-size 20 --regions.batches 1 "
    "--space smaller:SMALL_NAS_BENCH_201 --metrics regions,naswot"  # quick to compile
)
LOST = (
    "tenas: another process of this search has ended: see what it said, then start all of them "
    "again with --resume"
)


class Processes:
    """`tenas search` in one process or several, which share nothing but a cache of programs."""

    def __init__(self, folder, cache, count, *words, of_last=(), programs=(MAIN, MAIN)):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        self.workdirs = [folder / f"process-{index}" for index in range(count)]
        self.processes = []
        for index, workdir in enumerate(self.workdirs):
            cluster = (
                f"--distributed --coordinator-address localhost:{port} --process-count {count}"
            )
            given = [*TINY, "--workdir", workdir, "--compilation-cache", cache, *words]
            given += [*cluster.split(), "--process-id", str(index)] if count > 1 else []
            given += of_last if index == count - 1 else []
            self.processes.append(
                subprocess.Popen(
                    [sys.executable, "-c", programs[index], *map(str, given)],
                    cwd=cache,  # not the checkout, whose sources would shadow what is installed
                    env={**os.environ, "JAX_PLATFORMS": "cpu"},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )

    def ends(self):
        """Exit code, standard output and standard error of each."""
        outputs = [process.communicate(timeout=300) for process in self.processes]
        codes = [process.returncode for process in self.processes]
        return [(code, *output) for code, output in zip(codes, outputs, strict=True)]


def found(workdir):
    result = json.loads((workdir / "result.json").read_text())
    return {
        name: value for name, value in result.items() if name not in ("seconds", "device", "crc32")
    }


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A folder for programs, with a space that compiles in half the time."""
    folder = tmp_path_factory.mktemp("cache")
    shutil.copy(smaller.__file__, folder)
    return folder


@pytest.fixture(scope="module")
def searches(cache, tmp_path_factory):
    """The same search by one process and by two, at the same time."""
    counts = (1, 2)
    started = [Processes(tmp_path_factory.mktemp("search"), cache, count) for count in counts]
    return [(each.ends(), each.workdirs) for each in started]


def test_two_processes_find_what_one_finds(searches):
    (_, [alone]), (ends, [together, elsewhere]) = searches
    assert [code for code, _, _ in ends] == [0, 0]
    assert (together / "trace.jsonl").read_bytes() == (alone / "trace.jsonl").read_bytes()
    assert found(together) == found(alone)
    assert json.loads((together / "result.json").read_text())["device"] == "4 x cpu"
    assert not elsewhere.exists()


def test_only_process_0_prints(searches):
    _, (ends, _) = searches
    (_, out, err), (_, other_out, other_err) = ends
    assert out.startswith("custom: space small-nas-bench-201, 16 images of photos, 4 x cpu,")
    assert out.splitlines()[-1].startswith("files are in ")
    assert err == other_out == other_err == ""


@pytest.mark.parametrize(
    ("victim", "number", "code", "count_after"),
    [(1, signal.SIGKILL, -9, 1), (0, signal.SIGTERM, 143, 2)],
)
def test_a_lost_process_ends_the_others(
    searches, cache, tmp_path, victim, number, code, count_after
):
    programs = [MAIN, MAIN]
    programs[victim] = VICTIM.format(number=number.value)
    processes = Processes(tmp_path, cache, 2, programs=programs)
    processes.processes[victim].wait(timeout=300)
    start = time.monotonic()
    ends = processes.ends()
    assert time.monotonic() - start < HEARTBEAT_SECONDS
    assert ends[victim][0] == code
    survivor, _, error = ends[1 - victim]
    assert survivor == 1
    assert error.splitlines()[-1] == LOST
    assert not (tmp_path / "process-0" / "result.json").exists()

    kept = (tmp_path / "process-0" / "trace.jsonl").read_bytes()
    assert kept.count(b"\n") >= 8
    again = Processes(tmp_path, cache, count_after, "--resume").ends()
    assert [code for code, _, _ in again] == [0] * count_after
    [(_, [alone]), _] = searches
    whole = (tmp_path / "process-0" / "trace.jsonl").read_bytes()
    assert whole.startswith(kept[: kept.rindex(b"\n") + 1])
    assert whole == (alone / "trace.jsonl").read_bytes()
    assert found(tmp_path / "process-0") == found(alone)


def test_what_one_process_refuses_ends_all(cache, tmp_path):
    used = tmp_path / "used" / "process-0"
    used.mkdir(parents=True)
    (used / "config.json").write_text("{")
    (used / "trace.jsonl").write_text("{}\n")
    started = [
        Processes(tmp_path / "used", cache, 2),
        Processes(tmp_path / "data", cache, 2, of_last=("--data", "npz:nowhere.npz")),
        Processes(tmp_path / "seed", cache, 2, of_last=("--seed", "1")),
    ]
    damaged = f"{used / 'config.json'} is damaged: start again in another --workdir"
    missing = "no file 'nowhere.npz': npz:PATH names an existing .npz file"
    differs = (
        "process 1 differs from process 0 in the images, seed: "
        "give every process the same preset, flags and images"
    )
    lines = [
        (damaged, f"process 0: {damaged}"),
        (f"process 1: {missing}", missing),
        (differs, differs),
    ]
    for processes, expected in zip(started, lines, strict=True):
        ends = processes.ends()
        assert [code for code, _, _ in ends] == [2, 2]
        assert tuple(err for _, _, err in ends) == tuple(f"tenas: {line}\n" for line in expected)
    assert not (tmp_path / "data").exists()
    assert not (tmp_path / "seed").exists()


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        ("--process-id 1", "--coordinator-address, --process-count and --process-id need --distri"),
        ("--distributed --coordinator-address 4321", "must be HOST:PORT, not '4321'"),
        ("--distributed --process-count 0", "process-count must be at least 1, not 0"),
        ("--distributed --process-id -1", "process-id must be at least 0, not -1"),
        ("--distributed --process-count 2 --process-id 2", "must be less than process-count 2, no"),
    ],
)
def test_bad_flags_are_one_line(capsys, words, fault):
    assert cli.main(["search", *words.split()]) == 2
    error = capsys.readouterr().err
    assert fault in error
    assert error.count("\n") == 1


def test_flags_say_where_the_others_are():
    words = "--distributed --coordinator-address node0:4321 --process-count 3 --process-id 2"
    machine = parse_search(words.split())[1].machine
    assert machine.coordinator_address == "node0:4321"
    assert (machine.process_count, machine.process_id) == (3, 2)
    assert parse_search(["--distributed"])[1].machine.distributed
    assert not parse_search([])[1].machine.distributed


def test_process_0_listens_on_the_address_it_was_given(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = f"""
from tenas_jax.host.devices import Machine, configure_jax
configure_jax(
    Machine(
        devices=2,
        compilation_cache="none",
        distributed=True,
        coordinator_address="127.0.0.1:{port}",
        process_count=1,
        process_id=0,
    )
)
for name in ("tcp", "tcp6"):
    for line in open(f"/proc/net/{{name}}"):
        words = line.split()
        if words[3] == "0A" and words[1].endswith(":{port:04X}"):
            print(words[1].split(":")[0][-8:])
"""
    run = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout == "0100007F\n"  # in the order of its bytes

"""The folder of programs: a limit, damaged files, a full disk, several processes."""

import errno
import os
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest

from tenas_jax.errors import InputError
from tenas_jax.host.cache import DIGEST_BYTES, ProgramCache, keep_programs
from tenas_jax.host.devices import Machine
from tenas_jax.host.programs import traced

VALUE = bytes(100 - DIGEST_BYTES)  # whose file has 100 bytes


def cache_of(folder, max_size=-1):
    return ProgramCache(str(folder), max_size=max_size)


def names(folder):
    return {file.name for file in folder.iterdir()}


def grow_old(folder):
    """Make every file older by a minute."""
    for file in folder.iterdir():
        status = file.stat()
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns - 60 * 10**9))


def test_the_least_recently_used_go_first(tmp_path):
    cache = cache_of(tmp_path, 300)
    for key in "abc":
        cache.put(key, VALUE)
        grow_old(tmp_path)
    assert cache.get("a") == VALUE
    cache.put("d", VALUE)
    assert names(tmp_path) == {"a.program", "c.program", "d.program"}
    assert cache.get("b") is None
    cache.put("e", 2 * VALUE + bytes(DIGEST_BYTES))
    assert len(names(tmp_path)) == 2
    assert cache.get("e") is not None


def test_a_program_larger_than_the_limit_costs_no_other(tmp_path):
    cache = cache_of(tmp_path, 100)
    cache.put("a", VALUE)
    cache.put("b", VALUE + b"x")
    assert cache.get("a") == VALUE
    assert cache.get("b") is None


def test_only_programs_are_counted_and_removed(tmp_path):
    (tmp_path / "notes.txt").write_bytes(bytes(1000))
    (tmp_path / "jit_f-cache").write_bytes(bytes(1000))
    (tmp_path / "folder.program").mkdir()
    cache = cache_of(tmp_path, 200)
    for key in "abc":
        cache.put(key, VALUE)
        grow_old(tmp_path)
    assert {"notes.txt", "jit_f-cache", "folder.program", "c.program"} <= names(tmp_path)
    assert not {"a.program"} & names(tmp_path)


@pytest.mark.parametrize("content", [b"", VALUE, bytes(1000)])
def test_a_damaged_file_counts_as_missing(tmp_path, content):
    cache = cache_of(tmp_path)
    cache.put("a", VALUE)
    (tmp_path / "a.program").write_bytes(content)
    assert cache.get("a") is None
    cache.put("a", VALUE)
    assert cache.get("a") == VALUE


def test_any_flipped_bit_is_noticed(tmp_path):
    cache = cache_of(tmp_path)
    cache.put("a", VALUE)
    content = (tmp_path / "a.program").read_bytes()
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 8
        (tmp_path / "a.program").write_bytes(damaged)
        assert cache.get("a") is None


@pytest.mark.parametrize("before", [None, b"an earlier program"])
def test_a_full_disk_leaves_no_torn_file(tmp_path, monkeypatch, before):
    cache = cache_of(tmp_path)
    if before is not None:
        cache.put("a", before)
    kept = names(tmp_path)

    def write_half(path, content):
        with open(path, "wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", write_half)
    cache.put("a", VALUE)
    assert names(tmp_path) == kept
    assert cache.get("a") == before


def test_what_a_killed_process_left_is_removed_in_time(tmp_path):
    (tmp_path / "0b3c.program").write_bytes(bytes(150))
    grow_old(tmp_path)
    cache = cache_of(tmp_path, 200)
    cache.put("a", VALUE)
    assert names(tmp_path) == {"a.program"}


MANY = """
import sys
from tenas_jax.host.cache import ProgramCache
cache = ProgramCache(sys.argv[1], max_size=5000)
for i in range(500):
    key = f"{i % 17}"
    value = cache.get(key)
    assert value in (None, 40 * key.encode()), value
    cache.put(key, 40 * key.encode())
"""


def test_two_processes_share_a_folder(tmp_path):
    command = [sys.executable, "-c", MANY, str(tmp_path)]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in processes:
        assert process.communicate()[1] == ""
        assert process.returncode == 0
    assert names(tmp_path) == {f"{i}.program" for i in range(17)}
    assert all(cache_of(tmp_path).get(str(i)) for i in range(17))


@pytest.fixture
def folder(tmp_path):
    """The folder of programs that JAX uses."""
    settings = [
        "jax_compilation_cache_dir",
        "jax_compilation_cache_max_size",
        "jax_persistent_cache_min_compile_time_secs",
    ]
    before = {name: jax.config.values[name] for name in settings}
    keep_programs(str(tmp_path), 10**6)
    yield tmp_path
    for name, value in before.items():
        jax.config.update(name, value)
    jax.experimental.compilation_cache.compilation_cache.reset_cache()


@pytest.fixture
def hits():
    """Counts the programs that JAX takes from its cache instead of compiling them."""
    found = []

    def listen(event, **_):
        if event == "/jax/compilation_cache/cache_hits":
            found.append(event)

    jax.monitoring.register_event_listener(listen)
    yield found
    jax.monitoring.unregister_event_listener(listen)


X = np.float32(2)


def run():
    """Trace and compile a program, as a new process would."""
    jax.clear_caches()
    program = traced(jax.jit(lambda x: 3 * x), "thrice", X)
    assert jax.jit(program.call)(X) == 6
    jax.clear_caches()


def test_jax_keeps_its_programs_there_too(folder, hits):
    run()
    kept = names(folder)
    assert any(name.startswith("traced-") for name in kept)
    assert any(name.startswith("jit_") for name in kept)
    assert all(name.endswith(".program") for name in kept)
    assert not hits
    run()
    assert names(folder) == kept
    assert len(hits) == len(kept) - 1


def test_damaged_programs_of_both_kinds_are_replaced_in_silence(folder, hits, capfd):
    run()
    contents = {file: file.read_bytes() for file in folder.iterdir()}
    for file, content in contents.items():
        file.write_bytes(content[: len(content) // 2])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run()
    assert not hits
    assert capfd.readouterr() == ("", "")
    assert names(folder) == {file.name for file in contents}
    assert all(cache_of(folder).get(file.stem) is not None for file in contents)
    run()
    assert len(hits) == len(contents) - 1


def test_the_limit_is_of_both_kinds_together(folder):
    run()
    sizes = [file.stat().st_size for file in folder.iterdir()]
    grow_old(folder)
    keep_programs(str(folder), sum(sizes) - 1)
    assert len(names(folder)) == len(sizes) - 1
    keep_programs(str(folder), 1)
    assert not names(folder)
    run()
    assert not names(folder)


@pytest.mark.parametrize("limit", [0, -1])
def test_a_bad_limit_is_one_line(limit):
    with pytest.raises(InputError, match=f"^compilation-cache-mb must be at least 1, not {limit}$"):
        Machine(compilation_cache_mb=limit)


SLOW = """
import tenas_jax.cli
import jax, jax.numpy as jnp, numpy as np
numbers = np.arange(20000.0)[::-1].copy()
jax.jit(lambda x: jnp.sort(numbers)[0] + x)(1)  # XLA sorts for more than the second it allows
try:
    jax.jit(lambda: jnp.zeros(())).lower().compile({"xla_no_such_option": 1})
except Exception as error:
    print(type(error).__name__)
"""


@pytest.mark.parametrize("level", [None, "1", "0"])
def test_the_alarm_of_a_slow_compilation_reaches_nobody(level):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    environment.pop("TF_CPP_MIN_LOG_LEVEL", None)
    if level is not None:
        environment["TF_CPP_MIN_LOG_LEVEL"] = level
    run = subprocess.run(
        [sys.executable, "-c", SLOW], env=environment, capture_output=True, text=True, check=True
    )
    assert run.stdout == "JaxRuntimeError\n"
    # Who wants to see what C++ says still can.
    assert (run.stderr == "") == (level != "0")

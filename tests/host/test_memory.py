"""How much memory there is."""

import ctypes
import os
import subprocess
import sys
import time
from unittest import mock

import jax
import pytest

from tenas_jax.errors import InputError
from tenas_jax.host.memory import device_memory, memory, require_memory

HEAPS = """
import ctypes, sys, threading
from tenas_jax.host.memory import share_heaps

share_heaps(2)
libc = ctypes.CDLL(None)
libc.fopen.restype = ctypes.c_void_p
together = threading.Barrier(6)

def allocate():
    together.wait()
    libc.malloc(100)
    together.wait()

threads = [threading.Thread(target=allocate) for _ in range(6)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
file = ctypes.c_void_p(libc.fopen(sys.argv[1].encode(), b"w"))
libc.malloc_info(0, file)
libc.fclose(file)
"""


def test_memory_is_that_of_the_container(tmp_path, monkeypatch):
    machine = memory()
    limit = tmp_path / "memory.max"
    monkeypatch.setattr("tenas_jax.host.memory._LIMITS_OF_CONTAINERS", (limit,))
    limit.write_text("max\n")
    assert memory() >= machine
    limit.write_text("4096\n")
    assert memory() == 4096
    require_memory(4096, "they")
    started = time.perf_counter()
    with pytest.raises(InputError, match="images: use fewer; they take 1 GB of memory, and there"):
        require_memory(4097, "images: use fewer; they")
    assert time.perf_counter() - started < 0.1


def test_memory_of_a_device_is_what_jax_may_have_of_it(tmp_path, monkeypatch):
    def device(limit, process=0):
        stats = None if limit is None else {"bytes_limit": limit}
        fields = {"platform": "gpu", "process_index": process, "memory_stats": lambda: stats}
        return mock.Mock(spec=jax.Device, **fields)

    assert device_memory([device(80), device(70), device(9, process=1)]) == 70
    assert device_memory([device(None)]) is None
    cpus = jax.devices("cpu")[:4]
    free = tmp_path / "meminfo"
    monkeypatch.setattr("tenas_jax.host.memory._FREE", free)
    assert device_memory(cpus) == memory() // 4
    free.write_text("MemTotal:       99 kB\nMemAvailable:       8 kB\n")
    assert device_memory(cpus) == 2048


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_info"), reason="the C library has none")
@pytest.mark.parametrize("variable", [None, "4"])
def test_threads_share_heaps_unless_the_user_says_otherwise(tmp_path, variable):
    environment = {name: value for name, value in os.environ.items() if name != "MALLOC_ARENA_MAX"}
    if variable:
        environment["MALLOC_ARENA_MAX"] = variable
    file = tmp_path / "heaps.xml"
    subprocess.run([sys.executable, "-c", HEAPS, file], check=True, env=environment)
    assert file.read_text().count("<heap nr=") == int(variable or 2)

"""How much memory there is."""

import time
from unittest import mock

import jax
import pytest

from tenas_jax.errors import InputError
from tenas_jax.host.memory import device_memory, memory, require_memory


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

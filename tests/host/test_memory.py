"""How much memory there is."""

import time

import pytest

from tenas_jax.errors import InputError
from tenas_jax.host.memory import memory, require_memory


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

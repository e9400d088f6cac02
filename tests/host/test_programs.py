"""Programs are traced once, in whatever run, and again when something they depend on changes."""

import jax
import numpy as np
import pytest

from tenas_jax.host.devices import traced_for
from tenas_jax.host.programs import traced


@pytest.fixture
def cache(tmp_path):
    before = jax.config.values["jax_compilation_cache_dir"]
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    yield tmp_path
    jax.config.update("jax_compilation_cache_dir", before)


@pytest.fixture
def count():
    """How often the function `twice` was traced."""
    return []


def twice(count):
    """A new function for each run of a program: `jax.jit` remembers what it has traced."""

    def function(x):
        count.append(1)
        return 2 * x

    return jax.jit(function)


X = np.arange(3, dtype=np.float32)


def test_a_kept_program_is_not_traced_again(cache, count):
    for _ in range(2):
        program = traced(twice(count), "twice", X)
        assert jax.jit(program.call)(X).tolist() == [0, 2, 4]
    assert len(count) == 1
    assert len(list(cache.iterdir())) == 1


def test_what_a_program_depends_on_is_traced_anew(cache, count):
    traced(twice(count), "twice", X)
    traced(twice(count), "another", X)
    traced(twice(count), "twice", X[:2])
    traced(twice(count), "twice", X.astype(int))
    with jax.default_matmul_precision("highest"):
        traced(twice(count), "twice", X)
    assert len(count) == 5
    traced(twice(count), "twice", X + 1)
    assert len(count) == 5


def test_where_programs_are_kept_is_no_part_of_them(cache, count, monkeypatch):
    traced(twice(count), "twice", X)
    monkeypatch.chdir(cache.parent)
    jax.config.update("jax_compilation_cache_dir", cache.name)
    before = jax.config.values["jax_compilation_cache_max_size"]
    jax.config.update("jax_compilation_cache_max_size", 10**6)
    try:
        traced(twice(count), "twice", X)
    finally:
        jax.config.update("jax_compilation_cache_max_size", before)
    assert len(count) == 1


def test_nothing_is_kept_without_a_cache(count):
    for _ in range(2):
        assert traced(twice(count), "twice", X).call(X).tolist() == [0, 2, 4]
    assert len(count) == 2


@pytest.mark.parametrize("content", [b"", b"no program", bytes(1000)])
def test_a_damaged_program_is_replaced(cache, count, content):
    traced(twice(count), "twice", X)
    [file] = cache.iterdir()
    file.write_bytes(content)
    for _ in range(2):
        assert traced(twice(count), "twice", X).call(X).tolist() == [0, 2, 4]
    assert len(count) == 2


def test_a_program_that_cannot_be_read_is_no_error(cache, count):
    traced(twice(count), "twice", X)
    [file] = cache.iterdir()
    file.unlink()
    file.mkdir()
    assert traced(twice(count), "twice", X).call(X).tolist() == [0, 2, 4]
    assert list(cache.iterdir()) == [file]


def test_a_cache_that_cannot_be_written_is_no_error(cache, count):
    jax.config.update("jax_compilation_cache_dir", str(cache / "missing"))
    for _ in range(2):
        traced(twice(count), "twice", X)
    assert len(count) == 2


def test_a_program_is_for_the_devices_at_hand(count, monkeypatch):
    """As for the CPU of a machine that has a GPU."""
    monkeypatch.setattr("jax._src.xla_bridge.default_backend", lambda: "cuda")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert traced(twice(count), None, X).platforms == ("cuda",)
    with traced_for(jax.devices("cpu")):
        assert traced(twice(count), None, X).platforms == ("cpu",)

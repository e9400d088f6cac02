"""What is chosen by backend."""

import jax
import pytest

from tenas_jax.host.devices import traced_for
from tenas_jax.networks.backends import (
    NHWC_ON_GPU,
    batches_at_once,
    chunk_size,
    cuts_by_products,
    network_layout,
    rows_per_call,
)
from tenas_jax.networks.banded import BANDED
from tenas_jax.networks.batch_minor import BATCH_MINOR


@pytest.mark.parametrize(
    ("backend", "layout"),
    [("cpu", BATCH_MINOR), ("gpu", NHWC_ON_GPU), ("tpu", BANDED)],
)
def test_the_layout_is_that_of_the_backend(backend, layout, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    assert network_layout() == layout
    assert rows_per_call(single_path=False) == (1 if backend == "cpu" else 16)
    assert batches_at_once(3) == (None if backend == "cpu" else 3)
    assert cuts_by_products() == (backend == "tpu")


def test_the_backend_is_that_of_the_devices_at_hand(monkeypatch):
    """As for the CPU of a machine that has a GPU."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with traced_for(jax.devices("cpu")):
        assert network_layout() is BATCH_MINOR
        assert (chunk_size(72), rows_per_call(single_path=True)) == (2, 8)
    assert network_layout() is NHWC_ON_GPU


@pytest.mark.parametrize(
    ("images", "chunk"), [(14, 14), (72, 72), (128, 128), (256, 64), (257, 52), (20_000, 1)]
)
def test_passes_of_an_accelerator_are_bounded_and_of_even_size(images, chunk, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert chunk_size(images) == chunk


@pytest.mark.parametrize(("images", "chunk"), [(14, 7), (72, 8), (256, 8), (257, 1)])
def test_passes_of_a_tpu_are_small_divisors(images, chunk, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert chunk_size(images) == chunk


@pytest.mark.parametrize(("images", "chunk"), [(72, 2), (15, 1)])
def test_passes_of_a_cpu_are_divisors(images, chunk):
    assert chunk_size(images) == chunk
    assert chunk_size(72, single_path=True) == 4
    assert chunk_size(14, rolled=True) == 7

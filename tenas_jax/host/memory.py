"""Available memory, against which sizes are checked, and how threads share what they allocate."""

import contextlib
import ctypes
import os
import re
import resource
from collections.abc import Sequence
from pathlib import Path

import jax

from tenas_jax.errors import InputError

_LIMITS_OF_CONTAINERS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
_FREE = Path("/proc/meminfo")
_M_ARENA_MAX = -8  # of glibc's malloc.h


def memory() -> int:
    """Bytes of memory available to this process: of the machine, or of its container.

    Example:
        >>> memory() > 2**20
        True
    """
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in _LIMITS_OF_CONTAINERS:
        with contextlib.suppress(OSError, ValueError):  # no such file, or `max`
            limits.append(int(file.read_text()))
    of_process, _ = resource.getrlimit(resource.RLIMIT_AS)
    return min(limits if of_process == resource.RLIM_INFINITY else [*limits, of_process])


def share_heaps(count: int) -> None:
    """Let the threads of this process share glibc's heaps; call this before JAX starts.

    By default there are eight heaps per core, and each keeps what its threads have freed. Scores of
    100 architectures of DARTS need 950 instead of 1090 MiB with two per core, in about the same
    time; with one per core 890 MiB, but 10 % more time. The variable `MALLOC_ARENA_MAX` has
    precedence. Without glibc nothing happens.

    Args:
        count: number of heaps.

    Example:
        >>> share_heaps(2)
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and "MALLOC_ARENA_MAX" not in os.environ:
        mallopt(_M_ARENA_MAX, count)


def device_memory(devices: Sequence[jax.Device]) -> int | None:
    """Bytes of memory available to a program on each of some devices.

    Args:
        devices: the devices; those of other processes are ignored.

    Returns:
        The smallest memory that any device has for JAX. CPU devices share the free memory of this
            machine, or all of its container's, equally. None if a device does not report it.

    Example:
        >>> device_memory(jax.devices("cpu")) > 2**20
        True
    """
    local = [each for each in devices if each.process_index == jax.process_index()]
    if local[0].platform == "cpu":
        return min(memory(), _free()) // len(local)
    limits = [(each.memory_stats() or {}).get("bytes_limit") for each in local]
    return min((limit for limit in limits if limit), default=None)


def is_out_of_memory(error: jax.errors.JaxRuntimeError) -> bool:
    """Whether a program could not be compiled or run for lack of memory.

    Example:
        >>> is_out_of_memory(jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory"))
        True
    """
    return "RESOURCE_EXHAUSTED" in str(error)


def _free() -> int:
    """Free memory of the machine in bytes, or all of it if that is unknown."""
    with contextlib.suppress(OSError):
        if found := re.search(r"^MemAvailable:\s+(\d+) kB$", _FREE.read_text(), re.MULTILINE):
            return int(found[1]) * 2**10
    return memory()


def require_memory(size: int, what: str) -> None:
    """Reject sizes that exceed the memory.

    Args:
        size: lower bound on the bytes needed.
        what: what needs them and how to need less, for the error message.

    Raises:
        InputError: there is less memory.

    Example:
        >>> require_memory(2**80, "images 10000000: use fewer; they") # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        tenas_jax.errors.InputError: images 10000000: use fewer; they take 1,125,899,906,842,625 \
GB of memory, and there are ...
    """
    if size > memory():
        needed, there = (f"{each // 2**30 + 1:,} GB" for each in (size, memory()))
        raise InputError(f"{what} take {needed} of memory, and there are {there}")

"""How much memory there is: sizes are checked against it before anything is allocated."""

import contextlib
import os
import resource
from pathlib import Path

from tenas_jax.errors import InputError

_LIMITS_OF_CONTAINERS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


def memory() -> int:
    """Bytes of memory that this process may have: those of the machine, or of its container.

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


def require_memory(size: int, what: str) -> None:
    """Refuse what cannot be in memory.

    Args:
        size: bytes that it takes at least.
        what: what it is, for the message; it says how to take less.

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

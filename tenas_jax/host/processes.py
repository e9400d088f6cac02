"""The processes of a distributed run and their communication.

All processes run the same host loop in lockstep: every process gets all measurements, and these
determine what a search does next. Communication is confined to this module.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import jax
import numpy as np
from jax.experimental.multihost_utils import process_allgather
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Shaped

from tenas_jax.errors import InputError

# A process silent for this long is considered lost; a killed one is noticed at once.
HEARTBEAT_SECONDS = 30


class LostProcess(Exception):
    """Another process of this search has ended."""

    def __init__(self) -> None:
        super().__init__(
            "another process of this search has ended: see what it said, then start all of them "
            "again with --resume"
        )


def is_main() -> bool:
    """Whether this is the process that writes files and prints: process 0, or the only one."""
    return jax.process_index() == 0


def place(x: Shaped[Array | np.ndarray, "..."], sharding: NamedSharding) -> Shaped[Array, "..."]:
    """Put an array that is the same in every process on the devices of all processes.

    Args:
        x: the whole array.
        sharding: how it is sharded over the devices.

    Returns:
        The array on the devices.
    """
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


def gather(x: Shaped[Array, "..."]) -> Shaped[np.ndarray, "..."]:
    """Give every process the whole of an array.

    Args:
        x: an array on the devices of all processes.

    Returns:
        Its values.

    Raises:
        LostProcess: another process has ended.
    """
    if x.is_fully_addressable:
        return np.asarray(x)
    try:
        # The devices of a process wait for each other only for some seconds.
        jax.block_until_ready(x)
        return np.asarray(process_allgather(x, tiled=True))
    except jax.errors.JaxRuntimeError as error:
        raise LostProcess from error


def exchange(text: str) -> list[str]:
    """Give every process the texts of all processes.

    Args:
        text: the text of this process.

    Returns:
        One text for each process, in order.

    Raises:
        LostProcess: another process has ended.

    Example:
        >>> exchange("of the only process")
        ['of the only process']
    """
    if jax.process_count() == 1:
        return [text]
    characters = np.frombuffer(text.encode(), np.uint8)
    lengths = _of_each_process(np.array([len(characters)]))[:, 0]
    padded = np.pad(characters, (0, max(lengths) - len(characters)))
    rows = _of_each_process(padded)
    return [row[:n].tobytes().decode() for row, n in zip(rows, lengths, strict=True)]


@contextmanager
def shared_errors() -> Iterator[None]:
    """Wait until all processes leave this context; an error in one is raised in all of them.

    Raises:
        InputError: as in the context, here or in another process.
        LostProcess: another process has ended.

    Example:
        >>> with shared_errors():
        ...     raise InputError("seed must be at least 0, not -1")
        Traceback (most recent call last):
        ...
        tenas_jax.errors.InputError: seed must be at least 0, not -1
    """
    own = None
    try:
        yield
    except InputError as error:
        own = error
    texts = exchange("" if own is None else str(own))
    if any(texts):
        part()  # so that no process takes the end of another for its loss
        process = next(index for index, text in enumerate(texts) if text)
        raise own or InputError(f"process {process}: {texts[process]}")


def part() -> None:
    """End the shared work: from here on no process waits for another."""
    if jax.distributed.is_initialized():
        jax.distributed.shutdown()


def leave(code: int) -> int:
    """End the search of this process.

    Args:
        code: its exit code. If it is not 0 during shared work, the process exits immediately:
            peers may be blocked in a collective, so exit without waiting.

    Returns:
        The exit code.
    """
    if code and jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def join(
    coordinator_address: str | None,
    process_count: int | None,
    process_id: int | None,
    local_devices: Sequence[int] | None,
) -> None:
    """Connect this process to the others of a distributed run; call this before JAX starts.

    Args:
        coordinator_address: HOST:PORT on which process 0 listens, and on no other address. There is
            no authentication: anyone who can reach it can join the run. None: from the cluster's
            environment; process 0 then listens on all its addresses.
        process_count: number of processes; None: from the cluster's environment.
        process_id: index of this process, from 0; None: from the cluster's environment.
        local_devices: indices of the devices of this process to use; None: all.

    Raises:
        InputError: there is no cluster to join.
    """
    _explain_abort("cannot join the other processes of this search, for the reason above")
    # Otherwise JAX would swallow SIGTERM.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            coordinator_address,
            process_count,
            process_id,
            local_device_ids=local_devices,
            coordinator_bind_address=coordinator_address,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except ValueError as error:
        raise InputError(
            "no cluster found: give --coordinator-address, --process-count and --process-id"
        ) from error
    except RuntimeError as error:
        raise InputError(f"cannot join the other processes of this search: {error}") from error
    _explain_abort(str(LostProcess()))
    with _without_stdout():
        exchange("")  # Gloo, which connects CPU processes, prints a greeting the first time


@contextmanager
def _without_stdout() -> Iterator[None]:
    """Discard everything printed, even by C++ code."""
    sys.stdout.flush()
    kept = os.dup(1)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _explain_abort(line: str) -> None:
    """When JAX aborts this process, print a line for the user and exit with code 1.

    When a process is lost, one of JAX's C++ threads aborts, and its callback does not work. A
    Python signal handler would have to wait for the main thread.
    """

    def explain(_: int) -> None:
        print(f"tenas: {line}", file=sys.stderr, flush=True)
        os._exit(1)

    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(explain)
    _abort_handlers.append(handler)
    ctypes.CDLL(None).signal(signal.SIGABRT, handler)


# Keep references: C does not.
_abort_handlers: list[Callable[[int], None]] = []


def _of_each_process(mine: Shaped[np.ndarray, " n"]) -> Shaped[np.ndarray, "process n"]:
    # JAX's own gathering of arrays of the processes needs as many devices in each.
    devices = jax.devices()
    rows = np.broadcast_to(mine, (len(devices), *mine.shape))
    mesh = Mesh(np.array(devices), ("device",))
    of_each_device = gather(place(rows, NamedSharding(mesh, PartitionSpec("device"))))
    owners = [device.process_index for device in devices]
    return of_each_device[[owners.index(process) for process in range(jax.process_count())]]

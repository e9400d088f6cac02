"""How commands start JAX: its devices, threads, cache of compiled programs, and processes.

Every process of a distributed search runs the same host loop, in step: what a search does next
follows from its measurements, which all of them get. This module alone knows how they talk.
"""

import ctypes
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import jax
import numpy as np
import tyro
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Shaped

from tenas_jax.errors import InputError

NO_CACHE = "none"
# A process that is silent for so long is given up; one that is killed is noticed at once.
HEARTBEAT_SECONDS = 30


class LostProcess(Exception):
    """Another process of this search has ended."""

    def __init__(self) -> None:
        super().__init__(
            "another process of this search has ended: see what it said, then start all of them "
            "again with --resume"
        )


def default_cache() -> str:
    """The user's folder for compiled programs.

    Returns:
        A path.
    """
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return str(Path(root) / "tenas_jax")


@dataclass(frozen=True)
class Machine:
    """Flags that say what a command runs on."""

    devices: int | None = None
    """Devices that share the work, of each process; None is all, on a CPU one per core."""
    compilation_cache: str = field(default_factory=default_cache)
    """Folder that keeps compiled programs for later runs; none keeps nothing."""
    distributed: tyro.conf.FlagCreatePairsOff[bool] = False
    """Share the work with other processes that are started with the same words."""
    coordinator_address: str | None = None
    """HOST:PORT on which process 0 listens; None asks the cluster's environment."""
    process_count: int | None = None
    """Number of processes; None asks the cluster's environment."""
    process_id: int | None = None
    """Which process this is, from 0; None asks the cluster's environment."""

    def __post_init__(self) -> None:
        address, count, index = self.coordinator_address, self.process_count, self.process_id
        if self.devices is not None and self.devices < 1:
            raise InputError(f"devices must be at least 1, not {self.devices}")
        if not self.distributed and (address, count, index) != (None, None, None):
            raise InputError(
                "--coordinator-address, --process-count and --process-id need --distributed"
            )
        if address is not None:
            host, _, port = address.rpartition(":")
            if not (host and port.isdecimal()):
                raise InputError(f"coordinator-address must be HOST:PORT, not {address!r}")
        if count is not None and count < 1:
            raise InputError(f"process-count must be at least 1, not {count}")
        if index is not None and index < 0:
            raise InputError(f"process-id must be at least 0, not {index}")
        if count is not None and index is not None and index >= count:
            raise InputError(f"process-id must be less than process-count {count}, not {index}")


def configure_jax(machine: Machine) -> Sequence[jax.Device]:
    """Choose JAX's devices and its cache; to be called before JAX starts.

    A CPU is always two devices at least, on one core if need be: a program for one device is
    compiled in another way than one for several, and its results differ in the last bit.

    Args:
        machine: what to run on.

    Returns:
        The devices of all processes.

    Raises:
        InputError: there are fewer devices, or no cluster to join.
    """
    devices, cache = machine.devices, machine.compilation_cache
    # SciPy's LAPACK, which JAX calls: its threads would spin on the cores of other devices.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    jax.config.update("jax_num_cpu_devices", max(2, devices or _cores()))
    if cache != NO_CACHE and _is_writable(Path(cache)):
        jax.config.update("jax_compilation_cache_dir", cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    if machine.distributed:
        _join(machine)
    available = _start_on_one_core() if devices == 1 else jax.devices()
    if available[0].platform == "cpu":
        return available
    if devices is not None and devices > len(available):
        raise InputError(f"there are {len(available)} devices, not {devices}: lower --devices")
    # A process of a cluster sees no more devices than it is to use.
    return available if machine.distributed else available[:devices]


def is_main() -> bool:
    """Whether this is the process that writes files and prints: process 0, or the only one.

    Returns:
        The same answer at any time.
    """
    return jax.process_index() == 0


def place(x: Shaped[Array | np.ndarray, "..."], sharding: NamedSharding) -> Shaped[Array, "..."]:
    """Put an array, the same in every process, on the devices of all.

    Args:
        x: the whole array.
        sharding: which part of it each device holds.

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
        # The devices of a process wait only some seconds for each other.
        jax.block_until_ready(x)
        return np.asarray(_replicated(x))
    except jax.errors.JaxRuntimeError as error:
        raise LostProcess from error


def exchange(text: str) -> list[str]:
    """Give every process the texts of all.

    Args:
        text: that of this process.

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
    """Wait for all processes to end this context, and raise in all of them what one raises.

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
        part()  # nobody is to take the end of another process for its loss
        process = next(index for index, text in enumerate(texts) if text)
        raise own or InputError(f"process {process}: {texts[process]}")


def part() -> None:
    """End the work that processes share: from here on none of them waits for another."""
    if jax.distributed.is_initialized():
        jax.distributed.shutdown()


def leave(code: int) -> int:
    """End the search of this process.

    Args:
        code: its exit code. If it is not 0 in the middle of shared work, the process ends here:
            others may wait for it elsewhere, so that there is no end to wait for.

    Returns:
        The exit code.
    """
    if code and jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _start_on_one_core() -> list[jax.Device]:
    """The devices, whose threads are all on one core if they are CPUs."""
    if not hasattr(os, "sched_setaffinity"):
        return jax.devices()
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})  # threads that JAX starts inherit it, earlier ones do not
    available = jax.devices()
    if available[0].platform != "cpu":
        os.sched_setaffinity(0, cores)
    return available


def _join(machine: Machine) -> None:
    _explain_abort("cannot join the other processes of this search, for the reason above")
    # It would swallow SIGTERM.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            machine.coordinator_address,
            machine.process_count,
            machine.process_id,
            local_device_ids=None if machine.devices is None else list(range(machine.devices)),
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
        exchange("")  # the first time Gloo, which connects the processes of CPUs, prints a greeting


@contextmanager
def _without_stdout() -> Iterator[None]:
    """Discard what even C++ code prints."""
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
    """Let JAX abort this process with a line for the user and exit code 1.

    A thread of its C++ aborts when a process is lost, and offers no callback that works; a signal
    handler of Python's own would have to wait for the main thread.
    """

    def explain(_: int) -> None:
        print(f"tenas: {line}", file=sys.stderr, flush=True)
        os._exit(1)

    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(explain)
    _abort_handlers.append(handler)
    ctypes.CDLL(None).signal(signal.SIGABRT, handler)


# C keeps no reference to them.
_abort_handlers: list[Callable[[int], None]] = []


def _of_each_process(mine: Shaped[np.ndarray, " n"]) -> Shaped[np.ndarray, "process n"]:
    devices = jax.devices()
    rows = np.broadcast_to(mine, (len(devices), *mine.shape))
    mesh = Mesh(np.array(devices), ("device",))
    of_each_device = gather(place(rows, NamedSharding(mesh, PartitionSpec("device"))))
    owners = [device.process_index for device in devices]
    return of_each_device[[owners.index(process) for process in range(jax.process_count())]]


def _replicated(x: Array) -> Array:
    assert isinstance(x.sharding, NamedSharding)
    everywhere = NamedSharding(x.sharding.mesh, PartitionSpec())
    whole: Array = jax.jit(_identity, out_shardings=everywhere)(x)
    return whole


def _identity(x: Array) -> Array:
    return x


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _is_writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError as error:
        reason = f"{folder}: {error.strerror}"
        print(f"tenas: compiling without the cache {reason}", file=sys.stderr)
        return False

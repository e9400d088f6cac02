"""The machine that a command runs on: devices, threads, and the cache of compiled programs."""

import functools
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import jax
import jax.numpy as jnp
import tyro

from tenas_jax.errors import InputError, first_line, quantity
from tenas_jax.host.cache import keep_programs
from tenas_jax.host.files import require_local
from tenas_jax.host.memory import share_heaps
from tenas_jax.host.processes import join
from tenas_jax.numerics import backend

NO_CACHE = "none"
MOST_PER_CORE, MOST_DEVICES = 4, 64  # per process; each device has its own threads and memory


def default_cache() -> str:
    """The user's folder for compiled programs.

    Returns:
        A path.
    """
    root = os.environ.get("XDG_CACHE_HOME")
    try:
        return str((Path(root) if root else Path.home() / ".cache") / "tenas_jax")
    except RuntimeError:  # unknown home folder
        return NO_CACHE


@dataclass(frozen=True)
class Machine:
    """Flags for the machine that a command runs on."""

    devices: int | None = None
    """Devices per process; None: all, on a CPU one per core."""
    compilation_cache: str = field(default_factory=default_cache)
    """Cache folder for compiled programs; none: no cache."""
    compilation_cache_mb: int = 2000
    """Maximum size of the cache in megabytes; the least recently used programs are evicted."""
    distributed: tyro.conf.FlagCreatePairsOff[bool] = False
    """Share the work with other processes started with the same arguments."""
    coordinator_address: str | None = None
    """HOST:PORT on which process 0 listens, without authentication; None: from the cluster's
    environment."""
    process_count: int | None = None
    """Number of processes; None: from the cluster's environment."""
    process_id: int | None = None
    """Index of this process, from 0; None: from the cluster's environment."""

    def __post_init__(self) -> None:
        require_local(self.compilation_cache)
        address, count, index = self.coordinator_address, self.process_count, self.process_id
        if self.devices is not None and self.devices < 1:
            raise InputError(f"devices must be at least 1, not {self.devices}")
        most = max(MOST_DEVICES, MOST_PER_CORE * _cores())
        if self.devices is not None and self.devices > most:
            raise InputError(f"devices must be at most {most} here, not {self.devices}")
        if self.compilation_cache_mb < 1:
            raise InputError(
                f"compilation-cache-mb must be at least 1, not {self.compilation_cache_mb}"
            )
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
    """Choose JAX's devices and its cache; call this before JAX starts.

    A CPU always gets at least two devices, on one core if necessary: a program for one device is
    compiled differently than one for several, and its results differ in the last bit.

    Args:
        machine: the machine flags.

    Returns:
        The devices of all processes.

    Raises:
        InputError: there are fewer devices, there is no cluster to join, or JAX cannot start.
    """
    devices, cache = machine.devices, machine.compilation_cache
    # JAX calls SciPy's LAPACK, whose threads would spin on the cores of other devices.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    cpus = max(2, devices or _cores())
    share_heaps(2 * cpus)
    try:
        jax.config.update("jax_num_cpu_devices", cpus)
    except RuntimeError as error:  # JAX has started; its devices are fixed for the process
        there = jax.local_devices()
        if there[0].platform == "cpu" and len(there) != cpus:
            raise InputError(
                f"JAX has started with {len(there)} CPU devices, not {cpus}: start tenas in a "
                "process of its own"
            ) from error
    if cache != NO_CACHE and _is_writable(Path(cache)):
        keep_programs(cache, machine.compilation_cache_mb * 10**6)
    if machine.distributed:
        join(
            machine.coordinator_address,
            machine.process_count,
            machine.process_id,
            None if machine.devices is None else list(range(machine.devices)),
        )
    available = _start_on_one_core() if devices == 1 else start_jax()
    if available[0].platform == "cpu":
        return available
    if devices is not None and devices > len(available):
        raise InputError(
            f"found {quantity(len(available), 'device')}, not {devices}: lower --devices"
        )
    # A process of a cluster sees only the devices that it uses.
    return available if machine.distributed else available[:devices]


def start_jax() -> list[jax.Device]:
    """Start JAX if it has not started, and return the devices of all processes.

    Raises:
        InputError: JAX has no such backend, or compilation is disabled.
    """
    if jax.config.jax_disable_jit:  # type: ignore[attr-defined]
        raise InputError("JAX_DISABLE_JIT is set, and everything here is compiled: unset it")
    try:
        return jax.devices()
    except (AssertionError, RuntimeError) as error:
        platforms = jax.config.values["jax_platforms"]
        # If a package is missing, an assertion fails without a message.
        reason = "" if isinstance(error, AssertionError) else f" ({first_line(error)})"
        raise InputError(
            f"JAX cannot start on JAX_PLATFORMS={platforms}{reason}: set it to what "
            "is there, such as cpu, or install the package for it"
        ) from error


@contextmanager
def traced_for(devices: Sequence[jax.Device]) -> Iterator[None]:
    """Trace programs for the backend of some devices, such as the CPU of a machine with a GPU.

    Args:
        devices: devices of one backend, possibly of several processes.

    Example:
        >>> with traced_for(jax.devices("cpu")):
        ...     backend()
        'cpu'
    """
    [own, *_] = (each for each in devices if each.process_index == jax.process_index())
    with nullcontext() if own.platform == backend() else jax.default_device(own):
        yield


# One thread per device, because every core is a device. The older kernel generator compiles the
# many small kernels in two thirds of the time; 512-bit vectors, if available, run a fifth faster.
CPU_OPTIONS: dict[str, str | bool] = {
    "xla_cpu_multi_thread_eigen": False,
    "xla_cpu_prefer_vector_width": "512",
    "xla_cpu_use_fusion_emitters": False,
}


@functools.cache
def compiler_options(platform: str) -> dict[str, str | bool]:
    """XLA options that make these programs faster, as far as this version of XLA has them.

    Args:
        platform: `cpu`, the only one with any options, `gpu` or `tpu`.

    Returns:
        An argument for `jax.stages.Lowered.compile`.
    """
    if platform != "cpu":
        return {}
    program = jax.jit(lambda: jnp.zeros(())).lower()

    def known(option: str) -> bool:
        try:
            program.compile({option: CPU_OPTIONS[option]})
        except jax.errors.JaxRuntimeError:
            return False
        return True

    return {option: value for option, value in CPU_OPTIONS.items() if known(option)}


def _start_on_one_core() -> list[jax.Device]:
    """Start JAX with all CPU threads on one core, and return the devices."""
    if not hasattr(os, "sched_setaffinity"):
        return start_jax()
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})  # inherited by JAX's threads, not by earlier ones
    available = start_jax()
    if available[0].platform != "cpu":
        os.sched_setaffinity(0, cores)
    return available


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

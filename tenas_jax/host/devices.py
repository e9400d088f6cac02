"""What a command runs on: devices, threads, and the cache of compiled programs."""

import functools
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jax
import jax.numpy as jnp
import tyro

from tenas_jax.errors import InputError, first_line
from tenas_jax.host.cache import keep_programs
from tenas_jax.host.files import require_local
from tenas_jax.host.processes import join

NO_CACHE = "none"
MOST_PER_CORE, MOST_DEVICES = 4, 64  # of a process; each has its threads and its memory


def default_cache() -> str:
    """The user's folder for compiled programs.

    Returns:
        A path.
    """
    root = os.environ.get("XDG_CACHE_HOME")
    try:
        return str((Path(root) if root else Path.home() / ".cache") / "tenas_jax")
    except RuntimeError:  # no home folder is known
        return NO_CACHE


@dataclass(frozen=True)
class Machine:
    """Flags that say what a command runs on."""

    devices: int | None = None
    """Devices that share the work, of each process; None is all, on a CPU one per core."""
    compilation_cache: str = field(default_factory=default_cache)
    """Folder that keeps compiled programs for later runs; none keeps nothing."""
    compilation_cache_mb: int = 2000
    """Megabytes that it may hold; beyond them the least recently used programs are removed."""
    distributed: tyro.conf.FlagCreatePairsOff[bool] = False
    """Share the work with other processes that are started with the same words."""
    coordinator_address: str | None = None
    """HOST:PORT on which process 0 listens, to anyone who reaches it; None asks the cluster's
    environment."""
    process_count: int | None = None
    """Number of processes; None asks the cluster's environment."""
    process_id: int | None = None
    """Which process this is, from 0; None asks the cluster's environment."""

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
    """Choose JAX's devices and its cache; to be called before JAX starts.

    A CPU is always two devices at least, on one core if need be: a program for one device is
    compiled in another way than one for several, and its results differ in the last bit.

    Args:
        machine: what to run on.

    Returns:
        The devices of all processes.

    Raises:
        InputError: there are fewer devices, no cluster to join, or JAX cannot start like this.
    """
    devices, cache = machine.devices, machine.compilation_cache
    # SciPy's LAPACK, which JAX calls: its threads would spin on the cores of other devices.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    cpus = max(2, devices or _cores())
    try:
        jax.config.update("jax_num_cpu_devices", cpus)
    except RuntimeError as error:  # JAX has started; a process has its devices for its life
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
        raise InputError(f"there are {len(available)} devices, not {devices}: lower --devices")
    # A process of a cluster sees no more devices than it is to use.
    return available if machine.distributed else available[:devices]


def start_jax() -> list[jax.Device]:
    """The devices of all processes, with which JAX starts if it has not.

    Raises:
        InputError: JAX has no such backend, or is told not to compile.
    """
    if jax.config.jax_disable_jit:  # type: ignore[attr-defined]
        raise InputError("JAX_DISABLE_JIT is set, and everything here is compiled: unset it")
    try:
        return jax.devices()
    except (AssertionError, RuntimeError) as error:
        platforms = jax.config.values["jax_platforms"]
        # An assertion fails, without a message, where a package is missing.
        reason = "" if isinstance(error, AssertionError) else f" ({first_line(error)})"
        raise InputError(
            f"JAX cannot start on JAX_PLATFORMS={platforms}{reason}: set it to what "
            "is there, such as cpu, or install the package for it"
        ) from error


# One thread for each device: every core is a device. The older kernel generator compiles the many
# small kernels in two thirds of the time; 512-bit vectors run a fifth faster where there are any.
CPU_OPTIONS: dict[str, str | bool] = {
    "xla_cpu_multi_thread_eigen": False,
    "xla_cpu_prefer_vector_width": "512",
    "xla_cpu_use_fusion_emitters": False,
}


@functools.cache
def compiler_options(platform: str) -> dict[str, str | bool]:
    """Options of XLA that make these programs faster, as far as this version of it has them.

    Args:
        platform: `cpu`, the only one that has any, `gpu` or `tpu`.

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
    """The devices, whose threads are all on one core if they are CPUs."""
    if not hasattr(os, "sched_setaffinity"):
        return start_jax()
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})  # threads that JAX starts inherit it, earlier ones do not
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

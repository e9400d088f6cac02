"""How commands start JAX: its devices, its threads, its cache of compiled programs."""

import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import jax

from tenas_jax.errors import InputError

NO_CACHE = "none"


def default_cache() -> str:
    """The user's folder for compiled programs.

    Returns:
        A path.
    """
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return str(Path(root) / "tenas_jax")


def configure_jax(devices: int | None, compilation_cache: str) -> Sequence[jax.Device]:
    """Choose JAX's devices and its cache; to be called before JAX starts.

    A CPU is always two devices at least, on one core if need be: a program for one device is
    compiled in another way than one for several, and its results differ in the last bit.

    Args:
        devices: how many devices to use; None: all, on a CPU one per core.
        compilation_cache: folder of compiled programs, or `none`.

    Returns:
        The devices.

    Raises:
        InputError: there are fewer devices.
    """
    jax.config.update("jax_num_cpu_devices", max(2, devices or _cores()))
    if compilation_cache != NO_CACHE and _is_writable(Path(compilation_cache)):
        jax.config.update("jax_compilation_cache_dir", compilation_cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    available = jax.devices()
    if available[0].platform == "cpu":
        if devices == 1 and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        return available
    if devices is not None and devices > len(available):
        raise InputError(f"there are {len(available)} devices, not {devices}: lower --devices")
    return available[:devices]


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

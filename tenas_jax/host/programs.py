"""A cache of traced programs.

JAX's compilation cache saves later runs the compilation, but not the tracing that yields its key.
For a supernet, tracing takes longer than everything else before the first measurement.
"""

import hashlib
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from jax import export

import tenas_jax
from tenas_jax.host.cache import ProgramCache
from tenas_jax.numerics import backend

PACKAGES = ("jax", "jaxlib", "flax", "neural-tangents", "numpy", "optax")


def traced(function: jax.stages.Wrapped, identity: str | None, *arguments: Any) -> export.Exported:
    """Trace a function, or load its program from an earlier run.

    If JAX's compilation cache is enabled, programs are stored in its folder.

    Args:
        function: the result of `jax.jit`.
        identity: everything its program depends on besides the shapes of the arguments, JAX's
            settings and the source code of packages; None: unknown, so it is not stored.
        *arguments: arrays to trace it with.

    Returns:
        The program; `jax.jit` accepts its `call`.

    Example:
        >>> import jax.numpy as jnp
        >>> program = traced(jax.jit(jnp.square), "square", jnp.ones(3))
        >>> program.call(jnp.arange(3.0)).tolist()
        [0.0, 1.0, 4.0]
    """
    platforms = None if backend() == jax.default_backend() else [backend()]
    folder = jax.config.values["jax_compilation_cache_dir"]
    if folder is None or identity is None:
        return export.export(function, platforms=platforms)(*arguments)
    cache = ProgramCache(folder, max_size=jax.config.values["jax_compilation_cache_max_size"])
    shapes = [(x.shape, x.dtype, getattr(x, "sharding", None)) for x in jax.tree.leaves(arguments)]
    settings = sorted(item for item in jax.config.values.items() if "cache" not in item[0])
    made_by = settings, os.environ.get("XLA_FLAGS"), versions(), _source()
    parts = (identity, shapes, jax.devices(), platforms, made_by)
    key = f"traced-{hashlib.sha256(repr(parts).encode()).hexdigest()}"
    kept = cache.get(key)
    if kept is not None:
        return export.deserialize(bytearray(kept))
    program = export.export(function, platforms=platforms)(*arguments)
    cache.put(key, bytes(program.serialize()))
    return program


def versions() -> dict[str, str]:
    """The versions of the packages that programs depend on.

    Returns:
        Versions by package name, including Python.

    Example:
        >>> sorted(versions())
        ['flax', 'jax', 'jaxlib', 'neural-tangents', 'numpy', 'optax', 'python', 'tenas_jax']
    """
    packages = {name: metadata.version(name) for name in PACKAGES}
    return {**packages, "python": platform.python_version(), "tenas_jax": tenas_jax.__version__}


def _source() -> list[str]:
    """This package's source files, which determine a program."""
    files = sorted(Path(__file__).parents[1].rglob("*.py"))
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]

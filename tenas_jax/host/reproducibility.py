"""Reproducibility: JAX's settings, versions and the platform, on which numbers depend.

A search, a score or a training pins the settings that can be pinned, whatever the user's
environment says, and records the others with its files.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import jax

from tenas_jax.host.programs import versions
from tenas_jax.numerics import PRNG, backend

# Settings that change numbers but have no context manager, or that the user may choose.
RECORDED = (
    "jax_allow_f16_reductions",
    "jax_default_matmul_precision",
    "jax_disable_most_optimizations",
    "jax_exec_time_optimization_effort",
    "jax_high_dynamic_range_gumbel",
    "jax_optimization_level",
    "jax_random_seed_offset",
    "jax_softmax_custom_jvp",
    "jax_use_direct_linearize",
)
# Flags of XLA that change no numbers.
_NEUTRAL = ("--xla_dump", "--xla_force_host_platform_device_count")


@contextmanager
def pinned() -> Iterator[None]:
    """Pin the number types and the random generator in this context; also a decorator.

    Example:
        >>> import jax.numpy as jnp
        >>> with jax.enable_x64(True), pinned():
        ...     jnp.ones(1).dtype.name, str(jax.random.key_impl(jax.random.key(0)))
        ('float32', 'threefry2x32')
    """
    with ExitStack() as stack:
        stack.enter_context(jax.enable_x64(False))
        stack.enter_context(jax.numpy_dtype_promotion("standard"))
        stack.enter_context(jax.default_prng_impl(PRNG))
        stack.enter_context(jax.threefry_partitionable(True))
        yield


def environment() -> dict[str, Any]:
    """The environment, as recorded with the files of a search or a training.

    Returns:
        JSON values: the platform, versions of packages, settings of JAX, flags of XLA.

    Example:
        >>> environment()["settings"]["jax_random_seed_offset"]
        '0'
    """
    packages = versions()
    del packages["python"]
    flags = os.environ.get("XLA_FLAGS", "").split()
    return {
        "platform": backend(),
        **packages,
        # Some versions of JAX lack some of them.
        "settings": {name: str(jax.config.values.get(name)) for name in RECORDED},
        "xla_flags": sorted(flag for flag in flags if not flag.startswith(_NEUTRAL)),
    }


def changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The differences between two environments.

    Args:
        then: a recorded environment.
        now: another environment.

    Returns:
        A text for each difference, with both values.

    Example:
        >>> changes({"jax": "0.10.2"}, {"jax": "0.11.0"})
        ['jax (0.10.2, here 0.11.0)']
    """
    old, new = _flat(then), _flat(now)
    names = sorted(old.keys() | new.keys())
    return [
        f"{name} ({old.get(name)}, here {new.get(name)})"
        for name in names
        if old.get(name) != new.get(name)
    ]


def _flat(environment: Mapping[str, Any]) -> dict[str, Any]:
    settings: Mapping[str, Any] = environment.get("settings", {})
    return {
        **{name: value for name, value in environment.items() if name != "settings"},
        **settings,
    }

"""Default folders of runs."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def default_folder(name: str, seed: int, changes: Mapping[str, Any]) -> Path:
    """The default folder of a run.

    Args:
        name: name of the run.
        seed: seed of the run.
        changes: other settings that affect the result, as JSON values; empty: only defaults.

    Returns:
        A folder specific to these values; if there are changes, it ends with their digest.

    Example:
        >>> print(default_folder("darts-cifar10", 0, {}))
        tenas-runs/darts-cifar10-seed0
        >>> print(default_folder("darts-cifar10", 0, {"repeats": 5}))
        tenas-runs/darts-cifar10-seed0-cfbd568f
    """
    text = json.dumps(changes, sort_keys=True)
    digest = f"-{hashlib.sha256(text.encode()).hexdigest()[:8]}" if changes else ""
    return Path("tenas-runs") / f"{name.replace(':', '-').replace('/', '-')}-seed{seed}{digest}"


def changed_fields(config: Any, default: Any) -> dict[str, Any]:
    """The fields in which a configuration differs from its default, except the seed.

    Args:
        config: a dataclass.
        default: another of the same type.

    Returns:
        The values of these fields.

    Example:
        >>> from tenas_jax.searching.config import SearchConfig
        >>> changed_fields(SearchConfig(seed=3, repeats=5), SearchConfig())
        {'repeats': 5}
    """
    ours, theirs = dataclasses.asdict(config), dataclasses.asdict(default)
    return {name: value for name, value in ours.items() if name != "seed" and value != theirs[name]}

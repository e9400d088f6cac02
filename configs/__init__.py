"""One configuration per published experiment: its number, its command and its cost."""

import inspect
from types import ModuleType

from tenas_jax.config import SearchConfig
from tenas_jax.configs import (
    darts_cifar10,
    darts_cifar10_paper,
    darts_imagenet,
    darts_imagenet_paper,
    nas_bench_201,
    nas_bench_201_paper,
)
from tenas_jax.errors import InputError

DEFAULT_PRESET = "nas-bench-201"
PRESETS: dict[str, ModuleType] = {
    "nas-bench-201": nas_bench_201,
    "nas-bench-201-paper": nas_bench_201_paper,
    "darts-cifar10": darts_cifar10,
    "darts-cifar10-paper": darts_cifar10_paper,
    "darts-imagenet": darts_imagenet,
    "darts-imagenet-paper": darts_imagenet_paper,
}


def get_preset(name: str) -> SearchConfig:
    """The configuration of that name.

    Args:
        name: a key of `PRESETS`.

    Returns:
        The `CONFIG` of its module.

    Raises:
        InputError: the name is unknown.

    Example:
        >>> get_preset("nas-bench-201").ntk.batch_size
        72
        >>> get_preset("resnet")
        Traceback (most recent call last):
        ...
        tenas_jax.errors.InputError: unknown preset 'resnet': choose one of nas-bench-201, \
nas-bench-201-paper, darts-cifar10, darts-cifar10-paper, darts-imagenet, darts-imagenet-paper
    """
    if name not in PRESETS:
        raise InputError(f"unknown preset {name!r}: choose one of {', '.join(PRESETS)}")
    config: SearchConfig = PRESETS[name].CONFIG
    return config


def summary(name: str) -> str:
    """The first line of a preset's description.

    Args:
        name: a key of `PRESETS`.

    Returns:
        One sentence.

    Example:
        >>> summary("nas-bench-201")
        'NAS-Bench-201 with the settings of the original code.'
    """
    return (inspect.getdoc(PRESETS[name]) or "").partition("\n")[0]

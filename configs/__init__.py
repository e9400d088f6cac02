"""One configuration per published experiment, and our best: numbers, command and cost."""

import inspect
from types import ModuleType

from tenas_jax.configs import (
    darts_best,
    darts_cifar10,
    darts_cifar10_paper,
    darts_imagenet,
    darts_imagenet_paper,
    nas_bench_201,
    nas_bench_201_best,
    nas_bench_201_paper,
)
from tenas_jax.resolve import resolve
from tenas_jax.searching.config import SearchConfig

DEFAULT_PRESET = "nas-bench-201"
CUSTOM = "custom"  # the name of settings without a preset
PRESETS: dict[str, ModuleType] = {
    "nas-bench-201": nas_bench_201,
    "nas-bench-201-best": nas_bench_201_best,
    "nas-bench-201-paper": nas_bench_201_paper,
    "darts-best": darts_best,
    "darts-cifar10": darts_cifar10,
    "darts-cifar10-paper": darts_cifar10_paper,
    "darts-imagenet": darts_imagenet,
    "darts-imagenet-paper": darts_imagenet_paper,
}


def get_preset(name: str) -> SearchConfig:
    """Look up a configuration by name.

    Args:
        name: a key of `PRESETS`, or `module:object`.

    Returns:
        The `CONFIG` of its module, or the object.

    Raises:
        InputError: the name is unknown.

    Example:
        >>> get_preset("nas-bench-201").ntk.batch_size
        72
        >>> get_preset("resnet")
        Traceback (most recent call last):
        ...
        tenas_jax.errors.InputError: unknown preset 'resnet': choose from nas-bench-201, \
nas-bench-201-best, nas-bench-201-paper, darts-best, darts-cifar10, darts-cifar10-paper, \
darts-imagenet, darts-imagenet-paper, or write module:object
    """
    known: dict[str, SearchConfig] = {each: PRESETS[each].CONFIG for each in PRESETS}
    return resolve(name, known, SearchConfig, "preset")


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

"""Presets, devices and images, shared by `tenas search` and `tenas score`."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
from rich.console import Console

from tenas_jax.cli.folders import changed_fields, default_folder
from tenas_jax.cli.messages import how_to_go_on
from tenas_jax.cli.signals import run_interruptibly
from tenas_jax.configs import CUSTOM, DEFAULT_PRESET, get_preset
from tenas_jax.host.devices import Machine, configure_jax
from tenas_jax.host.processes import is_main, shared_errors
from tenas_jax.searching.config import SearchConfig

if TYPE_CHECKING:
    from tenas_jax.data.images import ImageSet
    from tenas_jax.searching.problem import Problem


class Session(NamedTuple):
    """The devices and images of a run, and a console."""

    images: "ImageSet"
    devices: Sequence[jax.Device]
    console: Console
    """Prints in process 0 only."""


def split_preset(
    argv: Sequence[str], *, named: bool | None = None
) -> tuple[str, SearchConfig, Sequence[str]]:
    """Split the preset from the other arguments.

    The preset is the first argument. Without one it is the default preset, or no preset if the
    arguments select a space.

    Args:
        argv: the arguments.
        named: whether the first argument is a preset; None: it is, unless it is a flag.

    Returns:
        The name of the preset, its configuration, and the other arguments.

    Example:
        >>> name, config, words = split_preset(["darts-cifar10", "--seed", "1"])
        >>> name, config.space, words
        ('darts-cifar10', 'darts', ['--seed', '1'])
        >>> split_preset(["--seed", "1"])[0], split_preset(["--space", "darts"])[0]
        ('nas-bench-201', 'custom')
    """
    if named is None:
        named = bool(argv) and not argv[0].startswith("-")
    if named:
        return argv[0], get_preset(argv[0]), argv[1:]
    if any(word.split("=")[0] == "--space" for word in argv):
        return CUSTOM, SearchConfig(), argv
    return DEFAULT_PRESET, get_preset(DEFAULT_PRESET), argv


def about_presets() -> str:
    """The help text about presets and further help."""
    return (
        "Flags default to the values of the preset (tenas list presets), which is "
        f"{DEFAULT_PRESET} if none is named. --help-verbose explains every flag; tenas list names "
        "presets, spaces, metrics and image sources, with a line each."
    )


def default_workdir(
    preset: str,
    problem: "Problem",
    *,
    suffix: str = "",
    defaults: Mapping[str, Any] | None = None,
    choices: Mapping[str, Any] | None = None,
) -> Path:
    """The default folder of a run.

    Args:
        preset: its preset.
        problem: what is measured.
        suffix: suffix of the name.
        defaults: the command's defaults that replace those of the preset, by field.
        choices: other settings that affect the result, as JSON values.
    """
    config = problem.config
    name = problem.space.name if preset == CUSTOM else preset
    default = SearchConfig(space=config.space) if preset == CUSTOM else get_preset(preset)
    default = dataclasses.replace(default, **(defaults or {}))
    changes = {**changed_fields(config, default), **(choices or {})}
    return default_folder(name + suffix, config.seed, changes)


def run_resumably(
    command: str, argv: Sequence[str], workdir: Path, work: Callable[[], None]
) -> int:
    """Run a command, and print how to continue if it is interrupted.

    Args:
        command: name of the command.
        argv: its arguments.
        workdir: folder of its trace.
        work: the interruptible function.

    Returns:
        Exit code: 0, or 130 or 143 after SIGINT or SIGTERM.
    """
    return run_interruptibly(
        lambda _: work(),
        lambda: how_to_go_on(command, argv, resume=(workdir / "trace.jsonl").exists()),
    )


def open_session(problem: "Problem", machine: Machine) -> Session:
    """Start JAX and read the images.

    Args:
        problem: what is measured.
        machine: the machine flags.

    Returns:
        The session.

    Raises:
        InputError: there are fewer devices, there is no cluster to join, or the images cannot be
            used; raised in every process if it occurs in one.
    """
    from tenas_jax import api
    from tenas_jax.searching.progress import show_count

    devices = configure_jax(machine)
    console = Console(quiet=not is_main())
    with shared_errors(), show_count(console, "reading images") as progress:
        images = api.read_images(problem, progress)
    return Session(images, devices, console)

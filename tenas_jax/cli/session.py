"""What `tenas search` and `tenas score` share: presets, devices, images."""

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
    """What rows are measured with, and where to print."""

    images: "ImageSet"
    devices: Sequence[jax.Device]
    console: Console
    """Prints in process 0 only."""


def split_preset(
    argv: Sequence[str], *, named: bool | None = None
) -> tuple[str, SearchConfig, Sequence[str]]:
    """The preset that the first word names, its configuration, and the other words.

    Without such a word it is the default preset; where the words name a space of their own, it is
    none.

    Args:
        argv: the words.
        named: whether the first word is a preset; None: if it is no flag.

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
    """Help for presets, and where there is more help."""
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
    """Where the files of a run are if the user does not say.

    Args:
        preset: its preset.
        problem: what is measured.
        suffix: of the name.
        defaults: where the command's defaults are not those of the preset, fields by name.
        choices: what decides the outcome besides the configuration, JSON values.
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
    """Do the work of a command, and say how to go on where it is interrupted.

    Args:
        command: its name.
        argv: the words after it.
        workdir: where its trace is.
        work: what can be interrupted.

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
        machine: what to run on.

    Returns:
        The session.

    Raises:
        InputError: there are fewer devices, no cluster to join, or the images cannot be used; in
            every process, if one of them says so.
    """
    from tenas_jax import api
    from tenas_jax.searching.progress import show_count

    devices = configure_jax(machine)
    console = Console(quiet=not is_main())
    with shared_errors(), show_count(console, "reading images") as progress:
        images = api.read_images(problem, progress)
    return Session(images, devices, console)

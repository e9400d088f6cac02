"""What `tenas search` and `tenas score` share: devices, images, progress."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import jax
from rich.console import Console

from tenas_jax.config import SearchConfig
from tenas_jax.configs import DEFAULT_PRESET, PRESETS, summary
from tenas_jax.runtime import Machine, configure_jax, is_main, shared_errors
from tenas_jax.spaces import SearchSpace, get_space
from tenas_jax.terminal import how_to_go_on, progress_bar, run_interruptibly, say

if TYPE_CHECKING:
    from tenas_jax.data import ImageSet
    from tenas_jax.search import Progress


class Session(NamedTuple):
    """What rows are measured with, and where to print."""

    space: SearchSpace
    images: "ImageSet"
    devices: Sequence[jax.Device]
    device: str
    """The devices in words."""
    console: Console
    """Prints in process 0 only."""


def split_preset(argv: Sequence[str]) -> tuple[str, Sequence[str]]:
    """The preset that the first word names, or the default, and the other words.

    Example:
        >>> split_preset(["darts-cifar10", "--seed", "1"])
        ('darts-cifar10', ['--seed', '1'])
        >>> split_preset(["--seed", "1"])
        ('nas-bench-201', ['--seed', '1'])
    """
    if argv and not argv[0].startswith("-"):
        return argv[0], argv[1:]
    return DEFAULT_PRESET, argv


def list_presets() -> str:
    """Help for presets."""
    listed = "\n\n".join(f"{name}: {summary(name)}" for name in PRESETS)
    return (
        "Flags default to the values of the preset, which is "
        f"{DEFAULT_PRESET} if none is named.\n\n{listed}"
    )


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
        work,
        lambda: how_to_go_on(command, argv, resume=(workdir / "trace.jsonl").exists()),
    )


def open_session(config: SearchConfig, machine: Machine) -> Session:
    """Start JAX and read the images.

    Args:
        config: what is measured.
        machine: what to run on.

    Returns:
        The session.

    Raises:
        InputError: there are fewer devices, no cluster to join, or the images cannot be used; in
            every process, if one of them says so.
    """
    from tenas_jax import data

    devices = configure_jax(machine)
    console = Console(quiet=not is_main())
    with shared_errors(), progress_bar(console) as bar:
        task = bar.add_task("reading images")
        images = data.load_images(
            config.data,
            image_size=config.image_size,
            limit=config.images,
            minimum=config.ntk.batch_size,
            seed=config.seed,
            data_dir=config.data_dir,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    device = f"{len(devices)} x {devices[0].device_kind}"
    return Session(get_space(config.space), images, devices, device, console)


@contextlib.contextmanager
def show_progress(console: Console) -> "Iterator[Callable[[Progress], None]]":
    """A bar over all measurements on a terminal, a line for each round elsewhere.

    Args:
        console: where to print.

    Yields:
        What `run_search` calls with its progress.
    """
    if not console.is_terminal:
        shown: set[int] = set()

        def print_round(progress: "Progress") -> None:
            if progress.round not in shown:
                shown.add(progress.round)
                say(
                    console,
                    f"{_round(progress)}: {progress.done} of {progress.total} "
                    f"measurements done{_time_left(progress)}",
                )

        yield print_round
        return
    with progress_bar(console) as bar:
        task = bar.add_task("compiling")

        def update_bar(progress: "Progress") -> None:
            bar.update(
                task,
                description=_round(progress) + _time_left(progress),
                completed=progress.done,
                total=progress.total,
            )

        yield update_bar


def _round(progress: "Progress") -> str:
    return f"round {progress.round + 1} of {progress.rounds}"


def _time_left(progress: "Progress") -> str:
    return "" if progress.seconds_left is None else f", {progress.seconds_left:.0f} s left"

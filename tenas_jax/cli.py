"""The command line: parse, call the library, print."""

import contextlib
import io
import itertools
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as ProgressBar

from tenas_jax.config import SearchConfig
from tenas_jax.configs import DEFAULT_PRESET, PRESETS, get_preset, summary
from tenas_jax.errors import InputError
from tenas_jax.runtime import (
    Cluster,
    LostProcess,
    configure_jax,
    default_cache,
    is_main,
    leave,
    shared_errors,
)

if TYPE_CHECKING:
    from tenas_jax.search import Progress

USAGE = """\
usage: tenas [--version] [--help] COMMAND ...

Training-free neural architecture search (TE-NAS).

commands:
  search    find an architecture; tenas search --help lists presets and options"""


@dataclass(frozen=True)
class SearchOptions:
    """What `tenas search` is told besides the preset."""

    config: Annotated[SearchConfig, tyro.conf.arg(name="")]
    workdir: Path | None = None
    """Folder of the search's files; None is tenas-runs/PRESET-seedN in the current folder."""
    resume: tyro.conf.FlagCreatePairsOff[bool] = False
    """Go on with the interrupted search in the work directory."""
    devices: int | None = None
    """Devices that share the work, of each process; None is all, on a CPU one per core."""
    compilation_cache: str = field(default_factory=default_cache)
    """Folder that keeps compiled programs for later searches; none keeps nothing."""
    distributed: tyro.conf.FlagCreatePairsOff[bool] = False
    """Share the work with other processes that are started with the same words."""
    coordinator_address: str | None = None
    """HOST:PORT on which process 0 listens; None asks the cluster's environment."""
    process_count: int | None = None
    """Number of processes; None asks the cluster's environment."""
    process_id: int | None = None
    """Which process this is, from 0; None asks the cluster's environment."""

    def __post_init__(self) -> None:
        if self.devices is not None and self.devices < 1:
            raise InputError(f"devices must be at least 1, not {self.devices}")
        if not self.distributed and self._cluster != Cluster():
            raise InputError(
                "--coordinator-address, --process-count and --process-id need --distributed"
            )

    @property
    def cluster(self) -> Cluster | None:
        """The processes to share the work with, if any."""
        return self._cluster if self.distributed else None

    @property
    def _cluster(self) -> Cluster:
        return Cluster(self.coordinator_address, self.process_count, self.process_id)


class Terminated(BaseException):
    """SIGTERM arrived."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `tenas`.

    Args:
        argv: the words after `tenas`; None: those of this process.

    Returns:
        Exit code: 0, 1 if another process of the search ended, 2 for bad input, 130 or 143 after
            SIGINT or SIGTERM.

    Example:
        >>> main(["--version"]) # doctest: +ELLIPSIS
        tenas_jax ...
        0
    """
    words = list(sys.argv[1:] if argv is None else argv)
    command, *arguments = words or ["--help"]
    try:
        if command in ("--help", "-h"):
            print(USAGE)
        elif command == "--version":
            print("tenas_jax", metadata.version("tenas_jax"))
        elif command in COMMANDS:
            return leave(COMMANDS[command](arguments))
        else:
            raise InputError(f"unknown command {command!r}: choose one of {', '.join(COMMANDS)}")
    except InputError as error:
        _complain(str(error))
        return leave(2)
    except LostProcess as error:
        _complain(str(error))
        return leave(1)
    return 0


def search(argv: Sequence[str]) -> int:
    """Run `tenas search`.

    Args:
        argv: the words after `search`.

    Returns:
        Exit code: 0, or 130 or 143 after SIGINT or SIGTERM.

    Raises:
        InputError: the words, the data or the work directory cannot be used.
    """
    preset, options = parse_search(argv)
    workdir = options.workdir or Path("tenas-runs") / f"{preset}-seed{options.config.seed}"
    try:
        with _terminable():
            _search(preset, options, workdir)
    except (KeyboardInterrupt, Terminated) as interruption:
        again = shlex.join(["tenas", "search", *(word for word in argv if word != "--resume")])
        if (workdir / "trace.jsonl").exists():
            again += " --resume"
        _complain(f"interrupted; go on with: {again}")
        return 130 if isinstance(interruption, KeyboardInterrupt) else 143
    return 0


COMMANDS: Mapping[str, Callable[[Sequence[str]], int]] = {"search": search}


def parse_search(argv: Sequence[str]) -> tuple[str, SearchOptions]:
    """Parse the words after `tenas search`.

    Args:
        argv: optionally a preset, then flags, whose defaults are the preset's values.

    Returns:
        The name of the preset, and the options.

    Raises:
        InputError: the words cannot be understood.

    Example:
        >>> preset, options = parse_search(["nas-bench-201-paper", "--seed", "3"])
        >>> preset, options.config.seed, options.config.ntk.batch_size
        ('nas-bench-201-paper', 3, 32)
    """
    named = bool(argv) and not argv[0].startswith("-")
    preset = argv[0] if named else DEFAULT_PRESET
    presets = "\n\n".join(f"{name}: {summary(name)}" for name in PRESETS)
    complaints = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaints):
            return preset, tyro.cli(
                SearchOptions,
                args=argv[1:] if named else argv,
                default=SearchOptions(get_preset(preset)),
                prog="tenas search [PRESET]",
                description="Find an architecture without training. Flags default to the values "
                f"of the preset, which is {DEFAULT_PRESET} if none is named.\n\n{presets}",
            )
    except SystemExit as exit:
        if exit.code == 0:
            raise
        raise _one_line(exit, complaints.getvalue()) from None


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
                _say(
                    console,
                    f"{_round(progress)}: {progress.done} of {progress.total} "
                    f"measurements done{_time_left(progress)}",
                )

        yield print_round
        return
    with _bar(console) as bar:
        task = bar.add_task("compiling")

        def update_bar(progress: "Progress") -> None:
            bar.update(
                task,
                description=_round(progress) + _time_left(progress),
                completed=progress.done,
                total=progress.total,
            )

        yield update_bar


def _bar(console: Console) -> ProgressBar:
    """A progress bar that goes away when it is full; none where there is no terminal."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    off = not console.is_terminal
    return ProgressBar(*columns, console=console, transient=True, disable=off)


def _search(preset: str, options: SearchOptions, workdir: Path) -> None:
    # Bad flags and --help need not wait for what these import.
    from tenas_jax import data, genotype, report, scoring
    from tenas_jax.search import evaluations_per_round, run_search, search_settings
    from tenas_jax.spaces import get_space
    from tenas_jax.workdir import file_errors, shared_workdir

    config = options.config
    space = get_space(config.space)
    devices = configure_jax(options.devices, options.compilation_cache, options.cluster)
    console = Console(quiet=not is_main())
    with shared_errors(), _bar(console) as bar:
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
    first_round = evaluations_per_round(space, config.prune_number)[0]
    _say(
        console,
        f"{preset}: space {space.name}, {len(images.images)} images of {config.data}, "
        f"{device}, {first_round} evaluations in round 1, {config.repeats} repeats each",
    )
    settings = search_settings(config, preset, images.fingerprint)
    with (
        shared_workdir(workdir, settings, resume=options.resume) as folder,
        show_progress(console) as progress,
    ):
        result = run_search(
            config,
            scoring.make_scorer(config, space, images, devices),
            folder,
            preset=preset,
            data_fingerprint=images.fingerprint,
            device=device,
            # A copy of process 0's files holds this search in any case.
            resume=options.resume or not is_main(),
            progress=progress,
        )
    if not is_main():
        return
    with file_errors(workdir):
        mask = genotype.from_string(space, result["genotype"])
        report.write_plots(result, space, mask, workdir)
    console.print(report.summary(result))
    _say(console, f"genotype {result['genotype']}")
    _say(console, f"files are in {workdir}")


def _one_line(exit: SystemExit, box: str) -> InputError:
    """What tyro prints in a box, as a line."""
    cause = exit.__context__
    while cause is not None:
        if isinstance(cause, InputError):
            return cause
        cause = cause.__context__
    # A title, the message, a rule, the flag's help; where the terminal cannot draw boxes, with a
    # rule also after the title.
    rows = [line.strip("│ ") for line in box.splitlines()[1:]]
    from_message = itertools.dropwhile(_is_rule, rows)
    message = " ".join(itertools.takewhile(lambda row: not _is_rule(row), from_message))
    return InputError(f"{message} (see tenas search --help)")


def _is_rule(row: str) -> bool:
    return not any(map(str.isalnum, row))


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    def terminate(number: int, frame: FrameType | None) -> None:
        raise Terminated

    previous = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _round(progress: "Progress") -> str:
    return f"round {progress.round + 1} of {progress.rounds}"


def _time_left(progress: "Progress") -> str:
    return "" if progress.seconds_left is None else f", {progress.seconds_left:.0f} s left"


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _complain(text: str) -> None:
    print("tenas:", " ".join(text.split()), file=sys.stderr)

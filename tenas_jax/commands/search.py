"""`tenas search`: find an architecture."""

import contextlib
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console

from tenas_jax.config import SearchConfig
from tenas_jax.configs import DEFAULT_PRESET, PRESETS, get_preset, summary
from tenas_jax.runtime import Machine, configure_jax, is_main, shared_errors
from tenas_jax.terminal import (
    Terminated,
    complain,
    exit_code,
    parse,
    progress_bar,
    say,
    terminable,
)

if TYPE_CHECKING:
    from tenas_jax.search import Progress


@dataclass(frozen=True)
class SearchOptions:
    """What `tenas search` is told besides the preset."""

    config: Annotated[SearchConfig, tyro.conf.arg(name="")]
    workdir: Path | None = None
    """Folder of the search's files; None is tenas-runs/PRESET-seedN in the current folder."""
    resume: tyro.conf.FlagCreatePairsOff[bool] = False
    """Go on with the interrupted search in the work directory."""
    machine: Annotated[Machine, tyro.conf.arg(name="")] = field(default_factory=Machine)


def run(argv: Sequence[str]) -> int:
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
        with terminable():
            _search(preset, options, workdir)
    except (KeyboardInterrupt, Terminated) as interruption:
        again = shlex.join(["tenas", "search", *(word for word in argv if word != "--resume")])
        if (workdir / "trace.jsonl").exists():
            again += " --resume"
        complain(f"interrupted; go on with: {again}")
        return exit_code(interruption)
    return 0


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
    return preset, parse(
        SearchOptions,
        argv[1:] if named else argv,
        command="search",
        usage="[PRESET]",
        description="Find an architecture without training. Flags default to the values "
        f"of the preset, which is {DEFAULT_PRESET} if none is named.\n\n{presets}",
        default=SearchOptions(get_preset(preset)),
    )


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


def _search(preset: str, options: SearchOptions, workdir: Path) -> None:
    # Bad flags and --help need not wait for what these import.
    from tenas_jax import data, genotype, report, scoring
    from tenas_jax.search import evaluations_per_round, run_search, search_settings
    from tenas_jax.spaces import get_space
    from tenas_jax.workdir import file_errors, shared_workdir

    config = options.config
    space = get_space(config.space)
    devices = configure_jax(options.machine)
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
    first_round = evaluations_per_round(space, config.prune_number)[0]
    say(
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
    say(console, f"genotype {result['genotype']}")
    say(console, f"files are in {workdir}")


def _round(progress: "Progress") -> str:
    return f"round {progress.round + 1} of {progress.rounds}"


def _time_left(progress: "Progress") -> str:
    return "" if progress.seconds_left is None else f", {progress.seconds_left:.0f} s left"

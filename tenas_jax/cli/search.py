"""`tenas search`: find an architecture."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from tenas_jax.cli.session import (
    about_presets,
    default_workdir,
    open_session,
    run_resumably,
    split_preset,
)
from tenas_jax.cli.terminal import parse
from tenas_jax.errors import InputError
from tenas_jax.host.devices import Machine
from tenas_jax.host.locks import locked
from tenas_jax.host.processes import is_main, part, shared_errors
from tenas_jax.searching.config import SearchConfig

if TYPE_CHECKING:
    from tenas_jax.searching.problem import Problem


@dataclass(frozen=True)
class SearchOptions:
    """Options of `tenas search`, besides the preset."""

    config: Annotated[SearchConfig, tyro.conf.arg(name="")]
    workdir: Path | None = None
    """Folder of the search's files; None: tenas-runs/PRESET-seedN, or SPACE-seedN, with a digest
    of the flags that change the preset."""
    resume: tyro.conf.FlagCreatePairsOff[bool] = False
    """Continue the interrupted search in the work directory."""
    accuracy_table: Path | None = None
    """Accuracy table of NAS-Bench-201 (see tenas nasbench --help), to look up the result."""
    machine: Annotated[Machine, tyro.conf.arg(name="")] = field(default_factory=Machine)

    def __post_init__(self) -> None:
        if self.accuracy_table is not None and self.config.space != "nas-bench-201":
            raise InputError(
                f"an accuracy table is of nas-bench-201, not of {self.config.space}: "
                "leave out --accuracy-table"
            )


def run(argv: Sequence[str]) -> int:
    """Run `tenas search`.

    Args:
        argv: the arguments after `search`.

    Returns:
        Exit code: 0, or 130 or 143 after SIGINT or SIGTERM.

    Raises:
        InputError: the arguments, the data or the work directory cannot be used.
    """
    preset, options = parse_search(argv)
    # Imported late, so that bad flags and --help answer at once.
    from tenas_jax.searching.problem import look_up
    from tenas_jax.searching.strategies import get_strategy

    problem = look_up(options.config)
    get_strategy(options.config.strategy)
    workdir = options.workdir or default_workdir(preset, problem)
    return run_resumably(
        "search", argv, workdir, lambda: _search(preset, options, problem, workdir)
    )


def parse_search(argv: Sequence[str]) -> tuple[str, SearchOptions]:
    """Parse the arguments after `tenas search`.

    Args:
        argv: optionally a preset, then flags, whose defaults are the preset's values.

    Returns:
        The name of the preset, and the options.

    Raises:
        InputError: the arguments are invalid.

    Example:
        >>> preset, options = parse_search(["nas-bench-201-paper", "--seed", "3"])
        >>> preset, options.config.seed, options.config.ntk.batch_size
        ('nas-bench-201-paper', 3, 32)
    """
    preset, config, words = split_preset(argv)
    return preset, parse(
        SearchOptions,
        words,
        command="search",
        usage="[PRESET]",
        description=f"Find an architecture without training. {about_presets()}",
        default=SearchOptions(config),
        brief=True,
    )


def _search(preset: str, options: SearchOptions, problem: "Problem", workdir: Path) -> None:
    from tenas_jax import api
    from tenas_jax.searching.progress import say, show_progress
    from tenas_jax.searching.strategies import describe

    config = options.config
    images, devices, console = open_session(problem, options.machine)
    table = None
    with shared_errors():
        if options.accuracy_table is not None and is_main():
            from tenas_jax.analysis.nasbench import load_table  # scipy is slow to import

            table = load_table(options.accuracy_table)
    say(
        console,
        f"{preset}: space {problem.space.name}, {len(images.images)} images of {config.data}, "
        f"{api.describe_devices(devices)}, {describe(problem)}",
    )
    with locked(workdir, flag="--workdir"):
        with show_progress(console) as progress:
            result = api.search_problem(
                problem,
                images,
                workdir=workdir,
                resume=options.resume,
                devices=devices,
                progress=progress,
                preset=preset,
            )
        main = is_main()
        part()
        if not main:
            return
        from tenas_jax.analysis import report  # matplotlib is slow to import

        report.write_plots(result.content, result.space, result.mask, workdir)
    console.print(report.summary(result.content))
    say(console, f"genotype {result.genotype}")
    if table is not None:
        say(console, table.describe(result.genotype))
    say(console, f"files are in {workdir}")

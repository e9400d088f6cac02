"""`tenas search`: find an architecture."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from tenas_jax.commands.session import (
    list_presets,
    open_session,
    run_resumably,
    show_progress,
    split_preset,
)
from tenas_jax.config import SearchConfig
from tenas_jax.configs import get_preset
from tenas_jax.errors import InputError
from tenas_jax.runtime import Machine, is_main, part, shared_errors
from tenas_jax.terminal import parse, say


@dataclass(frozen=True)
class SearchOptions:
    """What `tenas search` is told besides the preset."""

    config: Annotated[SearchConfig, tyro.conf.arg(name="")]
    workdir: Path | None = None
    """Folder of the search's files; None is tenas-runs/PRESET-seedN in the current folder."""
    resume: tyro.conf.FlagCreatePairsOff[bool] = False
    """Go on with the interrupted search in the work directory."""
    accuracy_table: Path | None = None
    """Accuracies of NAS-Bench-201 (see tenas nasbench --help), to look up what was found."""
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
        argv: the words after `search`.

    Returns:
        Exit code: 0, or 130 or 143 after SIGINT or SIGTERM.

    Raises:
        InputError: the words, the data or the work directory cannot be used.
    """
    preset, options = parse_search(argv)
    workdir = options.workdir or Path("tenas-runs") / f"{preset}-seed{options.config.seed}"
    return run_resumably("search", argv, workdir, lambda: _search(preset, options, workdir))


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
    preset, words = split_preset(argv)
    return preset, parse(
        SearchOptions,
        words,
        command="search",
        usage="[PRESET]",
        description=f"Find an architecture without training. {list_presets()}",
        default=SearchOptions(get_preset(preset)),
    )


def _search(preset: str, options: SearchOptions, workdir: Path) -> None:
    # Bad flags and --help need not wait for what these import.
    from tenas_jax import genotype, nasbench, scoring
    from tenas_jax.search import run_search, search_settings
    from tenas_jax.strategies import describe
    from tenas_jax.workdir import shared_workdir

    config = options.config
    space, images, devices, device, console = open_session(config, options.machine)
    table = None
    with shared_errors():
        if options.accuracy_table is not None and is_main():
            table = nasbench.load_table(options.accuracy_table)
    say(
        console,
        f"{preset}: space {space.name}, {len(images.images)} images of {config.data}, "
        f"{device}, {describe(config, space)}",
    )
    settings = search_settings(config, preset, images.fingerprint)
    with (
        shared_workdir(workdir, settings, resume=options.resume) as folder,
        show_progress(console) as progress,
    ):
        single_path = config.strategy != "prune"  # the others measure whole architectures
        result = run_search(
            config,
            scoring.make_scorer(config, space, images, devices, single_path=single_path),
            folder,
            preset=preset,
            data_fingerprint=images.fingerprint,
            device=device,
            # A copy of process 0's files holds this search in any case.
            resume=options.resume or not is_main(),
            progress=progress,
        )
    main = is_main()
    part()
    if not main:
        return
    from tenas_jax import report  # its plots take long to import

    mask = genotype.from_string(space, result["genotype"])
    report.write_plots(result, space, mask, workdir)
    console.print(report.summary(result))
    say(console, f"genotype {result['genotype']}")
    if table is not None:
        say(console, nasbench.describe(table, result["genotype"]))
    say(console, f"files are in {workdir}")

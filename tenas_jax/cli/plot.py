"""`tenas plot`: the pictures of a finished search again, for a paper."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console

from tenas_jax.cli.terminal import parse
from tenas_jax.errors import InputError
from tenas_jax.searching.progress import say

NARROWEST, WIDEST = 2, 30  # inches


@dataclass(frozen=True)
class PlotOptions:
    """What `tenas plot` is told."""

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="WORKDIR")]
    """Work directory of a finished search."""
    format: Literal["pdf", "svg", "png"] = "pdf"
    """Format of the pictures."""
    width: float | None = None
    """Width of each picture in inches, such as 3.3 for a column; the map of pruning is then a
    picture for each type of cell. None is as wide as the text needs."""
    output: Path | None = None
    """Folder for the pictures; None is the work directory."""

    def __post_init__(self) -> None:
        if self.width is not None and not NARROWEST <= self.width <= WIDEST:
            raise InputError(f"width must be {NARROWEST} to {WIDEST} inches, not {self.width:g}")


def run(argv: Sequence[str]) -> int:
    """Run `tenas plot`.

    Args:
        argv: the words after `plot`.

    Returns:
        Exit code: 0.

    Raises:
        InputError: the words or the folder cannot be used, or a picture cannot be written.
    """
    options = parse(
        PlotOptions,
        argv,
        command="plot",
        description="Draw the pictures of a finished search again: cell, pruning and trajectory.",
    )
    # Bad flags and --help need not wait for what these import.
    from tenas_jax.analysis import report
    from tenas_jax.host.files import file_errors, read_json
    from tenas_jax.spaces import load_genotype

    result_file = options.folder / "result.json"
    if not result_file.exists():
        raise InputError(
            f"{options.folder} holds no result.json: name the work directory of a finished search"
        )
    space, mask = load_genotype(str(options.folder))
    result = read_json(result_file, remedy="search again")
    if "rounds" not in result:
        raise InputError(f"{result_file} has no rounds: name the work directory of a search")
    folder = options.output or options.folder
    with file_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    report.write_plots(result, space, mask, folder, options.format, options.width)
    say(Console(), f"pictures are in {folder}")
    return 0

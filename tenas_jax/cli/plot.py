"""`tenas plot`: redraw the figures of a finished search for a paper."""

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
    """Options of `tenas plot`."""

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="WORKDIR")]
    """Work directory of a finished search."""
    format: Literal["pdf", "svg", "png"] = "pdf"
    """Format of the figures."""
    width: float | None = None
    """Width of each figure in inches, such as 3.3 for a column; the pruning map is then one figure
    per cell type. None: natural width."""
    output: Path | None = None
    """Folder for the figures; None: the work directory."""

    def __post_init__(self) -> None:
        if self.width is not None and not NARROWEST <= self.width <= WIDEST:
            raise InputError(f"width must be {NARROWEST} to {WIDEST} inches, not {self.width:g}")


def run(argv: Sequence[str]) -> int:
    """Run `tenas plot`.

    Args:
        argv: the arguments after `plot`.

    Returns:
        Exit code: 0.

    Raises:
        InputError: the arguments or the folder cannot be used, or a figure cannot be written.
    """
    options = parse(
        PlotOptions,
        argv,
        command="plot",
        description="Redraw the figures of a finished search: cell, pruning and trajectory.",
    )
    # Imported late, so that bad flags and --help answer at once.
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

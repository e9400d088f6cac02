"""`tenas nasbench`: accuracy tables."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from tenas_jax.cli.signals import run_interruptibly
from tenas_jax.cli.terminal import parse
from tenas_jax.errors import InputError, quantity
from tenas_jax.searching.progress import say, show_count


@dataclass(frozen=True)
class ConvertOptions:
    """Options of `tenas nasbench convert`."""

    archive: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="ARCHIVE")]
    """NATS-tss-v1_0-*.pickle.pbz2, NATS-tss-v1_0-*-simple (a folder, which needs little memory), or
    NAS-Bench-201-v1_*.pth. They are pickles, which can run arbitrary code: use official ones."""
    output: Path = Path("nasbench201.csv.gz")
    """The table, which must not exist; compressed if its name ends in .gz."""


def run(argv: Sequence[str]) -> int:
    """Run `tenas nasbench`.

    Args:
        argv: the arguments after `nasbench`.

    Returns:
        Exit code: 0, or 130 or 143 after SIGINT or SIGTERM.

    Raises:
        InputError: the arguments or the archive cannot be used, or the output exists.
    """
    action, *words = argv or ["--help"]
    if action not in ("convert", "--help", "-h"):
        raise InputError(f"unknown action {action!r}: write tenas nasbench convert ARCHIVE")
    options = parse(
        ConvertOptions,
        words if action == "convert" else ["--help"],
        command="nasbench convert",
        description="Make an accuracy table from an official archive of NAS-Bench-201: test "
        "accuracies after 200 epochs, averaged over seeds, with parameters and FLOPs.",
    )
    return run_interruptibly(
        lambda _: _convert(options), lambda: "interrupted; nothing was written"
    )


def _convert(options: ConvertOptions) -> None:
    # Imported late, so that bad flags and --help answer at once.
    from tenas_jax.analysis.nasbench import convert

    console = Console()
    with show_count(console, "reading architectures") as progress:
        count = convert(options.archive, options.output, progress)
    say(console, f"{options.output} holds {quantity(count, 'architecture')}")

"""`tenas score`: measure architectures by any metrics."""

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.table import Table
from rich.text import Text

from tenas_jax.cli.session import (
    about_presets,
    default_workdir,
    open_session,
    run_resumably,
    split_preset,
)
from tenas_jax.cli.terminal import parse
from tenas_jax.configs import PRESETS
from tenas_jax.errors import InputError, quantity, within
from tenas_jax.host.devices import Machine
from tenas_jax.host.locks import locked
from tenas_jax.host.processes import exchange, part, shared_errors
from tenas_jax.metrics.registry import USUAL
from tenas_jax.searching.config import SearchConfig

if TYPE_CHECKING:
    from tenas_jax.analysis.results import ScoreTable
    from tenas_jax.architectures.space import Masks, SearchSpace
    from tenas_jax.searching.problem import Problem

FILE = "scores.csv"
FEW = 5  # architectures that are printed; as many columns fit into a terminal
# These replace the presets' values, which are meant for searches.
DEFAULTS: dict[str, Any] = {"metrics": USUAL, "repeats": 1}
LABELS = (
    "Metrics of a loss (grad_norm, snip, zico and others) need labels: random ones by default, "
    "those of the data with --labels own."
)


@dataclass(frozen=True)
class ScoreOptions:
    """Options of `tenas score`, besides the preset."""

    config: Annotated[SearchConfig, tyro.conf.arg(name="")]
    genotypes: tyro.conf.Positional[tuple[str, ...]] = ()
    """Architectures in the notation of the space."""
    file: Path | None = None
    """Text file with one genotype per line."""
    sample: int | None = None
    """Number of distinct random architectures to draw, with the seed."""
    all: tyro.conf.FlagCreatePairsOff[bool] = False
    """All architectures of the space; isomorphic ones are measured once."""
    workdir: Path | None = None
    """Folder of scores.csv and its trace; None: tenas-runs/PRESET-scores-seedN-..., or SPACE-...,
    with a digest of the architectures and of the flags that change the preset."""
    resume: tyro.conf.FlagCreatePairsOff[bool] = False
    """Continue the interrupted run in the work directory."""
    machine: Annotated[Machine, tyro.conf.arg(name="")] = field(default_factory=Machine)

    @property
    def architectures(self) -> dict[str, Any]:
        """The selection of architectures, as JSON values."""
        file = None if self.file is None else str(self.file)
        return {"genotypes": self.genotypes, "file": file, "sample": self.sample, "all": self.all}

    def __post_init__(self) -> None:
        given = [bool(self.genotypes), self.file is not None, self.sample is not None, self.all]
        if sum(given) > 1:
            raise InputError("give either genotypes, --file, --sample or --all")
        if self.sample is not None and self.sample < 1:
            raise InputError(f"sample must be at least 1, not {self.sample}")
        if self.config.repeats == "auto":
            raise InputError("repeats auto is for tenas search: give a number")


def run(argv: Sequence[str]) -> int:
    """Run `tenas score`.

    Args:
        argv: the arguments after `score`.

    Returns:
        Exit code: 0, or 130 or 143 after SIGINT or SIGTERM.

    Raises:
        InputError: the arguments, the data or the work directory cannot be used.
    """
    preset, options = parse_score(argv)
    # Imported late, so that bad flags and --help answer at once.
    from tenas_jax.searching.problem import look_up

    problem = look_up(options.config)
    workdir = options.workdir or default_workdir(
        preset, problem, suffix="-scores", defaults=DEFAULTS, choices=options.architectures
    )
    return run_resumably("score", argv, workdir, lambda: _score(preset, options, problem, workdir))


def parse_score(argv: Sequence[str]) -> tuple[str, ScoreOptions]:
    """Parse the arguments after `tenas score`.

    Args:
        argv: optionally a preset, then genotypes and flags.

    Returns:
        The name of the preset, and the options.

    Raises:
        InputError: the arguments are invalid.

    Example:
        >>> preset, options = parse_score(["--sample", "3", "--metrics", "kappa,flops"])
        >>> preset, options.sample, options.config.metrics
        ('nas-bench-201', 3, 'kappa,flops')
    """
    # The first argument may also be a genotype.
    preset, config, words = split_preset(argv, named=bool(argv) and argv[0] in PRESETS)
    config = dataclasses.replace(config, **DEFAULTS)
    return preset, parse(
        ScoreOptions,
        words,
        command="score",
        usage="[PRESET]",
        description="Measure architectures by metrics (tenas list metrics), and write a CSV file "
        f"with one row per architecture. {LABELS}\n\n{about_presets()}",
        default=ScoreOptions(config),
        brief=True,
    )


def _score(preset: str, options: ScoreOptions, problem: "Problem", workdir: Path) -> None:
    from tenas_jax import api
    from tenas_jax.searching.baselines import to_measure
    from tenas_jax.searching.progress import say, show_progress

    config = options.config
    images, devices, console = open_session(problem, options.machine)
    with shared_errors():
        masks = _architectures(problem.space, options)
    with shared_errors():
        if len(set(exchange(hashlib.sha256(masks.tobytes()).hexdigest()))) > 1:
            raise InputError("the processes have different architectures: give all the same ones")
    measured = len(to_measure(problem.space, masks)[0])
    isomorphic = f" ({measured} to measure, the others are isomorphic)"
    say(
        console,
        f"{preset}: {quantity(len(masks), 'architecture')} of {problem.space.name}"
        f"{isomorphic if measured < len(masks) else ''}, "
        f"{quantity(len(images.images), 'image')} of {config.data}, "
        f"{api.describe_devices(devices)}, {quantity(int(config.repeats), 'repeat')} each, "
        f"{config.labels} labels",
    )
    with locked(workdir, flag="--workdir"), show_progress(console) as progress:
        scores = api.score_problem(
            problem,
            masks,
            images,
            workdir=workdir,
            resume=options.resume,
            devices=devices,
            progress=progress,
            preset=preset,
        )
    part()
    if len(scores) <= FEW:
        for number, genotype in enumerate(scores.genotypes, start=1):
            say(console, f"{number}  {genotype}")
        console.print(_table(scores))
    say(console, f"scores are in {workdir / FILE}")


def _table(scores: "ScoreTable") -> Table:
    """A row for each metric, and a column for each architecture, by its number."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("metric", overflow="fold")
    for number in range(1, len(scores) + 1):
        table.add_column(str(number), justify="right", overflow="fold")
    for metric in scores.metrics:
        table.add_row(Text(metric.name), *(f"{value:.5g}" for value in scores[metric.name]))
    return table


def _architectures(space: "SearchSpace", options: ScoreOptions) -> "Masks":
    import numpy as np

    from tenas_jax import api
    from tenas_jax.architectures import enumeration
    from tenas_jax.host.files import read_text
    from tenas_jax.searching.sizes import require_rows

    if options.all:
        return enumeration.enumerate_all(space)
    if options.sample is not None:
        require_rows(options.sample, int(options.config.repeats))
        rng = np.random.default_rng(options.config.seed)
        return enumeration.sample(space, options.sample, rng)
    texts: Sequence[str] = options.genotypes
    if options.file is not None:
        lines = enumerate(read_text(options.file).splitlines(), start=1)
        numbered = {number: line for number, line in lines if line.strip()}
        texts = list(numbered.values())
        for number, line in numbered.items():
            with within(f"{options.file}, line {number}"):
                space.from_string(line)
    if not texts:
        raise InputError("no architecture to score: give genotypes, --file, --sample or --all")
    return api.masks_of(space, texts)

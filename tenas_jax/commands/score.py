"""`tenas score`: measure given architectures by all metrics."""

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from tenas_jax.commands.session import (
    list_presets,
    open_session,
    run_resumably,
    show_progress,
    split_preset,
)
from tenas_jax.config import SearchConfig
from tenas_jax.configs import DEFAULT_PRESET, PRESETS, get_preset
from tenas_jax.errors import InputError
from tenas_jax.metrics import METRICS
from tenas_jax.runtime import Machine, exchange, is_main, part, shared_errors
from tenas_jax.terminal import parse, say

if TYPE_CHECKING:
    from tenas_jax.spaces import SearchSpace
    from tenas_jax.strategies import Masks

FILE = "scores.csv"


@dataclass(frozen=True)
class ScoreOptions:
    """What `tenas score` is told besides the preset."""

    config: Annotated[SearchConfig, tyro.conf.arg(name="")]
    genotypes: tyro.conf.Positional[tuple[str, ...]] = ()
    """Architectures in the notation of the space."""
    file: Path | None = None
    """Text file with a genotype in each line."""
    sample: int | None = None
    """Draw so many different architectures by the seed."""
    all: tyro.conf.FlagCreatePairsOff[bool] = False
    """All architectures of the space."""
    workdir: Path | None = None
    """Folder of scores.csv and its trace; None is tenas-runs/PRESET-scores-seedN."""
    resume: tyro.conf.FlagCreatePairsOff[bool] = False
    """Go on with the interrupted run in the work directory."""
    machine: Annotated[Machine, tyro.conf.arg(name="")] = field(default_factory=Machine)

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
        argv: the words after `score`.

    Returns:
        Exit code: 0, or 130 or 143 after SIGINT or SIGTERM.

    Raises:
        InputError: the words, the data or the work directory cannot be used.
    """
    preset, options = parse_score(argv)
    seed = options.config.seed
    workdir = options.workdir or Path("tenas-runs") / f"{preset}-scores-seed{seed}"
    return run_resumably("score", argv, workdir, lambda: _score(preset, options, workdir))


def parse_score(argv: Sequence[str]) -> tuple[str, ScoreOptions]:
    """Parse the words after `tenas score`.

    Args:
        argv: optionally a preset, then genotypes and flags.

    Returns:
        The name of the preset, and the options.

    Raises:
        InputError: the words cannot be understood.

    Example:
        >>> preset, options = parse_score(["--sample", "3", "--metrics", "kappa,flops"])
        >>> preset, options.sample, options.config.metric_names
        ('nas-bench-201', 3, ('kappa', 'flops'))
    """
    # A genotype may come first as well.
    preset, words = split_preset(argv) if argv and argv[0] in PRESETS else (DEFAULT_PRESET, argv)
    config = dataclasses.replace(get_preset(preset), metrics=",".join(METRICS), repeats=1)
    metrics = "\n\n".join(
        f"{metric.name}: {metric.label} ({metric.source}), "
        f"{'higher' if metric.direction > 0 else 'lower'} is better"
        for metric in METRICS.values()
    )
    return preset, parse(
        ScoreOptions,
        words,
        command="score",
        usage="[PRESET]",
        description="Measure architectures by every metric, and write a CSV file with a row for "
        f"each of them.\n\nMetrics:\n\n{metrics}\n\n{list_presets()}",
        default=ScoreOptions(config),
    )


def _score(preset: str, options: ScoreOptions, workdir: Path) -> None:
    # Bad flags and --help need not wait for what these import.
    from tenas_jax import scoring
    from tenas_jax.search import run_scores, search_settings
    from tenas_jax.workdir import shared_workdir

    config = options.config
    space, images, devices, device, console = open_session(config, options.machine)
    with shared_errors():
        masks = _architectures(space, options)
    with shared_errors():
        if len(set(exchange(hashlib.sha256(masks.tobytes()).hexdigest()))) > 1:
            raise InputError("the processes have different architectures: give all the same ones")
    say(
        console,
        f"{preset}: {len(masks)} architectures of {space.name}, {len(images.images)} images of "
        f"{config.data}, {device}, {config.repeats} repeats each",
    )
    settings = search_settings(config, f"{preset} scores", images.fingerprint)
    with (
        shared_workdir(workdir, settings, resume=options.resume) as folder,
        show_progress(console) as progress,
    ):
        run_scores(
            config,
            masks,
            scoring.make_scorer(config, space, images, devices, single_path=True),
            folder,
            settings=settings,
            resume=options.resume or not is_main(),
            progress=progress,
        )
    part()
    say(console, f"scores are in {workdir / FILE}")


def _architectures(space: "SearchSpace", options: ScoreOptions) -> "Masks":
    import numpy as np

    from tenas_jax import architectures, genotype
    from tenas_jax.workdir import file_errors

    if options.all:
        return architectures.enumerate_all(space)
    if options.sample is not None:
        rng = np.random.default_rng(options.config.seed)
        return architectures.sample(space, options.sample, rng)
    texts: Sequence[str] = options.genotypes
    if options.file is not None:
        with file_errors(options.file):
            texts = [line for line in options.file.read_text().splitlines() if line.strip()]
    if not texts:
        raise InputError("no architecture to score: give genotypes, --file, --sample or --all")
    masks = np.stack([genotype.from_string(space, text) for text in texts])
    known: dict[bytes, str] = {}
    for mask, text in zip(masks, texts, strict=True):
        if mask.tobytes() in known:
            raise InputError(f"{text} is given twice: give every architecture once")
        known[mask.tobytes()] = text
    return masks

"""`tenas --tyro-print-completion SHELL`: shell completion of commands, flags and choices."""

import contextlib
from typing import Annotated, Any, Union

import tyro

from tenas_jax.cli.correlate import CorrelateOptions
from tenas_jax.cli.describe import DescribeOptions
from tenas_jax.cli.eval import EvalOptions
from tenas_jax.cli.export import ExportOptions
from tenas_jax.cli.list import ListOptions
from tenas_jax.cli.nasbench import ConvertOptions
from tenas_jax.cli.plot import PlotOptions
from tenas_jax.cli.score import ScoreOptions
from tenas_jax.cli.search import SearchOptions
from tenas_jax.cli.train import TrainOptions
from tenas_jax.configs import DEFAULT_PRESET, get_preset
from tenas_jax.errors import InputError
from tenas_jax.training.recipes import get_recipe

SHELLS = "bash", "zsh", "fish", "tcsh"
# The flags of each command, and an instance with their defaults.
OPTIONS: dict[str, tuple[type, Any]] = {
    "search": (SearchOptions, SearchOptions(get_preset(DEFAULT_PRESET))),
    "score": (ScoreOptions, ScoreOptions(get_preset(DEFAULT_PRESET))),
    "correlate": (CorrelateOptions, None),
    "list": (ListOptions, None),
    "nasbench": (ConvertOptions, None),
    "plot": (PlotOptions, None),
    "describe": (DescribeOptions, None),
    "train": (TrainOptions, TrainOptions(get_recipe("cifar10"), "cifar10")),
    "eval": (EvalOptions, None),
    "export": (ExportOptions, None),
}


def run(flag: str, shell: str = "", *file: str) -> int:
    """Print or write a completion script.

    Args:
        flag: `--tyro-print-completion`, or `--tyro-write-completion`.
        shell: one of `SHELLS`.
        file: the output file.

    Returns:
        Exit code: 0.

    Raises:
        InputError: the shell is unknown, or a file is missing or unexpected.
    """
    writes = flag == "--tyro-write-completion"
    if shell not in SHELLS or len(file) != writes:
        usage = f"{flag} {'|'.join(SHELLS)}{' FILE' if writes else ''}"
        raise InputError(f"completion is for one shell: write tenas {usage}")
    commands: Any = Union[tuple(_subcommand(name, *OPTIONS[name]) for name in OPTIONS)]  # noqa: UP007
    with contextlib.suppress(SystemExit):
        tyro.cli(commands, prog="tenas", args=[flag, shell, *file])
    return 0


def _subcommand(name: str, options: type, default: Any) -> Any:
    given = {} if default is None else {"default": default}
    return Annotated[options, tyro.conf.subcommand(name, **given)]

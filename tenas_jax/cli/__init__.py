"""The command line: dispatch to a command and return its exit code."""

import sys
from collections.abc import Sequence
from importlib import import_module

import tenas_jax
from tenas_jax.cli.terminal import complain
from tenas_jax.errors import InputError
from tenas_jax.host.processes import LostProcess, leave
from tenas_jax.host.reproducibility import pinned

COMMANDS = {
    "search": "find an architecture",
    "score": "measure architectures by all metrics",
    "correlate": "compare such scores with trained accuracies",
    "nasbench": "make tables of accuracies from the archives of NAS-Bench-201",
    "describe": "print and draw an architecture: layers, parameters, FLOPs",
    "train": "train an architecture",
    "eval": "evaluate a trained network",
    "export": "write a trained network as StableHLO",
}
USAGE = f"""\
usage: tenas [--version] [--help] COMMAND ...

Training-free neural architecture search (TE-NAS). tenas COMMAND --help explains a command.

commands:
{"".join(f"  {name:<12}{summary}" + chr(10) for name, summary in COMMANDS.items())}"""


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
            print(USAGE, end="")
        elif command == "--version":
            print("tenas_jax", tenas_jax.__version__)
        elif command in COMMANDS:
            module = import_module(f"tenas_jax.cli.{command}")
            with pinned():
                return leave(module.run(arguments))
        else:
            raise InputError(f"unknown command {command!r}: choose one of {', '.join(COMMANDS)}")
    except InputError as error:
        complain(str(error))
        return leave(2)
    except LostProcess as error:
        complain(str(error))
        return leave(1)
    return 0

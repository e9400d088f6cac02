"""The command line: dispatch to a command and return its exit code."""

import os
import sys
from collections.abc import Sequence
from importlib import import_module

# Set before JAX is loaded: XLA's C++ code reports slow compilations on stderr; errors are raised
# anyway. JAX itself sets 1, which is inherited by processes started from a program that uses JAX.
if os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1") == "1":
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import tenas_jax
from tenas_jax.cli.messages import complain
from tenas_jax.cli.signals import own_process
from tenas_jax.errors import InputError, first_line

COMMANDS = {
    "search": "find an architecture",
    "score": "measure architectures by any metrics",
    "correlate": "compare scores with trained accuracies",
    "list": "list presets, spaces, metrics, recipes and image sources",
    "nasbench": "make accuracy tables from the archives of NAS-Bench-201",
    "plot": "redraw the figures of a finished search for a paper",
    "describe": "print and draw an architecture: layers, parameters, FLOPs",
    "train": "train an architecture",
    "eval": "evaluate a trained network",
    "export": "write a trained network as StableHLO",
}
COMPLETION = "--tyro-print-completion", "--tyro-write-completion"
USAGE = f"""\
usage: tenas [--version] [--help] COMMAND ...

Training-free neural architecture search (TE-NAS). tenas COMMAND --help explains a command.

commands:
{"".join(f"  {name:<12}{summary}" + chr(10) for name, summary in COMMANDS.items())}"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `tenas`.

    Args:
        argv: the arguments after `tenas`; None: those of this process, which then exits.

    Returns:
        Exit code: 0; 1 if another process of the search ended; 2 for bad input and for errors of
            the machine, such as a full disk; 130 or 143 after SIGINT or SIGTERM.

    Example:
        >>> main(["--version"]) # doctest: +ELLIPSIS
        tenas_jax ...
        0
    """
    # Not `list(...)`, which is the module of a command here.
    words = [*(sys.argv[1:] if argv is None else argv)] or ["--help"]
    if argv is not None:
        return _run(words)
    with own_process():
        _prepare_streams()
        return _run(words)


def _run(words: Sequence[str]) -> int:
    """Run a command; print errors as one line."""
    try:
        try:
            code = _dispatch(*words)
        finally:
            sys.stdout.flush()
    except InputError as error:
        complain(str(error))
    except MemoryError as error:
        complain(f"out of memory ({first_line(error)}): use fewer or smaller images or networks")
    except OSError as error:
        reason = error.strerror or first_line(error)
        complain(f"cannot use {error.filename or _standard_output()}: {reason}")
    else:
        return code
    return _leave(2)


def _dispatch(command: str, *arguments: str) -> int:
    if command in ("--help", "-h"):
        print(USAGE, end="")
        return 0
    if command == "--version":
        print("tenas_jax", tenas_jax.__version__)
        return 0
    if command in COMPLETION:
        from tenas_jax.cli import completion

        return completion.run(command, *arguments)
    if command not in COMMANDS:
        raise InputError(f"unknown command {command!r}: choose one of {', '.join(COMMANDS)}")
    # Imported here, so that a signal during the import is handled as well.
    from jax.errors import JaxRuntimeError

    from tenas_jax.host.memory import is_out_of_memory
    from tenas_jax.host.processes import LostProcess
    from tenas_jax.host.reproducibility import pinned

    try:
        module = import_module(f"tenas_jax.cli.{command}")
        with pinned():
            return _leave(module.run(arguments))
    except LostProcess as error:
        complain(str(error))
        return _leave(1)
    except JaxRuntimeError as error:
        if is_out_of_memory(error):
            raise MemoryError(first_line(error)) from error
        raise


def _leave(code: int) -> int:
    """Leave a distributed run, if this process is part of one."""
    if "tenas_jax.host.processes" not in sys.modules:
        return code
    from tenas_jax.host.processes import leave

    return leave(code)


def _prepare_streams() -> None:
    """Make stdout and stderr accept every character, even if they are closed or not UTF-8."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        getattr(sys, name).reconfigure(errors="backslashreplace")


def _standard_output() -> str:
    """The name of stdout in messages; also discards what could not be written to it."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
    return "standard output"

"""The command line: dispatch to a command and return its exit code."""

import os
import sys
from collections.abc import Sequence
from importlib import import_module

# Before JAX is loaded: XLA's C++ says on stderr where a compilation is slow; its errors are raised
# all the same. JAX itself sets 1, which processes started by a program that uses JAX inherit.
if os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1") == "1":
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import tenas_jax
from tenas_jax.cli.messages import complain
from tenas_jax.cli.signals import own_process
from tenas_jax.errors import InputError, first_line

COMMANDS = {
    "search": "find an architecture",
    "score": "measure architectures by all metrics",
    "correlate": "compare such scores with trained accuracies",
    "list": "name the presets, spaces, metrics, recipes and image sources there are",
    "nasbench": "make tables of accuracies from the archives of NAS-Bench-201",
    "plot": "draw the pictures of a finished search again, for a paper",
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
        argv: the words after `tenas`; None: those of this process, which is about to end.

    Returns:
        Exit code: 0, 1 if another process of the search ended, 2 for bad input and for what the
            machine refuses, 130 or 143 after SIGINT or SIGTERM.

    Example:
        >>> main(["--version"]) # doctest: +ELLIPSIS
        tenas_jax ...
        0
    """
    # Not `list(...)`: here that is the module of the command.
    words = [*(sys.argv[1:] if argv is None else argv)] or ["--help"]
    if argv is not None:
        return _run(words)
    with own_process():
        _prepare_streams()
        return _run(words)


def _run(words: Sequence[str]) -> int:
    """Run a command, and explain in one line what it cannot do."""
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
    # A signal while these are imported ends in one line as well.
    from jax.errors import JaxRuntimeError

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
        if "RESOURCE_EXHAUSTED" in str(error):
            raise MemoryError(first_line(error)) from error
        raise


def _leave(code: int) -> int:
    """End the search of this process, if it takes part in one."""
    if "tenas_jax.host.processes" not in sys.modules:
        return code
    from tenas_jax.host.processes import leave

    return leave(code)


def _prepare_streams() -> None:
    """Streams that take every character, also where there are none or their encoding is narrow."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        getattr(sys, name).reconfigure(errors="backslashreplace")


def _standard_output() -> str:
    """Its name; what could not be written there is not tried again."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
    return "standard output"

"""What all commands share: flags, interruptions, and errors in a line."""

import contextlib
import dataclasses
import io
import itertools
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import tyro

from tenas_jax.errors import InputError
from tenas_jax.host.files import require_local

Options = TypeVar("Options")


class Terminated(BaseException):
    """SIGTERM arrived."""


def parse(
    options: type[Options],
    words: Sequence[str],
    *,
    command: str,
    description: str,
    usage: str = "",
    default: Options | None = None,
) -> Options:
    """Parse the words after a command.

    Args:
        options: a dataclass whose fields are the flags; the line under a field is its help text.
        words: what the user typed after the command.
        command: its name.
        description: what its help starts with.
        usage: what it takes before its flags.
        default: where the flags have their defaults from, if not from the dataclass.

    Returns:
        The options.

    Raises:
        InputError: the words cannot be understood.

    Example:
        >>> from tenas_jax.host.devices import Machine
        >>> parse(Machine, ["--devices", "2"], command="search", description="").devices
        2
        >>> parse(Machine, ["--sede", "3"], command="search", description="")
        Traceback (most recent call last):
        ...
        tenas_jax.errors.InputError: Unrecognized options: --sede, 3 (see tenas search --help)
    """
    complaints = io.StringIO()
    given: dict[str, Any] = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(complaints):
            parsed: Options = tyro.cli(
                options,
                args=words,
                prog=f"tenas {command} {usage}".rstrip(),
                description=description,
                **given,
            )
            _require_local_paths(parsed)
            return parsed
    except SystemExit as exit:
        if exit.code == 0:
            raise
        raise _one_line(exit, complaints.getvalue(), command) from None


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM raise `Terminated` in this context, as SIGINT raises `KeyboardInterrupt`."""

    def terminate(number: int, frame: FrameType | None) -> None:
        raise Terminated

    previous = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def run_interruptibly(work: Callable[[], None], explain: Callable[[], str]) -> int:
    """Do something that SIGINT or SIGTERM may end, with one line.

    Args:
        work: what to do.
        explain: says what an interruption leaves.

    Returns:
        Exit code: 0, or 130 or 143 after SIGINT or SIGTERM.
    """
    try:
        with terminable():
            work()
    except (KeyboardInterrupt, Terminated) as interruption:
        complain(explain())
        return exit_code(interruption)
    return 0


def how_to_go_on(command: str, argv: Sequence[str], *, resume: bool) -> str:
    """What to type after an interruption.

    Args:
        command: the one that was interrupted.
        argv: the words after it.
        resume: whether there is something to go on with.

    Example:
        >>> how_to_go_on("search", ["--seed", "3"], resume=True)
        'interrupted; go on with: tenas search --seed 3 --resume'
    """
    again = shlex.join(["tenas", command, *(word for word in argv if word != "--resume")])
    return f"interrupted; go on with: {again}{' --resume' if resume else ''}"


def exit_code(interruption: BaseException) -> int:
    """What the shell expects of a process that a signal ended.

    Example:
        >>> exit_code(KeyboardInterrupt()), exit_code(Terminated())
        (130, 143)
    """
    return 143 if isinstance(interruption, Terminated) else 130


def complain(text: str) -> None:
    """Print what is wrong as one line on standard error.

    Args:
        text: what is wrong, and what would be right.
    """
    print("tenas:", " ".join(text.split()), file=sys.stderr)


def _require_local_paths(options: Any) -> None:
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if dataclasses.is_dataclass(value):
            _require_local_paths(value)
        elif isinstance(value, Path):
            require_local(value)


def _one_line(exit: SystemExit, box: str, command: str) -> InputError:
    """What tyro prints in a box, as a line."""
    cause = exit.__context__
    while cause is not None:
        if isinstance(cause, InputError):
            return cause
        cause = cause.__context__
    # A title, the message, a rule, the flag's help; where the terminal cannot draw boxes, with a
    # rule also after the title.
    rows = [line.strip("│ ") for line in box.splitlines()[1:]]
    from_message = itertools.dropwhile(_is_rule, rows)
    message = " ".join(itertools.takewhile(lambda row: not _is_rule(row), from_message))
    return InputError(f"{message} (see tenas {command} --help)")


def _is_rule(row: str) -> bool:
    return not any(map(str.isalnum, row))

"""Parse the flags of commands; errors are one line."""

import contextlib
import dataclasses
import difflib
import io
import itertools
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro

from tenas_jax.errors import InputError
from tenas_jax.host.files import require_local

Options = TypeVar("Options")


def parse(
    options: type[Options],
    words: Sequence[str],
    *,
    command: str,
    description: str,
    usage: str = "",
    default: Options | None = None,
    brief: bool = False,
) -> Options:
    """Parse the arguments after a command.

    Args:
        options: a dataclass whose fields are the flags; the docstring of a field is its help text.
        words: the arguments after the command.
        command: name of the command.
        description: the start of its help text.
        usage: its arguments before the flags.
        default: an instance with the defaults of the flags; None: those of the dataclass.
        brief: whether --help only names the flags, and --help-verbose explains them.

    Returns:
        The options.

    Raises:
        InputError: the arguments are invalid.

    Example:
        >>> from tenas_jax.host.devices import Machine
        >>> parse(Machine, ["--devices", "2"], command="search", description="").devices
        2
        >>> parse(Machine, ["--device", "3"], command="search", description="")
        Traceback (most recent call last):
        ...
        tenas_jax.errors.InputError: Unrecognized options: --device, 3: did you mean --devices? \
(see tenas search --help)
    """
    for before, word in itertools.pairwise(("", *words)):
        if not word.strip() or re.fullmatch(r"--[\w.-]+=\s*", word):
            name = word.strip("= ") or before
            given_to = f" after {name}" if name.startswith("--") else ""
            raise InputError(
                f"an empty word{given_to}: give it a value (see tenas {command} --help)"
            )
    complaints = io.StringIO()
    given: dict[str, Any] = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(complaints):
            parsed: Options = tyro.cli(
                options,
                args=words,
                prog=f"tenas {command} {usage}".rstrip(),
                description=description,
                compact_help=brief,
                **given,
            )
            _require_local_paths(parsed)
            return parsed
    except SystemExit as exit:
        if exit.code == 0:
            raise
        raise _one_line(exit, complaints.getvalue(), words, command) from None


def _require_local_paths(options: Any) -> None:
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        for each in value if isinstance(value, tuple) else (value,):
            if dataclasses.is_dataclass(each):
                _require_local_paths(each)
            elif isinstance(each, Path):
                require_local(each)


def _one_line(exit: SystemExit, box: str, words: Sequence[str], command: str) -> InputError:
    """Turn the box that tyro prints into one line."""
    cause = exit.__context__
    while cause is not None:
        if isinstance(cause, InputError):
            return cause
        cause = cause.__context__
    # The box has a title, the message, a rule and the help of the flag; without box-drawing
    # characters it has another rule after the title.
    rows = [line.strip("│ ") for line in box.splitlines()[1:]]
    from_message = itertools.dropwhile(_is_rule, rows)
    message = " ".join(itertools.takewhile(lambda row: not _is_rule(row), from_message))
    message = (
        message.rstrip(".").replace(". Expected", ": expected").replace(" 1 values", " 1 value")
    )
    return InputError(f"{message}{_hint(message, rows, words)} (see tenas {command} --help)")


def _hint(message: str, rows: Sequence[str], words: Sequence[str]) -> str:
    """What was probably meant: a value that starts with a minus, or a flag that the box names."""
    if message.startswith("Missing value"):
        values = (
            f"{flag}={word}"
            for flag, word in itertools.pairwise(words)
            if f"'{flag}'" in message and re.match("-[^-]", word)
        )
        return "".join(f"; write {shlex.quote(value)}" for value in values)
    if not message.startswith("Unrecognized"):
        return ""
    known = [row.split()[0] for row in rows if row.startswith("--")]
    unknown = [word.split("=")[0] for word in words if f"{word}," in f"{message},"]
    meant = (difflib.get_close_matches(word, known, n=1) for word in unknown)
    names = ", ".join(dict.fromkeys(itertools.chain(*meant)))
    return names and f": did you mean {names}?"


def _is_rule(row: str) -> bool:
    return not any(map(str.isalnum, row))

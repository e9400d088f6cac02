"""Messages of commands on standard error, one line each."""

import re
import shlex
import sys
from collections.abc import Sequence


def complain(text: str) -> None:
    """Print an error as one line on standard error.

    Args:
        text: what is wrong and how to fix it.
    """
    print(
        "tenas:", re.sub(r"\s*[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]\s*", " ", text), file=sys.stderr
    )


def how_to_go_on(command: str, argv: Sequence[str], *, resume: bool) -> str:
    """How to continue after an interruption.

    Args:
        command: the interrupted command.
        argv: its arguments.
        resume: whether there is anything to resume.

    Example:
        >>> how_to_go_on("search", ["--workdir", "my  run"], resume=True)
        "interrupted; continue with: tenas search --workdir 'my  run' --resume"
    """
    words = [word for word in argv if word != "--resume"]
    again = " ".join(["tenas", command, *map(_quoted, words)])
    return f"interrupted; continue with: {again}{' --resume' if resume else ''}"


def _quoted(word: str) -> str:
    """An argument quoted for the shell, on one line."""
    if word.isprintable():
        return shlex.quote(word)
    characters = (
        each if each.isprintable() and each not in "\\'" else f"\\x{ord(each):02x}" for each in word
    )
    return f"$'{''.join(characters)}'"

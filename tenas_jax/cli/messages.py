"""What a command says on standard error: one line."""

import re
import shlex
import sys
from collections.abc import Sequence


def complain(text: str) -> None:
    """Print what is wrong as one line on standard error.

    Args:
        text: what is wrong, and what would be right.
    """
    print(
        "tenas:", re.sub(r"\s*[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]\s*", " ", text), file=sys.stderr
    )


def how_to_go_on(command: str, argv: Sequence[str], *, resume: bool) -> str:
    """What to type after an interruption.

    Args:
        command: the one that was interrupted.
        argv: the words after it.
        resume: whether there is something to go on with.

    Example:
        >>> how_to_go_on("search", ["--workdir", "my  run"], resume=True)
        "interrupted; go on with: tenas search --workdir 'my  run' --resume"
    """
    words = [word for word in argv if word != "--resume"]
    again = " ".join(["tenas", command, *map(_quoted, words)])
    return f"interrupted; go on with: {again}{' --resume' if resume else ''}"


def _quoted(word: str) -> str:
    """A word as a shell reads it, on one line."""
    if word.isprintable():
        return shlex.quote(word)
    characters = (
        each if each.isprintable() and each not in "\\'" else f"\\x{ord(each):02x}" for each in word
    )
    return f"$'{''.join(characters)}'"

"""The only exception for unusable input, and the wording of messages."""

from collections.abc import Iterator
from contextlib import contextmanager


class InputError(ValueError):
    """Input that cannot be used. The message is one line: what is wrong and how to fix it.

    Example:
        >>> raise InputError("batch size 1 is too small: use 2 or more")
        Traceback (most recent call last):
        ...
        tenas_jax.errors.InputError: batch size 1 is too small: use 2 or more
    """


@contextmanager
def within(where: str) -> Iterator[None]:
    """Prefix error messages with the location of the input.

    Args:
        where: the location, such as a file and a line.

    Example:
        >>> with within("genotypes.txt, line 3"):
        ...     raise InputError("nothing is written")
        Traceback (most recent call last):
        ...
        tenas_jax.errors.InputError: genotypes.txt, line 3: nothing is written
    """
    try:
        yield
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def quantity(number: int, noun: str) -> str:
    """A number and its noun, in the singular or the plural.

    Example:
        >>> quantity(1, "repeat"), quantity(3, "class"), quantity(0, "image")
        ('1 repeat', '3 classes', '0 images')
    """
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{number} {noun if number == 1 else plural}"


def first_line(error: BaseException) -> str:
    r"""The first line of another library's error message.

    Example:
        >>> first_line(ValueError("no such file\nTraceback")), first_line(KeyError())
        ('no such file', 'KeyError')
    """
    return str(error).partition("\n")[0].strip() or type(error).__name__

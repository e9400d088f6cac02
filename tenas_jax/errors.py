"""The one exception that means: the input is wrong, and this line says what would be right."""


class InputError(ValueError):
    """Input that cannot be used; the message is a single line naming the fault and the remedy.

    Example:
        >>> raise InputError("batch size 1 is too small: use 2 or more")
        Traceback (most recent call last):
        ...
        tenas_jax.errors.InputError: batch size 1 is too small: use 2 or more
    """


def first_line(error: Exception) -> str:
    r"""What an error of another library says, as one line.

    Example:
        >>> first_line(ValueError("no such file\nTraceback")), first_line(KeyError())
        ('no such file', 'KeyError')
    """
    return str(error).partition("\n")[0].strip() or type(error).__name__

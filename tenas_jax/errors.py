"""The one exception that means: the input is wrong, and this line says what would be right."""


class InputError(ValueError):
    """Input that cannot be used; the message is a single line naming the fault and the remedy.

    Example:
        >>> raise InputError("batch size 1 is too small: use 2 or more")
        Traceback (most recent call last):
        ...
        tenas_jax.errors.InputError: batch size 1 is too small: use 2 or more
    """

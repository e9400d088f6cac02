"""Files that are whole at any moment, JSON, and one line for what the file system refuses."""

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tenas_jax.errors import InputError


@contextmanager
def file_errors(path: Path) -> Iterator[None]:
    """Turn what the operating system says about a path into one line for the user.

    Args:
        path: what is read or written in the context.

    Raises:
        InputError: an OSError occurred.

    Example:
        >>> with file_errors(Path("/nowhere")):
        ...     _ = Path("/nowhere").read_text()
        Traceback (most recent call last):
        ...
        tenas_jax.errors.InputError: cannot use /nowhere: No such file or directory
    """
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot use {path}: {error.strerror}") from error


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Write a file whole or not at all.

    Args:
        path: the file, which is replaced if it exists.

    Yields:
        The file to write, which becomes the other if there is no error.

    Raises:
        InputError: the file cannot be written.
    """
    unfinished = path.with_name(path.name + ".part")
    with file_errors(path):
        try:
            yield unfinished
            with open(unfinished, "rb") as file:
                os.fsync(file.fileno())
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a file whole or not at all.

    Args:
        path: the file, which is replaced if it exists.
        value: JSON values; numbers are finite.

    Raises:
        InputError: the file cannot be written.
    """
    with whole_file(path) as unfinished, open(unfinished, "w") as file:
        json.dump(value, file, indent=1, allow_nan=False)


def read_json(path: Path) -> Any:
    """Read a file that `write_json` wrote.

    Args:
        path: the file.

    Returns:
        Its value.

    Raises:
        InputError: the file cannot be read or is not JSON.
    """
    with file_errors(path):
        text = path.read_text()
    try:
        return json.loads(text)
    except ValueError:
        raise InputError(f"{path} is damaged: start again in another --workdir") from None


def json_values(value: Any) -> Any:
    """JSON values of nested lists and dictionaries; numbers that are not finite become strings.

    Args:
        value: what is to be written.

    Returns:
        Values from which `float` makes the same numbers.

    Example:
        >>> json_values({"kappa": [0.5, float("inf")]})
        {'kappa': [0.5, 'inf']}
    """
    if isinstance(value, dict):
        return {name: json_values(each) for name, each in value.items()}
    if isinstance(value, list):
        return [json_values(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value

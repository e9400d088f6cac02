"""Files that are whole at any moment, JSON with a checksum, local paths, errors in one line.

A checksum is the CRC-32 of a record's JSON text with sorted keys, as eight hexadecimal digits in
its member `crc32`. It finds damage and edits, and does not mind another layout of the text.
"""

import json
import math
import os
import re
import sys
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tenas_jax.errors import InputError

CHECKSUM = "crc32"

# Not of one letter, which is a drive of Windows. A `Path` has made one slash of two.
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+")


def require_local(path: str | Path) -> None:
    """Refuse a path with a scheme, which would become a local folder of that name.

    Args:
        path: what a user names.

    Raises:
        InputError: it has a scheme.

    Example:
        >>> require_local("runs/3")
        >>> require_local(Path("gs://bucket/run"))
        Traceback (most recent call last):
        ...
        tenas_jax.errors.InputError: gs://bucket/run is not a local path: mount or copy it, and \
give the path that it has here
    """
    if scheme := _SCHEME.match(os.fspath(path)):
        rest = os.fspath(path)[scheme.end() :]
        raise InputError(
            f"{scheme[1]}://{rest} is not a local path: mount or copy it, and give the path that "
            "it has here"
        )


@contextmanager
def file_errors(path: Path) -> Iterator[None]:
    """Turn what the operating system says about a path into one line for the user.

    Args:
        path: what is read or written in the context.

    Raises:
        InputError: the path has a scheme, or an OSError occurred.

    Example:
        >>> with file_errors(Path("/nowhere")):
        ...     _ = Path("/nowhere").read_text()
        Traceback (most recent call last):
        ...
        tenas_jax.errors.InputError: cannot use /nowhere: No such file or directory
    """
    require_local(path)
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot use {path}: {error.strerror or error}") from error


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
    """Write a file with a checksum, whole or not at all.

    Args:
        path: the file, which is replaced if it exists.
        value: JSON values; numbers are finite.

    Raises:
        InputError: the file cannot be written.
    """
    with whole_file(path) as unfinished, open(unfinished, "w") as file:
        json.dump({**value, CHECKSUM: checksum(value)}, file, indent=1, allow_nan=False)


def read_json(path: Path, *, remedy: str) -> dict[str, Any]:
    """Read a file that `write_json` wrote.

    Args:
        path: the file.
        remedy: what to do if it cannot be used, for the message.

    Returns:
        Its value, without the checksum.

    Raises:
        InputError: the file cannot be read, is damaged, or has no checksum.
    """
    with file_errors(path):
        content = path.read_bytes()
    try:
        return unsealed(content)
    except KeyError:
        reason = "has no checksum, so it is of another version"
    except ValueError:
        reason = "is damaged"
    raise InputError(f"{path} {reason}: {remedy}")


def checksum(value: Mapping[str, Any], before: str = "0") -> str:
    """The CRC-32 of JSON values.

    Args:
        value: JSON values.
        before: checksum of what precedes them, which is checked with them.

    Returns:
        Eight hexadecimal digits.

    Example:
        >>> checksum({"kappa": 12.5}), checksum({"kappa": 12.5}, "a5")
        ('f2165b16', '07d32bb8')
    """
    text = json.dumps(value, sort_keys=True)
    return f"{zlib.crc32(text.encode(), int(before, 16)):08x}"


def unsealed(text: str | bytes, before: str = "0") -> dict[str, Any]:
    """The values of a JSON text with a checksum.

    Args:
        text: an object with the member `crc32`.
        before: checksum of what precedes it.

    Returns:
        Its other members.

    Raises:
        KeyError: it has no checksum.
        ValueError: it is not JSON, no object, or another than the checksum is of.

    Example:
        >>> unsealed('{"crc32": "f2165b16", "kappa":12.50}')
        {'kappa': 12.5}
        >>> unsealed('{"crc32": "f2165b16", "kappa": 13.5}')
        Traceback (most recent call last):
        ...
        ValueError: the checksum is of something else
    """
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(value, dict):
        raise ValueError("no object")
    if value.pop(CHECKSUM) != checksum(value, before):
        raise ValueError("the checksum is of something else")
    return value


def is_number(value: object) -> bool:
    """Whether a JSON value is a finite number.

    Args:
        value: what was read.

    Example:
        >>> is_number(0.5), is_number(True), is_number("12"), is_number(float("nan"))
        (True, False, False, False)
    """
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return abs(value) <= sys.float_info.max


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

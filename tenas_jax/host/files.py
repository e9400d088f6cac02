"""Atomic files, JSON with checksums, local paths, one-line errors.

The checksum is the CRC-32 of a record's JSON text with sorted keys, stored as eight hexadecimal
digits in its member `crc32`. It detects damage and edits but ignores the layout of the text.
"""

import gzip
import json
import math
import os
import re
import stat
import sys
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tenas_jax.errors import InputError, first_line

LARGEST_TEXT = 1 << 28  # bytes

CHECKSUM = "crc32"

# Not a single letter, which is a Windows drive. `Path` reduces two slashes to one.
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+")


def require_local(path: str | Path) -> None:
    """Reject a path with a scheme, which would become a local folder of that name.

    Args:
        path: a path given by the user.

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
    """Turn errors of the operating system about a path into an `InputError`.

    Args:
        path: the file read or written in the context.

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
        reason = error.strerror or first_line(error)
        raise InputError(f"cannot use {path}: {reason}") from error


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Write a file atomically.

    Args:
        path: the file, which is replaced if it exists.

    Yields:
        A temporary file to write, which replaces `path` if there is no error.

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
    """Write a JSON file with a checksum, atomically.

    Args:
        path: the file, which is replaced if it exists.
        value: JSON values; numbers are finite.

    Raises:
        InputError: the file cannot be written.
    """
    with whole_file(path) as unfinished, open(unfinished, "w") as file:
        json.dump({**value, CHECKSUM: checksum(value)}, file, indent=1, allow_nan=False)


def user_path(text: str) -> Path:
    """A path given by the user, with `~` expanded.

    Args:
        text: the path as written.

    Raises:
        InputError: there is no such home folder.

    Example:
        >>> user_path("~nobody-of-this-name/images")
        Traceback (most recent call last):
        ...
        tenas_jax.errors.InputError: cannot use ~nobody-of-this-name/images: no home folder is known
    """
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise InputError(f"cannot use {text}: no home folder is known") from error


def read_text(path: Path) -> str:
    """Read a text file in UTF-8, or in UTF-16 as written by editors on Windows.

    Args:
        path: the file; decompressed if its name ends in `.gz`.

    Raises:
        InputError: it cannot be read, is not a regular file, is too large or is not text.
    """
    with file_errors(path):
        mode = path.stat().st_mode
        # Pipes of the shell are in /dev or /proc; others may have no writer.
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or path.parts[:2] in _SYSTEM):
            raise InputError(f"cannot use {path}: it is not a regular file")
        try:
            with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
                content = file.read(LARGEST_TEXT + 1)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise InputError(f"{path} cannot be read ({error}): compress it again") from error
    if len(content) > LARGEST_TEXT:
        raise InputError(f"{path} has more than {LARGEST_TEXT >> 20} MB of text: split it")
    try:
        return content.decode(json.detect_encoding(content)).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not text: its byte {error.start + 1} is not {error.encoding.upper()}; save "
            "it as UTF-8"
        ) from error


_SYSTEM = (("/", "dev"), ("/", "proc"))


def read_json(path: Path, *, remedy: str) -> dict[str, Any]:
    """Read a file written by `write_json`.

    Args:
        path: the file.
        remedy: what to do if it cannot be used, for the error message.

    Returns:
        Its value, without the checksum.

    Raises:
        InputError: the file cannot be read, is not text, is damaged, or has no checksum.
    """
    text = read_text(path)
    try:
        return unsealed(text)
    except KeyError:
        reason = "has no checksum, so it is of another version"
    except ValueError:
        reason = "is damaged"
    raise InputError(f"{path} {reason}: {remedy}")


def checksum(value: Mapping[str, Any], before: str = "0") -> str:
    """The CRC-32 of JSON values.

    Args:
        value: JSON values.
        before: checksum of the preceding values, which is included.

    Returns:
        Eight hexadecimal digits.

    Example:
        >>> checksum({"kappa": 12.5}), checksum({"kappa": 12.5}, "a5")
        ('f2165b16', '07d32bb8')
    """
    text = json.dumps(value, sort_keys=True)
    return f"{zlib.crc32(text.encode(), int(before, 16)):08x}"


def unsealed(text: str | bytes, before: str = "0") -> dict[str, Any]:
    """Parse a JSON text and verify its checksum.

    Args:
        text: an object with the member `crc32`.
        before: checksum of the preceding values.

    Returns:
        Its other members.

    Raises:
        KeyError: it has no checksum.
        ValueError: it is not a JSON object, or does not match its checksum.

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
        value: a JSON value.

    Example:
        >>> is_number(0.5), is_number(True), is_number("12"), is_number(float("nan"))
        (True, False, False, False)
    """
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return abs(value) <= sys.float_info.max


def json_values(value: Any) -> Any:
    """Convert nested lists and dictionaries to JSON values; non-finite numbers become strings.

    Args:
        value: the value to write.

    Returns:
        Values that `float` converts back to the same numbers.

    Example:
        >>> json_values({"kappa": [0.5, float("inf")]})
        {'kappa': [0.5, 'inf']}
    """
    if isinstance(value, dict):
        return {name: json_values(each) for name, each in value.items()}
    if isinstance(value, list):
        return [json_values(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value

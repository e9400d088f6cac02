"""Append-only files of JSON lines, each with the running checksum of all lines so far.

The running checksum starts from the settings of the run. It therefore detects lines that are
damaged, missing, repeated or from another file, and a last line cut off by a kill.
"""

import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tenas_jax.errors import InputError
from tenas_jax.host.files import CHECKSUM, checksum, file_errors, unsealed


class Journal(NamedTuple):
    """The undamaged lines at the start of a file.

    Attributes:
        records: the values of the lines.
        seal: checksum of the last line.
        size: length of the lines in bytes.
        damaged: whether a damaged line follows.
        torn: whether only that line follows.
    """

    records: list[dict[str, Any]]
    seal: str
    size: int
    damaged: bool
    torn: bool

    def error(self, path: Path, remedy: str) -> InputError:
        """The error for the damaged line.

        Args:
            path: the file.
            remedy: what to do, for the error message.
        """
        number = len(self.records) + 1
        return InputError(f"{path}, line {number} is damaged or of another run: {remedy}")


def read_journal(path: Path, settings: Mapping[str, Any], size: int | None = None) -> Journal:
    """Read the lines of a file up to the first damaged one.

    Args:
        path: the file.
        settings: the settings of the run, as JSON values.
        size: number of bytes to read; None: all.

    Raises:
        InputError: the file cannot be read.
    """
    with file_errors(path), open(path, "rb") as file:
        lines = io.BytesIO(file.read(size)).readlines()
    records: list[dict[str, Any]] = []
    seal, length = checksum(settings), 0
    for line in lines:
        try:
            record = unsealed(line, seal)
        except (KeyError, ValueError):
            break
        if not line.endswith(b"\n"):
            break
        records.append(record)
        seal, length = checksum(record, seal), length + len(line)
    left = len(lines) - len(records)
    return Journal(records, seal, length, damaged=left > 0, torn=left == 1)


def append_journal(path: Path, records: Sequence[Mapping[str, Any]], seal: str) -> str:
    """Append lines; they are on disk when this returns.

    Args:
        path: an existing file.
        records: JSON values; numbers are finite.
        seal: checksum of the previous line.

    Returns:
        The checksum of the last line.

    Raises:
        InputError: the lines cannot be written; the file is then unchanged.
    """
    text = ""
    for record in records:
        seal = checksum(record, seal)
        text += json.dumps({**record, CHECKSUM: seal}, allow_nan=False) + "\n"
    with file_errors(path):
        size = path.stat().st_size
        try:
            with open(path, "ab") as file:
                file.write(text.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            # After closing, because that flushes the buffer.
            os.truncate(path, size)
            raise
    return seal

"""Files that grow by lines of JSON, each with the running checksum of all lines up to it.

The first checksum starts from that of the settings which the lines are of. So a line that is
damaged, missing, repeated or of another file is found, and what a kill leaves of the last line too.
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
        records: their values.
        seal: checksum of the last one.
        size: their length in bytes.
        damaged: whether a line follows that is damaged.
        torn: whether nothing but that line follows.
    """

    records: list[dict[str, Any]]
    seal: str
    size: int
    damaged: bool
    torn: bool

    def error(self, path: Path, remedy: str) -> InputError:
        """What is wrong with the line that follows.

        Args:
            path: the file.
            remedy: what to do, for the message.
        """
        number = len(self.records) + 1
        return InputError(f"{path}, line {number} is damaged or of another run: {remedy}")


def read_journal(path: Path, settings: Mapping[str, Any], size: int | None = None) -> Journal:
    """Read the lines of a file as far as they are undamaged.

    Args:
        path: the file.
        settings: JSON values that its lines are of.
        size: length in bytes of what is read; None: all of it.

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
    """Write lines; when this returns they are on the disk.

    Args:
        path: an existing file.
        records: JSON values; numbers are finite.
        seal: checksum of the line before them.

    Returns:
        The checksum of the last of them.

    Raises:
        InputError: they cannot be written; the file is then as it was before.
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
            # After closing, which writes what is left in the buffer.
            os.truncate(path, size)
            raise
    return seal

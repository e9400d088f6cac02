"""Checksums of files, in the format of `sha256sum`.

`sha256sum --check SHA256SUMS` checks the files without this library.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from tenas_jax.host.files import whole_file

SUMS = "SHA256SUMS"


def write_sums(folder: Path, files: Iterable[Path]) -> None:
    """Write the checksums of files.

    Args:
        folder: the folder of the list.
        files: files in it or in its subfolders.

    Raises:
        InputError: the list cannot be written.
    """
    lines = [f"{_digest(file)}  {file.relative_to(folder).as_posix()}\n" for file in sorted(files)]
    with whole_file(folder / SUMS) as unfinished:
        unfinished.write_text("".join(lines))


def require_sums(folder: Path) -> None:
    """Check that the files of a list are unchanged.

    Args:
        folder: the folder of the list.

    Raises:
        ValueError: a file has changed, or the list is damaged.
        OSError: a file or the list is missing.
    """
    for line in (folder / SUMS).read_text().splitlines():
        digest, separator, name = line.partition("  ")
        if not separator or digest != _digest(folder / name):
            raise ValueError(f"{name or line} is not the file that was written")


def _digest(file: Path) -> str:
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()

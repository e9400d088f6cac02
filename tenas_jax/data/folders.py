"""Folders of images: list the files and read them."""

import heapq
import os
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageOps
from jaxtyping import UInt8

from tenas_jax.errors import InputError, first_line
from tenas_jax.host.files import file_errors

IMAGE_SUFFIXES = (".jpeg", ".jpg", ".png", ".webp")
FORMATS = ", ".join(IMAGE_SUFFIXES)


def image_files(folder: Path) -> list[Path]:
    """The image files in a folder and its subfolders.

    Links to folders are followed, but no folder is entered twice; a path without links takes
    precedence. Hidden entries (`.ipynb_checkpoints`, `._a.jpg`), the folders that macOS archives
    add (`__MACOSX`) and everything that is not a regular file are skipped, at every level.

    Args:
        folder: the folder, which may itself be hidden.

    Returns:
        Files, sorted by path.

    Raises:
        InputError: there is no such folder, or a part of it cannot be read.
    """
    _require_folder(folder)
    found: list[str] = []
    entered: set[tuple[int, int]] = set()
    waiting = [(False, str(folder))]  # (reached by a link, path); those without links come first
    while waiting:
        by_link, current = heapq.heappop(waiting)
        with file_errors(Path(current)):
            status = os.stat(current)
            if (status.st_dev, status.st_ino) in entered:
                continue
            entered.add((status.st_dev, status.st_ino))
            with os.scandir(current) as entries:
                for entry in entries:
                    if _is_left_out(entry.name):
                        continue
                    if _is_folder(entry):
                        heapq.heappush(waiting, (by_link or entry.is_symlink(), entry.path))
                    elif _is_image(entry):
                        found.append(entry.path)
    return sorted(map(Path, found), key=lambda file: file.relative_to(folder).as_posix())


def class_folders(folder: Path) -> list[Path]:
    """The subfolders of a folder, one per class, sorted by name.

    Raises:
        InputError: there is no such folder, or it cannot be read.
    """
    _require_folder(folder)
    with file_errors(folder):
        return sorted(
            each for each in folder.iterdir() if each.is_dir() and not _is_left_out(each.name)
        )


def read_image(path: Path) -> UInt8[np.ndarray, "_ _ 3"]:
    """Read an image file as RGB.

    The image is rotated by its EXIF orientation. Gray is repeated, palettes are looked up, and
    transparency is dropped.

    Raises:
        InputError: it cannot be read, or has more than 8 bits per channel.
    """
    try:
        with PIL.Image.open(path) as image:
            if image.mode.startswith(("I", "F")):  # Pillow would clip these at 255
                raise InputError(
                    f"image {str(path)!r} has more than 8 bits per channel: convert it to 8 bits"
                )
            PIL.ImageOps.exif_transpose(image, in_place=True)
            # Through RGBA, because Pillow warns when it drops the transparency of a palette.
            opaque = image.convert("RGBA") if image.has_transparency_data else image
            return np.asarray(opaque.convert("RGB"))
    except InputError:
        raise
    except Exception as error:  # decoders raise almost anything on damaged files
        raise InputError(
            f"cannot read image {str(path)!r}: {first_line(error)}; repair or remove it"
        ) from error


def _require_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise InputError(f"no folder {str(folder)!r}: folder:PATH names a folder of images")


def _is_left_out(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    # `entry.is_dir` raises on circular links.
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def _is_image(entry: "os.DirEntry[str]") -> bool:
    if not entry.name.lower().endswith(IMAGE_SUFFIXES):
        return False
    if entry.is_symlink() and not os.path.exists(entry.path):
        raise InputError(f"image {entry.path!r} is a link to nothing: repair or remove it")
    return entry.is_file()

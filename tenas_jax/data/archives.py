"""Arrays in .npz files; sizes are checked before anything is read."""

import math
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.lib import format as npy

from tenas_jax.errors import InputError, first_line
from tenas_jax.host.memory import require_memory


class Header(NamedTuple):
    """Shape and type of an array, as its archive declares them."""

    shape: tuple[int, ...]
    dtype: np.dtype


def read_header(path: Path, name: str) -> Header:
    """Read and check the header of an array in an archive.

    Args:
        path: an .npz file.
        name: name of the array.

    Raises:
        InputError: there is no such file or array; it is damaged, encrypted or compressed in an
            unknown way; or it does not fit into memory.
    """
    if not path.is_file():
        raise InputError(f"no file {str(path)!r}: npz:PATH names an existing .npz file")
    if not zipfile.is_zipfile(path):
        raise InputError(f"{str(path)!r} is not an .npz file: write it with numpy.savez(PATH, x=x)")
    with _errors(path, name), zipfile.ZipFile(path) as archive:
        names = [each.removesuffix(".npy") for each in archive.namelist()]
        if name not in names:
            arrays = ", ".join(names) or "none"
            raise InputError(f"{str(path)!r} has no array {name!r} (its arrays: {arrays})")
        member = archive.getinfo(f"{name}.npy")
        with archive.open(member) as file:
            first = npy.read_magic(file) == (1, 0)
            read = npy.read_array_header_1_0 if first else npy.read_array_header_2_0
            shape, _, dtype = read(file)
            stored = member.file_size - file.tell()
        size = math.prod(shape) * dtype.itemsize
        if size != stored and not dtype.hasobject:
            raise ValueError(f"{size} bytes are promised, {stored} are there")
        require_memory(size, f"array {name!r} of {str(path)!r}: take a part of it; its values")
    return Header(shape, dtype)


def read_array(path: Path, name: str) -> np.ndarray:
    """Read an array whose header was read before.

    Raises:
        InputError: it cannot be read.
    """
    with _errors(path, name), np.load(path, allow_pickle=False) as archive:
        array: np.ndarray = archive[name]
    return array


@contextmanager
def _errors(path: Path, name: str) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # zipfile, decompressors and NumPy raise almost anything
        raise InputError(
            f"cannot read array {name!r} of {str(path)!r}: {first_line(error)}"
        ) from error

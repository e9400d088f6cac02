"""Locks on folders: one process at a time."""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from tenas_jax.errors import InputError
from tenas_jax.host.files import file_errors
from tenas_jax.host.processes import is_main, shared_errors

LOCK = ".lock"


@contextlib.contextmanager
def locked(folder: Path, *, flag: str) -> Iterator[None]:
    """Lock a folder for this process; in a distributed run, for its process 0.

    The lock is an advisory lock of the operating system (`flock`), which ends with the process in
    any case. On file systems without it, the lock is a file with the process ID.

    Args:
        folder: created if it does not exist, and removed if it is empty at the end.
        flag: the flag that selects another folder, for the error message.

    Raises:
        InputError: in every process, if the folder is in use or cannot be used.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, locked(Path(folder), flag="--workdir"):
        ...     [path.name for path in Path(folder).iterdir()]
        ['.lock']
    """
    path, lock, made = folder / LOCK, None, []
    with shared_errors():
        if is_main():
            with file_errors(folder):
                made = [each for each in (folder, *folder.parents) if not each.exists()]
            lock = _acquire(path, flag)
    try:
        yield
    finally:
        if lock is not None:
            # Before the release, because afterwards it may belong to another process. A process
            # that waits for a removed file does not get its lock.
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # not empty
                for each in made:
                    each.rmdir()
            lock.release()


def _acquire(path: Path, flag: str) -> FileLock:
    lock = FileLock(path)
    with file_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            raise InputError(
                f"{path.parent} is in use by {_owner(path)}: wait for its end or choose another "
                f"{flag}"
            ) from None
        if not path.read_bytes().startswith(b"%d\n" % os.getpid()):  # already there without flock
            path.write_text(f"{os.getpid()}\n{socket.gethostname()}\n")
    return lock


def _owner(path: Path) -> str:
    try:
        process, host = path.read_text().splitlines()[:2]
    except (OSError, ValueError):  # it has just started or ended
        return "another process"
    return f"process {process} on {host}"

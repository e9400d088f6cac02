"""The folder that keeps programs from one run to the next: JAX's compiled ones, our traced ones."""

import hashlib
import os
import uuid
from contextlib import suppress
from importlib import import_module
from pathlib import Path

import jax

SUFFIX = ".program"
DIGEST_BYTES = hashlib.sha256().digest_size


class ProgramCache:
    """Bytes by key, a file each; beyond a limit the least recently used are removed.

    A file begins with the digest of the rest: a damaged one counts as missing, and is replaced when
    its program is made again. Files are written whole or not at all, so that processes may share
    the folder. What cannot be written or read is no error: a cache only saves time.

    Args:
        path: the folder.
        max_size: of all its programs together, in bytes; -1: no limit.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     cache = ProgramCache(folder, max_size=1000)
        ...     cache.put("square", b"x * x")
        ...     cache.get("square"), cache.get("cube")
        (b'x * x', None)
    """

    def __init__(self, path: str, *, max_size: int) -> None:
        self._path = Path(path)
        self._max_size = max_size

    def get(self, key: str) -> bytes | None:
        """Look a program up, which is now the most recently used.

        Args:
            key: a part of a file's name.

        Returns:
            What was put, or None where it is missing or damaged.
        """
        file = self._file(key)
        try:
            content = file.read_bytes()
        except OSError:
            return None
        digest, value = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
        if digest != hashlib.sha256(value).digest():
            return None
        with suppress(OSError):
            os.utime(file)
        return value

    def put(self, key: str, value: bytes) -> None:
        """Keep a program, in the place of those that were not used for longest.

        Args:
            key: a part of a file's name.
            value: the program; nothing changes if it is larger than the limit.
        """
        content = hashlib.sha256(value).digest() + value
        unfinished = self._file(str(uuid.uuid4()))
        with suppress(OSError):
            if not self.make_room(len(content)):
                return
            try:
                unfinished.write_bytes(content)
                os.replace(unfinished, self._file(key))
            finally:
                unfinished.unlink(missing_ok=True)

    def make_room(self, size: int) -> bool:
        """Remove the least recently used programs until so many bytes are free.

        Args:
            size: bytes.

        Returns:
            Whether the limit is large enough.
        """
        if self._max_size == -1:
            return True
        if size > self._max_size:
            return False
        files = []
        for file in self._path.glob(f"*{SUFFIX}"):
            with suppress(OSError):  # another process has removed it
                status = file.stat()
                files.append((status.st_mtime_ns, status.st_size, file))
        excess = size + sum(size for _, size, _ in files) - self._max_size
        for _, size, file in sorted(files):
            if excess <= 0:
                break
            with suppress(OSError):
                file.unlink(missing_ok=True)
                excess -= size
        return True

    def _file(self, key: str) -> Path:
        return self._path / f"{key}{SUFFIX}"


def keep_programs(folder: str, max_size: int) -> None:
    """Keep what JAX compiles and what `tenas_jax.host.programs.traced` traces in a folder.

    Args:
        folder: which exists.
        max_size: of all its programs together, in bytes.
    """
    ProgramCache(folder, max_size=max_size).make_room(0)
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_compilation_cache_max_size", max_size)
    # To load a program is quicker than to compile it, however small it is.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    # JAX's own cache leaves torn files on a full disk, never replaces a damaged one, and its limit
    # does not count ours; there is no public way to give it another. Where a version of JAX has no
    # such name, its own works in the same folder.
    with suppress(ImportError):
        internals = import_module("jax._src.compilation_cache")
        vars(internals)["LRUCache"] = ProgramCache
        internals.reset_cache()

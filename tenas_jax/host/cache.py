"""The cache folder of programs: those compiled by JAX, and our traced ones."""

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
    """An LRU cache of bytes by key, with one file per entry.

    Each file starts with a digest of its content. A damaged file counts as missing and is replaced
    when its program is made again. Files are written atomically, so processes may share the folder.
    Failures to write or read are not errors: a cache only saves time.

    Args:
        path: the folder.
        max_size: maximum total size in bytes; -1: no limit.

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
        """Look up a program and mark it as the most recently used.

        Args:
            key: a part of the file's name.

        Returns:
            The program, or None if it is missing or damaged.
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
        """Store a program; evicts the least recently used ones.

        Args:
            key: a part of the file's name.
            value: the program; it is not stored if it is larger than the limit.
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
        """Remove the least recently used programs until there is room.

        Args:
            size: bytes needed.

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
    """Cache programs in a folder: those compiled by JAX and those of `programs.traced`.

    Args:
        folder: an existing folder.
        max_size: maximum total size in bytes.
    """
    ProgramCache(folder, max_size=max_size).make_room(0)
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_compilation_cache_max_size", max_size)
    # Loading a program is faster than compiling it, however small it is.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    # JAX's own cache leaves partial files on a full disk and never replaces damaged ones, and its
    # limit does not count our files; there is no public way to replace it. If a version of JAX
    # lacks these names, its own cache works in the same folder.
    with suppress(ImportError):
        internals = import_module("jax._src.compilation_cache")
        vars(internals)["LRUCache"] = ProgramCache
        internals.reset_cache()

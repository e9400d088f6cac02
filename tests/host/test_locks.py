"""One process at a time: whoever holds a folder is named, and a process that is gone holds none."""

import os
import socket
import subprocess
import sys

import pytest

from tenas_jax.errors import InputError
from tenas_jax.host import locks
from tenas_jax.host.locks import locked

HOLD = """
import sys
from pathlib import Path
from tenas_jax.host.locks import locked
with locked(Path(sys.argv[1]), flag="--workdir"):
    print("held", flush=True)
    sys.stdin.read()
"""


def in_use(folder, process):
    return (
        f"{folder} is in use by process {process} on {socket.gethostname()}: wait for its end or "
        "choose another --workdir"
    )


def refused(folder):
    with pytest.raises(InputError) as error, locked(folder, flag="--workdir"):
        pass
    return str(error.value)


def test_another_process_is_named_and_a_killed_one_holds_nothing(tmp_path):
    words = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    other = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "held\n"
        assert refused(tmp_path / "run") == in_use(tmp_path / "run", other.pid)
        assert refused(tmp_path / "run") == in_use(tmp_path / "run", other.pid)
    finally:
        other.kill()
        other.communicate()
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]
    with locked(tmp_path / "run", flag="--workdir"):
        assert refused(tmp_path / "run") == in_use(tmp_path / "run", os.getpid())
    assert not list((tmp_path / "run").iterdir())


def test_folders_that_nothing_came_into_are_removed(tmp_path):
    with locked(tmp_path / "runs" / "one", flag="--workdir"):
        pass
    assert not list(tmp_path.iterdir())
    with locked(tmp_path / "runs" / "one", flag="--workdir"):
        (tmp_path / "runs" / "note").touch()
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["note"]


def test_an_error_releases_it(tmp_path):
    with pytest.raises(KeyboardInterrupt), locked(tmp_path, flag="--workdir"):
        raise KeyboardInterrupt
    with locked(tmp_path, flag="--workdir"):
        pass


def test_an_owner_that_has_not_said_its_name(tmp_path):
    with locked(tmp_path, flag="--output"):
        (tmp_path / ".lock").write_text("")
        with pytest.raises(InputError, match=r"is in use by another process: .* another --output"):
            locks._acquire(tmp_path / ".lock", "--output")


def test_a_folder_that_cannot_be_locked_is_one_line():
    assert refused(locks.Path("/dev/null/run")) == "cannot use /dev/null/run: Not a directory"

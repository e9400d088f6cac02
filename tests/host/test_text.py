"""Text is read as it comes, or refused in one line."""

import gzip
import os
import subprocess
import sys

import pytest

from tenas_jax.errors import InputError
from tenas_jax.host import files
from tenas_jax.host.files import read_json, read_text, write_json

TEXT = "|none~0|\nκ and ü\n"


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]
)
@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_text_of_any_editor(tmp_path, encoding, name):
    content = TEXT.encode(encoding)
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    assert read_text(path) == TEXT


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("a", b"abc\xff", "a is not text: its byte 4 is not UTF-8; save it as UTF-8"),
        ("a", b"\xff\xfea", "a is not text: its byte 3 is not UTF-16"),
        ("a.gz", b"abc", r"a\.gz cannot be read \(Not a gzipped file .*\): compress it again"),
        (
            "a.gz",
            gzip.compress(b"abc" * 99, mtime=0)[:-9],
            r"a\.gz cannot be read \(Compressed file ended",
        ),
        ("a", b"x" * 1025, "a has more than 0 MB of text: split it"),
        ("a.gz", gzip.compress(bytes(10**6), mtime=0), r"a\.gz has more than 0 MB of text"),
    ],
)
def test_files_that_are_no_text(tmp_path, monkeypatch, name, content, fault):
    monkeypatch.setattr(files, "LARGEST_TEXT", 1024)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=fault) as error:
        read_text(tmp_path / name)
    assert "\n" not in str(error.value)


def test_what_is_no_regular_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, fault in (
        (tmp_path / "pipe", "it is not a regular file"),
        (tmp_path, "Is a directory"),
    ):
        with pytest.raises(InputError, match=f"cannot use {path}: {fault}"):
            read_text(path)
    assert read_text(files.Path(os.devnull)) == ""


def test_a_pipe_of_the_shell_is_read():
    program = (
        "from pathlib import Path\nfrom tenas_jax.host.files import read_text\n"
        "print(read_text(Path('/dev/stdin')), end='')"
    )
    run = subprocess.run([sys.executable, "-c", program], input=b"a\nb\n", capture_output=True)
    assert run.stdout == b"a\nb\n", run.stderr


def test_json_of_a_windows_editor_is_read(tmp_path):
    write_json(tmp_path / "a.json", {"a": "ü"})
    text = (tmp_path / "a.json").read_text()
    (tmp_path / "b.json").write_bytes(text.encode("utf-16"))
    assert read_json(tmp_path / "b.json", remedy="") == {"a": "ü"}

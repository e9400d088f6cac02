"""JSON with checksums, sums of files, and local paths alone."""

import json
import shutil
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest

import tenas_jax
from tenas_jax import cli
from tenas_jax.cli import session
from tenas_jax.data.images import load_images
from tenas_jax.data.labeled import load_test_data
from tenas_jax.errors import InputError
from tenas_jax.host.files import CHECKSUM, checksum, read_json, require_local, write_json
from tenas_jax.host.sums import require_sums, write_sums
from tenas_jax.training.recipes import get_recipe

VALUE = {"kappa": 12.5, "op": None, "nested": {"list": [1, "ü", 1e300]}}


def test_what_is_written_is_read(tmp_path):
    write_json(tmp_path / "x.json", VALUE)
    assert read_json(tmp_path / "x.json", remedy="") == VALUE
    assert json.loads((tmp_path / "x.json").read_text()) == {**VALUE, CHECKSUM: checksum(VALUE)}


def test_another_layout_of_the_same_values_is_no_damage(tmp_path):
    sealed = {CHECKSUM: checksum(VALUE), **dict(reversed(VALUE.items()))}
    (tmp_path / "x.json").write_text(json.dumps(sealed, separators=(",", ":"), ensure_ascii=False))
    assert read_json(tmp_path / "x.json", remedy="") == VALUE


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "is damaged"),
        (b"\xff\xfe", "is damaged"),
        (b"[1]", "is damaged"),
        (b"[" * 100000, "is damaged"),
        (b'{"n": ' + b"1" * 5000 + b"}", "is damaged"),
        (b'{"crc32": "f2165b16", "kappa": 12.6}', "is damaged"),
        (b'{"crc32": 12, "kappa": 12.5}', "is damaged"),
        (b'{"crc32": null}', "is damaged"),
        (b"{}", "has no checksum, so it is of another version"),
        (b'{"kappa": 12.5}', "has no checksum, so it is of another version"),
    ],
)
def test_damage_is_one_line_with_a_remedy(tmp_path, content, fault):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        read_json(path, remedy="start again")
    assert str(error.value) == f"{path} {fault}: start again"


def test_a_checksum_is_the_crc_32_of_the_text():

    text = b'{"a": 1, "b": null}'
    assert checksum({"b": None, "a": 1}) == f"{zlib.crc32(text):08x}"
    first = f"{zlib.crc32(b'{}'):08x}"
    assert checksum({"b": None, "a": 1}, first) == f"{zlib.crc32(b'{}' + text):08x}"


def test_sums_are_those_of_sha256sum(tmp_path):
    for name in ("a", "b/c"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    write_sums(tmp_path, [tmp_path / "b" / "c", tmp_path / "a"])
    require_sums(tmp_path)
    if program := shutil.which("sha256sum"):
        subprocess.run([program, "--check", "SHA256SUMS"], cwd=tmp_path, check=True)
    (tmp_path / "b" / "c").write_text("d")
    with pytest.raises(ValueError, match="b/c is not the file that was written"):
        require_sums(tmp_path)


@pytest.mark.parametrize("text", ["run", "/data/run", "~/run", "C:/run", "a:b", "../x:y/z", ""])
def test_local_paths(text):
    require_local(text)
    require_local(Path(text))


@pytest.mark.parametrize(
    "text", ["gs://bucket/run", "s3://bucket/run", "file:///tmp/run", "https://host/x", "az+x://a"]
)
def test_paths_with_a_scheme(text):
    for path in (text, Path(text)):
        with pytest.raises(InputError, match=r"://.* is not a local path: mount or copy it, and"):
            require_local(path)


@pytest.mark.parametrize(
    "words",
    [
        "search --workdir gs://bucket/run",
        "search --accuracy-table gs://bucket/table.csv",
        "search --compilation-cache gs://bucket/cache",
        "search --data npz:gs://bucket/x.npz --workdir run",
        "search --data gs://bucket/x.npz --workdir run",
        "search --data folder:s3://bucket/x --workdir run",
        "score --file gs://bucket/genotypes --workdir run",
        "score --all --workdir gs://bucket/run",
        "correlate gs://bucket/scores.csv --accuracy-table table.csv",
        "correlate scores.csv --accuracy-table table.csv --output gs://bucket/x.json",
        "correlate scores.csv --accuracy-table table.csv --plots gs://bucket/plots",
        "nasbench convert gs://bucket/archive",
        "nasbench convert archive --output gs://bucket/table.csv",
        "describe gs://bucket/run",
        "describe |none~0|+|none~0|none~1|+|none~0|none~1|none~2| --output gs://bucket/cell.png",
        "train gs://bucket/run",
        "train |none~0|+|none~0|none~1|+|none~0|none~1|none~2| --output gs://bucket/run",
        "eval gs://bucket/run",
        "export gs://bucket/run --output net",
        "export run --output gs://bucket/net",
    ],
)
def test_no_command_makes_a_local_folder_of_a_scheme(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(session, "configure_jax", lambda _: [])
    assert cli.main(words.split()) == 2
    error = capsys.readouterr().err
    assert "is not a local path" in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_no_function_makes_a_local_folder_of_a_scheme(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images = np.zeros((16, 8, 8, 3), np.uint8)
    images[:, 0] = np.arange(16)[:, None, None]
    quick = {"metrics": "flops", "strategy": "random", "budget": 2, "ntk": {"batch_size": 2}}
    table = tenas_jax.score("nas-bench-201", 1, images, metrics="flops", ntk={"batch_size": 2})
    recipe = get_recipe("nas-bench-201")
    for use in (
        lambda: tenas_jax.search("nas-bench-201", images, workdir="gs://b/run", **quick),
        lambda: tenas_jax.score("nas-bench-201", 1, images, workdir="gs://b/run", **quick),
        lambda: tenas_jax.search("nas-bench-201", images, **quick).save("gs://b/run"),
        lambda: table.save("gs://b/scores.csv"),
        lambda: load_images("npz:gs://b/x.npz", image_size=8, limit=2, seed=0),
        lambda: load_test_data("folder:gs://b/x", recipe, ("a", "b"), None),
    ):
        with pytest.raises(InputError, match=r"gs://b/.* is not a local path"):
            use()
    assert not list(tmp_path.iterdir())

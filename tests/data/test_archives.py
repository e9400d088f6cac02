"""Arrays in .npz files: labels of every type, and archives that promise what is not there."""

import dataclasses
import io
import struct
import time
import zipfile

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.lib import format as npy

from tenas_jax.data.images import load_images
from tenas_jax.data.labeled import load_split
from tenas_jax.errors import InputError
from tenas_jax.training.recipes import RECIPES

INTEGERS = ["u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", ">u2", ">i4"]


def split_of(path, classes, x, y):
    np.savez(path, x=x, y=y)
    source = f"npz:{path}"
    recipe = dataclasses.replace(
        RECIPES["nas-bench-201"],
        num_classes=classes,
        image_size=8,
        batch_size=1,
        data=source,
        test_data=source,
    )
    return load_split(recipe)


def images(count):
    x = np.zeros((count, 8, 8, 3), np.uint8)
    x[:, 0] = 255
    return x


@settings(max_examples=60)
@given(st.data())
def test_labels_of_every_type_are_counted(tmp_path_factory, data):
    dtype = np.dtype(data.draw(st.sampled_from(INTEGERS)))
    largest = min(int(np.iinfo(dtype).max), 3000)
    values = st.sampled_from([largest]) | st.integers(0, largest)
    y = data.draw(arrays.arrays(dtype, st.integers(1, 5), elements=values))
    expected = [int(label) for label in y]
    path = tmp_path_factory.getbasetemp() / "labels.npz"
    assume(max(expected) > 0)
    split = split_of(path, max(expected) + 1, images(len(y)), y)
    assert split.train.classes == tuple(str(label) for label in range(max(expected) + 1))
    assert split.train.take(np.arange(len(y)))[1].tolist() == expected


@pytest.mark.parametrize(
    ("dtype", "label"), [("u1", 255), ("i1", 127), ("u2", 65_535), ("i2", 32_767)]
)
def test_as_many_classes_as_a_type_can_count(tmp_path, dtype, label):
    split = split_of(tmp_path / "a.npz", label + 1, images(2), np.array([0, label], dtype))
    assert len(split.train.classes) == label + 1
    assert split.train.take(np.arange(2))[1].tolist() == [0, label]


@pytest.mark.parametrize(
    ("y", "fault"),
    [
        (np.array([0, 10**9]), "has the label 1000000000: number the classes from 0, up to 999999"),
        (np.array([0, 2**64 - 1], "u8"), "has the label 18446744073709551615: number the classes"),
        (np.array([0, 2**32], "i8"), "has the label 4294967296"),
        (np.array([0, -1]), "has the label -1"),
        (np.array([True, False]), "is bool of shape"),
        (np.array(["a", "b"]), "is <U1 of shape"),
        (np.array([[0, 1]]), r"of shape \(1, 2\)"),
        (np.array([{}, {}]), "is object of shape"),
    ],
)
def test_labels_that_are_no_classes(tmp_path, y, fault):
    started = time.perf_counter()
    with pytest.raises(InputError, match=fault):
        split_of(tmp_path / "a.npz", 10, images(2), y)
    assert time.perf_counter() - started < 1


def header(shape, dtype="|u1"):
    file = io.BytesIO()
    npy.write_array_header_1_0(file, {"shape": shape, "fortran_order": False, "descr": dtype})
    return file.getvalue()


def archive_of(path, content, *, compression=zipfile.ZIP_DEFLATED, **changed):
    """An archive with one member, whose entries in the directory are changed afterwards."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("x.npy", content)
    raw = bytearray(path.read_bytes())
    for signature, offsets in ((b"PK\1\2", (8, 10, 24)), (b"PK\3\4", (6, 8, 22))):
        start = raw.index(signature)
        for (name, value), offset in zip(
            (("flags", None), ("method", None), ("size", None)), offsets, strict=True
        ):
            value = changed.get(name)
            if value is not None:
                form = "<I" if name == "size" else "<H"
                struct.pack_into(form, raw, start + offset, value)
    path.write_bytes(raw)


@pytest.mark.parametrize(
    ("content", "changes", "fault"),
    [
        (header((4, 8, 8, 3)) + bytes(768), {"flags": 1}, "encrypted, password required"),
        (header((4, 8, 8, 3)) + bytes(768), {"method": 97}, "compression method is not supported"),
        (header((4, 8, 8, 3)) + bytes(768), {"method": 14}, "cannot read array 'x'"),
        (header((2**40, 8, 8, 3)) + bytes(768), {}, "211106232532992 bytes are promised, 768 are"),
        (header((2**40, 8, 8, 3)) + bytes(768), {"size": 2**32 - 2}, "bytes are promised"),
        (header((-1, -8, 8, 12)) + bytes(768), {}, "cannot read|use uint8 of shape"),
        (header((4, 8, 8, 3)) + bytes(700), {}, "768 bytes are promised, 700 are there"),
        (header((4, 8, 8, 3))[:20], {}, "cannot read array 'x'"),
        (b"\x93NUMPY\x01\x00\x10\x00{'descr': [[[[[", {}, "cannot read array 'x'"),
        (b"hello", {}, "cannot read array 'x'"),
        (b"", {}, "cannot read array 'x'"),
    ],
)
def test_archives_that_promise_what_is_not_there(tmp_path, content, changes, fault):
    archive_of(tmp_path / "a.npz", content, **changes)
    started = time.perf_counter()
    with pytest.raises(InputError, match=fault) as error:
        load_images(f"npz:{tmp_path / 'a.npz'}", image_size=8, limit=9, seed=0)
    assert "\n" not in str(error.value)
    assert time.perf_counter() - started < 1


def test_an_array_larger_than_the_memory_is_not_read(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "bomb.npz", x=np.zeros((10_000, 8, 8, 3), np.uint8))
    monkeypatch.setattr("tenas_jax.host.memory.memory", lambda: 10**6)
    monkeypatch.setattr(np, "load", None)
    with pytest.raises(
        InputError, match=r"array 'x' of .*bomb\.npz': take a part of it; its values"
    ):
        load_images(f"npz:{tmp_path / 'bomb.npz'}", image_size=8, limit=9, seed=0)


def test_archives_with_flipped_bits_are_read_or_refused(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (4, 8, 8, 3), np.uint8)
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "whole.npz", x=x)
        content = (tmp_path / "whole.npz").read_bytes()
        for _ in range(200):
            damaged = bytearray(content)
            damaged[rng.integers(len(damaged))] ^= 1 << rng.integers(8)
            (tmp_path / "damaged.npz").write_bytes(damaged)
            try:
                found = load_images(
                    f"npz:{tmp_path / 'damaged.npz'}", image_size=8, limit=9, seed=0
                )
            except InputError as error:
                assert "\n" not in str(error)
            else:
                np.testing.assert_array_equal(found.images, x)


@pytest.mark.parametrize("source", ["npz:~no-such-user/a.npz", "folder:~no-such-user/"])
def test_a_home_folder_that_is_not_there(source):
    with pytest.raises(InputError, match=r"cannot use ~no-such-user/.*: no home folder is known"):
        load_images(source, image_size=8, limit=9, seed=0)

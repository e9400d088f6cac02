"""The walk through folders of images: what is found, what is left out, what is refused."""

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tenas_jax.data.folders import class_folders, image_files, read_image
from tenas_jax.data.images import load_images
from tenas_jax.data.labeled import load_split
from tenas_jax.errors import InputError
from tenas_jax.training.recipes import RECIPES


def write(path: Path, value: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(value).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def found(folder: Path) -> list[str]:
    return [file.relative_to(folder).as_posix() for file in image_files(folder)]


def test_links_are_followed_once_and_never_around(tmp_path):
    data, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    write(data / "b" / "1.png")
    write(elsewhere / "deep" / "2.jpg")
    write(elsewhere / "file.png")
    (data / "a").symlink_to("b")  # the way without a link counts
    (data / "b" / "around").symlink_to(data)
    (data / "c").symlink_to(elsewhere)
    (data / "d").symlink_to(elsewhere)
    (data / "e.png").symlink_to(elsewhere / "file.png")
    (data / "itself").symlink_to("itself")
    for name in ("x", "y"):  # folders that link to each other
        (data / name).mkdir()
    (data / "x" / "y").symlink_to(data / "y")
    (data / "y" / "x").symlink_to(data / "x")
    assert found(data) == ["b/1.png", "c/deep/2.jpg", "c/file.png", "e.png"]


def test_what_is_hidden_or_no_regular_file_is_left_out(tmp_path):
    data = tmp_path / ".hidden" / "data"  # above the folder names do not matter
    write(data / "a" / "1.PNG")
    write(data / "a" / "folder.jpg" / "2.webp")
    for name in (".1.png", "._1.png", ".git/1.png", "__MACOSX/1.png", ".ipynb_checkpoints/1.png"):
        write(data / name)
        write(data / "a" / "b" / name)
    os.mkfifo(data / "pipe.png")
    (data / "a" / "pipe.png").symlink_to(data / "pipe.png")
    (data / "notes.txt").touch()
    (data / "png").touch()
    assert found(data) == ["a/1.PNG", "a/folder.jpg/2.webp"]


def test_search_and_train_walk_alike(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    for i in range(12):
        write(elsewhere / f"{i:02}.png", i)
        write(tmp_path / "data" / "cat" / "sub" / f"{i:02}.png", 100 + i)
        write(tmp_path / "data" / "cat" / ".ipynb_checkpoints" / f"{i:02}.png", 200 + i)
    (tmp_path / "data" / "dog").symlink_to(elsewhere)
    for name in (".ipynb_checkpoints", "__MACOSX"):
        write(tmp_path / "data" / name / "1.png")
    source = f"folder:{tmp_path / 'data'}"
    searched = load_images(source, image_size=8, limit=100, seed=0).images
    recipe = RECIPES["nas-bench-201"]
    trained = load_split(
        dataclasses.replace(
            recipe, num_classes=2, image_size=8, batch_size=4, data=source, test_data=source
        )
    )
    assert trained.train.classes == ("cat", "dog")
    images, labels = trained.train.take(np.arange(24))
    np.testing.assert_array_equal(images, searched)
    assert labels.tolist() == [0] * 12 + [1] * 12


def test_classes_that_link_to_the_same_images_both_have_them(tmp_path):
    write(tmp_path / "a" / "1.png")
    (tmp_path / "b").symlink_to("a")
    assert [len(image_files(folder)) for folder in class_folders(tmp_path)] == [1, 1]


def test_links_to_nothing_and_closed_folders_are_refused(tmp_path):
    (tmp_path / "1.png").symlink_to("gone.png")
    with pytest.raises(InputError, match=r"1\.png' is a link to nothing: repair or remove it"):
        image_files(tmp_path)
    (tmp_path / "1.png").unlink()
    (tmp_path / "closed").mkdir(mode=0)
    if os.access(tmp_path / "closed", os.R_OK):
        pytest.skip("this user may read everything")
    with pytest.raises(InputError, match=r"cannot use .*closed: Permission denied"):
        image_files(tmp_path)


@pytest.mark.parametrize("source", ["", "x.tif"])
def test_where_nothing_is_found_the_formats_are_named(tmp_path, source):
    if source:
        (tmp_path / source).touch()
    formats = r"\(\.jpeg, \.jpg, \.png, \.webp\)"
    with pytest.raises(InputError, match=f"has no images {formats}"):
        load_images(f"folder:{tmp_path}", image_size=8, limit=9, seed=0)
    recipe = RECIPES["nas-bench-201"]
    with pytest.raises(InputError, match=f"has no images in folders {formats}"):
        load_split(dataclasses.replace(recipe, data=f"folder:{tmp_path}"))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_upright(tmp_path, orientation):
    upright = np.random.default_rng(0).integers(0, 256, (6, 4, 3), np.uint8)
    # How a camera stores what is upright, by the definition of the tag in EXIF 2.32.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "photo.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "photo.png"), upright)


def test_images_with_flipped_bits_are_read_or_refused(tmp_path):
    rng = np.random.default_rng(0)
    for suffix in ("png", "jpg", "webp"):
        content = write(tmp_path / f"whole.{suffix}").read_bytes()
        for _ in range(100):
            damaged = bytearray(content)
            damaged[rng.integers(len(damaged))] ^= 1 << rng.integers(8)
            path = tmp_path / f"damaged.{suffix}"
            path.write_bytes(damaged)
            try:
                assert read_image(path).shape[2] == 3
            except InputError as error:
                assert "\n" not in str(error)

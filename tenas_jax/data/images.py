"""Image sources: unlabeled uint8 images of one size, with their mean and standard deviation.

TensorFlow Datasets is imported only for `tfds:` sources.
"""

import dataclasses
import functools
import hashlib
import importlib.resources
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from jaxtyping import Int, UInt8

from tenas_jax.data.archives import read_array, read_header
from tenas_jax.data.folders import FORMATS, class_folders, image_files, read_image
from tenas_jax.data.normalization import (
    Channels,
    known_normalization,
    measured_normalization,
)
from tenas_jax.data.tfds import tfds_builder
from tenas_jax.errors import InputError, quantity
from tenas_jax.host.files import require_local, user_path
from tenas_jax.host.memory import require_memory

# Color photographs of everyday scenes in the scikit-image wheel, which need no network. The
# right-hand motorcycle is left out because it repeats the left one.
PHOTOS = ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg")
MOST_CLASSES = 10**6
PHOTO_MIN_CONTRAST = 20.0  # standard deviation of a channel, in 0..255; that of a clear sky is less

Image = UInt8[np.ndarray, "_ _ channels"]
Labeled = tuple[Image, int | None]
BILINEAR = PIL.Image.Resampling.BILINEAR


@dataclasses.dataclass(frozen=True, eq=False)
class ImageSet:
    """Images of one size and how to normalize them.

    Attributes:
        images: uint8 `[n, size, size, channels]`.
        mean: mean of each channel, with pixels scaled to 0..1.
        std: standard deviation of each channel, in the same unit.
        name: the source as the user wrote it.
        labels: class of each image, from 0; None if not requested.

    Raises:
        InputError: the number of labels is not the number of images, or a label is negative.
    """

    images: UInt8[np.ndarray, "n size size channels"]
    mean: Channels
    std: Channels
    name: str
    labels: Int[np.ndarray, " labels"] | None = None

    def __post_init__(self) -> None:
        labels, count = self.labels, len(self.images)
        if labels is not None and (labels.shape != (count,) or (labels < 0).any()):
            raise InputError(
                f"the labels of {self.name} have shape {labels.shape}, from {labels.min()}: give "
                f"{count} integers from 0"
            )

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of shape, pixels and labels, so that a resumed search detects other data."""
        digest = hashlib.sha256(repr(self.images.shape).encode())
        digest.update(np.ascontiguousarray(self.images).data)
        if self.labels is not None:
            digest.update(self.labels.astype(np.int32).tobytes())
        return digest.hexdigest()


def load_images(
    source: str,
    *,
    image_size: int,
    channels: int = 3,
    limit: int,
    seed: int,
    minimum: int = 1,
    data_dir: str | None = None,
    labels: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> ImageSet:
    """Load images from a source: sample, resize and compute their normalization.

    Images of another size are resized to `image_size` in both directions, without cropping, by
    antialiased bilinear interpolation, as the original does for ImageNet. If the source has more
    than `limit` images, a random sample is taken and kept in the order of the source.

    Args:
        source: `photos` (crops of photographs that come with scikit-image), `npz:PATH` (array
            `x`, uint8, `[n, height, width, channels]`), `folder:PATH` (PNG, JPEG and WebP files,
            in subfolders too) or `tfds:NAME` (train split of a TensorFlow data set).
        image_size: height and width of the result in pixels.
        channels: number of channels: 3, or 1 for gray images; an archive may have any number.
        limit: maximum number of images.
        seed: seed of the sample and of the crops.
        minimum: minimum number of images, that of a batch.
        data_dir: where TFDS keeps its data; its own default if `None`.
        labels: whether to read the classes of the images as well: from the array `y`, the names of
            the subfolders, or the feature `label`.
        progress: called with (images read, images to read).

    Returns:
        The images with their mean and standard deviation: for CIFAR and ImageNet through TFDS the
        values of the original, otherwise computed from the returned images.

    Raises:
        InputError: the source is unknown, missing, unreadable or malformed; has too few images or
            a channel that never varies; or lacks the requested labels.

    Example:
        >>> photos = load_images("photos", image_size=16, limit=4, seed=0)
        >>> photos.images.shape
        (4, 16, 16, 3)
    """
    kind, _, argument = source.partition(":")
    require_local(argument if kind in ("npz", "folder") else source)
    if channels not in (1, 3) and kind != "npz":
        raise InputError(
            f"image source {source!r} has 1 (gray) or 3 (color) channels, not {channels}: "
            "give images of other channels as npz:PATH"
        )
    images: Iterator[Labeled]
    match kind, argument:
        case "photos", "":
            if labels:
                raise InputError("source 'photos' has no labels: use labels random, or other data")
            count, images = limit, ((crop, None) for crop in _photo_crops(image_size, seed))
        case "npz", path if path:
            count, images = _of_archive(user_path(path), limit, seed, channels, labels)
        case "folder", path if path:
            count, images = _of_folder(user_path(path), limit, seed, labels)
        case "tfds", name if name:
            count, images = _tfds_images(name, limit, seed, data_dir, labels)
        case _:
            raise InputError(
                f"unknown image source {source!r}: use photos, npz:PATH, folder:PATH or tfds:NAME"
            )
    if count < minimum:
        raise InputError(
            f"image source {source!r} gives {quantity(count, 'image')} (limit {limit}), "
            f"but a batch needs {minimum}: use more images or a smaller batch"
        )
    require_memory(
        count * image_size**2 * channels,
        f"{quantity(count, 'image')} of {image_size} x {image_size}: use fewer or smaller; they",
    )
    resized = np.empty((count, image_size, image_size, channels), np.uint8)
    classes = np.empty(count, np.int32)
    for i, (image, label) in enumerate(itertools.islice(images, count)):
        if label is not None:
            classes[i] = label
        resized[i] = _resize(_with_channels(image, channels), image_size)
        if progress is not None:
            progress(i + 1, count)
    known = known_normalization(source) if channels == 3 else None
    mean, std = known or measured_normalization(resized, source)
    return ImageSet(resized, mean, std, source, classes if labels else None)


def image_set(images: Any, name: str) -> ImageSet:
    """Make an `ImageSet` of an array, with its measured mean and standard deviation.

    Args:
        images: uint8 array [n, size, size, channels].
        name: name of the result.

    Raises:
        InputError: `images` is not a uint8 array [n, size, size, channels], or a channel never
            varies.
    """
    is_array = isinstance(images, np.ndarray) and images.dtype == np.uint8 and images.ndim == 4
    if not is_array or images.shape[1] != images.shape[2] or 0 in images.shape:
        kind = f"{images.dtype} {images.shape}" if isinstance(images, np.ndarray) else repr(images)
        raise InputError(
            f"images are {kind}: give a uint8 array of shape (n, size, size, channels)"
        )
    mean, std = measured_normalization(images, name)
    return ImageSet(images, mean, std, name)


def _sample(count: int, limit: int, seed: int) -> Int[np.ndarray, " taken"]:
    if count <= limit:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, limit, replace=False))


def _with_channels(image: Image, channels: int) -> UInt8[np.ndarray, "_ _ wanted"]:
    """Convert a color image to gray, with Pillow's weights, if one channel is requested."""
    if channels == 1 and image.shape[-1] == 3:
        return np.asarray(PIL.Image.fromarray(image).convert("L"))[..., None]
    return image


def _resize(image: Image, size: int) -> Image:
    if image.shape[:2] == (size, size):
        return image
    # Pillow prevents aliasing: it widens the filter when it shrinks an image. It supports one or
    # three channels.
    parts = [image] if image.shape[-1] == 3 else np.split(image, image.shape[-1], -1)
    resized = [
        np.asarray(PIL.Image.fromarray(part.squeeze()).resize((size, size), BILINEAR))
        for part in parts
    ]
    return resized[0] if image.shape[-1] == 3 else np.stack(resized, -1)


def _photo_crops(size: int, seed: int) -> Iterator[Image]:
    """Endless distinct square crops of 1/10 to 1/2 of a photograph, cycling through them."""
    folder = importlib.resources.files("skimage") / "data"
    photos = []
    for name in PHOTOS:
        with importlib.resources.as_file(folder / name) as path:
            photos.append(PIL.Image.fromarray(read_image(path)))
    rng = np.random.default_rng(seed)
    seen: set[bytes] = set()
    for photo in itertools.cycle(photos):
        for _ in range(1000):
            shorter = min(photo.size)
            smallest = min(max(size, shorter // 10), shorter // 2)
            side = round(smallest * (shorter / 2 / smallest) ** rng.random())
            left, top = (int(rng.integers(extent - side + 1)) for extent in photo.size)
            box = (left, top, left + side, top + side)
            crop = np.asarray(photo.resize((size, size), BILINEAR, box))
            if crop.std(axis=(0, 1)).max() >= PHOTO_MIN_CONTRAST and crop.tobytes() not in seen:
                break
        else:
            raise InputError(
                f"source 'photos' has no more than {len(seen)} distinct crops of {size} pixels: "
                "use a lower limit"
            )
        seen.add(crop.tobytes())
        yield crop


def npz_images(path: Path, channels: int = 3) -> UInt8[np.ndarray, "n _ _ channels"]:
    """The images of an archive, its array `x`.

    Raises:
        InputError: they cannot be read, or are not images with this number of channels.
    """
    shape, dtype = read_header(path, "x")
    fits = len(shape) == 4 and (shape[-1] == channels or (shape[-1], channels) == (3, 1))
    if dtype != np.uint8 or not fits or 0 in shape[1:]:
        raise InputError(
            f"array 'x' of {str(path)!r} is {dtype} of shape {shape}: "
            f"use uint8 of shape (n, height, width, {channels})"
        )
    return read_array(path, "x")


def npz_labels(path: Path, count: int) -> Int[np.ndarray, " n"]:
    """The classes of the images of an archive, its array `y`.

    Raises:
        InputError: they cannot be read, or are not `count` classes numbered from 0.
    """
    shape, dtype = read_header(path, "y")
    if shape != (count,) or not np.issubdtype(dtype, np.integer) or not count:
        raise InputError(
            f"array 'y' of {str(path)!r} is {dtype} of shape {shape}: "
            f"use integers of at least 0, of shape ({count},)"
        )
    y = read_array(path, "y")
    first, last = int(y.min()), int(y.max())  # as int, because adding 1 may overflow
    if first < 0 or last >= MOST_CLASSES:
        raise InputError(
            f"array 'y' of {str(path)!r} has the label {first if first < 0 else last}: number the "
            f"classes from 0, up to {MOST_CLASSES - 1}"
        )
    return y.astype(np.int32)


def _of_archive(
    path: Path, limit: int, seed: int, channels: int, labels: bool
) -> tuple[int, Iterator[Labeled]]:
    x = npz_images(path, channels)
    y = npz_labels(path, len(x)) if labels else None
    chosen = _sample(len(x), limit, seed)
    return len(chosen), ((x[i], None if y is None else int(y[i])) for i in chosen)


def _of_folder(path: Path, limit: int, seed: int, labels: bool) -> tuple[int, Iterator[Labeled]]:
    files = image_files(path)
    if not files:
        raise InputError(f"{str(path)!r} has no images ({FORMATS}): name a folder that has some")
    chosen = _sample(len(files), limit, seed)
    known = _classes_of(path, files) if labels else [None] * len(files)
    return len(chosen), ((read_image(files[i]), known[i]) for i in chosen)


def _classes_of(folder: Path, files: Sequence[Path]) -> list[int | None]:
    """The class of each file: the index of its subfolder, sorted by name."""
    classes = {each.name: label for label, each in enumerate(class_folders(folder))}
    parts = [file.relative_to(folder).parts for file in files]
    for file, names in zip(files, parts, strict=True):
        if len(names) == 1:
            raise InputError(
                f"image {str(file)!r} is in no folder of a class: move it into one, or use labels "
                "random"
            )
    return [classes[names[0]] for names in parts]


def _tfds_images(
    name: str, limit: int, seed: int, data_dir: str | None, labels: bool
) -> tuple[int, Iterator[Labeled]]:
    builder = tfds_builder(name, data_dir)
    import tensorflow_datasets as tfds  # type: ignore[import-untyped]

    if "train" not in builder.info.splits:
        raise InputError(
            f"TFDS data set {name!r} has no split 'train' (its splits: "
            f"{', '.join(builder.info.splits)})"
        )
    features = dict(builder.info.features.items())
    if not isinstance(features.get("image"), tfds.features.Image):
        raise InputError(
            f"TFDS data set {name!r} has no images 'image' (its features: {', '.join(features)})"
        )
    if labels and getattr(features.get("label"), "names", None) is None:
        raise InputError(
            f"TFDS data set {name!r} has no classes 'label' (its features: {', '.join(features)}): "
            "use labels random"
        )
    total = builder.info.splits["train"].num_examples
    count = min(total, limit)
    # TFDS shuffles records when it prepares them, so consecutive records are a random sample and
    # only the files that contain them are read.
    start = int(np.random.default_rng(seed).integers(total - count + 1))
    records = builder.as_dataset(split=f"train[{start}:{start + count}]")
    return count, (
        (
            np.broadcast_to(record["image"], (*record["image"].shape[:2], 3)),
            int(record["label"]) if labels else None,
        )
        for record in tfds.as_numpy(records)
    )

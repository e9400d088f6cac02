"""Labeled images for training: sources, held-out images, and batches in a reproducible order."""

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array, Bool, Int, UInt8
from PIL import Image, ImageOps

from tenas_jax.data.folders import FORMATS, class_folders, image_files, read_image
from tenas_jax.data.images import npz_images, npz_labels
from tenas_jax.data.normalization import (
    Normalization,
    known_normalization,
    measured_normalization,
)
from tenas_jax.data.tfds import tfds_builder
from tenas_jax.errors import InputError, quantity
from tenas_jax.host.files import require_local, user_path

IN_MEMORY = 4 << 30  # bytes; larger data sets are read batch by batch
HELD_OUT = 6  # one of six images is held out, as in CIFAR
READERS = 16
AHEAD = 2  # batches read while the devices compute
SAMPLE = 4096  # images from which mean and standard deviation are computed

NumPyBatch = tuple[UInt8[np.ndarray, "n size size 3"], Int[np.ndarray, " n"]]
Batch = tuple[UInt8[Array, "n size size 3"], Int[Array, " n"]]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class LabeledImages:
    """Images of one size with their classes, read on demand.

    Attributes:
        count: number of images.
        classes: names of the classes; a label is an index into them.
        take: returns the images and labels at given indices.
        fingerprint: identifies the data.
    """

    count: int
    classes: tuple[str, ...]
    take: Callable[[Int[np.ndarray, " n"]], NumPyBatch]
    fingerprint: str


@runtime_checkable
class Wanted(Protocol):
    """The fields of a recipe that describe its data; see `tenas_jax.training.recipes.Recipe`."""

    @property
    def data(self) -> str:
        """Source of the images."""

    @property
    def test_data(self) -> str | None:
        """Source of the test images; None: a part of `data`."""

    @property
    def data_dir(self) -> str | None:
        """Where TFDS keeps its data."""

    @property
    def num_classes(self) -> int:
        """Number of classes of the data."""

    @property
    def batch_size(self) -> int:
        """Images per step."""

    @property
    def read_size(self) -> int:
        """Side of the images as read, in pixels."""


class Split(NamedTuple):
    """Training and test images, and the normalization of both."""

    train: LabeledImages
    test: LabeledImages
    normalization: Normalization


class _Source(NamedTuple):
    """Images of any size, in the order of the source."""

    labels: Int[np.ndarray, " n"]
    classes: tuple[str, ...]
    read: Callable[[int], UInt8[np.ndarray, "_ _ 3"]]


def load_split(recipe: Wanted, progress: Progress | None = None) -> Split:
    """Load the data of a recipe.

    Args:
        recipe: names the sources, the number of classes and the size of the images.
        progress: called with (images read, images to read), separately for each part.

    Returns:
        Training and test images of side `recipe.read_size`. Mean and standard deviation are the
            published ones for CIFAR and ImageNet through TFDS, otherwise those of the training
            images, or of 4,096 of them.

    Raises:
        InputError: a source cannot be used, or has another number of classes or too few images.
    """
    kind, name = _parse(recipe.data)
    if kind == "tfds":
        train = _tfds(name, "train", recipe, progress)
        test = None if recipe.test_data else _tfds_held_out(name, recipe, progress)
    else:
        source = _OPEN[kind](user_path(name))
        held_out = held_out_part(source.labels) if recipe.test_data is None else None
        everything = np.arange(len(source.labels))
        chosen = everything if held_out is None else everything[~held_out]
        train = _labeled(source, chosen, recipe.read_size, progress)
        test = None
        if held_out is not None:
            test = _labeled(source, everything[held_out], recipe.read_size, progress)
    if len(train.classes) != recipe.num_classes:
        raise InputError(
            f"{recipe.data} has {quantity(len(train.classes), 'class')}, the recipe "
            f"{recipe.num_classes}: use --num-classes {len(train.classes)} or other data"
        )
    if train.count < recipe.batch_size:
        raise InputError(
            f"{recipe.data} has {quantity(train.count, 'image')} to train on, a batch "
            f"{recipe.batch_size}: use a smaller --batch-size or more images"
        )
    if test is None:
        assert recipe.test_data is not None
        test = load_test_data(recipe.test_data, recipe, train.classes, progress)
    known = known_normalization(recipe.data)
    return Split(train, test, known or measured_normalization(_sample(train), recipe.data))


def load_test_data(
    source: str, recipe: Wanted, classes: Sequence[str], progress: Progress | None = None
) -> LabeledImages:
    """Load all images of a source; for `tfds:NAME` its split validation or test.

    Args:
        source: a source, as in a recipe.
        recipe: gives the size of the images and where TFDS keeps its data.
        classes: names of the classes of the network.
        progress: called with (images read, images to read).

    Returns:
        Images of side `recipe.read_size`.

    Raises:
        InputError: the source cannot be used or has other classes.
    """
    kind, name = _parse(source)
    if kind == "tfds":
        test = _tfds_held_out(name, recipe, progress)
    else:
        opened = _OPEN[kind](user_path(name))
        test = _labeled(opened, np.arange(len(opened.labels)), recipe.read_size, progress)
    # Arrays have no class names, and a part of them may lack the last classes.
    complete = kind == "npz" or len(test.classes) == len(classes)
    if not complete or test.classes != tuple(classes[: len(test.classes)]):
        raise InputError(
            f"{source} has other classes ({_some(test.classes)}) than the training images "
            f"({_some(classes)}): use data of the same classes"
        )
    return test


def held_out_part(labels: Int[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    """Which images to hold out if a source has no test images: the last sixth of each class.

    Args:
        labels: the class of each image, in the order of the source.

    Returns:
        Whether each image is held out.

    Raises:
        InputError: no class has six images.

    Example:
        >>> held_out_part(np.array([0] * 6 + [1] * 6)).nonzero()[0]
        array([ 5, 11])
    """
    held_out = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        images = np.flatnonzero(labels == label)
        held_out[images[len(images) - len(images) // HELD_OUT :]] = True
    if not held_out.any():
        raise InputError(
            f"no class has the {HELD_OUT} images of which one can be held out: give --test-data"
        )
    return held_out


def epoch_order(count: int, *, seed: int, epoch: int) -> Int[np.ndarray, " count"]:
    """The order of the images in an epoch, which depends only on the arguments.

    Args:
        count: number of images.
        seed: seed of the training.
        epoch: number of the epoch, from 0.

    Returns:
        A permutation of the indices.

    Example:
        >>> epoch_order(4, seed=0, epoch=1)
        array([3, 0, 2, 1])
    """
    return np.random.default_rng([seed, epoch]).permutation(count)


def batches(
    images: LabeledImages, order: Int[np.ndarray, " n"], batch_size: int, sharding: NamedSharding
) -> Iterator[Batch]:
    """Full batches on the devices, read ahead; an incomplete last batch is dropped.

    Args:
        images: the images.
        order: indices of the images.
        batch_size: number of images over all devices.
        sharding: how a batch is sharded over the devices; each process reads only its own images.

    Yields:
        Images and labels.
    """
    rows = order[: len(order) // batch_size * batch_size].reshape(-1, batch_size)
    with ThreadPoolExecutor(1) as reader:
        due: deque[Future[Batch]] = deque()
        try:
            for row in rows:
                due.append(reader.submit(_place, images, row, sharding))
                if len(due) > AHEAD:
                    yield due.popleft().result()
            while due:
                yield due.popleft().result()
        finally:
            reader.shutdown(cancel_futures=True)


def _place(images: LabeledImages, row: Int[np.ndarray, " n"], sharding: NamedSharding) -> Batch:
    parts = [
        jax.device_put(images.take(row[index]), device)
        for device, index in sharding.addressable_devices_indices_map(row.shape).items()
    ]
    whole = jax.make_array_from_single_device_arrays
    pixels, labels = zip(*parts, strict=True)
    shape = (len(row), *pixels[0].shape[1:])
    return whole(shape, sharding, list(pixels)), whole(row.shape, sharding, list(labels))


def _parse(source: str) -> tuple[str, str]:
    kind, _, name = source.partition(":")
    require_local(name if kind in _OPEN else source)
    if kind not in (*_OPEN, "tfds") or not name:
        raise InputError(
            f"unknown source of labeled images {source!r}: use npz:PATH, folder:PATH or tfds:NAME"
        )
    return kind, name


def _open_npz(path: Path) -> _Source:
    x = npz_images(path)
    y = npz_labels(path, len(x))
    return _Source(y, tuple(map(str, range(int(y.max()) + 1))), x.__getitem__)


def _open_folder(path: Path) -> _Source:
    folders = class_folders(path)
    # Each class is listed separately, so a link to another class gives both of them the images.
    files = [(file, label) for label, each in enumerate(folders) for file in image_files(each)]
    if not files:
        raise InputError(
            f"{str(path)!r} has no images in folders ({FORMATS}): make a folder for each class"
        )
    return _Source(
        np.array([label for _, label in files], np.int32),
        tuple(folder.name for folder in folders),
        lambda index: read_image(files[index][0]),
    )


_OPEN: dict[str, Callable[[Path], _Source]] = {"npz": _open_npz, "folder": _open_folder}


def _tfds_held_out(name: str, recipe: Wanted, progress: Progress | None) -> LabeledImages:
    splits = tfds_builder(name, recipe.data_dir).info.splits
    for split in ("validation", "test"):
        if split in splits:
            return _tfds(name, split, recipe, progress)
    raise InputError(
        f"TFDS data set {name!r} has no split validation or test (its splits: "
        f"{', '.join(splits)}): give --test-data"
    )


def _tfds(name: str, split: str, recipe: Wanted, progress: Progress | None) -> LabeledImages:
    builder = tfds_builder(name, recipe.data_dir)
    features = dict(builder.info.features.items())
    classes = getattr(features.get("label"), "names", None)  # only class labels have names
    if split not in builder.info.splits or "image" not in features or classes is None:
        raise InputError(
            f"TFDS data set {name!r} has no split {split!r} of 'image' and 'label' (its splits: "
            f"{', '.join(builder.info.splits)}; its features: {', '.join(features)})"
        )
    count = builder.info.splits[split].num_examples
    fits = _fits(count, recipe.read_size)
    if not fits:
        builder = tfds_builder(name, recipe.data_dir, at_random=True)
    try:
        stored = builder.as_data_source(split)
    except NotImplementedError as error:
        if not fits:
            raise InputError(
                f"TFDS data set {name!r} is too large for the memory and its files are not for "
                "reading at random: prepare it with file_format='array_record' in another "
                "--data-dir"
            ) from error
        import tensorflow_datasets as tfds  # type: ignore[import-untyped]

        stored = tfds.as_numpy(builder.as_dataset(split=split))

    def example(record: Mapping[str, Any]) -> tuple[UInt8[np.ndarray, "size size 3"], int]:
        image = record["image"]
        rgb = np.broadcast_to(image, (*image.shape[:2], 3))
        label = int(record["label"])
        if not 0 <= label < len(classes):
            raise InputError(
                f"TFDS data set {name!r} has {quantity(len(classes), 'class')}, but in its split "
                f"{split!r} the label {label}"
            )
        return _fit(rgb, recipe.read_size), label

    if fits:
        images, labels = zip(*map(example, stored), strict=True)
        source = _Source(np.array(labels, np.int32), tuple(classes), images.__getitem__)
        return _labeled(source, np.arange(count), recipe.read_size, progress)

    def take(indices: Int[np.ndarray, " n"]) -> NumPyBatch:
        with ThreadPoolExecutor(READERS) as pool:
            chosen = list(pool.map(lambda index: example(stored[index]), indices.tolist()))
        images, labels = zip(*chosen, strict=True)
        return np.stack(images), np.array(labels, np.int32)

    # Reading all images would take too long.
    digest = hashlib.sha256(f"{builder.info.full_name} {split} {count}".encode())
    return LabeledImages(count, tuple(classes), take, digest.hexdigest())


def _labeled(
    source: _Source, chosen: Int[np.ndarray, " n"], size: int, progress: Progress | None
) -> LabeledImages:
    labels = source.labels[chosen]
    digest = hashlib.sha256(repr((len(labels), size, source.classes)).encode())
    digest.update(labels.tobytes())

    def read(index: int) -> UInt8[np.ndarray, "size size 3"]:
        return _fit(source.read(int(chosen[index])), size)

    if not _fits(len(labels), size):

        def take(indices: Int[np.ndarray, " n"]) -> NumPyBatch:
            with ThreadPoolExecutor(READERS) as pool:
                return np.stack(list(pool.map(read, indices.tolist()))), labels[indices]

        return LabeledImages(len(labels), source.classes, take, digest.hexdigest())

    images = np.empty((len(labels), size, size, 3), np.uint8)
    with ThreadPoolExecutor(READERS) as pool:
        for index, image in enumerate(pool.map(read, range(len(labels)))):
            images[index] = image
            if progress is not None:
                progress(index + 1, len(labels))
    digest.update(images.data)
    return LabeledImages(
        len(labels),
        source.classes,
        lambda indices: (images[indices], labels[indices]),
        digest.hexdigest(),
    )


def _fits(count: int, size: int) -> bool:
    return count * size * size * 3 <= IN_MEMORY


def _fit(image: UInt8[np.ndarray, "_ _ 3"], size: int) -> UInt8[np.ndarray, "size size 3"]:
    """The largest central square, resized."""
    if image.shape[:2] == (size, size):
        return image
    return np.asarray(ImageOps.fit(Image.fromarray(image), (size, size), Image.Resampling.BILINEAR))


def _sample(images: LabeledImages) -> UInt8[np.ndarray, "n size size 3"]:
    count = min(images.count, SAMPLE)
    return images.take(np.linspace(0, images.count - 1, count).astype(int))[0]


def _some(classes: Iterable[str]) -> str:
    names = list(classes)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")

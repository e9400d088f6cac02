"""Image sources: unlabeled uint8 images of one size, and the numbers that normalize them.

TensorFlow Datasets is imported only when a `tfds:` source is asked for.
"""

import dataclasses
import functools
import hashlib
import importlib.resources
import itertools
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from tenas_jax.errors import InputError, first_line
from tenas_jax.tfds_source import tfds_builder

Channels = tuple[float, float, float]

# The color photographs of everyday scenes that are files of the scikit-image wheel, so that
# reading them needs no network. The right-hand motorcycle is left out: it repeats the left one.
PHOTOS = ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg")
PHOTO_MIN_CONTRAST = 20.0  # standard deviation of some channel, in 0..255; a clear sky has less

IMAGE_SUFFIXES = (".jpeg", ".jpg", ".png", ".webp")

# Mean and standard deviation per channel, in 0..255, with which the original normalizes
# (lib/datasets/get_dataset_with_transform.py:82-91); its ImageNet16 is `imagenet_resized/16x16`.
_NORMALIZATION = {
    "cifar10": ((125.3, 123.0, 113.9), (63.0, 62.1, 66.7)),
    "cifar100": ((129.3, 124.1, 112.4), (68.2, 65.4, 70.4)),
    "imagenet_resized/16x16": ((122.68, 116.66, 104.01), (63.22, 61.26, 65.09)),
    "imagenet": ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
}


@dataclasses.dataclass(frozen=True, eq=False)
class ImageSet:
    """Images of one size and how to normalize them.

    Attributes:
        images: uint8 `[n, size, size, 3]`.
        mean: of each channel, where 255 is 1.
        std: standard deviation of each channel, in the same unit.
        name: the source as the user wrote it.
    """

    images: UInt8[np.ndarray, "n size size 3"]
    mean: Channels
    std: Channels
    name: str

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of shape and pixels, by which a resumed search notices other data."""
        digest = hashlib.sha256(repr(self.images.shape).encode())
        digest.update(np.ascontiguousarray(self.images).data)
        return digest.hexdigest()


def load_images(
    source: str,
    *,
    image_size: int,
    limit: int,
    seed: int,
    minimum: int = 1,
    data_dir: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ImageSet:
    """Images from a source, sampled, resized and with their normalization.

    Images of another size are resized to `image_size` in both directions, without cropping, by
    antialiased bilinear interpolation, as the original does for ImageNet. Of a source with more
    than `limit` images a random sample is taken, in the order of the source.

    Args:
        source: `photos` (crops of photographs that come with scikit-image), `npz:PATH` (array
            `x`, uint8, `[n, height, width, 3]`), `folder:PATH` (PNG, JPEG and WebP files, in
            subfolders too) or `tfds:NAME` (train split of a TensorFlow data set).
        image_size: height and width of the result in pixels.
        limit: number of images at most.
        seed: of the sample and of the crops.
        minimum: number of images at least, as many as a batch needs.
        data_dir: where TFDS keeps its data; its own default if `None`.
        progress: called with (images read, images to read).

    Returns:
        The images with their mean and standard deviation: those the original uses for CIFAR and
        ImageNet through TFDS, otherwise computed from the images returned.

    Raises:
        InputError: if the source is unknown, missing, unreadable, has the wrong form, too few
            images, or a channel that never varies.

    Example:
        >>> photos = load_images("photos", image_size=16, limit=4, seed=0)
        >>> photos.images.shape
        (4, 16, 16, 3)
    """
    kind, _, argument = source.partition(":")
    images: Iterator[UInt8[np.ndarray, "_ _ 3"]]
    match kind, argument:
        case "photos", "":
            count, images = limit, _photo_crops(image_size, seed)
        case "npz", path if path:
            count, images = npz_images(Path(path).expanduser(), limit, seed)
        case "folder", path if path:
            count, images = _folder_images(Path(path).expanduser(), limit, seed)
        case "tfds", name if name:
            count, images = _tfds_images(name, limit, seed, data_dir)
        case _:
            raise InputError(
                f"unknown image source {source!r}: use photos, npz:PATH, folder:PATH or tfds:NAME"
            )
    if count < minimum:
        raise InputError(
            f"image source {source!r} gives {count} images (limit {limit}), "
            f"but a batch needs {minimum}: use more images or a smaller batch"
        )
    resized = np.empty((count, image_size, image_size, 3), np.uint8)
    for i, image in enumerate(itertools.islice(images, count)):
        resized[i] = _resize(image, image_size)
        if progress is not None:
            progress(i + 1, count)
    mean, std = known_normalization(source) or measured_normalization(resized, source)
    return ImageSet(resized, mean, std, source)


def _sample(count: int, limit: int, seed: int) -> Int[np.ndarray, " taken"]:
    if count <= limit:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, limit, replace=False))


def _resize(image: UInt8[np.ndarray, "_ _ 3"], size: int) -> UInt8[np.ndarray, "size size 3"]:
    if image.shape[:2] == (size, size):
        return image
    # Pillow widens the filter when it shrinks an image, which is what prevents aliasing.
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))


def known_normalization(source: str) -> tuple[Channels, Channels] | None:
    """The published mean and standard deviation per channel of a TFDS data set, if any."""
    kind, _, name_and_version = source.partition(":")
    name = name_and_version.partition(":")[0]
    if kind != "tfds":
        return None
    if name.startswith("imagenet") and name not in _NORMALIZATION:
        name = "imagenet"
    if name not in _NORMALIZATION:
        return None
    (mean_r, mean_g, mean_b), (std_r, std_g, std_b) = _NORMALIZATION[name]
    return (
        (mean_r / 255, mean_g / 255, mean_b / 255),
        (std_r / 255, std_g / 255, std_b / 255),
    )


def measured_normalization(
    images: UInt8[np.ndarray, "n size size 3"], source: str
) -> tuple[Channels, Channels]:
    """Mean and standard deviation per channel, exact: computed from the histogram."""
    levels = np.arange(256) / 255
    mean, std = [], []
    for channel in range(3):
        frequency = np.bincount(images[..., channel].ravel(), minlength=256) / images[..., 0].size
        mean.append(float(frequency @ levels))
        std.append(float(np.sqrt(frequency @ (levels - mean[-1]) ** 2)))
        if np.count_nonzero(frequency) == 1:
            raise InputError(
                f"image source {source!r} has the same value in all of channel {channel}: "
                "use images that differ"
            )
    return (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])


def _photo_crops(size: int, seed: int) -> Iterator[UInt8[np.ndarray, "size size 3"]]:
    """Endless distinct square crops of 1/10 to 1/2 of a photograph, the photographs in turn."""
    folder = importlib.resources.files("skimage") / "data"
    photos = []
    for name in PHOTOS:
        with importlib.resources.as_file(folder / name) as path:
            photos.append(Image.fromarray(read_image(path)))
    rng = np.random.default_rng(seed)
    seen: set[bytes] = set()
    for photo in itertools.cycle(photos):
        for _ in range(1000):
            shorter = min(photo.size)
            smallest = min(max(size, shorter // 10), shorter // 2)
            side = round(smallest * (shorter / 2 / smallest) ** rng.random())
            left, top = (int(rng.integers(extent - side + 1)) for extent in photo.size)
            box = (left, top, left + side, top + side)
            crop = np.asarray(photo.resize((size, size), Image.Resampling.BILINEAR, box))
            if crop.std(axis=(0, 1)).max() >= PHOTO_MIN_CONTRAST and crop.tobytes() not in seen:
                break
        else:
            raise InputError(
                f"source 'photos' has no more than {len(seen)} distinct crops of {size} pixels: "
                "use a lower limit"
            )
        seen.add(crop.tobytes())
        yield crop


def npz_images(
    path: Path, limit: int, seed: int
) -> tuple[int, Iterator[UInt8[np.ndarray, "_ _ 3"]]]:
    """How many images of an archive are taken, and the images: a sample of at most `limit`."""
    if not path.is_file():
        raise InputError(f"no file {str(path)!r}: npz:PATH names an existing .npz file")
    if not zipfile.is_zipfile(path):
        raise InputError(f"{str(path)!r} is not an .npz file: write it with numpy.savez(PATH, x=x)")
    try:
        with np.load(path, allow_pickle=False) as archive:
            if "x" not in archive:
                arrays = ", ".join(archive) or "none"
                raise InputError(f"{str(path)!r} has no array 'x' (its arrays: {arrays})")
            x = archive["x"]
    except InputError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"cannot read array 'x' of {str(path)!r}: {first_line(error)}") from error
    if x.dtype != np.uint8 or x.ndim != 4 or x.shape[-1] != 3 or 0 in x.shape[1:]:
        raise InputError(
            f"array 'x' of {str(path)!r} is {x.dtype} of shape {x.shape}: "
            "use uint8 of shape (n, height, width, 3)"
        )
    chosen = _sample(len(x), limit, seed)
    return len(chosen), (x[i] for i in chosen)


def _folder_images(
    path: Path, limit: int, seed: int
) -> tuple[int, Iterator[UInt8[np.ndarray, "_ _ 3"]]]:
    if not path.is_dir():
        raise InputError(f"no folder {str(path)!r}: folder:PATH names a folder of images")
    files = sorted(
        (file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES),
        key=lambda file: file.relative_to(path).as_posix(),
    )
    chosen = _sample(len(files), limit, seed)
    return len(chosen), (read_image(files[i]) for i in chosen)


def read_image(path: Path) -> UInt8[np.ndarray, "_ _ 3"]:
    """An image file as RGB: gray is repeated, a palette looked up, transparency dropped."""
    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):  # Pillow would clip these at 255
                raise InputError(
                    f"image {str(path)!r} has more than 8 bits per channel: convert it to 8 bits"
                )
            # Through RGBA, because Pillow warns when it drops the transparency of a palette.
            opaque = image.convert("RGBA") if image.has_transparency_data else image
            return np.asarray(opaque.convert("RGB"))
    except InputError:
        raise
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(
            f"cannot read image {str(path)!r}: {first_line(error)}; repair or remove it"
        ) from error


def _tfds_images(
    name: str, limit: int, seed: int, data_dir: str | None
) -> tuple[int, Iterator[UInt8[np.ndarray, "_ _ 3"]]]:
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
    total = builder.info.splits["train"].num_examples
    count = min(total, limit)
    # TFDS shuffles the records as it prepares them: consecutive ones are a random sample, and
    # to read them takes no more than the files they are in.
    start = int(np.random.default_rng(seed).integers(total - count + 1))
    records = builder.as_dataset(split=f"train[{start}:{start + count}]")
    return count, (
        np.broadcast_to(record["image"], (*record["image"].shape[:2], 3))
        for record in tfds.as_numpy(records)
    )

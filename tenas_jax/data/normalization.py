"""Mean and standard deviation of images: the published ones, or measured."""

from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from tenas_jax.errors import InputError

Channels = tuple[float, ...]
RGB = tuple[float, float, float]


class Normalization(NamedTuple):
    """Mean and standard deviation of each channel, with pixels scaled to 0..1."""

    mean: Channels
    std: Channels


# The original's values, in 0..255 (lib/datasets/get_dataset_with_transform.py:82-91); its
# ImageNet16 is `imagenet_resized/16x16`.
_PUBLISHED: dict[str, tuple[RGB, RGB]] = {
    "cifar10": ((125.3, 123.0, 113.9), (63.0, 62.1, 66.7)),
    "cifar100": ((129.3, 124.1, 112.4), (68.2, 65.4, 70.4)),
    "imagenet_resized/16x16": ((122.68, 116.66, 104.01), (63.22, 61.26, 65.09)),
    "imagenet": ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
}


def known_normalization(source: str) -> Normalization | None:
    """The published mean and standard deviation per channel of a TFDS data set, if any."""
    kind, _, name_and_version = source.partition(":")
    name = name_and_version.partition(":")[0]
    if kind != "tfds":
        return None
    if name.startswith("imagenet") and name not in _PUBLISHED:
        name = "imagenet"
    if name not in _PUBLISHED:
        return None
    mean, std = _PUBLISHED[name]
    return Normalization(tuple(x / 255 for x in mean), tuple(x / 255 for x in std))


def measured_normalization(
    images: UInt8[np.ndarray, "n height width channels"], source: str
) -> Normalization:
    """Exact mean and standard deviation per channel, computed from the histogram.

    Raises:
        InputError: a channel has the same value everywhere.
    """
    levels = np.arange(256) / 255
    mean, std = [], []
    for channel in range(images.shape[-1]):
        frequency = np.bincount(images[..., channel].ravel(), minlength=256) / images[..., 0].size
        mean.append(float(frequency @ levels))
        std.append(float(np.sqrt(frequency @ (levels - mean[-1]) ** 2)))
        if np.count_nonzero(frequency) == 1:
            raise InputError(
                f"image source {source!r} has the same value in all of channel {channel}: "
                "use images that differ"
            )
    return Normalization(tuple(mean), tuple(std))

"""Augmentation on the device: pure functions of a key and an image; `jax.vmap` them for a batch."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, UInt8

from tenas_jax.data.normalization import Normalization
from tenas_jax.training.recipes import Recipe

# ITU-R BT.601, the weights with which Pillow converts to gray.
LUMA = (0.299, 0.587, 0.114)


def training_images(
    key: Key[Array, ""],
    images: UInt8[Array, "n read read 3"],
    recipe: Recipe,
    normalization: Normalization,
) -> Float[Array, "n size size 3"]:
    """Augment images as a recipe says, and normalize them.

    Args:
        key: key for all random draws.
        images: pixels from 0 to 255, side `recipe.read_size`.
        recipe: the augmentations and their strengths.
        normalization: mean and standard deviation of the images.

    Returns:
        Float32 images of side `recipe.image_size`.

    Example:
        >>> from tenas_jax.training.recipes import RECIPES
        >>> images = jnp.zeros((2, 32, 32, 3), jnp.uint8)
        >>> half = Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
        >>> training_images(jax.random.key(0), images, RECIPES["cifar10"], half).shape
        (2, 32, 32, 3)
    """

    def change(key: Key[Array, ""], image: Float[Array, "h w 3"]) -> Float[Array, "h w 3"]:
        crop_key, flip_key, jitter_key, cutout_key = jax.random.split(key, 4)
        if recipe.crop == "resized":
            image = random_resized_crop(crop_key, image, recipe.image_size)
        else:
            image = random_crop(crop_key, image, recipe.padding)
        image = jnp.where(jax.random.bernoulli(flip_key), image[:, ::-1], image)
        if recipe.color_jitter:
            image = color_jitter(jitter_key, image, recipe.color_jitter)
        image = normalize(image, normalization)
        return cutout(cutout_key, image, recipe.cutout) if recipe.cutout else image

    return jax.vmap(change)(jax.random.split(key, len(images)), images / 255.0)


def evaluation_images(
    images: UInt8[Array, "n read read 3"], recipe: Recipe, normalization: Normalization
) -> Float[Array, "n size size 3"]:
    """Crop the center of images and normalize them.

    Args:
        images: pixels from 0 to 255, side `recipe.read_size`.
        recipe: gives the size of the center.
        normalization: mean and standard deviation of the images.

    Returns:
        Float32 images of side `recipe.image_size`.
    """
    start = (images.shape[1] - recipe.image_size) // 2
    center = images[:, start:, start:][:, : recipe.image_size, : recipe.image_size]
    return normalize(center / 255.0, normalization)


def normalize(
    images: Float[Array, "*n h w 3"], normalization: Normalization
) -> Float[Array, "*n h w 3"]:
    """(x - mean) / std, channel by channel.

    Args:
        images: pixels from 0 to 1.
        normalization: mean and standard deviation.

    Returns:
        Images of mean 0 and standard deviation 1.
    """
    mean, std = (jnp.reshape(jnp.array(x), (*(1,) * (images.ndim - 1), 3)) for x in normalization)
    return (images - mean) / std


def random_crop(
    key: Key[Array, ""], image: Float[Array, "h w 3"], padding: int
) -> Float[Array, "h w 3"]:
    """Add a black border to an image and crop it to its original size.

    Args:
        key: key for the position.
        image: any image.
        padding: width of the border in pixels.

    Returns:
        The crop.
    """
    padded = jnp.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    top, left = jax.random.randint(key, (2,), 0, 2 * padding + 1)
    return jax.lax.dynamic_slice(padded, (top, left, jnp.zeros_like(top)), image.shape)


def random_resized_crop(
    key: Key[Array, ""], image: Float[Array, "h w 3"], size: int
) -> Float[Array, "size size 3"]:
    """A random part of 8 to 100 % of the area, with aspect ratio 3:4 to 4:3, resized to a square.

    Sides are clipped to those of the image.

    Args:
        key: key for the area, aspect ratio and position.
        image: a square image.
        size: side of the result in pixels.

    Returns:
        The part, by antialiased bilinear interpolation.
    """
    area_key, ratio_key, place_key = jax.random.split(key, 3)
    area = jax.random.uniform(area_key, minval=0.08, maxval=1.0) * image.shape[0] ** 2
    log_ratio = jax.random.uniform(ratio_key, minval=jnp.log(3 / 4), maxval=jnp.log(4 / 3))
    ratio = jnp.exp(log_ratio)
    sides = jnp.sqrt(jnp.stack([area / ratio, area * ratio]))
    sides = jnp.minimum(sides, image.shape[0])
    corner = jax.random.uniform(place_key, (2,)) * (image.shape[0] - sides)
    scale = size / sides
    resized: Array = jax.image.scale_and_translate(
        image, (size, size, 3), (0, 1), scale, -corner * scale, "linear", antialias=True
    )
    return resized


def cutout(key: Key[Array, ""], image: Float[Array, "h w 3"], side: int) -> Float[Array, "h w 3"]:
    """Set a square around a random pixel to 0 (arXiv 1708.04552); it may extend past the border.

    Args:
        key: key for the pixel.
        image: a normalized image.
        side: side of the square in pixels; odd numbers are rounded down.

    Returns:
        The image with a hole.
    """
    row_key, column_key = jax.random.split(key)
    row = jax.random.randint(row_key, (), 0, image.shape[0])
    column = jax.random.randint(column_key, (), 0, image.shape[1])
    hole = _near(row, image.shape[0], side)[:, None] & _near(column, image.shape[1], side)[None]
    return jnp.where(hole[:, :, None], 0.0, image)


def color_jitter(
    key: Key[Array, ""], image: Float[Array, "h w 3"], strength: float
) -> Float[Array, "h w 3"]:
    """Change brightness, contrast and saturation, each by a factor of 1 - s to 1 + s.

    Args:
        key: key for the factors.
        image: pixels from 0 to 1.
        strength: s.

    Returns:
        The image, with pixels from 0 to 1.
    """
    factors = jax.random.uniform(key, (3,), minval=1 - strength, maxval=1 + strength)
    bright = _blend(jnp.zeros_like(image), image, factors[0])
    contrasted = _blend(jnp.full_like(image, _gray(bright).mean()), bright, factors[1])
    gray = jnp.broadcast_to(_gray(contrasted)[:, :, None], image.shape)
    return _blend(gray, contrasted, factors[2])


def _near(center: Int[Array, ""], length: int, side: int) -> Array:
    pixels = jnp.arange(length)
    return (center - side // 2 <= pixels) & (pixels < center + side // 2)


def _blend(start: Array, end: Array, share: Array) -> Array:
    return jnp.clip(start + share * (end - start), 0.0, 1.0)


def _gray(image: Float[Array, "h w 3"]) -> Float[Array, "h w"]:
    return image @ jnp.array(LUMA)

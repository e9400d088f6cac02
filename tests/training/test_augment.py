"""Augmentation against what NumPy makes of every possible draw."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tenas_jax.data.normalization import Normalization
from tenas_jax.training import augment
from tenas_jax.training.recipes import RECIPES

KEY = jax.random.key(1)
NORMALIZATION = Normalization((0.5, 0.4, 0.3), (0.2, 0.25, 0.5))


def draws(function, image, count):
    keys = jax.random.split(jax.random.key(0), count)
    return np.asarray(jax.jit(jax.vmap(lambda key: function(key, jnp.asarray(image))))(keys))


def test_crops_are_all_windows_of_the_padded_image():
    image = np.arange(1, 1 + 4 * 4 * 3, dtype=np.float32).reshape(4, 4, 3)
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)))
    windows = {padded[i : i + 4, j : j + 4].tobytes() for i in range(3) for j in range(3)}
    crops = draws(lambda key, x: augment.random_crop(key, x, 1), image, 200)
    assert {crop.tobytes() for crop in crops} == windows


@pytest.mark.parametrize("side", [2, 4])
def test_cutout_is_a_clipped_square_around_any_pixel(side):
    expected = set()
    for row in range(5):
        for column in range(5):
            image = np.ones((5, 5, 3), np.float32)
            top, left = max(row - side // 2, 0), max(column - side // 2, 0)
            image[top : row + side // 2, left : column + side // 2] = 0
            expected.add(image.tobytes())
    ones = np.ones((5, 5, 3), np.float32)
    results = draws(lambda key, x: augment.cutout(key, x, side), ones, 500)
    assert {result.tobytes() for result in results} == expected


def test_resized_crops_have_the_published_areas_and_forms():
    # The color of a pixel is its position: the crop is read off the result.
    rows, columns = np.mgrid[:64, :64].astype(np.float32)
    image = np.stack([rows, columns, np.ones_like(rows)], -1)
    crops = draws(lambda key, x: augment.random_resized_crop(key, x, 16), image, 300)
    np.testing.assert_allclose(crops[..., 2], 1, atol=1e-5)
    inner = crops[:, 4:12, 4:12]  # where antialiasing does not reach the border
    height = 16 * np.diff(inner[..., 0], axis=1).mean((1, 2))
    width = 16 * np.diff(inner[..., 1], axis=2).mean((1, 2))
    whole = np.maximum(height, width) > 63  # would have been longer than the image
    area, ratio = height * width / 64**2, width / height
    assert area.min() > 0.075 and area[~whole].max() < 1.02
    assert np.quantile(area, 0.1) < 0.25 and np.quantile(area, 0.9) > 0.8
    # Antialiasing shifts a color by some hundredths of a pixel.
    assert 0.73 < ratio[~whole].min() < 0.8 and 1.25 < ratio[~whole].max() < 1.36
    center = inner[..., :2].mean((1, 2))
    sides = np.stack([height, width], -1)
    assert (center - sides / 2 > -0.6).all() and (center + sides / 2 < 63.6).all()


def test_color_jitter_is_brightness_contrast_and_saturation():
    image = np.random.default_rng(0).random((4, 4, 3), np.float32)
    for seed in range(5):
        key = jax.random.key(seed)
        brightness, contrast, saturation = jax.random.uniform(key, (3,), minval=0.6, maxval=1.4)
        expected = np.clip(brightness * image, 0, 1)
        luma = np.array([0.299, 0.587, 0.114])
        gray = (expected @ luma).mean()
        expected = np.clip(gray + contrast * (expected - gray), 0, 1)
        gray = (expected @ luma)[..., None]
        expected = np.clip(gray + saturation * (expected - gray), 0, 1)
        result = augment.color_jitter(key, jnp.asarray(image), 0.4)
        np.testing.assert_allclose(result, expected, atol=1e-5)


def test_training_images_are_flipped_half_of_the_time_and_normalized():
    recipe = dataclasses.replace(
        RECIPES["nas-bench-201"], image_size=8, padding=0, cutout=0, num_classes=2
    )
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    images = jnp.asarray(np.stack([image] * 400))
    augmented = jax.jit(lambda x: augment.training_images(KEY, x, recipe, NORMALIZATION))
    result = np.asarray(augmented(images))
    mean, std = np.array(NORMALIZATION.mean), np.array(NORMALIZATION.std)
    expected = (image / 255 - mean) / std
    flipped = np.abs(result - expected[:, ::-1]).max((1, 2, 3)) < 1e-5
    straight = np.abs(result - expected).max((1, 2, 3)) < 1e-5
    assert (flipped ^ straight).all()
    assert 150 < flipped.sum() < 250


def test_evaluation_images_are_the_center():
    recipe = dataclasses.replace(
        RECIPES["imagenet"], stem="cifar", image_size=12, auxiliary=0.0, num_classes=2
    )
    assert recipe.read_size == 14
    images = np.random.default_rng(0).integers(0, 256, (2, 14, 14, 3), np.uint8)
    result = augment.evaluation_images(jnp.asarray(images), recipe, NORMALIZATION)
    mean, std = np.array(NORMALIZATION.mean), np.array(NORMALIZATION.std)
    np.testing.assert_allclose(result, (images[:, 1:13, 1:13] / 255 - mean) / std, atol=1e-5)

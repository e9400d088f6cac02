"""Batches and patches drawn on the device, against a search in the source images."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view

from tenas_jax.data.sampling import sample_images, sample_patches
from tenas_jax.errors import InputError

MEAN = (0.5, 0.4, 0.3)
STD = (0.2, 0.25, 0.3)
ZEROS, ONES = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
COUNT, SIZE, PADDING = 12, 6, 2


@pytest.fixture(scope="module")
def images():
    """Images without a black pixel, so that black can only be a border."""
    return np.random.default_rng(0).integers(1, 256, (COUNT, SIZE, SIZE, 3)).astype(np.uint8)


def denormalize(x, mean=MEAN, std=STD):
    pixels = (np.asarray(x, np.float64) * std + mean) * 255
    np.testing.assert_allclose(pixels, pixels.round(), atol=1e-3)
    return pixels.round().astype(np.uint8)


def find_crop(crop, images, padding):
    """All (image, flipped, top, left) whose crop is `crop`."""
    border = ((padding, padding), (padding, padding), (0, 0))
    return [
        (i, flipped, top, left)
        for i, image in enumerate(images)
        for flipped in (False, True)
        for top in range(2 * padding + 1)
        for left in range(2 * padding + 1)
        if np.array_equal(
            np.pad(image[:, ::-1] if flipped else image, border)[
                top : top + SIZE, left : left + SIZE
            ],
            crop,
        )
    ]


@partial(jax.jit, static_argnames=("n", "padding"))
def draw_images(key, images, n=COUNT, padding=PADDING):
    return sample_images(key, images, n, padding=padding, mean=MEAN, std=STD)


@partial(jax.jit, static_argnames=("n", "size", "mean", "std"))
def draw_patches(key, images, n=COUNT, size=3, mean=MEAN, std=STD):
    return sample_patches(key, images, n, size=size, mean=mean, std=std)


def test_images_are_flipped_crops_of_distinct_images(images):
    found = []
    for seed in range(4):
        batch = draw_images(jax.random.key(seed), jnp.asarray(images))
        assert batch.shape == (COUNT, SIZE, SIZE, 3)
        assert batch.dtype == jnp.float32
        matches = [find_crop(crop, images, PADDING) for crop in denormalize(batch)]
        assert all(len(match) == 1 for match in matches)
        found += [match[0] for match in matches]
        assert sorted(match[0][0] for match in matches) == list(range(COUNT))
    _, flips, tops, lefts = (set(values) for values in zip(*found, strict=True))
    assert flips == {False, True}
    assert tops == lefts == set(range(2 * PADDING + 1))
    assert any(top != left for _, _, top, left in found)
    order = [index for index, *_ in found[:COUNT]]
    assert order != sorted(order)


def test_half_of_the_images_are_flipped(images):
    crops = denormalize(draw_images(jax.random.key(0), jnp.tile(images, (50, 1, 1, 1)), 600, 0))
    flipped = sum(find_crop(crop, images, 0)[0][1] for crop in crops)
    assert abs(flipped - 300) < 4 * np.sqrt(600 / 4)


def test_without_padding_an_image_is_itself_or_its_mirror_image(images):
    for crop in denormalize(draw_images(jax.random.key(1), jnp.asarray(images), 5, 0)):
        assert len(find_crop(crop, images, 0)) == 1


def test_patches_are_of_one_channel_of_the_images(images):
    patches = np.asarray(draw_patches(jax.random.key(0), jnp.asarray(images), COUNT))
    assert patches.shape == (COUNT, 3, 3, 1)
    assert patches.dtype == np.float32
    normalized = (images / 255 - MEAN) / STD
    windows = sliding_window_view(normalized, (3, 3), axis=(1, 2))  # image, top, left, channel
    found = []
    for patch in patches[..., 0]:
        matches = np.argwhere(np.abs(windows - patch).max(axis=(-2, -1)) < 1e-5)
        assert len(matches) == 1
        found.append(matches[0])
    image, top, left, channel = np.stack(found, axis=-1)
    assert sorted(image) == list(range(COUNT))
    assert set(channel) == {0, 1, 2}
    assert len(set(top)) > 1
    assert len(set(left)) > 1
    assert (top != left).any()


def test_patches_reach_every_position_and_channel_equally():
    ids = np.arange(25 * 3, dtype=np.uint8).reshape(1, 5, 5, 3)
    patches = draw_patches(jax.random.key(0), jnp.asarray(ids), 2700, mean=ZEROS, std=ONES)
    corners = np.asarray(patches[:, 0, 0, 0] * 255).round().astype(int)
    counts = np.bincount(corners, minlength=75).reshape(5, 5, 3)
    assert counts.sum() == counts[:3, :3].sum() == 2700
    assert np.abs(counts[:3, :3] - 100).max() < 50  # five standard deviations


@pytest.mark.parametrize(
    ("size", "channels", "shape"), [(3, 1, (5, 4, 3)), (2, 3, (4, 6, 3)), (1, 1, (2, 2, 1))]
)
def test_patches_cut_by_products_are_the_same(size, channels, shape):
    images = np.random.default_rng(0).integers(0, 256, (7, *shape)).astype(np.uint8)
    gathered, products = (
        sample_patches(
            jax.random.key(0),
            jnp.asarray(images),
            40,
            size=size,
            channels=channels,
            mean=jnp.arange(shape[2], dtype=jnp.float32),
            std=jnp.ones(shape[2]),
            by_products=by_products,
        )
        for by_products in (False, True)
    )
    assert np.array_equal(gathered, products)
    assert len(np.unique(gathered)) > 10


def test_more_patches_than_images_use_every_image_equally():
    images = jnp.broadcast_to(jnp.arange(5, dtype=jnp.uint8)[:, None, None, None], (5, 4, 4, 3))
    patches = draw_patches(jax.random.key(0), images, 12, mean=ZEROS, std=ONES)
    used = np.asarray(patches[:, 0, 0, 0] * 255).round().astype(int)
    assert sorted(used[:5]) == sorted(used[5:10]) == list(range(5))
    assert list(used[:5]) != list(used[5:10])
    assert len(set(used[10:])) == 2


@pytest.mark.parametrize(
    "draw", [partial(sample_images, padding=PADDING), partial(sample_patches, size=3)]
)
def test_the_key_decides_alike_eagerly_jitted_and_mapped(draw, images):
    images = jnp.asarray(images)
    draw = partial(draw, n=8, mean=MEAN, std=STD)
    keys = jax.random.split(jax.random.key(0), 3)
    eager = draw(keys[0], images)
    jitted_draw = jax.jit(draw)
    jitted = [jitted_draw(key, images) for key in keys]
    mapped = jax.jit(jax.vmap(draw, in_axes=(0, None)))(keys, images)
    np.testing.assert_allclose(jitted[0], eager, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(mapped, jitted, rtol=1e-6, atol=1e-6)
    assert np.array_equal(draw(keys[0], images), eager)
    assert not np.array_equal(jitted[0], jitted[1])


def test_mean_and_std_may_be_arrays(images):
    images = jnp.asarray(images)
    draw = jax.jit(partial(sample_images, n=4, padding=1))
    arrays = draw(jax.random.key(0), images, mean=jnp.array(MEAN), std=jnp.array(STD))
    expected = draw_images(jax.random.key(0), images, 4, 1)
    np.testing.assert_allclose(arrays, expected, rtol=1e-6, atol=1e-6)


def test_too_few_images_are_refused(images):
    with pytest.raises(InputError, match="a batch of 13 distinct images needs 13 images, not 12"):
        draw_images(jax.random.key(0), jnp.asarray(images), 13)


def test_patches_larger_than_the_images_are_refused(images):
    with pytest.raises(InputError, match="patches of 7 pixels do not fit images of 6 x 6"):
        draw_patches(jax.random.key(0), jnp.asarray(images), 2, 7)

"""Random batches drawn on the device: augmented images, and patches of one channel."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, UInt8

from tenas_jax.errors import InputError, quantity
from tenas_jax.numerics import PRECISION

Channels = tuple[float, ...] | Float[Array, "channels"]


def sample_images(
    key: PRNGKeyArray,
    images: UInt8[Array, "count height width channels"],
    n: int,
    *,
    padding: int,
    mean: Channels | Float[Array, " channels"],
    std: Channels | Float[Array, " channels"],
) -> Float[Array, "n height width channels"]:
    """A batch of distinct images, each randomly flipped and cropped, then normalized.

    The image gets a border of black pixels and is cropped to its original size. As in the original
    code, the border is added before normalization (lib/datasets/get_dataset_with_transform.py:97),
    so it becomes -mean / std.

    Args:
        key: key for the choice, the flips and the crops.
        images: all images.
        n: number of images in the batch.
        padding: width of the border in pixels.
        mean: mean of each channel, with pixels scaled to 0..1.
        std: standard deviation of each channel, in the same unit.

    Returns:
        The batch, float32 `[n, height, width, channels]`.

    Raises:
        InputError: there are fewer than `n` images.

    Example:
        >>> images = jnp.full((4, 8, 8, 3), 255, jnp.uint8)
        >>> half = (0.5, 0.5, 0.5)
        >>> batch = sample_images(jax.random.key(0), images, 2, padding=0, mean=half, std=half)
        >>> batch.shape, float(batch.min())
        ((2, 8, 8, 3), 1.0)
    """
    count = images.shape[0]
    if n > count:
        raise InputError(
            f"a batch of {n} distinct images needs {quantity(n, 'image')}, not {count}"
        )
    _, flip_key, offset_key = jax.random.split(key, 3)
    chosen = images[chosen_images(key, count, n)]
    flips = jax.random.bernoulli(flip_key, shape=(n,))
    offsets = jax.random.randint(offset_key, (n, 2), 0, 2 * padding + 1)
    augmented = jax.vmap(partial(_flip_and_crop, padding=padding))(chosen, flips, offsets)
    axes = (1, 1, 1, -1)
    return (_unit(augmented) - _floats(mean).reshape(axes)) / _floats(std).reshape(axes)


def chosen_images(key: PRNGKeyArray, count: int, n: int) -> Int[Array, " n"]:
    """Indices of the images in the batch that `sample_images` draws, in the same order.

    Args:
        key: the key passed to `sample_images`.
        count: total number of images.
        n: number of images in the batch.

    Example:
        >>> sorted(chosen_images(jax.random.key(0), 4, 4).tolist())
        [0, 1, 2, 3]
    """
    return _shuffled_epochs(jax.random.split(key, 3)[0], count, n)


def sample_patches(
    key: PRNGKeyArray,
    images: UInt8[Array, "count height width channels"],
    n: int,
    *,
    size: int = 3,
    channels: int = 1,
    mean: Channels | Float[Array, " channels"],
    std: Channels | Float[Array, " channels"],
    by_products: bool = False,
) -> Float[Array, "n size size channels_of_patch"]:
    """Normalized square patches for counting linear regions.

    As in the original (lib/procedures/linear_region_counter.py:53), every patch draws its own
    position and channel, and no image is reused before all have been used.

    Args:
        key: key for the images, positions and channels.
        images: all images.
        n: number of patches, which may exceed the number of images.
        size: height and width of a patch in pixels.
        channels: 1 for a random channel as in the original, or the number of channels of the
            images for all of them.
        mean: mean of each channel, with pixels scaled to 0..1.
        std: standard deviation of each channel, in the same unit.
        by_products: whether to cut the patches out of rows by products, with equal results. A TPU
            would make a loop over the patches of a gather that starts anywhere in a row.

    Returns:
        The patches, float32 `[n, size, size, channels]`.

    Raises:
        InputError: the images are smaller than a patch.

    Example:
        >>> images = jnp.full((4, 8, 8, 3), 255, jnp.uint8)
        >>> half = (0.5, 0.5, 0.5)
        >>> patches = sample_patches(jax.random.key(0), images, 10, mean=half, std=half)
        >>> patches.shape, float(patches.min())
        ((10, 3, 3, 1), 1.0)
    """
    count, height, width, all_channels = images.shape
    if size > min(height, width):
        raise InputError(f"patches of {size} pixels do not fit images of {height} x {width}")
    if channels not in (1, all_channels):
        raise InputError(f"patches have 1 or {all_channels} channels, not {channels}")
    choice_key, top_key, left_key, channel_key = jax.random.split(key, 4)
    index = _shuffled_epochs(choice_key, count, n)
    top = jax.random.randint(top_key, (n,), 0, height - size + 1)
    left = jax.random.randint(left_key, (n,), 0, width - size + 1)
    channel = jax.random.randint(channel_key, (n,), 0, all_channels - channels + 1)

    if by_products:
        rows = images.reshape(count * height, -1)
        rows = rows[(index * height + top)[:, None] + jnp.arange(size)[None]]
        # Of a row the pixels of a patch are not next to each other where it has one channel.
        offsets = (all_channels * jnp.arange(size)[:, None] + jnp.arange(channels)[None]).reshape(
            -1
        )
        columns = (left * all_channels + channel)[:, None] + offsets[None]
        patches = _take_columns(rows, columns).reshape(n, size, size, channels)
    else:
        cut = partial(lax.dynamic_slice, images, slice_sizes=(1, size, size, channels))
        patches = jax.vmap(cut)((index, top, left, channel)).reshape(n, size, size, channels)
    chosen = channel[:, None] + jnp.arange(channels)[None]
    mean_of_patch, std_of_patch = (_floats(each)[chosen][:, None, None] for each in (mean, std))
    return (_unit(patches) - mean_of_patch) / std_of_patch


def _take_columns(
    rows: UInt8[Array, "n rows columns"], columns: Int[Array, "n chosen"]
) -> UInt8[Array, "n rows chosen"]:
    """Columns of each matrix, by a product with the columns of the identity."""
    chosen = columns[..., None] == jnp.arange(rows.shape[-1])[None, None]
    # Eight bits fit bfloat16, and every sum has one term: the product is exact.
    values, identity = rows.astype(jnp.bfloat16), chosen.astype(jnp.bfloat16)
    product = jnp.einsum("nrc,nkc->nrk", values, identity, precision=PRECISION)
    return product.astype(jnp.uint8)


def _shuffled_epochs(key: PRNGKeyArray, count: int, n: int) -> Int[Array, " n"]:
    """The first `n` entries of repeated random permutations of 0..count-1."""
    epochs = -(-n // count)
    shuffle = partial(jax.random.permutation, x=count)
    return jax.vmap(shuffle)(jax.random.split(key, epochs)).reshape(-1)[:n]


def _flip_and_crop(
    image: UInt8[Array, "height width channels"],
    flip: Bool[Array, ""],
    offset: Int[Array, "2"],
    *,
    padding: int,
) -> UInt8[Array, "height width channels"]:
    flipped = jnp.where(flip, image[:, ::-1], image)
    padded = jnp.pad(flipped, ((padding, padding), (padding, padding), (0, 0)))
    return lax.dynamic_slice(padded, (offset[0], offset[1], 0), image.shape)


def _unit(pixels: UInt8[Array, "..."]) -> Float[Array, "..."]:
    return pixels.astype(jnp.float32) / 255


def _floats(channels: Channels) -> Float[Array, "channels"]:
    return jnp.asarray(channels, jnp.float32)

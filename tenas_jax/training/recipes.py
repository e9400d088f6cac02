"""Recipes: published settings for training an architecture.

Departures from the published code, in every recipe: the learning rate follows its cosine per step
instead of per epoch, and the incomplete last batch is dropped; each epoch reshuffles.
"""

import dataclasses
import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from tenas_jax.errors import InputError, quantity
from tenas_jax.host.memory import require_memory
from tenas_jax.numerics import MAX_CELLS, MAX_SEED
from tenas_jax.resolve import resolve


@dataclass(frozen=True)
class Recipe:
    """Everything except the architecture that determines the outcome of a training.

    Raises:
        InputError: a field has a value that cannot be used.

    Example:
        >>> RECIPES["cifar10"].channels, RECIPES["cifar10"].cells
        (36, 20)
        >>> dataclasses.replace(RECIPES["cifar10"], epochs=0)
        Traceback (most recent call last):
        ...
        tenas_jax.errors.InputError: epochs must be at least 1, not 0
    """

    space: str
    """Search space: nas-bench-201, darts, transnas-bench-101 or module:object."""
    data: str
    """Labeled images: npz:PATH (arrays x and y), folder:PATH (a folder per class) or tfds:NAME."""
    test_data: str | None = None
    """Test images; None: the split validation or test of tfds:NAME, otherwise the last sixth of
    each class, which is then not used for training."""
    data_dir: str | None = None
    """Where TensorFlow Datasets keeps its files; None: its own default."""
    num_classes: int = 10
    """Number of classes of the data."""
    image_size: int = 32
    """Side of the network's input images, in pixels."""
    stem: Literal["cifar", "imagenet"] = "cifar"
    """First layers of the network: imagenet halves the resolution three times."""
    channels: int = 36
    """Channels of the first cell."""
    cells: int = 20
    """Number of cells; in nas-bench-201 per stage."""
    epochs: int = 600
    """Passes over the training images."""
    batch_size: int = 96
    """Images per step, over all devices."""
    learning_rate: float = 0.025
    """Highest learning rate; a cosine decays it to 0 at the last step."""
    warmup_epochs: int = 0
    """Epochs in which the learning rate rises linearly from 0."""
    momentum: float = 0.9
    """Momentum of stochastic gradient descent."""
    nesterov: bool = False
    """Nesterov's momentum."""
    weight_decay: float = 3e-4
    """Weight decay, added to the gradient."""
    decay_norm_and_bias: bool = True
    """Whether weight decay also applies to batch norms and biases."""
    clip_norm: float | None = 5.0
    """Maximum norm of the gradient; None: no clipping."""
    label_smoothing: float = 0.0
    """Label smoothing: the share of the target spread over all classes."""
    auxiliary: float = 0.0
    """Weight of the auxiliary head's loss; 0: no head."""
    drop_path: float = 0.0
    """Drop path rate in the last epoch; it rises linearly from 0 in the first."""
    crop: Literal["padded", "resized"] = "padded"
    """Random crops: of the padded image, or of 8 to 100 % of the image, resized."""
    padding: int = 4
    """Width of the black border for padded crops, in pixels."""
    cutout: int = 0
    """Side of the cutout square, in pixels."""
    color_jitter: float = 0.0
    """Maximum relative change of brightness, contrast and saturation."""
    sync_batch_norm: bool = True
    """Whether batch norm uses the images of all devices or only those of each device."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Data type of the layers' arithmetic; parameters and loss are float32."""
    seed: int = 0
    """Seed of the weights, the order of the images and the augmentation."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if not _is_of(getattr(self, field.name), field.type):
                given = getattr(self, field.name)
                raise InputError(f"{field.name} must be {_described(field.type)}, not {given!r}")
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if not (least <= value and math.isfinite(value)):
                raise InputError(f"{name} must be at least {least}, not {value}")
        for name in ("momentum", "label_smoothing", "drop_path", "color_jitter"):
            if getattr(self, name) >= 1:
                raise InputError(f"{name} must be less than 1, not {getattr(self, name)}")
        for name in ("learning_rate", "clip_norm"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"{name} must be more than 0 and finite, not {value}")
        for name, most in (("seed", MAX_SEED), ("cells", MAX_CELLS)):
            if getattr(self, name) > most:
                raise InputError(f"{name} must be at most {most}, not {getattr(self, name)}")
        multiple = 32 if self.stem == "imagenet" else 4
        if self.image_size % multiple:
            raise InputError(
                f"image_size must be a multiple of {multiple} with the stem {self.stem}, "
                f"not {self.image_size}"
            )
        native_size = 224 if self.stem == "imagenet" else 32
        if self.auxiliary and self.image_size != native_size:
            raise InputError(
                f"the auxiliary head needs image_size {native_size}, not {self.image_size}: "
                "give auxiliary 0"
            )
        if self.warmup_epochs >= self.epochs:
            raise InputError(
                f"warmup_epochs {self.warmup_epochs} leaves nothing of "
                f"{quantity(self.epochs, 'epoch')}: lower it or raise epochs"
            )

    @property
    def read_size(self) -> int:
        """Side of the images before random crops, in pixels.

        Example:
            >>> RECIPES["imagenet"].read_size, RECIPES["cifar10"].read_size
            (256, 32)
        """
        return round(self.image_size * 256 / 224) if self.crop == "resized" else self.image_size


def _described(kind: Any) -> str:
    """A type in words.

    Example:
        >>> _described(float | None), _described(Literal["cifar", "imagenet"])
        ('float or None', 'cifar or imagenet')
    """
    if choices := get_args(kind):
        return " or ".join(map(_described, choices))
    return str(kind) if isinstance(kind, str) else "None" if kind is NoneType else kind.__name__


def _is_of(value: object, kind: Any) -> bool:
    """Whether a value is of the type of a field.

    Example:
        >>> [_is_of(value, int) for value in (3, 0, True, 3.5, "3")]
        [True, True, False, False, False]
        >>> [_is_of(value, float | None) for value in (3, 0.5, None, [0.5])]
        [True, True, True, False]
        >>> _is_of("random", Literal["padded", "resized"])
        False
    """
    choices = get_args(kind)
    if get_origin(kind) is Literal:
        return value in choices
    if choices:
        return any(_is_of(value, choice) for choice in choices)
    numeric = {int: numbers.Integral, float: numbers.Real}
    is_bool = isinstance(value, bool)
    return isinstance(value, numeric.get(kind, kind)) and (kind is bool or not is_bool)


def require_fits(recipe: Recipe) -> None:
    """Reject a training whose lower bound on memory does not fit.

    Args:
        recipe: the recipe.

    Raises:
        InputError: something is too large; the message names the field.
    """
    batch, side, channels = recipe.batch_size, recipe.image_size, recipe.channels
    read = max(recipe.read_size, side + 2 * recipe.padding if recipe.crop == "padded" else 0)
    require_memory(
        3 * batch * read**2,
        f"batch_size {batch} with image_size {side} and padding {recipe.padding}: use less; the "
        "images",
    )
    first = side // 8 if recipe.stem == "imagenet" else side
    require_memory(
        4 * batch * first**2 * channels,
        f"channels {channels} with batch_size {batch}: use fewer; the activations of a layer",
    )
    classes = recipe.num_classes * (batch + channels)
    require_memory(
        4 * (classes + channels**2),
        f"num_classes {recipe.num_classes} with {channels} channels: use fewer; the weights",
    )


_LEAST = {
    "num_classes": 2,
    "image_size": 8,  # two reductions leave a quarter of it
    "channels": 1,
    "cells": 1,
    "epochs": 1,
    "batch_size": 1,
    "warmup_epochs": 0,
    "momentum": 0,
    "weight_decay": 0,
    "label_smoothing": 0,
    "auxiliary": 0,
    "drop_path": 0,
    "padding": 0,
    "cutout": 0,
    "color_jitter": 0,
    "seed": 0,
}

_CIFAR10 = Recipe(
    space="darts", data="tfds:cifar10", auxiliary=0.4, drop_path=0.3, cutout=16
)  # DARTS's (arXiv 1806.09055, section 3.2) with the drop path of TE-NAS
RECIPES: Mapping[str, Recipe] = {
    "cifar10": _CIFAR10,
    "cifar100": dataclasses.replace(_CIFAR10, data="tfds:cifar100", num_classes=100),
    # TE-NAS (arXiv 2102.11535, section 4.3) takes this from P-DARTS; jitter keeps the hue.
    "imagenet": Recipe(
        space="darts",
        data="tfds:imagenet2012",
        num_classes=1000,
        image_size=224,
        stem="imagenet",
        channels=48,
        cells=14,
        epochs=250,
        batch_size=768,
        learning_rate=0.5,
        warmup_epochs=5,
        weight_decay=3e-5,
        label_smoothing=0.1,
        auxiliary=0.4,
        crop="resized",
        color_jitter=0.4,
    ),
    # arXiv 2001.00326, table 1.
    "nas-bench-201": Recipe(
        space="nas-bench-201",
        data="tfds:cifar10",
        channels=16,
        cells=5,
        epochs=200,
        batch_size=256,
        learning_rate=0.1,
        nesterov=True,
        weight_decay=5e-4,
        clip_norm=None,
    ),
}


def get_recipe(name: str) -> Recipe:
    """Look up a recipe by name.

    Args:
        name: a key of `RECIPES`, or `module:object`.

    Returns:
        The recipe.

    Raises:
        InputError: no recipe has this name.

    Example:
        >>> get_recipe("nas-bench-201").epochs
        200
    """
    return resolve(name, RECIPES, Recipe, "recipe")


def from_dict(values: Mapping[str, Any]) -> Recipe:
    """The inverse of `dataclasses.asdict`.

    Args:
        values: the fields of a recipe.

    Returns:
        The recipe.

    Raises:
        InputError: the fields are not those of a recipe.

    Example:
        >>> from_dict(dataclasses.asdict(RECIPES["cifar10"])) == RECIPES["cifar10"]
        True
    """
    if set(values) != {field.name for field in dataclasses.fields(Recipe)}:
        raise InputError("the fields are not those of a recipe: it is of another version")
    return Recipe(**values)

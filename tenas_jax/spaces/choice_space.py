"""Search spaces of named choices in an ordinary Flax module."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from tenas_jax.architectures.space import (
    Bit,
    Costs,
    Decision,
    Group,
    Mask,
    ProxySize,
    require_mask,
    require_masks,
)
from tenas_jax.errors import InputError
from tenas_jax.networks.costs import network_costs
from tenas_jax.resolve import named_pairs, require_names

Choices = Iterable[tuple[str, Sequence[str]]] | Mapping[str, Sequence[str]]

CELL_TYPE = "choices"  # the only one
IMAGE_SIZE = 32  # FLOPs are counted at this size


@dataclasses.dataclass(frozen=True)
class ChoiceSpace:
    """A Flax module with named choices, each of which has named options.

    The module takes NHWC images and a mask and may use any layers and initializers. `mask[i]` is a
    boolean vector of the options of choice i that are kept; `tenas_jax.mixed` averages their
    outputs. The module returns logits [n, classes] and normalizes by the statistics of the batch.
    `self.sow("features", "cells", x)` records the features of a `Draw`.

    Args:
        name: the name used in files and messages.
        choices: (name, options) of each choice, or a mapping; stored as a tuple of pairs.
        module: a Flax module class, or a function that returns the module; called with
            `num_classes`, and with `channels` and `cells` if a search sets these sizes.
        regions: the same for the network that linear regions are counted on. Its images are small
            patches; only its activations are used. None: the metric `regions` is not available.
        image_multiple: image sides must be multiples of this.

    Raises:
        InputError: there is no choice, a choice has no options, or a name is repeated or has
            characters other than letters, digits, `_`, `.` and `-`.

    Example:
        >>> space = ChoiceSpace("mine", {"width": ("narrow", "wide"), "act": ("relu",)}, nn.Module)
        >>> space.shape, space.to_string(np.array([[[True, False], [True, False]]]))
        ((1, 2, 2), 'width=narrow,act=relu')
    """

    name: str
    choices: Choices
    module: Callable[..., nn.Module]
    regions: Callable[..., nn.Module] | None = None
    image_multiple: int = 1

    def __post_init__(self) -> None:
        pairs = named_pairs(self.choices)
        require_names(f"{self.name}: choice", [name for name, _ in pairs])
        for name, options in pairs:
            if isinstance(options, str):
                raise InputError(
                    f"{self.name}: choice {name} has the options {options!r}: give a tuple of names"
                )
            require_names(f"{self.name}: option of choice {name}", options)
        options = tuple((name, tuple(options)) for name, options in pairs)
        object.__setattr__(self, "choices", options)  # a tuple can be hashed

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of a mask: (1, choices, largest number of options)."""
        return 1, len(self._counts), max(self._counts)

    @property
    def cell_types(self) -> tuple[str, ...]:
        """The only cell type."""
        return (CELL_TYPE,)

    @property
    def edge_names(self) -> tuple[str, ...]:
        """Names of the choices."""
        return tuple(dict(self.choices))

    @property
    def has_single_paths(self) -> bool:
        """False: `mixed` skips pruned options in every network."""
        return False

    def op_names(self, edge: int) -> tuple[str, ...]:
        """Names of the options of a choice."""
        return tuple(dict(self.choices)[self.edge_names[edge]])

    def initial_mask(self) -> Mask:
        """All options; padding is False where a choice has fewer options than others."""
        counts = np.array(self._counts)
        return (np.arange(self.shape[2]) < counts[:, None])[None]

    def decisions(self) -> list[Decision]:
        """The choices."""
        return [
            Decision(0, [((edge, op),) for op in range(count)])
            for edge, count in enumerate(self._counts)
        ]

    def groups(self, mask: Mask, prune_number: int = 1) -> list[Group]:
        """Every choice that has several options is a group."""
        kept = mask[0].sum(-1)
        return [
            Group(0, (edge,), min(prune_number, int(count) - 1))
            for edge, count in enumerate(kept)
            if count > 1
        ]

    def to_string(self, mask: Mask) -> str:
        """An architecture as `choice=option,choice=option`.

        Raises:
            InputError: the mask has another shape, or does not keep one option of each choice.
        """
        require_mask(self, mask)
        parts = []
        for edge, (name, options) in enumerate(dict(self.choices).items()):
            kept = np.flatnonzero(mask[0, edge])
            if len(kept) != 1 or kept[0] >= len(options):
                raise InputError(
                    f"not a single path: choice {name} of {self.name} keeps {len(kept)} options, "
                    "it needs 1"
                )
            parts.append(f"{name}={options[kept[0]]}")
        return ",".join(parts)

    def from_string(self, text: str) -> Mask:
        """The inverse of `to_string`; choices may come in any order.

        Raises:
            InputError: the text is not an architecture of this space.
        """
        form = ",".join(f"{name}={options[0]}" for name, options in dict(self.choices).items())
        pairs = [part.strip().partition("=") for part in text.split(",")]
        given = {name.strip(): option.strip() for name, _, option in pairs}
        for position, (name, equals, _) in enumerate(pairs, start=1):
            if not equals or name.strip() not in self.edge_names:
                raise InputError(
                    f"not an architecture of {self.name}: part {position} of {len(pairs)} gives no "
                    f"choice an option: write e.g. {form}"
                )
        missing = [name for name in self.edge_names if name not in given]
        if missing or len(given) != len(pairs):
            fault = f"{missing[0]} is missing" if missing else "a choice is given twice"
            raise InputError(f"not an architecture of {self.name}: {fault}: write e.g. {form}")
        mask = np.zeros(self.shape, bool)
        for edge, (name, options) in enumerate(dict(self.choices).items()):
            if given[name] not in options:
                raise InputError(f"{name} has {given[name]!r}: choose from {', '.join(options)}")
            mask[0, edge, options.index(given[name])] = True
        return mask

    def recognizes(self, text: str) -> bool:
        """Whether a text names the choices of this space."""
        return {part.partition("=")[0].strip() for part in text.split(",")} == set(self.edge_names)

    def connected(self, mask: Bool[Array | np.ndarray, "cell edge op"]) -> Bit:
        """True: the paths inside a module are not known."""
        return True

    def on_paths(self, mask: Mask) -> Mask:
        """Everything that is kept."""
        return mask

    def supernet(self, size: ProxySize, layout: Any = None) -> nn.Module:
        """The module, called with `(images, mask)`; the layout is ignored."""
        return _Masked(self, self._make(self.module, size), size.num_classes)

    def region_network(self, size: ProxySize, layout: Any = None) -> nn.Module | None:
        """The module for linear regions, called like `supernet`; or None."""
        return None if self.regions is None else _Masked(self, self._make(self.regions, size), None)

    def network(
        self,
        mask: Mask,
        *,
        num_classes: int,
        channels: int | None = None,
        cells: int | None = None,
    ) -> nn.Module:
        """The module with only the options of an architecture, called with `(images)`.

        Raises:
            InputError: the mask has another shape.
        """
        require_mask(self, mask)
        size = ProxySize(num_classes, channels, cells)
        counted = zip(mask[0].tolist(), self._counts, strict=True)
        rows = tuple(tuple(row[:count]) for row, count in counted)
        return _Fixed(self._make(self.module, size), rows)

    def costs(self, masks: Bool[np.ndarray, "*batch cell edge op"]) -> Costs:
        """Parameters and FLOPs of the networks, for 10 classes and 32 x 32 color images."""
        require_masks(self, masks)
        flat = masks.reshape(-1, *self.shape)
        counted = [_costs(self, mask.tobytes()) for mask in flat]
        parameters, flops = (
            np.array(column, np.int64).reshape(masks.shape[:-3])
            for column in zip(*counted, strict=True)
        )
        return Costs(parameters, flops)

    @property
    def _counts(self) -> tuple[int, ...]:
        return tuple(map(len, dict(self.choices).values()))

    def _make(self, module: Callable[..., nn.Module], size: ProxySize) -> nn.Module:
        sizes = {"channels": size.channels, "cells": size.cells}
        given = {name: value for name, value in sizes.items() if value is not None}
        known = inspect.signature(module).parameters
        for name in ("num_classes", *given):
            if name not in known:
                raise InputError(
                    f"the module of {self.name} has no field {name}: give it one"
                    + ("" if name == "num_classes" else f", or leave out {name}")
                )
        made = module(num_classes=size.num_classes, **given)
        if not isinstance(made, nn.Module):
            raise InputError(
                f"the module of {self.name} makes a {type(made).__name__}: it must be a Flax module"
            )
        return made


@functools.cache
def _costs(space: ChoiceSpace, mask: bytes) -> Costs:
    network = space.network(np.frombuffer(mask, bool).reshape(space.shape), num_classes=10)
    return network_costs(network, IMAGE_SIZE)


class _Masked(nn.Module):
    """Adapts a module to the interface of a supernet."""

    space: ChoiceSpace
    module: nn.Module
    num_classes: int | None

    def setup(self) -> None:
        nn.share_scope(self, self.module)

    def __call__(self, images: Array, mask: Bool[Array, "cell edge op"]) -> Array:
        """The output of the module; if it must be logits, its shape is checked."""
        require_mask(self.space, mask)
        counts = map(len, dict(self.space.choices).values())
        # Every option has parameters.
        kept = np.ones(mask.shape, bool) if self.is_initializing() else mask
        rows = tuple(row[:count] for row, count in zip(kept[0], counts, strict=True))
        result = self.module(images, rows)
        shape = None if self.num_classes is None else (len(images), self.num_classes)
        if shape is not None and getattr(result, "shape", None) != shape:
            kind = f"shape {result.shape}" if hasattr(result, "shape") else type(result).__name__
            raise InputError(
                f"the module of {self.space.name} returns {kind}: it must return logits of shape "
                f"{shape}"
            )
        return jnp.asarray(result)


class _Fixed(nn.Module):
    """A module whose choices are fixed."""

    module: nn.Module
    rows: tuple[tuple[bool, ...], ...]

    def setup(self) -> None:
        nn.share_scope(self, self.module)

    def __call__(self, images: Array) -> Array:
        """Logits of the images."""
        logits: Array = self.module(images, tuple(np.array(row, bool) for row in self.rows))
        return logits

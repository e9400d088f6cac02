"""Constraints on searched networks: intervals of FLOPs and parameters."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from tenas_jax.architectures import enumeration
from tenas_jax.architectures.space import Masks, SearchSpace
from tenas_jax.errors import InputError, quantity

_UNITS = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9}
DRAWN = 20_000  # random architectures to try before concluding that hardly any is allowed
_BATCH = 1000


class Interval(NamedTuple):
    """The numbers from `low` to `high`, inclusive."""

    low: float
    high: float


EVERYTHING = Interval(0.0, math.inf)


class Constraints(NamedTuple):
    """Limits on the costs of the networks to be trained (`SearchSpace.costs`)."""

    flops: Interval = EVERYTHING
    """Multiply-adds per image."""
    parameters: Interval = EVERYTHING
    """Number of parameters."""

    def allow(self, space: SearchSpace, masks: Masks) -> Bool[np.ndarray, " architecture"]:
        """Which architectures satisfy the constraints.

        Args:
            space: the search space.
            masks: masks of its architectures.

        Example:
            >>> from tenas_jax.spaces import NAS_BENCH_201
            >>> masks = enumeration.enumerate_all(NAS_BENCH_201)
            >>> int(Constraints(parse("flops", "180M:")).allow(NAS_BENCH_201, masks).sum())
            25
        """
        allowed = np.ones(len(masks), bool)
        if self == Constraints():
            return allowed
        costs = space.costs(masks)
        for (low, high), counts in zip(self, (costs.flops, costs.parameters), strict=True):
            allowed &= (low <= counts) & (counts <= high)
        return allowed


def parse(name: str, text: str | None) -> Interval:
    """Parse an interval such as `50M:120M`.

    Args:
        name: name of the quantity, for error messages.
        text: two optional numbers separated by a colon; K, M and G stand for thousands, millions
            and billions. None: no limits.

    Raises:
        InputError: the text is not an interval, or the interval is empty.

    Example:
        >>> parse("flops", "50M:1.2G"), parse("parameters", ":1.3M")
        (Interval(low=50000000.0, high=1200000000.0), Interval(low=0.0, high=1300000.0))
        >>> parse("flops", "120M")
        Traceback (most recent call last):
        ...
        tenas_jax.errors.InputError: flops must be an interval such as 50M:120M or :120M, not '120M'
    """
    if text is None:
        return EVERYTHING
    low, colon, high = str(text).partition(":")
    try:
        if not colon or low == high == "":
            raise ValueError
        interval = Interval(_number(low) if low else 0.0, _number(high) if high else math.inf)
    except ValueError:
        raise InputError(
            f"{name} must be an interval such as 50M:120M or :120M, not {text!r}"
        ) from None
    if not interval.low <= interval.high:
        raise InputError(f"{name} {text} holds nothing: the first number must be the smaller one")
    return interval


def _number(text: str) -> float:
    unit = text[-1:].upper()
    value = float(text[:-1] if unit in _UNITS else text) * _UNITS.get(unit, 1.0)
    if not (text[0].isdigit() or text[0] == ".") or not math.isfinite(value):
        raise ValueError
    return value


def list_allowed(space: SearchSpace, constraints: Constraints) -> Masks:
    """All architectures of a space that satisfy constraints.

    Args:
        space: the search space.
        constraints: the constraints on their networks.

    Raises:
        InputError: there are too many to list, or none is allowed.
    """
    masks = enumeration.enumerate_all(space)
    allowed: np.ndarray = masks[constraints.allow(space, masks)]
    if not len(allowed):
        raise InputError(
            _none(space, constraints, masks, f"all {quantity(len(masks), 'architecture')}")
        )
    return allowed


def draw(
    space: SearchSpace, constraints: Constraints, size: int, rng: np.random.Generator
) -> Masks:
    """Draw distinct architectures uniformly from those that satisfy constraints.

    Args:
        space: the search space.
        constraints: the constraints on their networks.
        size: number of architectures.
        rng: the random generator.

    Raises:
        InputError: there are fewer, or they are too rare to be found at random.
    """
    if constraints == Constraints():
        return enumeration.sample(space, size, rng)
    if enumeration.can_list(space):
        allowed = list_allowed(space, constraints)
        if size > len(allowed):
            raise InputError(
                f"the constraints leave {quantity(len(allowed), 'architecture')} of {space.name}, "
                f"not {size}: ask for fewer, or widen them"
            )
        chosen: np.ndarray = allowed[rng.choice(len(allowed), size, replace=False)]
        return chosen
    found: dict[bytes, np.ndarray] = {}
    tried = 0
    while len(found) < size:
        masks = enumeration.sample(space, _BATCH, rng)
        found |= {mask.tobytes(): mask for mask in masks[constraints.allow(space, masks)]}
        tried += _BATCH
        if tried >= DRAWN and not found:
            raise InputError(_none(space, constraints, masks, f"{tried} random architectures"))
    return np.stack(list(found.values())[:size])


def _none(space: SearchSpace, constraints: Constraints, masks: Masks, which: str) -> str:
    """The message that no architecture is allowed, with the range of available costs."""
    costs = space.costs(masks)
    return (
        f"none of {which} of {space.name} keeps to the constraints: they have "
        f"{_range(costs.flops)} FLOPs and {_range(costs.parameters)} parameters"
    )


def _range(counts: np.ndarray) -> str:
    return f"{counts.min() / 1e6:.3g}M to {counts.max() / 1e6:.3g}M"

"""The interface between a strategy and the host loop.

A strategy is a generator. It yields `Work`, rows to measure, and is sent their measurements; or it
yields a `Note` to record. It returns the result. A strategy has no side effects and takes all
randomness from its configuration's seed, so that a search can be replayed from its trace.
"""

from collections.abc import Callable, Generator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from tenas_jax.architectures.space import Mask
from tenas_jax.searching.problem import Problem


class Row(NamedTuple):
    """One measurement: its round and repeat, which determine its key, its mask and its name."""

    round: int
    repeat: int
    mask: Mask
    identity: dict[str, Any]
    """Its name in the trace."""


class Work(NamedTuple):
    """Rows to measure next, and the progress of the search; rounds are counted from 0."""

    rows: list[Row]
    round: int
    rounds: int
    later: int
    """Measurements expected after these; the minimum with automatic repeats."""
    part: int = 0
    """Index of the scorer that measures them."""


class Note(NamedTuple):
    """The decisions of a pruning round, for the trace."""

    candidates: list[dict[str, Any]]


class Found(NamedTuple):
    """The outcome of a search."""

    mask: Mask
    evaluations: int
    """Number of candidates or architectures, each measured with several repeats."""
    rounds: list[dict[str, Any]]
    """The pruning rounds, for `result.json`."""


Measurements = Float[np.ndarray, "row metric"]
Run = Generator[Work | Note, Measurements, Found]
Strategy = Callable[[Problem], Run]
"""A function that returns the generator of a search."""

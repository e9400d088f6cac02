"""What a strategy and the host loop tell each other.

A strategy is a generator. It yields `Work`, rows to be measured, and is sent their measurements; or
it yields a `Note`, to be recorded. Its return value is what it found. It has no side effects and
draws nothing that its configuration's seed does not decide, so that a search can be replayed from
its trace.
"""

from collections.abc import Callable, Generator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from tenas_jax.architectures.space import Mask
from tenas_jax.searching.problem import Problem


class Row(NamedTuple):
    """One measurement: the round and repeat that decide its key, the operators kept, its name."""

    round: int
    repeat: int
    mask: Mask
    identity: dict[str, Any]
    """What the trace calls it."""


class Work(NamedTuple):
    """Rows to measure next, and where the search stands: rounds are counted from 0."""

    rows: list[Row]
    round: int
    rounds: int
    later: int
    """Measurements expected after these; with automatic repeats the fewest possible."""
    part: int = 0
    """Which of the scorers measures them."""


class Note(NamedTuple):
    """What a round of pruning decided, for the trace."""

    candidates: list[dict[str, Any]]


class Found(NamedTuple):
    """The outcome of a search."""

    mask: Mask
    evaluations: int
    """Candidates or architectures, each measured in several repeats."""
    rounds: list[dict[str, Any]]
    """What `result.json` says about each round of pruning."""


Measurements = Float[np.ndarray, "row metric"]
Run = Generator[Work | Note, Measurements, Found]
Strategy = Callable[[Problem], Run]
"""Makes the generator of a search."""

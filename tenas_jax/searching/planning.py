"""Fit a program into the memory of a device, or find a batch size that fits.

A program measures its rows one after the other, so they need no more memory than a single row.
"""

import json
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax

from tenas_jax.host.memory import device_memory
from tenas_jax.host.processes import exchange

GIB = 2**30


class Need(NamedTuple):
    """The memory that a program needs on a device, and the available memory, in bytes."""

    needed: float
    """Infinite if the compiler only says that it is too much."""
    there: float
    """Infinite if a device does not report it."""

    @property
    def fits(self) -> bool:
        """Whether the program can run.

        Example:
            >>> Need(2.0**30, 2.0**31).fits, Need(math.inf, math.inf).fits
            (True, False)
        """
        return self.needed <= self.there and self.needed < math.inf

    @property
    def share(self) -> float:
        """The fraction of the program that would fit, roughly.

        Example:
            >>> Need(2.0**31, 2.0**30).share, Need(math.inf, 2.0**30).share
            (0.5, 0.25)
        """
        return self.there / self.needed if self.needed < math.inf else 0.25

    def __str__(self) -> str:
        if self.needed == math.inf:
            return "more memory than a device has"
        return f"{self.needed / GIB:,.3g} GB of memory, of {self.there / GIB:,.3g} on a device"


def memory_need(program: jax.stages.Compiled | None, devices: Sequence[jax.Device]) -> Need:
    """The memory that a compiled program needs; the same in every process.

    Args:
        program: the compiled program; None: the compiler refused it for lack of memory.
        devices: the devices that it runs on.

    Returns:
        The maximum need over devices, by the compiler's analysis, and the minimum available.

    Example:
        >>> program = jax.jit(lambda x: x @ x).lower(jax.numpy.ones((256, 256))).compile()
        >>> memory_need(program, jax.devices("cpu")).needed >= 2 * 4 * 256**2
        True
    """
    needed = math.inf
    if program is not None:
        analysis = program.memory_analysis()
        needed = 0.0  # where a backend has none
        if analysis is not None:
            needed += analysis.argument_size_in_bytes + analysis.output_size_in_bytes
            needed += analysis.temp_size_in_bytes - analysis.alias_size_in_bytes
    own = [needed, device_memory(devices) or math.inf]
    needs, limits = zip(*map(json.loads, exchange(json.dumps(own))), strict=True)
    return Need(max(needs), min(limits))


def fewer_cotangents(n: int, chunk: int, share: float = 0.5) -> int:
    """A smaller number of cotangents per pass, with passes of about equal size.

    Args:
        n: number of all cotangents.
        chunk: number of cotangents per pass.
        share: fraction of the chunk to keep, at most half.

    Returns:
        A number of at least 1.

    Example:
        >>> fewer_cotangents(256, 64), fewer_cotangents(256, 64, 0.1), fewer_cotangents(257, 52)
        (32, 6, 26)
    """
    most = max(1, int(chunk * min(share, 0.5)))
    return math.ceil(n / math.ceil(n / most))


def largest_batch(need_of: Callable[[int], Need], size: int, need: Need) -> int | None:
    """About the largest batch that fits, found with a few trials.

    Args:
        need_of: compiles the program for a batch size and returns its need.
        size: a batch size that does not fit.
        need: its need.

    Returns:
        A batch size that fits and uses most of the memory; None if none is found.

    Example:
        >>> largest_batch(lambda n: Need(2.0 * n * n, 20_000.0), 1000, Need(2e6, 20_000.0))
        99
    """
    fitting, power = None, 1.0
    low, high, of_low = 1, size, 0.0
    for _ in range(_TRIES):
        if of_low >= _MOST * need.there or high - low < 2:
            break
        guess = (low + high) // 2
        if need.needed < math.inf and (fitting or high == size):
            guess = int(high / (1.02 * need.needed / need.there) ** (1 / power))
        guess = min(max(guess, low + 1), high - 1)
        tried = need_of(guess)
        if tried.fits:
            fitting = low = guess
            of_low = tried.needed
        else:
            high, need = guess, tried
        if 0 < of_low < need.needed < math.inf:
            power = math.log(need.needed / of_low) / math.log(high / low)
    return fitting


_TRIES, _MOST = 5, 0.85

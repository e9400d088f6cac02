"""The cost of measurements by number of images, rows and devices, with peak memory.

    python -m bench.scaling

A row measures a supernet of NAS-Bench-201 with its own weights: the condition number of its kernel
and its linear regions. Everything runs through the scorer of a search.
"""

import functools
import os
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bench import common
from bench.common import Contestant, Outcome, Work
from tenas_jax.spaces import NAS_BENCH_201


class Case(NamedTuple):
    """A measurement: the numbers of images per kernel, rows and devices."""

    vary: str
    images: int
    rows: int
    devices: int


def cases(sizes: list[int], images: int, rows: int, devices: int) -> list[Case]:
    """One list for each axis, the others held fixed.

    Args:
        sizes: images per kernel, on one device.
        images: images per kernel if rows or devices vary.
        rows: the largest number of rows.
        devices: the largest number of devices; they share `rows`.

    Example:
        >>> [case[1:] for case in cases([8], images=4, rows=2, devices=2)]
        [(8, 1, 1), (4, 1, 1), (4, 2, 1), (4, 2, 1), (4, 2, 2)]
    """
    return [
        *(Case("images", size, 1, 1) for size in sizes),
        *(Case("rows", images, count, 1) for count in powers(rows)),
        *(Case("devices", images, rows, count) for count in powers(devices)),
    ]


def powers(largest: int) -> list[int]:
    """Powers of two up to a number.

    Example:
        >>> powers(5)
        [1, 2, 4]
    """
    return [2**i for i in range(largest.bit_length())]


def build(case: Case, cache: Path) -> Work:
    """Prepare the scorer.

    Args:
        case: the measurement.
        cache: folder of compiled programs, shared by all cases.
    """
    from tenas_jax.host.devices import Machine, configure_jax

    devices = configure_jax(Machine(case.devices, str(cache)))
    import jax

    from tenas_jax.data.images import ImageSet
    from tenas_jax.searching.config import NTKConfig, SearchConfig
    from tenas_jax.searching.loop import measure
    from tenas_jax.searching.problem import look_up
    from tenas_jax.searching.rows import Row
    from tenas_jax.searching.scorer import make_scorer

    pixels = np.random.default_rng(0).integers(0, 256, (1024, 32, 32, 3), np.uint8)
    images = ImageSet(pixels, mean=(0.5, 0.5, 0.5), std=(0.3, 0.3, 0.3), name="noise")
    config = SearchConfig(images=len(pixels), ntk=NTKConfig(batch_size=case.images))
    scorer = make_scorer(look_up(config), images, devices)
    scorer.compile()
    rows = [Row(0, i, NAS_BENCH_201.initial_mask(), {}) for i in range(case.rows)]
    key = jax.random.key(0)
    return lambda: np.concatenate([values for _, values in measure(scorer, rows, key)])


def main() -> None:
    """Runs the benchmark."""
    parser = common.arguments(__doc__, budget=300)
    parser.set_defaults(threads=len(os.sched_getaffinity(0)), repeats=3)
    parser.add_argument("--sizes", type=int, nargs="+", default=[8, 16, 32, 72], help="images")
    parser.add_argument(
        "--images", type=int, default=32, help="images per kernel if rows or devices vary"
    )
    parser.add_argument(
        "--rows", type=int, default=8, help="largest number of rows, also used with several devices"
    )
    options = parser.parse_args()
    end = time.monotonic() + options.budget
    environment = common.prepare_environment(options.threads)
    cpu = environment["platform"] == "cpu"
    devices = environment["threads"] if cpu else environment["count"]
    todo = cases(options.sizes, options.images, options.rows, devices)
    with tempfile.TemporaryDirectory() as folder:
        contestants = [
            Contestant(str(case), functools.partial(build, case, Path(folder))) for case in todo
        ]
        # Images and weights differ, so there is nothing to compare.
        outcomes = common.race(contestants, deadline=end, repeats=options.repeats, tolerance=None)
    report(options.results, environment, todo, outcomes)


def report(
    folder: Path, environment: dict[str, Any], todo: list[Case], outcomes: list[Outcome]
) -> None:
    """Write the results.

    Args:
        folder: folder of all results.
        environment: environment of the run.
        todo: the cases.
        outcomes: the outcome of each.
    """
    measured = list(zip(todo, outcomes, strict=True))
    first = {case.vary: outcome.median for case, outcome in reversed(measured)}
    header = ("vary", "images", "rows", "devices", "median s", "min - max s", "s / row", "of first")
    rows = [
        [
            *case,
            outcome.median,
            common.spread(outcome.seconds),
            outcome.median / case.rows if outcome.median else None,
            outcome.median / base if outcome.median and (base := first[case.vary]) else None,
            outcome.peak_mib,
            outcome.device_mib,
            outcome.note,
        ]
        for case, outcome in measured
    ]
    text = common.table((*header, "memory MiB", "device MiB", "note"), rows)
    results = [{**case._asdict(), **vars(outcome)} for case, outcome in measured]
    place = common.write_results(folder, "scaling", environment, results, text)
    lines: dict[str, dict[int, list[float]]] = {"images": {}, "rows": {}, "devices": {}}
    for case, outcome in measured:
        if outcome.seconds:
            lines[case.vary][getattr(case, case.vary)] = outcome.seconds
    common.plot_lines(
        place / "scaling.png",
        lines,
        title="Rows of measurements, NAS-Bench-201",
        x_label="images, rows or devices",
        y_label="seconds",
    )


if __name__ == "__main__":
    main()

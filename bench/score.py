"""Architectures scored per second, by condition number and linear regions.

    python -m bench.score --space nas-bench-201 --original PATH

Random architectures with one draw of weights each, measured by `tenas score --metrics
kappa,regions` and by the original's functions for the same two metrics on the same cores.
"""

import dataclasses
import functools
import os
import time
from pathlib import Path

import numpy as np

from bench import common
from bench.common import SPACES, Contestant, Work
from bench.linear_regions import BATCHES, patches
from bench.search import ntk_images
from tenas_jax.architectures import enumeration
from tenas_jax.configs import get_preset

IMAGES = 1024
PRESETS = {"nas-bench-201": "nas-bench-201", "darts": "darts-cifar10"}


def masks(space: str, count: int) -> np.ndarray:
    """Random architectures, the same for all contestants."""
    return enumeration.sample(SPACES[space], count, np.random.default_rng(0))


def build_ours(space: str, count: int, batch: int) -> Work:
    """The scorer of `tenas score`, with one device per core."""
    from tenas_jax.host.devices import Machine, configure_jax

    devices = configure_jax(Machine())
    import jax

    from tenas_jax.data.images import ImageSet
    from tenas_jax.searching.baselines import score
    from tenas_jax.searching.loop import measure
    from tenas_jax.searching.problem import look_up
    from tenas_jax.searching.scorer import make_scorer

    pixels = np.random.default_rng(0).integers(0, 256, (IMAGES, 32, 32, 3), np.uint8)
    images = ImageSet(pixels, mean=(0.5, 0.5, 0.5), std=(0.3, 0.3, 0.3), name="noise")
    config = get_preset(PRESETS[space])
    ntk = dataclasses.replace(config.ntk, batch_size=batch)
    problem = look_up(dataclasses.replace(config, images=len(pixels), repeats=1, ntk=ntk))
    scorer = make_scorer(problem, images, devices, single_path=True)
    scorer.compile()
    rows = next(score(problem, masks(space, count))).rows
    key = jax.random.key(0)
    return lambda: np.concatenate([values for _, values in measure(scorer, rows, key)])


def build_theirs(space: str, count: int, batch: int, clone: Path) -> Work:
    """`get_ntk_n` and the region counter of the clone."""
    common.require("torch")
    import torch

    from bench import original as tenas

    device = common.torch_device()
    images = torch.from_numpy(ntk_images(batch)).to(device)
    batches = list(torch.from_numpy(patches()).permute(0, 1, 4, 2, 3).to(device))
    original = tenas.Original(clone, device)
    configs = [
        original.config(SPACES[space], networks)
        for networks in (tenas.NTK_NETWORKS, tenas.REGION_NETWORKS)
    ]

    def work() -> np.ndarray:
        scores = []
        for mask in masks(space, count):
            network, thin = (original.network(config, mask) for config in configs)
            [condition] = original.condition_numbers([network], images)
            counter = original.region_counter(batches[0], BATCHES)
            counter.reinit(models=[thin])
            [regions] = counter.forward_batch_sample()
            counter.clear()
            scores.append((condition, regions))
        return np.array(scores, np.float64)

    return work


def main() -> None:
    """Runs the benchmark."""
    parser = common.arguments(__doc__, budget=300)
    parser.set_defaults(threads=len(os.sched_getaffinity(0)), repeats=3)
    parser.add_argument("--architectures", type=int, default=12)
    parser.add_argument("--space", choices=SPACES, default="nas-bench-201")
    parser.add_argument("--batch-size", type=int, help="images per kernel; None: the preset's")
    options = parser.parse_args()
    batch = options.batch_size or get_preset(PRESETS[options.space]).ntk.batch_size
    end = time.monotonic() + options.budget
    environment = common.prepare_environment(options.threads)
    given = (options.space, options.architectures, batch)
    contestants = [Contestant("tenas score", functools.partial(build_ours, *given))]
    if options.original:
        theirs = functools.partial(build_theirs, *given, options.original)
        contestants.append(Contestant("original", theirs))
    outcomes = common.race(contestants, deadline=end, repeats=options.repeats, tolerance=None)
    rows = [
        [
            outcome.name,
            options.architectures / outcome.median if outcome.median else None,
            outcome.median,
            common.spread(outcome.seconds),
            outcome.peak_mib,
            outcome.note,
        ]
        for outcome in outcomes
    ]
    medians = [outcome.median for outcome in outcomes if outcome.median]
    ratio = f"\n\nRatio {medians[-1] / medians[0]:.1f}." if len(medians) > 1 else ""
    header = ("contestant", "architectures per s", "median s", "min - max s", "memory MiB", "note")
    text = (
        f"{options.architectures} random architectures, kernels of {batch} images, "
        f"3000 patches.\n\n{common.table(header, rows)}{ratio}"
    )
    common.write_results(
        options.results,
        f"score-{options.space}",
        environment,
        [vars(outcome) for outcome in outcomes],
        text,
    )


if __name__ == "__main__":
    main()

"""Linear regions: count 3000 activation patterns, and evaluate a whole region network.

    python -m bench.linear_regions

An evaluation is three forward passes of 1000 patches and the count; each contestant draws its own
weights. Counts of the same patterns are compared with the first contestant's. The table also gives
the number of distinct rows by `numpy.unique`.
"""

import functools
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench import common
from bench.common import SPACES, Contestant, Work
from tenas_jax.architectures.space import ProxySize

BATCHES, PATCHES = 3, 1000
# The original sums reciprocals in half and single precision: 711.9999.
ROUNDING = 1e-3


@dataclass(frozen=True)
class Problem:
    """The task of all contestants.

    Args:
        space: name of the search space; the full supernet is measured.
        patterns: file with the patterns [n, neurons] to count.
        original: a clone of VITA-Group/TENAS.
    """

    space: str
    patterns: Path
    original: Path | None = None


def patches() -> np.ndarray:
    """Patches [batch, n, 3, 3, 1] with normal values, like normalized patches."""
    generator = np.random.default_rng(0)
    return generator.standard_normal((BATCHES, PATCHES, 3, 3, 1), np.float32)


def write_patterns(space: str, path: Path) -> int:
    """Write the patterns of a region network with random weights.

    Args:
        space: name of the search space.
        path: path of the file.

    Returns:
        The number of distinct patterns.
    """
    patterns = np.asarray(region_patterns(space)())
    np.save(path, patterns)
    return len(np.unique(np.packbits(patterns, axis=1), axis=0))


def region_patterns(space: str) -> Callable[[], Any]:
    """The compiled forward passes of a region network: patterns [n, neurons]."""
    import jax
    import jax.numpy as jnp

    from tenas_jax.networks.backends import network_layout
    from tenas_jax.networks.ops import PATTERNS

    network = SPACES[space].region_network(ProxySize(), network_layout())
    mask, batches = jax.device_put((SPACES[space].initial_mask(), patches()))
    params = common.draw_weights(network, batches[0, :2], mask)

    @jax.jit
    def patterns(params: Any, batches: Any, mask: Any) -> Any:
        def forward(batch: Any) -> Any:
            _, sown = network.apply({"params": params}, batch, mask, mutable=[PATTERNS])
            return jnp.concatenate(jax.tree.leaves(sown), 1)

        pooled = jax.lax.map(forward, batches)
        return pooled.reshape(-1, pooled.shape[-1])

    return lambda: patterns(params, batches, mask)


def build_count(problem: Problem) -> Work:
    """This library's `count_linear_regions`."""
    import jax

    from tenas_jax.metrics.regions import count_linear_regions

    count = jax.jit(count_linear_regions)
    patterns = jax.device_put(np.load(problem.patterns))
    return lambda: np.asarray(count(patterns))


def build_count_unique(problem: Problem) -> Work:
    """NumPy: distinct rows of the packed bits."""
    patterns = np.load(problem.patterns)
    return lambda: np.array(len(np.unique(np.packbits(patterns, axis=1), axis=0)))


def build_count_torch(problem: Problem) -> Work:
    """The original's products in half precision, reimplemented."""
    common.require("torch")
    import torch

    from bench.pytorch_reference import count_regions

    device = common.torch_device()
    patterns = torch.from_numpy(np.load(problem.patterns)).to(device, torch.float32)
    return lambda: np.array(count_regions(patterns))


def build_count_original(problem: Problem) -> Work:
    """The original's `LinearRegionCount`."""
    common.require("torch")
    import torch

    from bench.original import Original

    assert problem.original is not None
    device = common.torch_device()
    Original(problem.original, device)
    from procedures.linear_region_counter import LinearRegionCount  # type: ignore

    patterns = torch.from_numpy(np.load(problem.patterns)).to(device, torch.float32)

    def work() -> np.ndarray:
        counter = LinearRegionCount(len(patterns))
        counter.update2D(patterns)
        return np.array(counter.getLinearReginCount())

    return work


def build_evaluation(problem: Problem) -> Work:
    """This library: forward passes and count."""
    import jax

    from tenas_jax.metrics.regions import count_linear_regions

    count, patterns = jax.jit(count_linear_regions), region_patterns(problem.space)
    return lambda: np.asarray(count(patterns()))


def build_evaluation_torch(problem: Problem) -> Work:
    """PyTorch: forward passes with hooks, and the original's count."""
    common.require("torch")
    import torch

    from bench import pytorch_reference as reference

    device = common.torch_device()
    network = reference.REGION_NETWORKS[problem.space](SPACES[problem.space].initial_mask())
    network = network.to(device)
    batches = list(torch.from_numpy(patches()).permute(0, 1, 4, 2, 3).to(device))

    def work() -> np.ndarray:
        return np.array(reference.count_regions(reference.activation_patterns(network, batches)))

    return work


def build_evaluation_original(problem: Problem) -> Work:
    """The original's `Linear_Region_Collector`, its hooks registered once."""
    common.require("torch")
    import torch

    from bench import original as tenas

    assert problem.original is not None
    space, device = SPACES[problem.space], common.torch_device()
    original = tenas.Original(problem.original, device)
    network = original.network(original.config(space, tenas.REGION_NETWORKS), space.initial_mask())
    batch = torch.from_numpy(patches()[0]).permute(0, 3, 1, 2).contiguous()
    counter = original.region_counter(batch, BATCHES)
    counter.reinit(models=[network])

    def work() -> np.ndarray:
        (count,) = counter.forward_batch_sample()
        counter.clear()
        return np.array(count)

    return work


COUNTS: dict[str, Callable[[Problem], Work]] = {
    "tenas_jax": build_count,
    "numpy.unique": build_count_unique,
    "PyTorch": build_count_torch,
    "original": build_count_original,
}
EVALUATIONS: dict[str, Callable[[Problem], Work]] = {
    "tenas_jax": build_evaluation,
    "PyTorch": build_evaluation_torch,
    "original": build_evaluation_original,
}


def main() -> None:
    """Runs the benchmark."""
    parser = common.arguments(__doc__, budget=60)
    parser.add_argument("--space", choices=SPACES, default="nas-bench-201")
    options = parser.parse_args()
    end = time.monotonic() + options.budget
    environment = common.prepare_environment(options.threads)
    base = "original" if options.original else "PyTorch"
    results, rows = [], []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "patterns.npy"
        exact = common.call(write_patterns, options.space, path)
        problem = Problem(options.space, path, options.original)
        # Each evaluation draws new weights, so only counts of the same patterns can agree.
        for task, builders, tolerance in (
            ("count", COUNTS, ROUNDING),
            ("evaluation", EVALUATIONS, None),
        ):
            contestants = [
                Contestant(name, functools.partial(build, problem))
                for name, build in builders.items()
                if name != "original" or options.original
            ]
            now = time.monotonic()
            outcomes = common.race(
                contestants,
                deadline=now + (end - now) / (2 if task == "count" else 1),
                repeats=options.repeats,
                tolerance=tolerance,
            )
            results.append({"task": task, "outcomes": [vars(outcome) for outcome in outcomes]})
            rows += [[task, *row] for row in common.outcome_rows(outcomes, base)]
    text = common.table(("task", *common.OUTCOME_HEADER), rows)
    text += f"\n\n{exact} of {BATCHES * PATCHES} patterns are distinct. Speed-up over {base}."
    common.write_results(
        options.results, f"linear-regions-{options.space}", environment, results, text
    )


if __name__ == "__main__":
    main()

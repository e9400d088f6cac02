"""A whole NAS-Bench-201 search by `tenas search`, against the original's.

    python -m bench.search --original PATH

A cold search starts with an empty compilation cache; a warm one repeats it. The original's search
is projected from its parts, measured in the same run: a candidate with 4, 3 or 2 operators per edge
times the 24, 18 and 12 candidates of the three rounds. `--full` also runs the clone's own search
loop, which takes an hour on a CPU.
"""

import argparse
import functools
import importlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from bench import common
from bench.common import Contestant, Outcome, SkipError, Work
from bench.linear_regions import BATCHES, patches
from tenas_jax.spaces import NAS_BENCH_201

CANDIDATES = {4: 24, 3: 18, 2: 12}  # operators kept per edge: candidates of the round
REPEATS = 3
IMAGES = 4096
NEEDED = ("tyro", "rich", "PIL", "matplotlib")
COMMAND = "import sys; from tenas_jax.cli import main; sys.exit(main())"


@dataclass
class Search:
    """The result of one of our searches.

    Args:
        start: `cold` or `warm`.
        first: seconds until the first measurement was on disk.
        total: seconds until the process had exited, including plots.
        peak_mib: largest resident memory.
        note: why it has no times; empty if it has times.
    """

    start: str
    first: float | None = None
    total: float | None = None
    peak_mib: float | None = None
    note: str = ""


def run_tenas(start: str, folder: Path, batch: int, deadline: float) -> Search:
    """Run `tenas search` in its own process.

    Args:
        start: `cold` or `warm`.
        folder: folder with `images.npz`, for the compilation cache and the work directories.
        batch: images per kernel.
        deadline: value of `time.monotonic` at which the process is killed.

    Returns:
        Its times.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        return Search(start, note=f"{', '.join(missing)} not installed")
    workdir = folder / f"run-{time.monotonic_ns()}"
    words = ["search", "nas-bench-201", "--data", f"npz:{folder / 'images.npz'}"]
    words += ["--workdir", str(workdir), "--compilation-cache", str(folder / "cache")]
    words += ["--images", str(IMAGES), "--ntk.batch-size", str(batch)]
    began = time.monotonic()
    with (folder / "log").open("w") as log:
        # -P: the installed package, not this folder, which lacks its presets.
        command = [sys.executable, "-P", "-c", COMMAND, *words]
        process = subprocess.Popen(command, stdout=log, stderr=log)
    search = Search(start)
    trace = workdir / "trace.jsonl"
    ended = 0
    while not ended:
        time.sleep(0.01)
        if search.first is None and trace.exists() and trace.stat().st_size:
            search.first = time.monotonic() - began
        if time.monotonic() > deadline and not search.note:
            search.note = f"out of time after {measurements(trace)} measurements"
            process.kill()
        ended, status, usage = os.wait4(process.pid, os.WNOHANG)
    process.returncode = os.waitstatus_to_exitcode(status)  # from `wait4` instead of Popen
    search.peak_mib = usage.ru_maxrss * 1024 / common.MIB
    if status == 0:
        search.total = time.monotonic() - began
    elif not search.note:
        lines = (folder / "log").read_text().splitlines()
        search.note = f"failed: {lines[-1] if lines else status}"
    return search


def measurements(trace: Path) -> int:
    """Lines of a trace."""
    return len(trace.read_text().splitlines()) if trace.exists() else 0


def balanced_mask(kept: int) -> np.ndarray:
    """A supernet with `kept` operators on each edge, using every operator about equally often.

    Example:
        >>> balanced_mask(1).sum((0, 1)).tolist()
        [0, 2, 2, 1, 1]
    """
    mask = np.zeros(NAS_BENCH_201.shape, bool)
    edges, choices = len(NAS_BENCH_201.edges), len(NAS_BENCH_201.ops) - 1
    for edge in range(edges):
        mask[0, edge, [1 + (edge + i) % choices for i in range(kept)]] = True
    return mask


def candidate_masks(kept: int) -> tuple[np.ndarray, np.ndarray]:
    """A supernet, and the same without one operator."""
    supernet = balanced_mask(kept)
    candidate = supernet.copy()
    candidate[0, 0, 1] = False
    return supernet, candidate


def ntk_images(batch: int) -> np.ndarray:
    """Images [n, 3, 32, 32] with normal values, like normalized images."""
    return np.random.default_rng(0).standard_normal((batch, 3, 32, 32), np.float32)


def build_pieces(kept: int, batch: int, part: str, clone: Path | None) -> Work:
    """A part of the original's work for a candidate.

    Args:
        kept: operators per edge.
        batch: images per kernel.
        part: `kernels`: condition numbers of supernet and candidate, for one repeat; `regions`:
            their regions for all repeats, whose hooks accumulate.
        clone: a clone of VITA-Group/TENAS; None: our reimplementation.
    """
    common.require("torch")
    import torch

    device = common.torch_device()
    images = torch.from_numpy(ntk_images(batch)).to(device)
    batches = list(torch.from_numpy(patches()).permute(0, 1, 4, 2, 3).to(device))
    masks = candidate_masks(kept)
    if clone is None:
        from bench import pytorch_reference as reference

        nets = [reference.NTK_NETWORKS["nas-bench-201"](mask).to(device) for mask in masks]
        thin = [reference.REGION_NETWORKS["nas-bench-201"](mask).to(device) for mask in masks]

        def kernels() -> np.ndarray:
            loops = [reference.ntk_loop(net, net, images) for net in nets]
            return np.array([reference.condition_number(kernel) for kernel in loops])

        def regions() -> np.ndarray:
            return np.array(
                [
                    reference.count_regions(reference.activation_patterns(net, batches, copies))
                    for copies in range(1, REPEATS + 1)
                    for net in thin
                ]
            )

        return kernels if part == "kernels" else regions

    from bench import original as tenas

    original = tenas.Original(clone, device)
    config = original.config(NAS_BENCH_201, tenas.NTK_NETWORKS)
    thin_config = original.config(NAS_BENCH_201, tenas.REGION_NETWORKS)
    networks = [original.network(config, mask) for mask in masks]

    def original_kernels() -> np.ndarray:
        return np.array(original.condition_numbers(networks, images))

    def original_regions() -> np.ndarray:
        thin = [original.network(thin_config, mask) for mask in masks]
        counter = original.region_counter(batches[0], BATCHES)
        counts = []
        for _ in range(REPEATS):
            counter.reinit(models=thin)
            counts += counter.forward_batch_sample()
            counter.clear()
        return np.array(counts)

    return original_kernels if part == "kernels" else original_regions


def measure_pieces(
    clone: Path | None, batch: int, deadline: float, repeats: int
) -> dict[tuple[int, str], Outcome]:
    """Times of the parts of a candidate, by operators per edge and part.

    Args:
        clone: a clone of VITA-Group/TENAS; None: our reimplementation.
        batch: images per kernel.
        deadline: a value of `time.monotonic`.
        repeats: timed runs of each part.
    """
    cases = [(kept, part) for kept in CANDIDATES for part in ("kernels", "regions")]
    contestants = [
        Contestant(
            f"{part}, {kept} operators", functools.partial(build_pieces, kept, batch, part, clone)
        )
        for kept, part in cases
    ]
    outcomes = common.race(contestants, deadline=deadline, repeats=repeats, tolerance=None)
    return dict(zip(cases, outcomes, strict=True))


def projected(pieces: dict[tuple[int, str], Outcome]) -> float | None:
    """Seconds of the original's whole search; None if a part has no time.

    Example:
        >>> cases = [(kept, part) for kept in CANDIDATES for part in ("kernels", "regions")]
        >>> projected({case: Outcome("", seconds=[1.0]) for case in cases})
        216.0
    """
    total = 0.0
    for kept, count in CANDIDATES.items():
        kernels, regions = pieces[kept, "kernels"].median, pieces[kept, "regions"].median
        if kernels is None or regions is None:
            return None
        total += count * (REPEATS * kernels + regions)
    return total


def run_original(clone: Path, batch: int) -> float:
    """The clone's own search loop, `prune_func_rank` until one operator is left on each edge.

    Args:
        clone: a clone of VITA-Group/TENAS.
        batch: images per kernel.

    Returns:
        The time in seconds.
    """
    import torch

    from bench import original as tenas

    device = common.torch_device()
    original = tenas.Original(clone, device)
    images = torch.from_numpy(ntk_images(batch)).to(device)
    batches = torch.from_numpy(patches()).permute(0, 1, 4, 2, 3).to(device)
    prune = importlib.import_module("prune_tenas").prune_func_rank
    alphas = tenas.alphas(NAS_BENCH_201.initial_mask())
    settings = SimpleNamespace(init="kaiming_normal", repeat=REPEATS, rand_seed=0)
    configs = [
        original.config(NAS_BENCH_201, networks)
        for networks in (tenas.NTK_NETWORKS, tenas.REGION_NETWORKS)
    ]
    counter = original.region_counter(batches[0], BATCHES)
    start = time.perf_counter()
    while max((alpha > tenas.PRUNED).sum(1).max() for alpha in alphas) > 1:
        alphas, _ = prune(
            settings,
            alphas,
            *configs,
            tenas.Loader(images),
            counter,
            list(NAS_BENCH_201.ops),
            precision=3,
            prune_number=1,
        )
    return time.perf_counter() - start


def parse() -> argparse.Namespace:
    """The options."""
    parser = common.arguments(__doc__, budget=1200)
    parser.set_defaults(threads=len(os.sched_getaffinity(0)), repeats=1)
    parser.add_argument("--batch-size", type=int, default=72, help="images per kernel")
    parser.add_argument("--full", action="store_true", help="run the original's search to its end")
    options = parser.parse_args()
    if options.full and options.original is None:
        parser.error("--full runs a clone of the original: give its folder with --original")
    return options


def main() -> None:
    """Runs the benchmark."""
    options = parse()
    end = time.monotonic() + options.budget
    environment = common.prepare_environment(options.threads)
    searches = run_searches(options.batch_size, options.repeats, end)
    full = None
    if options.full:
        try:
            full = common.call(run_original, options.original, options.batch_size)
        except SkipError as reason:
            print(f"the original's search: {reason}")
    pieces = measure_pieces(options.original, options.batch_size, end, options.repeats)
    report(options, environment, searches, pieces, full)


def run_searches(batch: int, repeats: int, end: float) -> list[Search]:
    """Cold and warm searches in turns; half of the time is reserved for the original.

    Args:
        batch: images per kernel.
        repeats: number of searches of each kind.
        end: end of the benchmark, a value of `time.monotonic`.
    """
    middle = (time.monotonic() + end) / 2
    searches = []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            pixels = np.random.default_rng(0).integers(0, 256, (IMAGES, 32, 32, 3), np.uint8)
            np.savez(folder / "images.npz", x=pixels)
            searches += [run_tenas(start, folder, batch, middle) for start in ("cold", "warm")]
    return searches


def report(
    options: argparse.Namespace,
    environment: dict[str, Any],
    searches: Sequence[Search],
    pieces: dict[tuple[int, str], Outcome],
    full: float | None,
) -> None:
    """Write the results.

    Args:
        options: options of the run.
        environment: environment of the run.
        searches: our searches.
        pieces: times of the original's parts.
        full: seconds of the original's whole search, if it was run.
    """
    who = "the original" if options.original else "our PyTorch writing of it"
    base = full or projected(pieces)
    rows: list[list[Any]] = [
        [
            f"tenas search, {search.start}",
            search.total,
            base / search.total if base and search.total else None,
            search.first,
            search.peak_mib,
            search.note,
        ]
        for search in searches
    ]
    notes = "; ".join(sorted({piece.note for piece in pieces.values() if piece.note}))
    rows.append([f"original, projected ({who})", projected(pieces), None, None, None, notes])
    if full is not None:
        rows.append(["original, in full", full, None, None, None, ""])
    header = ("search", "seconds", "speed-up", "first measurement s", "memory MiB", "note")
    parts = [
        [kept, part, piece.median, common.spread(piece.seconds), piece.peak_mib, piece.note]
        for (kept, part), piece in pieces.items()
    ]
    part_header = (
        "operators",
        "part of a candidate",
        "median s",
        "min - max s",
        "memory MiB",
        "note",
    )
    text = (
        f"{common.table(header, rows)}\n\nKernels of {options.batch_size} images. A candidate of "
        f"the original: {REPEATS} times `kernels`, once `regions`; {who}, without data loading:\n\n"
        f"{common.table(part_header, parts)}"
    )
    results: list[dict[str, Any]] = [
        {"searches": [asdict(search) for search in searches]},
        {"projected": projected(pieces), "full": full},
        {"pieces": [{"operators": k, "part": p, **vars(o)} for (k, p), o in pieces.items()]},
    ]
    common.write_results(options.results, "search", environment, results, text)


if __name__ == "__main__":
    main()

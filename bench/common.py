"""Processes, timing and tables, shared by all benchmarks.

Each contestant runs in its own process, so that its peak memory is its own. Contestants take turns,
so that a slow minute of the machine affects all of them. Nothing here imports JAX or PyTorch at the
start: the parent process only schedules.
"""

import argparse
import importlib.metadata
import json
import multiprocessing
import os
import platform
import re
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from tenas_jax.spaces import DARTS, NAS_BENCH_201

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Work = Callable[[], Float[np.ndarray, "..."]]
"""Does the work once, waits for the end, and returns the result."""

SPACES = {space.name: space for space in (NAS_BENCH_201, DARTS)}  # those of the original
PACKAGES = ("jax", "jaxlib", "flax", "optax", "neural-tangents", "numpy", "torch", "tenas_jax")
TOLERANCE = 1e-4
MIB = 2.0**20
COLUMN = 3.3  # inches
PLATFORM = "TENAS_BENCH_PLATFORM"  # passes JAX's platform to the contestants' processes
PREPARATION = 0.6  # fraction of the available time; the rest is for timed runs


class SkipError(Exception):
    """A contestant cannot take part; the message says why."""


@dataclass(frozen=True)
class Contestant:
    """One way of doing the work.

    Args:
        name: name in the tables.
        build: prepares in the contestant's own process and returns the work; must be picklable.
    """

    name: str
    build: Callable[[], Work]


@dataclass
class Outcome:
    """The result of a contestant.

    Args:
        name: name of the contestant.
        prepare_seconds: seconds until the first result: imports, compilation, one run.
        seconds: seconds of each timed run.
        error: relative difference of its result from the reference, in the Frobenius norm.
        peak_mib: largest resident memory of its process, libraries included.
        device_mib: largest memory on the accelerator; None on a CPU.
        note: why it has no times; empty if it has times.
    """

    name: str
    prepare_seconds: float | None = None
    seconds: list[float] = field(default_factory=list)
    error: float | None = None
    peak_mib: float | None = None
    device_mib: float | None = None
    note: str = ""

    @property
    def median(self) -> float | None:
        """Median of the timed runs, in seconds."""
        return statistics.median(self.seconds) if self.seconds else None


def arguments(description: str | None, *, budget: float) -> argparse.ArgumentParser:
    """The options shared by all benchmarks.

    Args:
        description: description of the benchmark.
        budget: default seconds for the whole benchmark.

    Returns:
        A parser, to which a benchmark adds its own options.
    """
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    parser.add_argument(
        "--budget", type=float, default=budget, help="seconds for the whole benchmark"
    )
    parser.add_argument("--repeats", type=int, default=5, help="timed runs per contestant")
    parser.add_argument(
        "--threads", type=int, help="CPU cores for every contestant; 1 on a CPU, all with a GPU"
    )
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--original", type=Path, help="a clone of VITA-Group/TENAS to time as well")
    return parser


def prepare_environment(threads: int | None) -> dict[str, Any]:
    """Pin this process and its children to the same cores, and describe the machine.

    Args:
        threads: cores for each contestant; None: 1 on a CPU, all with a GPU.

    Returns:
        Device, threads, versions.
    """
    device = call(describe_device)
    cores = sorted(os.sched_getaffinity(0))
    threads = threads or (1 if device["platform"] == "cpu" else len(cores))
    os.sched_setaffinity(0, cores[:threads])
    os.environ["OMP_NUM_THREADS"] = str(threads)
    os.environ[PLATFORM] = device["platform"]
    eigen = f"--xla_cpu_multi_thread_eigen={str(threads > 1).lower()}"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {eigen}".strip()
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = str(threads)
    # The contestants share one accelerator.
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    versions = {name: installed_version(name) for name in PACKAGES}
    return {
        **device,
        "cpu": cpu_name(),
        "threads": threads,
        "cores": len(cores),
        "python": platform.python_version(),
        "versions": versions,
    }


def describe_device() -> dict[str, Any]:
    """JAX's default device."""
    import jax

    device = jax.devices()[0]
    return {"platform": device.platform, "device": device.device_kind, "count": jax.device_count()}


def cpu_name() -> str:
    """The name of the processor."""
    try:
        found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1] if found else platform.machine()


def installed_version(name: str) -> str:
    """Version of a distribution, or `not installed`.

    Example:
        >>> installed_version("no-such-distribution")
        'not installed'
    """
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def require(name: str) -> None:
    """Skip this contestant unless a distribution is installed.

    Raises:
        SkipError: it is not installed.
    """
    if installed_version(name) == "not installed":
        raise SkipError(f"{name} not installed")


def draw_weights(network: Any, *inputs: Any) -> Any:
    """Parameters of a Flax network with PyTorch's default initialization, without compilation.

    Args:
        network: the module; a kernel's last axis is its outputs, the previous three its fan-in.
        inputs: its inputs.

    Returns:
        Nested dictionaries of arrays.
    """
    import jax

    generator = np.random.default_rng(0)

    def draw(path: Any, leaf: Any) -> np.ndarray:
        name = path[-1].key
        if name in ("scale", "bias"):
            return np.full(leaf.shape, float(name == "scale"), np.float32)
        bound = np.prod(leaf.shape[-4:-1]) ** -0.5
        return np.asarray(generator.uniform(-bound, bound, leaf.shape), np.float32)

    shapes = jax.eval_shape(network.init, jax.random.key(0), *inputs)["params"]
    return jax.tree_util.tree_map_with_path(draw, shapes)


def torch_device() -> Any:
    """The device of PyTorch's contestants, the same as JAX's.

    Returns:
        A `torch.device`.

    Raises:
        SkipError: JAX has a GPU, but PyTorch does not.
    """
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    # Condition numbers of thousands need full precision, which JAX's contestants use as well.
    torch.backends.cudnn.allow_tf32 = False
    if os.environ[PLATFORM] == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise SkipError("this PyTorch has no CUDA")
    return torch.device("cuda")


def call(function: Callable[..., Any], *values: Any, timeout: float | None = None) -> Any:
    """Call a function in a new process.

    Args:
        function: an importable function.
        values: its arguments, which must be picklable.
        timeout: seconds after which the process is killed.

    Returns:
        The result of the function.

    Raises:
        SkipError: the function failed or took too long.
    """
    with Process(_call, function, values) as process:
        return process.receive(timeout)


class KernelInputs:
    """Images and parameters of a kernel, for a dataclass with these two fields."""

    batch: int
    weights: Path

    def images(self) -> Float[np.ndarray, "n 32 32 3"]:
        """Images [n, 32, 32, 3] with normal values, like normalized images.

        The seed matters: 16 images of seed 16 give a supernet an activation whose sign depends on
        rounding, so that kernels of JAX and PyTorch differ by 6e-4 (in float64 by 7e-15).
        """
        shape = (self.batch, 32, 32, 3)
        return np.random.default_rng(0).standard_normal(shape, np.float32)

    def params(self) -> dict[str, np.ndarray]:
        """The parameters, by path in the Flax tree."""
        return dict(np.load(self.weights))


class Process:
    """A new Python process with a pipe to it; as a context, it is killed at the end.

    It sends pairs: whether it succeeded, and the value or the reason.

    Args:
        target: its function, called with the other end of the pipe as first argument.
        values: the other arguments.
    """

    def __init__(self, target: Callable[..., None], *values: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=target, args=(theirs, *values), daemon=True)
        self.process.start()
        theirs.close()

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.join()

    def receive(self, timeout: float | None = None) -> Any:
        """The next value.

        Args:
            timeout: seconds to wait.

        Raises:
            SkipError: it failed, died, or sent nothing in time.
        """
        if not self.pipe.poll(None if timeout is None else max(timeout, 0.0)):
            raise SkipError("out of time")
        try:
            succeeded, value = self.pipe.recv()
        except EOFError:
            self.process.join()
            raise SkipError(f"died with exit code {self.process.exitcode}") from None
        if not succeeded:
            raise SkipError(value)
        return value


def _call(pipe: Connection, function: Callable[..., Any], values: Sequence[Any]) -> None:
    try:
        pipe.send((True, function(*values)))
    except Exception as error:
        pipe.send((False, _reason(error)))


def _reason(error: Exception) -> str:
    if isinstance(error, SkipError):
        return str(error)
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _compete(pipe: Connection, build: Callable[[], Work]) -> None:
    """The process of a contestant: sends the first result, then a time for every request."""
    try:
        work = build()
        pipe.send((True, np.asarray(work())))
        while pipe.recv() == "run":
            start = time.perf_counter()
            work()
            pipe.send((True, time.perf_counter() - start))
        pipe.send((True, (peak_mib(), device_mib())))
    except Exception as error:
        pipe.send((False, _reason(error)))


def peak_mib() -> float:
    """Largest resident memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MIB


def device_mib() -> float | None:
    """Largest memory in use on this process's accelerator so far, in MiB; None without one."""
    torch, jax = sys.modules.get("torch"), sys.modules.get("jax")
    if torch and torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return float(torch.cuda.max_memory_allocated() / MIB)
    counters = (jax and jax.devices()[0].memory_stats()) or {}
    return counters["peak_bytes_in_use"] / MIB if "peak_bytes_in_use" in counters else None


def race(
    contestants: Sequence[Contestant],
    *,
    deadline: float,
    repeats: int,
    tolerance: float | None = TOLERANCE,
) -> list[Outcome]:
    """Time contestants in turns, after comparing their results with those of the first one.

    Args:
        contestants: the contestants; the first with a result is the reference.
        deadline: value of `time.monotonic` before which every turn must end, except a contestant's
            first.
        repeats: timed runs per contestant.
        tolerance: contestants whose result differs by more are not timed; None: no comparison.

    Returns:
        The outcomes, in the order of the contestants.
    """
    outcomes = [Outcome(contestant.name) for contestant in contestants]
    running: dict[int, Process] = {}
    reference: tuple[str, np.ndarray] | None = None
    now = time.monotonic()
    prepared = now + PREPARATION * (deadline - now)
    try:
        for i, (contestant, outcome) in enumerate(zip(contestants, outcomes, strict=True)):
            start = time.monotonic()
            process = running[i] = Process(_compete, contestant.build)
            try:
                result = process.receive(prepared - time.monotonic())
                outcome.prepare_seconds = time.monotonic() - start
                reference = reference or (contestant.name, result)
                if tolerance is None:
                    continue
                outcome.error = relative_error(result, reference[1])
                if not outcome.error <= tolerance:
                    raise SkipError(
                        f"not timed: differs from {reference[0]} by {outcome.error:.1e}"
                    )
            except SkipError as reason:
                outcome.note = str(reason)
                running.pop(i).__exit__()
        _take_turns(running, outcomes, deadline, repeats)
        return outcomes
    finally:
        for process in running.values():
            process.__exit__()


def _take_turns(
    running: dict[int, Process], outcomes: Sequence[Outcome], deadline: float, repeats: int
) -> None:
    for _ in range(repeats):
        for i in list(running):
            outcome, process = outcomes[i], running[i]
            if outcome.seconds and time.monotonic() + max(outcome.seconds) > deadline:
                continue
            try:
                process.pipe.send("run")
                outcome.seconds.append(process.receive(deadline - time.monotonic()))
            except SkipError as reason:
                outcome.note = str(reason)
                running.pop(i).__exit__()
    for i, process in running.items():
        process.pipe.send("stop")
        outcomes[i].peak_mib, outcomes[i].device_mib = process.receive(60)


def relative_error(value: np.ndarray, reference: np.ndarray) -> float:
    """Frobenius norm of the difference over that of the reference.

    Example:
        >>> relative_error(np.array([3.0, 4.5]), np.array([3.0, 4.0]))
        0.1
    """
    reference = np.asarray(reference, np.float64)
    return float(np.linalg.norm(value - reference) / np.linalg.norm(reference))


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table; floats with three digits, None as a dash.

    Example:
        >>> print(table(["name", "s"], [["a", 0.12345], ["b", None]]))
        | name | s |
        | --- | --- |
        | a | 0.123 |
        | b | - |
    """
    lines = [list(header), ["---"] * len(header)]
    lines += [[_cell(value) for value in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    return str(value)


OUTCOME_HEADER = (
    "contestant",
    "median s",
    "min - max s",
    "speed-up",
    "error",
    "first result s",
    "memory MiB",
    "device MiB",
    "note",
)


def outcome_rows(outcomes: Sequence[Outcome], baseline: str) -> list[list[Any]]:
    """Rows of a table of outcomes, under `OUTCOME_HEADER`.

    Args:
        outcomes: the outcomes of one race.
        baseline: the contestant that speed-ups are relative to.

    Returns:
        One row per outcome.
    """
    medians = {outcome.name: outcome.median for outcome in outcomes}
    base = medians.get(baseline)
    return [
        [
            outcome.name,
            outcome.median,
            spread(outcome.seconds),
            base / outcome.median if base and outcome.median else None,
            None if outcome.error is None else f"{outcome.error:.0e}",
            outcome.prepare_seconds,
            outcome.peak_mib,
            outcome.device_mib,
            outcome.note,
        ]
        for outcome in outcomes
    ]


def spread(seconds: Sequence[float]) -> str:
    """Smallest and largest time.

    Example:
        >>> spread([0.5, 0.25, 0.3])
        '0.25 - 0.5 (3)'
    """
    if not seconds:
        return "-"
    return f"{_cell(float(min(seconds)))} - {_cell(float(max(seconds)))} ({len(seconds)})"


def write_results(
    folder: Path,
    name: str,
    environment: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    text: str,
) -> Path:
    """Write `name.json` and `name.md` into the device's folder, and print the table.

    Args:
        folder: folder of all results.
        name: name of the benchmark.
        environment: the result of `prepare_environment`.
        results: JSON values.
        text: Markdown.

    Returns:
        The device's folder.
    """
    folder = folder / slug(environment)
    folder.mkdir(parents=True, exist_ok=True)
    content = {"benchmark": name, "environment": environment, "results": results}
    (folder / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
    about = f"# {name}\n\n{describe(environment)}\n\n{text}\n"
    (folder / f"{name}.md").write_text(about)
    print(about, flush=True)
    return folder


def describe(environment: Mapping[str, Any]) -> str:
    """The environment in a sentence."""
    versions = ", ".join(f"{name} {value}" for name, value in environment["versions"].items())
    accelerator = "" if environment["platform"] == "cpu" else f"{environment['device']}, "
    return (
        f"{accelerator}{environment['cpu']}, {environment['threads']} of {environment['cores']} "
        f"cores for everyone; Python {environment['python']}, {versions}."
    )


def slug(environment: Mapping[str, Any]) -> str:
    """The name of the folder with a device's results.

    Example:
        >>> slug({"platform": "cpu", "device": "cpu", "cpu": "AMD EPYC 9R14", "threads": 2})
        'amd-epyc-9r14-2-threads'
    """
    if environment["platform"] != "cpu":
        words = str(environment["device"])
    else:
        threads = environment["threads"]
        words = f"{environment['cpu']} {threads} thread{'s' * (threads > 1)}"
    return file_name(words)


def file_name(words: str) -> str:
    """Turn words into a file name.

    Example:
        >>> file_name("NAS-Bench-201, 32 images")
        'nas-bench-201-32-images'
    """
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")


def plot_lines(
    path: Path,
    lines: Mapping[str, Mapping[int, Sequence[float]]],
    *,
    title: str,
    x_label: str,
    y_label: str,
) -> None:
    """Plot medians with their ranges on logarithmic axes, if matplotlib is installed.

    Args:
        path: path of the PNG, beside which is a PDF.
        lines: for each name the measurements at each x.
        title: title of the plot.
        x_label: label of the x axis, with the unit.
        y_label: label of the y axis, with the unit.
    """
    if installed_version("matplotlib") == "not installed":
        print(f"{path.name} not drawn: matplotlib not installed")
        return
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot(xscale="log", yscale="log", title=title)
    axes.set(xlabel=x_label, ylabel=y_label)
    ticks = sorted({x for line in lines.values() for x in line})
    for name, line in lines.items():
        if not line:
            continue
        xs = sorted(line)
        medians = np.array([statistics.median(line[x]) for x in xs])
        low = medians - [min(line[x]) for x in xs]
        high = [max(line[x]) for x in xs] - medians
        axes.errorbar(xs, medians, [low, high], marker="o", capsize=3, label=name)
    axes.set_xticks(ticks, [f"{x:g}" for x in ticks], minor=False)
    axes.set_xticks([], minor=True)
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(figure, path)


def save_figure(figure: "Figure", path: Path) -> None:
    """Write a PNG, and beside it a PDF as wide as a column of a paper."""
    from tenas_jax.analysis.columns import fit, text_size
    from tenas_jax.analysis.figures import save

    save(figure, path)
    for legend in figure.legends:
        for text in legend.get_texts():
            text.set_fontsize(text_size(float(text.get_fontsize()), figure, COLUMN))
    fit(figure, COLUMN)
    save(figure, path.with_suffix(".pdf"))

"""The host loop of a search: trace, resume, progress, time.

What a search measures next is determined by its previous measurements, which its trace records in
order. A search that was killed therefore resumes by replaying the trace, and ends with the same
result.
"""

import csv
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypedDict, cast, runtime_checkable

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from tenas_jax.architectures.space import Masks
from tenas_jax.errors import InputError
from tenas_jax.host.files import json_values, read_json, whole_file, write_json
from tenas_jax.host.programs import versions
from tenas_jax.host.reproducibility import environment
from tenas_jax.host.sums import write_sums
from tenas_jax.metrics.registry import Metric
from tenas_jax.numerics import random_key
from tenas_jax.searching.baselines import of_all, score, to_measure
from tenas_jax.searching.found import measured_at_the_end
from tenas_jax.searching.problem import Problem
from tenas_jax.searching.rows import Row, Work
from tenas_jax.searching.strategies import get_strategy
from tenas_jax.searching.workdir import Trace, open_workdir, read_plan, write_plan

# Scorers compiled at a time: with more, the first one would wait until all are traced.
BEGUN = 3


@runtime_checkable
class Scorer(Protocol):
    """Measures the rows of a search."""

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The columns of a measurement."""

    @property
    def batch_rows(self) -> int:
        """Number of rows per call."""

    @property
    def plan(self) -> dict[str, int]:
        """Cotangents in a pass, by the metrics of a program, where memory decides.

        A resumed search sets it before anything is compiled.
        """

    @property
    def compile_seconds(self) -> float:
        """Seconds that `begin` and `compile` have taken."""

    def begin(self) -> None:
        """Start preparing for calls, in the background."""

    def compile(self) -> None:
        """Prepare for calls; called before the first measurement."""

    def __call__(
        self, keys: Key[Array, " row"], masks: Bool[np.ndarray, "row cell edge op"]
    ) -> Float[np.ndarray, "row metric"]:
        """Measure supernets; a row's result depends only on its own key and mask.

        Rows with empty masks pad a batch; their results are not used.
        """


class Progress(NamedTuple):
    """Progress of a search: the round from 0, the measurements of all rounds, and their time."""

    round: int
    """Equal to `rounds` while the found architecture is measured."""
    rounds: int
    done: int
    total: int
    seconds_left: float | None
    """None: not known, as before the last of several programs."""
    compiling: tuple[str, ...] = ()
    """The metrics whose program is being compiled."""


class Result(TypedDict):
    """The content of `result.json`; numbers that are not finite are strings."""

    preset: str
    space: str
    seed: int
    data: str
    genotype: str
    found: dict[str, Any]
    """The final measurement: `metrics`, their `standard_errors`, `repeats`."""
    rounds: list[dict[str, Any]]
    evaluations: int
    nonfinite: int
    seconds: dict[str, float]
    device: str
    versions: dict[str, str]


# The fields of a result that describe its process; the others follow from the trace.
PROVENANCE = {"seconds", "device", "versions"}


def run_search(
    problem: Problem,
    scorer: Scorer,
    workdir: Path,
    *,
    preset: str,
    data_fingerprint: str,
    device: str,
    resume: bool | None = False,
    progress: Callable[[Progress], None] = lambda _: None,
) -> Result:
    """Run a search that can be resumed after any interruption.

    The work directory has three files. `config.json` is the configuration. `trace.jsonl` gets a
    line per measurement and, after each round, a line per candidate with its differences and their
    standard errors. `result.json` is written at the end, after the found architecture has been
    measured. Resuming a finished search measures nothing; its result is derived again from the
    trace and compared with the file.

    Args:
        problem: what is searched.
        scorer: measures rows of supernets.
        workdir: the work directory; created if it does not exist.
        preset: name of the configuration.
        data_fingerprint: hash of the images, which must not change when resuming.
        device: description of the devices, for the result.
        resume: whether the work directory must already hold this search; None: it may.
        progress: called after compilation, in every round and after every batch.

    Returns:
        The result. Its `seconds` are those of the process that finished the search, without
            interrupted ones before it; `evaluations` is the number of candidates or architectures,
            each measured with several repeats.

    Raises:
        InputError: the work directory

            - holds another search;
            - holds a search although `resume` is false, or none although it is true;
            - holds a result that does not follow from its trace;
            - cannot be written.
    """
    started = time.perf_counter()
    config, strategy = problem.config, get_strategy(problem.config.strategy)
    settings = search_settings(problem, preset, data_fingerprint)
    open_workdir(workdir, settings, resume=resume)
    finished, stored = workdir / "result.json", None
    remedy = "delete it, and --resume derives it from trace.jsonl again"
    if finished.exists():
        stored = read_json(finished, remedy=remedy)

    run = run_strategy(
        measured_at_the_end(problem, strategy(problem)),
        [scorer],
        workdir,
        settings,
        progress=progress,
    )
    found, measurement = run.outcome
    result = Result(
        preset=preset,
        space=config.space,
        seed=config.seed,
        data=config.data,
        genotype=problem.space.to_string(found.mask),
        found=json_values(measurement),
        rounds=json_values(found.rounds),
        evaluations=found.evaluations,
        nonfinite=run.nonfinite,
        seconds={
            "total": time.perf_counter() - started,
            "compile": scorer.compile_seconds,
            "measure": run.measure_seconds,
        },
        device=device,
        versions=versions(),
    )
    if stored is None:
        write_json(finished, result)
        return result
    if any(stored.get(name) != result[name] for name in result.keys() - PROVENANCE):  # type: ignore[literal-required]
        raise InputError(f"{finished} is not the result of the trace beside it: {remedy}")
    return cast(Result, stored)


def run_scores(
    problem: Problem,
    masks: Masks,
    scorers: Sequence[Scorer],
    workdir: Path,
    *,
    settings: Mapping[str, Any],
    resume: bool | None = False,
    progress: Callable[[Progress], None] = lambda _: None,
) -> Float[np.ndarray, "architecture metric"]:
    """Measure architectures and write `scores.csv`; can be resumed after any interruption.

    The file has a column `genotype` and one for each metric, with means over the repeats. Its
    checksum is in `SHA256SUMS`. It is written after each scorer, with the columns measured so far.
    If the architectures are the whole space, isomorphic ones are measured once.

    Args:
        problem: what is measured.
        masks: the architectures.
        scorers: measure rows one after the other, each for some of the metrics.
        workdir: the work directory; created if it does not exist.
        settings: the content of `config.json`, from `search_settings`.
        resume: whether the work directory must already hold this run; None: it may.
        progress: called after compilation and after every batch.

    Returns:
        The means, one row per architecture.

    Raises:
        InputError: the work directory

            - holds something else;
            - holds this run although `resume` is false, or nothing although it is true;
            - cannot be written.
    """
    open_workdir(workdir, settings, resume=resume)
    space = problem.space
    measured, inverse = to_measure(space, masks)

    def by_scorer() -> Generator[Any, Any, Float[np.ndarray, "architecture metric"]]:
        columns: dict[str, np.ndarray] = {}
        for part, scorer in enumerate(scorers):
            values = yield from score(problem, masks[measured], part=part, parts=len(scorers))
            values = of_all(space, masks, scorer.metrics, values[inverse])
            names = [metric.name for metric in scorer.metrics]
            columns |= zip(names, values.T, strict=True)
            known = {name: columns[name] for name in problem.directions if name in columns}
            _write_scores(workdir, list(map(space.to_string, masks)), known)
        return np.stack(list(known.values()), 1)

    run = run_strategy(by_scorer(), scorers, workdir, settings, progress=progress)
    table: np.ndarray = run.outcome
    return table


def _write_scores(
    workdir: Path, genotypes: Sequence[str], columns: Mapping[str, Float[np.ndarray, " row"]]
) -> None:
    numbers = (map(repr, column.tolist()) for column in columns.values())
    path = workdir / "scores.csv"
    with whole_file(path) as unfinished, open(unfinished, "w") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([["genotype", *columns], *zip(genotypes, *numbers, strict=True)])
    write_sums(workdir, [path])


class Run(NamedTuple):
    """The outcome of a strategy."""

    outcome: Any
    """The value it returned."""
    nonfinite: int
    """Number of measurements that were not finite."""
    measure_seconds: float
    """Seconds this process spent on measurements."""


def run_strategy(
    strategy: Generator[Any, Any, Any],
    scorers: Sequence[Scorer],
    workdir: Path,
    settings: Mapping[str, Any],
    *,
    progress: Callable[[Progress], None] = lambda _: None,
) -> Run:
    """Measure the rows of a strategy, and record them so that an interrupted run can be replayed.

    Args:
        strategy: see `tenas_jax.searching.rows`.
        scorers: measure the rows of their parts; some of the next scorers are compiled meanwhile.
        workdir: folder of the trace, `trace.jsonl`; recorded rows are not measured again.
        settings: the content of `config.json`, with the seed of the weights and images.
        progress: called for each piece of work, after compilation, and after every batch.

    Returns:
        The outcome of the strategy.

    Raises:
        InputError: the trace is of another run, or cannot be written.
    """
    trace = Trace(workdir / "trace.jsonl", settings)
    plan = read_plan(workdir)
    for each in scorers:
        each.plan.update(plan)
    key = random_key(settings["config"]["seed"])
    measurements: list[list[float]] = []
    compiled: list[Scorer] = []
    measured, seconds = [0] * len(scorers), [0.0] * len(scorers)  # by this process

    def perform(work: Work) -> Float[np.ndarray, "row metric"]:
        before, scorer = len(measurements), scorers[work.part]
        metrics = scorer.metrics

        def report(compiling: tuple[str, ...] = ()) -> None:
            total, done = before + len(work.rows) + work.later, len(measurements)
            left = None  # how long another scorer takes is not known before it begins
            if work.part == len(scorers) - 1 and measured[work.part]:
                left = seconds[work.part] / measured[work.part] * (total - done)
            progress(Progress(work.round, work.rounds, done, total, left, compiling))

        taken = trace.take([row.identity for row in work.rows], metrics)
        measurements.extend(taken)
        if scorer not in compiled and len(taken) < len(work.rows):
            if names := tuple(metric.name for metric in metrics if metric.count is None):
                report(names)
                for each in scorers[work.part : work.part + BEGUN]:
                    each.begin()
            scorer.compile()
            compiled.append(scorer)
        report()
        started = time.perf_counter()
        for batch, values in measure(scorer, work.rows[len(taken) :], key):
            if not scorer.plan.items() <= plan.items():
                plan.update(scorer.plan)
                write_plan(workdir, plan)
            trace.append([row.identity for row in batch], metrics, values)
            measurements.extend(values.tolist())
            measured[work.part] += len(batch)
            seconds[work.part] += time.perf_counter() - started
            report()
            started = time.perf_counter()
        return np.array(measurements[before:])

    outcome = _drive(strategy, perform, trace.note)
    trace.require_end()
    nonfinite = sum(not np.isfinite(row).all() for row in measurements)
    return Run(outcome, nonfinite, sum(seconds))


def search_settings(problem: Problem, preset: str, data_fingerprint: str) -> dict[str, Any]:
    """Everything that determines the result of a search, as stored in its work directory.

    Args:
        problem: what is searched.
        preset: name of the configuration.
        data_fingerprint: hash of the images.

    Returns:
        The JSON values of `config.json`.
    """
    return {
        "preset": preset,
        "data_fingerprint": data_fingerprint,
        "sources": problem.sources,
        "config": problem.config.to_dict(),
        "environment": environment(),
    }


def measure(
    scorer: Scorer, rows: Sequence[Row], key: Key[Array, ""]
) -> Iterator[tuple[Sequence[Row], Float[np.ndarray, "row metric"]]]:
    """Measure rows in batches of the scorer's size; the last batch is padded with empty masks.

    Args:
        scorer: measures rows of supernets.
        rows: the rows; their rounds and repeats determine their keys.
        key: key of the search.

    Yields:
        Batches of rows and their measurements, in order.
    """
    for start in range(0, len(rows), scorer.batch_rows):
        batch = rows[start : start + scorer.batch_rows]
        nothing = batch[0]._replace(mask=np.zeros_like(batch[0].mask))
        padded = [*batch, *[nothing] * (scorer.batch_rows - len(batch))]
        keys = _keys(key, np.array([(row.round, row.repeat) for row in padded]))
        yield batch, scorer(keys, np.stack([row.mask for row in padded]))[: len(batch)]


@jax.jit
def _keys(key: Key[Array, ""], rows: Int[Array, "row 2"]) -> Key[Array, " row"]:
    """The key of each row, from its round and repeat."""
    return jax.vmap(lambda row: jax.random.fold_in(jax.random.fold_in(key, row[0]), row[1]))(rows)


def _drive(
    strategy: Generator[Any, Any, Any],
    perform: Callable[[Work], Float[np.ndarray, "row metric"]],
    note: Callable[[Sequence[Mapping[str, Any]]], None],
) -> Any:
    """Run a strategy until it returns, sending it its measurements."""
    try:
        step = next(strategy)
        while True:
            if isinstance(step, Work):
                step = strategy.send(perform(step))
            else:
                note(step.candidates)
                step = next(strategy)
    except StopIteration as end:
        return end.value

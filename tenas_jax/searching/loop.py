"""The host loop of a search: trace, resume, progress, time.

What a search measures next follows from what it has measured, and its trace holds that in order. So
a search that was killed goes on by replaying the trace, and ends as it would have ended.
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

# Scorers that are compiled at a time: with more, the first one waits for all to be traced.
BEGUN = 3


@runtime_checkable
class Scorer(Protocol):
    """Measures rows; what a search is driven by."""

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The columns of a measurement."""

    @property
    def batch_rows(self) -> int:
        """How many rows one call takes."""

    @property
    def plan(self) -> dict[str, int]:
        """Cotangents in a pass, by the metrics of a program, where memory decides.

        A resumed search sets it before anything is compiled.
        """

    @property
    def compile_seconds(self) -> float:
        """Seconds that `compile` took; 0 before it was called."""

    def begin(self) -> None:
        """Begin to prepare for calls, in the background."""

    def compile(self) -> None:
        """Prepare for calls; called before the first measurement."""

    def __call__(
        self, keys: Key[Array, " row"], masks: Bool[np.ndarray, "row cell edge op"]
    ) -> Float[np.ndarray, "row metric"]:
        """Measure supernets; a row's result depends on its own key and mask only.

        Rows whose masks keep nothing fill up a batch: their results are not used.
        """


class Progress(NamedTuple):
    """How far a search is: the round from 0, the measurements of all rounds, the time they need."""

    round: int
    """As many as there are `rounds` while the found architecture is measured."""
    rounds: int
    done: int
    total: int
    seconds_left: float | None
    compiling: tuple[str, ...] = ()
    """The metrics that are waited for until their program is compiled."""


class Result(TypedDict):
    """What `result.json` holds; numbers that are not finite are strings."""

    preset: str
    space: str
    seed: int
    data: str
    genotype: str
    found: dict[str, Any]
    """Its own measurement at the end: `metrics`, their `standard_errors`, `repeats`."""
    rounds: list[dict[str, Any]]
    evaluations: int
    nonfinite: int
    seconds: dict[str, float]
    device: str
    versions: dict[str, str]


# What a result says about the process that made it; all else follows from the trace.
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

    In the work directory `config.json` says what is searched, `trace.jsonl` grows by a line per
    measurement, after each round by a line per candidate with its differences and their standard
    errors, and `result.json` is written at the end, when the architecture that was found has been
    measured as well. A finished search that is resumed measures nothing; its result is derived from
    the trace once more and compared with the file.

    Args:
        problem: what is searched.
        scorer: measures rows of supernets.
        workdir: where the files are; made if there is none.
        preset: name under which the configuration was chosen.
        data_fingerprint: hash of the images, which a resumed search must share.
        device: description of the devices, for the result.
        resume: whether the work directory must hold this search already; None: it may.
        progress: called after compilation, with every round and after every batch.

    Returns:
        The result. Its `seconds` are those of the process that finished the search, not of
            interrupted ones before it; `evaluations` are candidates or architectures, each of them
            measured in several repeats.

    Raises:
        InputError: the work directory holds another search, holds one and `resume` is false, holds
            none and it is true, holds a result that does not follow from its trace, or cannot be
            written.
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

    The file has a column `genotype` and one for each metric, the means over the repeats. Its
    checksum is in `SHA256SUMS`. It is written after each scorer with the columns that there are. If
    these are all architectures of the space, isomorphic ones are measured once.

    Args:
        problem: what is measured.
        masks: the architectures.
        scorers: measure rows one after the other, each some of the metrics.
        workdir: where the files are; made if there is none.
        settings: what `config.json` is to hold, from `search_settings`.
        resume: whether the work directory must hold this run already; None: it may.
        progress: called after compilation and after every batch.

    Returns:
        The means, a row for each architecture.

    Raises:
        InputError: the work directory holds something else, holds this and `resume` is false, holds
            nothing and it is true, or cannot be written.
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
    """What came of a strategy."""

    outcome: Any
    """What it returned."""
    nonfinite: int
    """How many measurements were not finite."""
    measure_seconds: float
    """What this process spent on measurements."""


def run_strategy(
    strategy: Generator[Any, Any, Any],
    scorers: Sequence[Scorer],
    workdir: Path,
    settings: Mapping[str, Any],
    *,
    progress: Callable[[Progress], None] = lambda _: None,
) -> Run:
    """Measure what a strategy asks for, and record it so that an interrupted run can be replayed.

    Args:
        strategy: see `tenas_jax.searching.rows`.
        scorers: measure rows, each those of its part; some of the next ones are compiled meanwhile.
        workdir: where the trace is, `trace.jsonl`; what it holds is not measured again.
        settings: what `config.json` holds, with the seed of the weights and images.
        progress: called with all work, after compilation, and after every batch.

    Returns:
        What the strategy returned, and what it took.

    Raises:
        InputError: the trace is of another run, or cannot be written.
    """
    trace = Trace(workdir / "trace.jsonl", settings)
    plan = read_plan(workdir)
    for each in scorers:
        each.plan.update(plan)
    key = random_key(settings["config"]["seed"])
    measurements: list[list[float]] = []
    replayed = 0
    compiled: list[Scorer] = []
    measure_seconds = 0.0

    def perform(work: Work) -> Float[np.ndarray, "row metric"]:
        nonlocal replayed, measure_seconds
        before, scorer = len(measurements), scorers[work.part]
        metrics = scorer.metrics

        def report(compiling: tuple[str, ...] = ()) -> None:
            total, done = before + len(work.rows) + work.later, len(measurements)
            new = done - replayed
            left = measure_seconds / new * (total - done) if new else None
            progress(Progress(work.round, work.rounds, done, total, left, compiling))

        taken = trace.take([row.identity for row in work.rows], metrics)
        measurements.extend(taken)
        replayed += len(taken)
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
            measure_seconds += time.perf_counter() - started
            report()
            started = time.perf_counter()
        return np.array(measurements[before:])

    outcome = _drive(strategy, perform, trace.note)
    trace.require_end()
    nonfinite = sum(not np.isfinite(row).all() for row in measurements)
    return Run(outcome, nonfinite, measure_seconds)


def search_settings(problem: Problem, preset: str, data_fingerprint: str) -> dict[str, Any]:
    """What decides the outcome of a search, and what its work directory keeps of it.

    Args:
        problem: what is searched.
        preset: name under which the configuration was chosen.
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
    """Measure rows in batches of the scorer's size, the last one filled up with empty masks.

    Args:
        scorer: measures rows of supernets.
        rows: what to measure; their rounds and repeats decide their keys.
        key: key of the search.

    Yields:
        Some of the rows and their measurements, in order.
    """
    for start in range(0, len(rows), scorer.batch_rows):
        batch = rows[start : start + scorer.batch_rows]
        nothing = batch[0]._replace(mask=np.zeros_like(batch[0].mask))
        padded = [*batch, *[nothing] * (scorer.batch_rows - len(batch))]
        keys = _keys(key, np.array([(row.round, row.repeat) for row in padded]))
        yield batch, scorer(keys, np.stack([row.mask for row in padded]))[: len(batch)]


@jax.jit
def _keys(key: Key[Array, ""], rows: Int[Array, "row 2"]) -> Key[Array, " row"]:
    """The key of each row, by its round and repeat."""
    return jax.vmap(lambda row: jax.random.fold_in(jax.random.fold_in(key, row[0]), row[1]))(rows)


def _drive(
    strategy: Generator[Any, Any, Any],
    perform: Callable[[Work], Float[np.ndarray, "row metric"]],
    note: Callable[[Sequence[Mapping[str, Any]]], None],
) -> Any:
    """Give a strategy what it asks for until it returns."""
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

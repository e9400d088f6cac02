"""The host loop of a search: rounds, trace, resume, time.

What a search measures next follows from what it has measured, and its trace holds that in order. So
a search that was killed goes on by replaying the trace, and ends as it would have ended.
"""

import platform
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypedDict, runtime_checkable

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from tenas_jax import genotype, pruning, ranking
from tenas_jax.config import SearchConfig
from tenas_jax.spaces import SearchSpace, get_space
from tenas_jax.workdir import Trace, json_numbers, open_workdir, read_json, write_json

_fold_in_each = jax.jit(jax.vmap(jax.random.fold_in, in_axes=(None, 0)))
PACKAGES = ("jax", "jaxlib", "flax", "neural-tangents", "numpy", "tenas_jax")


class Metric(NamedTuple):
    """A column of measurements: its name, and +1 where higher is better or -1 where lower is."""

    name: str
    direction: int


@runtime_checkable
class Scorer(Protocol):
    """Measures rows; what a search is driven by."""

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The columns of a measurement; equal importance is decided by the first one."""

    @property
    def batch_rows(self) -> int:
        """How many rows one call takes."""

    @property
    def compile_seconds(self) -> float:
        """Seconds that `compile` took; 0 before it was called."""

    def compile(self) -> None:
        """Prepare for calls; called once, before the first measurement."""

    def __call__(
        self, keys: Key[Array, " row"], masks: Bool[np.ndarray, "row cell edge op"]
    ) -> Float[np.ndarray, "row metric"]:
        """Measure supernets; a row's result depends on its own key and mask only."""


class Row(NamedTuple):
    """One measurement: its repeat, the operators kept, and what the trace calls it."""

    repeat: int
    mask: Bool[np.ndarray, "cell edge op"]
    identity: dict[str, Any]


class Progress(NamedTuple):
    """How far a search is: the round from 0, the measurements of all rounds, the time they need."""

    round: int
    rounds: int
    done: int
    total: int
    seconds_left: float | None


class Result(TypedDict):
    """What `result.json` holds; numbers that are not finite are strings."""

    preset: str
    space: str
    seed: int
    data: str
    genotype: str
    rounds: list[dict[str, Any]]
    evaluations: int
    nonfinite: int
    seconds: dict[str, float]
    device: str
    versions: dict[str, str]


def run_search(
    config: SearchConfig,
    scorer: Scorer,
    workdir: Path,
    *,
    preset: str,
    data_fingerprint: str,
    device: str,
    resume: bool = False,
    progress: Callable[[Progress], None] = lambda _: None,
) -> Result:
    """Search for an architecture, in a way that goes on after any interruption.

    In the work directory `config.json` says what is searched, `trace.jsonl` grows by a line per
    measurement, and `result.json` is written at the end. A finished search that is resumed measures
    nothing.

    Args:
        config: what is searched.
        scorer: measures rows of supernets.
        workdir: where the files are; made if there is none.
        preset: name under which the configuration was chosen.
        data_fingerprint: hash of the images, which a resumed search must share.
        device: description of the devices, for the result.
        resume: go on with the search in the work directory.
        progress: called after compilation, with every round and after every batch.

    Returns:
        The result. Its `seconds` are those of the process that finished the search, not of
            interrupted ones before it; `evaluations` are candidates, each measured in every repeat.

    Raises:
        InputError: the work directory holds another search, holds one and `resume` is false, holds
            none and it is true, or cannot be written.
    """
    started = time.perf_counter()
    open_workdir(workdir, search_settings(config, preset, data_fingerprint), resume=resume)
    finished = workdir / "result.json"
    if finished.exists():
        stored: Result = read_json(finished)
        return stored

    space = get_space(config.space)
    counts = evaluations_per_round(space, config.prune_number)
    rows_per_round = [config.repeats * (1 + count) for count in counts]
    trace = Trace(workdir / "trace.jsonl", [metric.name for metric in scorer.metrics])
    rounds: list[dict[str, Any]] = []
    nonfinite = 0
    scorer.compile()
    compiled = time.perf_counter()

    def report(done_in_round: int) -> None:
        index, total = len(rounds), sum(rows_per_round)
        done = sum(rows_per_round[:index]) + done_in_round
        measured = done - trace.recorded
        seconds = time.perf_counter() - compiled
        left = seconds / measured * (total - done) if measured > 0 else None
        progress(Progress(index, len(rows_per_round), done, total, left))

    state = pruning.init(space)
    while not pruning.done(space, state):
        candidates = pruning.candidates(space, state)
        rows = round_rows(space, state, candidates, config.repeats)
        values = trace.take([row.identity for row in rows])
        report(len(values))
        round_key = jax.random.fold_in(jax.random.key(config.seed), state.round)
        for batch, measured in measure(scorer, rows[len(values) :], round_key):
            trace.append([row.identity for row in batch], measured)
            values += measured.tolist()
            report(len(values))
        nonfinite += int((~np.isfinite(values)).any(axis=1).sum())
        state, entry = _decide(config, space, state, candidates, scorer.metrics, np.array(values))
        rounds.append(entry)
    trace.require_end()

    result = Result(
        preset=preset,
        space=config.space,
        seed=config.seed,
        data=config.data,
        genotype=genotype.to_string(space, state.mask),
        rounds=rounds,
        evaluations=sum(len(entry["candidates"]) for entry in rounds),
        nonfinite=nonfinite,
        seconds={
            "total": time.perf_counter() - started,
            "compile": scorer.compile_seconds,
            "measure": time.perf_counter() - compiled,
        },
        device=device,
        versions=_versions(),
    )
    write_json(finished, result)
    return result


def search_settings(config: SearchConfig, preset: str, data_fingerprint: str) -> dict[str, Any]:
    """What decides the outcome of a search, and what its work directory keeps of it.

    Args:
        config: what is searched.
        preset: name under which the configuration was chosen.
        data_fingerprint: hash of the images.

    Returns:
        The JSON values of `config.json`.
    """
    return {"preset": preset, "data_fingerprint": data_fingerprint, "config": config.to_dict()}


def evaluations_per_round(space: SearchSpace, prune_number: int) -> list[int]:
    """How many candidates each round measures, which does not depend on what is measured.

    Args:
        space: the search space.
        prune_number: operators pruned per edge and round.

    Returns:
        Candidates, one number per round.

    Example:
        >>> from tenas_jax.spaces import NAS_BENCH_201
        >>> evaluations_per_round(NAS_BENCH_201, prune_number=1)
        [24, 18, 12]
    """
    state, counts = pruning.init(space), []
    while not pruning.done(space, state):
        candidates = pruning.candidates(space, state)
        groups = pruning.groups(space, state, prune_number)
        state, _ = pruning.prune_step(state, candidates, np.arange(len(candidates)), groups)
        counts.append(len(candidates))
    return counts


def round_rows(
    space: SearchSpace,
    state: pruning.PruneState,
    candidates: Int[np.ndarray, "candidate 3"],
    repeats: int,
) -> list[Row]:
    """The measurements of a round in order: for each repeat the supernet, then the candidates.

    Args:
        space: the search space.
        state: the state before the round.
        candidates: (cell, edge, op) of the operators that may be pruned.
        repeats: draws of weights and images.

    Returns:
        repeats * (1 + candidates) rows.

    Example:
        >>> from tenas_jax.spaces import NAS_BENCH_201
        >>> state = pruning.init(NAS_BENCH_201)
        >>> rows = round_rows(NAS_BENCH_201, state, np.array([[0, 5, 1]]), repeats=1)
        >>> [row.identity["op"] for row in rows]
        [None, 'skip_connect']
    """
    nothing = {"cell": None, "edge": None, "op": None}
    supernets = [(state.mask, nothing)] + [
        (pruning.without(state.mask, candidate[None]), _place(space, candidate))
        for candidate in candidates
    ]
    return [
        Row(repeat, mask, {"round": state.round, "repeat": repeat, **place})
        for repeat in range(repeats)
        for mask, place in supernets
    ]


def measure(
    scorer: Scorer, rows: Sequence[Row], round_key: Key[Array, ""]
) -> Iterator[tuple[Sequence[Row], Float[np.ndarray, "row metric"]]]:
    """Measure rows in batches of the scorer's size, the last one filled up with its first row.

    Common random numbers: a row's key is that of its repeat, whatever is pruned in it.

    Args:
        scorer: measures rows of supernets.
        rows: what to measure.
        round_key: key of the round.

    Yields:
        Some of the rows and their measurements, in order.
    """
    for start in range(0, len(rows), scorer.batch_rows):
        batch = rows[start : start + scorer.batch_rows]
        padded = [*batch, *[batch[0]] * (scorer.batch_rows - len(batch))]
        keys = _fold_in_each(round_key, np.array([row.repeat for row in padded]))
        yield batch, scorer(keys, np.stack([row.mask for row in padded]))[: len(batch)]


def _decide(
    config: SearchConfig,
    space: SearchSpace,
    state: pruning.PruneState,
    candidates: Int[np.ndarray, "candidate 3"],
    metrics: tuple[Metric, ...],
    values: Float[np.ndarray, "row metric"],
) -> tuple[pruning.PruneState, dict[str, Any]]:
    """Prune by the measurements of a round; the next state, and the round's entry in the result."""
    directions = {metric.name: metric.direction for metric in metrics}
    by_repeat = values.reshape(config.repeats, 1 + len(candidates), len(metrics))
    supernet, pruned = by_repeat[:, 0].T, by_repeat[:, 1:].transpose(1, 2, 0)
    changes = ranking.relative_differences(supernet, pruned, decimals=config.decimals)
    importance = ranking.importance(changes, directions, config.combination)
    order = ranking.pruning_order(changes, directions, config.combination)
    groups = pruning.groups(space, state, config.prune_number)
    next_state, info = pruning.prune_step(state, candidates, order, groups)

    def named(numbers: Float[np.ndarray, " metric"]) -> dict[str, float | str]:
        return dict(zip(directions, json_numbers(numbers), strict=True))

    return next_state, {
        "round": state.round,
        "mask": state.mask.tolist(),
        "metrics": named(supernet.mean(axis=-1)),
        "candidates": [
            {**_place(space, candidate), "differences": named(change), "importance": int(rank)}
            for candidate, change, rank in zip(candidates, changes, importance, strict=True)
        ],
        "pruned": [_place(space, candidate) for candidate in info.pruned],
    }


def _versions() -> dict[str, str]:
    packages = {name: metadata.version(name) for name in PACKAGES}
    return {**packages, "python": platform.python_version()}


def _place(space: SearchSpace, candidate: Int[np.ndarray, "3"]) -> dict[str, Any]:
    cell, edge, op = candidate
    return {"cell": space.cell_types[cell], "edge": int(edge), "op": space.ops[op]}

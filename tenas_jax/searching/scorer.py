"""Measures rows `(key, mask)`: connects networks and metrics to the search.

A row is one supernet or candidate with one draw of weights and images. Rows with the same key share
the draw (common random numbers), whatever their masks.
"""

import copy
import dataclasses
import math
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Key

from tenas_jax.architectures.space import Masks, SearchSpace
from tenas_jax.data.images import ImageSet
from tenas_jax.errors import InputError, first_line, quantity
from tenas_jax.host.devices import compiler_options
from tenas_jax.host.memory import is_out_of_memory
from tenas_jax.host.processes import LostProcess, exchange, gather, is_main, place, shared_errors
from tenas_jax.host.programs import traced
from tenas_jax.metrics.registry import REGIONS, Metric, programs
from tenas_jax.networks.backends import rows_per_call
from tenas_jax.numerics import random_key
from tenas_jax.searching.measurement import Images, cotangents, make_measure
from tenas_jax.searching.planning import Need, fewer_cotangents, largest_batch, memory_need
from tenas_jax.searching.problem import Problem


class SupernetScorer:
    """The scorer of a search: measures rows on all devices, with one compilation.

    Metrics that share no intermediate results have separate programs, compiled two at a time. A
    program that does not fit into a device's memory is compiled again with fewer cotangents per
    pass; a program that runs out of memory is compiled again once.

    Args:
        problem: what is measured.
        images: all images.
        devices: the devices, which share the rows.
        single_path: every mask keeps at most one operator per edge.
    """

    def __init__(
        self,
        problem: Problem,
        images: ImageSet,
        devices: Sequence[jax.Device],
        *,
        single_path: bool = False,
    ) -> None:
        self.space = problem.space
        self.metrics = problem.metrics
        self.batch_rows = len(devices) * rows_per_call(single_path=single_path)
        self.compile_seconds = 0.0
        self.plan: dict[str, int] = {}  # cotangents per pass of each program limited by memory
        self._problem, self._single_path = problem, single_path
        self._mesh = Mesh(np.array(devices), ("row",))
        everywhere = NamedSharding(self._mesh, PartitionSpec())
        placed = Images.of(images, lambda array: place(array, everywhere))
        # A plain tuple: JAX does not cache programs of other tuple types.
        self._images = tuple(each for each in placed if each is not None)
        self._row_sharding = NamedSharding(self._mesh, _ROWS)
        self._groups = programs([metric for metric in self.metrics if metric.count is None])
        self._compiling: list[Future[jax.stages.Compiled | None]] = []
        self._programs: list[jax.stages.Compiled] = []
        self._was_exhausted = False

    def parts(self) -> list["SupernetScorer"]:
        """One scorer per program, in the order of compile time; counts come first."""
        counted = tuple(metric for metric in self.metrics if metric.count is not None)
        parts = []
        for metrics in [counted] * bool(counted) + self._groups:
            part = copy.copy(self)
            part.metrics, part._groups = metrics, [] if metrics is counted else [metrics]
            part._compiling, part._programs = [], []
            parts.append(part)
        return parts

    def lower(self) -> Iterator[jax.stages.Lowered]:
        """The programs, traced but not compiled."""
        return map(self._lower, self._groups)

    def begin(self) -> None:
        """Trace the programs, and compile them in the background."""
        if not self._compiling:
            start = time.perf_counter()
            self._compiling = [_COMPILERS.submit(self._compiled, each) for each in self.lower()]
            self.compile_seconds += time.perf_counter() - start

    def compile(self) -> None:
        """Compile for the only shape.

        Raises:
            InputError: a batch does not fit into memory; the message says which size fits.
        """
        if not self._programs:
            self.begin()
            start = time.perf_counter()
            compiled = zip(self._groups, self._compiling, strict=True)
            self._programs = [self._fitting(group, each.result()) for group, each in compiled]
            self.compile_seconds += time.perf_counter() - start

    def __call__(
        self, keys: Key[Array, " row"], masks: Bool[np.ndarray, "row cell edge op"]
    ) -> Float[np.ndarray, "row metric"]:
        """Measure `batch_rows` rows.

        Args:
            keys: keys of the weights and images of each row.
            masks: the operators kept; empty rows are not measured.

        Returns:
            A column for each of `metrics`, float64 [row, metric].

        Raises:
            InputError: there is not enough memory, even for smaller passes.
        """
        devices, order = self._mesh.size, np.arange(self.batch_rows)
        if 1 < devices < self.batch_rows:
            order = balanced(work(self.space, masks), devices)
        placed = self._placed(keys[order], masks[order])
        columns: dict[str, np.ndarray] = {}
        for group, result in zip(self._groups, self._run(placed), strict=True):
            measured = gather(result)
            table = np.empty((self.batch_rows, len(group)), measured.dtype)
            table[order] = measured.reshape(table.shape)
            columns |= {metric.name: column for metric, column in zip(group, table.T, strict=True)}
        for metric in self.metrics:
            if metric.count is not None:
                columns[metric.name] = np.asarray(metric.count(self.space, masks))
        return np.stack([columns[metric.name] for metric in self.metrics], 1).astype(np.float64)

    def _run(self, placed: tuple[Array, Array]) -> list[Array]:
        """Run each program; if one runs out of memory, run it once more with smaller passes."""
        while True:
            results: list[Array] = []
            exhausted = ""
            try:
                results += (program(*placed, self._images) for program in self._programs)
                jax.block_until_ready(results)
            except jax.errors.JaxRuntimeError as error:
                if not is_out_of_memory(error):
                    if jax.process_count() > 1:
                        raise LostProcess from error
                    raise
                exhausted = first_line(error)
            # In lockstep: all processes run the same programs.
            errors = list(filter(None, exchange(exhausted)))
            if not errors:
                return results
            with shared_errors():
                self._halve_passes(errors[0])

    def _halve_passes(self, error: str) -> None:
        """Compile the largest program with half of the cotangents per pass."""
        needs = [memory_need(program, self._devices) for program in self._programs]
        index = max(range(len(needs)), key=lambda i: needs[i].needed)
        group = self._groups[index]
        before = self._cotangents(group)
        after = fewer_cotangents(self._problem.config.ntk.batch_size, before)
        program: jax.stages.Compiled | None = self._programs[index]
        if not self._was_exhausted and after < before:
            program = self._compiled(self._lower(group, after))
        if memory_need(program, self._devices).needed >= needs[index].needed:
            raise InputError(
                f"out of memory ({error}): free the device and continue with --resume, "
                f"or start again with {_group_of_fields(group)}.batch_size below "
                f"{self._batch_size(group)}"
            )
        assert program is not None
        self._was_exhausted = True
        self._programs[index] = program
        self.plan[_name(group)] = after
        _say(
            f"out of memory: {_name(group)} continues with {after} cotangents at once, not {before}"
        )

    def _fitting(
        self, group: Sequence[Metric], program: jax.stages.Compiled | None
    ) -> jax.stages.Compiled:
        """The program, or one with smaller passes if it does not fit into memory."""
        need = first = memory_need(program, self._devices)
        most = chunk = self._cotangents(group)
        images = self._problem.config.ntk.batch_size
        while not need.fits:
            fewer, smaller = fewer_cotangents(images, chunk, need.share), need
            if fewer < chunk:
                program = self._compiled(self._lower(group, fewer))
                smaller = memory_need(program, self._devices)
            if fewer == chunk or need.needed <= smaller.needed < math.inf:
                with shared_errors():
                    raise self._too_large(group, need)
            chunk, need = fewer, smaller
        if chunk < most:
            self.plan[_name(group)] = chunk
            _say(f"{_name(group)}: {chunk} cotangents at once, as {most} take {first}")
        assert program is not None
        return program

    def _too_large(self, group: Sequence[Metric], need: Need) -> InputError:
        """The error that a batch does not fit, with a size that does."""
        field, size = f"{_group_of_fields(group)}.batch_size", self._batch_size(group)

        def need_of(size: int) -> Need:
            lowered = self._lower(group, 1, batch_size=size)
            return memory_need(self._compiled(lowered), self._devices)

        largest = largest_batch(need_of, size, need)
        remedy = "use smaller images or networks" if largest is None else f"use {largest} or less"
        return InputError(f"{field} {size}: {_name(group)} takes {need}: {remedy}")

    def _cotangents(self, group: Sequence[Metric]) -> int:
        chunk = cotangents(self._problem, single_path=self._single_path)
        return min(self.plan.get(_name(group), chunk), self._problem.config.ntk.batch_size)

    def _batch_size(self, group: Sequence[Metric]) -> int:
        size: int = getattr(self._problem.config, _group_of_fields(group)).batch_size
        return size

    def _variant(
        self, group: Sequence[Metric], chunk: int | None, batch_size: int | None
    ) -> Problem:
        """The problem with other numbers of cotangents per pass and of images."""
        chunk = self.plan.get(_name(group)) if chunk is None else chunk
        if chunk is None and batch_size is None:
            return self._problem
        config = self._problem.config
        changes = {"ntk": {"chunk_size": chunk}, "regions": {}}
        if batch_size is not None:
            changes[_group_of_fields(group)]["batch_size"] = batch_size
        fields = {
            name: dataclasses.replace(getattr(config, name), **values)
            for name, values in changes.items()
        }
        return dataclasses.replace(self._problem, config=dataclasses.replace(config, **fields))

    @property
    def _devices(self) -> list[jax.Device]:
        return list(self._mesh.devices.flat)

    def _compiled(self, lowered: jax.stages.Lowered) -> jax.stages.Compiled | None:
        """A program; None if the compiler refuses it for lack of memory."""
        try:
            return lowered.compile(compiler_options(self._devices[0].platform))
        except jax.errors.JaxRuntimeError as error:
            if is_out_of_memory(error):
                return None
            raise

    def _lower(
        self,
        group: Sequence[Metric],
        chunk: int | None = None,
        *,
        batch_size: int | None = None,
    ) -> jax.stages.Lowered:
        """Trace the program that measures a group of metrics.

        Args:
            group: the metrics.
            chunk: cotangents per pass of the kernel; None: from the plan.
            batch_size: batch size of these metrics; None: from the configuration.
        """
        problem = self._variant(group, chunk, batch_size)
        measure = make_measure(problem, single_path=self._single_path)
        dtype = jnp.result_type(float)

        def measure_rows(
            keys: Array, masks: Array, images: tuple[Array, ...]
        ) -> Float[Array, "row 1 metric"]:
            def measured(key: Array, mask: Array) -> Float[Array, "metric"]:
                metrics = measure(group, key, mask, Images(*images))
                return jnp.array([metrics[metric.name] for metric in group], dtype)

            def unmeasured(key: Array, mask: Array) -> Float[Array, "metric"]:
                return jnp.zeros(len(group), dtype)

            # Sequentially, so that a row's result cannot depend on its neighbors and `lax.cond`
            # skips its pruned operators.
            table: Array = jax.lax.map(
                lambda row: jax.lax.cond(row[1].any(), measured, unmeasured, *row),
                (keys[:, 0], masks[:, 0]),
            )
            return table[:, None]

        function = jax.jit(
            jax.shard_map(
                measure_rows,
                mesh=self._mesh,
                in_specs=(_ROWS, _ROWS, PartitionSpec()),
                out_specs=_ROWS,
                check_vma=False,
            )
        )
        keys = jax.random.split(random_key(0), self.batch_rows)
        masks = np.zeros((self.batch_rows, *self.space.shape), bool)
        arguments = (*self._placed(keys, masks), self._images)
        identity = _identity(problem, self._single_path)
        identity = identity and repr((identity, [metric.name for metric in group]))
        return jax.jit(traced(function, identity, *arguments).call).lower(*arguments)

    def _placed(self, keys: Array, masks: np.ndarray) -> tuple[Array, Array]:
        # Row i goes to device i % devices.
        shape = (-1, self._mesh.size)
        return (
            place(keys.reshape(shape), self._row_sharding),
            place(masks.reshape(*shape, *self.space.shape), self._row_sharding),
        )


_ROWS = PartitionSpec(None, "row")
_COMPILERS = ThreadPoolExecutor(2, "compiler")  # more need memory without being faster


def _name(group: Sequence[Metric]) -> str:
    """The name of a program in a plan."""
    return ",".join(metric.name for metric in group)


def _group_of_fields(group: Sequence[Metric]) -> str:
    """The fields of the configuration with the batch size of some metrics."""
    return "regions" if all(metric.name == REGIONS.name for metric in group) else "ntk"


def _say(text: str) -> None:
    if is_main():
        print(f"tenas: {text}", file=sys.stderr)


def work(space: SearchSpace, masks: Masks) -> Int[np.ndarray, " row"]:
    """FLOPs of the operators that lie on a path, used to balance rows over devices.

    Args:
        space: the search space.
        masks: the operators kept.

    Returns:
        FLOPs of the discrete networks; those of other networks of the same cells grow with them.
    """
    flops: np.ndarray = space.costs(np.stack([space.on_paths(mask) for mask in masks])).flops
    return flops


def balanced(work: Int[np.ndarray, " row"], devices: int) -> Int[np.ndarray, " row"]:
    """An order of rows that gives each device equally many rows and about the same work.

    Args:
        work: work of each row.
        devices: number of devices; row i of the order goes to device i % devices.

    Returns:
        The order; greedily, the next largest row goes to the device with the least work.

    Example:
        >>> balanced(np.array([1, 9, 2, 8, 3, 3]), 2).tolist()
        [1, 3, 5, 4, 0, 2]
    """
    rows: list[list[int]] = [[] for _ in range(devices)]
    capacity = len(work) // devices
    for row in np.argsort(-work, kind="stable"):
        free = [own for own in rows if len(own) < capacity]
        min(free, key=lambda own: work[own].sum()).append(int(row))
    return np.array(rows).T.reshape(-1)


def make_scorer(
    problem: Problem,
    image_set: ImageSet,
    devices: Sequence[jax.Device],
    *,
    single_path: bool = False,
) -> SupernetScorer:
    """Make the scorer of a search.

    Args:
        problem: what is measured.
        image_set: the images.
        devices: the devices, which share the rows.
        single_path: every mask keeps at most one operator per edge; a third of the work in spaces
            that have a network for it.

    Returns:
        A scorer, not yet compiled.

    Raises:
        InputError: the images have labels of classes that the network lacks.
    """
    single_path = single_path and problem.space.has_single_paths
    classes = problem.config.num_classes
    if problem.config.labels == "own" and image_set.labels is not None:
        last = int(image_set.labels.max())
        if last >= classes:
            raise InputError(
                f"{image_set.name} has the label {last}, the network "
                f"{quantity(classes, 'class')}, from 0: use num_classes {last + 1}"
            )
    return SupernetScorer(problem, image_set, devices, single_path=single_path)


def _identity(problem: Problem, single_path: bool) -> str | None:
    """Everything the program depends on; None if unknown, as for objects given directly."""
    sources = problem.sources
    if sources is None or not problem.is_named:
        return None
    unseeded = dataclasses.replace(problem.config, seed=0)  # not part of the program
    return repr((unseeded, sources, single_path))

"""Measures rows `(key, mask)`: the bridge from networks and metrics to the search.

A row is one supernet or candidate with one draw of weights and images. Rows with the same key share
that draw (common random numbers), whatever their masks.
"""

import copy
import dataclasses
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
from tenas_jax.errors import InputError
from tenas_jax.host.devices import compiler_options
from tenas_jax.host.processes import gather, place
from tenas_jax.host.programs import traced
from tenas_jax.metrics.registry import Metric, programs
from tenas_jax.networks.backends import rows_per_call
from tenas_jax.numerics import random_key
from tenas_jax.searching.measurement import Images, Measure, make_measure
from tenas_jax.searching.problem import Problem


class SupernetScorer:
    """Measures rows on all devices, with one compilation; the scorer of a search.

    Metrics that share nothing are measured by programs of their own, which are compiled two at a
    time.

    Args:
        measure: measures one row.
        metrics: what a row is measured by, in the order of the columns.
        space: the search space.
        images: all images.
        devices: rows are shared among them.
        rows_per_device: rows that a device measures in one call, one after the other.
        identity: what `measure` depends on, besides the metrics and images (see
            `tenas_jax.host.programs.traced`); None: unknown, so that its programs are not kept.
    """

    def __init__(
        self,
        measure: Measure,
        metrics: Sequence[Metric],
        space: SearchSpace,
        images: ImageSet,
        devices: Sequence[jax.Device],
        rows_per_device: int = 1,
        *,
        identity: str | None,
    ) -> None:
        self.space = space
        self.metrics = tuple(metrics)
        self.batch_rows = len(devices) * rows_per_device
        self.compile_seconds = 0.0
        self._measure, self._identity = measure, identity
        self._mesh = Mesh(np.array(devices), ("row",))
        everywhere = NamedSharding(self._mesh, PartitionSpec())
        placed = Images.of(images, lambda array: place(array, everywhere))
        # A plain tuple, as JAX keeps programs of no other.
        self._images = tuple(each for each in placed if each is not None)
        self._row_sharding = NamedSharding(self._mesh, _ROWS)
        self._groups = programs([metric for metric in metrics if metric.count is None])
        self._compiling: list[Future[jax.stages.Compiled]] = []
        self._programs: list[jax.stages.Compiled] = []

    def parts(self) -> list["SupernetScorer"]:
        """A scorer for each program, those first that compile sooner; counts come before all."""
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
        options = compiler_options(self._mesh.devices.flat[0].platform)
        if not self._compiling:
            self._compiling = [_COMPILERS.submit(each.compile, options) for each in self.lower()]

    def compile(self) -> None:
        """Compile for the one shape there is; `compile_seconds` tells how long it took."""
        if not self._programs:
            start = time.perf_counter()
            self.begin()
            self._programs = [program.result() for program in self._compiling]
            self.compile_seconds = time.perf_counter() - start

    def __call__(
        self, keys: Key[Array, " row"], masks: Bool[np.ndarray, "row cell edge op"]
    ) -> Float[np.ndarray, "row metric"]:
        """Measure `batch_rows` rows.

        Args:
            keys: of the weights and images of each row.
            masks: the operators kept; a row that keeps none is not measured.

        Returns:
            A column for each of `metrics`, float64 [row, metric].
        """
        devices, order = self._mesh.size, np.arange(self.batch_rows)
        if 1 < devices < self.batch_rows:
            order = balanced(work(self.space, masks), devices)
        placed = self._placed(keys[order], masks[order])
        columns: dict[str, np.ndarray] = {}
        results = [program(*placed, self._images) for program in self._programs]
        for group, result in zip(self._groups, results, strict=True):
            measured = gather(result)
            table = np.empty((self.batch_rows, len(group)), measured.dtype)
            table[order] = measured.reshape(table.shape)
            columns |= {metric.name: column for metric, column in zip(group, table.T, strict=True)}
        for metric in self.metrics:
            if metric.count is not None:
                columns[metric.name] = np.asarray(metric.count(self.space, masks))
        return np.stack([columns[metric.name] for metric in self.metrics], 1).astype(np.float64)

    def _lower(self, group: Sequence[Metric]) -> jax.stages.Lowered:
        """The program that measures some metrics, traced."""
        dtype = jnp.result_type(float)

        def measure_rows(
            keys: Array, masks: Array, images: tuple[Array, ...]
        ) -> Float[Array, "row 1 metric"]:
            def measured(key: Array, mask: Array) -> Float[Array, "metric"]:
                metrics = self._measure(group, key, mask, Images(*images))
                return jnp.array([metrics[metric.name] for metric in group], dtype)

            def unmeasured(key: Array, mask: Array) -> Float[Array, "metric"]:
                return jnp.zeros(len(group), dtype)

            # One row after the other: a row's result cannot depend on its neighbors, and `lax.cond`
            # skips what the row has pruned.
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
        identity = self._identity and repr((self._identity, [metric.name for metric in group]))
        return jax.jit(traced(function, identity, *arguments).call).lower(*arguments)

    def _placed(self, keys: Array, masks: np.ndarray) -> tuple[Array, Array]:
        # Row i goes to device i % devices.
        shape = (-1, self._mesh.size)
        return (
            place(keys.reshape(shape), self._row_sharding),
            place(masks.reshape(*shape, *self.space.shape), self._row_sharding),
        )


_ROWS = PartitionSpec(None, "row")
_COMPILERS = ThreadPoolExecutor(2, "compiler")  # more take memory without being quicker


def work(space: SearchSpace, masks: Masks) -> Int[np.ndarray, " row"]:
    """FLOPs of the operators that lie on a path, by which rows are shared among devices.

    Args:
        space: the search space.
        masks: the operators kept.

    Returns:
        Those of the discrete networks, which grow with those of any other of the same cells.
    """
    flops: np.ndarray = space.costs(np.stack([space.on_paths(mask) for mask in masks])).flops
    return flops


def balanced(work: Int[np.ndarray, " row"], devices: int) -> Int[np.ndarray, " row"]:
    """An order of rows that gives as many to each device, and about as much work.

    Args:
        work: of each row.
        devices: row i of the order goes to device i % devices.

    Returns:
        The rows in that order: the next largest is always for the device with the least work.

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
    """The scorer of a search.

    Args:
        problem: what is measured.
        image_set: the images.
        devices: rows are shared among them.
        single_path: promises that every mask keeps at most one operator per edge: a third of the
            work in spaces that have a network for it.

    Returns:
        A scorer, not yet compiled.

    Raises:
        InputError: the images have labels of classes that the network has not.
    """
    single_path = single_path and problem.space.has_single_paths
    classes = problem.config.num_classes
    if problem.config.labels == "own" and image_set.labels is not None:
        last = int(image_set.labels.max())
        if last >= classes:
            raise InputError(
                f"{image_set.name} has the label {last}, the network {classes} classes, from 0: "
                f"use num_classes {last + 1}"
            )
    return SupernetScorer(
        make_measure(problem, single_path=single_path),
        problem.metrics,
        problem.space,
        image_set,
        devices,
        rows_per_call(single_path=single_path),
        identity=_identity(problem, single_path),
    )


def _identity(problem: Problem, single_path: bool) -> str | None:
    """What the program depends on; None where that cannot be told, as for objects at hand."""
    sources = problem.sources
    if sources is None or not problem.is_named:
        return None
    unseeded = dataclasses.replace(problem.config, seed=0)  # which is no part of the program
    return repr((unseeded, sources, single_path))

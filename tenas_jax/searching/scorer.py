"""Measures rows `(key, mask)`: the bridge from networks and metrics to the search.

A row is one supernet or candidate with one draw of weights and images. Rows with the same key share
that draw (common random numbers), whatever their masks.
"""

import dataclasses
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

from tenas_jax.architectures.space import Masks, SearchSpace
from tenas_jax.data.images import ImageSet
from tenas_jax.host.devices import compiler_options
from tenas_jax.host.processes import gather, place
from tenas_jax.host.programs import traced
from tenas_jax.metrics.registry import Metric
from tenas_jax.searching.measurement import Measure, make_measure
from tenas_jax.searching.problem import Problem


class SupernetScorer:
    """Measures rows on all devices, with one compilation; the scorer of a search.

    Args:
        measure: measures one row.
        metrics: what a row is measured by, in the order of the columns.
        space: the search space.
        images: all images, uint8 [n, h, w, channels].
        devices: rows are shared among them.
        rows_per_device: rows that a device measures in one call, one after the other.
        identity: what `measure` depends on, besides the images (see
            `tenas_jax.host.programs.traced`); None: unknown, so that its program is not kept.
    """

    def __init__(
        self,
        measure: Measure,
        metrics: Sequence[Metric],
        space: SearchSpace,
        images: UInt8[np.ndarray, "n h w channels"],
        devices: Sequence[jax.Device],
        rows_per_device: int = 1,
        *,
        identity: str | None,
    ) -> None:
        self.space = space
        self.metrics = tuple(metrics)
        self._names = [metric.name for metric in metrics if metric.count is None]
        self.batch_rows = len(devices) * rows_per_device
        self.compile_seconds = 0.0
        self._identity = identity
        mesh = Mesh(np.array(devices), ("row",))
        self._images = place(images, NamedSharding(mesh, PartitionSpec()))
        rows = PartitionSpec(None, "row")
        self._row_sharding = NamedSharding(mesh, rows)
        dtype = jnp.result_type(float)

        def measure_rows(keys: Array, masks: Array, images: Array) -> Float[Array, "row 1 metric"]:
            def measured(key: Array, mask: Array) -> Float[Array, "metric"]:
                metrics = measure(key, mask, images)
                return jnp.array([metrics[name] for name in self._names], dtype)

            def unmeasured(key: Array, mask: Array) -> Float[Array, "metric"]:
                return jnp.zeros(len(self._names), dtype)

            # One row after the other: a row's result cannot depend on its neighbors, and `lax.cond`
            # skips what the row has pruned.
            table: Array = jax.lax.map(
                lambda row: jax.lax.cond(row[1].any(), measured, unmeasured, *row),
                (keys[:, 0], masks[:, 0]),
            )
            return table[:, None]

        self._measure: jax.stages.Wrapped | jax.stages.Compiled = jax.jit(
            jax.shard_map(
                measure_rows,
                mesh=mesh,
                in_specs=(rows, rows, PartitionSpec()),
                out_specs=rows,
                check_vma=False,
            )
        )

    def compile(self) -> None:
        """Compile for the one shape there is; `compile_seconds` tells how long it took."""
        if isinstance(self._measure, jax.stages.Compiled):
            return
        start = time.perf_counter()
        keys = jax.random.split(jax.random.key(0), self.batch_rows)
        masks = np.zeros((self.batch_rows, *self.space.shape), bool)
        arguments = (*self._placed(keys, masks), self._images)
        program = traced(self._measure, self._identity, *arguments)
        lowered = jax.jit(program.call).lower(*arguments)
        self._measure = lowered.compile(compiler_options(self._images.platform()))
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
        devices, order = self._row_sharding.mesh.size, np.arange(self.batch_rows)
        if 1 < devices < self.batch_rows:
            order = balanced(work(self.space, masks), devices)
        placed = self._placed(keys[order], masks[order])
        measured = gather(self._measure(*placed, self._images))
        table = np.empty((self.batch_rows, len(self._names)), measured.dtype)
        table[order] = measured.reshape(table.shape)
        columns = dict(zip(self._names, table.T, strict=True))
        for metric in self.metrics:
            if metric.count is not None:
                columns[metric.name] = np.asarray(metric.count(self.space, masks))
        return np.stack([columns[metric.name] for metric in self.metrics], 1).astype(np.float64)

    def _placed(self, keys: Array, masks: np.ndarray) -> tuple[Array, Array]:
        # Row i goes to device i % devices.
        shape = (-1, self._row_sharding.mesh.size)
        return (
            place(keys.reshape(shape), self._row_sharding),
            place(masks.reshape(*shape, *self.space.shape), self._row_sharding),
        )


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


def _rows_per_device(device: jax.Device, *, single_path: bool) -> int:
    """On a CPU one supernet, which takes a second; several single paths even out their times."""
    if device.platform == "cpu":
        return 8 if single_path else 1
    return 16


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
    """
    single_path = single_path and problem.space.has_single_paths
    return SupernetScorer(
        make_measure(problem, image_set, single_path=single_path),
        problem.metrics,
        problem.space,
        image_set.images,
        devices,
        _rows_per_device(devices[0], single_path=single_path),
        identity=_identity(problem, image_set, single_path),
    )


def _identity(problem: Problem, image_set: ImageSet, single_path: bool) -> str | None:
    """What the program depends on; None where that cannot be told, as for objects at hand."""
    sources = problem.sources
    if sources is None or not problem.is_named:
        return None
    unseeded = dataclasses.replace(problem.config, seed=0)  # which is no part of the program
    return repr((unseeded, sources, image_set.mean, image_set.std, single_path))

"""Checkpoints of a training with Orbax: written in the background, whole or not at all.

Orbax writes a checkpoint into a folder of another name, which it renames when everything is on the
disk. Process 0 alone writes and reads them: the state is the same in every process.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp  # type: ignore[import-untyped]
from flax.traverse_util import flatten_dict
from jax.experimental import multihost_utils
from jaxtyping import Array, PyTree, Shaped
from orbax.checkpoint.checkpoint_managers import (  # type: ignore[import-untyped]
    preservation_policy,
)

from tenas_jax.errors import InputError, first_line
from tenas_jax.host.files import file_errors
from tenas_jax.host.processes import exchange, is_main, shared_errors
from tenas_jax.training.steps import TrainState

METRIC = "test_accuracy"


class Checkpoint(NamedTuple):
    """What a checkpoint holds.

    Attributes:
        state: as it was saved, in memory of the host.
        log_bytes: length of the metrics that were written before it.
    """

    state: TrainState
    log_bytes: int


class Checkpoints:
    """The checkpoints of one training: the last ones, and the one with the highest test accuracy.

    Args:
        folder: theirs alone; made if there is none.
        about: what is trained and how, as JSON values; a checkpoint of something else is refused.
        keep_last: how many of the last to keep.
        read_only: whether nothing is to be saved.

    Raises:
        InputError: the folder cannot be used.
    """

    def __init__(
        self,
        folder: Path,
        about: Mapping[str, Any],
        *,
        keep_last: int = 1,
        read_only: bool = False,
    ) -> None:
        self._folder, self._about = folder, dict(about)
        self._manager: ocp.CheckpointManager | None = None
        if not is_main():
            return
        keep_best = preservation_policy.BestN(
            get_metric_fn=_accuracy, n=1, keep_checkpoints_without_metrics=False
        )
        options = ocp.CheckpointManagerOptions(
            best_fn=_accuracy,
            preservation_policy=preservation_policy.AnyPreservationPolicy(
                [preservation_policy.LatestN(keep_last), keep_best]
            ),
            cleanup_tmp_directories=not read_only,
            read_only=read_only,
            create=False,  # what it cannot do where some processes take no part
            multiprocessing_options=ocp.options.MultiprocessingOptions(active_processes={0}),
        )
        handlers: dict[str, ocp.CheckpointHandler] = {
            "variables": ocp.StandardCheckpointHandler(),
            "rest": ocp.StandardCheckpointHandler(),
            "notes": ocp.JsonCheckpointHandler(),
        }
        with file_errors(folder):
            if not read_only:
                folder.mkdir(parents=True, exist_ok=True)
            self._manager = ocp.CheckpointManager(
                folder.absolute(), options=options, item_handlers=handlers
            )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._manager is not None:
            with _storage_errors(self._folder):
                self._manager.close()  # after what is being written
        if kind is None:
            exchange("")  # whoever ends earlier would end process 0 before it has written

    @property
    def latest(self) -> int | None:
        """The last step with a checkpoint, if there is one."""
        return _of_main(self._manager and self._manager.latest_step())

    @property
    def best(self) -> int | None:
        """The step with the highest test accuracy, if there was an evaluation."""
        return _of_main(self._manager and self._manager.best_step())

    def save(self, state: TrainState, log_bytes: int, test_accuracy: float | None = None) -> None:
        """Start to write a checkpoint; waits only for the one before.

        Args:
            state: the same in every process.
            log_bytes: length of the metrics that were written before it.
            test_accuracy: if it was evaluated.
        """
        if self._manager is None:
            return
        state = jax.device_get(state)
        with _storage_errors(self._folder):
            self._manager.save(
                int(state.step),
                args=ocp.args.Composite(
                    variables=ocp.args.StandardSave(state.variables),
                    rest=ocp.args.StandardSave(_rest(state)),
                    notes=ocp.args.JsonSave({"about": self._about, "log_bytes": log_bytes}),
                ),
                metrics=None if test_accuracy is None else {METRIC: test_accuracy},
            )

    def restore(self, step: int, like: TrainState) -> Checkpoint:
        """Read a checkpoint.

        Args:
            step: `latest` or `best`.
            like: arrays or their shapes, of a state of the same training.

        Returns:
            The checkpoint, the same in every process.

        Raises:
            InputError: it is of another training.
        """
        like = jax.tree.map(_zeros, like)
        contents = _rest(like), like.variables, np.zeros((), np.int64)
        with shared_errors(), _storage_errors(self._folder):
            if self._manager is not None:
                notes = self._require_same(step, like.variables)
                stored = self._manager.restore(
                    step,
                    args=ocp.args.Composite(
                        variables=ocp.args.StandardRestore(like.variables),
                        rest=ocp.args.StandardRestore(_rest(like)),
                    ),
                )
                contents = stored["rest"], stored["variables"], np.array(notes["log_bytes"])
        rest, variables, log_bytes = multihost_utils.broadcast_one_to_all(contents)
        return Checkpoint(TrainState(variables=variables, **rest), int(log_bytes))

    def variables(self, step: int, like: PyTree) -> PyTree:
        """Read parameters and running statistics alone.

        Args:
            step: `latest` or `best`.
            like: arrays or their shapes, of variables of the same network.

        Returns:
            The variables, the same in every process.

        Raises:
            InputError: they are of another training.
        """
        variables = jax.tree.map(_zeros, like)
        with shared_errors(), _storage_errors(self._folder):
            if self._manager is not None:
                self._require_same(step, variables)
                wanted = ocp.args.StandardRestore(variables)
                stored = self._manager.restore(step, args=ocp.args.Composite(variables=wanted))
                variables = stored["variables"]
        return multihost_utils.broadcast_one_to_all(variables)

    def _require_same(self, step: int, variables: PyTree) -> Mapping[str, Any]:
        """The notes of a checkpoint of this training."""
        assert self._manager is not None
        where = f"checkpoint {step} in {self._folder}"
        stored = self._manager.restore(step, args=ocp.args.Composite(notes=ocp.args.JsonRestore()))
        notes: Mapping[str, Any] = stored["notes"]
        about = notes["about"]
        names = [name for name in self._about if about.get(name) != self._about[name]]
        if names:
            raise InputError(
                f"{where} is of a training that differs in {', '.join(names)}: "
                "use the folder that it was written to"
            )
        shapes = _shapes(self._manager.item_metadata(step)["variables"].tree)
        if shapes != _shapes(variables):
            raise InputError(f"{where} is of another version of the network: train it again")
        return notes


@contextmanager
def _storage_errors(folder: Path) -> Iterator[None]:
    """What Orbax raises where files are missing, damaged or cannot be written, as a line."""
    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"a checkpoint in {folder} is damaged or cannot be written: {first_line(error)}"
        ) from error


def _zeros(like: Shaped[Array | np.ndarray, "..."] | jax.ShapeDtypeStruct) -> np.ndarray:
    return np.zeros(like.shape, like.dtype)


def _rest(state: TrainState) -> dict[str, Any]:
    return {name: value for name, value in state._asdict().items() if name != "variables"}


def _shapes(variables: PyTree) -> dict[tuple[str, ...], tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in flatten_dict(variables).items()}


def _of_main(step: int | None) -> int | None:
    text = exchange("" if step is None else str(step))[0]
    return int(text) if text else None


def _accuracy(metrics: Mapping[str, float]) -> float:
    return metrics[METRIC]

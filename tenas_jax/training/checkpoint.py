"""Checkpoints of a training with Orbax, written atomically in the background.

Orbax writes a checkpoint to a temporary folder and renames it when all files are on disk. Only
process 0 writes and reads checkpoints; the state is the same in every process.

Checksums of the files are written before the folder is renamed, and verified before the checkpoint
is read.
"""

from collections.abc import Iterator, Mapping, Sequence
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
from tenas_jax.host.sums import require_sums, write_sums
from tenas_jax.training.steps import TrainState


class Checkpoint(NamedTuple):
    """The content of a checkpoint.

    Attributes:
        state: the saved state, in host memory.
        log_bytes: length of the metrics written before it.
    """

    state: TrainState
    log_bytes: int


class Checkpoints:
    """The checkpoints of one training: the latest ones, and the one with the best test accuracy.

    Args:
        folder: a folder for checkpoints only; created if it does not exist.
        about: what is trained and how, as JSON values; checkpoints of anything else are rejected.
        keep_last: number of latest checkpoints to keep.
        read_only: whether checkpoints are only read.

    Raises:
        InputError: the folder cannot be used, or a checkpoint is damaged.
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
        self._accuracies: dict[int, float] = {}
        self._manager: ocp.CheckpointManager | None = None
        with shared_errors():
            if is_main():
                self._open(keep_last, read_only)

    def _open(self, keep_last: int, read_only: bool) -> None:
        options = ocp.CheckpointManagerOptions(
            preservation_policy=preservation_policy.AnyPreservationPolicy(
                [preservation_policy.LatestN(keep_last), _KeepBest(self._accuracies)]
            ),
            cleanup_tmp_directories=not read_only,
            read_only=read_only,
            create=False,  # Orbax cannot create it if some processes take no part
            async_options=ocp.AsyncOptions(post_finalization_callback=self._write_sums),
            multiprocessing_options=ocp.options.MultiprocessingOptions(active_processes={0}),
        )
        handlers: dict[str, ocp.CheckpointHandler] = {
            "variables": ocp.StandardCheckpointHandler(),
            "rest": ocp.StandardCheckpointHandler(),
            "notes": ocp.JsonCheckpointHandler(),
        }
        with file_errors(self._folder):
            if not read_only:
                self._folder.mkdir(parents=True, exist_ok=True)
            self._manager = ocp.CheckpointManager(
                self._folder.absolute(), options=options, item_handlers=handlers
            )
        for step in self._manager.all_steps():
            with self._reading(step):
                require_sums(self._folder / str(step))
            accuracy = self._notes(step)["test_accuracy"]
            if accuracy is not None:
                self._accuracies[step] = accuracy

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
                self._manager.close()  # waits for pending writes
        if kind is None:
            exchange("")  # a process that exits early would end process 0 before it has written

    @property
    def latest(self) -> int | None:
        """The last step with a checkpoint, or None."""
        return _of_main(self._manager and self._manager.latest_step())

    @property
    def best(self) -> int | None:
        """The step with the highest test accuracy, or None without an evaluation."""
        return _of_main(_best(self._accuracies))

    def save(self, state: TrainState, log_bytes: int, test_accuracy: float | None = None) -> None:
        """Start writing a checkpoint; waits only for the previous one.

        Args:
            state: the state, the same in every process.
            log_bytes: length of the metrics written before it.
            test_accuracy: the test accuracy, if it was evaluated.
        """
        if self._manager is None:
            return
        state = jax.device_get(state)
        step = int(state.step)
        notes = {
            "about": self._about,
            "step": step,
            "log_bytes": log_bytes,
            "test_accuracy": test_accuracy,
        }
        if test_accuracy is not None:
            self._accuracies[step] = test_accuracy
        with _storage_errors(self._folder):
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    variables=ocp.args.StandardSave(state.variables),
                    rest=ocp.args.StandardSave(_rest(state)),
                    notes=ocp.args.JsonSave(notes),
                ),
            )

    def restore(self, step: int, like: TrainState) -> Checkpoint:
        """Read a checkpoint.

        Args:
            step: `latest` or `best`.
            like: arrays or shapes of a state of the same training.

        Returns:
            The checkpoint, the same in every process.

        Raises:
            InputError: it is damaged or belongs to another training.
        """
        like = jax.tree.map(_zeros, like)
        contents = _rest(like), like.variables, np.zeros((), np.int64)
        with shared_errors():
            if self._manager is not None:
                stored = self._read(step, variables=like.variables, rest=_rest(like))
                log_bytes = np.array(self._notes(step)["log_bytes"])
                contents = stored["rest"], stored["variables"], log_bytes
        rest, variables, log_bytes = multihost_utils.broadcast_one_to_all(contents)
        return Checkpoint(TrainState(variables=variables, **rest), int(log_bytes))

    def variables(self, step: int, like: PyTree) -> PyTree:
        """Read only the parameters and running statistics.

        Args:
            step: `latest` or `best`.
            like: arrays or shapes of variables of the same network.

        Returns:
            The variables, the same in every process.

        Raises:
            InputError: they are damaged or belong to another training.
        """
        variables = jax.tree.map(_zeros, like)
        with shared_errors():
            if self._manager is not None:
                variables = self._read(step, variables=variables)["variables"]
        return multihost_utils.broadcast_one_to_all(variables)

    def _read(self, step: int, **like: PyTree) -> dict[str, PyTree]:
        """The verified items of a checkpoint of this training."""
        assert self._manager is not None
        notes = self._notes(step)
        names = [name for name in self._about if notes["about"].get(name) != self._about[name]]
        if names:
            raise InputError(
                f"checkpoint {step} in {self._folder} is of a training that differs in "
                f"{', '.join(names)}: use the folder that it was written to"
            )
        with self._reading(step):
            shapes = _shapes(self._manager.item_metadata(step)["variables"].tree)
        if shapes != _shapes(like["variables"]):
            raise InputError(
                f"checkpoint {step} in {self._folder} is of another version of the network: train "
                "it again"
            )
        wanted = {name: ocp.args.StandardRestore(tree) for name, tree in like.items()}
        with self._reading(step):
            return dict(self._manager.restore(step, args=ocp.args.Composite(**wanted)).items())

    def _notes(self, step: int) -> dict[str, Any]:
        """The metadata of a checkpoint."""
        assert self._manager is not None
        with self._reading(step):
            wanted = ocp.args.Composite(notes=ocp.args.JsonRestore())
            notes: dict[str, Any] = self._manager.restore(step, args=wanted)["notes"]
            if notes["step"] != step:
                raise ValueError(f"they are of step {notes['step']}")
        return notes

    def _write_sums(self) -> None:
        """Write the checksums of a checkpoint that is complete but not yet renamed."""
        for unfinished in self._folder.glob("*.orbax-checkpoint-tmp*"):
            # Only files of its items: Orbax still changes one of the other files, which has the
            # time of writing.
            write_sums(unfinished, [path for path in unfinished.rglob("*/*") if path.is_file()])

    @contextmanager
    def _reading(self, step: int) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # Orbax raises almost anything on damaged files
            raise InputError(
                f"checkpoint {step} in {self._folder} is damaged ({first_line(error)}): delete "
                f"{self._folder / str(step)} to continue without it"
            ) from error


class _KeepBest(preservation_policy.PreservationPolicy):  # type: ignore[misc]
    """Keep the checkpoint with the highest test accuracy."""

    def __init__(self, accuracies: Mapping[int, float]) -> None:
        self._accuracies = accuracies

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Whether to keep each checkpoint."""
        there = [checkpoint.step for checkpoint in checkpoints]
        best = _best({step: a for step, a in self._accuracies.items() if step in there})
        return [step == best for step in there]


def _best(accuracies: Mapping[int, float]) -> int | None:
    """The step of the highest accuracy; the last one of ties."""
    return max(accuracies, key=lambda step: (accuracies[step], step), default=None)


@contextmanager
def _storage_errors(folder: Path) -> Iterator[None]:
    """Turn Orbax's errors when files cannot be written into an `InputError`."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise InputError(f"cannot write a checkpoint in {folder}: {first_line(error)}") from error


def _zeros(like: Shaped[Array | np.ndarray, "..."] | jax.ShapeDtypeStruct) -> np.ndarray:
    return np.zeros(like.shape, like.dtype)


def _rest(state: TrainState) -> dict[str, Any]:
    return {name: value for name, value in state._asdict().items() if name != "variables"}


def _shapes(variables: PyTree) -> dict[tuple[str, ...], tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in flatten_dict(variables).items()}


def _of_main(step: int | None) -> int | None:
    text = exchange("" if step is None else str(step))[0]
    return int(text) if text else None

"""The host loop of a training: epochs, metrics, checkpoints, resume, time.

A step depends only on the state and the step number, so a training that was killed resumes from its
last checkpoint and ends with the same result.
"""

import dataclasses
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Int, PyTree
from tensorboardX import SummaryWriter  # type: ignore[import-untyped]

from tenas_jax.data.labeled import LabeledImages, NumPyBatch, Split, batches, epoch_order
from tenas_jax.errors import InputError
from tenas_jax.host.files import file_errors
from tenas_jax.host.journal import append_journal
from tenas_jax.host.processes import LostProcess, exchange, is_main, place, shared_errors
from tenas_jax.training.checkpoint import Checkpoints
from tenas_jax.training.folder import CHECKPOINTS, METRICS_FILE, Training, read_metrics
from tenas_jax.training.recipes import Recipe
from tenas_jax.training.steps import (
    REPLICATED,
    SPREAD,
    EvaluateStep,
    StepInfo,
    TrainState,
    TrainStep,
    initial_state,
    initial_variables,
    learning_rate,
    make_evaluate_step,
    make_mesh,
    make_network,
    make_optimizer,
    make_train_step,
    zero_totals,
)


class Schedule(NamedTuple):
    """How often to log and checkpoint.

    Attributes:
        log_every: steps between lines of metrics; each epoch also ends with one.
        checkpoint_every: steps between checkpoints; each epoch also ends with one.
        keep_last: number of latest checkpoints to keep, besides the best.
    """

    log_every: int = 50
    checkpoint_every: int = 1000
    keep_last: int = 2


class Progress(NamedTuple):
    """Training progress.

    Attributes:
        step: number of steps done, over all epochs.
        steps: total number of steps.
        images_per_second: speed in this epoch; 0 before its second step.
        epoch_record: the metrics of an epoch that has just ended.
    """

    step: int
    steps: int
    images_per_second: float
    epoch_record: Mapping[str, int | float] | None


class MetricsLog:
    """Writes the metrics of a training as lines of JSON and for TensorBoard; only in process 0.

    Args:
        folder: the folder of `metrics.jsonl` and `tensorboard`.
        training: the training of the metrics.
        size: length in bytes of the lines of the steps done; the rest of the file is cut off.
        step: number of steps done.

    Raises:
        InputError: in every process, if the lines are damaged or the files cannot be written.
    """

    def __init__(self, folder: Path, training: Training, size: int, step: int) -> None:
        self._path = folder / METRICS_FILE
        self.size = size
        with shared_errors():
            if is_main():
                self._open(folder, training, step)

    def _open(self, folder: Path, training: Training, step: int) -> None:
        with file_errors(self._path):
            self._path.touch()
            self._seal = read_metrics(self._path, training, self.size).seal
            os.truncate(self._path, self.size)
            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if is_main():
            self._board.close()

    def write(self, record: Mapping[str, int | float]) -> None:
        """Write a line; it is on disk when this returns.

        Args:
            record: finite numbers, `step` among them.

        Raises:
            InputError: it cannot be written.
        """
        if not is_main():
            return
        self._seal = append_journal(self._path, [record], self._seal)
        self.size = self._path.stat().st_size
        for name, value in record.items():
            if name != "step":
                self._board.add_scalar(name, value, record["step"])


def fit(
    training: Training,
    split: Split,
    devices: Sequence[jax.Device],
    folder: Path,
    *,
    schedule: Schedule,
    stopped: Callable[[], bool] = lambda: False,
    progress: Callable[[Progress], None] | None = None,
) -> bool:
    """Train a network, or resume a training that was interrupted.

    On CPU, a training resumed from a checkpoint with the same number of devices ends with the same
    parameters, bit for bit, as an uninterrupted one.

    Args:
        training: the architecture and its recipe.
        split: the images of the recipe.
        devices: the devices of all processes.
        folder: folder for checkpoints and metrics; only process 0 uses it.
        schedule: how often to log and checkpoint.
        stopped: whether to save the state and stop; called after each step, in a cluster at each
            line of metrics.
        progress: called after each step and each epoch.

    Returns:
        Whether the training reached its end.

    Raises:
        InputError: the network cannot be made, the folder cannot be used, or the loss is not
            finite.
        LostProcess: another process has ended.
    """
    recipe = training.recipe
    network = make_network(training.genotype, recipe)
    mesh = make_mesh(devices, recipe.batch_size)
    steps_per_epoch = split.train.count // recipe.batch_size
    optimizer = make_optimizer(recipe, steps_per_epoch)
    state, log_bytes = initial_state(initial_variables(network, recipe), optimizer), 0
    with Checkpoints(
        folder / CHECKPOINTS, training.about(), keep_last=schedule.keep_last
    ) as checkpoints:
        if (latest := checkpoints.latest) is not None:
            state, log_bytes = checkpoints.restore(latest, state)
        done = int(state.step)
        with MetricsLog(folder, training, log_bytes, done) as log:
            run = _Run(
                recipe,
                split,
                schedule,
                mesh,
                make_train_step(
                    network, recipe, optimizer, steps_per_epoch, split.normalization, mesh
                ),
                make_evaluate_step(network, recipe, split.normalization, mesh),
                learning_rate(recipe, steps_per_epoch),
                steps_per_epoch,
                checkpoints,
                log,
                stopped,
                progress,
            )
            state = on_all_devices(state, mesh)
            for epoch in range(done // steps_per_epoch, recipe.epochs):
                state, interrupted = _train_epoch(run, state, epoch)
                if interrupted:
                    return False
    return True


def evaluate(
    step: EvaluateStep, variables: PyTree, images: LabeledImages, batch_size: int, mesh: Mesh
) -> dict[str, int | float]:
    """Loss and accuracy on all images.

    Args:
        step: evaluates a batch.
        variables: variables of the network, on all devices.
        images: the images; their number is arbitrary.
        batch_size: number of images over all devices.
        mesh: the devices.

    Returns:
        `test_loss`, the mean cross entropy, and `test_accuracy`, the fraction classified correctly.
    """
    padded = _padded(images, batch_size)
    loss, correct = 0.0, 0
    for batch in batches(padded, np.arange(padded.count), batch_size, NamedSharding(mesh, SPREAD)):
        totals = step(variables, *batch)
        loss, correct = loss + float(totals.loss), correct + int(totals.correct)
    return {"test_loss": loss / images.count, "test_accuracy": correct / images.count}


def on_all_devices(tree: PyTree, mesh: Mesh) -> PyTree:
    """Give every device a copy of arrays that are the same in every process.

    Args:
        tree: arrays.
        mesh: the devices.

    Returns:
        The arrays on the devices.
    """
    sharding = NamedSharding(mesh, REPLICATED)
    return jax.tree.map(lambda x: place(x, sharding), jax.device_get(tree))


class _Run(NamedTuple):
    """The constants of a run."""

    recipe: Recipe
    split: Split
    schedule: Schedule
    mesh: Mesh
    train_step: TrainStep
    evaluate_step: EvaluateStep
    learning_rate: Callable[[int], Any]
    steps_per_epoch: int
    checkpoints: Checkpoints
    log: MetricsLog
    stopped: Callable[[], bool]
    progress: Callable[[Progress], None] | None

    def report(
        self, step: int, images_per_second: float, record: Mapping[str, int | float] | None
    ) -> None:
        if self.progress is not None:
            steps = self.recipe.epochs * self.steps_per_epoch
            self.progress(Progress(step, steps, images_per_second, record))

    def is_stopped(self, step: int) -> bool:
        if jax.process_count() == 1:
            return self.stopped()
        # All processes must save the same step, and agreeing on one takes time.
        agree = step % self.schedule.log_every == 0 or step % self.steps_per_epoch == 0
        return agree and any(exchange("stop" if self.stopped() else ""))


def _train_epoch(run: _Run, state: TrainState, epoch: int) -> tuple[TrainState, bool]:
    """Train the rest of an epoch; also returns whether it was interrupted."""
    recipe, schedule, per_epoch = run.recipe, run.schedule, run.steps_per_epoch
    step, end = int(state.step), (epoch + 1) * per_epoch
    order = epoch_order(run.split.train.count, seed=recipe.seed, epoch=epoch)
    rest = order[(step - epoch * per_epoch) * recipe.batch_size : per_epoch * recipe.batch_size]
    spread = NamedSharding(run.mesh, SPREAD)
    speed, previous = _Speed(recipe.batch_size), None
    for images, labels in batches(run.split.train, rest, recipe.batch_size, spread):
        state, info = run.train_step(state, images, labels)
        step += 1
        _wait(previous)  # the devices are at most one step behind
        previous = info
        run.report(step, speed.after_step(), None)
        if step % schedule.log_every == 0:
            run.log.write(_step_record(run, step, info))
        if step == end:
            continue  # its checkpoint comes after its evaluation
        interrupted = run.is_stopped(step)
        if interrupted or step % schedule.checkpoint_every == 0:
            run.checkpoints.save(state, run.log.size)
        if interrupted:
            return state, True
    record = _epoch_record(run, state, epoch, speed.images_per_second)
    run.log.write(record)
    state = state._replace(totals=on_all_devices(zero_totals(), run.mesh))
    run.checkpoints.save(state, run.log.size, record["test_accuracy"])
    run.report(step, speed.images_per_second, record)
    return state, epoch + 1 < recipe.epochs and run.is_stopped(step)


def _step_record(run: _Run, step: int, info: StepInfo) -> dict[str, int | float]:
    _wait(info)
    return {
        "step": step,
        "loss": _finite(float(info.loss), step),
        "accuracy": float(info.accuracy),
        "learning_rate": float(run.learning_rate(step - 1)),
    }


def _epoch_record(
    run: _Run, state: TrainState, epoch: int, images_per_second: float
) -> dict[str, int | float]:
    _wait(state.totals)
    step, images = int(state.step), run.steps_per_epoch * run.recipe.batch_size
    tested = evaluate(
        run.evaluate_step, state.variables, run.split.test, run.recipe.batch_size, run.mesh
    )
    return {
        "step": step,
        "epoch": epoch + 1,
        "train_loss": _finite(float(state.totals.loss), step) / images,
        "train_accuracy": int(state.totals.correct) / images,
        "test_loss": _finite(tested["test_loss"], step),
        "test_accuracy": tested["test_accuracy"],
        "images_per_second": images_per_second,
    }


class _Speed:
    """Images per second in an epoch, without the first step, which may include compilation."""

    def __init__(self, batch_size: int) -> None:
        self._batch_size, self._steps, self._start = batch_size, -1, 0.0

    def after_step(self) -> float:
        self._steps += 1
        self._start = self._start or time.perf_counter()
        return self.images_per_second

    @property
    def images_per_second(self) -> float:
        """The speed so far; 0 before the second step."""
        seconds = time.perf_counter() - self._start
        return max(self._steps, 0) * self._batch_size / seconds


def _padded(images: LabeledImages, batch_size: int) -> LabeledImages:
    """Pad to a multiple of the batch size with copies of the first image, labeled -1."""

    def take(indices: Int[np.ndarray, " n"]) -> NumPyBatch:
        real = indices < images.count
        pixels, labels = images.take(np.where(real, indices, 0))
        return pixels, np.where(real, labels, -1).astype(labels.dtype)

    count = math.ceil(images.count / batch_size) * batch_size
    return dataclasses.replace(images, count=count, take=take)


def _wait(arrays: PyTree) -> None:
    try:
        jax.block_until_ready(arrays)
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        raise LostProcess from error


def _finite(loss: float, step: int) -> float:
    if not math.isfinite(loss):
        raise InputError(f"the loss is {loss} after step {step}: use a lower --learning-rate")
    return loss

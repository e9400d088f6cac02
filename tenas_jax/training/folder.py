"""The folder of a training: configuration, metrics, checkpoints."""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jaxtyping import PyTree

from tenas_jax.data.labeled import Split
from tenas_jax.data.normalization import Normalization
from tenas_jax.errors import InputError
from tenas_jax.host.files import file_errors, is_number, read_json, write_json
from tenas_jax.host.journal import Journal, read_journal
from tenas_jax.host.locks import LOCK
from tenas_jax.host.processes import exchange, is_main, shared_errors
from tenas_jax.host.reproducibility import changes, environment
from tenas_jax.training.checkpoint import Checkpoints
from tenas_jax.training.recipes import Recipe, from_dict

CONFIG_FILE, METRICS_FILE, CHECKPOINTS = "config.json", "metrics.jsonl", "checkpoints"
# Smallest and largest valid value of each metric.
RANGES = {
    "step": (1, math.inf),
    "epoch": (1, math.inf),
    "loss": (0, math.inf),
    "accuracy": (0, 1),
    "learning_rate": (0, math.inf),
    "train_loss": (0, math.inf),
    "train_accuracy": (0, 1),
    "test_loss": (0, math.inf),
    "test_accuracy": (0, 1),
    "images_per_second": (0, math.inf),
}
OTHER_FOLDER = "train again in another --output"

Which = Literal["best", "last"]


class Training(NamedTuple):
    """The configuration of a training, as stored in its folder.

    Attributes:
        genotype: the architecture.
        recipe: the recipe.
        classes: names of the classes, in the order of the logits.
        normalization: mean and standard deviation of the images.
        fingerprints: of the training images and of the test images.
    """

    genotype: str
    recipe: Recipe
    classes: tuple[str, ...]
    normalization: Normalization
    fingerprints: tuple[str, str]

    def about(self) -> dict[str, Any]:
        """The configuration as JSON values, which are compared when resuming."""
        values = {
            "genotype": self.genotype,
            **dataclasses.asdict(self.recipe),
            **self.normalization._asdict(),
            "classes": self.classes,
            "images": self.fingerprints,
        }
        normalized: dict[str, Any] = json.loads(json.dumps(values))
        return normalized


def training_of(genotype: str, recipe: Recipe, split: Split) -> Training:
    """The configuration of a training, to be stored in its folder.

    Args:
        genotype: the architecture.
        recipe: the recipe.
        split: the images of the recipe.

    Returns:
        The training.
    """
    fingerprints = split.train.fingerprint, split.test.fingerprint
    return Training(genotype, recipe, split.train.classes, split.normalization, fingerprints)


def open_output(folder: Path, training: Training, *, resume: bool) -> None:
    """Create the folder of a training, or check that it holds this training.

    Args:
        folder: the folder, used by process 0; created if it does not exist.
        training: the training, the same in every process.
        resume: whether the folder must already hold the training.

    Raises:
        InputError: in every process, if the folder is not empty; if with `resume` it holds no
            training, another one, or one of another environment; or if processes differ.
    """
    config = {**training.about(), "environment": environment()}
    with shared_errors():
        for process, theirs in enumerate(map(json.loads, exchange(json.dumps(config)))):
            if names := _differing(theirs, config):
                raise InputError(
                    f"process {process} differs in {', '.join(names)}: give every process the "
                    "same arguments and images"
                )
        if is_main() and resume:
            if names := _differing(_read_config(folder)[1], config):
                raise InputError(
                    f"{folder} holds a training that differs in {', '.join(names)}: give the same "
                    "values or choose another --output"
                )
        elif is_main():
            with file_errors(folder):
                folder.mkdir(parents=True, exist_ok=True)
                if any(path.name != LOCK for path in folder.iterdir()):
                    raise InputError(
                        f"{folder} is not empty: continue with --resume or choose another --output"
                    )
            write_json(folder / CONFIG_FILE, config)


def load_training(folder: Path) -> Training:
    """Read the configuration of a training.

    Args:
        folder: the output folder of `tenas train`.

    Returns:
        The training.

    Raises:
        InputError: the folder holds no training, is damaged, or was written by another version.
    """
    return _read_config(folder)[0]


def _read_config(folder: Path) -> tuple[Training, dict[str, Any]]:
    """The configuration of a training, and its JSON values."""
    path = folder / CONFIG_FILE
    with file_errors(folder):
        if not path.exists():
            raise InputError(f"{folder} holds no training: name the --output of tenas train")
    config = read_json(path, remedy=OTHER_FOLDER)
    if "preset" in config:
        raise InputError(
            f"{folder} holds a search and no training: train what it has found by tenas train "
            "FOLDER, and name the --output of that"
        )
    values = {name: value for name, value in config.items() if name != "environment"}
    try:
        genotype, mean, std, classes, images = map(
            values.pop, ("genotype", "mean", "std", "classes", "images")
        )
        training = Training(
            genotype,
            from_dict(values),
            tuple(classes),
            Normalization(tuple(mean), tuple(std)),
            tuple(images),
        )
        _require_types(training)
    except (AttributeError, KeyError, TypeError, InputError):
        raise InputError(f"{path} is of another version: {OTHER_FOLDER}") from None
    return training, config


def load_variables(
    folder: Path, training: Training, like: PyTree, which: Which
) -> tuple[int, PyTree]:
    """The parameters and running statistics of a training.

    Args:
        folder: the output folder of `tenas train`.
        training: its configuration.
        like: arrays or shapes of the network's variables.
        which: the checkpoint with the highest test accuracy, or the last one.

    Returns:
        The step of the checkpoint, and its variables.

    Raises:
        InputError: there is no such checkpoint, or it belongs to another training.
    """
    path = folder / CHECKPOINTS
    if not path.is_dir():
        raise InputError(f"{folder} holds no checkpoint: the training has not come to one")
    with Checkpoints(path, training.about(), read_only=True) as checkpoints:
        step = checkpoints.best if which == "best" else checkpoints.latest
        if step is None:
            raise InputError(
                f"{path} holds no {'evaluated ' if which == 'best' else ''}checkpoint: "
                "train longer" + (" or use --checkpoint last" if which == "best" else "")
            )
        return step, checkpoints.variables(step, like)


def epoch_records(folder: Path) -> list[dict[str, int | float]]:
    """The metrics of the finished epochs of a training.

    Args:
        folder: the output folder of `tenas train`.

    Returns:
        A line of metrics for each epoch.

    Raises:
        InputError: the metrics cannot be read, are damaged, or have impossible values.
    """
    path = folder / METRICS_FILE
    records = read_metrics(path, load_training(folder)).records
    return [record for record in records if "epoch" in record]


def _require_types(training: Training) -> None:
    """Raise TypeError for values of the wrong type."""
    names = training.genotype, *training.classes, *training.fingerprints
    numbers = *training.normalization.mean, *training.normalization.std
    if not all(isinstance(name, str) for name in names):
        raise TypeError(names)
    if len(numbers) != 6 or not all(isinstance(each, float) for each in numbers):
        raise TypeError(numbers)


def read_metrics(path: Path, training: Training, size: int | None = None) -> Journal:
    """Read the lines of a metrics file.

    Args:
        path: the file.
        training: the training of the metrics.
        size: length in bytes of the lines to read; None: all.

    Raises:
        InputError: they cannot be read, are damaged, or have impossible values.
    """
    journal = read_journal(path, training.about(), size)
    remedy = f"delete the checkpoints to train again, or {OTHER_FOLDER}"
    if journal.damaged or (size is not None and journal.size != size):
        raise journal.error(path, remedy)
    for number, record in enumerate(journal.records, start=1):
        for name, value in record.items():
            least, greatest = RANGES.get(name, (-math.inf, math.inf))
            if not (is_number(value) and least <= value <= greatest):
                raise InputError(f"{path}, line {number}: {name} cannot be {value}: {remedy}")
    return journal


def _differing(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    fields = [name for name in now if name != "environment" and then.get(name) != now[name]]
    return fields + changes(then.get("environment", {}), now["environment"])

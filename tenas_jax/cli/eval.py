"""`tenas eval`: evaluate a trained network."""

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console

from tenas_jax.cli.terminal import parse
from tenas_jax.errors import InputError, quantity
from tenas_jax.host.devices import Machine, configure_jax
from tenas_jax.host.processes import is_main, shared_errors
from tenas_jax.searching.progress import say, show_count


@dataclass(frozen=True)
class EvalOptions:
    """Options of `tenas eval`."""

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    """Output folder of tenas train."""
    checkpoint: Literal["best", "last"] = "best"
    """Checkpoint: the one with the highest test accuracy, or the last one."""
    data: str | None = None
    """Labeled images of the same classes; None: the test images of the training."""
    data_dir: str | None = None
    """Where TensorFlow Datasets keeps its files; None: where the training had them."""
    batch_size: int | None = None
    """Images per step, over all devices; None: as in the training."""
    machine: Annotated[Machine, tyro.conf.arg(name="")] = field(default_factory=Machine)

    def __post_init__(self) -> None:
        if self.batch_size is not None and self.batch_size < 1:
            raise InputError(f"batch-size must be at least 1, not {self.batch_size}")


def run(argv: Sequence[str]) -> int:
    """Run `tenas eval`.

    Args:
        argv: the arguments after `eval`.

    Returns:
        Exit code: 0.

    Raises:
        InputError: the arguments, the folder or the data cannot be used.
    """
    options = parse(
        EvalOptions,
        argv,
        command="eval",
        description="Print the loss and the accuracy of a trained network.",
    )
    # Imported late, so that bad flags and --help answer at once.
    from tenas_jax.data.labeled import load_split, load_test_data
    from tenas_jax.training.folder import load_training, load_variables
    from tenas_jax.training.loop import evaluate, on_all_devices
    from tenas_jax.training.steps import (
        abstract_variables,
        make_evaluate_step,
        make_mesh,
        make_network,
    )

    logging.getLogger("absl").setLevel(logging.CRITICAL)
    training = load_training(options.folder)
    recipe = dataclasses.replace(
        training.recipe, data_dir=options.data_dir or training.recipe.data_dir
    )
    batch_size = options.batch_size or recipe.batch_size
    mesh = make_mesh(configure_jax(options.machine), batch_size)
    network = make_network(training.genotype, recipe)
    like = abstract_variables(network, recipe)
    step, variables = load_variables(options.folder, training, like, options.checkpoint)
    console = Console(quiet=not is_main())
    with shared_errors(), show_count(console, "reading images") as progress:
        if options.data is None:
            images = load_split(recipe, progress).test
        else:
            images = load_test_data(options.data, recipe, training.classes, progress)
    result = evaluate(
        make_evaluate_step(network, recipe, training.normalization, mesh),
        on_all_devices(variables, mesh),
        images,
        batch_size,
        mesh,
    )
    say(
        console,
        f"step {step}: loss {result['test_loss']:.4f}, accuracy {result['test_accuracy']:.2%} of "
        f"{quantity(images.count, 'image')}",
    )
    return 0

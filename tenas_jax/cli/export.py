"""`tenas export`: write a trained network as a program that runs without this library."""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console

from tenas_jax.cli.terminal import parse
from tenas_jax.errors import InputError
from tenas_jax.searching.progress import say

RELOAD = """\
from jax import export
network = export.deserialize(open("net.stablehlo", "rb").read())
logits = network.call(images)"""


@dataclass(frozen=True)
class ExportOptions:
    """Options of `tenas export`."""

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    """Output folder of tenas train."""
    output: Path
    """File for the program, which must not exist."""
    checkpoint: Literal["best", "last"] = "best"
    """Checkpoint: the one with the highest test accuracy, or the last one."""
    platforms: tuple[Literal["cpu", "cuda", "rocm", "tpu"], ...] = ("cpu", "cuda", "tpu")
    """Platforms that the program can run on."""


def run(argv: Sequence[str]) -> int:
    """Run `tenas export`.

    Args:
        argv: the arguments after `export`.

    Returns:
        Exit code: 0.

    Raises:
        InputError: the arguments or the folder cannot be used, or the file cannot be written.
    """
    options = parse(
        ExportOptions,
        argv,
        command="export",
        description="Write a trained network as StableHLO, with its parameters, for any number of "
        "images. It takes raw uint8 images of shape (n, size, size, 3), normalizes them itself, "
        # tyro joins lines that are not paragraphs.
        "and needs only JAX:\n\n" + RELOAD.replace("\n", "\n\n"),
    )
    # Imported late, so that bad flags and --help answer at once.
    import jax
    import jax.numpy as jnp
    from jax import export

    from tenas_jax.host.files import file_errors
    from tenas_jax.training.folder import load_training, load_variables
    from tenas_jax.training.steps import abstract_variables, inference, make_network

    if options.output.exists():
        raise InputError(f"{options.output} exists: choose another --output")
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    training = load_training(options.folder)
    network = make_network(training.genotype, training.recipe)
    like = abstract_variables(network, training.recipe)
    step, variables = load_variables(options.folder, training, like, options.checkpoint)
    program = inference(network, variables, training.recipe, training.normalization)
    size = training.recipe.read_size
    images = jax.ShapeDtypeStruct(export.symbolic_shape(f"n, {size}, {size}, 3"), jnp.uint8)
    exported = export.export(jax.jit(program), platforms=options.platforms)(images)
    unfinished = options.output.with_name(options.output.name + ".part")
    with file_errors(options.output):
        unfinished.write_bytes(exported.serialize())
        os.replace(unfinished, options.output)
    say(Console(), f"step {step} is in {options.output}: uint8 (n, {size}, {size}, 3) to logits")
    return 0

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
    """What `tenas export` is told."""

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    """What tenas train wrote."""
    output: Path
    """File for the program; it must not exist."""
    checkpoint: Literal["best", "last"] = "best"
    """The one with the highest test accuracy, or the last one."""
    platforms: tuple[Literal["cpu", "cuda", "rocm", "tpu"], ...] = ("cpu", "cuda", "tpu")
    """What the program is to run on."""


def run(argv: Sequence[str]) -> int:
    """Run `tenas export`.

    Args:
        argv: the words after `export`.

    Returns:
        Exit code: 0.

    Raises:
        InputError: the words or the folder cannot be used, or the file cannot be written.
    """
    options = parse(
        ExportOptions,
        argv,
        command="export",
        description="Write a trained network as StableHLO, with its parameters, for any number of "
        "images. It takes images as they are, uint8 of shape (n, size, size, 3), normalizes them "
        # A line of its own is a paragraph here.
        "itself, and needs nothing but JAX:\n\n" + RELOAD.replace("\n", "\n\n"),
    )
    # Bad flags and --help need not wait for what these import.
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

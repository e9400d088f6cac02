"""`tenas train`: train an architecture."""

import contextlib
import logging
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console

from tenas_jax.cli.folders import changed_fields, default_folder
from tenas_jax.cli.messages import complain, how_to_go_on
from tenas_jax.cli.signals import Explain, Signals, run_interruptibly
from tenas_jax.cli.terminal import parse
from tenas_jax.errors import InputError, quantity
from tenas_jax.host.devices import Machine, configure_jax
from tenas_jax.host.locks import locked
from tenas_jax.host.processes import is_main, shared_errors
from tenas_jax.numerics import MAX_STEPS
from tenas_jax.searching.progress import Step, say, show_count, show_steps
from tenas_jax.training.recipes import RECIPES, Recipe, get_recipe, require_fits

if TYPE_CHECKING:
    from tenas_jax.architectures.space import SearchSpace
    from tenas_jax.training.loop import Progress

DEFAULT_RECIPES = {"nas-bench-201": "nas-bench-201", "darts": "cifar10"}  # by search space


@dataclass(frozen=True)
class TrainOptions:
    """Options of `tenas train`, besides the architecture."""

    config: Annotated[Recipe, tyro.conf.arg(name="")]
    recipe: str
    """Defaults of the other flags: cifar10, cifar100, imagenet or nas-bench-201."""
    output: Path | None = None
    """Folder for checkpoints and metrics; None: tenas-runs/train-RECIPE-seedN-..., with a digest
    of the architecture and of the flags that change the recipe."""
    resume: tyro.conf.FlagCreatePairsOff[bool] = False
    """Continue the interrupted training in the output folder."""
    log_every: int = 50
    """Steps between lines of metrics; each epoch also ends with one."""
    checkpoint_every: int = 1000
    """Steps between checkpoints; each epoch also ends with one."""
    keep_last: int = 2
    """Number of latest checkpoints to keep, besides the one with the highest test accuracy."""
    machine: Annotated[Machine, tyro.conf.arg(name="")] = field(default_factory=Machine)

    def __post_init__(self) -> None:
        for name in ("log_every", "checkpoint_every", "keep_last"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}")


def run(argv: Sequence[str]) -> int:
    """Run `tenas train`.

    Args:
        argv: the arguments after `train`.

    Returns:
        Exit code: 0, or 130 or 143 after SIGINT or SIGTERM.

    Raises:
        InputError: the arguments, the data or the output folder cannot be used.
    """
    architecture, options = parse_train(argv)
    require_fits(options.config)
    # Imported late, so that bad flags and --help answer at once.
    from tenas_jax.spaces.registry import load_genotype

    space, mask = load_genotype(architecture)
    genotype = space.to_string(mask)
    changes = {"genotype": genotype, **changed_fields(options.config, get_recipe(options.recipe))}
    output = options.output or default_folder(
        f"train-{options.recipe}", options.config.seed, changes
    )

    def explain() -> str:
        return how_to_go_on("train", argv, resume=(output / "config.json").exists())

    return run_interruptibly(
        lambda signals: _train(space, genotype, options, output, signals, explain), explain
    )


def parse_train(argv: Sequence[str]) -> tuple[str, TrainOptions]:
    """Parse the arguments after `tenas train`.

    Args:
        argv: an architecture, then flags, whose defaults are the recipe's values.

    Returns:
        The architecture as given by the user, and the options.

    Raises:
        InputError: the arguments are invalid.

    Example:
        >>> _, options = parse_train(["|none~0|", "--recipe", "nas-bench-201", "--epochs", "12"])
        >>> options.config.epochs, options.config.batch_size
        (12, 256)
    """
    named = bool(argv) and not argv[0].startswith("-")
    words = argv[1:] if named else argv
    recipe = _named_recipe(words) or _default_recipe(argv[0] if named else None)
    options = parse(
        TrainOptions,
        words,
        command="train",
        usage="GENOTYPE|WORKDIR",
        description="Train a genotype, or the result of the search in a work directory. Flags "
        f"default to the values of the recipe, one of {', '.join(RECIPES)}; the default is the "
        "recipe of the architecture's space for CIFAR-10. --resume continues an interrupted "
        "training; on a CPU it ends with the same parameters, bit for bit, as without the "
        "interruption.",
        default=TrainOptions(get_recipe(recipe), recipe),
    )
    if not named:
        raise InputError("name what to train: tenas train GENOTYPE|WORKDIR, then the flags")
    if options.recipe != recipe:
        raise InputError(f"--recipe is {recipe} and {options.recipe}: give it once")
    return argv[0], options


def _named_recipe(words: Sequence[str]) -> str | None:
    """The recipe given by `--recipe`, which sets the defaults of the other flags."""
    for word, following in pairwise([*words, ""]):
        name, equals, value = word.partition("=")
        if name == "--recipe":
            return value if equals else following
    return None


def _default_recipe(architecture: str | None) -> str:
    if architecture is None:
        return DEFAULT_RECIPES["darts"]
    from tenas_jax.spaces.registry import load_genotype

    space, _ = load_genotype(architecture)
    if space.name not in DEFAULT_RECIPES:
        raise InputError(f"no recipe is for {space.name}: give one by --recipe")
    return DEFAULT_RECIPES[space.name]


@contextlib.contextmanager
def show_progress(console: Console) -> "Iterator[Callable[[Progress], None]]":
    """A line for each epoch, and how far the training is; see `show_steps`.

    Args:
        console: the console.

    Yields:
        A callback for `fit`.
    """
    with show_steps(console) as show:
        show(Step("compiling"))
        first: tuple[int, float] | None = None  # step done, and when

        def update(progress: "Progress") -> None:
            nonlocal first
            now = time.monotonic()
            first = first or (progress.step, now)
            new, left = progress.step - first[0], None
            if new:
                left = (now - first[1]) / new * (progress.steps - progress.step)
            speed = f"{progress.images_per_second:.0f} images/s"
            show(Step("training", progress.step, progress.steps, "step", left, rate=f"at {speed}"))
            if progress.epoch_record is not None:
                record = progress.epoch_record
                say(
                    console,
                    f"epoch {record['epoch']}: loss {record['train_loss']:.4f}, accuracy "
                    f"{record['train_accuracy']:.2%}, test loss {record['test_loss']:.4f}, test "
                    f"accuracy {record['test_accuracy']:.2%}, {speed}",
                )

        yield update


def _train(
    space: "SearchSpace",
    genotype: str,
    options: TrainOptions,
    output: Path,
    signals: Signals,
    explain: Explain,
) -> int:
    from tenas_jax.data.labeled import load_split
    from tenas_jax.spaces.registry import get_space
    from tenas_jax.training import loop
    from tenas_jax.training.folder import open_output, training_of
    from tenas_jax.training.steps import make_mesh, make_network

    recipe = options.config
    if space.name != get_space(recipe.space).name:
        names = [name for name, each in RECIPES.items() if each.space == space.name]
        raise InputError(
            f"the architecture is of {space.name}, recipe {options.recipe} for {recipe.space}: "
            f"use --recipe {' or '.join(names) or 'module:object, a Recipe of your own'}"
        )
    make_network(genotype, recipe)  # raises if there is no such network
    # None of its warnings is meant for the user.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    devices = configure_jax(options.machine)
    make_mesh(devices, recipe.batch_size)  # raises if they cannot share it
    console = Console(quiet=not is_main())
    with shared_errors(), show_count(console, "reading images") as counted:
        split = load_split(recipe, counted)
    steps = recipe.epochs * (split.train.count // recipe.batch_size)
    if steps > MAX_STEPS:
        raise InputError(
            f"{quantity(recipe.epochs, 'epoch')} of {steps} steps: {MAX_STEPS} are possible"
        )
    training = training_of(genotype, recipe, split)
    say(
        console,
        f"{options.recipe}: {genotype}, {quantity(split.train.count, 'image')} to train on and "
        f"{split.test.count} to evaluate on, {len(devices)} x {devices[0].device_kind}",
    )
    with locked(output, flag="--output"):
        open_output(output, training, resume=options.resume)
        with show_progress(console) as show:

            def progress(done: "Progress") -> None:
                # Before the first step there is nothing to save, and it may compile for minutes.
                signals.note_next()
                show(done)

            finished = loop.fit(
                training,
                split,
                devices,
                output,
                schedule=loop.Schedule(
                    options.log_every, options.checkpoint_every, options.keep_last
                ),
                stopped=lambda: signals.noted is not None,
                progress=progress,
            )
        if not finished:
            # In a cluster another process may have received the signal.
            complain(explain())
            return 128 + (signals.noted or signal.SIGTERM)
        signals.note_no_more()
        if is_main():
            write_result(output, options.recipe, console)
    return 0


def write_result(output: Path, recipe: str, console: Console) -> None:
    """Write `result.json` of a finished training, and print a summary.

    Args:
        output: folder of the training.
        recipe: name of its recipe.
        console: the console.

    Raises:
        InputError: the metrics are damaged, or the file cannot be written.
    """
    from tenas_jax.host.files import write_json
    from tenas_jax.training.folder import epoch_records, load_training

    records = epoch_records(output)
    # The last one of ties, as for the checkpoints.
    best = max(reversed(records), key=lambda record: record["test_accuracy"])
    genotype = load_training(output).genotype
    result = {"genotype": genotype, "recipe": recipe, "last": records[-1], "best": best}
    write_json(output / "result.json", result)
    say(
        console,
        f"test accuracy {records[-1]['test_accuracy']:.2%} at the end, at best "
        f"{best['test_accuracy']:.2%} after epoch {best['epoch']}; files are in {output}",
    )

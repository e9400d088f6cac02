"""`tenas list`: everything that has a name, one line each."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

import tyro

from tenas_jax.cli.terminal import parse
from tenas_jax.configs import PRESETS, summary
from tenas_jax.errors import quantity
from tenas_jax.metrics.registry import METRICS
from tenas_jax.spaces.registry import SPACES
from tenas_jax.training.recipes import RECIPES

Kind = Literal["all", "presets", "spaces", "metrics", "recipes", "sources"]
SOURCES = {
    "photos": "crops of the photographs in the scikit-image wheel; offline",
    "npz:PATH": "array x of a NumPy archive, uint8 [n, height, width, channels]",
    "folder:PATH": "all PNG, JPEG and WebP images below a folder",
    "tfds:NAME": "train split of a TensorFlow data set, such as tfds:cifar10",
}


@dataclass(frozen=True)
class ListOptions:
    """Options of `tenas list`."""

    kind: Annotated[Kind, tyro.conf.Positional] = "all"
    """What to list."""


def run(argv: Sequence[str]) -> int:
    """Run `tenas list`.

    Args:
        argv: the arguments after `list`.

    Returns:
        Exit code: 0.

    Raises:
        InputError: the arguments are invalid.

    Example:
        >>> run(["sources"])  # doctest: +ELLIPSIS
        sources
          photos         crops of the photographs in the scikit-image wheel; offline
        ...
        0
    """
    options = parse(
        ListOptions,
        argv,
        command="list",
        description="List presets, search spaces, metrics, recipes and image sources. Your own are "
        "named module:object.",
    )
    kinds = get_args(Kind)[1:] if options.kind == "all" else [options.kind]
    for kind in kinds:
        lines = described(kind)
        width = max(map(len, lines)) + 2
        print(
            kind, *(f"  {name:<{max(width, 15)}}{text}" for name, text in lines.items()), sep="\n"
        )
    return 0


def described(kind: str) -> Mapping[str, str]:
    """A one-line description of each name of a kind.

    Args:
        kind: one of `Kind` except `all`.

    Example:
        >>> described("metrics")["kappa"]
        'NTK condition number, lower is better (Chen et al. 2021, eq. 3)'
    """
    return dict(_LISTED[kind]())


def _presets() -> Iterator[tuple[str, str]]:
    for name in PRESETS:
        yield name, summary(name)


def _spaces() -> Iterator[tuple[str, str]]:
    for name, space in SPACES.items():
        cells, edges, _ = space.shape
        operators = ", ".join(space.op_names(0))
        yield name, f"{quantity(cells, 'cell')}, {quantity(edges, 'edge')}; {operators}"


def _metrics() -> Iterator[tuple[str, str]]:
    for name, metric in METRICS.items():
        better = "higher" if metric.direction > 0 else "lower"
        yield name, f"{metric.label}, {better} is better ({metric.source})"


def _recipes() -> Iterator[tuple[str, str]]:
    for name, recipe in RECIPES.items():
        size = f"{recipe.channels} channels, {recipe.cells} cells"
        length = f"{recipe.epochs} epochs, batches of {recipe.batch_size}"
        yield name, f"{recipe.space}, {recipe.data}: {size}, {length}"


def _sources() -> Iterator[tuple[str, str]]:
    yield from SOURCES.items()


_LISTED = {
    "presets": _presets,
    "spaces": _spaces,
    "metrics": _metrics,
    "recipes": _recipes,
    "sources": _sources,
}

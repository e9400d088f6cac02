"""`tenas describe`: the costs of a genotype's network, and a drawing of its cells."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from rich.console import Console, RenderableType
from rich.table import Table

from tenas_jax.cli.terminal import parse
from tenas_jax.errors import InputError, quantity
from tenas_jax.host.devices import start_jax
from tenas_jax.numerics import MAX_CELLS
from tenas_jax.searching.progress import say

if TYPE_CHECKING:
    from tenas_jax.architectures.space import Costs
    from tenas_jax.networks.costs import LayerCosts

DEFAULTS = {"cifar": (10, 32), "imagenet": (1000, 224)}  # classes and image size, by stem


@dataclass(frozen=True)
class DescribeOptions:
    """Options of `tenas describe`."""

    genotype: Annotated[str, tyro.conf.Positional]
    """A genotype, or the work directory of a finished search."""
    space: str | None = None
    """Search space of the genotype, if it is module:object; None: recognized by the notation."""
    stem: Literal["cifar", "imagenet"] = "cifar"
    """Layers before the cells: one convolution, or three that downsample ImageNet's images."""
    channels: int | None = None
    """Channels of the nodes of the first cell; None: as published."""
    cells: int | None = None
    """Number of cells (in NAS-Bench-201 per stage); None: as published."""
    num_classes: int | None = None
    """Number of classes; None: 10, or 1000 with the ImageNet stem."""
    image_size: int | None = None
    """Height and width of the images; None: 32, or 224 with the ImageNet stem."""
    output: Path | None = None
    """File for a drawing of the cells: .png, .pdf or .svg; None: no drawing."""

    def __post_init__(self) -> None:
        if self.cells is not None and self.cells > MAX_CELLS:
            raise InputError(f"cells must be at most {MAX_CELLS}, not {self.cells}")


def run(argv: Sequence[str]) -> int:
    """Run `tenas describe`.

    Args:
        argv: the arguments after `describe`.

    Returns:
        Exit code: 0.

    Raises:
        InputError: the arguments are invalid, there is no such network, or the drawing cannot be
            written.
    """
    options = parse(
        DescribeOptions,
        argv,
        command="describe",
        description="Print the parameters and FLOPs of each layer, and draw the cells.",
    )
    # Imported late, so that bad flags and --help answer at once.
    from tenas_jax.analysis import figures, report
    from tenas_jax.architectures.cell_space import CellSpace
    from tenas_jax.host.files import file_errors
    from tenas_jax.networks.costs import layer_costs, total_costs
    from tenas_jax.spaces import get_space, load_genotype

    if options.space is None:
        space, mask = load_genotype(options.genotype)
    else:
        space = get_space(options.space)
        mask = space.from_string(options.genotype)
    if options.output is not None:
        figures.drawing_format(options.output)  # raises for an unknown format
    start_jax()
    default_classes, default_size = DEFAULTS[options.stem]
    num_classes = default_classes if options.num_classes is None else options.num_classes
    network = space.network(
        mask,
        num_classes=num_classes,
        channels=options.channels,
        cells=options.cells,
        **({"stem": options.stem} if isinstance(space, CellSpace) else {}),
    )
    image_size = default_size if options.image_size is None else options.image_size
    layers = layer_costs(network, image_size)
    total = total_costs(layers)
    if options.output is not None:
        with file_errors(options.output):
            report.write_architecture(space, mask, options.output)
    console = Console()
    console.print(_table(layers, total))
    say(
        console,
        f"{space.name}, {quantity(num_classes, 'class')}, images of {image_size} x {image_size}: "
        f"{total.parameters / 1e6:.2f} M parameters, {total.flops / 1e6:.2f} M multiply-adds "
        "(FLOPs) per image",
    )
    if options.output is not None:
        say(console, f"the cells are drawn in {options.output}")
    return 0


def _table(layers: "Sequence[LayerCosts]", total: "Costs") -> RenderableType:
    table = Table(box=None, padding=(0, 2, 0, 0), show_footer=True)
    table.add_column("layer", "total")
    table.add_column("output", justify="right")
    table.add_column("parameters", f"{total.parameters:,}", justify="right")
    table.add_column("FLOPs", f"{total.flops:,}", justify="right")
    for layer in layers:
        output = " x ".join(map(str, layer.output))
        table.add_row(layer.name, output, f"{layer.costs.parameters:,}", f"{layer.costs.flops:,}")
    return table

"""Three plots and a console summary of a finished search, made from its result.

Unless a caller passes pyplot's `figure`, the plots use matplotlib's objects directly: they touch no
global state and need no display.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from jaxtyping import Bool, Float, Int
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, Patch, Rectangle
from matplotlib.ticker import LogFormatterMathtext, LogLocator, NullLocator, StrMethodFormatter
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tenas_jax.analysis.columns import enlargement, fit, text_size
from tenas_jax.analysis.figures import save
from tenas_jax.architectures.cell_space import CellSpace
from tenas_jax.architectures.space import Mask, SearchSpace, index

Rounds = Sequence[Mapping[str, Any]]
NewFigure = Callable[..., Figure]

KEPT, EXCLUDED = -1, -2  # special values beside the round numbers 0, 1, ... of `_pruning_rounds`
KEPT_COLOR, EXCLUDED_COLOR, ARROW_COLOR = "#e08214", "#eeeeee", "#888888"
ROUND_COLORS = matplotlib.colormaps["Blues"]
OP_COLORS = matplotlib.color_sequences["Dark2"]
CHANGE, OPERATOR = 7.0, 9.0  # sizes of text in a map of pruning and in a cell, in points
NODE_RADIUS, INCHES_PER_NODE = 0.14, 1.6  # neighboring nodes of a drawn cell are 1 apart
SYMBOLS = {"kappa": "κ", "regions": "R"}
AXIS_LABELS = {
    "kappa": r"NTK condition number $\kappa_N$ (ratio; lower is better)",
    "regions": "linear regions $R_N$ (count; higher is better)",
}
CENTERED: dict[str, Any] = {"ha": "center", "va": "center"}


def write_plots(
    result: Mapping[str, Any],
    space: SearchSpace,
    final_mask: Mask,
    folder: Path,
    kind: str = "png",
    width: float | None = None,
) -> None:
    """Write `trajectory.png`, `pruning.png` and `cell.png`, each atomically.

    A search without pruning rounds has only `cell.png`.

    Args:
        result: content of `result.json`.
        space: the space that was searched.
        final_mask: the operators the search kept.
        folder: an existing folder; existing plots in it are replaced.
        kind: format and suffix: `png`, `pdf` or `svg`.
        width: width of each figure, in inches. The pruning map is then one figure per cell type,
            and leaves out standard errors that do not fit. None: the natural widths.

    Raises:
        InputError: the files cannot be written.
    """
    rounds = result["rounds"]
    figures = {"cell": draw_architecture(space, final_mask, width=width)}
    if rounds:
        figures["trajectory"] = trajectory(rounds, result.get("found"), width=width)
    cells = range(len(space.cell_types)) if rounds else ()
    if rounds and (width is None or len(cells) == 1):
        figures["pruning"] = pruning_map(rounds, space, final_mask, width=width)
    elif rounds:
        for cell in cells:
            name = f"pruning-{space.cell_types[cell]}"
            figures[name] = pruning_map(rounds, space, final_mask, width=width, cells=[cell])
    for name, figure in figures.items():
        save(figure, folder / f"{name}.{kind}")


def write_architecture(space: SearchSpace, mask: Mask, path: Path) -> None:
    """Write a drawing of an architecture, atomically.

    Args:
        space: the search space.
        mask: operators kept.
        path: the file, which is replaced if it exists; its suffix selects the format.

    Raises:
        InputError: the format is unknown, or the file cannot be written.
    """
    save(draw_architecture(space, mask), path)


def trajectory(
    rounds: Rounds,
    found: Mapping[str, Any] | None = None,
    figure: NewFigure = Figure,
    *,
    width: float | None = None,
) -> Figure:
    """Plot two metrics of the supernet before each round (arXiv 2102.11535, Figure 5).

    Condition number against linear regions if both were measured; otherwise the first metric
    against the second, or against the round. The last point is the found architecture. Bars are
    standard errors.

    Args:
        rounds: of a finished search.
        found: the measurement of the found architecture; None: it was not measured.
        figure: makes the figure.
        width: of the figure, in inches; None: its natural one.
    """
    measured = [*rounds, *([] if found is None else [found])]
    names = list(rounds[0]["metrics"])
    if {"kappa", "regions"} <= set(names):
        vertical, horizontal = "kappa", "regions"
    else:
        vertical, horizontal = [*names, "round"][:2]
    y, y_error = _means_and_errors(measured, vertical)
    x, x_error = np.arange(1.0, len(measured) + 1), np.zeros(len(measured))
    if horizontal in names:
        x, x_error = _means_and_errors(measured, horizontal)
    finite = np.isfinite(y)
    log = bool((y[finite] > 0).all())
    bottom, top = _limits(y[finite], y_error[finite], log=log)
    x = np.where(np.isfinite(x), x, x[np.isfinite(x)].min() if np.isfinite(x).any() else 0.0)
    left, right = (x - x_error).min(), (x + x_error).max()
    least = 5.0 if horizontal == "regions" else 1e-3 * max(float(np.abs(x).max()), 1e-9)
    margin = max(0.12 * (right - left), least)

    drawn = figure(figsize=(7, 5))
    last = "" if found is None else ", then the found architecture"
    drawn.suptitle(f"The supernet before each pruning round{last}")
    # A fixed layout, because labels are placed before the figure is drawn.
    axes = drawn.add_axes((0.13, 0.12, 0.83, 0.74))
    axes.set(xlim=(left - margin, right + margin), ylim=(bottom, top))
    axes.set(ylabel=AXIS_LABELS.get(vertical, vertical))
    axes.set_xlabel(AXIS_LABELS.get(horizontal, horizontal))
    if log:
        axes.set_yscale("log")
        decades = math.log10(top / bottom)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 3 else (1,)))
        axes.yaxis.set_major_formatter(
            StrMethodFormatter("{x:g}") if top < 1e5 else LogFormatterMathtext(labelOnlyBase=False)
        )
        axes.yaxis.set_minor_locator(NullLocator())
    if not finite.any():
        axes.set_yticks([])
    axes.grid(alpha=0.3)

    points = np.stack([x, np.where(finite, y, top)], axis=1)
    colors = matplotlib.colormaps["plasma"](np.linspace(0, 0.8, len(points)))
    for start, end in pairwise(points):
        axes.add_patch(_arrow(start, end, ARROW_COLOR, shrinkA=4, shrinkB=4, clip_on=False))
    if x_error.any() or y_error.any():
        bars: dict[str, Any] = {"ecolor": colors, "elinewidth": 1}
        axes.errorbar(x, points[:, 1], y_error, x_error, fmt="none", **bars)
    is_found = np.arange(len(points)) == len(rounds)
    markers = (
        (finite & ~is_found, "o", "numbered by round, from 1"),
        (~finite, "^", "not finite, drawn at the top edge"),
        (finite & is_found, "*", "found"),
    )
    for chosen, marker, label in markers:
        if chosen.any():
            handle = axes.scatter(*points[chosen].T, marker=marker, label=label, clip_on=False)
            handle.set(color=colors[chosen], zorder=3)
            if marker == "*":
                handle.set_sizes([140.0])
    drawn.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, 0.94),
        ncols=3,
        frameon=False,
        fontsize=text_size(10.0, drawn, width),
    )
    scale = 72 / drawn.dpi  # from pixels to typographic points
    x, y = points.T
    lower, upper = np.clip([y - y_error, y + y_error], bottom, top)
    ends = [(x - x_error, y), (x + x_error, y), (x, lower), (x, upper)]
    places, *bar_ends = (
        axes.transData.transform(np.stack(each, 1)) * scale for each in [(x, y), *ends]
    )
    offsets = _label_offsets(places, bar_ends, *axes.bbox.get_points() * scale)[: len(rounds)]
    for entry, point, offset, color in zip(rounds, points, offsets, colors, strict=False):
        label, (dx, dy) = str(entry["round"] + 1), offset
        axes.annotate(label, point, (dx, dy), textcoords="offset points", color=color, **CENTERED)
    if width is not None:
        fit(drawn, width)
    return drawn


def _means_and_errors(
    measured: Rounds, metric: str
) -> tuple[Float[np.ndarray, " network"], Float[np.ndarray, " network"]]:
    """A metric of each network, and its standard error, or 0 without one."""
    means = [float(entry["metrics"][metric]) for entry in measured]
    errors = [_standard_error(entry, metric) for entry in measured]
    return np.array(means), np.nan_to_num(errors)


def _standard_error(measured: Mapping[str, Any], metric: str) -> float:
    """The standard error of a metric, or NaN without one, as in rounds of older results."""
    return float(measured.get("standard_errors", {}).get(metric, "nan"))


def _limits(
    values: Float[np.ndarray, " network"], errors: Float[np.ndarray, " network"], *, log: bool
) -> tuple[float, float]:
    """Limits of an axis that contain all values, and error bars unless they are too long."""
    if not len(values):
        return 0.625, 1.6
    low, high = (values - errors).min(), (values + errors).max()
    if log:  # where a bar may end below zero
        return max(low, values.min() / 2) / 1.6, high * 1.6
    spread = max(high - low, 1e-3 * float(np.abs(values).max()), 1e-12)
    return low - 0.2 * spread, high + 0.2 * spread


def _label_offsets(
    points: Float[np.ndarray, "point 2"],
    bars: Sequence[Float[np.ndarray, "point 2"]],
    low: Float[np.ndarray, "2"],
    high: Float[np.ndarray, "2"],
) -> list[Float[np.ndarray, "2"]]:
    """Offsets of labels from points, clear of the path, of error bars and of earlier labels.

    `bars` are the ends of the error bars.
    """
    enough = 11  # typographic points, about the size of a label
    angles = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    choices = np.concatenate([circle * radius for radius in (12, 18, 24, 32)])
    steps = np.linspace(0, 1, 50)[:, np.newaxis]
    lines = [
        *pairwise(points),
        *((point, end[i]) for end in bars for i, point in enumerate(points)),
    ]
    path = [start + steps * (end - start) for start, end in lines]
    occupied = np.concatenate([points, *path])
    offsets = []
    for point in points:
        places = point + choices
        clearance = np.linalg.norm(places[:, np.newaxis] - occupied, axis=-1).min(axis=1)
        fits = ((places > low + enough) & (places < high - enough)).all(axis=1)
        # The nearest place with enough clearance, otherwise the one with the most.
        best = int(np.where(fits, np.minimum(clearance, enough), -1).argmax())
        occupied = np.concatenate([occupied, places[best : best + 1]])
        offsets.append(choices[best])
    return offsets


def pruning_map(
    rounds: Rounds,
    space: SearchSpace,
    final_mask: Mask,
    figure: NewFigure = Figure,
    *,
    width: float | None = None,
    cells: Sequence[int] | None = None,
) -> Figure:
    """A map of edges and operators: when each was pruned, and how that changed the metrics.

    The differences are those of the last round in which the operator was a candidate.

    Args:
        rounds: the rounds of a finished search.
        space: the space that was searched.
        final_mask: the operators the search kept.
        figure: makes the figure.
        width: width of the figure, in inches; standard errors are left out if they do not fit.
            None: its natural width.
        cells: indices of the cell types to show; None: all.
    """
    when = _pruning_rounds(rounds, space, final_mask)
    shade = 0.2 + 0.7 * np.maximum(when, 0) / max(when.max(), 1)
    colors = ROUND_COLORS(shade)
    colors[when == KEPT] = to_rgba(KEPT_COLOR)
    colors[when == EXCLUDED] = to_rgba(EXCLUDED_COLOR)

    _, edges, ops = when.shape
    cells = range(len(when)) if cells is None else cells
    names = [space.op_names(edge) for edge in range(edges)]
    same_names = len(set(names)) == 1
    changes = _last_changes(rounds, space)
    height = 0.16 * (2 - same_names + len(rounds[0]["metrics"]))
    longest = max((len(line) for lines in changes.values() for line in lines), default=0)
    size = len(cells) * (1.4 + max(0.95, 0.066 * longest) * ops), 2.6 + (0.12 + height) * edges
    drawn = figure(figsize=size, layout="constrained")
    enlarged = enlargement(CHANGE, drawn, width)
    if enlarged > 1:  # taller rows
        changes = {key: [line.partition("±")[0] for line in changes[key]] for key in changes}
        drawn.set_figheight(size[1] * enlarged)
    spread = any("±" in line for lines in changes.values() for line in lines)
    title = "Last measured change without an operator" + " ± standard error" * spread
    drawn.suptitle(title, fontsize=10)
    panels = drawn.subplots(1, len(cells), squeeze=False)[0]
    graph = isinstance(space, CellSpace)
    panels[0].set_ylabel("edge (target<-source node)" if graph else "choice")
    for cell, axes in zip(cells, panels, strict=True):
        axes.set(title=space.cell_types[cell], xlabel="operator" if graph else "option")
        axes.imshow(colors[cell], aspect="auto")
        for edge, op in np.argwhere(when[cell] != EXCLUDED):
            pruned = when[cell, edge, op] != KEPT
            color = "white" if pruned and shade[cell, edge, op] > 0.55 else "black"
            lines = [] if same_names else [names[edge][op]]
            lines += [f"round {when[cell, edge, op] + 1}"] if pruned else ["kept"]
            lines += changes.get((cell, edge, op), [])
            axes.text(op, edge, "\n".join(lines), color=color, fontsize=CHANGE, **CENTERED)
        ticks = names[0] if same_names else [""] * ops
        axes.set_xticks(range(ops), ticks, rotation=40, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(edges), space.edge_names)
        axes.hlines(np.arange(1, edges) - 0.5, -0.5, ops - 0.5, color="white", linewidth=1)
        axes.vlines(np.arange(1, ops) - 0.5, -0.5, edges - 0.5, color="white", linewidth=1)
        if isinstance(space, CellSpace):
            targets = [target for _, target in space.edges]
            new_target = np.flatnonzero(np.diff(targets)) + 0.5
            axes.hlines(new_target, -0.5, ops - 0.5, color="black", linewidth=1)
    keys = [
        Patch(color=ROUND_COLORS(0.55), label="pruned, in this round"),
        Patch(color=KEPT_COLOR, label="kept"),
    ]
    if (when == EXCLUDED).any():
        keys.append(Patch(color=EXCLUDED_COLOR, label="not part of the search"))
    columns = 1 if len(cells) == 1 else len(keys)
    drawn.legend(
        handles=keys,
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        fontsize=text_size(10.0, drawn, width),
    )
    if width is not None:
        fit(drawn, width)
    return drawn


def _last_changes(rounds: Rounds, space: SearchSpace) -> dict[tuple[int, int, int], list[str]]:
    """A line per metric for each (cell, edge, op): its difference and standard error."""
    lines = {}
    for entry in rounds:
        for candidate in entry["candidates"]:
            lines[index(space, candidate)] = [
                f"{SYMBOLS.get(name, name)} {float(difference):+z.2f}"
                + (f"±{error:.2f}" if math.isfinite(error) else "")
                for name, difference in candidate["differences"].items()
                for error in [float(candidate["standard_errors"][name])]
            ]
    return lines


def _pruning_rounds(
    rounds: Rounds, space: SearchSpace, final_mask: Mask
) -> Int[np.ndarray, "cell edge op"]:
    """The round that pruned each operator; or `KEPT`, or `EXCLUDED` if it never took part."""
    when = np.where(final_mask, KEPT, EXCLUDED)
    for entry in rounds:
        for pruned in entry["pruned"]:
            when[index(space, pruned)] = entry["round"]
    return when


def draw_architecture(
    space: SearchSpace, mask: Mask, figure: NewFigure = Figure, *, width: float | None = None
) -> Figure:
    """Draw an architecture: cells as graphs, choices as rows.

    Args:
        space: the search space.
        mask: operators kept.
        figure: makes the figure.
        width: width of the figure, in inches; None: its natural width.
    """
    if not isinstance(space, CellSpace):
        drawn = _choices(space, mask, figure)
    else:
        drawn = _cells(space, mask, figure, WIDE)
        if width is not None and enlargement(OPERATOR, drawn, width) > 1:
            per_node = width / (_output_node(space) + 1)
            style = NARROW._replace(lowest_label=TWO_LINES / per_node)
            drawn = _cells(space, mask, figure, style)
    if width is not None:
        fit(drawn, width)
    return drawn


def _choices(space: SearchSpace, mask: Mask, figure: NewFigure) -> Figure:
    """One row per choice with its options side by side; the kept option is in color."""
    _, edges, ops = space.shape
    drawn = figure(figsize=(1.6 + 1.2 * ops, 0.5 + 0.45 * edges), layout="constrained")
    axes = drawn.subplots()
    axes.set(xlim=(-0.55, ops - 0.45), ylim=(edges - 0.4, -0.6))
    axes.set_yticks(range(edges), space.edge_names)
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.set_frame_on(False)
    for edge in range(edges):
        for op, name in enumerate(space.op_names(edge)):
            kept = mask[0, edge, op]
            color = KEPT_COLOR if kept else EXCLUDED_COLOR
            axes.add_patch(Rectangle((op - 0.46, edge - 0.4), 0.92, 0.8, color=color))
            weight = "bold" if kept else "normal"
            axes.text(op, edge, name, fontsize=9, fontweight=weight, **CENTERED)
    return drawn


class CellStyle(NamedTuple):
    """Spacing of the operators in a drawn cell."""

    steepness: float
    """Height of arcs, relative to their span."""
    lowest_label: float
    """Height of the label of a straight arrow above the line of nodes."""
    caption: float
    """Distance of captions from the line of nodes."""
    breaks: bool
    """Whether a label has two lines, and captions are short."""


WIDE, NARROW = CellStyle(0.2, 0.08, 0.2, False), CellStyle(0.5, 0.4, 0.28, True)
TWO_LINES = 0.19  # inches from a straight arrow to the center of its label


def _cells(space: CellSpace, mask: Mask, figure: NewFigure, style: CellStyle) -> Figure:
    """The cells of an architecture: operators above the line of nodes, concatenation below."""
    tops = [_highest(space, kept, style) + 0.2 + 0.1 * style.breaks for kept in mask]
    bottom = _arc_height(len(space.intermediate_nodes)) / 2 if space.concatenate else 0.3
    bottom = max(bottom, style.caption + 0.1) + 0.05
    right = _output_node(space) + 0.5
    heights = [top + bottom for top in tops]
    size = INCHES_PER_NODE * np.array([right + 0.5, sum(heights) + 0.2 * len(mask)])
    drawn = figure(figsize=tuple(size), layout="constrained")
    rows = drawn.subplots(len(mask), 1, squeeze=False, height_ratios=heights)[:, 0]
    for cell, (axes, top) in enumerate(zip(rows, tops, strict=True)):
        axes.set(xlim=(-0.5, right), ylim=(-bottom, top), aspect="equal")
        axes.set_title(space.cell_types[cell])
        axes.set_axis_off()
        _draw_cell(axes, space, mask[cell], style)
    return drawn


def _highest(space: CellSpace, mask: Bool[np.ndarray, "edge op"], style: CellStyle) -> float:
    """Height of the highest arc of a cell, or of the label of a straight arrow."""
    edges = [space.edges[edge] for edge in np.flatnonzero(mask.any(1))]
    spans = [target - source for source, target in edges]
    return max([style.lowest_label, *(_arc_height(span, style.steepness) for span in spans)])


def _output_node(space: CellSpace) -> int:
    """The last node drawn: the last of the space, or an extra one for the concatenation."""
    return space.num_nodes - (not space.concatenate)


def _draw_cell(
    axes: Axes, space: CellSpace, mask: Bool[np.ndarray, "edge op"], style: CellStyle
) -> None:
    """Draw the nodes, an arrow per operator, and the concatenation if the space has one."""
    output = _output_node(space)
    circles = [Circle((node, 0), NODE_RADIUS, fill=False) for node in range(output + 1)]
    caption = "cell k-{}" if style.breaks else "input (cell k-{})"
    captions = {node: caption.format(space.input_nodes - node) for node in range(space.input_nodes)}
    concatenates = output == space.num_nodes and not style.breaks
    captions[output] = "output (concatenation)" if concatenates else "output"
    for node, circle in enumerate(circles):
        axes.add_patch(circle)
        if node < space.num_nodes or not style.breaks:  # where it does not fit the caption says it
            _text(axes, float(node), 0.0, str(node) if node < space.num_nodes else "out")
        side = 1 if node == space.num_nodes else -1  # where there are no arrows
        _text(axes, float(node), side * style.caption, captions.get(node, ""))
    for edge, op in np.argwhere(mask):
        source, target = space.edges[edge]
        height = _arc_height(target - source, style.steepness)
        color = OP_COLORS[op % len(OP_COLORS)]
        axes.add_patch(_arc(circles[source], circles[target], height, color))
        label_height = max(height, style.lowest_label)  # above the arrow where it is straight
        first, _, last = space.ops[op].rpartition("_")
        name = f"{first}\n{last}" if style.breaks and first else space.ops[op]
        _text(axes, (source + target) / 2, label_height, name, color=color)
    for node in space.intermediate_nodes:
        if output == space.num_nodes:
            height = -_arc_height(output - node) / 2
            axes.add_patch(_arc(circles[node], circles[output], height, ARROW_COLOR))


def _text(axes: Axes, x: float, y: float, text: str, color: Any = "black") -> None:
    """Small text on a white background, which covers an arrow behind it."""
    ground = {"facecolor": "white", "edgecolor": "none", "pad": 1}
    axes.text(x, y, text, color=color, fontsize=OPERATOR, bbox=ground, **CENTERED)


def _arc_height(span: int, steepness: float = WIDE.steepness) -> float:
    """Height of the apex; it grows faster than the span, so that arrows leave at other angles."""
    return steepness * (math.pow(span, 1.5) - 1)


def _arc(source: Circle, target: Circle, height: float, color: Any) -> FancyArrowPatch:
    """An arrow between two nodes, along a parabola whose apex is `height` above them."""
    (start, _), (end, _) = source.center, target.center
    curve = f"arc3,rad={-2 * height / (end - start)}"
    nodes = {"patchA": source, "patchB": target}
    return _arrow(source.center, target.center, color, connectionstyle=curve, zorder=1, **nodes)


def _arrow(start: Any, end: Any, color: Any, **style: Any) -> FancyArrowPatch:
    """An arrow with a small filled head."""
    return FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=10, color=color, **style)


def summary(result: Mapping[str, Any]) -> RenderableType:
    """A console summary of a search: counts, times and metrics, without the genotype.

    Args:
        result: content of `result.json`.

    Returns:
        A renderable for `rich.print`.

    Example:
        >>> from rich.console import Console
        >>> seconds = {"total": 9.0, "compile": 5.0, "measure": 4.0}
        >>> found = {"metrics": {"kappa": 120.5}, "standard_errors": {"kappa": 3.25}}
        >>> pruned = [{"cell": "cell", "edge": 0, "op": "skip_connect"}]
        >>> entry = found | {"round": 0, "candidates": [{}, {}], "pruned": pruned}
        >>> result = {"preset": "mine", "data": "photos", "seed": 0, "found": found}
        >>> result |= {"evaluations": 2, "nonfinite": 0, "device": "cpu", "seconds": seconds}
        >>> Console(width=80).print(summary(result | {"rounds": [entry]}))  # doctest: +ELLIPSIS
        search       mine, data photos, seed 0...
    """
    seconds = result["seconds"]
    parts = f"compilation {seconds['compile']:.1f} s, measurement {seconds['measure']:.1f} s"
    facts = {
        "search": f"{result['preset']}, data {result['data']}, seed {result['seed']}",
        "evaluations": f"{result['evaluations']}; measurements not finite: {result['nonfinite']}",
        "time": f"{seconds['total']:.1f} s ({parts})",
        "device": str(result["device"]),
    }
    head = Table.grid(padding=(0, 2, 0, 0))
    for name, fact in facts.items():
        head.add_row(Text(name, style="bold"), Text(fact, overflow="fold"))

    metrics = list(result["found"]["metrics"])
    table = Table(box=None, padding=(0, 2, 0, 0))
    rounds = ("round", "evaluations") if result["rounds"] else ("",)
    for name in (*rounds, *metrics):
        table.add_column(name, justify="right")
    if result["rounds"]:
        table.add_column("pruned")
    for entry in result["rounds"]:
        counts = Counter(pruned["op"] for pruned in entry["pruned"]).most_common()
        pruned_ops = ", ".join(f"{op}:{count}" for op, count in counts)
        numbers = str(entry["round"] + 1), str(len(entry["candidates"]))
        table.add_row(*numbers, *(with_error(entry, name) for name in metrics), pruned_ops)
    found = [with_error(result["found"], name) for name in metrics]
    table.add_row("found", *[""] * (len(rounds) - 1), *found)
    return Group(head, Text(), table)


def with_error(measured: Mapping[str, Any], metric: str) -> str:
    """A metric of a round or of the found architecture, with its standard error if known.

    Example:
        >>> with_error({"metrics": {"kappa": 1234.5}, "standard_errors": {"kappa": 56.78}}, "kappa")
        '1234.5 ± 57'
        >>> with_error({"metrics": {"kappa": "inf"}, "standard_errors": {"kappa": "nan"}}, "kappa")
        'inf'
        >>> with_error({"metrics": {"flops": 5.0}, "standard_errors": {"flops": 0.0}}, "flops")
        '5'
    """
    error = _standard_error(measured, metric)
    text = f"{float(measured['metrics'][metric]):.5g}"
    # Of what is counted exactly, such as FLOPs, it is 0.
    return f"{text} ± {error:.2g}" if math.isfinite(error) and error > 0 else text

"""What a finished search looks like: three plots and a console summary, made from the result alone.

The plots use matplotlib's objects and never pyplot: they touch no global state and need no display.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Bool, Float, Int
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, Patch
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tenas_jax.spaces import SearchSpace
from tenas_jax.workdir import whole_file

KEPT, EXCLUDED = -1, -2  # stand beside the round numbers 0, 1, ... in `_pruning_rounds`
KEPT_COLOR, EXCLUDED_COLOR, ARROW_COLOR = "#e08214", "#eeeeee", "#888888"
ROUND_COLORS = matplotlib.colormaps["Blues"]
OP_COLORS = matplotlib.color_sequences["Dark2"]
NODE_RADIUS, INCHES_PER_NODE = 0.14, 1.6  # neighboring nodes of a drawn cell are 1 apart
SYMBOLS = {"kappa": "κ", "regions": "R"}
CENTERED: dict[str, Any] = {"ha": "center", "va": "center"}


def write_plots(
    result: Mapping[str, Any],
    space: SearchSpace,
    final_mask: Bool[np.ndarray, "cell edge op"],
    workdir: Path,
) -> None:
    """Write `trajectory.png`, `pruning.png` and `cell.png`, each complete or not at all.

    A search without rounds of pruning has `cell.png` alone, one that measured anything but `kappa`
    and `regions` no trajectory.

    Args:
        result: content of `result.json`.
        space: the space that was searched.
        final_mask: the operators the search kept.
        workdir: an existing folder; files of these names in it are replaced.

    Raises:
        InputError: the files cannot be written.
    """
    rounds = result["rounds"]
    figures = {"cell.png": _cells(space, final_mask)}
    if rounds:
        figures["pruning.png"] = _pruning_map(rounds, space, final_mask)
        if rounds[0]["metrics"].keys() >= {"kappa", "regions"}:
            figures["trajectory.png"] = _trajectory(rounds)
    for name, figure in figures.items():
        _save(figure, workdir / name)


def write_cells(space: SearchSpace, mask: Bool[np.ndarray, "cell edge op"], path: Path) -> None:
    """Draw the cells of an architecture, completely or not at all.

    Args:
        space: the search space.
        mask: operators kept.
        path: the file, which is replaced if it exists; in PNG format, whatever its name.

    Raises:
        InputError: the file cannot be written.
    """
    _save(_cells(space, mask), path)


def _save(figure: Figure, path: Path) -> None:
    with whole_file(path) as unfinished:
        figure.savefig(unfinished, format="png", dpi=150)


def _trajectory(rounds: Sequence[Mapping[str, Any]]) -> Figure:
    """Condition number against linear regions, before each round (arXiv 2102.11535, Figure 5)."""
    regions = np.array([float(entry["metrics"]["regions"]) for entry in rounds])
    kappa = np.array([float(entry["metrics"]["kappa"]) for entry in rounds])
    finite = np.isfinite(kappa)
    finite_kappa = kappa[finite] if finite.any() else np.ones(1)
    bottom, top = finite_kappa.min() / 1.6, finite_kappa.max() * 1.6
    margin = max(0.12 * np.ptp(regions), 5.0)

    figure = Figure(figsize=(7, 5))
    figure.suptitle("The supernet before each pruning round")
    # Fixed, not laid out automatically: labels are placed in it before the figure is drawn.
    axes = figure.add_axes((0.13, 0.12, 0.83, 0.74))
    axes.set(xlim=(regions.min() - margin, regions.max() + margin), ylim=(bottom, top))
    axes.set(yscale="log", ylabel=r"NTK condition number $\kappa_N$ (ratio; lower is better)")
    axes.set_xlabel("linear regions $R_N$ (count; higher is better)")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    if not finite.any():
        axes.set_yticks([])
    axes.grid(alpha=0.3)

    points = np.stack([regions, np.where(finite, kappa, top)], axis=1)
    colors = matplotlib.colormaps["plasma"](np.linspace(0, 0.8, len(points)))
    for start, end in pairwise(points):
        axes.add_patch(_arrow(start, end, ARROW_COLOR, shrinkA=4, shrinkB=4, clip_on=False))
    markers = (
        (finite, "o", "numbered by round, from 1"),
        (~finite, "^", "not finite (singular kernel), drawn at the top edge"),
    )
    for chosen, marker, label in markers:
        if chosen.any():
            handle = axes.scatter(*points[chosen].T, marker=marker, label=label, clip_on=False)
            handle.set(color=colors[chosen], zorder=3)
    figure.legend(loc="upper center", bbox_to_anchor=(0.5, 0.94), ncols=2, frameon=False)
    scale = 72 / figure.dpi  # from pixels to typographic points
    places = axes.transData.transform(points) * scale
    offsets = _label_offsets(places, *axes.bbox.get_points() * scale)
    for entry, point, offset, color in zip(rounds, points, offsets, colors, strict=True):
        label, (dx, dy) = str(entry["round"] + 1), offset
        axes.annotate(label, point, (dx, dy), textcoords="offset points", color=color, **CENTERED)
    return figure


def _label_offsets(
    points: Float[np.ndarray, "point 2"], low: Float[np.ndarray, "2"], high: Float[np.ndarray, "2"]
) -> list[Float[np.ndarray, "2"]]:
    """Offsets of labels from points: between corners, clear of the path and of earlier labels."""
    enough = 11  # typographic points, about the size of a label
    angles = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    choices = np.concatenate([circle * radius for radius in (12, 18, 24, 32)])
    steps = np.linspace(0, 1, 50)[:, np.newaxis]
    path = [start + steps * (end - start) for start, end in pairwise(points)]
    occupied = np.concatenate([points, *path])
    offsets = []
    for point in points:
        places = point + choices
        clearance = np.linalg.norm(places[:, np.newaxis] - occupied, axis=-1).min(axis=1)
        fits = ((places > low + enough) & (places < high - enough)).all(axis=1)
        # The nearest place with enough clearance, else the one with most.
        best = int(np.where(fits, np.minimum(clearance, enough), -1).argmax())
        occupied = np.concatenate([occupied, places[best : best + 1]])
        offsets.append(choices[best])
    return offsets


def _pruning_map(
    rounds: Sequence[Mapping[str, Any]],
    space: SearchSpace,
    final_mask: Bool[np.ndarray, "cell edge op"],
) -> Figure:
    """A map of edges and operators: when each was pruned, and what its removal did to the metrics.

    The differences are those of the last round in which the operator was a candidate.
    """
    when = _pruning_rounds(rounds, space, final_mask)
    shade = 0.2 + 0.7 * np.maximum(when, 0) / max(when.max(), 1)
    colors = ROUND_COLORS(shade)
    colors[when == KEPT] = to_rgba(KEPT_COLOR)
    colors[when == EXCLUDED] = to_rgba(EXCLUDED_COLOR)

    cells, edges, ops = when.shape
    changes = _last_changes(rounds, space)
    height = 0.16 * (1 + len(rounds[0]["metrics"]))
    size = cells * (1.4 + 0.95 * ops), 2.6 + (0.12 + height) * edges
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle("Last measured change without an operator ± standard error", fontsize=10)
    panels = figure.subplots(1, cells, squeeze=False)[0]
    panels[0].set_ylabel("edge (target<-source node)")
    new_target = np.flatnonzero(np.diff([target for _, target in space.edges])) + 0.5
    for cell, axes in enumerate(panels):
        axes.set(title=space.cell_types[cell], xlabel="operator")
        axes.imshow(colors[cell], aspect="auto")
        for edge, op in np.argwhere(when[cell] != EXCLUDED):
            pruned = when[cell, edge, op] != KEPT
            color = "white" if pruned and shade[cell, edge, op] > 0.55 else "black"
            lines = [f"round {when[cell, edge, op] + 1}"] if pruned else ["kept"]
            lines += changes.get((cell, edge, op), [])
            axes.text(op, edge, "\n".join(lines), color=color, fontsize=7, **CENTERED)
        axes.set_xticks(range(ops), space.ops, rotation=40, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(edges), [f"{target}<-{source}" for source, target in space.edges])
        axes.hlines(np.arange(1, edges) - 0.5, -0.5, ops - 0.5, color="white", linewidth=1)
        axes.vlines(np.arange(1, ops) - 0.5, -0.5, edges - 0.5, color="white", linewidth=1)
        axes.hlines(new_target, -0.5, ops - 0.5, color="black", linewidth=1)
    keys = [
        Patch(color=ROUND_COLORS(0.55), label="pruned, in this round"),
        Patch(color=KEPT_COLOR, label="kept"),
        Patch(color=EXCLUDED_COLOR, label="not part of the search"),
    ]
    columns = 1 if cells == 1 else len(keys)
    figure.legend(handles=keys, loc="outside lower center", ncols=columns, frameon=False)
    return figure


def _last_changes(
    rounds: Sequence[Mapping[str, Any]], space: SearchSpace
) -> dict[tuple[int, int, int], list[str]]:
    """For each (cell, edge, op) a line per metric: its difference and the standard error."""
    lines = {}
    for entry in rounds:
        for candidate in entry["candidates"]:
            cell, op = space.cell_types.index(candidate["cell"]), space.ops.index(candidate["op"])
            lines[cell, candidate["edge"], op] = [
                f"{SYMBOLS.get(name, name)} {float(difference):+.2f}"
                + (f"±{error:.2f}" if math.isfinite(error) else "")
                for name, difference in candidate["differences"].items()
                for error in [float(candidate["standard_errors"][name])]
            ]
    return lines


def _pruning_rounds(
    rounds: Sequence[Mapping[str, Any]],
    space: SearchSpace,
    final_mask: Bool[np.ndarray, "cell edge op"],
) -> Int[np.ndarray, "cell edge op"]:
    """The round that pruned each operator, else `KEPT`, or `EXCLUDED` where it never took part."""
    when = np.where(final_mask, KEPT, EXCLUDED)
    for entry in rounds:
        for pruned in entry["pruned"]:
            cell = space.cell_types.index(pruned["cell"])
            when[cell, pruned["edge"], space.ops.index(pruned["op"])] = entry["round"]
    return when


def _cells(space: SearchSpace, mask: Bool[np.ndarray, "cell edge op"]) -> Figure:
    """The cells of an architecture: operators above the line of nodes, concatenation below."""
    spans = [space.edges[edge][1] - space.edges[edge][0] for _, edge, _ in np.argwhere(mask)]
    top = _arc_height(max(spans)) + 0.2
    bottom = 0.3 if space.edges_per_node is None else _arc_height(len(space.intermediate_nodes)) / 2
    right = _output_node(space) + 0.5
    size = INCHES_PER_NODE * np.array([right + 0.5, (top + bottom + 0.25) * len(mask)])
    figure = Figure(figsize=tuple(size), layout="constrained")
    for cell, axes in enumerate(figure.subplots(len(mask), 1, squeeze=False)[:, 0]):
        axes.set(xlim=(-0.5, right), ylim=(-bottom - 0.05, top), aspect="equal")
        axes.set_title(space.cell_types[cell])
        axes.set_axis_off()
        _draw_cell(axes, space, mask[cell])
    return figure


def _output_node(space: SearchSpace) -> int:
    """The last node drawn: the last of the space, or one more that concatenates."""
    return space.num_nodes - (space.edges_per_node is None)


def _draw_cell(axes: Axes, space: SearchSpace, mask: Bool[np.ndarray, "edge op"]) -> None:
    """Draw the nodes, an arrow per operator, and the concatenation where the space has one."""
    output = _output_node(space)
    circles = [Circle((node, 0), NODE_RADIUS, fill=False) for node in range(output + 1)]
    captions = {
        node: f"input (cell k-{space.input_nodes - node})" for node in range(space.input_nodes)
    }
    captions[output] = "output" if output < space.num_nodes else "output (concatenation)"
    for node, circle in enumerate(circles):
        axes.add_patch(circle)
        _text(axes, float(node), 0.0, str(node) if node < space.num_nodes else "out")
        side = 1 if node == space.num_nodes else -1  # where there are no arrows
        _text(axes, float(node), side * (NODE_RADIUS + 0.06), captions.get(node, ""))
    for edge, op in np.argwhere(mask):
        source, target = space.edges[edge]
        height, color = _arc_height(target - source), OP_COLORS[op % len(OP_COLORS)]
        axes.add_patch(_arc(circles[source], circles[target], height, color))
        label_height = max(height, 0.08)  # above the arrow where it is straight
        _text(axes, (source + target) / 2, label_height, space.ops[op], color=color)
    for node in space.intermediate_nodes:
        if output == space.num_nodes:
            height = -_arc_height(output - node) / 2
            axes.add_patch(_arc(circles[node], circles[output], height, ARROW_COLOR))


def _text(axes: Axes, x: float, y: float, text: str, color: Any = "black") -> None:
    """Small text on a white ground, which interrupts an arrow behind it."""
    ground = {"facecolor": "white", "edgecolor": "none", "pad": 1}
    axes.text(x, y, text, color=color, fontsize=9, bbox=ground, **CENTERED)


def _arc_height(span: int) -> float:
    """Height of the apex; it outgrows the span, so that arrows leave at different angles."""
    return 0.2 * (math.pow(span, 1.5) - 1)


def _arc(source: Circle, target: Circle, height: float, color: Any) -> FancyArrowPatch:
    """An arrow along a parabola between two nodes, whose apex is `height` above them."""
    (start, _), (end, _) = source.center, target.center
    curve = f"arc3,rad={-2 * height / (end - start)}"
    nodes = {"patchA": source, "patchB": target}
    return _arrow(source.center, target.center, color, connectionstyle=curve, zorder=1, **nodes)


def _arrow(start: Any, end: Any, color: Any, **style: Any) -> FancyArrowPatch:
    """An arrow with a small filled head."""
    return FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=10, color=color, **style)


def summary(result: Mapping[str, Any]) -> RenderableType:
    """The result of a search for the console: counts, times, rounds; not the genotype.

    Args:
        result: content of `result.json`.

    Returns:
        Something for `rich.print`.

    Example:
        >>> from rich.console import Console
        >>> seconds = {"total": 9.0, "compile": 5.0, "measure": 4.0}
        >>> metrics = {"kappa": 120.5, "regions": 900}
        >>> pruned = [{"cell": "cell", "edge": 0, "op": "skip_connect"}]
        >>> entry = {"round": 0, "metrics": metrics, "candidates": [{}, {}], "pruned": pruned}
        >>> result = {"preset": "mine", "data": "photos", "seed": 0}
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

    if not result["rounds"]:
        return head
    metrics = list(result["rounds"][0]["metrics"])
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("round", "evaluations", *metrics):
        table.add_column(name, justify="right")
    table.add_column("pruned")
    for entry in result["rounds"]:
        values = [f"{float(entry['metrics'][name]):.5g}" for name in metrics]
        counts = Counter(pruned["op"] for pruned in entry["pruned"]).most_common()
        pruned_ops = ", ".join(f"{op}:{count}" for op, count in counts)
        table.add_row(str(entry["round"] + 1), str(len(entry["candidates"])), *values, pruned_ops)
    return Group(head, Text(), table)

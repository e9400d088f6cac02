"""Scatter plots of score against accuracy, on a scale that spreads out the best."""

from collections.abc import Callable

import matplotlib
import numpy as np
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from tenas_jax.analysis.correlation import Score
from tenas_jax.analysis.statistics import Values

Array = Float[np.ndarray, "*shape"]
STEPS = (50.0, 20.0, 10.0, 5.0, 2.0, 1.0, 0.5, 0.2, 0.1)  # between ticks, %
MARGIN, APART = 0.04, 0.06  # as fractions of the axis height
MANY = 3000  # number of dots from which they are drawn smaller
WIDTH, WIDE = 6.4, 5.0  # inches: default width, and the width from which text is larger
HEIGHT = 0.78  # as a fraction of the width


def scatter(
    score: Score,
    accuracy: Values,
    alive: Bool[np.ndarray, " architecture"],
    *,
    title: str,
    column: str,
    log: bool,
    width: float = WIDTH,
) -> Figure:
    """Plot a score against accuracy (arXiv 2102.11535, Figures 1, 3 and 9).

    Half of the architectures are in the upper half of the plot, see `stretch`.

    Args:
        score: the score of each architecture.
        accuracy: the accuracy of each architecture, %.
        alive: which architectures have no dead operators.
        title: title of the plot.
        column: name of the accuracy.
        log: whether the score axis is logarithmic.
        width: width of the figure, inches; text does not shrink with it.
    """
    with matplotlib.rc_context({"font.size": 10 if width >= WIDE else 7}):
        figure = Figure(figsize=(width, HEIGHT * width), layout="constrained")
        axes = figure.subplots()
        size = (5 if len(accuracy) > MANY else 14) * width / WIDTH
        _draw(axes, score, accuracy, alive, size=size, log=log)
        better = "higher" if score.direction > 0 else "lower"
        axes.set_title(title, fontsize="medium")
        axes.set_xlabel(f"{_plain(score.label)} ({better} is better)")
        axes.set_ylabel(f"{_plain(column)}, %")
        legend = figure.legend(
            loc="outside lower center", ncols=3, frameon=False, columnspacing=1, handletextpad=0.3
        )
        for handle in legend.legend_handles:
            if isinstance(handle, PathCollection):
                handle.set_sizes([14])
    return figure


def _plain(text: str) -> str:
    """Escape a text so that matplotlib does not read it as a formula."""
    return text.replace("$", r"\$")


def _draw(
    axes: Axes,
    score: Score,
    accuracy: Values,
    alive: Bool[np.ndarray, " architecture"],
    *,
    size: float,
    log: bool,
) -> None:
    """Draw the dots and the accuracy axis."""
    axes.grid(alpha=0.3)
    finite = np.isfinite(score.values)
    if log:
        axes.set_xscale("log")
    pools = {"no dead operators": (alive, "C0", 2), "dead operators": (~alive, "0.6", 1)}
    for label, (chosen, color, order) in pools.items():
        points = score.values[finite & chosen], accuracy[finite & chosen]
        dots = axes.scatter(*points, s=size, linewidths=0, alpha=0.6, label=label)
        # Rasterized, because many paths make a file slow to display.
        dots.set(color=color, zorder=order, rasterized=len(accuracy) > MANY)
    if not finite.all():
        # At the edge of the worst values, as a fraction of the width of the axes.
        edge = np.full(np.sum(~finite), 0.0 if score.direction > 0 else 1.0)
        label = f"not finite: {len(edge)}"
        along = axes.get_yaxis_transform()
        points = edge, accuracy[~finite]
        marks = {"color": "C3", "alpha": 0.6, "markersize": 1.5 * np.sqrt(size)}
        axes.plot(*points, "^", label=label, transform=along, clip_on=False, **marks)
    if np.ptp(accuracy) > 0:
        forward, inverse = stretch(accuracy)
        low, high = forward(np.array([accuracy.min(), accuracy.max()]))
        margin = MARGIN * (high - low)
        bottom, top = inverse(np.array([low - margin, high + margin]))
        axes.set_yscale("function", functions=(forward, inverse))
        axes.set_ylim(bottom, top)
        axes.set_yticks(ticks(forward, accuracy))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter("{x:g}")


def stretch(accuracy: Values) -> tuple[Callable[[Array], Array], Callable[[Array], Array]]:
    """A scale of accuracies centered on the median, and its inverse.

    The scale is `-log(best + c - accuracy)`: equal lengths are equal factors of the gap to the
    best, plus c. It is linear if the median is not closer to the best than to the worst.

    Args:
        accuracy: the accuracies to show, not all equal.

    Example:
        >>> accuracy = np.array([10.0, 90.0, 94.0])
        >>> forward, inverse = stretch(accuracy)
        >>> low, middle, high = forward(accuracy)
        >>> round(float((middle - low) / (high - low)), 3), inverse(forward(accuracy)).round(3)
        (0.5, array([10., 90., 94.]))
    """
    best = accuracy.max()
    above, whole = best - np.median(accuracy), np.ptp(accuracy)
    if whole <= 2 * above:
        return (lambda a: a), (lambda a: a)
    # Up to half of the architectures may be about as good as the best.
    c = max(above**2 / (whole - 2 * above), 1e-3 * whole)
    return (
        lambda a: -np.log(np.maximum(best + c - a, 1e-9 * c)),
        lambda b: best + c - np.exp(-b),
    )


def ticks(forward: Callable[[Array], Array], accuracy: Values) -> Float[np.ndarray, " tick"]:
    """Round numbers for the ticks of an accuracy axis, the roundest first, without crowding.

    Args:
        forward: the scale.
        accuracy: the accuracies shown.

    Example:
        >>> ticks(lambda a: a, np.array([10.0, 94.0])).tolist()
        [10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0]
    """
    low, high = forward(np.array([accuracy.min(), accuracy.max()]))
    chosen: dict[float, float] = {}
    for step in STEPS:
        first, last = np.ceil(accuracy.min() / step), np.floor(accuracy.max() / step)
        if last - first > 1000:
            break
        values = np.round(step * np.arange(first, last + 1), 1)
        for value, place in zip(values.tolist(), forward(values).tolist(), strict=True):
            if all(abs(place - other) >= APART * (high - low) for other in chosen.values()):
                chosen[value] = place
    return np.array(sorted(chosen))

"""Figures at the width of a paper's column."""

from typing import Any

import numpy as np
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, Patch
from matplotlib.text import Annotation, Text

SMALLEST = 5.0  # typographic points; journals print no smaller text
TICK_LABEL = 10.0  # matplotlib's default size


def fit(figure: Figure, width: float) -> None:
    """Scale a figure and its contents to a width; text stays at least `SMALLEST`.

    The text of legends is not scaled; set it with `text_size` when you make them.

    Args:
        figure: a figure at its natural size.
        width: in inches; the height is scaled by the same factor.

    Example:
        >>> figure = Figure(figsize=(8, 4))
        >>> text = figure.text(0.5, 0.5, "kappa", fontsize=12)
        >>> fit(figure, 2.0)
        >>> figure.get_size_inches().tolist(), text.get_fontsize()
        ([2.0, 1.0], 5.0)
    """
    scale = _scale_to(figure, width)
    in_legends = [text for legend in figure.legends for text in legend.get_texts()]
    for artist in figure.findobj():
        if artist not in in_legends:
            _scale(artist, scale)
    for axes in figure.axes:  # for the ticks created when the figure is drawn
        size = max(TICK_LABEL * scale, SMALLEST)
        axes.tick_params(labelsize=size, length=3.5 * scale, width=0.8 * scale, pad=3.5 * scale)
        for axis in (axes.xaxis, axes.yaxis):
            axis.labelpad *= scale
    figure.set_size_inches(width, figure.get_figheight() * scale)


def enlargement(size: float, figure: Figure, width: float | None) -> float:
    """How much larger a text is than if it were scaled with the figure.

    Example:
        >>> [enlargement(8.0, Figure(figsize=(8, 4)), width) for width in (None, 6.0, 4.0)]
        [1.0, 1.0, 1.25]
    """
    if width is None:
        return 1.0
    return text_size(size, figure, width) / (size * _scale_to(figure, width))


def text_size(size: float, figure: Figure, width: float | None) -> float:
    """The size of a text after its figure is fitted to a width; None: it is not fitted.

    Example:
        >>> [text_size(8.0, Figure(figsize=(8, 4)), width) for width in (None, 6.0, 4.0)]
        [8.0, 6.0, 5.0]
    """
    return size if width is None else max(size * _scale_to(figure, width), SMALLEST)


def _scale_to(figure: Figure, width: float) -> float:
    return float(width / figure.get_figwidth())


def _scale(artist: Any, scale: float) -> None:
    if isinstance(artist, Text):
        artist.set_fontsize(max(float(artist.get_fontsize()) * scale, SMALLEST))
    if isinstance(artist, Annotation):
        x, y = artist.xyann
        artist.xyann = (x * scale, y * scale)
    if isinstance(artist, Line2D | Patch | LineCollection):
        artist.set_linewidth(np.multiply(artist.get_linewidth(), scale))  # type: ignore[arg-type]
    if isinstance(artist, Line2D):
        artist.set_markersize(artist.get_markersize() * scale)
    if isinstance(artist, FancyArrowPatch):
        artist.set_mutation_scale(artist.get_mutation_scale() * scale)
    if isinstance(artist, PathCollection):
        artist.set_sizes(artist.get_sizes() * scale**2)

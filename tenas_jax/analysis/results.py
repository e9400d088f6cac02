"""The results of searches and scores: display, plot, save."""

import base64
import csv
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from tenas_jax.architectures.space import Mask, SearchSpace
from tenas_jax.errors import InputError, quantity
from tenas_jax.host.files import file_errors, whole_file, write_json
from tenas_jax.metrics.registry import Metric

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class SearchResult:
    """The result of a search.

    Attributes:
        content: the content of `result.json`.
        space: the space that was searched.
        num_classes: number of classes of the data.
    """

    content: Mapping[str, Any]
    space: SearchSpace
    num_classes: int

    @property
    def genotype(self) -> str:
        """The architecture, in the notation of the space."""
        text: str = self.content["genotype"]
        return text

    @cached_property
    def mask(self) -> Mask:
        """The architecture as a mask [cell, edge, op]."""
        return self.space.from_string(self.genotype)

    @property
    def found(self) -> dict[str, Any]:
        """The measurement of the architecture at the end of the search.

        `metrics` are means over `repeats` draws of weights and images, with `standard_errors` (or
        NaN). Empty for results of older versions, which have no measurement.
        """
        return dict(self.content.get("found", {}))

    @property
    def rounds(self) -> list[dict[str, Any]]:
        """The pruning rounds: the supernet's metrics, the candidates, and the pruned operators."""
        rounds: list[dict[str, Any]] = self.content["rounds"]
        return rounds

    @property
    def evaluations(self) -> int:
        """Number of candidates or architectures measured, each with several repeats."""
        return int(self.content["evaluations"])

    @property
    def nonfinite(self) -> int:
        """Number of measurements that were not finite."""
        return int(self.content["nonfinite"])

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds in `total`, and the parts spent in `compile` and `measure`."""
        return dict(self.content["seconds"])

    def network(self, **options: Any) -> Any:
        """The trainable Flax module of the architecture.

        Args:
            **options: its size, such as `channels` and `cells`; see `SearchSpace.network`.
                `num_classes` defaults to the search's.
        """
        return self.space.network(self.mask, **{"num_classes": self.num_classes, **options})

    def to_dict(self) -> dict[str, list[Any]]:
        """The candidates of all rounds as columns, ready for `pandas.DataFrame`.

        Returns:
            `round`, `cell`, `edge`, `op`, `repeats`, `importance`, `pruned`; and for each metric
            the difference and its standard error (`kappa`, `kappa_error`).
        """
        rows = []
        for entry in self.rounds:
            for candidate in entry["candidates"]:
                place = {name: candidate[name] for name in ("cell", "edge", "op")}
                differences = {
                    f"{name}{suffix}": float(value)
                    for suffix, key in (("", "differences"), ("_error", "standard_errors"))
                    for name, value in candidate[key].items()
                }
                rows.append(
                    {
                        "round": entry["round"],
                        **place,
                        "repeats": candidate["repeats"],
                        "importance": candidate["importance"],
                        "pruned": place in entry["pruned"],
                        **differences,
                    }
                )
        return {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}

    def plot_trajectory(self) -> "Axes":
        """Plot the supernet's metrics before each round, and those of the found architecture.

        Raises:
            InputError: there were no rounds.
        """
        from tenas_jax.analysis import report

        found = self.content.get("found")
        figure: Figure = report.trajectory(self._require_rounds(), found, _pyplot())
        return figure.axes[0]

    def plot_pruning(self) -> "list[Axes]":
        """Plot when each operator was pruned; one axes per cell type.

        Raises:
            InputError: there were no rounds.
        """
        from tenas_jax.analysis import report

        rounds = self._require_rounds()
        return list(report.pruning_map(rounds, self.space, self.mask, _pyplot()).axes)

    def plot_cell(self) -> "list[Axes]":
        """Draw the architecture; one axes per cell type."""
        from tenas_jax.analysis import report

        return list(report.draw_architecture(self.space, self.mask, _pyplot()).axes)

    def save(self, folder: str | Path) -> None:
        """Write `result.json` and the plots.

        Args:
            folder: created if it does not exist; existing files of these names are replaced.

        Raises:
            InputError: it cannot be written.
        """
        from tenas_jax.analysis import report

        path = Path(folder)
        with file_errors(path):
            path.mkdir(parents=True, exist_ok=True)
        write_json(path / "result.json", self.content)
        report.write_plots(self.content, self.space, self.mask, path)

    def _require_rounds(self) -> list[dict[str, Any]]:
        if not self.rounds:
            raise InputError("this search had no rounds of pruning: plot the cell alone")
        return self.rounds

    def __repr__(self) -> str:
        return f"SearchResult({self.genotype!r}, space={self.space.name!r})"

    def _repr_html_(self) -> str:
        from tenas_jax.analysis import report

        seconds = self.seconds
        facts = {
            "architecture": self.genotype,
            "space": self.space.name,
            "evaluations": f"{self.evaluations}; measurements not finite: {self.nonfinite}",
            "time": f"{seconds['total']:.1f} s, of it compilation {seconds['compile']:.1f} s",
        }
        measured = {entry["round"] + 1: entry for entry in self.rounds}
        measured |= {"found": self.found} if self.found else {}
        columns: dict[str, list[Any]] = {"round": list(measured)}
        for name in next(iter(measured.values()))["metrics"] if measured else ():
            columns[name] = [report.with_error(entry, name) for entry in measured.values()]
        drawing = io.BytesIO()
        report.draw_architecture(self.space, self.mask).savefig(drawing, format="png", dpi=80)
        picture = base64.b64encode(drawing.getvalue()).decode()
        return (
            _html_facts(facts)
            + (_html_table(columns) if measured else "")
            + f'<img alt="the architecture" src="data:image/png;base64,{picture}">'
        )


@dataclass(frozen=True, eq=False)
class ScoreTable:
    """Architectures and their metrics.

    Attributes:
        genotypes: the architectures, in the notation of the space.
        metrics: the metrics, in the order of the columns of `values`.
        values: means over the repeats, one row per architecture.

    Example:
        >>> from tenas_jax.metrics.registry import KAPPA
        >>> table = ScoreTable(("a=x", "a=y"), (KAPPA,), np.array([[20.0], [10.0]]))
        >>> table["kappa"].tolist(), table.best("kappa")
        ([20.0, 10.0], 'a=y')
    """

    genotypes: tuple[str, ...]
    metrics: tuple[Metric, ...]
    values: Float[np.ndarray, "architecture metric"]

    def __len__(self) -> int:
        return len(self.genotypes)

    def __getitem__(self, metric: str) -> Float[np.ndarray, " architecture"]:
        names = [each.name for each in self.metrics]
        if metric not in names:
            raise InputError(f"no metric {metric!r} was measured: choose from {', '.join(names)}")
        column: np.ndarray = self.values[:, names.index(metric)]
        return column

    def best(self, metric: str) -> str:
        """The best architecture by a metric; NaN is the worst value."""
        column = self[metric]
        (direction,) = [each.direction for each in self.metrics if each.name == metric]
        return self.genotypes[
            int(np.argmax(np.where(np.isnan(column), -np.inf, direction * column)))
        ]

    def to_dict(self) -> dict[str, list[Any]]:
        """The columns `genotype` and one for each metric, ready for `pandas.DataFrame`."""
        columns: dict[str, list[Any]] = {"genotype": list(self.genotypes)}
        for metric in self.metrics:
            columns[metric.name] = self[metric.name].tolist()
        return columns

    def save(self, path: str | Path) -> None:
        """Write a CSV file with a column `genotype` and one for each metric.

        Args:
            path: the file, which is replaced if it exists.

        Raises:
            InputError: it cannot be written.
        """
        columns = self.to_dict()
        with whole_file(Path(path)) as unfinished, open(unfinished, "w") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(columns)
            writer.writerows(zip(*columns.values(), strict=True))

    def __repr__(self) -> str:
        names = ", ".join(metric.name for metric in self.metrics)
        return f"ScoreTable({quantity(len(self), 'architecture')} by {names})"

    def _repr_html_(self) -> str:
        shown = {name: column[:20] for name, column in self.to_dict().items()}
        rest = len(self) - 20
        return _html_table(shown) + (f"<p>and {rest} more</p>" if rest > 0 else "")


def _pyplot() -> Any:
    """Create figures that a notebook displays."""
    import matplotlib.pyplot as plt

    return plt.figure


def _html_facts(facts: Mapping[str, str]) -> str:
    rows = (f"<tr><th>{k}</th><td>{html.escape(v)}</td></tr>" for k, v in facts.items())
    return f"<table>{''.join(rows)}</table>"


def _html_table(columns: Mapping[str, Sequence[Any]]) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
    rows = (
        "<tr>" + "".join(f"<td>{_html_value(value)}</td>" for value in row) + "</tr>"
        for row in zip(*columns.values(), strict=True)
    )
    return f"<table><tr>{head}</tr>{''.join(rows)}</table>"


def _html_value(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else html.escape(str(value))

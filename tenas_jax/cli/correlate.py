"""`tenas correlate`: how well metrics order architectures by their accuracy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import tyro
from rich.console import Console
from rich.table import Table

from tenas_jax.cli.signals import run_interruptibly
from tenas_jax.cli.terminal import parse
from tenas_jax.errors import InputError, first_line
from tenas_jax.metrics.registry import METRICS, get_metric
from tenas_jax.searching.progress import progress_bar, say

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Bool, Int
    from matplotlib.figure import Figure

    from tenas_jax.analysis.correlation import Estimate, Score, Values
    from tenas_jax.analysis.nasbench import AccuracyTable, Architectures

HEADINGS = {"kendall_tau": "Kendall tau", "spearman": "Spearman", "ndcg": "nDCG"}
ALL, ALIVE = "all", "without_dead_operators"


@dataclass(frozen=True)
class CorrelateOptions:
    """What `tenas correlate` is told."""

    scores: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SCORES")]
    """CSV file with a column of architectures (genotypes, NASLib's six numbers, or indices that the
    table has) and a column for each metric; inf and nan are the worst."""
    accuracy_table: Path
    """CSV file with the column arch and accuracies, as tenas nasbench makes; without the columns
    params_m and flops_m these are computed, with the column index SCORES may have indices."""
    column: str = "cifar10_test"
    """Accuracy to compare with."""
    unit: Literal["percent", "fraction"] = "percent"
    """Unit of the accuracies."""
    genotype_column: str = "genotype"
    """Column of the architectures in SCORES."""
    arch_column: str = "arch"
    """Column of the architectures in the accuracy table."""
    metrics: str = ""
    """Metrics to take, such as kappa,regions; without it every column is taken."""
    sums: str = ""
    """Rank sums of metrics to add, such as kappa+regions,kappa+naswot."""
    resamples: int = 1000
    """How often architectures are drawn anew for the 95 % intervals."""
    seed: int = 0
    """Of the drawing."""
    plots: Path | None = None
    """Folder for a plot of each metric and rank sum against accuracy."""
    output: Path | None = None
    """JSON file for the numbers."""

    def __post_init__(self) -> None:
        for name in self.metric_names + self.sum_members:
            get_metric(name)
        for names in self.sum_names:
            if len(set(names)) < max(len(names), 2):
                raise InputError(
                    f"the rank sum {'+'.join(names)} has no two different metrics: "
                    "write such as kappa+regions"
                )

    @property
    def metric_names(self) -> list[str]:
        """Metrics asked for."""
        return self.metrics.replace(" ", "").split(",") if self.metrics else []

    @property
    def sum_names(self) -> list[list[str]]:
        """For each rank sum its metrics."""
        sums = self.sums.replace(" ", "").split(",") if self.sums else []
        return [names.split("+") for names in sums]

    @property
    def sum_members(self) -> list[str]:
        """The metrics of all rank sums."""
        return [name for names in self.sum_names for name in names]


class Pool(NamedTuple):
    """Architectures that are compared with each other, and what came out."""

    caption: str
    accuracy: "Values"
    scores: Mapping[str, "Score"]
    estimates: Mapping[str, Mapping[str, "Estimate"]]


def run(argv: Sequence[str]) -> int:
    """Run `tenas correlate`.

    Args:
        argv: the words after `correlate`.

    Returns:
        Exit code: 0, or 130 or 143 after SIGINT or SIGTERM.

    Raises:
        InputError: the words or a file cannot be used.
    """
    options = parse(
        CorrelateOptions,
        argv,
        command="correlate",
        description="Correlate metrics with accuracies of NAS-Bench-201, over all architectures "
        "scored and over those without dead operators, which lie on no path from input to output. "
        "Every metric counts in its own direction: a positive correlation means that what it "
        "prefers is more accurate.",
    )
    return run_interruptibly(lambda _: _correlate(options), lambda: "interrupted")


def _correlate(options: CorrelateOptions) -> None:
    # Bad flags and --help need not wait for what these import.
    import numpy as np

    from tenas_jax.analysis.correlation import STATISTICS, correlate
    from tenas_jax.analysis.nasbench import load_table
    from tenas_jax.architectures.cell_space import has_dead_operators
    from tenas_jax.host.files import file_errors, json_values, write_json
    from tenas_jax.spaces import NAS_BENCH_201

    table = load_table(
        options.accuracy_table, options.column, key=options.arch_column, unit=options.unit
    )
    scored = _read_scores(options, table)
    rows = _join(scored, table, options)
    masks = [NAS_BENCH_201.from_string(genotype) for genotype in scored.genotypes]
    alive = np.array([not has_dead_operators(NAS_BENCH_201, mask) for mask in masks])
    captions = {ALL: "architectures", ALIVE: "of them without dead operators"}
    pools: dict[str, Pool] = {}
    console = Console()
    with progress_bar(console) as bar:
        for name, chosen in {ALL: np.ones(len(rows), bool), ALIVE: alive}.items():
            if name == ALIVE and alive.sum() < 2:
                say(console, "fewer than two architectures have no dead operators")
                continue
            scores = _scores(options, scored.columns, table, rows, chosen)
            task = bar.add_task("resampling", total=len(scores) * len(STATISTICS))
            accuracy = table.accuracies[rows][chosen]
            estimates = correlate(
                scores,
                accuracy,
                resamples=options.resamples,
                seed=options.seed,
                progress=partial(bar.advance, task),
            )
            pools[name] = Pool(f"{len(accuracy)} {captions[name]}", accuracy, scores, estimates)
    for pool in pools.values():
        console.print(_table(pool))
    say(console, f"{options.column}; intervals: 95 % of {options.resamples} resamples")
    if options.output is not None:
        write_json(options.output, json_values(_as_json(options, pools)))
        say(console, f"numbers are in {options.output}")
    if options.plots is not None:
        with file_errors(options.plots):
            options.plots.mkdir(parents=True, exist_ok=True)
        _write_plots(pools, alive, options)
        say(console, f"plots are in {options.plots}")


def _read_scores(options: CorrelateOptions, table: "AccuracyTable") -> "Architectures":
    from tenas_jax.analysis.nasbench import read_architectures

    _require_undamaged(options.scores)
    chosen = options.metric_names and dict.fromkeys(options.metric_names + options.sum_members)
    key = options.genotype_column
    scored = read_architectures(options.scores, key, list(chosen), named=table.named)
    for name in scored.columns:
        if name not in METRICS:
            raise InputError(
                f"{options.scores} has the column {name!r}, which is no metric "
                f"({', '.join(METRICS)}): say with --metrics which columns to take"
            )
    for name in options.sum_members:
        if name not in scored.columns:
            raise InputError(f"{options.scores} has no column {name!r}: leave it out of --sums")
    return scored


def _require_undamaged(scores: Path) -> None:
    """Compare a file with its checksum, where `tenas score` has left one beside it."""
    from tenas_jax.host.sums import SUMS, require_sums

    sums = scores.parent / SUMS
    try:
        if sums.exists():
            require_sums(scores.parent)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{scores} is damaged or edited ({first_line(error)}): write it again by tenas score "
            f"--resume, or delete {sums} to use it as it is"
        ) from error


def _join(
    scored: "Architectures", table: "AccuracyTable", options: CorrelateOptions
) -> "Int[np.ndarray, ' architecture']":
    """Where the scored architectures are in the table."""
    import numpy as np

    pairs = zip(scored.lines, scored.genotypes, strict=True)
    missing = [f"line {line}, {genotype}" for line, genotype in pairs if genotype not in table]
    if missing:
        raise InputError(
            f"{len(missing)} of the {len(scored.genotypes)} architectures of {options.scores} are "
            f"not in {options.accuracy_table} (first: {missing[0]}): leave them out or use a "
            "table that has them"
        )
    return np.array([table.row(genotype) for genotype in scored.genotypes])


def _scores(
    options: CorrelateOptions,
    columns: Mapping[str, "Values"],
    table: "AccuracyTable",
    rows: "Int[np.ndarray, ' architecture']",
    chosen: "Bool[np.ndarray, ' architecture']",
) -> dict[str, "Score"]:
    """Metrics, rank sums, and what the table itself says, of the chosen architectures."""
    from tenas_jax.analysis.correlation import Score, quality, rank_sum

    scores = {
        name: Score(METRICS[name].label, METRICS[name].direction, values[chosen])
        for name, values in columns.items()
    }
    sums = {
        "+".join(names): Score(
            f"rank sum of {' and '.join(names)}",
            +1,
            rank_sum([quality(scores[name].values, scores[name].direction) for name in names]),
        )
        for names in options.sum_names
    }
    costs = {
        "params_m": Score("parameters, millions", +1, table.parameters[rows][chosen]),
        "flops_m": Score("FLOPs, millions", +1, table.flops[rows][chosen]),
    }
    shown = options.metric_names or list(columns)
    return {name: scores[name] for name in shown} | sums | costs


def _table(pool: Pool) -> Table:
    table = Table(title=pool.caption, title_justify="left", box=None, padding=(0, 2, 0, 0))
    table.add_column("score", no_wrap=True)
    table.add_column("better")
    for heading in ("not\nfinite", *HEADINGS.values()):
        table.add_column(heading, justify="right")
    for name, score in pool.scores.items():
        estimates = pool.estimates[name]
        table.add_row(
            name,
            "higher" if score.direction > 0 else "lower",
            str(_nonfinite(score)),
            *(_text(estimates[key]) for key in HEADINGS),
        )
    return table


def _text(estimate: "Estimate") -> str:
    return f"{estimate.value:.3f} {estimate.low:.2f}..{estimate.high:.2f}"


def _nonfinite(score: "Score") -> int:
    import numpy as np

    return int(np.sum(~np.isfinite(score.values)))


def _as_json(options: CorrelateOptions, pools: Mapping[str, Pool]) -> dict[str, Any]:
    return {
        "scores": str(options.scores),
        "accuracy_table": str(options.accuracy_table),
        "column": options.column,
        "unit": options.unit,
        "resamples": options.resamples,
        "seed": options.seed,
        "architectures": {
            name: {
                "count": len(pool.accuracy),
                "scores": {
                    each: {
                        "direction": score.direction,
                        "nonfinite": _nonfinite(score),
                        **{key: value._asdict() for key, value in pool.estimates[each].items()},
                    }
                    for each, score in pool.scores.items()
                },
            }
            for name, pool in pools.items()
        },
    }


def _write_plots(
    pools: Mapping[str, Pool], alive: "Bool[np.ndarray, ' architecture']", options: CorrelateOptions
) -> None:
    from tenas_jax.host.files import whole_file

    assert options.plots is not None
    for name, score in pools[ALL].scores.items():
        taus = [
            f"{pool.estimates[name]['kendall_tau'].value:.3f} ({pool.caption})"
            for pool in pools.values()
        ]
        title = "Kendall tau " + ", ".join(taus)
        figure = _scatter(
            score,
            pools[ALL].accuracy,
            alive,
            title=title,
            column=options.column,
            log=name in METRICS and _spans_decades(score.values),
        )
        with whole_file(options.plots / f"{name}.png") as unfinished:
            figure.savefig(unfinished, format="png", dpi=150)


def _spans_decades(values: "Values") -> bool:
    import numpy as np

    finite = values[np.isfinite(values)]
    return finite.size > 0 and bool(0 < 10 * finite.min() <= finite.max())


def _scatter(
    score: "Score",
    accuracy: "Values",
    alive: "Bool[np.ndarray, ' architecture']",
    *,
    title: str,
    column: str,
    log: bool,
) -> "Figure":
    """A score against accuracy (arXiv 2102.11535, Figures 1, 3 and 9)."""
    import numpy as np
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 5), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, fontsize=10)
    better = "higher" if score.direction > 0 else "lower"
    axes.set(xlabel=f"{score.label} ({better} is better)", ylabel=f"{column}, %")
    axes.grid(alpha=0.3)
    finite = np.isfinite(score.values)
    if log:
        axes.set_xscale("log")
    pools = {"no dead operators": (alive, "C0", 2), "dead operators": (~alive, "0.6", 1)}
    for label, (chosen, color, order) in pools.items():
        points = score.values[finite & chosen], accuracy[finite & chosen]
        dots = axes.scatter(*points, s=14, linewidths=0, alpha=0.6, label=label)
        dots.set(color=color, zorder=order)
    if not finite.all():
        # At the edge of the worst values, in fractions of the width of the axes.
        edge = np.full(np.sum(~finite), 0.0 if score.direction > 0 else 1.0)
        label = f"not finite: {len(edge)}"
        along = axes.get_yaxis_transform()
        points = edge, accuracy[~finite]
        axes.plot(*points, "^", color="C3", alpha=0.6, label=label, transform=along, clip_on=False)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure

"""`tenas correlate`: how well metrics order architectures by accuracy."""

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tenas_jax.analysis.terms import Term, parse_sums, parse_terms
from tenas_jax.cli.signals import run_interruptibly
from tenas_jax.cli.terminal import parse
from tenas_jax.errors import InputError, first_line, quantity
from tenas_jax.metrics.registry import METRICS
from tenas_jax.searching.progress import say, show_count

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Bool, Int

    from tenas_jax.analysis.correlation import Estimate, Score
    from tenas_jax.analysis.nasbench import AccuracyTable, Architectures
    from tenas_jax.analysis.statistics import Values

# Statistics over all architectures and over the top ones: header, decimal places of the value and
# of the interval.
ORDER = {
    "kendall_tau": ("Kendall tau", 3, 2),
    "spearman": ("Spearman", 3, 2),
    "ndcg": ("nDCG", 3, 2),
}
CHOICE = {
    "first": ("first, %", 2, 1),
    "first_10": ("mean of\nfirst 10, %", 2, 1),
    "precision_1_percent": ("precision\nin best 1 %", 2, 2),
    "precision_5_percent": ("precision\nin best 5 %", 2, 2),
}
PLOT_DPI = {"png": 150, "pdf": 300, "svg": 300}
ALL, ALIVE = "all", "without_dead_operators"


@dataclass(frozen=True)
class CorrelateOptions:
    """Options of `tenas correlate`."""

    scores: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="SCORES ...")]
    """CSV file with a column of architectures (genotypes, NASLib's six numbers, or indices in the
    accuracy table) and a column for each metric; inf and nan are the worst. Several files: the same
    architectures with other seeds; mean and deviation over the files replace the intervals."""
    accuracy_table: Path
    """CSV file with the column arch and accuracies, as tenas nasbench makes; without the columns
    params_m and flops_m these are computed, with the column index SCORES may have indices."""
    column: str = "cifar10_test"
    """Column of the accuracy to compare with."""
    unit: Literal["percent", "fraction"] = "percent"
    """Unit of the accuracies."""
    genotype_column: str = "genotype"
    """Column of the architectures in SCORES."""
    arch_column: str = "arch"
    """Column of the architectures in the accuracy table."""
    metrics: str = ""
    """Columns to use, such as kappa,-snip,mine:lower: metrics, or other columns with their
    direction; a minus reverses it (if it comes first, write --metrics=-snip). Default: all
    columns."""
    sums: str = ""
    """Rank sums of columns to add, such as kappa+regions,regions+-snip,kappa+mine:higher."""
    resamples: int = 1000
    """Number of resamples for the 95 % intervals: bootstrap resamples, or random halves for
    statistics of the top architectures."""
    seed: int = 0
    """Seed of the resamples."""
    plots: Path | None = None
    """Folder for a plot of each metric and rank sum against accuracy."""
    format: Literal["png", "pdf", "svg"] = "png"
    """Format of the plots."""
    width: float = 6.4
    """Width of the plots, inches; 3.3 is a column of a paper."""
    output: Path | None = None
    """JSON file for the numbers."""

    def __post_init__(self) -> None:
        if not self.scores:
            raise InputError("no scores: give the CSV file of tenas score")
        for path in self.scores:
            if self.scores.count(path) > 1:
                raise InputError(f"{path} is given twice: give every seed its own file")
        if not 2 <= self.width <= 30:
            raise InputError(f"width must be from 2 to 30 inches, not {self.width:g}")
        parse_terms(self.metrics)
        parse_sums(self.sums)

    @property
    def terms(self) -> list[Term]:
        """The requested columns."""
        return parse_terms(self.metrics)

    @property
    def sum_terms(self) -> list[list[Term]]:
        """The columns of each rank sum."""
        return parse_sums(self.sums)


class Pool(NamedTuple):
    """A set of architectures to compare, with the estimates for each file."""

    caption: str
    accuracy: "Values"
    scores: Sequence[Mapping[str, "Score"]]
    estimates: Sequence[Mapping[str, Mapping[str, "Estimate"]]]


def run(argv: Sequence[str]) -> int:
    """Run `tenas correlate`.

    Args:
        argv: the arguments after `correlate`.

    Returns:
        Exit code: 0, or 130 or 143 after SIGINT or SIGTERM.

    Raises:
        InputError: the arguments or a file cannot be used.
    """
    options = parse(
        CorrelateOptions,
        argv,
        command="correlate",
        description="Correlate metrics with accuracies of NAS-Bench-201, over all architectures "
        "scored and over those without dead operators, which lie on no path from input to output. "
        "Metrics count in their own direction: a positive correlation means that the architectures "
        "they prefer are more accurate.",
    )
    return run_interruptibly(lambda _: _correlate(options), lambda: "interrupted")


def _correlate(options: CorrelateOptions) -> None:
    # Imported late, so that bad flags and --help answer at once.
    import numpy as np

    from tenas_jax.analysis.correlation import correlate
    from tenas_jax.analysis.nasbench import load_table
    from tenas_jax.analysis.statistics import STATISTICS
    from tenas_jax.architectures.cell_space import has_dead_operators
    from tenas_jax.host.files import file_errors, json_values, write_json
    from tenas_jax.spaces import NAS_BENCH_201

    table = load_table(
        options.accuracy_table,
        options.column,
        key=options.arch_column,
        unit=options.unit,
        remedy="give it one, or name another by --column or --arch-column",
    )
    scored = _read_scores(options, options.scores[0], table)
    others = [_like(scored, options, path, table) for path in options.scores[1:]]
    rows = _join(scored, table, options)
    masks = [NAS_BENCH_201.from_string(genotype) for genotype in scored.genotypes]
    alive = np.array([not has_dead_operators(NAS_BENCH_201, mask) for mask in masks])
    captions = {ALL: "architectures", ALIVE: "of them without dead operators"}
    pools: dict[str, Pool] = {}
    console = Console()
    with show_count(console, "resampling") as progress:
        for name, chosen in {ALL: np.ones(len(rows), bool), ALIVE: alive}.items():
            if name == ALIVE and alive.sum() < 2:
                say(console, "fewer than two architectures have no dead operators")
                continue
            scores = [
                _scores(options, columns, table, rows, chosen)
                for columns in (scored.columns, *others)
            ]
            steps = len(scores) * len(scores[0]) * len(STATISTICS)
            advance = _counting(progress, steps)
            accuracy = table.accuracies[rows][chosen]
            estimates = [
                correlate(
                    each,
                    accuracy,
                    resamples=None if others else options.resamples,
                    seed=options.seed,
                    progress=advance,
                )
                for each in scores
            ]
            pools[name] = Pool(f"{len(accuracy)} {captions[name]}", accuracy, scores, estimates)
    for pool in pools.values():
        console.print(_order_table(pool))
        console.print(_choice_table(pool))
    if others:
        say(console, f"{options.column}; mean and deviation over {len(options.scores)} files")
    else:
        say(
            console,
            f"{options.column}; intervals: 95 % of {options.resamples} resamples; for the top "
            "architectures, of random halves",
        )
    if options.output is not None:
        write_json(options.output, json_values(_as_json(options, pools)))
        say(console, f"numbers are in {options.output}")
    if options.plots is not None:
        with file_errors(options.plots):
            options.plots.mkdir(parents=True, exist_ok=True)
        _write_plots(pools, alive, options)
        say(console, f"plots are in {options.plots}")


def _counting(show: Callable[[int, int], None], total: int) -> Callable[[], None]:
    """A callback that counts steps and shows the progress."""
    done = itertools.count(1)
    return lambda: show(next(done), total)


def _read_scores(options: CorrelateOptions, path: Path, table: "AccuracyTable") -> "Architectures":
    from tenas_jax.analysis.nasbench import read_architectures

    _require_undamaged(path)
    members = [term for terms in options.sum_terms for term in terms]
    wanted = options.terms + members if options.terms else []
    chosen = list(dict.fromkeys(term.column for term in wanted))
    key = options.genotype_column
    remedy = "give it one, or name others by --genotype-column or --metrics"
    scored = read_architectures(path, key, chosen, named=table.named, remedy=remedy)
    known = METRICS.keys() | {term.column for term in members}
    for name in scored.columns if not chosen else ():
        if name not in known:
            raise InputError(
                f"{path} has the column {name!r}, which is not a metric ({', '.join(METRICS)}): "
                f"say with --metrics which columns to take, and which way they are better, as in "
                f"{name}:higher"
            )
    for term in members:
        if term.column not in scored.columns:
            raise InputError(f"{path} has no column {term.column!r}: leave it out of --sums")
    return scored


def _like(
    first: "Architectures", options: CorrelateOptions, path: Path, table: "AccuracyTable"
) -> Mapping[str, "Values"]:
    """The columns of a file with another seed, with its rows in the order of the first file."""
    scored = _read_scores(options, path, table)
    for one, other, where in (
        (first.genotypes, scored.genotypes, path),
        (scored.genotypes, first.genotypes, options.scores[0]),
    ):
        missing = sorted(set(one) - set(other))
        if missing:
            raise InputError(
                f"{where} lacks {quantity(len(missing), 'architecture')} of the other files "
                f"(first: {missing[0]}): give scores of the same architectures"
            )
    if first.columns.keys() != scored.columns.keys():
        names = ", ".join(sorted(first.columns.keys() ^ scored.columns.keys()))
        raise InputError(
            f"{options.scores[0]} and {path} have different columns ({names}): say with --metrics "
            "which to take"
        )
    places = {genotype: row for row, genotype in enumerate(scored.genotypes)}
    order = [places[genotype] for genotype in first.genotypes]
    return {name: values[order] for name, values in scored.columns.items()}


def _require_undamaged(scores: Path) -> None:
    """Verify the checksum of a file, if `tenas score` wrote one beside it."""
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
    """Rows of the scored architectures in the table."""
    import numpy as np

    pairs = zip(scored.lines, scored.genotypes, strict=True)
    missing = [f"line {line}, {genotype}" for line, genotype in pairs if genotype not in table]
    if missing:
        raise InputError(
            f"{options.accuracy_table} lacks {len(missing)} of the "
            f"{quantity(len(scored.genotypes), 'architecture')} of {options.scores[0]} "
            f"(first: {missing[0]}): leave them out or use a table that has them"
        )
    return np.array([table.row(genotype) for genotype in scored.genotypes])


def _scores(
    options: CorrelateOptions,
    columns: Mapping[str, "Values"],
    table: "AccuracyTable",
    rows: "Int[np.ndarray, ' architecture']",
    chosen: "Bool[np.ndarray, ' architecture']",
) -> dict[str, "Score"]:
    """Metrics, rank sums, parameters and FLOPs of the chosen architectures."""
    from tenas_jax.analysis.correlation import Score, quality, rank_sum

    members = [term for terms in options.sum_terms for term in terms]
    terms = options.terms or [
        Term(name, name, METRICS[name].label, METRICS[name].direction)
        if name in METRICS
        else next(term for term in members if term.column == name)
        for name in columns
    ]
    scores = {
        term.name: Score(term.label, term.direction, columns[term.column][chosen]) for term in terms
    }
    sums = {
        "+".join(term.name for term in terms): Score(
            f"rank sum of {' and '.join(term.name for term in terms)}",
            +1,
            rank_sum([quality(columns[term.column][chosen], term.direction) for term in terms]),
        )
        for terms in options.sum_terms
    }
    costs = {
        "params_m": Score("parameters, millions", +1, table.parameters[rows][chosen]),
        "flops_m": Score("FLOPs, millions", +1, table.flops[rows][chosen]),
    }
    return scores | sums | costs


def _order_table(pool: Pool) -> Table:
    """How well scores order all architectures."""
    table = _empty_table(pool.caption)
    table.add_column("better")
    table.add_column("not\nfinite", justify="right")
    return _filled(
        table,
        pool,
        ORDER,
        lambda name: (_better(pool.scores[0][name]), f"{_nonfinite(pool, name):g}"),
    )


def _choice_table(pool: Pool) -> Table:
    """The accuracy of the top architectures by each score."""
    return _filled(_empty_table(f"{pool.caption}: those ranked first"), pool, CHOICE)


def _empty_table(title: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    table.add_column("score", no_wrap=True)
    return table


def _filled(
    table: Table,
    pool: Pool,
    statistics: Mapping[str, tuple[str, int, int]],
    more: Callable[[str], tuple[str, ...]] = lambda name: (),
) -> Table:
    for heading, *_ in statistics.values():
        table.add_column(heading, justify="right")
    for name in pool.scores[0]:
        cells = (
            _text([each[name][key] for each in pool.estimates], places, ends)
            for key, (_, places, ends) in statistics.items()
        )
        table.add_row(escape(name), *more(name), *cells)
    return table


def _text(estimates: Sequence["Estimate"], places: int, ends: int) -> str:
    if len(estimates) > 1:
        mean, deviation = _over_files(estimates)
        return f"{mean:.{places}f}±{deviation:.{places}f}"
    value, low, high = estimates[0]
    return f"{value:.{places}f} {low:.{ends}f}..{high:.{ends}f}"


def _over_files(estimates: Sequence["Estimate"]) -> tuple[float, float]:
    """Mean and standard deviation of a statistic over files."""
    import numpy as np

    values = [estimate.value for estimate in estimates]
    return float(np.mean(values)), float(np.std(values, ddof=1))


def _better(score: "Score") -> str:
    return "higher" if score.direction > 0 else "lower"


def _nonfinite(pool: Pool, name: str) -> int | float:
    """Number of values that are not finite; the mean over several files."""
    import numpy as np

    counts = [int(np.sum(~np.isfinite(scores[name].values))) for scores in pool.scores]
    return counts[0] if len(counts) == 1 else float(np.mean(counts))


def _as_json(options: CorrelateOptions, pools: Mapping[str, Pool]) -> dict[str, Any]:
    files = [str(path) for path in options.scores]
    return {
        "scores": files[0] if len(files) == 1 else files,
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
                        "nonfinite": _nonfinite(pool, each),
                        **{
                            key: _number([estimates[each][key] for estimates in pool.estimates])
                            for key in {**ORDER, **CHOICE}
                        },
                    }
                    for each, score in pool.scores[0].items()
                },
            }
            for name, pool in pools.items()
        },
    }


def _number(estimates: Sequence["Estimate"]) -> dict[str, Any]:
    """A statistic with its interval; for several files the mean, deviation and all values."""
    if len(estimates) == 1:
        return estimates[0]._asdict()
    mean, deviation = _over_files(estimates)
    return {
        "value": mean,
        "deviation": deviation,
        "values": [estimate.value for estimate in estimates],
    }


def _write_plots(
    pools: Mapping[str, Pool], alive: "Bool[np.ndarray, ' architecture']", options: CorrelateOptions
) -> None:
    """Write a plot of each score, from the first of several files."""
    from tenas_jax.analysis.figures import save
    from tenas_jax.analysis.scatter import scatter

    assert options.plots is not None
    single = {"params_m", "flops_m"} | {
        "+".join(term.name for term in terms) for terms in options.sum_terms
    }
    for name, score in pools[ALL].scores[0].items():
        taus = [
            f"{pool.estimates[0][name]['kendall_tau'].value:.3f} ({pool.caption})"
            for pool in pools.values()
        ]
        title = "Kendall tau " + ",\n".join(taus)
        figure = scatter(
            score,
            pools[ALL].accuracy,
            alive,
            title=title,
            column=options.column,
            log=name not in single and _spans_decades(score.values),
            width=options.width,
        )
        file = re.sub(r"[^\w.+-]", "_", name)  # columns may have other characters
        save(figure, options.plots / f"{file}.{options.format}", PLOT_DPI[options.format])


def _spans_decades(values: "Values") -> bool:
    import numpy as np

    finite = values[np.isfinite(values)]
    return finite.size > 0 and bool(0 < 10 * finite.min() <= finite.max())

"""What the searches find on NAS-Bench-201, and how well the metrics rank trained networks.

    python -m bench.quality --data npz:PATH --accuracy-table PATH --workdir DIR [--tables ...]

Tables, each measured and written on its own (`--tables`):

- size-first: the preset nas-bench-201-best, and without each of its parts;
- te-nas: the paper's Tables 1, 4 and 5: both presets, one metric alone, other combinations of
  ranks, random search of equal budget;
- repeats: what more repeats gain, fixed or automatic;
- scores: all architectures of the space by the usual metrics, and their correlations with accuracy.

When started again with the same `--workdir`, searches and scores resume. Scores are stored with six
digits beside the results; if they exist, they are not measured again.
"""

import argparse
import csv
import dataclasses
import gzip
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench import common
from tenas_jax import cli
from tenas_jax.analysis.nasbench import AccuracyTable, load_table
from tenas_jax.configs import get_preset
from tenas_jax.data.images import ImageSet, load_images
from tenas_jax.host.devices import Machine, configure_jax
from tenas_jax.host.files import whole_file
from tenas_jax.metrics.registry import Metric
from tenas_jax.searching.config import NTKConfig, SearchConfig
from tenas_jax.searching.loop import run_search
from tenas_jax.searching.problem import look_up
from tenas_jax.searching.scorer import SupernetScorer, make_scorer

CODE, PAPER, BEST = "nas-bench-201", "nas-bench-201-paper", "nas-bench-201-best"
SMALL = "nas-bench-201, 32 images"
ORIGINAL = 93.405  # the original code's only complete run, seed 0
# The paper's Table 1, mean and deviation of four seeds; its Tables 4 and 5 are of CIFAR-100.
PUBLISHED = {PAPER: "93.9 +- 0.47", CODE: f"93.9 +- 0.47; its code, once: {ORIGINAL}"}
# Measurements; searches with the same key share their rows.
MEASUREMENTS: dict[str, tuple[str, dict[str, Any]]] = {
    BEST: (BEST, {"metrics": "regions,synflow,snip,kappa"}),
    CODE: (CODE, {}),
    PAPER: (PAPER, {}),
    SMALL: (CODE, {"ntk": NTKConfig(batch_size=32)}),
}
# Tables of searches: name, measurement, and settings of the decision.
TABLES: dict[str, list[tuple[str, str, dict[str, Any]]]] = {
    "size-first": [
        (BEST, BEST, {}),
        ("the 25 largest", BEST, {"budget": 25}),
        ("the 265 largest", BEST, {"budget": 265}),
        ("3 repeats", BEST, {"repeats": 3}),
        ("100 at random, without the size", BEST, {"strategy": "random"}),
        ("by regions alone", BEST, {"metrics": "regions"}),
        ("by synflow alone", BEST, {"metrics": "synflow"}),
        ("by kappa and regions (TE-NAS's)", BEST, {"metrics": "kappa,regions", "repeats": 3}),
        ("by regions and -snip", BEST, {"metrics": "regions,-snip", "repeats": 3}),
        ("by size alone", BEST, {"budget": 1}),
    ],
    "te-nas": [
        (CODE, CODE, {}),
        (PAPER, PAPER, {}),
        (f"{PAPER}, kappa only", PAPER, {"combination": "kappa"}),
        (f"{PAPER}, regions only", PAPER, {"combination": "regions"}),
        (f"{PAPER}, min of ranks", PAPER, {"combination": "min"}),
        (f"{PAPER}, max of ranks", PAPER, {"combination": "max"}),
        (f"{PAPER}, random search", PAPER, {"strategy": "random", "budget": 54}),
    ],
    "repeats": [
        ("3 repeats, relative differences", SMALL, {}),
        ("10 repeats, relative differences", SMALL, {"repeats": 10}),
        ("auto repeats, relative differences", SMALL, {"repeats": "auto"}),
        ("3 repeats, log differences", SMALL, {"difference": "log"}),
        ("auto repeats, log differences", SMALL, {"repeats": "auto", "difference": "log"}),
    ],
}
SCORES = "scores"  # the table of correlations
SUMS = "kappa+regions,kappa+regions+synflow,kappa+regions+synflow+flops"


class Remembering:
    """Measures no row twice: searches with one seed share most of their rows.

    Args:
        scorer: measures rows by all requested metrics.
        path: file for the measurements of each program, one line of JSON per row.
    """

    def __init__(self, scorer: SupernetScorer, path: Path) -> None:
        self.batch_rows = scorer.batch_rows
        self._parts, self._path = scorer.parts(), path
        lines = path.read_text().splitlines() if path.exists() else []
        self._known: dict[str, list[float]] = dict(filter(None, map(_parse, lines)))

    def measure(self, metrics: Sequence[Metric], keys: Any, masks: np.ndarray) -> np.ndarray:
        """Rows by some of the metrics; only new ones are measured."""
        import jax

        data = np.asarray(jax.random.key_data(keys))
        rows = [
            f"{k.tobytes().hex()}-{m.tobytes().hex()}" for k, m in zip(data, masks, strict=True)
        ]
        columns: dict[str, np.ndarray] = {}
        for part in self._parts:
            own = [metric.name for metric in part.metrics]
            if not {metric.name for metric in metrics} & set(own):
                continue
            names = [f"{own[0]} {row}" for row in rows]
            if not self._known.keys() >= set(names):
                part.compile()
                self._known |= zip(names, part(keys, masks).tolist(), strict=True)
                with open(self._path, "a") as file:
                    file.write("\n")  # a kill may have left an incomplete line
                    for name in dict.fromkeys(names):
                        file.write(json.dumps([name, self._known[name]]) + "\n")
            columns |= zip(own, np.array([self._known[name] for name in names]).T, strict=True)
        return np.stack([columns[metric.name] for metric in metrics], 1)


class Columns:
    """The scorer of a search by some metrics of a `Remembering`."""

    def __init__(self, remembering: Remembering, metrics: Sequence[Metric]) -> None:
        self._remembering, self.metrics = remembering, tuple(metrics)
        self.batch_rows = remembering.batch_rows
        self.compile_seconds = 0.0
        self.plan: dict[str, int] = {}

    def begin(self) -> None:
        """Do nothing: programs are compiled when they are first needed."""

    def compile(self) -> None:
        """Do nothing, like `begin`."""

    def __call__(self, keys: Any, masks: np.ndarray) -> np.ndarray:
        """Measure the new rows."""
        return self._remembering.measure(self.metrics, keys, masks)


def _parse(line: str) -> tuple[str, list[float]] | None:
    try:
        name, values = json.loads(line)
    except ValueError:
        return None
    return name, values


def base_config(measured: str, data: str) -> SearchConfig:
    """The configuration of a key of `MEASUREMENTS`."""
    preset, fields = MEASUREMENTS[measured]
    config: SearchConfig = dataclasses.replace(get_preset(preset), data=data, **fields)
    return config


def searches(
    options: argparse.Namespace, title: str, images: ImageSet, table: AccuracyTable
) -> Iterator[dict[str, Any]]:
    """Search with every variant of a table and every seed.

    Yields:
        The result and cost of each variant.
    """
    import jax

    devices = jax.devices()
    scorers: dict[str, Remembering] = {}
    for name, measured, fields in TABLES[title]:
        base = base_config(measured, options.data)
        if measured not in scorers:
            whole = base.strategy != "prune"
            scorer = make_scorer(look_up(base), images, devices, single_path=whole)
            path = options.workdir / f"{common.file_name(measured)}.jsonl"
            scorers[measured] = Remembering(scorer, path)
        metrics = get_preset(MEASUREMENTS[measured][0]).metrics
        found, rows = [], []
        for seed in range(options.seeds):
            config = dataclasses.replace(base, **{"seed": seed, "metrics": metrics, **fields})
            problem = look_up(config)
            workdir = options.workdir / f"{common.file_name(name)}-{seed}"
            result = run_search(
                problem,
                Columns(scorers[measured], problem.metrics),
                workdir,
                preset=measured,
                data_fingerprint=images.fingerprint,
                device="bench",
                resume=(workdir / "trace.jsonl").exists(),
            )
            trace = (workdir / "trace.jsonl").read_text().splitlines()
            rows.append(sum("importance" not in line for line in trace))
            found.append(result["genotype"])
            print(f"{name}, seed {seed}: {table.accuracy(found[-1]):.2f} %", flush=True)
        yield {
            "table": title,
            "variant": name,
            "rows": float(np.mean(rows)),
            "accuracies": [table.accuracy(genotype) for genotype in found],
            "ranks": [table.rank(genotype) for genotype in found],
            "genotypes": found,
        }


def whole_space(options: argparse.Namespace, seed: int) -> Path:
    """Measure all architectures if that was not done, and store six digits of every value."""
    path: Path = options.results / f"{CODE}-scores-seed{seed}.csv.gz"
    if path.exists():
        return path
    workdir = options.workdir / f"scores-{seed}"
    words = ["score", CODE, "--all", "--data", options.data, "--seed", seed, "--workdir", workdir]
    resumed = ["--resume"] * (workdir / "trace.jsonl").exists()
    assert cli.main([str(word) for word in [*words, *resumed]]) == 0
    with open(workdir / "scores.csv") as file:
        header, *rows = csv.reader(file)
    text = "\n".join(
        ",".join([genotype, *(f"{float(value):.6g}" for value in values)])
        for genotype, *values in rows
    )
    # Without time and name, equal values give equal files.
    content = gzip.compress(f"{','.join(header)}\n{text}\n".encode(), mtime=0)
    with whole_file(path) as unfinished:
        unfinished.write_bytes(content)
    return path


def correlations(options: argparse.Namespace) -> dict[str, Any]:
    """Correlate the scores of all architectures with their accuracies, with `tenas correlate`."""
    files = [whole_space(options, seed) for seed in range(options.score_seeds)]
    output = options.workdir / "correlations.json"
    output.unlink(missing_ok=True)
    words = ["correlate", *files, "--accuracy-table", options.accuracy_table, "--sums", SUMS]
    words += ["--plots", options.workdir / "plots", "--output", output]
    assert cli.main([str(word) for word in words]) == 0
    content: dict[str, Any] = json.loads(output.read_text())
    return {"preset": CODE, "architectures": content["architectures"]}


def search_rows(results: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
    """Rows of the table of search results."""
    return [
        [
            each["variant"],
            f"{np.mean(each['accuracies']):.2f} +- {np.std(each['accuracies'], ddof=1):.2f}",
            f"{min(each['accuracies']):.2f}",
            f"{max(each['accuracies']):.2f}",
            f"{np.median(each['ranks']):.0f}",
            f"{each['rows']:.0f}",
            PUBLISHED.get(each["variant"], ""),
        ]
        for each in results
    ]


SEARCH_HEADER = ("search", "accuracy %", "worst", "best", "median rank", "measurements", "paper")


def plot_accuracies(path: Path, results: Sequence[Mapping[str, Any]], table: AccuracyTable) -> None:
    """Plot a dot per search and a bar per variant's mean, over all trained networks."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 0.42 * len(results) + 1.6), layout="constrained")
    axes = figure.add_subplot()
    for row, each in enumerate(results):
        axes.plot(each["accuracies"], [row] * len(each["accuracies"]), "o", alpha=0.5, color="C0")
        axes.plot(np.mean(each["accuracies"]), row, "|", markersize=18, color="black")
    axes.axvline(float(table.accuracies.max()), color="C2", label="best of the space")
    axes.axvline(float(np.median(table.accuracies)), color="C3", ls="--", label="median of it")
    axes.set_yticks(range(len(results)), [each["variant"] for each in results])
    axes.invert_yaxis()
    axes.set(
        xlabel="CIFAR-10 test accuracy, %",
        title="What the searches find: seeds, and their mean (|)",
    )
    axes.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    common.save_figure(figure, path)


def correlation_rows(content: Mapping[str, Any]) -> list[list[Any]]:
    """Rows of the table of correlations."""
    pools = content["architectures"]
    everything, alive = pools["all"]["scores"], pools["without_dead_operators"]["scores"]

    def text(estimate: Mapping[str, Any], places: int) -> str:
        value = f"{float(estimate['value']):.{places}f}"
        if "deviation" in estimate:
            return f"{value} +- {float(estimate['deviation']):.{places}f}"
        low, high = (f"{float(estimate[end]):.{places}f}" for end in ("low", "high"))
        return f"{value} ({low} to {high})"

    return [
        [
            name,
            text(score["kendall_tau"], 3),
            text(alive[name]["kendall_tau"], 3) if name in alive else "",
            text(score["spearman"], 3),
            text(score["precision_1_percent"], 2),
            text(score["first"], 2),
            text(score["first_10"], 2),
            score["nonfinite"],
        ]
        for name, score in everything.items()
    ]


CORRELATION_HEADER = (
    "metric",
    "Kendall tau",
    "without dead operators",
    "Spearman",
    "of the first 1 % among the best 1 %",
    "first, %",
    "first 10, %",
    "not finite",
)


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="CIFAR-10: npz:PATH or tfds:cifar10")
    parser.add_argument("--accuracy-table", required=True, type=Path)
    parser.add_argument("--workdir", required=True, type=Path, help="folder for the measurements")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--tables", nargs="+", choices=[*TABLES, SCORES], default=[*TABLES, SCORES])
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument(
        "--score-seeds", type=int, default=1, help="seeds for the scores of the space"
    )
    options = parser.parse_args()
    options.workdir.mkdir(parents=True, exist_ok=True)
    environment = common.prepare_environment(len(os.sched_getaffinity(0)))
    configure_jax(Machine())
    table = load_table(options.accuracy_table)
    config = base_config(CODE, options.data)
    images = load_images(
        config.data,
        image_size=config.image_size,
        limit=config.images,
        minimum=config.ntk.batch_size,
        seed=config.seed,
        data_dir=None,
    )
    about = (
        f"NAS-Bench-201, CIFAR-10. All {len(table)} architectures: mean "
        f"{table.accuracies.mean():.2f} %, median {np.median(table.accuracies):.2f} %, best "
        f"{table.accuracies.max():.2f} %."
    )
    for title in options.tables:
        if title == SCORES:
            content = correlations(options)
            count = content["architectures"]["all"]["count"]
            text = f"{count} architectures measured, {options.score_seeds} seeds.\n\n"
            rows, results = common.table(CORRELATION_HEADER, correlation_rows(content)), [content]
        else:
            results = list(searches(options, title, images, table))
            text, rows = "", common.table(SEARCH_HEADER, search_rows(results))
        folder = common.write_results(
            options.results, f"quality-{title}", environment, results, f"{about} {text}\n\n{rows}"
        )
        if title != SCORES:
            plot_accuracies(folder / f"quality-{title}.png", results, table)


if __name__ == "__main__":
    main()

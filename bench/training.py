"""Train a found architecture and the worst ones of the space.

    python -m bench.training GENOTYPE|WORKDIR --data npz:PATH --accuracy-table PATH --workdir DIR

The NAS-Bench-201 recipe for a few epochs, for three architectures: the found one, the least
accurate one of the table, whose input and output are not connected, and the least accurate one that
learns. Started again, this resumes an interrupted training.
"""

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench import common
from tenas_jax import cli
from tenas_jax.analysis.nasbench import AccuracyTable, load_table
from tenas_jax.spaces.registry import load_genotype
from tenas_jax.training.folder import epoch_records

CHANCE = 10.0  # %, the accuracy of a network that learns nothing


def contestants(found: str, table: AccuracyTable) -> dict[str, str]:
    """The architectures to train."""
    space, mask = load_genotype(found)
    learns = np.flatnonzero(table.accuracies > CHANCE + 1)
    return {
        "found": space.to_string(mask),
        "worst that learns": table.genotypes[learns[table.accuracies[learns].argmin()]],
        "worst": table.genotypes[table.accuracies.argmin()],
    }


def train(genotype: str, folder: Path, options: argparse.Namespace) -> Sequence[dict[str, Any]]:
    """Train, and return the metrics of each epoch."""
    words = ["train", genotype, "--recipe", "nas-bench-201", "--data", options.data]
    words += ["--epochs", str(options.epochs), "--batch-size", str(options.batch_size)]
    words += ["--cells", str(options.cells), "--output", str(folder)]
    assert cli.main([*words, *(["--resume"] if (folder / "config.json").exists() else [])]) == 0
    return epoch_records(folder)


def plot(path: Path, results: Sequence[dict[str, Any]]) -> None:
    """Loss and test accuracy by epoch."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 6.5), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    for each in results:
        epochs = [record["epoch"] for record in each["epochs"]]
        label = (
            f"{each['name']}: {each['table_accuracy']:.2f} % after 200 epochs on all of CIFAR-10"
        )
        upper.plot(epochs, [record["train_loss"] for record in each["epochs"]], marker="o")
        accuracies = [100 * record["test_accuracy"] for record in each["epochs"]]
        lower.plot(epochs, accuracies, marker="o", label=label)
    upper.set(ylabel="training loss (nats)")
    lower.set(xlabel="epoch", ylabel="accuracy on held-out images, %")
    for axes in (upper, lower):
        axes.grid(alpha=0.3)
    figure.legend(*lower.get_legend_handles_labels(), loc="outside upper center", frameon=False)
    common.save_figure(figure, path)


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("found", help="genotype, or work directory of a search")
    parser.add_argument("--data", required=True, help="labeled images: npz:PATH, tfds:cifar10")
    parser.add_argument("--accuracy-table", required=True, type=Path)
    parser.add_argument("--workdir", required=True, type=Path)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--cells", type=int, default=5, help="cells per stage")
    options = parser.parse_args()
    environment = common.prepare_environment(len(os.sched_getaffinity(0)))
    table = load_table(options.accuracy_table)
    results: list[dict[str, Any]] = []
    for name, genotype in contestants(options.found, table).items():
        epochs = train(genotype, options.workdir / common.file_name(name), options)
        results.append(
            {
                "name": name,
                "genotype": genotype,
                "table_accuracy": table.accuracy(genotype),
                "epochs": epochs,
            }
        )
    config = json.loads((options.workdir / "found" / "config.json").read_text())
    rows = [
        [
            each["name"],
            f"`` {each['genotype']} ``".replace("|", "\\|"),
            f"{each['table_accuracy']:.2f}",
            *(f"{record['train_loss']:.3f}" for record in (each["epochs"][0], each["epochs"][-1])),
            f"{100 * each['epochs'][-1]['test_accuracy']:.1f}",
        ]
        for each in results
    ]
    header = ("architecture", "genotype", "table, %", "first loss", "last loss", "accuracy, %")
    folder = common.write_results(
        options.results,
        "training",
        environment,
        [{"config": config}, *results],
        f"{options.epochs} epochs, batch {options.batch_size}, {options.cells} cells a stage.\n\n"
        f"{common.table(header, rows)}",
    )
    plot(folder / "training.png", results)


if __name__ == "__main__":
    main()

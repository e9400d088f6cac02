"""Accuracy tables of NAS-Bench-201 (Dong and Yang 2020), made from its archives.

A table is a CSV file, optionally compressed (`.gz`), with a row for each architecture and at least
the columns `arch` and an accuracy such as `cifar10_test` (%). The columns `params_m` and `flops_m`
(millions) are computed if they are missing. If there is a column `index`, architectures may be
given by their index, as in arch2vec.
"""

import csv
import gzip
import io
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from tenas_jax.analysis.correlation import require_percent
from tenas_jax.errors import InputError, quantity, within
from tenas_jax.host.files import file_errors, read_text, whole_file
from tenas_jax.spaces import NAS_BENCH_201

Values = Float[np.ndarray, " architecture"]
Unit = Literal["percent", "fraction"]
ONE = "give it one"

# Column of a table -> data set and split in the archives, trained for 200 epochs.
ACCURACIES = {
    "cifar10_test": ("cifar10", "ori-test"),
    "cifar100_test": ("cifar100", "x-test"),
    "imagenet16_120_test": ("ImageNet16-120", "x-test"),
}


class Architectures(NamedTuple):
    """The rows of a CSV file."""

    genotypes: tuple[str, ...]
    """One NAS-Bench-201 string per row, without duplicates."""
    lines: tuple[int, ...]
    """Line numbers of the rows, from 1."""
    columns: Mapping[str, Values]
    """Numbers, which may be infinite or NaN."""


@dataclass(frozen=True, eq=False)
class AccuracyTable:
    """Accuracy and cost of trained NAS-Bench-201 architectures.

    Args:
        genotypes: NAS-Bench-201 strings without duplicates; all 15,625 or some.
        accuracies: of each, %.
        parameters: of each, millions.
        flops: of each, millions per image.
        indices: the index of each in the benchmark; None: not known.

    Example:
        >>> shallow, deep = (f"|none~0|+|none~0|none~1|+|{op}~0|none~1|none~2|"
        ...                  for op in ("skip_connect", "nor_conv_3x3"))
        >>> costs = np.array([0.1, 0.3])
        >>> table = AccuracyTable((shallow, deep), np.array([80.0, 90.5]), costs, costs)
        >>> table.accuracy(shallow), table.rank(shallow), table.regret(shallow)
        (80.0, 2, 10.5)
    """

    genotypes: tuple[str, ...]
    accuracies: Values
    parameters: Values
    flops: Values
    indices: tuple[int, ...] | None = None

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {genotype: row for row, genotype in enumerate(self.genotypes)}

    def __len__(self) -> int:
        return len(self.genotypes)

    def __contains__(self, genotype: str) -> bool:
        return canonical(genotype) in self._rows

    def row(self, genotype: str) -> int:
        """The row of an architecture.

        Args:
            genotype: a NAS-Bench-201 string.

        Returns:
            Index into the arrays.

        Raises:
            InputError: the text is not a genotype of NAS-Bench-201, or not in the table.
        """
        text = canonical(genotype)
        if text not in self._rows:
            raise InputError(
                f"{text} is not among the {quantity(len(self), 'architecture')} of the accuracy "
                "table: use a table that has it"
            )
        return self._rows[text]

    def named(self, text: str) -> str:
        """The genotype that a text denotes.

        Args:
            text: a NAS-Bench-201 string, or the index of an architecture.

        Returns:
            The genotype in canonical spelling.

        Raises:
            InputError: it is neither, or the table does not have the index.
        """
        if not (text.strip().isascii() and text.strip().isdecimal()):
            return canonical(text)
        if self.indices is None:
            raise InputError(
                f"architecture {text.strip()} is an index, and the accuracy table has no column "
                "'index': use a table that has it, or write genotypes"
            )
        if int(text) not in self.indices:
            raise InputError(f"the accuracy table has no architecture with the index {text}")
        return self.genotypes[self.indices.index(int(text))]

    def accuracy(self, genotype: str) -> float:
        """Accuracy of an architecture, %; for errors see `row`."""
        return float(self.accuracies[self.row(genotype)])

    def rank(self, genotype: str) -> int:
        """Rank by accuracy, from 1; for errors see `row`."""
        return 1 + int(np.sum(self.accuracies > self.accuracy(genotype)))

    def regret(self, genotype: str) -> float:
        """Difference to the best accuracy of the table, in points of %; for errors see `row`."""
        return float(self.accuracies.max()) - self.accuracy(genotype)

    def describe(self, genotype: str) -> str:
        """Accuracy, rank and regret of an architecture in one line; for errors see `row`.

        Args:
            genotype: a NAS-Bench-201 string.

        Example:
            >>> none = "|none~0|+|none~0|none~1|+|none~0|none~1|none~2|"
            >>> one = np.ones(1)
            >>> AccuracyTable((none,), 10 * one, one, one).describe(none)
            'accuracy 10.00 %, rank 1 of 1, regret 0.00 %'
        """
        return (
            f"accuracy {self.accuracy(genotype):.2f} %, rank {self.rank(genotype)} of {len(self)}, "
            f"regret {self.regret(genotype):.2f} %"
        )


@lru_cache(maxsize=1 << 16)  # tables and scores contain the same architectures
def canonical(genotype: str) -> str:
    """The canonical spelling of an architecture, which matches scores to tables.

    Args:
        genotype: a NAS-Bench-201 string, with the inputs of a node in any order.

    Raises:
        InputError: the text is not a genotype of NAS-Bench-201.

    Example:
        >>> canonical("|none~0|+|none~1|skip_connect~0|+|none~0|none~1|none~2|")
        '|none~0|+|skip_connect~0|none~1|+|none~0|none~1|none~2|'
    """
    return NAS_BENCH_201.to_string(NAS_BENCH_201.from_string(genotype))


def load_table(
    path: Path,
    column: str = "cifar10_test",
    *,
    key: str = "arch",
    unit: Unit = "percent",
    remedy: str = ONE,
) -> AccuracyTable:
    """Read an accuracy table.

    Args:
        path: a CSV file, compressed if its name ends in `.gz`.
        column: the column of the accuracy.
        key: the column of the architectures.
        unit: unit of the accuracies.
        remedy: what would mend a missing or duplicated column.

    Returns:
        The table.

    Raises:
        InputError: the file cannot be read, lacks a column or has no rows; an architecture is
            duplicated or of another space; or an accuracy is not in this unit.
    """
    optional = "params_m", "flops_m", "index"
    rows = read_architectures(path, key, [column], optional=optional, remedy=remedy)
    accuracies = rows.columns[column]
    highest, noun = (100, "percentage") if unit == "percent" else (1, "fraction")
    for line, accuracy in zip(rows.lines, accuracies, strict=True):
        if not 0 <= accuracy <= highest:  # nor NaN
            raise InputError(
                f"{path}, line {line}: {column} is {accuracy}: give a {noun} from 0 to {highest}"
            )
    with within(f"{path}: {column}"):
        accuracies = accuracies * (100 / highest)
        require_percent(accuracies)
    costs = NAS_BENCH_201.costs(np.stack([*map(NAS_BENCH_201.from_string, rows.genotypes)]))
    computed = {"params_m": costs.parameters / 1e6, "flops_m": costs.flops / 1e6}
    parameters, flops = (rows.columns.get(name, computed[name]) for name in computed)
    return AccuracyTable(rows.genotypes, accuracies, parameters, flops, _indices(path, rows))


def read_architectures(
    path: Path,
    key: str,
    columns: Sequence[str] = (),
    *,
    optional: Sequence[str] | None = None,
    named: Callable[[str], str] = canonical,
    remedy: str = ONE,
) -> Architectures:
    """Read a CSV file with a row for each architecture.

    Args:
        path: the file, compressed if its name ends in `.gz`.
        key: the column of the genotypes.
        columns: columns of numbers to read.
        optional: columns to read if they exist; None: all others, if `columns` is empty.
        named: maps a text in the column `key` to its genotype.
        remedy: what would mend a missing or duplicated column.

    Returns:
        Genotypes in canonical spelling, line numbers, numbers.

    Raises:
        InputError: the file cannot be read or is not a CSV file; a column is missing or
            duplicated; there are no rows; a genotype or a number is invalid; or a genotype is
            duplicated.
    """
    header, rows = _read_csv(path)
    wanted = (() if columns else header) if optional is None else optional
    names = [*columns, *(each for each in header if each in wanted and each not in (key, *columns))]
    for name in (key, *names):
        if header.count(name) != 1:
            raise InputError(
                f"{path} has {quantity(header.count(name), 'column')} {name!r} "
                f"({', '.join(header)}): {remedy}"
            )
    if not rows:
        raise InputError(f"{path} has no rows: give it one for each architecture")
    lines: dict[str, int] = {}
    numbers = np.empty((len(names), len(rows)))
    for row, (line, fields) in enumerate(rows):
        where = f"{path}, line {line}"
        if len(fields) != len(header):
            raise InputError(f"{where} has {len(fields)} fields: the header has {len(header)}")
        with within(where):
            genotype = named(fields[header.index(key)])
        if genotype in lines:
            raise InputError(
                f"{where}: {genotype} is on line {lines[genotype]} already: "
                "give every architecture one row"
            )
        lines[genotype] = line
        for index, name in enumerate(names):
            numbers[index, row] = _number(where, name, fields[header.index(name)])
    return Architectures(
        tuple(lines), tuple(lines.values()), dict(zip(names, numbers, strict=True))
    )


def convert(
    source: Path, target: Path, progress: Callable[[int, int], None] = lambda done, total: None
) -> int:
    """Make an accuracy table from an official archive of NAS-Bench-201.

    Accuracies are test accuracies after 200 epochs, averaged over all available seeds. Archives
    are Python pickles, which can run arbitrary code when they are read: use only the official
    ones. Reading an archive that is a single file needs several times its size in memory.

    Args:
        source: `NATS-tss-v1_0-*.pickle.pbz2`, the folder `NATS-tss-v1_0-*-simple`, or
            `NAS-Bench-201-v1_*.pth`, which needs PyTorch.
        target: the table; compressed if its name ends in `.gz`.
        progress: called with the numbers of architectures done and in total.

    Returns:
        The number of architectures.

    Raises:
        InputError: the source is not such an archive, the target exists or cannot be written, or
            a package is missing.
    """
    with file_errors(source):
        source.stat()
    if target.exists():
        raise InputError(f"{target} exists: choose another --output")
    rows = [["index", "arch", *ACCURACIES, "params_m", "flops_m"]]
    with _archive_errors(source):
        genotypes, results = _open_archive(source)
        for index, genotype in enumerate(genotypes):
            with within(f"{source}, architecture {index}"):
                text = canonical(genotype)
            rows.append([str(index), text, *_table_numbers(results(index))])
            progress(index + 1, len(genotypes))
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows(rows)
    content = table.getvalue().encode()
    with whole_file(target) as unfinished:
        compressed = target.suffix == ".gz"
        unfinished.write_bytes(gzip.compress(content, mtime=0) if compressed else content)
    return len(genotypes)


def _read_csv(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header, and the rows with their line numbers."""
    reader = csv.reader(io.StringIO(read_text(path), ""), strict=True, skipinitialspace=True)
    try:
        rows = [(reader.line_num, fields) for fields in reader if fields]
    except csv.Error as error:
        raise InputError(f"{path} cannot be read ({error}): give a CSV file") from None
    return (rows[0][1], rows[1:]) if rows else ([], [])


def _indices(path: Path, rows: Architectures) -> tuple[int, ...] | None:
    if "index" not in rows.columns:
        return None
    indices = rows.columns["index"]
    if not (np.isfinite(indices) & (indices >= 0) & (indices % 1 == 0)).all():
        raise InputError(
            f"{path} has an index that is not a number from 0: correct or leave them out"
        )
    if len(set(indices.tolist())) < len(indices):
        raise InputError(f"{path} has an index twice: give every architecture its own")
    return tuple(map(int, indices))


def _number(where: str, column: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(f"{where}: {column} is {text!r}: give a number, inf or nan") from None


def _open_archive(source: Path) -> tuple[Sequence[str], Callable[[int], Any]]:
    """The genotypes of an archive, and a function from their indices to their results."""
    try:
        from nats_bench import ArchResults, pickle_load  # type: ignore
    except ImportError:
        raise InputError(
            "archives are read by the package nats-bench: pip install 'tenas_jax[nasbench]'"
        ) from None
    if source.is_dir():
        # One file per architecture, so they are never all in memory.
        genotypes = pickle_load(source / "meta.pickle.pbz2")["meta_archs"]
        return genotypes, lambda index: ArchResults.create_from_state_dict(
            pickle_load(source / f"{index:06d}.pickle.pbz2")["200"]
        )
    if source.suffix == ".pth":
        try:
            import torch
        except ImportError:
            raise InputError(f"{source} is read by PyTorch: pip install torch") from None
        archive, epochs = torch.load(source, map_location="cpu", weights_only=False), "full"
    else:
        archive, epochs = pickle_load(source), "200"
    results = archive["arch2infos"]
    return archive["meta_archs"], lambda index: ArchResults.create_from_state_dict(
        results[index][epochs]
    )


def _table_numbers(results: Any) -> list[str]:
    accuracies = [
        results.get_metrics(dataset, split)["accuracy"] for dataset, split in ACCURACIES.values()
    ]
    costs = results.get_compute_costs("cifar10")
    return [*(f"{a:.4f}" for a in accuracies), f"{costs['params']:.6f}", f"{costs['flops']:.4f}"]


@contextmanager
def _archive_errors(source: Path) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    # Errors of reading a file that is not an archive, or of looking up missing entries.
    except (
        AttributeError, EOFError, ImportError, LookupError, OSError, pickle.UnpicklingError,
        RuntimeError, TypeError, ValueError,
    ) as error:  # fmt: skip
        raise InputError(
            f"{source} is not an archive of NAS-Bench-201 ({type(error).__name__}: {error}): give "
            "NATS-tss-v1_0-*.pickle.pbz2, NATS-tss-v1_0-*-simple or NAS-Bench-201-v1_*.pth"
        ) from error

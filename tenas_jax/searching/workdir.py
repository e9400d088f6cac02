"""The files of a search: its configuration, the trace of its measurements, its result.

All files are written atomically, except that a kill may cut off the last line of a trace.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from tenas_jax.errors import InputError
from tenas_jax.host.files import file_errors, is_number, json_values, read_json, write_json
from tenas_jax.host.journal import Journal, append_journal, read_journal
from tenas_jax.host.processes import exchange, is_main, shared_errors
from tenas_jax.host.reproducibility import changes
from tenas_jax.metrics.registry import Metric
from tenas_jax.searching.config import SearchConfig, differences

PLAN = "memory.json"
OTHER_FOLDER = "start again in another --workdir"


def open_workdir(workdir: Path, settings: Mapping[str, Any], *, resume: bool | None) -> None:
    """Create a work directory with an empty trace, or check that it holds this search.

    Args:
        workdir: the directory; created if it does not exist.
        settings: the content of `config.json`; see `tenas_jax.searching.loop.search_settings`.
        resume: whether the directory must already hold this search; None: it may.

    Raises:
        InputError: the directory

            - holds another search;
            - holds this search although `resume` is false, or none although it is true;
            - cannot be written.
    """
    config, trace = workdir / "config.json", workdir / "trace.jsonl"
    with file_errors(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        if config.exists() and not trace.exists():
            raise InputError(f"{workdir} holds something else: choose another --workdir")
        if resume and not (config.exists() and trace.exists()):
            raise InputError(f"{workdir} holds no search to continue: leave out --resume")
        # Without measurements, nothing is lost by starting again.
        started = trace.exists() and trace.stat().st_size > 0
        started |= (workdir / "result.json").exists()
    if started or resume:
        _require_same(config, settings)
    if started and resume is False:
        raise InputError(
            f"{workdir} already holds this search: continue with --resume or choose another "
            "--workdir"
        )
    if not started:
        with file_errors(trace):
            trace.touch()
            (workdir / PLAN).unlink(missing_ok=True)
        write_json(config, settings)


@contextmanager
def shared_workdir(
    workdir: Path, settings: Mapping[str, Any], *, resume: bool | None
) -> Iterator[Path]:
    """A work directory for each process: the real one in process 0, a temporary copy elsewhere.

    Args:
        workdir: the directory of process 0; the others need no access to it.
        settings: the content of `config.json`, the same in every process.
        resume: whether the directory must already hold a search; None: it may.

    Yields:
        A directory with the same files in every process.

    Raises:
        InputError: in every process, if process 0 cannot use its directory or settings differ.
    """
    if jax.process_count() == 1:
        yield workdir
        return
    files = {}
    with shared_errors():
        _require_agreement([json.loads(each) for each in exchange(json.dumps(settings))])
        if is_main():
            open_workdir(workdir, settings, resume=resume)
            files = _read_files(workdir, settings)
    files_of_main = json.loads(exchange(json.dumps(files))[0])
    if is_main():
        yield workdir
        return
    with TemporaryDirectory() as folder:
        for name, text in files_of_main.items():
            (Path(folder) / name).write_text(text)
        yield Path(folder)


def read_plan(workdir: Path) -> dict[str, int]:
    """Read the file of `write_plan`, for a resumed search.

    Args:
        workdir: the directory.

    Raises:
        InputError: the file is damaged, or cannot be read.
    """
    path = workdir / PLAN
    if not path.exists():
        return {}
    plan: dict[str, int] = read_json(path, remedy="delete it; it will be made again")["cotangents"]
    return plan


def write_plan(workdir: Path, plan: Mapping[str, int]) -> None:
    """Record the cotangents per pass of programs limited by memory, before they measure anything.

    Args:
        workdir: the directory.
        plan: the cotangents per pass, by the metrics of a program.

    Raises:
        InputError: the file cannot be written.
    """
    write_json(workdir / PLAN, {"cotangents": dict(plan)})


class Trace:
    """The trace: recorded measurements, to be replayed in order, in an append-only file.

    Args:
        path: an existing file; an incomplete last line is removed.
        settings: the content of `config.json`.

    Raises:
        InputError: a line other than the last is damaged, or the file cannot be used.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self._path = path
        journal = _read_trace(path, settings)
        self._recorded, self._seal = journal.records, journal.seal
        self._taken = 0

    def take(
        self, identities: Sequence[Mapping[str, Any]], metrics: Sequence[Metric]
    ) -> list[list[float]]:
        """Replay the recorded measurements of the first of these rows, as far as they exist.

        Args:
            identities: for each row the fields that identify it; the others are its values.
            metrics: the metrics of the values.

        Returns:
            The values of the replayed rows, shape (rows, metrics).

        Raises:
            InputError: a record is of another row, or has a value that a metric cannot have.
        """
        values = []
        for identity in identities[: len(self._recorded) - self._taken]:
            record = dict(self._recorded[self._taken])
            stored = [record.pop(metric.name, None) for metric in metrics]
            if record != identity or not all(
                is_number(value) or value in ("inf", "-inf", "nan") for value in stored
            ):
                raise self._foreign_line()
            numbers = list(map(float, stored))
            _require_possible(metrics, numbers, f"{self._path}, line {self._taken + 1}: ")
            values.append(numbers)
            self._taken += 1
        return values

    def append(
        self,
        identities: Sequence[Mapping[str, Any]],
        metrics: Sequence[Metric],
        values: Float[np.ndarray, "row metric"],
    ) -> None:
        """Append measurements; they are on disk when this returns.

        Args:
            identities: for each row the fields that identify it.
            metrics: the metrics of the values.
            values: the values, shape (rows, metrics).

        Raises:
            InputError: a metric cannot have such a value, or they cannot be written; the file is
                then unchanged.
        """
        names = [metric.name for metric in metrics]
        for row in values.tolist():
            _require_possible(metrics, row)
        self._write(
            [
                {**identity, **dict(zip(names, row.tolist(), strict=True))}
                for identity, row in zip(identities, values, strict=True)
            ]
        )

    def note(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Append records derived from earlier measurements, unless they exist already.

        Args:
            records: JSON values; numbers may be infinite or NaN.

        Raises:
            InputError: other records are in their place, or they cannot be written.
        """
        known = len(self._recorded) - self._taken
        for record in records[:known]:
            if self._recorded[self._taken] != json_values(dict(record)):
                raise self._foreign_line()
            self._taken += 1
        self._write(records[known:])

    def require_end(self) -> None:
        """Check that every recorded measurement was replayed.

        Raises:
            InputError: there are more records.
        """
        if self._taken < len(self._recorded):
            raise self._foreign_line()

    def _write(self, records: Sequence[Mapping[str, Any]]) -> None:
        finite = [json_values(dict(record)) for record in records]
        self._seal = append_journal(self._path, finite, self._seal)

    def _foreign_line(self) -> InputError:
        return InputError(
            f"{self._path}, line {self._taken + 1} is not the measurement that this search makes "
            f"there: {OTHER_FOLDER}"
        )


def _require_possible(metrics: Sequence[Metric], values: Sequence[float], where: str = "") -> None:
    for metric, value in zip(metrics, values, strict=True):
        if value < metric.minimum:
            raise InputError(
                f"{where}metric {metric.name} is {value}, but at least {metric.minimum:g} by its "
                "definition: correct it"
            )


def _require_agreement(settings: Sequence[Mapping[str, Any]]) -> None:
    for process, theirs in enumerate(settings):
        names = _differing(settings[0], theirs)
        if names:
            raise InputError(
                f"process {process} differs from process 0 in {', '.join(names)}: "
                "give every process the same preset, flags and images"
            )


def _read_files(workdir: Path, settings: Mapping[str, Any]) -> dict[str, str]:
    # Removes an incomplete line, and detects damage before the other processes read a copy.
    _read_trace(workdir / "trace.jsonl", settings)
    files = [workdir / name for name in ("config.json", "trace.jsonl", "result.json", PLAN)]
    with file_errors(workdir):
        return {file.name: file.read_text() for file in files if file.exists()}


def _read_trace(path: Path, settings: Mapping[str, Any]) -> Journal:
    journal = read_journal(path, settings)
    if journal.damaged and not journal.torn:
        remedy = f"delete it and all lines after it to measure them again, or {OTHER_FOLDER}"
        raise journal.error(path, remedy)
    if journal.torn:
        with file_errors(path):
            os.truncate(path, journal.size)
    return journal


def _require_same(path: Path, settings: Mapping[str, Any]) -> None:
    stored = read_json(path, remedy=OTHER_FOLDER)
    try:
        names = _differing(stored, settings)
    except (KeyError, TypeError, AttributeError, InputError):
        raise InputError(f"{path} is of another version: {OTHER_FOLDER}") from None
    if names:
        raise InputError(
            f"{path.parent} holds a search that differs in {', '.join(names)}: "
            "give the same values or choose another --workdir"
        )


def _differing(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    named = {"preset": "preset", "data_fingerprint": "the images"}
    names = [text for name, text in named.items() if then[name] != now[name]]
    names += ["the files of your modules"] if then["sources"] != now["sources"] else []
    configs = (SearchConfig.from_dict(settings["config"]) for settings in (then, now))
    names += differences(*configs)
    return names + changes(then["environment"], now["environment"])

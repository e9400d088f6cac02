"""The files of a search: which search it is, the trace of its measurements, its result.

Every file is whole at any moment, but for the last line of a trace, which a kill may tear.
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
    """Make a work directory with an empty trace, or make sure that it holds this search.

    Args:
        workdir: the directory; made if there is none.
        settings: what `config.json` is to hold; see `tenas_jax.searching.loop.search_settings`.
        resume: whether the directory must hold this search already; None: it may.

    Raises:
        InputError: it holds another search, holds this one and `resume` is false, holds none and
            it is true, or cannot be written.
    """
    config, trace = workdir / "config.json", workdir / "trace.jsonl"
    with file_errors(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        if config.exists() and not trace.exists():
            raise InputError(f"{workdir} holds something else: choose another --workdir")
        if resume and not (config.exists() and trace.exists()):
            raise InputError(f"{workdir} holds no search to continue: leave out --resume")
        # Without a measurement nothing is lost by starting again.
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
    """A work directory for each process of a search: process 0's own, elsewhere a passing copy.

    Args:
        workdir: the directory of process 0; the others need not see it.
        settings: what `config.json` is to hold, the same in every process.
        resume: whether the directory must hold a search already; None: it may.

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
    """What `write_plan` wrote, for a search that goes on.

    Args:
        workdir: the directory.

    Raises:
        InputError: the file is damaged, or cannot be read.
    """
    path = workdir / PLAN
    if not path.exists():
        return {}
    plan: dict[str, int] = read_json(path, remedy="delete it, and what fits is found anew")[
        "cotangents"
    ]
    return plan


def write_plan(workdir: Path, plan: Mapping[str, int]) -> None:
    """Record the cotangents in a pass where memory decides, before anything measured with them.

    Args:
        workdir: the directory.
        plan: their number, by the metrics of a program.

    Raises:
        InputError: the file cannot be written.
    """
    write_json(workdir / PLAN, {"cotangents": dict(plan)})


class Trace:
    """The measurements of earlier processes, to be taken in order, and a file that only grows.

    Args:
        path: an existing file; a last line that is torn is cut off it.
        settings: what `config.json` holds.

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
        """The recorded measurements of the first of these rows, as many as there are.

        Args:
            identities: for each row what was measured; other values of its line are its numbers.
            metrics: what its numbers are.

        Returns:
            For each row taken its numbers, shape (rows, metrics).

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
        """Write measurements; when this returns they are on the disk.

        Args:
            identities: for each row what was measured.
            metrics: what its numbers are.
            values: its numbers, shape (rows, metrics).

        Raises:
            InputError: a metric cannot have such a value, or they cannot be written; the file is
                then as it was before.
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
        """Write what follows from the measurements before it, unless it is there already.

        Args:
            records: JSON values; numbers may be infinite or NaN.

        Raises:
            InputError: something else is recorded in their place, or they cannot be written.
        """
        known = len(self._recorded) - self._taken
        for record in records[:known]:
            if self._recorded[self._taken] != json_values(dict(record)):
                raise self._foreign_line()
            self._taken += 1
        self._write(records[known:])

    def require_end(self) -> None:
        """Make sure that every recorded measurement was taken.

        Raises:
            InputError: there are more.
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
    # Removes what a kill left of a line, and finds damage before the others read a copy of it.
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
    names = [name for name in ("preset", "data_fingerprint") if then[name] != now[name]]
    names += ["the files of your modules"] if then["sources"] != now["sources"] else []
    configs = (SearchConfig.from_dict(settings["config"]) for settings in (then, now))
    names += differences(*configs)
    return names + changes(then["environment"], now["environment"])

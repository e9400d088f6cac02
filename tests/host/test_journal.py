"""A journal is read as far as it is what was written."""

import numpy as np
import pytest

from tenas_jax.errors import InputError
from tenas_jax.host.files import checksum
from tenas_jax.host.journal import append_journal, read_journal

SETTINGS = {"seed": 0}
RECORDS = [{"n": n, "value": n / 3} for n in range(6)]


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "journal"
    path.touch()
    seal = append_journal(path, RECORDS[:2], checksum(SETTINGS))
    append_journal(path, RECORDS[2:], seal)
    return path


def test_what_was_written_is_read(path):
    journal = read_journal(path, SETTINGS)
    assert (journal.records, journal.damaged, journal.torn) == (RECORDS, False, False)
    assert journal.size == path.stat().st_size
    half = len(b"".join(path.read_bytes().splitlines(keepends=True)[:3]))
    assert read_journal(path, SETTINGS, half).records == RECORDS[:3]


@pytest.mark.parametrize(
    ("change", "good", "torn"),
    [
        (lambda lines: lines[1:], 0, False),
        (lambda lines: [*lines[:2], *lines[3:]], 2, False),
        (lambda lines: [*lines[:2], lines[1], *lines[2:]], 2, False),
        (lambda lines: [lines[1], lines[0], *lines[2:]], 0, False),
        (lambda lines: [*lines[:3], lines[3].replace(b"1.0", b"1.1"), *lines[4:]], 3, False),
        (lambda lines: [*lines[:3], lines[3].replace(b"1.0", b"1.00"), *lines[4:]], 6, False),
        (lambda lines: [*lines[:3], b"[]\n", *lines[4:]], 3, False),
        (lambda lines: [*lines, lines[-1]], 6, True),
        (lambda lines: [*lines[:5], lines[5][:-1]], 5, True),
        (lambda lines: [*lines, b"\0" * 100], 6, True),
        (lambda lines: [*lines, b"x\r"], 6, True),
        (lambda lines: [], 0, False),
    ],
)
def test_damage_ends_it(path, change, good, torn):
    lines = change(path.read_bytes().splitlines(keepends=True))
    path.write_bytes(b"".join(lines))
    journal = read_journal(path, SETTINGS)
    assert journal.records == RECORDS[:good]
    assert journal.damaged == (len(lines) > good)
    assert journal.torn == torn
    assert journal.size == len(b"".join(lines[:good]))


def test_lines_of_other_settings_are_foreign(path):
    assert read_journal(path, {"seed": 1}).records == []


def test_numbers_that_are_not_finite_are_a_bug_of_the_writer(path):
    before = path.read_bytes()
    with pytest.raises(ValueError, match="not JSON compliant"):
        append_journal(path, [{"n": np.inf}], "0")
    assert path.read_bytes() == before


def test_a_folder_in_its_place_is_one_line(tmp_path):
    with pytest.raises(InputError, match="Is a directory"):
        read_journal(tmp_path, SETTINGS)

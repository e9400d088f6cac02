"""Progress off a terminal: lines at each step and every so often, never a line drawn again."""

import contextlib
import errno
import io
import os
import re
import time
from types import SimpleNamespace

import pytest
from rich.console import Console

from tenas_jax.cli import train
from tenas_jax.searching import progress as shown
from tenas_jax.searching.loop import Progress
from tenas_jax.searching.progress import Step, show_count, show_progress, show_steps


@pytest.fixture
def log():
    return io.StringIO()


@pytest.fixture
def console(log):
    return Console(file=log)


@pytest.fixture
def stopped_clock(monkeypatch):
    monkeypatch.setattr(shown, "time", SimpleNamespace(monotonic=lambda: 100.0))


def wait_for(log, count):
    """Until it has so many lines."""
    end = time.monotonic() + 20
    while log.getvalue().count("\n") < count:
        assert time.monotonic() < end, log.getvalue()
        time.sleep(0.005)


def test_each_step_has_a_line(console, log, stopped_clock):
    with show_progress(console) as show:
        show(Progress(0, 2, 0, 7, None, ("kappa", "regions")))
        for done in range(4):
            show(Progress(0, 2, done, 7, None))
        show(Progress(1, 2, 4, 7, 185.0))
        show(Progress(2, 2, 6, 7, 7380.0))
    assert log.getvalue().splitlines() == [
        "round 1 of 2, compiling kappa, regions: 0 of 7 measurements done, 0 s elapsed",
        "round 1 of 2: 0 of 7 measurements done, 0 s elapsed",
        "round 2 of 2: 4 of 7 measurements done, 0 s elapsed, about 3 min 5 s left",
        "found architecture: 6 of 7 measurements done, 0 s elapsed, about 2 h 3 min left",
    ]


def test_a_step_that_says_nothing_has_a_line_every_so_often(console, log, monkeypatch):
    """As a compilation, of which nothing is heard until it ends."""
    monkeypatch.setattr(shown, "INTERVAL", 0.02)
    with show_steps(console) as show:
        show(Step("compiling"))
        wait_for(log, 4)
    text = log.getvalue()
    time.sleep(0.06)
    assert log.getvalue() == text  # it is over
    assert re.fullmatch(r"(compiling: \d s elapsed\n){4,}", text)


def test_no_more_lines_than_the_interval_allows(console, log, monkeypatch):
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(shown, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(shown.threading, "Thread", lambda **_: contextlib.nullcontext())
    lines = shown._Lines(console)
    for second in range(101):
        clock.now = 100.0 + second
        lines.show(Step("round 1", second, 100, "row", 100.0 - second))
    assert log.getvalue().splitlines() == [
        "round 1: 0 of 100 rows done, 0 s elapsed, about 1 min 40 s left",
        "round 1: 30 of 100 rows done, 30 s elapsed, about 1 min 10 s left",
        "round 1: 60 of 100 rows done, 1 min 0 s elapsed, about 40 s left",
        "round 1: 90 of 100 rows done, 1 min 30 s elapsed, about 10 s left",
    ]
    clock.now += 4
    lines._print()  # time goes on where nothing is heard
    assert log.getvalue().endswith("100 of 100 rows done, 1 min 44 s elapsed, about 0 s left\n")


def test_what_rarely_takes_long_is_silent_unless_it_does(console, log, monkeypatch):
    with show_count(console, "reading images") as show:
        show(3, 9)
    assert log.getvalue() == ""
    monkeypatch.setattr(shown, "INTERVAL", 0.02)
    with show_count(console, "reading images") as show:
        wait_for(log, 1)
        show(3, 9)
        wait_for(log, 3)
    first, *_, last = log.getvalue().splitlines()
    assert re.fullmatch(r"reading images: \d s elapsed", first)
    assert re.fullmatch(r"reading images: 3 of 9 done, \d s elapsed", last)


def test_a_training_has_lines_between_its_epochs(console, log, monkeypatch):
    monkeypatch.setattr(shown, "INTERVAL", 0.02)
    record = {"epoch": 1, "train_loss": 2.0, "train_accuracy": 0.25}
    record |= {"test_loss": 1.5, "test_accuracy": 0.5}
    with train.show_progress(console) as show:
        wait_for(log, 2)
        show(SimpleNamespace(step=11, steps=40, images_per_second=0.0, epoch_record=None))
        time.sleep(0.1)
        show(SimpleNamespace(step=20, steps=40, images_per_second=640.2, epoch_record=record))
        wait_for(log, log.getvalue().count("\n") + 1)
    lines = log.getvalue().splitlines()
    assert re.fullmatch(r"compiling: \d s elapsed", lines[0])
    assert any(re.fullmatch(r"training: 11 of 40 steps at 0 images/s done, .*", x) for x in lines)
    assert "epoch 1: loss 2.0000, accuracy 25.00%, test loss 1.5000, test accuracy 50.00%" in (
        log.getvalue()
    )
    assert re.fullmatch(
        r"training: 20 of 40 steps at 640 images/s done, \d s elapsed, about \d s left", lines[-1]
    )


@pytest.mark.parametrize(
    ("setting", "value"), [("FORCE_COLOR", "1"), ("TTY_COMPATIBLE", "1"), ("TERM", "xterm")]
)
def test_a_log_file_has_no_line_drawn_again(tmp_path, monkeypatch, stopped_clock, setting, value):
    monkeypatch.setenv(setting, value)
    with open(tmp_path / "log", "w") as file, show_progress(Console(file=file)) as show:
        show(Progress(0, 1, 0, 2, None))
        show(Progress(0, 1, 2, 2, 0.0))
    text = (tmp_path / "log").read_bytes()
    assert text == b"round 1 of 1: 0 of 2 measurements done, 0 s elapsed\n"


class Terminal(io.StringIO):
    """What is drawn on a terminal."""

    def isatty(self):
        return True


@pytest.mark.parametrize(("terminal", "redrawn"), [("xterm", True), ("dumb", False)])
def test_a_terminal_has_a_bar_if_it_can_draw_one(monkeypatch, terminal, redrawn):
    monkeypatch.setenv("TERM", terminal)
    screen = Terminal()
    with show_progress(Console(file=screen)) as show:
        show(Progress(0, 1, 1, 2, 90.0))
    text = screen.getvalue()
    assert ("\x1b[" in text) == redrawn
    assert ("round 1 of 1, 1 min 30 s left" in text) == redrawn
    assert ("1 of 2 measurements done" in text) != redrawn


class Full(io.StringIO):
    """A file on a full disk."""

    tries = 0

    def write(self, text):
        self.tries += 1
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_not_said_in_the_background(monkeypatch):
    """A warning would be an error here; the main thread will notice it."""
    monkeypatch.setattr(shown, "INTERVAL", 0.01)
    log = Full()
    with show_steps(Console(file=log)) as show:
        while not log.tries:
            time.sleep(0.005)
        time.sleep(0.02)
        with pytest.raises(OSError, match="No space left"):
            show(Step("round 1"))

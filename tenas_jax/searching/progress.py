"""Show progress: a bar in a terminal or notebook, lines in the log of a batch job."""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as RichProgress

from tenas_jax.errors import quantity
from tenas_jax.searching.loop import Progress

INTERVAL = 30.0  # seconds between lines


class Step(NamedTuple):
    """The current step of a command, and its progress."""

    name: str
    done: int = 0
    total: int | None = None
    """None: unknown."""
    unit: str = ""
    """The noun that is counted, in the singular."""
    seconds_left: float | None = None
    announced: bool = True
    """Whether to print a line at its start; otherwise only if it takes long."""
    rate: str = ""
    """The current speed, in words."""


Show = Callable[[Step], None]


def say(console: Console, text: str) -> None:
    """Print a line without wrapping or markup.

    Args:
        console: the console.
        text: the line.
    """
    console.print(text, markup=False, highlight=False, soft_wrap=True)


@contextlib.contextmanager
def show_steps(console: Console) -> Iterator[Show]:
    """A bar in a terminal or notebook; elsewhere a line per step, and every 30 seconds.

    Args:
        console: the console.

    Yields:
        A callback for the current step, to be called at any rate.
    """
    if _in_notebook():
        yield _notebook_bar()
    # Not Rich's test for a terminal, which accepts log files if FORCE_COLOR is set.
    elif console.file.isatty() and console.is_terminal and not console.is_dumb_terminal:
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
        with RichProgress(*columns, console=console, transient=True) as bar:
            task = bar.add_task("starting", total=None)
            yield lambda step: bar.update(
                task, description=_with_time(step), completed=step.done, total=step.total
            )
    else:
        with _Lines(console) as lines:
            yield lines.show


@contextlib.contextmanager
def show_progress(console: Console) -> Iterator[Callable[[Progress], None]]:
    """Show the progress of a search; see `show_steps`.

    Args:
        console: the console.

    Yields:
        A callback for `run_search`.
    """
    with show_steps(console) as show:
        yield lambda progress: show(_step(progress))


@contextlib.contextmanager
def show_count(console: Console, name: str) -> Iterator[Callable[[int, int | None], None]]:
    """Show the progress of a step that rarely takes long; see `show_steps`.

    Args:
        console: the console.
        name: name of the step.

    Yields:
        A callback for the numbers of items done and in total.
    """
    with show_steps(console) as show:
        show(Step(name, announced=False))
        yield lambda done, total: show(Step(name, done, total, announced=False))


def duration(seconds: float) -> str:
    """A duration in words, with its two largest units.

    Example:
        >>> [duration(seconds) for seconds in (0.4, 59.6, 185.0, 7380.0)]
        ['0 s', '1 min 0 s', '3 min 5 s', '2 h 3 min']
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


class _Lines:
    """Print lines about the current step, from a background thread if it takes long.

    Args:
        console: the console.
    """

    def __init__(self, console: Console) -> None:
        self._console, self._step = console, Step("starting", announced=False)
        self._began = self._printed = self._shown = time.monotonic()
        self._lock, self._over = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._repeat, daemon=True)

    def __enter__(self) -> "_Lines":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def show(self, step: Step) -> None:
        with self._lock:
            begins = step.announced and step.name != self._step.name
            self._step, self._shown = step, time.monotonic()
            if begins or self._wait() <= 0:
                self._print()

    def _repeat(self) -> None:
        # If the output fails, the next line raises the error in the main thread.
        with contextlib.suppress(OSError, ValueError):
            while not self._over.wait(self._wait()):
                with self._lock:
                    if self._wait() <= 0:
                        self._print()

    def _wait(self) -> float:
        """Seconds to the next line."""
        return self._printed + INTERVAL - time.monotonic()

    def _print(self) -> None:
        self._printed = now = time.monotonic()
        step, facts = self._step, []
        if step.done or step.total is not None:
            *before, last = [each for each in (step.done, step.total) if each is not None]
            amount = quantity(last, step.unit) if step.unit else str(last)
            facts.append(
                " ".join(f"{' of '.join([*map(str, before), amount])} {step.rate}".split())
                + " done"
            )
        facts.append(f"{duration(now - self._began)} elapsed")
        if step.seconds_left is not None:
            left = max(step.seconds_left - (now - self._shown), 0.0)
            facts.append(f"about {duration(left)} left")
        say(self._console, f"{step.name}: {', '.join(facts)}")


def _in_notebook() -> bool:
    """Whether this is a Jupyter kernel."""
    module = sys.modules.get("IPython")
    shell = module.get_ipython() if module is not None else None
    return hasattr(shell, "kernel")


def _notebook_bar() -> Show:
    from IPython.display import HTML, display

    def html(step: Step) -> HTML:
        value = "" if step.total is None else f"value={step.done} max={step.total}"
        count = "" if step.total is None else f"{step.done} of {step.total}, "
        return HTML(f"<progress {value}></progress> {count}{_with_time(step)}")

    handle = display(html(Step("starting")), display_id=True)
    return lambda step: handle.update(html(step))


def _with_time(step: Step) -> str:
    """The name of a step, and its remaining time."""
    left = step.seconds_left
    return step.name if left is None else f"{step.name}, {duration(left)} left"


def _step(progress: Progress) -> Step:
    """The round of a search, and what is being compiled."""
    name = f"round {progress.round + 1} of {progress.rounds}"
    if progress.round == progress.rounds:
        name = "found architecture"
    left = progress.seconds_left
    if progress.compiling:
        name, left = f"{name}, compiling {', '.join(progress.compiling)}", None
    return Step(name, progress.done, progress.total, "measurement", left)

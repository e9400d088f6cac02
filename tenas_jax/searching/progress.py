"""How the progress of a search is shown: a bar on a terminal or in a notebook, lines elsewhere."""

import contextlib
import sys
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as RichProgress

from tenas_jax.searching.loop import Progress

Show = Callable[[Progress], None]


def progress_bar(console: Console) -> RichProgress:
    """A progress bar that goes away when it is full; none where there is no terminal.

    Args:
        console: where it is drawn.

    Returns:
        A context manager with `add_task` and `update`.
    """
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    off = not console.is_terminal
    return RichProgress(*columns, console=console, transient=True, disable=off)


def say(console: Console, text: str) -> None:
    """Print a line as it is, however long.

    Args:
        console: where to.
        text: the line.
    """
    console.print(text, markup=False, highlight=False, soft_wrap=True)


@contextlib.contextmanager
def show_progress(console: Console) -> Iterator[Show]:
    """A bar over all measurements on a terminal or in a notebook, a line for each round elsewhere.

    Args:
        console: where to print.

    Yields:
        What `run_search` calls with its progress.
    """
    if _in_notebook():
        yield _notebook_bar()
    elif console.is_terminal:
        with progress_bar(console) as bar:
            task = bar.add_task("starting")

            def update_bar(progress: Progress) -> None:
                description = _state(progress)
                bar.update(
                    task, description=description, completed=progress.done, total=progress.total
                )

            yield update_bar
    else:
        yield _lines(console)


def _lines(console: Console) -> Show:
    shown: set[tuple[int, bool]] = set()

    def print_round(progress: Progress) -> None:
        kind = progress.round, bool(progress.compiling)
        if kind not in shown:
            shown.add(kind)
            done = f"{progress.done} of {progress.total} measurements done"
            say(console, f"{_state(progress)}: {done}")

    return print_round


def _in_notebook() -> bool:
    """Whether this is a Jupyter kernel."""
    module = sys.modules.get("IPython")
    shell = module.get_ipython() if module is not None else None
    return hasattr(shell, "kernel")


def _notebook_bar() -> Show:
    from IPython.display import HTML, display

    def html(value: int, total: int, text: str) -> HTML:
        return HTML(f"<progress value={value} max={total}></progress> {text}")

    handle = display(html(0, 1, "starting"), display_id=True)

    def update(progress: Progress) -> None:
        text = f"{progress.done} of {progress.total}, {_state(progress)}"
        handle.update(html(progress.done, progress.total, text))

    return update


def _state(progress: Progress) -> str:
    """The round, and what is being compiled or how long the rest takes."""
    state = f"round {progress.round + 1} of {progress.rounds}"
    if progress.compiling:
        return f"{state}, compiling {', '.join(progress.compiling)}"
    if progress.seconds_left is None:
        return state
    return f"{state}, {progress.seconds_left:.0f} s left"

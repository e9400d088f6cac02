"""SIGINT and SIGTERM end a command at once and with one line.

Python runs signal handlers between bytecode instructions, and a single instruction may compile for
minutes. An exception raised by a handler may also break a library that is being imported. If
`tenas` has the process for itself, a thread therefore receives the signals and exits the process at
once; this is safe because all files are written atomically. Elsewhere, as in a notebook, signals
raise exceptions.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from tenas_jax.cli.messages import complain

Explain = Callable[[], str]
SIGNALS = signal.SIGINT, signal.SIGTERM


class Terminated(BaseException):
    """SIGTERM arrived."""


class Signals:
    """How signals are handled while a command runs."""

    def __init__(self) -> None:
        self.noted: int | None = None
        """The signal that was only noted, if any."""
        self._notes_next = False

    def note_next(self) -> None:
        """From now on only note the first signal, so that the current step can finish."""
        self._notes_next = True

    def note_no_more(self) -> None:
        """Let the next signal end the command again."""
        self._notes_next = False

    def ends(self, number: int) -> bool:
        """Whether a signal ends the command; otherwise it is noted."""
        if self._notes_next and self.noted is None:
            self.noted = number
            return False
        return True


def run_interruptibly(work: Callable[[Signals], int | None], explain: Explain) -> int:
    """Run a function that SIGINT or SIGTERM may end, with one line.

    Args:
        work: the function; it returns an exit code, or None for 0.
        explain: returns the message after an interruption.

    Returns:
        Exit code of the function, or 130 or 143 after SIGINT or SIGTERM.

    Example:
        >>> run_interruptibly(lambda signals: signals.note_next(), lambda: "interrupted")
        0
    """
    signals = Signals()
    try:
        with _raising(signals) if _process is None else _process.command(signals, explain):
            return work(signals) or 0
    except (KeyboardInterrupt, Terminated) as interruption:
        complain(explain())
        return 143 if isinstance(interruption, Terminated) else 130


@contextlib.contextmanager
def own_process() -> Iterator[None]:
    """Let signals end this process at once, without a message outside of a command."""
    global _process
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    _process = _Process()
    watcher = threading.Thread(target=_process.watch, args=(reader,), daemon=True)
    watcher.start()
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    _handle(lambda number, frame: None)
    try:
        yield
    finally:
        _handle(signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        os.close(writer)
        watcher.join()  # it may be about to end the process
        _process = None


class _Process:
    """A process used only by `tenas`: its current command, and how to resume that."""

    def __init__(self) -> None:
        self._signals = Signals()
        self._explain: Explain = lambda: "interrupted"

    @contextlib.contextmanager
    def command(self, signals: Signals, explain: Explain) -> Iterator[None]:
        outer = self._signals, self._explain
        self._signals, self._explain = signals, explain
        try:
            yield
        finally:
            self._signals, self._explain = outer

    def watch(self, reader: int) -> None:
        """Read signal numbers and end the process accordingly, until the other end closes."""
        with open(reader, "rb", buffering=0) as numbers:
            while number := numbers.read(1):
                if number[0] in SIGNALS and self._signals.ends(number[0]):
                    if sys.stdout.isatty():
                        print("\x1b[?25h", end="")  # a progress bar has hidden the cursor
                    with contextlib.suppress(OSError):
                        sys.stdout.flush()
                    complain(self._explain())
                    os._exit(128 + number[0])


_process: _Process | None = None


@contextlib.contextmanager
def _raising(signals: Signals) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # which gets no signals
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if signals.ends(number):
            raise KeyboardInterrupt if number == signal.SIGINT else Terminated

    previous = _handle(handle)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _handle(handler: "signal._HANDLER") -> "dict[int, signal._HANDLER]":
    """Install a handler, except for signals that the shell ignores, as for background jobs."""
    return {
        number: signal.signal(number, handler)
        for number in SIGNALS
        if signal.getsignal(number) is not signal.SIG_IGN
    }

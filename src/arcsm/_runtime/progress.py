"""Progress of long work: a bar on a terminal; elsewhere a line on standard error every half minute."""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from time import monotonic
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from arcsm._runtime.terminal import printable

Show = Callable[["Track"], object]
T = TypeVar("T")

_SECONDS_BETWEEN_LINES = 30.0


class Track:
    """Work of a known number of steps. A call reports that some are done; a track opened in between refines one step.

    Arguments:
        total: Number of steps.
        done: Steps that were done before the work began.
        show: Called after each change.
    """

    def __init__(self, total: float, done: float, show: Show) -> None:
        self.total, self.done, self.note = total, float(done), ""
        self._show = show
        self._step, self._within = 1.0, 0.0  # size of the step in progress, and how much of it is done

    def __call__(self, steps: float = 1, note: str = "") -> None:
        """Report that ``steps`` more steps are done, with a note to show beside the bar."""
        self.done, self._within, self.note = self.done + steps, 0.0, note
        self._show(self)

    @contextmanager
    def part(self, steps: float) -> Iterator[None]:
        """Do ``steps`` steps in one piece. Tracks opened inside divide it."""
        self._step = steps
        yield
        self._step = 1.0
        self(steps)

    def over(self, parts: Iterable[T], size: Callable[[T], float] = lambda _: 1.0) -> Iterator[T]:
        """Yield parts of the work, each of a number of steps."""
        for part in parts:
            with self.part(size(part)):
                yield part

    @property
    def completed(self) -> float:
        """Number of steps done, with the fraction of the step in progress."""
        return min(self.done + self._within, self.total)

    @property
    def fraction(self) -> float:
        """Fraction of the work that is done."""
        return self.completed / self.total if self.total else 1.0

    def refine(self, inner: "Track") -> None:
        """Take over the progress of a track within the current step. Progress never goes back."""
        self._within = max(self._within, inner.fraction * self._step)
        self._show(self)


class _Lines:
    """The time of the last line, from which the next one is due."""

    def __init__(self) -> None:
        self.last = monotonic()

    def is_due(self) -> bool:
        """Return whether a line is due, which counts as printed."""
        due = monotonic() - self.last >= _SECONDS_BETWEEN_LINES
        if due:
            self.last = monotonic()
        return due


_innermost: ContextVar[Track | None] = ContextVar("_innermost", default=None)
_lines: ContextVar[_Lines | None] = ContextVar("_lines", default=None)


@contextmanager
def track(description: str, total: float, enabled: bool = False, done: float = 0) -> Iterator[Track]:
    """Track work of ``total`` steps, after the first ``done``.

    An ``enabled`` track shows a progress bar on a terminal, with an estimate of the remaining time. Elsewhere it prints
    a line on standard error every half minute. Inside a track that is shown, it refines that one instead.
    """
    outer = _innermost.get()
    if outer is None and not enabled:
        yield Track(total, done, lambda _: None)
        return
    display = _display(description, total, done) if outer is None else nullcontext(outer.refine)
    with display as show:
        token = _innermost.set(inner := Track(total, done, show))
        try:
            yield inner
        finally:
            _innermost.reset(token)


@contextmanager
def one_command() -> Iterator[None]:
    """Let all tracks inside share the time of their lines, so that a short command prints none."""
    token = _lines.set(_Lines())
    try:
        yield
    finally:
        _lines.reset(token)


def _display(description: str, total: float, done: float) -> AbstractContextManager[Show]:
    description = printable(description)
    console = Console(stderr=True)
    # with FORCE_COLOR rich takes a pipe for a terminal
    on_terminal = console.is_terminal and console.file.isatty()
    estimate = _Estimate(done / total if total else 0.0)
    if on_terminal:
        return _bar(console, description, total, estimate)
    lines = _lines.get() or _Lines()

    def show(track: Track) -> None:
        parts = f"{description} {100.0 * track.fraction:.0f} %", estimate.text(track.fraction), track.note
        if lines.is_due():
            print("arcsm:", ", ".join(filter(None, parts)), file=sys.stderr, flush=True)

    return nullcontext(show)


@contextmanager
def _bar(console: Console, description: str, total: float, estimate: "_Estimate") -> Iterator[Show]:
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
    fields = (TextColumn("{task.fields[left]}"), TextColumn("{task.fields[note]}"))
    with Progress(*columns, *fields, console=console, transient=True, get_time=monotonic) as bar:
        task = bar.add_task(description, total=total, left="", note="")

        def show(track: Track) -> None:
            bar.update(task, completed=track.completed, left=estimate.text(track.fraction), note=track.note)

        yield show


class _Estimate:
    """The remaining time of work that continues at the mean speed so far.

    The speed is that since the first report: the time before it includes preparations, which are not repeated.
    """

    def __init__(self, first: float) -> None:
        self.fraction, self.time = first, monotonic()
        self.reported = False

    def text(self, fraction: float) -> str:
        """Return the remaining time in words; empty while the speed is unknown and at the end."""
        gained, now = fraction - self.fraction, monotonic()
        if gained <= 0.0 or fraction >= 1.0:
            return ""
        seconds = (now - self.time) * (1.0 - fraction) / gained
        if not self.reported:
            self.fraction, self.time, self.reported = fraction, now, True
        return f"about {duration(seconds)} left"


def duration(seconds: float) -> str:
    """Return a time to two digits or so, such as ``40 s``, ``5 min`` or ``2 h 10 min``.

    Example:
        >>> [duration(seconds) for seconds in (0.2, 89.0, 91.0, 7_900.0, 198_000.0)]
        ['1 s', '89 s', '2 min', '2 h 12 min', '55 h']
    """
    if seconds < 90.0:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60.0)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 10 else f"{hours} h"

"""Progress bars: on a terminal, never in a pipe."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


@contextlib.contextmanager
def track(description: str, total: int, enabled: bool) -> Iterator[Callable[..., None]]:
    """A bar with an estimate of the time left, on standard error.

    Yields:
        ``advance(steps=1, note="")``, to be called as the work goes on.
    """
    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        disable=not (enabled and console.is_terminal and console.file.isatty()),  # FORCE_COLOR makes pipes terminals
        transient=True,
    ) as bar:
        task = bar.add_task(description, total=total, note="")

        def advance(steps: int = 1, note: str = "") -> None:
            bar.update(task, advance=steps, note=note)

        yield advance

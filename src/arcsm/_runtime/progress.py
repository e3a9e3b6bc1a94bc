"""Progress bars on a terminal; none in a pipe."""

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


@contextlib.contextmanager
def track(description: str, total: int, enabled: bool) -> Iterator[Callable[..., None]]:
    """Show a progress bar on standard error; yield ``advance(steps=1, note="")``, to call as the work proceeds."""
    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        # with FORCE_COLOR rich takes a pipe for a terminal
        disable=not (enabled and console.is_terminal and console.file.isatty()),
        transient=True,
    ) as bar:
        task = bar.add_task(description, total=total, note="")

        def advance(steps: int = 1, note: str = "") -> None:
            bar.update(task, advance=steps, note=note)

        yield advance

"""What the pages of all kinds of models share: texts, seeds, errors and files to download."""

import functools
import html
import os
import shutil
import tempfile
from collections import deque
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Any

_MOST_DOWNLOADS = 8  # that the page keeps, besides the copies of Gradio


def seed_of(number: float | None) -> int:
    """Return the seed of a field of the page."""
    if number is None or number < 0:
        raise ValueError("seed: expected a non-negative whole number")
    return int(number)


def show_errors(gradio: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function so that the page shows the user's mistakes in one line."""

    @functools.wraps(function)
    def wrapper(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except ValueError as error:
            raise gradio.Error(html.escape(str(error), quote=False)) from error  # the page shows HTML

    return wrapper


class Downloads:
    """Files that the page offers, in Gradio's folder. Gradio copies each; the oldest ones are deleted."""

    def __init__(self) -> None:
        self._folders, self._lock = deque[Path](), Lock()

    def path(self, name: str) -> Path:
        """Return the path of a new file."""
        folder = Path(tempfile.mkdtemp(prefix="download-", dir=os.environ.get("GRADIO_TEMP_DIR")))
        with self._lock:
            self._folders.append(folder)
            while len(self._folders) > _MOST_DOWNLOADS:
                shutil.rmtree(self._folders.popleft(), ignore_errors=True)
        return folder / name

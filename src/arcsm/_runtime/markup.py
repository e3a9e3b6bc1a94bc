"""Text of unknown origin, such as names of columns, made safe to show as Markdown."""

import re
import string
from collections.abc import Iterable
from pathlib import Path

from arcsm._runtime.files import write_text
from arcsm._runtime.terminal import printable

CARD_NAME = "README.md"
_MARK = "<!-- Written by arcsm, which replaces this file unless you remove this line. -->\n"


def as_markdown(text: str) -> str:
    """Escape the characters of a text that have a meaning in Markdown."""
    return re.sub(f"([{re.escape(string.punctuation)}])", r"\\\1", text)


def listed(names: Iterable[object], most: int = 20) -> str:
    """Return names as a line of Markdown, the first ones if they are many."""
    texts = [as_markdown(printable(name)) for name in names]
    more = f" and {len(texts) - most:,} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + more


def write_card(folder: Path, text: str) -> None:
    """Write a description of the files in a folder, unless somebody has written or edited it."""
    path = folder / CARD_NAME
    if not path.exists() or path.read_text(encoding="utf-8", errors="replace").startswith(_MARK):
        write_text(path, _MARK + text)

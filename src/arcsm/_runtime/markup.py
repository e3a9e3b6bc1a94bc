"""Text of unknown origin, such as names of columns, made safe to show as Markdown."""

import re
import string
from collections.abc import Iterable

from arcsm._runtime.terminal import printable


def as_markdown(text: str) -> str:
    """Escape the characters of a text that have a meaning in Markdown."""
    return re.sub(f"([{re.escape(string.punctuation)}])", r"\\\1", text)


def listed(names: Iterable[object], most: int = 20) -> str:
    """Return names as a line of Markdown, the first ones if they are many."""
    texts = [as_markdown(printable(name) if str(name).strip() else repr(name)) for name in names]
    more = f" and {len(texts) - most:,} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + more

"""Docstrings say formulas and names in reStructuredText, as editors and ``help()`` show; the site wants Markdown."""

from __future__ import annotations

import re
from typing import Any

import griffe

_DISPLAYED = re.compile(r"^( *)\.\. math:: *(.*(?:\n\1 +\S.*)*)", re.MULTILINE)
_INLINE = re.compile(r":math:`([^`]*)`")
_NAME = re.compile(r":(?:class|data|func|meth|mod):`~?([^`]*)`")


class Roles(griffe.Extension):
    """Turns the roles of reStructuredText into Markdown."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = markdown_of(obj.docstring.value)


def markdown_of(text: str) -> str:
    """A docstring with its formulas and names in Markdown."""
    text = _DISPLAYED.sub(lambda found: f"{found[1]}$$\n{found[1]}{found[2]}\n{found[1]}$$", text)
    text = _INLINE.sub(lambda found: f"${' '.join(found[1].split())}$", text)
    return _NAME.sub(lambda found: f"`{found[1]}`", text)

"""Translate the reStructuredText of docstrings, which editors and ``help()`` show, to the Markdown of the site."""

from __future__ import annotations

import re
from typing import Any

import griffe

_DISPLAYED = re.compile(r"^( *)\.\. math:: *(.*(?:\n\1 +\S.*)*)", re.MULTILINE)
_INLINE = re.compile(r":math:`([^`]*)`")
_DOCTEST = re.compile(r"^( *)>>> .*(?:\n\1.*\S.*)*", re.MULTILINE)
_NAME = re.compile(r":(?:class|data|func|meth|mod):`~?([^`]*)`")


class Roles(griffe.Extension):
    """Translate roles of reStructuredText, formulas and examples to Markdown."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = markdown_of(obj.docstring.value)


def markdown_of(text: str) -> str:
    """Return a docstring with its formulas, names and examples in Markdown."""
    text = _DISPLAYED.sub(lambda found: f"{found[1]}$$\n{found[1]}{found[2]}\n{found[1]}$$", text)
    text = _DOCTEST.sub(lambda found: f"{found[1]}```pycon\n{found[0]}\n{found[1]}```", text)  # no links in output
    text = _INLINE.sub(lambda found: f"${' '.join(found[1].split())}$", text)
    return _NAME.sub(lambda found: f"`{found[1]}`", text)

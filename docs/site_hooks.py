"""Add the records, their pictures and two pages from outside docs/ to the site, and adapt links to their places on it.


Links in the sources are those that work in the repository.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
#: Addresses on the site of files outside docs/, by their path in the repository.
_ADDED = {"benchmarks/README.md": "benchmarks.md", "results/README.md": "results/records.md"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add pages, records and pictures from outside docs/."""
    for source, target in _ADDED.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, target, content=relink(text, source, target)))
    for path in sorted([*(ROOT / "results").glob("*/*.png"), *(ROOT / "results").glob("*/cpu.json")]):
        files.append(File.generated(config, f"results/{path.parent.name}/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: object) -> str:
    """Adapt the links of a page."""
    target = page.file.src_uri
    return markdown if target in _ADDED.values() else relink(markdown, f"docs/{target}", target)


def relink(text: str, source: str, target: str) -> str:
    """Replace relative links of a file of the repository by those of its page on the site."""

    def replace(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[1]))
        address = _ADDED.get(path, path.removeprefix("docs/"))
        return f"]({posixpath.relpath(address, posixpath.dirname(target) or '.')}"

    return re.sub(r"\]\((?!https?:|mailto:|#|/)([^)#\s]+)", replace, text)

"""What the site needs beside the pages in this folder: the records' figures and the page of benchmarks.

Pages link to them as they lie in the repository, so that they can be read there too.
"""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
_TAKEN = {"../benchmarks/README.md": "benchmarks.md", "../results/README.md": "results.md"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages and pictures that lie outside the folder."""
    for source, target in _TAKEN.items():
        text = (ROOT / "docs" / source).resolve().read_text(encoding="utf-8")
        files.append(File.generated(config, target, content=_moved(text)))
    for picture in sorted((ROOT / "results").glob("*/*.png")):
        files.append(File.generated(config, f"results/{picture.parent.name}/{picture.name}", abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Point links to where things lie on the site."""
    return _moved(markdown)


def _moved(text: str) -> str:
    for source, target in _TAKEN.items():
        text = text.replace(f"]({source}", f"]({target}")
    text = text.replace("](../results/", "](results/")
    return re.sub(r"(\]\()\.\./docs/", r"\1", text)

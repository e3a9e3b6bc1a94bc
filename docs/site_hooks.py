"""Build what the site needs beyond the pages in this folder.

The reference is generated from the public names of each subpackage and from the commands. Figures of the results and
the page of benchmarks lie outside this folder. Pages link to them where they lie, so that they work in the repository.
"""

from __future__ import annotations

import importlib
import posixpath
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent

#: Page of the reference and the module whose public names it lists.
REFERENCE = {
    "arcsm": "arcsm",
    "contexts": "arcsm.contexts",
    "heads": "arcsm.heads",
    "objectives": "arcsm.objectives",
    "samplers": "arcsm.samplers",
    "conditionals": "arcsm.conditionals",
    "privacy": "arcsm.privacy",
    "queries": "arcsm.queries",
    "training": "arcsm.training",
    "data": "arcsm.data",
    "estimators": "arcsm.estimators",
    "denoise": "arcsm.denoise",
    "anomaly": "arcsm.anomaly",
    "metrics": "arcsm.metrics",
    "interop": "arcsm.interop",
    "implicit": "arcsm.implicit",
}
_PAGES_OF_THEIR_OWN = {"__version__", "data", "objectives"}
#: Addresses on the site of pages outside this folder, by their path in the repository.
_ADDED = {"benchmarks/README.md": "benchmarks.md", "results/README.md": "results/records.md"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated reference, and the pages, records and figures that lie outside this folder."""
    for page, module in REFERENCE.items():
        files.append(File.generated(config, f"reference/{page}.md", content=reference_page(module)))
    files.append(File.generated(config, "reference/command-line.md", content=command_line_page()))
    for source, target in _ADDED.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, target, content=relink(text, source, target)))
    for path in sorted([*(ROOT / "results").glob("*/*.png"), *(ROOT / "results").glob("*/cpu.json")]):
        files.append(File.generated(config, f"results/{path.parent.name}/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: object) -> str:
    """Point links to files outside this folder to their places on the site."""
    target = page.file.src_uri
    return markdown if target in _ADDED.values() else relink(markdown, f"docs/{target}", target)


def relink(text: str, source: str, target: str) -> str:
    """Replace relative links of a file of the repository by those of its page on the site."""

    def replace(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[1]))
        address = _ADDED.get(path, path.removeprefix("docs/"))
        return f"]({posixpath.relpath(address, posixpath.dirname(target) or '.')}"

    return re.sub(r"\]\((?!https?:|mailto:|#|/)([^)#\s]+)", replace, text)


def reference_page(module: str) -> str:
    """Return the page of a module: its docstring, then every public name."""
    names = [name for name in importlib.import_module(module).__all__ if name not in _PAGES_OF_THEIR_OWN]
    parts = [f"::: {module}\n    options: {{members: false, show_root_toc_entry: false}}"]
    return "\n\n".join([*parts, *(f"::: {module}.{name}" for name in names)]) + "\n"


def command_line_page() -> str:
    """Return the page of all commands with their options, as Typer documents them."""
    command = [sys.executable, "-m", "typer", "arcsm.cli.application", "utils", "docs", "--name", "arcsm"]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return text.replace("# `arcsm`\n", "# Command line\n", 1)

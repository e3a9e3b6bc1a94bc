"""Build what the site needs beyond the pages in this folder.

The reference is generated from the public names of each subpackage and from the commands. Figures of the results and
the page of benchmarks lie outside this folder. Pages link to them where they lie, so that they work in the repository.
"""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

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
_OUTSIDE = {"benchmarks/README.md": "benchmarks.md", "results/README.md": "results-folder.md"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated reference, and the pages and figures that lie outside this folder."""
    for page, module in REFERENCE.items():
        files.append(File.generated(config, f"reference/{page}.md", content=reference_page(module)))
    files.append(File.generated(config, "reference/command-line.md", content=command_line_page()))
    for source, target in _OUTSIDE.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, target, content=text.replace("](../docs/", "](")))
    for picture in sorted((ROOT / "results").glob("*/*.png")) + sorted((ROOT / "results").glob("*/*.jpg")):
        target = f"results/pictures/{picture.parent.name}/{picture.name}"
        files.append(File.generated(config, target, abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, page: object, **_: object) -> str:
    """Point links to files outside this folder to where they lie on the site."""
    for source, target in _OUTSIDE.items():
        markdown = re.sub(rf"\]\((\.\./)*{re.escape(source)}", f"](/{target}", markdown)
    return re.sub(r"\]\((\.\./)*results/([\w-]+/[\w.-]+\.(?:png|jpg))\)", r"](/results/pictures/\2)", markdown)


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

"""Render docs/results/*.md from their templates and the records in results/. No number there is typed.

python docs/render.py
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from arcsm.experiments import EXPERIMENTS

HERE = Path(__file__).resolve().parent
RECORDS = HERE.parent / "results"
PAGES = HERE / "results"
TEMPLATES = PAGES / "templates"
#: Pages in the order of the index.
ORDER = ("fig1a", "fig1b", "fig2", "fig3a", "fig3b", "fig4", "fig5", "fig7", "table1", "table2", "table2-ablation",
         "mnist-made", "toys-nll", "modes", "mix", "sampling-cost", "entropy", "adbench", "contamination", "uci",
         "orders", "imputation", "synthesis", "private-rows", "events", "regression", "distillation",
         "plan")  # fmt: skip
_WIDTH = 120

Records = Mapping[str, dict[str, Any]]


def number(value: float | None, digits: int = 3) -> str:
    """Format a number with significant digits, without exponents if possible."""
    if value is None:
        return "–"
    if value == 0:
        return "0"
    if isinstance(value, int):
        return f"{value:,}".replace("-", "−")
    text = f"{value:,.0f}" if abs(value) >= min(1000, 10**digits) else f"{value:#.{digits}g}"
    return text.rstrip(".").replace("-", "−")


def fixed(value: float | None, digits: int = 3) -> str:
    """Format a number with a fixed number of decimals."""
    return "–" if value is None else f"{value:z.{digits}f}".replace("-", "−")


def percent(value: float | None) -> str:
    """Format a share as a percentage."""
    if value is None:
        return "–"
    share = 100.0 * value
    return f"{share:.0f} %" if 99.5 <= abs(share) < 1000.0 else f"{number(share, 2)} %"  # no exponent


def plus_minus(pair: Sequence[float | None], digits: int = 2) -> str:
    """Format a value and its error."""
    value, error = pair
    return fixed(value, digits) if error is None else f"{fixed(value, digits)} ± {fixed(error, digits)}"


def listing(items: Iterable[Any]) -> str:
    """Join items by commas; "none" if there are none."""
    return ", ".join(map(str, items)) or "none"


def row(*cells: Any) -> str:
    """Return a row of a Markdown table; lists among the cells are flattened."""
    flat = [cell for item in cells for cell in (item if isinstance(item, list) else [item])]
    return "| " + " | ".join(str(cell).strip() for cell in flat) + " |"


def head(*cells: Any) -> str:
    """Return the head of a Markdown table."""
    first = row(*cells)
    return f"{first}\n|{'---|' * (first.count(' | ') + 1)}"


def ranked(items: Mapping[str, Any], *path: str, largest: bool = False) -> list[str]:
    """Return the keys of a mapping ordered by a value at a path within its items."""

    def value(key: str) -> Any:
        found = items[key]
        for part in path:
            found = found[part]
        return found

    return sorted(items, key=value, reverse=largest)


def wrap(text: str) -> str:
    """Wrap paragraphs at 120 characters; leave tables, headings, pictures and code as they are."""
    lines: list[str] = []
    paragraph: list[str] = []

    def flush() -> None:
        if paragraph:
            item = paragraph[0].startswith("- ")
            indent = "  " if item else ""
            if item and lines:  # a list begins after a blank line and has none inside
                last = next((line for line in reversed(lines) if line), "")
                in_list = last.startswith(("- ", "  "))
                if in_list and not lines[-1]:
                    lines.pop()
                elif not in_list and lines[-1]:
                    lines.append("")
            lines.extend(
                textwrap.wrap(
                    " ".join(" ".join(paragraph).split()),
                    _WIDTH,
                    subsequent_indent=indent,
                    break_long_words=False,
                    break_on_hyphens=False,
                )
            )
            paragraph.clear()

    code = False
    for line in text.splitlines():
        code ^= line.startswith("```")
        if code or line.startswith(("```", "|", "#", "![")):
            flush()
            lines.append(line.rstrip())
        elif not line.strip():
            flush()
            if lines and lines[-1]:
                lines.append("")
        else:
            if line.startswith("- "):
                flush()
            paragraph.append(line.strip())
    flush()
    return "\n".join(lines).rstrip() + "\n"


def records() -> dict[str, dict[str, Any]]:
    """Return the ``cpu`` record of every experiment that has one."""
    return {path.parent.name: json.loads(path.read_text()) for path in sorted(RECORDS.glob("*/cpu.json"))}


def render(known: Records) -> dict[str, str]:
    """Return the text of every page by file name.

    A template exports ``title``, ``shows``, ``parts`` (names of its experiments) and the macro ``short``, a verdict of
    at most a dozen words. Those of the paper's items also export ``paper_row`` and ``our_row``, each what the paper's
    own model or ours reaches.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number, fixed=fixed, percent=percent, plus_minus=plus_minus, listing=listing)
    environment.globals.update(row=row, head=head, ranked=ranked)
    pages, items, shown = {}, [], {}
    for name in ORDER:
        parts = [part for part in EXPERIMENTS if part in known and _belongs(part, name)]
        if not parts:
            continue
        module = environment.get_template(f"{name}.md.j2").make_module({"results": known, "parts": parts})
        pages[f"{name}.md"] = wrap(str(module))
        shown[name] = {"parts": parts, "module": module}
        items.append({"name": name, "title": module.title, "shows": module.shows, "parts": parts,
                      "short": " ".join(str(module.short()).split())})  # fmt: skip
    missing = [name for name in EXPERIMENTS if name not in known]
    if {"sampling-cost", "orders"} <= known.keys():
        pages["beyond.md"] = wrap(environment.get_template("beyond.md.j2").render(results=known))
    beyond = "beyond.md" in pages
    pages["paper.md"] = wrap(environment.get_template("paper.md.j2").render(pages=shown, beyond=beyond))
    index = environment.get_template("index.md.j2").render(items=items, missing=missing, beyond=beyond)
    return {"index.md": wrap(index), **pages}


def _belongs(experiment: str, page: str) -> bool:
    """Return whether a page shows an experiment: its own, or a part of it."""
    return experiment == page or (experiment.startswith(f"{page}-") and experiment not in ORDER)


if __name__ == "__main__":
    for path in PAGES.glob("*.md"):
        path.unlink()
    for file, text in render(records()).items():
        (PAGES / file).write_text(text, encoding="utf-8")

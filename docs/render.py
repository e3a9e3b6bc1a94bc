"""Renders experiments.md from its template and the records in results/: no number on that page is typed by hand.

python docs/render.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2

from arcsm.experiments import EXPERIMENTS

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "results"


def number(value: float | None, digits: int = 3) -> str:
    """A number as people read it: significant digits, no exponents where they can be avoided."""
    if value is None:
        return "–"
    if value == 0:
        return "0"
    if isinstance(value, int):
        return f"{value:,}".replace("-", "−")
    text = f"{value:,.0f}" if abs(value) >= min(1000, 10**digits) else f"{value:#.{digits}g}"
    return text.rstrip(".").replace("-", "−")


def fixed(value: float | None, digits: int = 3) -> str:
    """A number with so many decimals, and no minus sign before a zero."""
    return "–" if value is None else f"{value:z.{digits}f}".replace("-", "−")


def percent(value: float | None) -> str:
    if value is None:
        return "–"
    share = 100.0 * value
    return f"{share:.0f} %" if 99.5 <= abs(share) < 1000.0 else f"{number(share, 2)} %"  # no exponent


def records() -> dict[str, dict[str, Any]]:
    """The ``cpu`` record of every experiment that has one."""
    return {path.parent.name: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*/cpu.json"))}


def render(known: dict[str, dict[str, Any]]) -> str:
    """The page of some records."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(number=number, fixed=fixed, percent=percent)
    missing = [name for name in EXPERIMENTS if name not in known]
    fig4 = [name for name in known if name.split("-")[0] == "fig4"]
    return environment.get_template("experiments.md.j2").render(results=known, missing=missing, fig4=fig4)


if __name__ == "__main__":
    (HERE / "experiments.md").write_text(render(records()))

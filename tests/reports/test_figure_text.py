"""Text in figures is shown as it is."""

from __future__ import annotations

import warnings

import pytest

from arcsm.reports.figure_text import drawable_text
from arcsm.reports.plots import as_png, open_panel

NO_FONT = "\U0010fffd"  # of private use


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("$x_1$", "$x_1$"),
        ("a\\frac{b", "a\\frac{b"),
        ("€/m²", "€/m²"),
        ("two\n lines\t", "two lines"),
        (f"a{NO_FONT}b", "a□b"),
        ("\ud800", "□"),
        ("x" * 50, "x" * 39 + "…"),
        (3.5, "3.5"),
    ],
)
def test_any_text_can_be_drawn(text: object, shown: str) -> None:
    figure, axes = open_panel()
    texts, style = drawable_text([text])
    assert texts == [shown]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        axes.set_title(texts[0], **style)
        axes.set_xticks([0.5], texts, **style)
        as_png(figure)

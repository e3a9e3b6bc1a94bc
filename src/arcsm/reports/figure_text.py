"""Text of a table in figures, exactly as it is: no formulas, and no characters that no font can draw."""

from collections.abc import Iterable
from typing import Any

from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

_BASE = "DejaVu Sans"  # comes with matplotlib
_REPLACEMENT = "\N{WHITE SQUARE}"
_PLACEHOLDERS = "Last Resort"  # comes with matplotlib, too; draws a box for every character
_families: dict[str, str | None] = {}  # of the font for each character, None if there is none


def drawable_text(texts: Iterable[object], limit: int = 40) -> tuple[list[str], dict[str, Any]]:
    """Return texts of at most ``limit`` characters, and the properties with which matplotlib draws them as they are.

    Other installed fonts draw what matplotlib's own cannot. A square replaces a character that no font has.

    Example:
        >>> drawable_text(["price $", "a_b\\n", "x" * 50], limit=8)[0]
        ['price $', 'a_b', 'xxxxxxx…']
    """
    shown = [_shorten(" ".join(str(text).split()), limit) for text in texts]
    _find_fonts({character for text in shown for character in text} - _families.keys())
    fitted = ["".join(c if _families[c] else _REPLACEMENT for c in text) for text in shown]
    families = dict.fromkeys([_BASE, *(family for text in fitted for c in text if (family := _families.get(c)))])
    return fitted, {"parse_math": False, "usetex": False, "fontfamily": list(families)}


def _shorten(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _find_fonts(characters: set[str]) -> None:
    """Find a font for each character, first among those that others needed."""
    _families.update(dict.fromkeys(characters))
    missing = set(characters)
    installed = [font for font in font_manager.fontManager.ttflist if font.style == "normal"]
    installed.sort(key=lambda font: font.weight == 400)
    fonts = {font.name: font.fname for font in installed if not font.name.startswith(_PLACEHOLDERS)}
    for family in dict.fromkeys([_BASE, *filter(None, _families.values()), *fonts]):
        if not missing:
            return
        found = _drawable(fonts[family], missing)
        _families.update(dict.fromkeys(found, family))
        missing -= found


def _drawable(path: str, characters: set[str]) -> set[str]:
    """Return the characters that a font has; none if matplotlib cannot read it, like most fonts of coloured emoji."""
    try:
        font = FT2Font(path)
        found = {character for character in characters if font.get_char_index(ord(character))}
        for character in found:
            font.load_char(ord(character))
    except (OSError, RuntimeError):
        return set()
    return found

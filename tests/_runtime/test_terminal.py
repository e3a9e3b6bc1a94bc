"""Names are printed without what terminals obey, and otherwise as they are."""

import pytest

from arcsm._runtime.terminal import printable


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("naïve 年齢 🙂 €/m²\t1", "naïve 年齢 🙂 €/m²\t1"),
        ("a\x1b]0;title\x07", r"a\x1b]0;title\x07"),
        ("two\nlines\r\x85\u2028", r"two\nlines\r\x85\u2028"),
        ("\u202eabc\u2066", r"\u202eabc\u2066"),
        ("caf\udce9", r"caf\udce9"),
    ],
)
def test_control_characters_are_escaped(text: str, printed: str) -> None:
    assert printable(text) == printed

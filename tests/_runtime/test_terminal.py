"""Names are printed without what terminals or Markdown obey, and otherwise as they are."""

import pytest

from arcsm._runtime.markup import as_markdown, listed
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


def test_names_show_as_they_are_in_markdown() -> None:
    assert as_markdown("_a_ <b> *c* 年齢") == r"\_a\_ \<b\> \*c\* 年齢"
    assert listed(["a\n# b", 3]) == r"a\\n\# b, 3"
    assert listed([" "]) == r"\' \'"
    assert listed(range(1_022)).endswith("18, 19 and 1,002 more")

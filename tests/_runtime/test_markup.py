"""Names as Markdown: they show as they are and are never markup."""

from __future__ import annotations

from arcsm._runtime.markup import as_markdown, listed


def test_names_show_as_they_are_in_markdown() -> None:
    assert as_markdown("_a_ <b> *c* 年齢") == r"\_a\_ \<b\> \*c\* 年齢"
    assert listed(["a\n# b", 3]) == r"a\\n\# b, 3"
    assert listed([" "]) == r"\' \'"
    assert listed(range(1_022)).endswith("18, 19 and 1,002 more")

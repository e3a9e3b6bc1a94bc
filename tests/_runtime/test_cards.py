"""Cards beside files: they replace one another, and what somebody wrote is kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from arcsm._runtime.cards import remove_card, write_card


def test_a_card_replaces_its_like_alone(tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    write_card(tmp_path, "first")
    write_card(tmp_path, "second")
    assert card.read_text(encoding="utf-8").endswith("second")
    card.write_text("ours", encoding="utf-8")
    write_card(tmp_path, "third")
    assert card.read_text(encoding="utf-8") == "ours"
    remove_card(tmp_path)
    assert card.exists()


def test_a_card_that_cannot_be_written_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="cannot be written"):
        write_card(tmp_path / "file", "text")

"""Cards: descriptions of the files in a folder, which never replace what somebody wrote."""

from pathlib import Path

from arcsm._runtime.files import write_text
from arcsm.errors import warn

CARD_NAME = "README.md"
CARD_MARK = "<!-- Written by arcsm, which replaces this file unless you remove this line. -->\n"


def write_card(folder: Path, text: str) -> None:
    """Write a description of the files in a folder, unless there is one without the mark of such cards."""
    path = folder / CARD_NAME
    remove_card(folder)
    try:
        if not path.exists():
            write_text(path, CARD_MARK + text)
    except OSError as error:
        warn(f"{path}: cannot be written ({error.strerror})")


def remove_card(folder: Path) -> None:
    """Remove the description of the files in a folder, if it has the mark, before these are replaced."""
    path = folder / CARD_NAME
    try:
        if path.is_file() and CARD_MARK.strip() in path.read_text(encoding="utf-8", errors="replace"):
            path.unlink()
    except OSError as error:
        warn(f"{path}: describes other files, and cannot be replaced ({error.strerror})")

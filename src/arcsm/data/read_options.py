"""How to read a table, where its file does not tell."""

import codecs
from collections.abc import Sequence
from dataclasses import dataclass

from arcsm.stored_values import stored

_NAMED_SEPARATORS = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";", "space": " ", "pipe": "|"}


@stored
@dataclass(frozen=True)
class ReadOptions:
    """How to read a table, where its file does not tell.

    Arguments:
        separator: The character between the cells of a CSV file, or ``tab``. Default: a guess.
        decimal: The decimal mark of a CSV file, ``.`` or ``,``. Default: a guess.
        encoding: The encoding of a CSV file. Default: UTF-8, or UTF-16 with a byte order mark.
        missing: Texts that mark missing values, beside the usual ones.
        ignore: Columns to leave out.
        ids: Columns that only label the rows.
        categorical: Columns of names, whatever they look like.
        numeric: Columns of numbers, even if they look like labels of the rows.
        default_decimal: The decimal mark of a CSV file whose numbers do not tell it, such as that of another table.

    Raises:
        ValueError: If a separator, decimal mark or encoding is unknown, or a column has two uses.

    Example:
        >>> ReadOptions(separator="tab", ids=["customer"]).separator == chr(9)
        True
    """

    separator: str | None = None
    decimal: str | None = None
    encoding: str | None = None
    missing: Sequence[str] = ()
    ignore: Sequence[str] = ()
    ids: Sequence[str] = ()
    categorical: Sequence[str] = ()
    numeric: Sequence[str] = ()
    default_decimal: str | None = None

    def __post_init__(self) -> None:
        if self.separator is not None:
            separator = _NAMED_SEPARATORS.get(self.separator, self.separator)
            if len(separator) != 1 or separator.isalnum() or separator in "\"'\r\n":
                raise ValueError(
                    f"separator (--sep): expected one character, such as ';', or tab, got {self.separator!r}"
                )
            object.__setattr__(self, "separator", separator)
        for name, mark in (("decimal (--decimal)", self.decimal), ("default_decimal", self.default_decimal)):
            if mark not in (None, ".", ","):
                raise ValueError(f"{name}: expected '.' or ',', got {mark!r}")
        if self.decimal == "," and self.separator == ",":
            raise ValueError("decimal (--decimal): expected another mark than the separator (--sep), got ',' for both")
        if self.encoding is not None:
            try:
                codecs.lookup(self.encoding)
            except LookupError:
                raise ValueError(
                    f"encoding (--encoding): expected a known one, such as utf-8 or cp1252, got {self.encoding!r}"
                ) from None
        named = [*set(self.ignore), *set(self.ids), *set(self.categorical), *set(self.numeric)]
        twice = next((name for name in named if named.count(name) > 1), None)
        if twice is not None:
            raise ValueError(
                f"column {twice!r}: expected in one of ignore, ids (--id), categorical and numeric, got in several"
            )

    @property
    def named(self) -> list[str]:
        """The columns that an option names."""
        return [*self.ignore, *self.ids, *self.categorical, *self.numeric]

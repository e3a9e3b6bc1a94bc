"""How the cells of a table write their values, so that other rows can be written in the same way."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import pandas as pd

from arcsm.data.column_types import ColumnType
from arcsm.data.csv_dialect import Dialect
from arcsm.data.number_formats import NumberFormat, PlainNumbers
from arcsm.stored_values import stored


@stored
@dataclass(frozen=True)
class CellForms:
    """How the cells of a table write their values.

    Attributes:
        columns: The columns of the table, in their order.
        types: The types of those that are modelled.
        is_text: Whether the table is a file of text, such as CSV.
        decimal: The decimal mark.
        truth_words: How ``True`` and ``False`` are spelled most often, for each column of truth values.
        plain: How the numbers of each column without a format are written.
        highest: The highest number of each column of ids that are whole numbers.
        id_formats: The formats of those that have one.
        dialect: The separator, the encoding and the line ends of a file of text.
    """

    columns: tuple[str, ...]
    types: dict[str, ColumnType]
    is_text: bool = False
    decimal: str = "."
    truth_words: dict[str, dict[str, str]] = field(default_factory=dict)
    plain: dict[str, PlainNumbers] = field(default_factory=dict)
    highest: dict[str, int] = field(default_factory=dict)
    id_formats: dict[str, NumberFormat] = field(default_factory=dict)
    dialect: Dialect | None = None

    def written(self, frame: pd.DataFrame, as_text: bool) -> pd.DataFrame:
        """Return rows in the forms of the table.

        Columns that the table holds as text are written in its format if the rows will be text, too, if the table can
        also hold other types, or if they hold codes with leading zeros. Text has the words for truth values that are
        most frequent in the table, and plain numbers are written like those of the table.
        """
        frame = frame.copy()
        for name in map(str, frame.columns):
            form = None if (kind := self.types.get(name)) is None else kind.format
            is_code = isinstance(form, NumberFormat) and form.is_code
            if form is not None and (as_text or is_code or not self.is_text):
                frame[name] = form.write(frame[name])
            elif as_text and name in self.plain:
                known = frame[name].dropna()
                texts = pd.Series(self.plain[name].write(known), known.index, dtype=object)
                frame[name] = texts.reindex(frame.index)
            elif as_text and name in self.truth_words:
                words = self.truth_words[name]
                frame[name] = frame[name].map(lambda truth, words=words: words.get(str(truth), truth))
        return frame

    def with_ids(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Insert the ids of new rows in the order of the columns: whole numbers after the highest ones of the table."""
        rows = rows.copy()
        for name in self.highest:
            rows[name] = self._next_ids(name, len(rows)).to_numpy()
        return rows[[name for name in self.columns if name in rows.columns]]

    def _next_ids(self, name: str, count: int) -> pd.Series:
        numbers = pd.Series(range(self.highest[name] + 1, self.highest[name] + 1 + count))
        form = self.id_formats.get(name)
        return numbers if form is None else replace(form, limit=None).write(numbers)


def words_of_truth(counts: Mapping[str, pd.Series]) -> dict[str, dict[str, str]]:
    """Return how ``True`` and ``False`` are spelled most often, from the counts of their spellings by column."""
    found = {name: count[count > 0].sort_values(kind="stable") for name, count in counts.items()}
    return {name: {str(word).capitalize(): str(word) for word in count.index} for name, count in found.items()}

"""Tables of numbers, truth values, names and times in files, as pandas frames with typed columns."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import pandas as pd

from arcsm._runtime.files import FilePath
from arcsm.data.cell_forms import CellForms, words_of_truth
from arcsm.data.checks import missing_columns
from arcsm.data.column_types import (
    MISSING,
    TRUTH,
    ColumnType,
    check_cells,
    collect_columns,
    holds_numbers,
    typed_column,
)
from arcsm.data.number_formats import NumberFormat, PlainNumbers
from arcsm.data.number_marks import OTHER_MARK, may_separate_thousands
from arcsm.data.read_options import ReadOptions
from arcsm.data.row_labels import SetAside, reason_to_set_aside
from arcsm.data.table import TableFile
from arcsm.data.time_formats import TimeFormat
from arcsm.data.type_guesses import infer_type, odd_code
from arcsm.errors import SkippedWarning, warn

_PART_ROWS = 50_000
_MIN_DIGITS = 3  # of whole numbers, for an ambiguous mark among others of their kind to separate thousands


class FrameFile:
    """A table of numbers, truth values, names and times in a file, with missing values.

    A text column is numeric if nearly all of its cells are numbers, in a common format such as ``$1,234.50`` or
    ``12,5 %``. It holds times if nearly all are dates or times of day in a common format. A warning names the formats
    that might be another.

    Arguments:
        path: A CSV, Parquet, NPY or NPZ file; see :func:`read_table`.
        options: How to read it.
        like: The types of the wanted columns, in their order. Default: infer all types.
        source: The name of the file in messages. Default: its path.

    Attributes:
        file: The file.
        types: The types of the columns, without those set aside.
        columns: The columns of the file, without those to ignore.
        set_aside: Why :meth:`read` has set columns aside, by name.
        highest: The highest number of each column of whole numbers among them.

    Raises:
        ValueError: If the file is missing, empty or of an unknown kind.
    """

    def __init__(
        self,
        path: FilePath,
        options: ReadOptions | None = None,
        like: Mapping[str, ColumnType] | None = None,
        source: str | None = None,
    ) -> None:
        self.options, self._like = options or ReadOptions(), like
        self.types: dict[str, ColumnType] = dict(like or {})
        self.columns: list[str] = []
        self.set_aside: dict[str, SetAside] = {}
        self.highest: dict[str, int] = {}
        self._codes: dict[str, str] = {}
        self._id_formats: dict[str, NumberFormat] = {}
        self._guesses: dict[str, str] = {}  # how columns of text are read
        names = [name for name, kind in self.types.items() if kind.kind == "name"]
        self.file = TableFile(path, None, self.options, names, source)

    def read(self, set_aside: bool = False) -> pd.DataFrame:
        """Return all rows.

        With ``set_aside``, columns that only label the rows, and free text, are left out. A warning names them.

        Raises:
            ValueError: If the file cannot be read or has no rows; if it lacks a column that is wanted or that an option
                names; or if columns hold infinite values, lists, complex numbers or a few cells of another type than
                the others. The message names all such columns.
        """
        if self._like is not None:
            return next(self.parts(None))
        raw = next(self.file.parts(None, self._text_columns()))
        chosen = self._chosen(list(raw.columns))
        frame = collect_columns(raw[chosen], self._infer_and_convert, self.file.source).reset_index(drop=True)
        self.columns = chosen
        if set_aside:
            self.set_aside = {name: reason for name in chosen if (reason := self._reason(frame[name])) is not None}
            numbered = [name for name in self.set_aside if holds_numbers(frame[name].dtype)]
            self.highest = {name: int(frame[name].max()) for name in numbered}
            formats = {name: self.types[name].format for name in numbered}
            self._id_formats = {name: form for name, form in formats.items() if isinstance(form, NumberFormat)}
            self.types = {name: kind for name, kind in self.types.items() if name not in self.set_aside}
            frame = frame[list(self.types)]
        self._report()
        if not self.types:
            raise ValueError(f"{self.file.source}: no column is left")
        return frame

    def parts(self, rows: int | None = _PART_ROWS) -> Iterator[pd.DataFrame]:
        """Yield parts of ``rows`` rows, or all rows at once with ``None``; errors are those of :meth:`read`.

        Without wanted types, the types of each part are inferred from its own cells.
        """
        if self._like is None:
            for raw in self.file.parts(rows, self._text_columns()):
                yield collect_columns(raw[self._chosen(list(raw.columns))], self._infer_and_convert, self.file.source)
            return
        for raw in self.file.parts(rows, self._text_columns()):
            chosen = self._wanted(list(raw.columns), self._like)
            frame = collect_columns(raw[chosen], self._convert, self.file.source)
            yield frame.reset_index(drop=True)

    @property
    def known_options(self) -> ReadOptions:
        """The options with what was guessed of a CSV file, to read it again."""
        if not self.file.is_text:
            return self.options
        dialect = self.file.csv.dialect
        if dialect.decimal == dialect.separator:  # in quotation marks, which is guessed again
            return self.options
        return replace(self.options, separator=dialect.separator, decimal=dialect.decimal)

    @cached_property
    def forms(self) -> CellForms:
        """How the cells of the file write their values; it is read again for that."""
        dialect = replace(self.file.csv.dialect, ambiguous={}, first_line=0) if self.file.is_text else None
        return CellForms(
            tuple(self.columns), self.types, self.file.is_text, self.file.decimal, self.truth_words,
            self._plain_numbers, self.highest, self._id_formats, dialect,
        )  # fmt: skip

    @cached_property
    def truth_words(self) -> dict[str, dict[str, str]]:
        """How a CSV file spells ``True`` and ``False`` most often, for each column of truth values."""
        names = [name for name, kind in self.types.items() if kind.kind == "truth"]
        if not names or not self.file.is_text:
            return {}
        counts = {name: pd.Series(0, index=TRUTH) for name in names}
        for part in self.file.raw_parts(_PART_ROWS):
            for name in names:
                counts[name] += part[name].str.strip().value_counts().reindex(TRUTH, fill_value=0)
        return words_of_truth(counts)

    def format_of(self, name: str) -> NumberFormat | TimeFormat | None:
        """Return the format of the cells of a column, if it has one."""
        kind = self.types.get(name)
        return None if kind is None else kind.format

    @property
    def _plain_numbers(self) -> dict[str, PlainNumbers]:
        """How a CSV file writes the numbers of each column that has no format."""
        names = [name for name, kind in self.types.items() if kind.kind == "number" and kind.format is None]
        if not names or not self.file.is_text:
            return {}
        gaps, cells = (*MISSING, *self.options.missing), {name: pd.Series(dtype=object) for name in names}
        for part in self.file.raw_parts(_PART_ROWS):
            for name in names:
                known = part[name][~part[name].str.strip().isin(gaps)]
                cells[name] = pd.concat([cells[name], known]).drop_duplicates()
        return {name: PlainNumbers.of(column, self.file.decimal) for name, column in cells.items()}

    def _text_columns(self) -> list[str]:
        """Return the columns of a CSV file to read as text: names, codes, and numbers in the form of wanted types."""
        if not self.file.is_text:
            return []
        if self._like is not None:
            formatted = [name for name, kind in self._like.items() if isinstance(kind.format, NumberFormat)]
            plain = [name for name in self._ambiguous_marks if self._like[name].format is None]
            return [name for name, kind in self._like.items() if kind.kind == "name"] + formatted + plain
        return [*self.file.csv.code_columns(), *self.options.categorical]

    @cached_property
    def _ambiguous_marks(self) -> dict[str, str]:
        """The mark that exactly three digits follow in all numbers of this file that have it, by column.

        The columns are those of numbers that have a format or are whole, of three or more digits, in the other table.
        """
        names = [
            name
            for name, kind in (self._like or {}).items()
            if isinstance(kind.format, NumberFormat) or (kind.format is None and kind.digits >= _MIN_DIGITS)
        ]
        if not names or not self.file.is_decimal_guessed:
            return {}
        cells = {name: pd.Series(dtype=object) for name in names}
        for part in self.file.raw_parts(_PART_ROWS):
            for name in (name for name in names if name in part):
                marked = part[name][part[name].str.contains("[.,]")]
                cells[name] = pd.concat([cells[name], marked]).drop_duplicates()
        marks = {name: [mark for mark in OTHER_MARK if may_separate_thousands(cells[name], mark)] for name in names}
        return {name: found[0] for name, found in marks.items() if found and self._is_as_long(name, cells[name])}

    def _is_as_long(self, name: str, cells: pd.Series) -> bool:
        """Return whether numbers without marks have at most one digit more than the plain ones of the other table."""
        kind = (self._like or {})[name]
        return kind.format is not None or cells.str.count(r"\d").max() <= kind.digits + 1

    def _chosen(self, columns: Sequence[str]) -> list[str]:
        """Return the columns without those to ignore."""
        self.file.check_named(columns)
        chosen = [name for name in columns if name not in self.options.ignore]
        if not chosen:
            raise ValueError(f"{self.file.source}: no column is left")
        return chosen

    def _wanted(self, columns: Sequence[str], like: Mapping[str, ColumnType]) -> list[str]:
        missing = [name for name in like if name not in columns]
        if missing:
            others = ", ".join(name for name in columns if name not in like and name not in self.options.named)
            raise ValueError(
                f"{self.file.source}: {missing_columns(missing)}" + (f"; it has {others} instead" if others else "")
            )
        return list(like)

    def _infer_and_convert(self, column: pd.Series) -> pd.Series:
        name = str(column.name)
        check_cells(column, f"column {name!r}")
        if name in self.options.ids:
            self.types[name] = ColumnType("name")
            return column
        if name in self.options.categorical:
            self.types[name] = ColumnType("name")
        else:
            self.types[name] = infer_type(column, self.file.decimal_of(column))
            if self.types[name].kind == "name" and (code := odd_code(column)) is not None:
                self._codes[name] = code
            if name in self.options.numeric and self.types[name].kind != "number":
                self.types[name] = ColumnType("number")
            form = self.types[name].format
            if isinstance(form, NumberFormat):
                self._guesses[name] = self.file.describe(column, form)
            elif form is not None and form.is_guess:
                self._guesses[name] = form.describe()
        return self._convert(column)

    def _reason(self, column: pd.Series) -> SetAside | None:
        """Return why a column is set aside, or ``None``."""
        name = str(column.name)
        if name in self.options.ids:
            return SetAside("an id", True)
        forced = name in (*self.options.numeric, *self.options.categorical)
        total = None if self.file.sample is None else self.file.sample.total
        return None if forced else reason_to_set_aside(column, self.types[name], total)

    def _convert(self, column: pd.Series) -> pd.Series:
        kind = self.types[str(column.name)]
        if self._like is not None and kind.kind == "number" and not holds_numbers(column.dtype):
            kind = self._in_this_file(column, kind)
        decimal = self.file.decimal_of(column) if kind.kind == "number" else self.file.decimal
        return typed_column(column, kind, self.file.locate, decimal)

    def _in_this_file(self, column: pd.Series, kind: ColumnType) -> ColumnType:
        """Return a wanted type with the marks that ambiguous numbers of this file have.

        If the other table has whole numbers of three or more digits, the marks separate thousands, unless the numbers
        would be far longer than those. Otherwise they are those of the type, unless the decimal marks of the two files
        differ.
        """
        form, name = kind.format, str(column.name)
        mark = self._ambiguous_marks.get(name)
        if mark is None or isinstance(form, TimeFormat):
            return kind
        if kind.digits >= _MIN_DIGITS:
            found = form or NumberFormat(example=str(column.dropna().iloc[0]))
            found = replace(found, thousands=mark, decimal=OTHER_MARK[mark])
            if found != form and mark == self.file.decimal:
                self._warn_of_thousands(column, found)
            return replace(kind, format=found)
        if form is None or form.is_code or self.options.default_decimal in (None, self.file.decimal):
            return kind
        decimal = self.file.decimal_of(column)
        return replace(kind, format=replace(form, thousands=OTHER_MARK[decimal], decimal=decimal))

    def _warn_of_thousands(self, column: pd.Series, form: NumberFormat) -> None:
        """Warn once for a column that its marks separate thousands, although they could come before decimals."""
        name = str(column.name)
        cell = next((cell for cell in column.dropna() if form.thousands in cell), None)
        if cell is None or name in self._guesses:
            return
        self._guesses[name] = replace(form, example=cell).describe()
        marks = "points" if form.thousands == "." else "commas"
        warn(
            f"{self.file.source}: read {name!r} as {self._guesses[name]}, whole numbers as in the other table; "
            f"if {marks} come before decimals: --decimal {form.thousands}"
        )

    def _report(self) -> None:
        """Warn of columns that are set aside, and of formats that might be another."""
        if self.set_aside:
            listed = ", ".join(f"{name!r} ({reason})" for name, reason in self.set_aside.items())
            warn(f"{self.file.source}: set aside, not modelled: {listed}", SkippedWarning)
        guessed = [f"{name!r} as {guess}" for name, guess in self._guesses.items() if name in self.types]
        guessed += [
            f"{name!r} as names ({code!r} is no number)" for name, code in self._codes.items() if name in self.types
        ]
        if guessed:
            warn(f"{self.file.source}: read {', '.join(guessed)}")


def read_frame(
    path: FilePath,
    like: pd.DataFrame | None = None,
    ignore: Sequence[str] = (),
    options: ReadOptions | None = None,
) -> pd.DataFrame:
    """Read a table of numbers, truth values, names and times, with missing values; see :class:`FrameFile`.

    Arguments:
        path: A CSV, Parquet, NPY or NPZ file; see :func:`read_table`.
        like: A table whose columns, in their order and types, are wanted. Default: infer the types.
        ignore: Columns to leave out.
        options: How to read the file, in place of ``ignore``.

    Raises:
        ValueError: As in :meth:`FrameFile.read`.
    """
    return _frame_file(path, like, ignore, options).read()


def frame_parts(
    path: FilePath, like: pd.DataFrame | None, rows: int | None = _PART_ROWS, ignore: Sequence[str] = ()
) -> Iterator[pd.DataFrame]:
    """Yield the table of :func:`read_frame` in parts of ``rows`` rows, or all rows at once with ``None``."""
    yield from _frame_file(path, like, ignore).parts(rows)


def _frame_file(
    path: FilePath, like: pd.DataFrame | None, ignore: Sequence[str], options: ReadOptions | None = None
) -> FrameFile:
    types = None if like is None else {str(name): ColumnType.of(like[name]) for name in like.columns}
    return FrameFile(path, options or ReadOptions(ignore=ignore), types)

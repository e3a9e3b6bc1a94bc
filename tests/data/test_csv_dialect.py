"""Separators, decimal marks and encodings of CSV files are guessed, and the guess is reported."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from arcsm.data import ReadOptions, frame_writer, read_frame, read_table
from arcsm.data.csv_dialect import find_dialect
from arcsm.data.table import TableFile


@pytest.mark.parametrize(
    ("text", "separator", "decimal", "message"),
    [
        ("a,b\n1,2.5\n", ",", ".", None),
        ("a;b\n1,5;2,25\n3;4\n", ";", ",", "guessed ';' between cells (--sep) and ',' before decimals (--decimal)"),
        ("a;b\n12,50 €;1.637\n", ";", ",", "guessed ';' between cells (--sep) and ',' before decimals (--decimal)"),
        ("a;b\n1.637 €;2\n887 €;4\n", ";", ".", "guessed ';' between cells (--sep)"),  # the column decides by itself
        ("p;n\n1,100;12,345 %\n", ";", ",", "guessed ';' between cells (--sep) and ',' before decimals (--decimal)"),
        ('a,b\n"1,5",2\nNA,1.637\n', ",", ",", "guessed ',' before decimals (--decimal)"),
        ('a,b\n"1,3",2\n"1,2,4",1.637\n', ",", ".", None),  # lists
        ("a b\n1 2\n3 4\n", " ", ".", "guessed a space between cells (--sep)"),
        ("name\nAda Lovelace\nAlan Turing\n", ",", ".", None),
        ("a,b\n1,2\n3,4,5\n", ",", ".", None),  # ragged: rejected later
    ],
)
def test_dialects_are_guessed(tmp_path: Path, text: str, separator: str, decimal: str, message: str | None) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        dialect = find_dialect(path, ReadOptions(), "t.csv")
    assert (dialect.separator, dialect.decimal) == (separator, decimal)
    assert [str(warning.message) for warning in caught] == ([] if message is None else [f"t.csv: {message}"])


def test_given_dialects_are_not_guessed(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes("Größe;n\n1,5;2\n2,5;3\n".encode("cp1252"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = read_table(path, options=ReadOptions(separator=";", decimal=",", encoding="cp1252"))
        assert table.columns == ("Größe", "n")
        assert table.values.tolist() == [[1.5, 2], [2.5, 3]]
        (tmp_path / "t.tsv").write_text("a\tb\n1\t2,5\n".replace(",", "."))
        assert read_table(tmp_path / "t.tsv").values.tolist() == [[1, 2.5]]
    with pytest.raises(ValueError, match=r"is not in UTF-8; give its encoding, such as --encoding cp1252"):
        read_frame(path)


@pytest.mark.parametrize(
    ("encoding", "suffix", "line_end"),
    [("utf-8-sig", ".csv", "\n"), ("utf-16", ".tsv", "\r\n"), ("cp1252", ".csv", "\r\n")],
)
def test_written_files_keep_the_encoding_its_mark_and_line_ends(
    encoding: str, suffix: str, line_end: str, tmp_path: Path
) -> None:
    path, out = tmp_path / f"t{suffix}", tmp_path / f"o{suffix}"
    text = "Größe,Preis\n1,2 €\n3,4 €\n".replace(",", "," if suffix == ".csv" else "\t").replace("\n", line_end)
    path.write_bytes(text.encode(encoding))
    options = ReadOptions(encoding="cp1252" if encoding == "cp1252" else None)
    file = TableFile(path, options=options)
    with frame_writer(out, file) as write:
        for part in file.raw_parts(1):
            write(part)
    assert out.read_bytes() == path.read_bytes()
    if encoding == "utf-8-sig":  # though named without its mark
        assert TableFile(path, options=ReadOptions(encoding="UTF8")).csv.columns == ["Größe", "Preis"]


def test_the_line_with_which_excel_names_the_separator_is_understood(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("sep=;\nname;b\nx, y;1\nz;oops\n")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        file = TableFile(path)
        assert next(file.parts())["name"].tolist() == ["x, y", "z"]
    assert file.locate(1) == "row 2 (line 4)"
    path.write_text("sep=;\na;b\n1;2\n3;4;5\n")
    with pytest.raises(ValueError, match="line 4: expected 2 cells like the first row, got 3"):
        read_table(path)


def test_an_unclosed_quotation_mark_is_located(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('a,b\n1,"x"\n2,"y\n' + "3,z\n" * 50)
    with pytest.raises(ValueError, match=r"t\.csv: line 3: begins a cell in quotation marks that never ends"):
        read_frame(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"separator": "::"}, r"^separator \(--sep\): expected one character"),
        (
            {"separator": ",", "decimal": ","},
            r"^decimal \(--decimal\): expected another mark than the separator \(--sep\)",
        ),
        ({"encoding": "klingon"}, r"^encoding \(--encoding\): expected a known one"),
        ({"ids": ["a"], "ignore": ["a"]}, r"^column 'a': expected in one of ignore, ids \(--id\)"),
    ],
)
def test_mistaken_options_are_rejected(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ReadOptions(**options)  # type: ignore[arg-type]

"""Numbers as text: read in common formats and written back in the same."""

from __future__ import annotations

import pandas as pd
import pytest

from arcsm.data.number_formats import NumberFormat, PlainNumbers


@pytest.mark.parametrize(
    ("cells", "numbers"),
    [
        (["$1,234.50", "$5.00", "-$17.25"], [1234.5, 5.0, -17.25]),
        (["1.234,50 €", "5,00 €"], [1234.5, 5.0]),
        (["(5)", "1,450", "2,100,000"], [-5.0, 1450.0, 2_100_000.0]),
        (["1'000.5", "2"], [1000.5, 2.0]),
        (["1\u202f234,5 km", "2,25 km"], [1234.5, 2.25]),
        (["0,123", "1,500"], [0.123, 1.5]),  # no thousands begin with a zero
        (["(13.03)", "9.50"], [-13.03, 9.5]),
        (["$\u22125", "$7"], [-5.0, 7.0]),
        (["$ (46.46)", "$ 649.90", "$ 1,200.00"], [-46.46, 649.9, 1200.0]),  # as spreadsheets write accounts
        (["1,23,456", "95,000", "-12,34,567", "800"], [123456.0, 95000.0, -1234567.0, 800.0]),  # Indian groups
    ],
)
def test_formats_are_read_and_written_back(cells: list[str], numbers: list[float]) -> None:
    column = pd.Series([*cells, None])
    form = NumberFormat.infer(column)
    assert form is not None
    parsed = form.parse(column)
    assert parsed.tolist()[:-1] == numbers
    assert parsed.isna().tolist() == [False] * len(cells) + [True]
    assert form.write(parsed).tolist()[:-1] == cells


def test_an_amount_that_is_a_dash_is_zero() -> None:
    column = pd.Series(["$ -", "$ 649.90", "-"])
    form = NumberFormat.infer(column)
    assert form is not None
    assert form.parse(column).isna().tolist() == [False, False, True]
    numbers = form.parse(column)
    assert numbers[0] == 0.0
    assert form.write(numbers).tolist()[:2] == ["$ -", "$ 649.90"]
    assert form.write(pd.Series([12.5, 3.0])).tolist() == ["$ 12.50", "$ 3.00"]


def test_codes_keep_their_leading_zeros_up_to_their_width() -> None:
    codes = pd.Series(["02285", "12345", "00012", None])
    form = NumberFormat.infer_codes(codes)
    assert form is not None
    assert form.parse(codes).tolist()[:3] == [2285, 12345, 12]
    assert form.write(form.parse(codes)).tolist()[:3] == codes.tolist()[:3]
    assert form.write(pd.Series([-7.2, 905.4, 100_099])).tolist() == ["00007", "00905", "99899"]  # mirrored
    growing = NumberFormat.infer_codes(pd.Series(["098", "099", "1000"]))
    assert growing is not None
    assert growing.write(pd.Series([7, 1001])).tolist() == ["007", "1001"]
    assert NumberFormat.infer_codes(pd.Series(["1", "20"])) is None


@pytest.mark.parametrize(
    ("cells", "values", "texts"),
    [
        (["7.0", "20.0"], [13.0, 2.5], ["13.0", "2.5"]),
        (["7", "20.25"], [13.0, 2.5], ["13", "2.5"]),  # no zeros that a cell lacks
        (["5.270e+08", "1.000e+07"], [632854159, 0.02], ["6.329e+08", "2.000e-02"]),
        (["5.27E8", "1E7"], [632854159.0, 5e6], ["6.33E8", "5E6"]),
        (["7,5", "0,25"], [1.5e-5, 2.0], ["0,000015", "2,0"]),  # decimals that no cell has, such as a given value's
        (["7", "20"], [1e20, 2.25], ["100000000000000000000", "2.25"]),
    ],
)
def test_plain_numbers_are_written_like_the_others(cells: list[str], values: list[float], texts: list[str]) -> None:
    decimal = "," if "," in cells[0] else "."
    assert PlainNumbers.of(pd.Series(cells, dtype=object), decimal).write(pd.Series(values)) == texts

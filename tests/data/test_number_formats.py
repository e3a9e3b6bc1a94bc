"""Numbers as text: read in common formats and written back in the same."""

from __future__ import annotations

import pandas as pd
import pytest

from arcsm.data.number_formats import (
    NumberFormat,
    PlainNumbers,
    count_units,
)


@pytest.mark.parametrize(
    ("cells", "numbers"),
    [
        (["$1,234.50", "$5.00", "-$17.25"], [1234.5, 5.0, -17.25]),
        (["$-5", "$7"], [-5.0, 7.0]),
        (["1.234,50 €", "5,00 €"], [1234.5, 5.0]),
        (["USD 5", "USD 1,000"], [5.0, 1000.0]),
        (["12.5 %", "3 %"], [12.5, 3.0]),
        (["(5)", "1,450", "2,100,000"], [-5.0, 1450.0, 2_100_000.0]),
        (["1'000.5", "2"], [1000.5, 2.0]),
        (["1\u202f234,5 km", "2,25 km"], [1234.5, 2.25]),
        (["0,123", "1,500"], [0.123, 1.5]),  # no thousands begin with a zero
        (["1,5", "2,25"], [1.5, 2.25]),
        (["72°F", "65°F"], [72.0, 65.0]),
        (["12,50 €", "1.637,00 €"], [12.5, 1637.0]),
        (["5kg", "10.5kg"], [5.0, 10.5]),
        (["(13.03)", "9.50"], [-13.03, 9.5]),
        (["(3)", "(20)"], [-3.0, -20.0]),
        (["(13,03)", "9,50"], [-13.03, 9.5]),
        (["\u221213.03", "9.50"], [-13.03, 9.5]),
        (["\u221213,03 €", "9,50 €"], [-13.03, 9.5]),
        (["$\u22125", "$7"], [-5.0, 7.0]),
        (["$ (46.46)", "$ 649.90", "$ 1,200.00"], [-46.46, 649.9, 1200.0]),  # as spreadsheets write accounts
        (["(46.46) €", "3.00 €"], [-46.46, 3.0]),
        (["1,23,456", "95,000", "-12,34,567", "800"], [123456.0, 95000.0, -1234567.0, 800.0]),  # Indian groups
        (["₹1,23,456.50", "₹95,000.25"], [123456.5, 95000.25]),
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
    zeros = NumberFormat.infer(pd.Series(["$ -", "$ -"]))
    assert zeros is not None
    assert zeros.write(pd.Series([0.0])).tolist() == ["$ -"]


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
    for cells in (["1", "20"], ["05", "7"], ["01a", "02"], ["0"]):
        assert NumberFormat.infer_codes(pd.Series(cells)) is None


def test_a_mark_before_three_digits_depends_on_the_file() -> None:
    column = pd.Series(["1.234", "12.500"])
    assert NumberFormat.infer(column) is None  # plain numbers with decimals
    form = NumberFormat.infer(column, decimal=",")
    assert form is not None
    assert form.parse(column).tolist() == [1234, 12500]
    assert form.describe() == "numbers ('12.500' is 12500)"


@pytest.mark.parametrize(
    "cells",
    [
        ["1", "2", "5 kg"],
        ["A1", "A2"],
        ["10-20", "20-30"],
        ["x y", "b"],
        ["5", "-7.5"],
        ["2", "1e999"],
        ["(030)", "(089)"],
    ],
)
def test_names_and_plain_numbers_have_no_format(cells: list[str]) -> None:
    assert NumberFormat.infer(pd.Series(cells)) is None


def test_decimals_and_thousands_may_be_in_different_cells() -> None:
    for decimal in ".,":
        form = NumberFormat.infer(pd.Series(["12,50 €", "1.637 €"]), decimal)
        assert form is not None
        assert form.parse(pd.Series(["12,50 €", "1.637 €"])).tolist() == [12.5, 1637.0]


def test_other_units_are_not_numbers_of_the_format() -> None:
    column = pd.Series(["5 kg", "7 kg", "300 g"])
    form = NumberFormat.infer(column)
    assert form is not None
    assert form.parse(column).isna().tolist() == [False, False, True]


@pytest.mark.parametrize(
    ("cells", "numbers"),
    [
        (["20.1%", "0.206", "22.7%", "0"], [20.1, None, 22.7, 0.0]),
        (["180 cm", "1.75", "160 cm"], [180.0, None, 160.0]),
        (["$5.50", "7", "$8.00"], [5.5, 7.0, 8.0]),  # an amount has the currency of the others
    ],
)
def test_numbers_without_a_unit_that_has_a_scale_have_another_format(
    cells: list[str], numbers: list[float | None]
) -> None:
    column = pd.Series(cells)
    form = NumberFormat.infer(column)
    assert form is not None
    assert form.parse(column).astype(object).where(lambda number: number.notna(), None).tolist() == numbers
    assert form.parse(column, any_scale=True).notna().all()
    assert form.example in (cells[0], cells[2])


def test_units_are_counted() -> None:
    assert count_units(pd.Series(["1 %", "2%", "0.2", "0", "x", None, "$3"])) == {"%": 2, "": 1, "$": 1}


def test_sampled_numbers_get_the_decimals_of_the_column() -> None:
    form = NumberFormat.infer(pd.Series(["$1,234.50", "$2.00"]))
    assert form is not None
    assert form.write(pd.Series([1e6 / 3, -0.001])).tolist() == ["$333,333.33", "$0.00"]


@pytest.mark.parametrize(
    ("cells", "values", "texts"),
    [
        (["7.0", "20.0"], [13.0, 2.5], ["13.0", "2.5"]),
        (["7", "20"], [13.0, -4.0], ["13", "-4"]),
        (["7", "20.25"], [13.0, 2.5], ["13", "2.5"]),  # no zeros that a cell lacks
        (["7.50", "2.25"], [13.0, 2.5], ["13.00", "2.50"]),
        (["7,50", "2,25"], [13.0, 2.5], ["13,00", "2,50"]),
        (["5.270e+08", "1.000e+07"], [632854159, 0.02], ["6.329e+08", "2.000e-02"]),
        (["5.27E8", "1E7"], [632854159.0, 5e6], ["6.33E8", "5E6"]),
        (["7,5", "0,25"], [1.5e-5, 2.0], ["0,000015", "2,0"]),  # decimals that no cell has, such as a given value's
        (["7", "20"], [1e20, 2.25], ["100000000000000000000", "2.25"]),
        (["0.3333333333333333", "1.5"], [2 / 3, 4.0], ["0.6666666666666666", "4.0"]),
    ],
)
def test_plain_numbers_are_written_like_the_others(cells: list[str], values: list[float], texts: list[str]) -> None:
    decimal = "," if "," in cells[0] else "."
    assert PlainNumbers.of(pd.Series(cells, dtype=object), decimal).write(pd.Series(values)) == texts

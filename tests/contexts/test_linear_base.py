"""LinearBase: the conditional normal distribution of any set of known values, where it is narrow."""

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from arcsm.contexts.linear_base import LinearBase
from arcsm.contexts.normal_moments import Moments
from small_tables import random_moments


def base(features: int = 5) -> LinearBase:
    """Return a base in double precision all of whose predictors count."""
    torch.manual_seed(0)
    found = LinearBase(features, near=1e9).double()
    found.set_moments(random_moments(features))
    return found


def solved(moments: LinearBase, x: Tensor, known: Sequence[int], d: int) -> tuple[float, float]:
    """Return mean and standard deviation of a value given others, from the normal equations."""
    covariance = moments.correlation * moments.deviation * moments.deviation[:, None]
    if not known:
        return float(moments.mean[d]), float(moments.deviation[d])
    weights = torch.linalg.solve(covariance[known][:, known], covariance[known, d])
    location = moments.mean[d] + (x - moments.mean)[known] @ weights
    return float(location), math.sqrt(float(covariance[d, d] - covariance[d, known] @ weights))


def residuals(moments: LinearBase, x: Tensor, known: Sequence[int]) -> Tensor:
    """Return how far values are from their means given the others of a set, in errors, compressed; 0 outside."""
    found = torch.zeros_like(x)
    for d in known:
        location, scale = solved(moments, x, [e for e in known if e != d], d)
        found[d] = math.asinh((float(x[d]) - location) / scale)
    return found


@pytest.mark.parametrize(("complete", "same"), [(True, False), (False, True), (False, False)])
def test_it_solves_the_normal_equations(complete: bool, same: bool) -> None:
    """In an order, given all others and given any set, with one set or order for all rows and with one for each."""
    predictors = base()
    x, features = torch.randn(6, 5, dtype=torch.float64), range(5)
    known = torch.ones(6, 5, dtype=torch.bool) if complete else torch.rand(6, 5) < 0.5
    order = torch.stack([torch.randperm(5) for _ in x])
    known, order = (known[:1].expand(6, 5), order[0]) if same else (known, order)
    seen = torch.where(known, x, torch.nan)
    answers = predictors.in_order(seen, known, order), predictors.given_others(seen, known), predictors(seen, known)
    for i, its_order in enumerate(order.expand(6, 5).tolist()):
        its = [d for d in features if known[i, d]]
        for place, d in enumerate(its_order):
            before = [e for e in its_order[:place] if known[i, e]]
            expected = [solved(predictors, x[i], before, d)]
            expected += [solved(predictors, x[i], [e for e in its if e != d], d)]
            expected += [solved(predictors, x[i], its, d)] if d not in its else []
            for result, (location, scale) in zip(answers, expected, strict=False):
                assert float(result.pairs[i, d, 0]) == pytest.approx(location, abs=1e-9)
                assert float(result.pairs[i, d, 1].exp()) == pytest.approx(scale, abs=1e-6)
            for result, its_set in zip(answers, (before, [e for e in its if e != d], its), strict=True):
                torch.testing.assert_close(result.residuals[i, d], residuals(predictors, x[i], its_set))


def test_a_predictor_counts_only_if_it_is_near() -> None:
    predictors = LinearBase(2, near=0.2).double()
    one = torch.tensor([[1.0, 1.0]], dtype=torch.float64)
    for scale, weight in ((0.05, 1.0), (0.1, 1.0), (0.15, 0.5), (0.2, 0.0), (0.5, 0.0)):
        slope = math.sqrt(1.0 - scale**2)
        correlation = torch.tensor([[1.0, slope], [slope, 1.0]], dtype=torch.float64)
        predictors.set_moments(Moments(torch.zeros(2), torch.ones(2), correlation))
        location, log_scale = predictors.located_by_others(one, one)[0, 0].tolist()
        assert location == pytest.approx(weight * slope, abs=1e-4)
        assert math.exp(log_scale) == pytest.approx(weight * scale + 1.0 - weight, rel=1e-4)


def test_fit_finds_correlations_and_errors() -> None:
    """Of normal rows, the third a sum of the others, with values missing."""
    torch.manual_seed(1)
    x = torch.randn(4000, 4, dtype=torch.float64)
    x[:, 2] = (x[:, 0] + x[:, 1] + 0.05 * torch.randn(4000, dtype=torch.float64)) / math.sqrt(2.0)
    x[:, 3] = torch.nan  # a nominal dimension
    truth = torch.eye(4, dtype=torch.float64)
    truth[2, :2] = truth[:2, 2] = math.sqrt(0.5)
    holes = torch.rand_like(x) < 0.3
    fitted = LinearBase(4).double()
    fitted.fit(torch.where(holes, torch.nan, x))
    torch.testing.assert_close(fitted.correlation, truth, rtol=0.0, atol=0.05)
    expected = torch.tensor([0.05, 0.05, 0.05 / math.sqrt(2.0), 1.0]).double()
    torch.testing.assert_close(fitted.scales, expected, rtol=0.15, atol=0.0)
    assert torch.linalg.eigvalsh(fitted.correlation).min() > 0.0


def test_gaps_that_depend_on_another_column_move_no_line() -> None:
    torch.manual_seed(1)
    first = torch.randn(1500, 1, dtype=torch.float64)
    x = torch.cat([first, 0.5 + first + 0.01 * torch.randn_like(first)], 1)
    seen = torch.where((torch.arange(2) == 1) & (first > 0.5), torch.nan, x)
    fitted = LinearBase(2).double()
    fitted.fit((seen - seen.nanmean(0)) / torch.tensor([1.0, 0.7]))  # standardised by the known values
    assert float(fitted.scales[1]) == pytest.approx(0.01 / 0.7, rel=0.2)
    rows = (x - seen.nanmean(0)) / torch.tensor([1.0, 0.7])
    known = torch.tensor([True, False]).expand(1500, 2)
    error = fitted(rows, known).pairs[:, 1, 0] - rows[:, 1]
    assert float(error.square().mean().sqrt()) == pytest.approx(0.01 / 0.7, rel=0.1)


def test_errors_are_measured_on_rows_that_the_predictor_has_not_seen() -> None:
    """As many columns as rows would be predicted exactly; columns that are copies are, but no scale is zero."""
    torch.manual_seed(2)
    fitted = LinearBase(12).double()
    fitted.fit(torch.randn(14, 12, dtype=torch.float64))
    assert torch.equal(fitted.scales, torch.ones(12, dtype=torch.float64))
    assert not fitted.index
    torch.testing.assert_close(fitted.correlation, torch.eye(12, dtype=torch.float64))
    fitted.fit(torch.randn(500, 1, dtype=torch.float64).expand(500, 12))
    assert bool(((fitted.scales >= 1e-4) & (fitted.scales < 0.02)).all())


def test_lines_of_few_rows_are_found_and_columns_that_only_seem_to_be_on_one_are_not() -> None:
    """Forty complete rows of ten columns, two of which are copies but for a little noise."""
    torch.manual_seed(4)
    x = torch.randn(40, 10, dtype=torch.float64)
    x[:, 7] = x[:, 2] + 0.01 * torch.randn(40, dtype=torch.float64)
    fitted = LinearBase(10).double()
    fitted.fit(x)
    assert fitted.index == (2, 7)
    assert float(fitted.scales[[2, 7]].max()) < 0.03

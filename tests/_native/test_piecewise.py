"""Integrals of piecewise densities in C, against the same formulas in torch."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from arcsm import _native
from arcsm._native import Indicators
from arcsm.conditionals.piecewise import rule
from arcsm.conditionals.quadrature import CALIBRATION, _assess, _errors, from_nodes

FLOAT64 = torch.float64
ROWS = 300


@pytest.fixture
def in_torch(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return the function from which on C is not used."""
    return lambda: monkeypatch.setattr(_native, "readable", lambda *_: False)


def modes(rows: int = ROWS) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return the scores of mixtures of two Gaussians."""
    generator = torch.Generator().manual_seed(0)
    means, sd = torch.randn(2, rows, 2, generator=generator, dtype=FLOAT64)
    means, sd = 3.0 * means, 0.3 + sd.abs()

    def score(x: Tensor, of: Tensor) -> tuple[Tensor, Tensor]:
        z = (x[..., None] - means[of, None]) / sd[of, None]
        share = torch.softmax(-0.5 * z.square() - sd[of, None].log(), -1)
        slopes = -z / sd[of, None]
        s = (share * slopes).sum(-1)
        return s, (share * ((slopes - s[..., None]).square() - sd[of, None] ** -2)).sum(-1)

    return score


def nodes(count: int = 12, rows: int = ROWS) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    grid = torch.linspace(-8.0, 8.0, count, dtype=FLOAT64)
    x = grid + (0.8 * 16.0 / count) * (torch.rand(rows, count, generator=generator, dtype=FLOAT64) - 0.5)
    x[::7, -1] = x[::7, -2]  # a cell of no width
    s, ds = modes(rows)(x, torch.arange(rows))
    return x, s, ds


@pytest.mark.parametrize("count", [2, 3, 12])
@pytest.mark.parametrize("with_anchor", [False, True])
@torch.no_grad()
def test_integrals_and_errors_are_those_of_torch(in_torch: Callable[[], None], count: int, with_anchor: bool) -> None:
    x, s, ds = nodes(count)
    s[20] = torch.nan  # concerns no other row
    anchor = x[:, count // 2] + 0.1 if with_anchor else None
    ours, *our_errors = _assess(x, s, ds, anchor, 1e-3, 0, 0.1)
    our_errors.append(_errors(ours, our_errors[0], anchor, CALIBRATION))
    in_torch()
    expected, *errors = _assess(x, s, ds, anchor, 1e-3, 0, 0.1)
    errors.append(_errors(expected, errors[0], anchor, CALIBRATION))
    for name in ("dds", "energy", "cells", "tails", "log_mass"):
        pair = getattr(ours, name), getattr(expected, name)
        torch.testing.assert_close(*pair, rtol=1e-9, atol=1e-12, equal_nan=True)
    assert torch.equal(ours.converged, expected.converged)
    finite = expected.log_mass.isfinite()  # there are infinite tails if nodes are few, and then errors mean nothing
    assert finite.double().mean() > 0.9
    for found, error in zip((ours.error, *our_errors), (expected.error, *errors), strict=True):
        torch.testing.assert_close(found[finite], error[finite], rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("count", [2, 3, 12])
@torch.no_grad()
def test_quantiles_are_those_of_torch(in_torch: Callable[[], None], count: int) -> None:
    density = from_nodes(*nodes(count))
    density = density.select(density.log_mass.isfinite())
    u = torch.rand(len(density.log_mass), 1, generator=torch.Generator().manual_seed(2), dtype=FLOAT64)
    u[:4, 0] = torch.tensor([1e-12, 1e-4, 1.0 - 1e-4, 1.0 - 1e-12])
    found = density.icdf(u)
    in_torch()
    torch.testing.assert_close(found, density.icdf(u), rtol=1e-8, atol=1e-9)
    inside = (found >= density.x[:, :1]) & (found <= density.x[:, -1:]) & (count >= 12)  # few nodes have huge errors
    torch.testing.assert_close(density.cdf(found)[inside], u[inside], rtol=0.0, atol=1e-9)


@torch.no_grad()
def test_no_rows_and_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [len(t) for t in _native.piecewise_integrate(rule(), *(t[:0] for t in nodes()))] == [0] * 4
    alone = _assess(*nodes(), None, 1e-3)[2]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert torch.equal(_assess(*nodes(), None, 1e-3)[2], alone)


def test_shapes_that_do_not_match_are_rejected() -> None:
    x, s, ds = nodes()
    with pytest.raises(ValueError, match="shapes do not match"):
        _native.piecewise_integrate(rule(), x, s, ds[:, 1:])
    cells, tails = x[:, 1:], x[:, :2]
    with pytest.raises(ValueError, match="shapes do not match"):
        _native.piecewise_errors(Indicators(), [x] * 5, x, tails, x[:, 0], cells, None)
    with pytest.raises(ValueError, match="shapes do not match"):
        _native.piecewise_cell_errors((0.8, 0.0), x, x, x[:, 0], cells)
    with pytest.raises(ValueError, match="shapes do not match"):
        _native.piecewise_icdf(rule(), (1e-10, 700.0, 60), [x] * 5, cells, tails, x[:, 0], x[:, :1])

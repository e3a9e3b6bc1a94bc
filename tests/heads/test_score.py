"""The score head: its window, its noise levels, and the same scores from every way of computing them."""

import math

import pytest
import torch

from arcsm import ScoreHead
from small_heads import FLOAT64, score_head


@pytest.mark.parametrize("data_std", [1.0, 0.5])
@pytest.mark.parametrize("sigma", [None, 0.05, 2.0])
def test_tails_are_exactly_gaussian(sigma: float | None, data_std: float) -> None:
    head = score_head(strength=30.0, hidden_features=(8, 8), sinusoids=3, data_std=data_std)
    variance = data_std**2 + (0.0 if sigma is None else sigma**2)
    edge = float(head.tail_start(sigma, torch.zeros((), dtype=FLOAT64)))
    assert edge == pytest.approx(20.0 * math.sqrt(variance))
    x = edge * torch.tensor([-50.0, -2.0, -1.0000001, 1.0000001, 2.0, 50.0], dtype=FLOAT64)
    s, ds = head.score_and_derivative(torch.randn(6, 3, dtype=FLOAT64), x, sigma)
    torch.testing.assert_close(s, -x / variance, rtol=1e-13, atol=0.0)
    torch.testing.assert_close(ds, torch.full_like(x, -1.0 / variance), rtol=1e-13, atol=0.0)


def test_network_contributes_in_full_where_the_window_is_flat() -> None:
    head = score_head(hidden_features=(8, 8))
    x = torch.linspace(-10.0, 10.0, 21, dtype=FLOAT64)
    width = torch.ones((), dtype=FLOAT64)
    value, slope = head.window(x, width)
    assert torch.equal(value, torch.ones_like(x))
    assert torch.equal(slope, torch.zeros_like(x))
    s, _ = head.score_and_derivative(torch.zeros(21, 3, dtype=FLOAT64), x)
    assert bool(((s + x).abs() > 1e-3).all())


def test_initial_score_is_near_the_base_gaussian() -> None:
    head = ScoreHead(context_features=3)
    x, context = torch.linspace(-2.0, 2.0, 9), torch.randn(9, 3)
    s, _ = head.score_and_derivative(context, x)
    assert float((s + x).detach().abs().max()) < 0.2


def test_tail_score_converges_to_the_noiseless_one_as_noise_vanishes() -> None:
    head = score_head(hidden_features=(8,))
    x = torch.tensor([25.0, -40.0], dtype=FLOAT64)
    noisy, plain = (head.score_and_derivative(torch.zeros(2, 3, dtype=FLOAT64), x, sigma)[0] for sigma in (1e-6, None))
    torch.testing.assert_close(noisy, plain, rtol=1e-11, atol=0.0)


def test_embeddings_of_noise_levels_differ() -> None:
    head = score_head(hidden_features=(8, 8))
    scales = [head.scales(sigma, torch.zeros((), dtype=FLOAT64)) for sigma in (None, 0.1, 0.2)]
    embeddings = [head.embedding(scale) for scale in scales]
    assert torch.equal(embeddings[0], torch.zeros_like(embeddings[0]))
    assert float((embeddings[1] - embeddings[2]).abs().max()) > 0.1


def test_natural_weight_cancels_the_squared_gain() -> None:
    head = score_head(hidden_features=(8,), data_std=0.7)
    sigma = torch.tensor([0.05, 0.5, 3.0], dtype=FLOAT64)
    gain = 0.7 / (sigma * torch.sqrt(sigma.square() + 0.7**2))
    torch.testing.assert_close(head.loss_weight(sigma) * gain.square(), torch.ones_like(sigma))

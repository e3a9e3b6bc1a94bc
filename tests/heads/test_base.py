"""What every head does beside what ``arcsm.check`` shows: exact derivatives everywhere, levels, and arguments."""

from typing import Any

import pytest
import torch

import arcsm
from arcsm import Head, LogisticMixtureHead, ScoreHead
from arcsm._runtime.memory import Workspace
from small_heads import FLOAT64, HEADS, SCORE_HEADS, SIGMAS, differentiate, noise_level, score_head


@pytest.mark.parametrize("arguments", SCORE_HEADS)
def test_score_heads_of_every_depth_keep_the_contract(arguments: dict[str, Any]) -> None:
    arcsm.check(score_head(**arguments))


@pytest.mark.parametrize("sigma_kind", SIGMAS)
def test_derivative_is_that_of_the_score_in_the_window_and_in_the_tails(sigma_kind: float | str | None) -> None:
    head, x = score_head(**SCORE_HEADS[3]), torch.linspace(-30, 30, 41, dtype=FLOAT64).requires_grad_()
    s, ds = head.score_and_derivative(torch.randn(41, 3, dtype=FLOAT64), x, noise_level(sigma_kind, (41,)))
    torch.testing.assert_close(ds, differentiate(s, x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("sigma_kind", SIGMAS)
@pytest.mark.parametrize("name", ["score-0", "score-3", "plain", "mixture"])
def test_prepared_level_gives_the_same_scores_at_every_call(name: str, sigma_kind: float | str | None) -> None:
    head = HEADS[name]()
    for rows in (1, 50):  # with one row, in-place operations must not overwrite tensors of the level
        sigma = noise_level(sigma_kind, (rows,))
        projection = head.project(torch.randn(rows, 3, dtype=FLOAT64)).detach()
        with torch.no_grad():
            score, both = head.prepare_score(sigma), head.prepare_score_and_derivative(sigma)
            for scale in (4.0, 4.0, 40.0):
                x = scale * torch.randn(rows, dtype=FLOAT64)
                expected = head.projected_score_and_derivative(projection, x, sigma)
                torch.testing.assert_close(score(projection, x), expected[0], rtol=1e-12, atol=1e-12)
                torch.testing.assert_close(both(projection, x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", HEADS)
def test_levels_sharing_a_workspace_keep_their_results(name: str) -> None:
    head, workspace = HEADS[name](), Workspace()
    projection, x = head.project(torch.randn(9, 3, dtype=FLOAT64)).detach(), torch.randn(9, dtype=FLOAT64)
    with torch.no_grad():
        levels = {sigma: head.prepare_score_and_derivative(sigma, workspace) for sigma in (0.1, 0.7)}
        results = {sigma: level(projection, x) for sigma, level in levels.items()}
        row_results = levels[0.1](projection[:4].unsqueeze(1), x[:4, None].repeat(1, 5))
        levels[0.7](torch.zeros_like(projection), torch.zeros_like(x))
        for sigma, result in results.items():
            torch.testing.assert_close(
                result, head.projected_score_and_derivative(projection, x, sigma), rtol=1e-10, atol=1e-10
            )
        for result, expected in zip(row_results, results[0.1], strict=True):
            torch.testing.assert_close(result, expected[:4, None].expand(4, 5))


@pytest.mark.parametrize("name", HEADS)
def test_nan_does_not_affect_other_values(name: str) -> None:
    head = HEADS[name]()
    projection = head.project(torch.randn(3, 3, dtype=FLOAT64)).detach()
    x = torch.tensor([15.0, 25.0, torch.nan], dtype=FLOAT64)
    with torch.no_grad():
        for level in (head.prepare_score(0.5), lambda c, v: head.prepare_score_and_derivative(0.5)(c, v)[0]):
            torch.testing.assert_close(level(projection, x)[:2], level(projection[:2], x[:2]))


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (ScoreHead, {"context_features": 0}, "context_features=0"),
        (ScoreHead, {"hidden_features": ()}, "hidden_features"),
        (ScoreHead, {"sinusoids": -1}, "sinusoids=-1"),
        (ScoreHead, {"hidden_features": (8, 4), "residual": True}, "hidden_features"),
        (ScoreHead, {"data_std": 0.0}, "data_std=0.0"),
        (ScoreHead, {"max_frequency": -1.0}, "max_frequency: expected a positive, finite number, got -1.0"),
        (LogisticMixtureHead, {"components": 0}, "components"),
    ],
)
def test_invalid_arguments_are_rejected_by_name(kind: type[Head], arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        kind(**arguments)
    assert "\n" not in str(error.value)

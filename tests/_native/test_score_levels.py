"""Scores in C, and the flow through noise levels, against torch in double precision."""

import math
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from arcsm._native import LevelConstants, ScoreLevels
from arcsm.conditionals.conditionals import Accuracy, Conditionals, compiled_scores
from arcsm.heads import GaussianHead, LocatedHead, ScoreHead
from arcsm.metrics.evaluations import count_evaluations

CONTEXT = 5
HEADS = {
    "one layer": ((8,), 0, False),
    "sinusoids": ((48, 48), 6, False),
    "residual": ((33, 33, 33), 5, True),
    "uneven": ((16, 24), 3, False),
    "deep": ((20, 20, 20, 20), 1, True),
}
PATH = (3.0, 0.05)


def make_head(name: str, data_std: float = 1.0) -> ScoreHead:
    """Return a head in single precision with larger weights than at the start of training."""
    hidden, sinusoids, residual = HEADS[name]
    torch.manual_seed(0)
    head = ScoreHead(CONTEXT, hidden, sinusoids, 30.0, residual, data_std)
    with torch.no_grad():
        for p in head.parameters():
            p.copy_(torch.randn_like(p) * 1.5 / max(1, p.shape[-1]) ** 0.5)
    return head


def contexts(head: ScoreHead, rows: int) -> Tensor:
    return head.project(torch.randn(rows, CONTEXT)).detach()


def doubled(head: ScoreHead) -> ScoreHead:
    exact = ScoreHead(CONTEXT, head.hidden_features, head.sinusoids, 30.0, head.residual, head.data_std).double()
    exact.load_state_dict({name: value.double() for name, value in head.state_dict().items()})
    return exact


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("shape", [(0,), (1,), (130,), (7, 3)])
@torch.no_grad()
def test_scores_and_derivatives_are_those_of_torch(name: str, shape: tuple[int, ...]) -> None:
    head = make_head(name)
    projection, x = contexts(head, shape[0]), 4.0 * torch.randn(shape)
    wide = projection.double() if len(shape) == 1 else projection.double().unsqueeze(1)
    for sigma in (3.0, 0.01):
        s, ds = head.native_levels().score_and_derivative(projection, x, sigma)
        expected, slope = doubled(head).projected_score_and_derivative(wide, x.double(), sigma)
        assert s.shape == ds.shape == shape
        torch.testing.assert_close(s.double(), expected, rtol=2e-6, atol=2e-6 / sigma)
        torch.testing.assert_close(ds.double(), slope, rtol=2e-6, atol=2e-6 / sigma**2)
        assert torch.equal(head.native_levels().score(projection, x, sigma), s)


@pytest.mark.parametrize("data_std", [0.1, 1.0, 7.0])
@torch.no_grad()
def test_the_window_and_the_tails_are_those_of_torch(data_std: float) -> None:
    head = make_head("sinusoids", data_std)
    x = torch.cat([data_std * torch.linspace(-40.0, 40.0, 161), torch.tensor([1e10, -1e20, 1e30])])
    projection = contexts(head, len(x))
    s, ds = head.native_levels().score_and_derivative(projection, x, 0.3)
    expected, slope = doubled(head).projected_score_and_derivative(projection.double(), x.double(), 0.3)
    torch.testing.assert_close(s.double(), expected, rtol=2e-6, atol=1e-5)
    torch.testing.assert_close(ds.double(), slope, rtol=2e-6, atol=1e-4)


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("path", [PATH, PATH[::-1], (3.0, 1.0, 0.2, 0.05)])
@torch.no_grad()
def test_the_flow_is_that_of_torch(name: str, path: tuple[float, ...]) -> None:
    head = make_head(name)
    projection, x = contexts(head, 131), torch.randn(131).mul(math.hypot(path[0], 1.0))
    conditionals = Conditionals(head, projection, tuple(sorted(path, reverse=True)), "flow", continuous=len(path) == 2)
    in_c = Conditionals(
        head, projection, conditionals.path, "flow", continuous=conditionals.continuous, compiled=head.native_levels()
    )
    up = path[0] < path[-1]
    for tolerance in (1e-2, 1e-4):
        expected, found = conditionals.carry(x, tolerance, up), in_c.carry(x, tolerance, up)
        both = expected.converged & found.converged
        assert float(both.double().mean()) > 0.9
        torch.testing.assert_close(found.x[both], expected.x[both], rtol=1e-4, atol=3e-4)
        torch.testing.assert_close(found.log_slope[both], expected.log_slope[both], rtol=1e-4, atol=3e-3)
        torch.testing.assert_close(found.near[both], expected.near[both], rtol=1e-3, atol=1e-2)
        s, ds = head.native_levels().score_and_derivative(projection, found.near, path[-1])
        torch.testing.assert_close(found.score[both], s[both], rtol=1e-4, atol=1e-4 / path[-1])
        torch.testing.assert_close(found.derivative[both], ds[both], rtol=1e-3, atol=1e-3 / path[-1] ** 2)


@torch.no_grad()
def test_samples_need_no_derivatives() -> None:
    head = make_head("sinusoids")
    projection, x = contexts(head, 300), 3.0 * torch.randn(300)
    in_c = Conditionals(head, projection, PATH, "flow", continuous=True, compiled=head.native_levels())
    with_slopes, without = (in_c.carry(x, 1e-3, with_slopes=slopes) for slopes in (True, False))
    torch.testing.assert_close(without.x, with_slopes.x, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_densities_in_double_precision_are_accurate_in_single() -> None:
    head = doubled(make_head("sinusoids"))
    projection, x = contexts(head.float(), 40).double(), torch.randn(40, dtype=torch.float64)
    head = head.double()

    def log_prob(tol: float, compiled: ScoreLevels | None) -> Tensor:
        return Conditionals(head, projection, PATH, "flow", Accuracy(tol), True, compiled=compiled).log_prob(x)

    exact = log_prob(1e-6, None)
    for tol in (1e-2, 1e-4):
        found = log_prob(tol, compiled_scores(head))
        assert found.dtype == torch.float64
        assert float((found - exact).square().mean().sqrt()) < tol
    torch.testing.assert_close(log_prob(1e-6, compiled_scores(head)), exact, rtol=0.0, atol=0.0)
    far = torch.full_like(x, 1e200)
    conditionals = Conditionals(head, projection, PATH, "flow", Accuracy(1e-2), True, compiled=compiled_scores(head))
    assert bool((conditionals.log_prob(far) < -1e300).all())


def test_only_heads_with_their_original_score_have_one_in_c() -> None:
    class Doubled(ScoreHead):
        def projected_score_and_derivative(self, projection: Tensor, x: Tensor, sigma: object = None) -> object:  # type: ignore[override]
            s, ds = super().projected_score_and_derivative(projection, x, sigma)  # type: ignore[arg-type]
            return 2.0 * s, 2.0 * ds

    head = make_head("sinusoids")
    assert compiled_scores(head) is not None
    assert compiled_scores(LocatedHead(head)) is not None
    assert compiled_scores(Doubled(CONTEXT, (8,))) is None
    assert compiled_scores(GaussianHead(CONTEXT)) is None
    with count_evaluations(head):
        assert compiled_scores(head) is None
    assert compiled_scores(head) is not None
    assert compiled_scores(head.half()) is None


def test_shapes_that_do_not_match_are_rejected() -> None:
    levels = make_head("uneven").native_levels()
    with pytest.raises(ValueError, match="shapes do not match"):
        levels.score(torch.zeros(3, 15), torch.zeros(3), 0.1)
    with pytest.raises(ValueError, match="shapes do not match"):
        levels.follow(torch.zeros(2, 16), torch.zeros(3), (), 0.0, True)
    with pytest.raises(TypeError, match="float32"):
        levels.score(torch.zeros(3, 16).double(), torch.zeros(3), 0.1)
    with pytest.raises(ValueError, match="score_levels: shapes do not match"):
        ScoreLevels(torch.zeros(0), [(torch.zeros(3, 5), torch.zeros(3))], 4, False, lambda _: None)  # type: ignore[arg-type, return-value]


def test_threads_share_the_points(monkeypatch: pytest.MonkeyPatch) -> None:
    head = make_head("sinusoids")
    projection, x = contexts(head, 1100), torch.randn(1100, 3)
    alone = head.native_levels().score_and_derivative(projection, x, 0.3)
    carried = Conditionals(head, projection, PATH, "flow", continuous=True, compiled=head.native_levels())
    with torch.no_grad():
        one = carried.carry(x[:, 0], 1e-3)
        monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
        three = carried.carry(x[:, 0], 1e-3)
    for part, whole in zip(head.native_levels().score_and_derivative(projection, x, 0.3), alone, strict=True):
        assert torch.equal(part, whole)
    assert torch.equal(one.x, three.x)


def test_threads_that_reach_a_level_together_use_the_same_constants() -> None:
    """The constants of one thread were freed by the other one's, while C still read them."""
    head = make_head("sinusoids")
    both = threading.Barrier(2, timeout=30.0)

    def constants(sigma: float) -> LevelConstants:
        both.wait()
        return LevelConstants(1.0, 1.0, 1.0, 2.0, 0.0, torch.rand(48), torch.rand(48, 13), torch.rand(48))

    weight, bias = torch.rand(48, 48), torch.rand(48)
    levels = ScoreLevels(torch.rand(6), [(weight, bias)], head.hidden_features[0], False, constants)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(levels._level, (0.5, 0.5))
    assert first is second

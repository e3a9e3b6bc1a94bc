"""Log densities from scores at a few nodes, against mixtures in closed form and against quadrature."""

import math
import shutil

import pytest
import torch
from torch import Tensor

from arcsm.conditionals.conditionals import Accuracy, Conditionals
from arcsm.conditionals.interpolation import Interpolated, interpolate, interpolation, through
from arcsm.heads import ScoreHead

FLOAT64 = torch.float64
PATH = (3.0, 0.1)
MODES = {"broad": (2, 0.3, 0.6), "five": (5, 0.03, 0.3), "spikes": (8, 0.005, 0.1)}


class Mixtures:
    """Standardised mixtures of Gaussians, a row for each point."""

    def __init__(self, kind: str, rows: int = 1000) -> None:
        modes, smallest, largest = MODES[kind]
        generator = torch.Generator().manual_seed(0)
        means = torch.randn(rows, modes, generator=generator, dtype=FLOAT64)
        stds = smallest * (largest / smallest) ** torch.rand(rows, modes, generator=generator, dtype=FLOAT64)
        weights = torch.rand(rows, modes, generator=generator, dtype=FLOAT64)
        self.weights = weights / weights.sum(1, keepdim=True)
        center = (self.weights * means).sum(1, keepdim=True)
        spread = ((self.weights * (stds.square() + means.square())).sum(1, keepdim=True) - center.square()).sqrt()
        self.means, self.stds = (means - center) / spread, stds / spread
        chosen = torch.multinomial(self.weights, 1, generator=generator)
        noise = torch.randn(rows, 2, generator=generator, dtype=FLOAT64)
        self.x = self.means.gather(1, chosen)[:, 0] + self.stds.gather(1, chosen)[:, 0] * noise[:, 0]
        self.noise = noise[:, 1]

    def _terms(self, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        variance = self.stds.square() + sigma**2
        distance = x[..., None] - self.means
        log_terms = self.weights.log() - 0.5 * distance.square() / variance - 0.5 * (2.0 * math.pi * variance).log()
        return log_terms, -distance / variance

    def log_prob(self, x: Tensor, sigma: float) -> Tensor:
        return torch.logsumexp(self._terms(x, sigma)[0], -1)

    def cdf(self, x: Tensor, sigma: float) -> Tensor:
        std = (self.stds.square() + sigma**2).sqrt()
        return (self.weights * torch.special.ndtr((x[..., None] - self.means) / std)).sum(-1)

    def score(self, x: Tensor, sigma: float) -> Tensor:
        log_terms, slopes = self._terms(x, sigma)
        return (torch.softmax(log_terms, -1) * slopes).sum(-1)


def make_head(hidden: tuple[int, ...] = (48, 48), residual: bool = False) -> ScoreHead:
    """Return a head whose conditionals differ from Gaussians, as they do after training."""
    torch.manual_seed(0)
    head = ScoreHead(5, hidden, sinusoids=4, max_frequency=8.0, residual=residual)
    with torch.no_grad():
        head.output.weight.mul_(10.0)
    return head.eval()


@pytest.mark.parametrize(("kind", "sigma", "accepted"), [("broad", 1.5, 0.8), ("spikes", 3.0, 0.97)])
def test_densities_of_mixtures_are_as_accurate_as_estimated(kind: str, sigma: float, accepted: float) -> None:
    mixtures, tolerance = Mixtures(kind), 1e-3
    nodes = interpolation(sigma, 1.0, tolerance)
    assert nodes is not None
    x = mixtures.x + sigma * mixtures.noise
    found = interpolate(lambda x: mixtures.score(x, sigma), x, sigma, 1.0, nodes)
    fits = found.error <= tolerance
    error = (found.log_prob() - mixtures.log_prob(x, sigma))[fits].abs()
    assert float(fits.double().mean()) > accepted
    assert float(error.square().mean().sqrt()) < tolerance
    assert float(error.max()) < 10.0 * tolerance
    of_cdf = (found.cdf() - mixtures.cdf(x, sigma))[fits].abs()
    assert float(of_cdf.square().mean().sqrt()) < 0.5 * tolerance
    assert float(of_cdf.max()) < 5.0 * tolerance


def test_more_nodes_converge() -> None:
    mixtures, sigma = Mixtures("five"), 2.0
    x = mixtures.x + sigma * mixtures.noise
    inside = x.abs() < 2.0 * math.hypot(sigma, 1.0)
    errors = []
    for count in (5, 8, 11):
        found = interpolate(lambda x: mixtures.score(x, sigma), x, sigma, 1.0, through(sigma, 1.0, count))
        errors.append(float((found.log_prob() - mixtures.log_prob(x, sigma))[inside].abs().median()))
    assert errors[0] > 10.0 * errors[1] > 10.0 * errors[2]  # constant residuals beyond the nodes limit the accuracy


def test_the_error_is_infinite_beyond_the_nodes() -> None:
    nodes = through(2.0, 1.0, 7)
    x = torch.tensor([nodes.half_range * 1.01, -nodes.half_range * 1.01, 1e30, math.nan], dtype=FLOAT64)
    assert bool(interpolate(lambda x: -x / 5.0, x, 2.0, 1.0, nodes).error.isinf().all())


@pytest.mark.skipif(not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="needs a C compiler")
@pytest.mark.parametrize(
    ("hidden", "residual", "rows", "count"),
    [((8,), False, 1, 8), ((48, 48), False, 130, 7), ((33, 33, 33), True, 300, 10)],
)
@torch.no_grad()
def test_c_returns_what_torch_does(hidden: tuple[int, ...], residual: bool, rows: int, count: int) -> None:
    head, nodes = make_head(hidden, residual), through(3.0, 1.0, count)
    projection, x = head.project(torch.randn(rows, 5)), 3.5 * torch.randn(rows)
    x[0] = 1e30
    found = Interpolated(*head.native_levels().interpolate(projection, x, 3.0, nodes))
    exact = make_head(hidden, residual).double()
    expected = interpolate(
        lambda x: exact.projected_score(projection.double(), x, 3.0), x.double(), 3.0, 1.0, nodes
    )  # fmt: skip
    assert torch.equal(found.error.isinf(), expected.error.isinf())
    assert bool(found.error[0].isinf())
    inside = ~expected.error.isinf()
    torch.testing.assert_close(found.log_prob()[inside], expected.log_prob()[inside], rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(found.cdf()[inside], expected.cdf()[inside], rtol=1e-5, atol=0.0)
    torch.testing.assert_close((1.0 - found.cdf())[inside], (1.0 - expected.cdf())[inside], rtol=1e-5, atol=0.0)
    torch.testing.assert_close(found.error[inside].double(), expected.error[inside], rtol=1e-3, atol=1e-6)


def test_shapes_and_sizes_that_c_cannot_use_are_rejected() -> None:
    levels = make_head().native_levels()
    nodes = through(3.0, 1.0, 7)
    for wrong in (
        nodes._replace(nodes=nodes.nodes[1:]),
        nodes._replace(shares=nodes.shares[1:]),
        through(3.0, 1.0, 17),
    ):
        with pytest.raises(ValueError, match="interpolate: shapes do not match"):
            levels.interpolate(torch.zeros(2, 48), torch.zeros(2), 3.0, wrong)


@pytest.mark.parametrize(("compiled", "tol"), [(False, 1e-2), (True, 1e-3)])
@torch.no_grad()
def test_conditionals_use_few_nodes_where_they_suffice(compiled: bool, tol: float) -> None:
    """Points beyond the nodes, too far for single precision among them, have the densities of quadrature."""
    head = make_head()
    projection, x = head.project(torch.randn(200, 5)).detach(), torch.randn(200)
    x[:50] = torch.linspace(-40.0, 40.0, 50)
    code = head.native_levels() if compiled else None
    few = Conditionals(head, projection, PATH, "flow", Accuracy(tol), True, compiled=code)
    exact = Conditionals(head, projection, PATH, "flow", Accuracy(1e-5), True)
    truth = exact.log_prob(x)
    error = few.log_prob(x) - truth
    assert float(error[50:].square().mean().sqrt()) < tol
    torch.testing.assert_close(few.log_prob(x), truth, rtol=1e-3, atol=5.0 * tol)
    torch.testing.assert_close(few.cdf(x), exact.cdf(x), rtol=1e-2, atol=2.0 * tol)
    log_prob, cdf = few.log_prob_and_cdf(x)
    torch.testing.assert_close(log_prob.to(x), few.log_prob(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(cdf.to(x), few.cdf(x), rtol=1e-5, atol=1e-7)
    assert few.unconverged == 0


@torch.no_grad()
def test_densities_from_few_nodes_integrate_to_one() -> None:
    head = make_head()
    projection, x = head.project(torch.randn(1, 5)).expand(2001, -1), torch.linspace(-7.0, 7.0, 2001)
    few = Conditionals(head, projection, PATH, "flow", Accuracy(1e-3), True, compiled=head.native_levels())
    assert float(torch.trapezoid(few.log_prob(x).exp(), x)) == pytest.approx(1.0, abs=1e-3)


@torch.no_grad()
def test_quantiles_invert_distribution_functions_from_few_nodes() -> None:
    head = make_head()
    projection, u = head.project(torch.randn(500, 5)), torch.linspace(0.001, 0.999, 500)
    few = Conditionals(head, projection, PATH, "flow", Accuracy(1e-3), True, compiled=head.native_levels())
    torch.testing.assert_close(few.cdf(few.icdf(u)), u, rtol=0.0, atol=1e-4)

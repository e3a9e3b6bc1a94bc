"""Autoencoders with implicit encoders: their parts, their likelihoods against closed forms, their training."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import arcsm
from arcsm.implicit import (
    VAE,
    Annealing,
    AutoregressiveEncoder,
    BernoulliDecoder,
    ConditionalUnits,
    ConvolutionalTrunk,
    Decoder,
    DenseTrunk,
    Encoder,
    EncoderUnits,
    EntropyGradient,
    GaussianEncoder,
    GaussianImageDecoder,
    ImplicitEncoder,
    JointScore,
    NonFiniteError,
    Proposal,
    ScoreNetwork,
    Stein,
    Trunk,
    VAEConfig,
    annealed_bound,
    annealed_upper_bound,
    bounds,
    elbo,
    fit_proposal,
    gap,
    importance_bound,
    load_vae,
    save_vae,
)
from arcsm.implicit.evidence import proposals
from arcsm.implicit.evidence.annealing import _adapted, _Chains, _point, _transition
from arcsm.implicit.evidence.proposals import _moments, _tempered
from arcsm.implicit.networks.densities import log_density
from arcsm.implicit.networks.encoders import LocationScaleEncoder, _Chain
from arcsm.reports.vae import traversals

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*latents carry no information about the input"),
    pytest.mark.filterwarnings("ignore:.*the entropy gradient has .* of its true size"),
]
FLOAT64 = torch.float64
IMAGES = {"image_shape": [1, 4, 4], "levels": 256}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=FLOAT64)


def rows(count: int, features: int = 16) -> Tensor:
    """Bright or dark images, in [-1, 1), with noise."""
    generator = seeded(7)
    bright = torch.randint(2, (count, 1), generator=generator) * 1.6 - 0.8
    return (bright + 0.1 * torch.randn(count, features, generator=generator)).clamp(-1.0, 0.99)


# Parts --------------------------------------------------------------------------------------------------------------


def test_a_dense_trunk_sees_inputs_and_extras_side_by_side() -> None:
    torch.manual_seed(0)
    trunk = DenseTrunk(5, (7, 6), extra_features=3).double()
    x, extra = normal(2, 5), normal(2, 4, 3, seed=1)
    both = torch.cat([x.unsqueeze(1).expand(-1, 4, -1), extra], -1)
    expected = torch.tanh(trunk.rest[0](torch.tanh(trunk.first(both))))
    torch.testing.assert_close(trunk(x, extra), expected)


def test_extras_enter_a_convolutional_trunk_as_a_channel() -> None:
    torch.manual_seed(0)
    trunk = ConvolutionalTrunk((2, 8, 8), (3, 4), extra_features=3).double()
    x, extra = normal(2, 128), normal(2, 5, 3, seed=1)
    whole = nn.Conv2d(3, 3, 5, 2, 2, dtype=FLOAT64)
    whole.weight.data = torch.cat([trunk.first.weight, trunk.of_channel.weight], 1)
    whole.bias = trunk.first.bias
    channel = trunk.to_channel(extra).view(10, 1, 8, 8)
    hidden = whole(torch.cat([x.view(2, 2, 8, 8).repeat_interleave(5, 0), channel], 1))
    hidden = nn.functional.softplus(trunk.rest[0](nn.functional.softplus(hidden)))
    expected = nn.functional.softplus(trunk.dense(hidden.flatten(1))).view(2, 5, -1)
    torch.testing.assert_close(trunk(x, extra), expected)


def encoders() -> list[Encoder]:
    torch.manual_seed(0)
    trunk = DenseTrunk(5, (8,))
    found: list[Encoder] = [GaussianEncoder(trunk, 3), AutoregressiveEncoder(trunk, 3)]
    return [*found, ImplicitEncoder(DenseTrunk(5, (8,), 3), 3)]


@pytest.mark.parametrize("encoder", encoders())
def test_a_gradient_reaches_every_weight_of_an_encoder(encoder: Encoder) -> None:
    encoder(torch.randn(4, 5), torch.randn(4, 6, 3)).square().sum().backward()
    for name, weight in encoder.named_parameters():
        assert weight.grad is not None, name
        assert bool((weight.grad != 0).any()), name


def test_an_autoregressive_encoder_passes_noise_on_through_latents_alone() -> None:
    """Two noises that make the same first latent make the same second one: u = e - 3 tanh(2 e) is zero twice."""
    torch.manual_seed(0)
    encoder = AutoregressiveEncoder(DenseTrunk(5, (8,)), 2, units=1).double()
    with torch.no_grad():
        encoder.of_input.weight[0], encoder.of_input.bias[0] = 0.0, 0.0
        encoder.of_noise[0], encoder.output[0] = 2.0, -3.0
    low, high = 1.0, 4.0
    for _ in range(100):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if middle - 3.0 * math.tanh(2.0 * middle) < 0.0 else (low, middle)
    x = normal(1, 5).expand(2, -1)
    z = encoder(x, torch.tensor([[[0.0, 0.7]], [[low, 0.7]]], dtype=FLOAT64))
    torch.testing.assert_close(z[0], z[1])
    other = encoder(x, torch.tensor([[[0.5, 0.7]], [[low, 0.7]]], dtype=FLOAT64))
    assert float((other[0, 0, 1] - other[1, 0, 1]).detach().abs()) > 1e-4

    noise = normal(1, 1, 2, seed=3)
    jacobian = torch.autograd.functional.jacobian(lambda e: encoder(x[:1], e), noise).squeeze()
    assert float(jacobian[0, 1]) == 0.0
    assert float(jacobian[1, 0]) != 0.0


def test_the_chain_of_latents_is_its_definition_and_so_are_its_gradients() -> None:
    fixed, noise, of_latents, output = (
        normal(3, 5, 4),
        normal(5, 3, seed=1),
        normal(3, 3, 4, seed=2),
        normal(3, 4, seed=3),
    )
    found: list[Tensor] = []
    for d in range(3):
        before = torch.stack([*found, torch.zeros(5, dtype=FLOAT64)], -1)[:, :d]
        found.append(noise[:, d] + torch.tanh(fixed[d] + before @ of_latents[d, :d]) @ output[d])
    torch.testing.assert_close(_Chain.apply(fixed, noise, of_latents, output), torch.stack(found, -1))
    inputs = tuple(t.requires_grad_() for t in (fixed, noise, of_latents, output))
    assert torch.autograd.gradcheck(_Chain.apply, inputs)


@torch.no_grad()
def test_the_moments_of_conditionals_are_those_of_one_latent_with_the_earlier_ones_held() -> None:
    torch.manual_seed(0)
    encoder = AutoregressiveEncoder(DenseTrunk(5, (16,)), 3).double()
    encoder.output.data.mul_(20.0)  # far from normal
    begun = encoder.begin(encoder.features(normal(2, 5)))
    z = encoder.draw(begun, normal(2, 4, 3, seed=1)).detach()
    mean, log_std = encoder.conditional_moments(begun, z)
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(80))
    weights = weights / weights.sum()
    location, log_scale, fixed = (t.detach() for t in begun)
    for i, k, d in itertools.product(range(2), range(4), range(3)):
        u = (z[i, k] - location[i]) * torch.exp(-log_scale[i])
        inner = fixed[i, d] + u[:d] @ encoder.of_latents[d, :d] + nodes[:, None] * encoder.of_noise[d]
        values = location[i, d] + log_scale[i, d].exp() * (nodes + torch.tanh(inner) @ encoder.output[d])
        expected = weights @ values
        deviation = (weights @ (values - expected).square()).sqrt()
        assert abs(float(mean[i, k, d] - expected)) < 0.02 * float(deviation)
        assert float(log_std[i, k, d].exp()) == pytest.approx(float(deviation), rel=0.02)


def test_decoders_are_the_distributions_that_they_say() -> None:
    torch.manual_seed(0)
    z = torch.randn(3, 4, 2)
    bernoulli = BernoulliDecoder(2, 16, (8,))
    x = (torch.rand(3, 16) < 0.5).float()
    expected = torch.distributions.Bernoulli(logits=bernoulli.logits(z)).log_prob(x.unsqueeze(1)).sum(-1)
    torch.testing.assert_close(bernoulli.log_prob(x, z), expected)
    gaussian = GaussianImageDecoder(2, (1, 4, 4), (3,), log_std=-1.0)
    expected = torch.distributions.Normal(gaussian.mean(z), math.exp(-1.0)).log_prob(x.unsqueeze(1)).sum(-1)
    torch.testing.assert_close(gaussian.log_prob(x, z), expected)
    many = torch.zeros(20_000, 2)
    for decoder in (bernoulli, gaussian):
        with torch.no_grad():
            drawn = decoder.sample(many, seeded())
        torch.testing.assert_close(drawn.mean(0), decoder.mean(many[0]).detach(), rtol=0.0, atol=0.02)
        torch.testing.assert_close(decoder.mean(z)[1, 2], decoder.mean(z[1, 2]))


def test_inputs_are_binary_with_the_chance_of_their_grey_level_or_continuous() -> None:
    grey = torch.tensor([[-1.0, 2.0 * 127 / 256 - 1.0, 2.0 * 255 / 256 - 1.0]]).expand(20_000, -1)
    metadata = {"image_shape": [1, 1, 3], "levels": 256}
    x = VAEConfig(hidden_features=(4,)).build(metadata).prepare(grey, seeded())
    assert set(x.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(x.mean(0), torch.tensor([0.0, 127 / 255, 1.0]), rtol=0.0, atol=0.015)
    conv = VAEConfig(networks="convolutional", channels=(4,)).build(IMAGES)
    x = conv.prepare(grey.reshape(-1)[:16_000].view(1000, 16), seeded())
    assert float(x.max()) < 1.0
    assert bool((x >= grey.reshape(-1)[:16_000].view(1000, 16)).all())


@pytest.mark.parametrize("encoder", ["gaussian", "implicit", "autoregressive"])
@pytest.mark.parametrize("networks", ["dense", "convolutional"])
def test_files_give_back_the_same_autoencoder(tmp_path: Path, encoder: str, networks: str) -> None:
    torch.manual_seed(0)
    parts = VAEConfig(encoder=encoder, networks=networks, latents=2, hidden_features=(8,), channels=(4, 4))  # type: ignore[arg-type]
    vae = parts.build(IMAGES).eval()
    save_vae(vae, tmp_path / "run")
    again = load_vae(tmp_path / "run")
    assert torch.equal(vae.sample(3, seeded()), again.sample(3, seeded()))
    x = vae.prepare(rows(5), seeded())
    assert torch.equal(vae.reconstruct(x, seeded()), again.reconstruct(x, seeded()))
    with pytest.raises(ValueError, match=r"model\.safetensors: holds a vae, not an autoregressive model"):
        arcsm.load(tmp_path / "run")


def test_files_of_something_else_are_refused(tmp_path: Path) -> None:
    arcsm.save(arcsm.AutoregressiveModel(arcsm.MADE(2, 4, (8,)), arcsm.GaussianHead(4)), tmp_path)
    with pytest.raises(ValueError, match="not an autoencoder"):
        load_vae(tmp_path)
    with pytest.raises(ValueError, match="not one of an autoencoder"):
        VAE.from_config({"kind": "vae"})
    with pytest.raises(ValueError, match="model configuration: latents: 4096 with 4096 units each are too many"):
        VAE.from_config({"kind": "vae", "metadata": IMAGES, "parts": {"latents": 4096, "units": 4096}})
    with pytest.raises(ValueError, match="model configuration: latents"):
        VAE.from_config({"kind": "vae", "metadata": IMAGES, "parts": {"latents": 0}})


# Likelihoods --------------------------------------------------------------------------------------------------------


class LinearDecoder(Decoder):
    """x = W z + s e: everything about it is known."""

    def __init__(self, latents: int, features: int) -> None:
        super().__init__()
        self.latents, self.features, self.largest_layer = latents, features, features
        self.weight = nn.Parameter(normal(features, latents, seed=3))
        self.std = 0.5

    def log_prob(self, x: Tensor, z: Tensor) -> Tensor:
        return torch.distributions.Normal(self.mean(z), self.std).log_prob(x.unsqueeze(1)).sum(-1)

    def mean(self, z: Tensor) -> Tensor:
        return z @ self.weight.T

    def sample(self, z: Tensor, generator: torch.Generator | None = None) -> Tensor:
        mean = self.mean(z)
        return mean + self.std * torch.randn(mean.shape, generator=generator, dtype=mean.dtype)


def linear(latents: int = 3, features: int = 5, encoder: Encoder | None = None) -> VAE:
    torch.manual_seed(0)
    if encoder is None:
        encoder = AutoregressiveEncoder(DenseTrunk(features, (16,)), latents)
    parts = VAEConfig(latents=latents, hidden_features=(16,))
    metadata = {"image_shape": [1, 1, features], "levels": 256}
    return VAE(encoder.double(), LinearDecoder(latents, features), parts, metadata).double()


def simulated(vae: VAE, count: int) -> tuple[Tensor, Tensor]:
    """Latents and inputs that the model draws."""
    with torch.no_grad():
        z = torch.randn(count, vae.latents, generator=seeded(11), dtype=FLOAT64)
        return z, vae.decoder.sample(z, seeded(12))


def evidence(vae: VAE, x: Tensor) -> Tensor:
    weight = vae.decoder.weight.detach()  # type: ignore[union-attr]
    covariance = weight @ weight.T + 0.25 * torch.eye(len(weight), dtype=FLOAT64)
    zero = torch.zeros(len(weight), dtype=FLOAT64)
    return torch.distributions.MultivariateNormal(zero, covariance).log_prob(x)


def posterior(vae: VAE, x: Tensor) -> tuple[Tensor, Tensor]:
    weight = vae.decoder.weight.detach()  # type: ignore[union-attr]
    precision = torch.eye(vae.latents, dtype=FLOAT64) + weight.T @ weight / 0.25
    covariance = torch.linalg.inv(precision)
    return x @ weight @ covariance / 0.25, covariance


def test_a_proposal_finds_the_posterior_from_an_encoder_that_does_not() -> None:
    vae = linear()
    _, x = simulated(vae, 6)
    found = fit_proposal(vae, x, samples=4000, generator=seeded())
    mean, covariance = posterior(vae, x)
    torch.testing.assert_close(found.mean, mean, rtol=0.0, atol=0.03)
    torch.testing.assert_close(
        found.scale @ found.scale.transpose(1, 2), covariance.expand(6, -1, -1), rtol=0.1, atol=0.01
    )


class NarrowEncoder(Encoder):
    """A point, four standard deviations off the middle of the posterior in every direction."""

    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.latents, self.of = vae.latents, [vae]

    def features(self, x: Tensor) -> Tensor:
        mean, covariance = posterior(self.of[0], x)
        return mean + 4.0 * torch.linalg.cholesky(covariance) @ torch.ones(self.latents, dtype=FLOAT64)

    def draw(self, begun: tuple[Tensor, ...], noise: Tensor) -> Tensor:
        return begun[0].unsqueeze(1) + 1e-3 * noise


def test_a_proposal_widens_from_an_encoder_that_has_collapsed() -> None:
    vae = linear(24, 48)
    vae.encoder = NarrowEncoder(vae)
    _, x = simulated(vae, 8)
    bound = importance_bound(vae, x, 2000, generator=seeded())
    torch.testing.assert_close(bound, evidence(vae, x), rtol=0.0, atol=0.25)


def test_weights_are_tempered_until_an_eighth_of_the_samples_count() -> None:
    log_weights = torch.stack([200.0 * normal(1000), 0.1 * normal(1000), torch.zeros(1000, dtype=FLOAT64)])
    weights, power = _tempered(log_weights)
    counting = 1.0 / weights.square().sum(1)
    assert float(counting[0]) == pytest.approx(125.0, rel=0.01)
    assert float(counting[1]) > 125.0
    assert 0.0 < float(power[0]) < 0.05
    assert power[1:].tolist() == [1.0, 1.0]
    torch.testing.assert_close(weights[1], torch.softmax(log_weights[1], 0))
    torch.testing.assert_close(_tempered(log_weights + 7.0)[0], weights)
    single = _tempered(log_weights.float())[0].double()
    torch.testing.assert_close(single, weights, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("count", [1, 2, 3, 100])
def test_weights_that_are_nothing_or_not_finite_are_tempered(count: int) -> None:
    log_weights = torch.full((4, count), -math.inf)
    log_weights[0, 0] = 3.0  # one that is all there is
    log_weights[1, 0] = math.inf
    log_weights[2] = math.nan
    weights, power = _tempered(log_weights)
    torch.testing.assert_close(weights.sum(1), torch.ones(4))
    assert bool(((power > 0.0) & (power <= 1.0)).all())
    assert bool((1.0 / weights.square().sum(1) >= min(count, 2) - 0.01).all())
    assert bool((weights[:2].argmax(1) == 0).all())


def test_proposals_of_many_inputs_are_fitted_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    vae = linear()
    _, x = simulated(vae, 7)
    largest = []
    decoded = vae.decoder.log_prob
    monkeypatch.setattr(vae.decoder, "log_prob", lambda x, z: largest.append(z.numel()) or decoded(x, z))
    monkeypatch.setattr(proposals, "_NUMBERS_AT_ONCE", 2 * 4000 * 3)
    found = fit_proposal(vae, x, samples=4000, generator=seeded())
    assert max(largest) <= 2 * 4000 * 3
    torch.testing.assert_close(found.mean, posterior(vae, x)[0], rtol=0.0, atol=0.03)
    assert found.scale.shape == (7, 3, 3)


def test_both_bounds_are_those_of_the_same_proposals() -> None:
    vae = linear()
    _, x = simulated(vae, 60)
    important, annealed = bounds(vae, x, 1000, Annealing(temperatures=30, chains=32), seeded())
    truth = evidence(vae, x)
    torch.testing.assert_close(important, truth, rtol=0.0, atol=0.05)
    torch.testing.assert_close(annealed, truth, rtol=0.0, atol=0.05)
    assert [part.shape for part in bounds(vae, x[:0])] == [(0,), (0,)]


def test_a_proposal_survives_samples_that_are_flat() -> None:
    """Latents on a line, and all the same: no covariance that could be factored in single precision."""
    vae = linear().float()
    for z in (1e5 * torch.ones(2, 30, 3) * torch.linspace(0.0, 1.0, 30)[:, None], torch.ones(2, 30, 3)):
        found = _moments(z, torch.full((2, 30), 1.0 / 30), z.mean(1), torch.zeros(2, 3, 3))
        assert bool(found.scale.isfinite().all())
        assert bool((found.scale.diagonal(dim1=1, dim2=2) > 0.0).all())
    assert importance_bound(vae, torch.zeros(0, 5)).shape == (0,)


def test_the_density_of_the_proposal_is_that_of_its_samples() -> None:
    scale = torch.tensor([[[0.7, 0.0], [0.4, 1.3]]], dtype=FLOAT64)
    z, log_density = Proposal(torch.tensor([[1.0, -2.0]], dtype=FLOAT64), scale).sample(100_000, seeded())
    # E[f / r] = integral of f, for a normal density f
    log_f = torch.distributions.MultivariateNormal(
        torch.tensor([1.2, -1.5], dtype=FLOAT64), torch.eye(2, dtype=FLOAT64)
    )
    assert float(torch.exp(log_f.log_prob(z) - log_density).mean()) == pytest.approx(1.0, abs=0.01)


def test_likelihoods_are_those_in_closed_form() -> None:
    vae = linear()
    _, x = simulated(vae, 6)
    truth = evidence(vae, x)
    torch.testing.assert_close(importance_bound(vae, x, 4000, generator=seeded()), truth, rtol=0.0, atol=0.02)
    annealing = Annealing(temperatures=300, chains=256, leapfrog=5)  # which leaves a deviation of 0.04 nats
    from_prior = annealed_bound(vae, x, annealing, Proposal.prior(6, 3, x), seeded())
    torch.testing.assert_close(from_prior, truth, rtol=0.0, atol=0.15)
    short = Annealing(temperatures=60, chains=256, leapfrog=5)
    fitted = annealed_bound(vae, x, short, generator=seeded())
    torch.testing.assert_close(fitted, truth, rtol=0.0, atol=0.02)


def autoregressive(units: int = 6, fold: float = 1.0) -> AutoregressiveEncoder:
    """Of three latents that depend on each other; folded, its maps of the noise are not monotone."""
    torch.manual_seed(2)
    encoder = AutoregressiveEncoder(DenseTrunk(5, (16,)), 3, units).double()
    with torch.no_grad():
        encoder.output.mul_(units * fold)
        encoder.of_noise.mul_(fold)
    return encoder


def straight() -> AutoregressiveEncoder:
    """Whose maps of the noise are no more than the noise, so that it is a Gaussian encoder."""
    encoder = autoregressive()
    nn.init.zeros_(encoder.output)
    return encoder


def gaussian() -> GaussianEncoder:
    torch.manual_seed(2)
    return GaussianEncoder(DenseTrunk(5, (16,)), 3)


@pytest.mark.parametrize("build", [gaussian, straight])
def test_the_evidence_lower_bound_is_less_than_the_evidence_by_the_divergence(
    build: Callable[[], LocationScaleEncoder],
) -> None:
    encoder = build()
    vae = linear(encoder=encoder)
    _, x = simulated(vae, 6)
    with torch.no_grad():
        location, log_scale = encoder.location_scale(encoder.features(x))
    mean, covariance = posterior(vae, x)
    encoded = torch.distributions.MultivariateNormal(location, scale_tril=torch.diag_embed(log_scale.exp()))
    exact = torch.distributions.MultivariateNormal(mean, covariance)
    missing = torch.distributions.kl_divergence(encoded, exact)
    count = 8_000
    z = encoded.sample((count,)).transpose(0, 1)
    with torch.no_grad():
        error = (vae.log_joint(x, z) - encoded.log_prob(z.transpose(0, 1)).T).std(1) / math.sqrt(count)
    off = elbo(vae, x, count, seeded()) - (evidence(vae, x) - missing)
    assert bool((off.abs() < 5.0 * error).all())
    many = elbo(vae, x.repeat(20, 1), count // 10, seeded())  # more than are looked at together
    assert many.shape == (120,)
    assert bool(((many - (evidence(vae, x) - missing).repeat(20)).abs() < 5.0 * 10**0.5 * error.repeat(20)).all())
    assert float((error / missing).max()) < 0.03
    with pytest.raises(ValueError, match="its encoder has no density"):
        elbo(linear(encoder=ImplicitEncoder(DenseTrunk(5, (8,), 3), 3)), x)


def test_an_autoregressive_encoder_knows_its_density() -> None:
    encoder = autoregressive(fold=0.5)
    x, noise = (
        torch.randn(4, 5, generator=seeded(), dtype=FLOAT64),
        torch.randn(4, 2, 3, generator=seeded(), dtype=FLOAT64),
    )
    begun = encoder.begin(encoder.features(x))

    def log_volume(row: int, sample: int) -> Tensor:
        def drawn(eps: Tensor) -> Tensor:
            return encoder.draw(tuple(t[row : row + 1] for t in begun), eps.view(1, 1, 3)).flatten()

        jacobian = torch.autograd.functional.jacobian(drawn, noise[row, sample])
        assert bool((jacobian.diagonal() > 0.0).all())  # one place each
        return torch.linalg.slogdet(jacobian).logabsdet

    volumes = torch.stack([torch.stack([log_volume(row, sample) for sample in range(2)]) for row in range(4)])
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(noise).sum(-1) - volumes
    torch.testing.assert_close(encoder.log_prob(begun, encoder.draw(begun, noise)), expected, rtol=0.0, atol=1e-10)


def test_the_density_of_a_folded_map_has_the_probabilities_of_what_is_drawn() -> None:
    weights = [[0.3, -1.0, 2.0], [2.0, 1.5, -3.0], [-2.0, -0.5, 1.0]]
    inner, of_noise, output = (torch.tensor([row], dtype=FLOAT64) for row in weights)
    noise = torch.linspace(-9.0, 9.0, 2_000_001, dtype=FLOAT64)
    shares = torch.exp(-0.5 * noise.square())
    drawn = noise + (torch.tanh(inner + noise.unsqueeze(-1) * of_noise) * output).sum(-1)
    steps = drawn.diff()
    assert bool((steps > 0.0).any() & (steps < 0.0).any())  # it folds
    edges = torch.linspace(float(drawn.min()), float(drawn.max()), 41, dtype=FLOAT64)
    expected = torch.stack([shares[(drawn >= low) & (drawn < high)].sum() for low, high in itertools.pairwise(edges)])
    fine = torch.linspace(float(edges[0]), float(edges[-1]), 40 * 2_000 + 1, dtype=FLOAT64)
    middles = 0.5 * (fine[1:] + fine[:-1])
    density = log_density(middles, *(t.expand(len(middles), -1) for t in (inner, of_noise, output))).exp()
    found = density.view(40, 2_000).sum(1) * (fine[1] - fine[0])
    assert float(found.sum()) == pytest.approx(1.0, abs=0.005)  # it is infinite where the map turns: the sum is coarse
    torch.testing.assert_close(found, expected / shares.sum(), rtol=0.0, atol=0.005)


@pytest.mark.parametrize("fold", [0.5, 2.0])
def test_another_density_is_one_in_expectation_over_that_of_an_encoder(fold: float) -> None:
    """Since that is its integral: wherever a place is missed or counted twice, it is not."""
    encoder = autoregressive(fold=fold)
    begun = encoder.begin(encoder.features(normal(1, 5)))
    with torch.no_grad():
        z = encoder.draw(begun, normal(1, 30_000, 3, seed=1))
    other = torch.distributions.Normal(z.mean((0, 1)), 0.7 * z.std((0, 1)))
    ratio = torch.exp(other.log_prob(z).sum(-1) - encoder.log_prob(begun, z))
    error = float(ratio.std()) / math.sqrt(ratio.numel())
    assert error < 0.03  # so that a sixth would be seen
    assert float(ratio.mean()) == pytest.approx(1.0, abs=4.0 * error)


def test_an_encoder_that_is_narrower_than_rounding_still_knows_its_density() -> None:
    encoder = autoregressive().float()
    x, noise = normal(1, 5).float(), normal(1, 50, 3, seed=1).float()
    wide, (location, log_scale, *others) = None, encoder.begin(encoder.features(x))
    for shrink in (0.0, 20.0):
        begun = (location, log_scale - shrink, *others)
        z, found = encoder.draw_with_log_prob(begun, noise)
        torch.testing.assert_close(z, encoder.draw(begun, noise))
        wide = found if wide is None else wide
        torch.testing.assert_close(found, wide + 3.0 * shrink)
    torch.testing.assert_close(
        wide,
        encoder.log_prob((location, log_scale, *others), encoder.draw((location, log_scale, *others), noise)),
        rtol=0.0,
        atol=1e-3,
    )


def own_share(noise: Tensor, inner: Tensor, of_noise: Tensor, output: Tensor) -> tuple[Tensor, Tensor]:
    """What maps draw, and the log density that the noise it was drawn from has a share in: the whole has no less."""
    bent = torch.tanh(inner + of_noise * noise.unsqueeze(-1))
    slope = 1.0 + (output * of_noise * (1.0 - bent.square())).sum(-1)
    return noise + (output * bent).sum(-1), torch.distributions.Normal(0.0, 1.0).log_prob(noise) - slope.abs().log()


def folded(count: int = 20_000, units: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    return normal(count, units), 3.0 * normal(count, units, seed=1), normal(count, units, seed=2)


@pytest.mark.parametrize("excess", [1e-4, 3e-3, None])
def test_a_density_is_no_less_than_the_share_of_the_noise_that_was_drawn(excess: float | None) -> None:
    """Also where a map turns twice within a cell, as e - (1 + excess) tanh(e) does."""
    one = torch.ones(20_000, 1, dtype=FLOAT64)
    maps = folded() if excess is None else (0.0 * one, one, -(1.0 + excess) * one)
    u, least = own_share(normal(20_000, seed=3), *maps)
    found = log_density(u, *maps)
    assert bool((found > least - 1e-6).all())
    assert bool(found.isfinite().all())
    assert float((found - least).max()) > 0.1  # others have their share


def test_the_density_of_single_precision_is_that_of_double() -> None:
    encoder = AutoregressiveEncoder(DenseTrunk(5, (16,)), 3, 6)
    encoder.load_state_dict(autoregressive(fold=3.0).float().state_dict())
    x, noise = normal(20, 5).float(), normal(20, 500, 3, seed=1).float()
    z, found = encoder.draw_with_log_prob(encoder.begin(encoder.features(x)), noise)
    torch.testing.assert_close(z, encoder(x, noise), rtol=1e-4, atol=1e-4)
    begun = tuple(t.double() for t in encoder.begin(encoder.features(x)))
    encoder.double()
    expected = encoder.log_prob(begun, encoder.draw(begun, noise.double()))
    assert z.dtype == found.dtype == torch.float32
    near = (found - expected).abs() < 1e-3
    assert float(near.double().mean()) > 0.999  # the way to units and back is rounded, and may cross a fold
    assert abs(float((found - expected).mean())) < 1e-3


def test_weights_that_make_no_map_are_said_and_values_that_are_no_numbers_have_no_density() -> None:
    def at(u: float, inner: float, of_noise: float, output: float) -> Tensor:
        return log_density(torch.tensor([u, 0.0]), *(torch.full((2, 3), v) for v in (inner, of_noise, output)))

    for wild in ((0.0, 1e3, 1e3), (0.0, math.nan, 1.0), (math.nan, 1.0, 1.0), (0.0, 1.0, math.inf)):
        with pytest.raises(NonFiniteError, match="too wild"):
            at(0.0, *wild)
    for u in (math.nan, math.inf):
        assert at(u, 0.0, 1.0, 1.0).isnan().tolist() == [True, False]
    assert float(at(-60.0, 0.0, 1.0, 1.0)[0]) == pytest.approx(-0.5 * 57.0**2 - 0.918939, rel=1e-6)
    assert log_density(torch.zeros(0), *(torch.zeros(0, 3) for _ in range(3))).shape == (0,)


def test_annealing_from_both_sides_bounds_the_likelihood() -> None:
    vae = linear()
    z, x = simulated(vae, 200)
    annealing = Annealing(temperatures=10, chains=2, leapfrog=2)  # too few on purpose
    truth = evidence(vae, x)
    prior = Proposal.prior(200, 3, x)
    lower = annealed_bound(vae, x, annealing, prior, seeded())
    upper = annealed_upper_bound(vae, x, z, annealing, prior, seeded())
    for bound, sign in ((lower, 1.0), (upper, -1.0)):
        missing = sign * (truth - bound)
        assert float(missing.mean()) > 4.0 * float(missing.std()) / 200**0.5
    tight = gap(vae, 20, Annealing(temperatures=100, chains=8, leapfrog=4), generator=seeded())
    torch.testing.assert_close(tight[0], tight[1], rtol=0.0, atol=0.1)


def test_a_transition_leaves_its_distribution_as_it_is() -> None:
    """The target N(v; 0, 1) e^{beta a v} is a normal distribution around beta a."""
    slope, beta, count = 1.5, 0.6, 40_000
    v = beta * slope + normal(count, 1, 1, seed=99)
    step = torch.full((count, 1), 0.9, dtype=FLOAT64)

    def log_ratio(v: Tensor) -> Tensor:
        return slope * v.sum(-1)

    point, shares = _point(log_ratio, v), []
    for index in range(5):
        before = point.v
        point, accepted = _transition(log_ratio, point, beta, step, 3, seeded(index))
        assert torch.equal(accepted, (point.v != before).any(-1))
        shares.append(float(accepted.double().mean()))
    assert 0.5 < min(shares) <= max(shares) < 0.999  # so that what is refused counts
    torch.testing.assert_close(point.ratio, log_ratio(point.v))
    assert float(point.v.mean()) == pytest.approx(beta * slope, abs=0.02)
    assert float(point.v.var()) == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize("start", [0.03, 2.0])
def test_steps_are_adapted_towards_the_acceptance_that_is_asked_for(start: float) -> None:
    def log_ratio(v: Tensor) -> Tensor:
        return v.new_zeros(v.shape[:2]) - 2.0 * v.square().sum(-1)

    point = _point(log_ratio, normal(400, 1, 12, seed=1))
    step = torch.full((400, 1), start, dtype=FLOAT64)
    shares, generator = [], seeded()
    for _ in range(300):
        point, accepted = _transition(log_ratio, point, 1.0, step, 3, generator)
        step = _adapted(step, accepted)
        shares.append(float(accepted.double().mean()))
    assert abs(shares[0] - 0.65) > 0.3
    assert sum(shares[-50:]) / 50 == pytest.approx(0.65, abs=0.02)


@pytest.mark.parametrize("temperatures", [1, 2, 60])
def test_the_schedule_is_a_sigmoid(temperatures: int) -> None:
    betas = torch.tensor(Annealing(temperatures=temperatures).schedule(), dtype=FLOAT64)
    assert len(betas) == temperatures + 1
    assert betas[0] == 0.0
    assert betas[-1] == 1.0
    torch.testing.assert_close(betas + betas.flip(0), torch.ones_like(betas))
    gaps = betas.diff()
    assert bool((gaps > 0.0).all())
    if temperatures == 60:  # the slope of a sigmoid in its middle, over that at its ends
        middle, end = (1.0 / (2.0 + 2.0 * math.cosh(t)) for t in (0.0, 4.0))
        assert float(gaps[29] / gaps[0]) == pytest.approx(middle / end, rel=0.07)


def test_annealed_weights_have_the_evidence_as_their_mean() -> None:
    """Which they have not if the step of a chain depends on what that chain did: more than a tenth is missing then."""
    vae, count = linear(), 3_000
    x = simulated(vae, 1)[1]
    mean, covariance = posterior(vae, x)
    proposal = Proposal(mean.expand(count, -1), 3.0 * torch.linalg.cholesky(covariance).expand(count, -1, -1))
    annealing = Annealing(temperatures=60, chains=1, leapfrog=2, step_size=1.0)
    found = annealed_bound(vae, x.expand(count, -1), annealing, proposal, seeded())
    shares = torch.exp(found - evidence(vae, x))
    error = float(shares.std()) / count**0.5
    assert error < 0.03
    assert float(shares.mean()) == pytest.approx(1.0, abs=3.0 * error)

    log_ratio = _Chains(vae, annealing, False, None, False)._log_ratio(x.expand(count, -1), proposal)
    point, weights = _point(log_ratio, normal(count, 1, 3, seed=1)), torch.zeros(count, 1, dtype=FLOAT64)
    step, generator = torch.ones(count, 1, dtype=FLOAT64), seeded(2)
    for lower, upper in itertools.pairwise(annealing.schedule()):
        weights = weights + (upper - lower) * point.ratio
        point, accepted = _transition(log_ratio, point, upper, step, 2, generator)
        step = _adapted(step, accepted)
    assert float(torch.exp(weights[:, 0] - evidence(vae, x)).mean()) < 0.9


def test_backwards_the_reciprocal_weights_have_the_reciprocal_evidence_as_their_mean() -> None:
    vae, count = linear(), 3_000
    x = simulated(vae, 1)[1]
    mean, covariance = posterior(vae, x)
    root = torch.linalg.cholesky(covariance)
    z = mean + (root @ normal(count, 3, 1)).squeeze(-1)
    proposal = Proposal(mean.expand(count, -1), 1.5 * root.expand(count, -1, -1))
    annealing = Annealing(temperatures=20, chains=1, leapfrog=2, step_size=1.0)
    upper = annealed_upper_bound(vae, x.expand(count, -1), z, annealing, proposal, seeded())
    shares = torch.exp(evidence(vae, x) - upper)
    error = float(shares.std()) / count**0.5
    assert error < 0.02
    assert float(shares.mean()) == pytest.approx(1.0, abs=3.0 * error)


def test_a_row_of_traversals_moves_one_latent() -> None:
    """Of a linear decoder: along the column of that latent, by equal steps over the range of the prior."""
    vae = linear()
    x = simulated(vae, 1)[1]
    images = traversals(vae, x, seeded()).view(3, 8, 5)
    weight = vae.decoder.weight.detach()  # type: ignore[union-attr]
    for latent, row in enumerate(images):
        step = (weight[:, latent] * 5.0 / 7.0).expand(7, -1)
        torch.testing.assert_close(row.diff(dim=0), step)
    start = vae.encode(x, 1, seeded())[0, 0].detach()
    middle = images[:, 3:5].mean(1)  # of the two places around 0
    for latent, row in enumerate(middle):
        torch.testing.assert_close(row, (start * (torch.arange(3) != latent)) @ weight.T)


# Entropy gradients --------------------------------------------------------------------------------------------------


ENCODER = {"elbo": "gaussian", "stein": "implicit", "spectral": "implicit", "ssm": "implicit",
           "ssm-ar": "autoregressive", "csm": "autoregressive"}  # fmt: skip


def tiny(method: str, networks: str = "dense") -> VAE:
    torch.manual_seed(0)
    parts = {"encoder": ENCODER[method], "networks": networks, "latents": 2, "hidden_features": (8,), "channels": (4,)}
    return VAEConfig.model_validate(parts).build(IMAGES)


class Known(EntropyGradient):
    """The score of a normal distribution around the input."""

    of_conditionals = True

    def __init__(self, location: Tensor, std: Tensor) -> None:
        self.location, self.std = location, std

    def score(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        return (self.location.unsqueeze(1) - z) / self.std.square().unsqueeze(1)


def test_whitening_changes_the_units_and_not_the_score() -> None:
    location, log_scale = normal(3, 2), 0.3 * normal(3, 2, seed=1)
    z = location.unsqueeze(1) + 2.0 * log_scale.exp().unsqueeze(1) * normal(3, 5, 2, seed=2)
    plain = Known(location, 2.0 * log_scale.exp())
    white = EncoderUnits(Known(torch.zeros(3, 2, dtype=FLOAT64), torch.full((3, 2), 2.0, dtype=FLOAT64)),
                     lambda condition: (location, log_scale))  # fmt: skip
    torch.testing.assert_close(white.score(z), plain.score(z))


def test_a_whitened_estimator_keeps_the_least_samples_of_the_inner_one() -> None:
    white = EncoderUnits(Stein(), lambda condition: (torch.zeros(1, 2), torch.zeros(1, 2)))
    with pytest.raises(ValueError, match="K at least 2"):
        white.surrogate(torch.zeros(1, 1, 2))


class Chained(EntropyGradient):
    """The scores of the conditionals of two latents: N(0, 1), then N(2 z_1, z_1^2 + 1)."""

    def score(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        first, second = z.unbind(-1)
        return torch.stack([-first, (2.0 * first - second) / (first.square() + 1.0)], -1)


def test_standardised_conditionals_are_normal_and_their_scores_mapped_back() -> None:
    def moments(z: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        first, zero = z[..., 0], torch.zeros_like(z[..., 0])
        return torch.stack([zero, 2.0 * first], -1), torch.stack([zero, 0.5 * (first.square() + 1.0).log()], -1)

    noise = normal(1, 5, 2)
    first = noise[..., 0]
    z = torch.stack([first, 2.0 * first + (first.square() + 1.0).sqrt() * noise[..., 1]], -1)
    standard = ConditionalUnits(Known(torch.zeros(1, 2, dtype=FLOAT64), torch.ones(1, 2, dtype=FLOAT64)), moments)
    torch.testing.assert_close(standard.rescale(z, None)[0], noise)
    torch.testing.assert_close(standard.score(z), Chained().score(z))


@pytest.mark.parametrize("inner", [Stein(), JointScore(ScoreNetwork(2)), EncoderUnits(Stein(), lambda condition: None)])
def test_joint_scores_have_no_units_of_conditionals(inner: EntropyGradient) -> None:
    with pytest.raises(ValueError, match=f"expected scores of conditionals, got {type(inner).__name__}"):
        ConditionalUnits(inner, lambda z, condition: (z, z))


def test_the_pressure_of_true_scores_is_one_whatever_the_number_of_samples() -> None:
    std = torch.tensor([[0.1, 5.0]], dtype=FLOAT64)
    location = 3.0 * normal(20_000, 2)
    z = location.unsqueeze(1) + std.unsqueeze(1) * normal(20_000, 2, 2, seed=1)  # two of each input: least, most biased
    torch.testing.assert_close(Known(location, std).pressure(z), torch.ones(2, dtype=FLOAT64), atol=0.03, rtol=0.0)
    flat = Known(location, std * torch.tensor([[2.0, 1.0]])).pressure(z)
    torch.testing.assert_close(flat, torch.tensor([0.25, 1.0], dtype=FLOAT64), atol=0.03, rtol=0.0)
    noise = normal(20_000, 2, 2, seed=2)
    first = noise[..., 0]
    z = torch.stack([first, 2.0 * first + (first.square() + 1.0).sqrt() * noise[..., 1]], -1)
    torch.testing.assert_close(Chained().pressure(z), torch.ones(2, dtype=FLOAT64), atol=0.03, rtol=0.0)
    with pytest.raises(ValueError, match="K at least 2"):
        Known(location, std).pressure(z[:, :1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tiny("csm").prepare(rows(5) * 255.0), r"rows: expected images in \[-1, 1\], got values from"),
        (lambda: tiny("csm").prepare(rows(5) * math.nan), "rows: hold NaN"),
        (lambda: importance_bound(tiny("csm"), rows(5)), r"x: expected zeros and ones.*vae.prepare\(rows\)"),
        (lambda: annealed_bound(tiny("csm"), rows(5)), "x: expected zeros and ones"),
        (lambda: elbo(tiny("elbo"), torch.full((5, 16), math.nan)), "x: holds NaN"),
        (lambda: fit_proposal(tiny("csm"), torch.ones(5, 9)), r"x: expected inputs \(B, 16\), got \(5, 9\)"),
        (lambda: importance_bound(tiny("csm"), torch.ones(5, 16), samples=0), "samples: expected at least 1, got 0"),
        (
            lambda: annealed_upper_bound(tiny("csm"), torch.ones(5, 16), torch.zeros(1, 2)),
            r"z: expected latents \(5, 2\), got \(1, 2\)",
        ),
        (lambda: Annealing(temperatures=0), "temperatures: expected a positive number, got 0"),
        (lambda: Annealing(step_size=-1.0), "step_size: expected a positive number"),
        (lambda: VAEConfig().build({"columns": ["a"]}), "an autoencoder needs images"),
        (lambda: VAEConfig(networks="convolutional").build(IMAGES), "4 x 4 is not divisible by 16"),
        (lambda: ImplicitEncoder(DenseTrunk(3, (4,), 2), 3), "expected one with 3 extra features, got 2"),
        (lambda: ScoreNetwork(3, trunk=DenseTrunk(3, (4,), 2)), "expected one with 3 extras, got 2"),
        (lambda: DenseTrunk(3, ()), "hidden_features: expected at least one layer"),
        (
            lambda: VAE(encoders()[0], BernoulliDecoder(2, 5), VAEConfig(), IMAGES),
            "the encoder gives 3, the decoder takes 2",
        ),
    ],
)
def test_wrong_arguments_are_named(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]


def test_trunks_are_abstract() -> None:
    with pytest.raises(TypeError):
        Trunk()  # type: ignore[abstract]

"""Training, likelihoods and samples of few columns and of many: arcsm, naive ways, flows, scikit-learn, the limit.

python -m benchmarks.peers
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from nflows.distributions import StandardNormal
from nflows.flows import Flow, MaskedAutoregressiveFlow
from nflows.transforms import CompositeTransform, MaskedPiecewiseRationalQuadraticAutoregressiveTransform
from nflows.transforms.permutations import ReversePermutation
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import KernelDensity
from torch import Tensor, nn

from arcsm import MADE, AutoregressiveModel, SplineHead, objectives
from arcsm.conditionals.conditionals import Accuracy, Conditionals
from arcsm.experiments.peers import import_zuko
from benchmarks.log_prob import trained, uniform_grid
from benchmarks.timing import interleaved_medians, show

FEATURES, BATCH, ROWS, FEW = 21, 128, 512, 16  # few: rows of the naive way, whose time is scaled up
IMAGE, IMAGES = 784, 64  # columns of an image, and how many images are drawn
_LANGEVIN_STEPS = (20, 10)  # steps at each level, levels (paper)
_GRID = 2049

Actions = dict[str, dict[str, tuple[Callable[[], object], float]]]  # action, method: the call and its scale factor


def ours(model: AutoregressiveModel, x: Tensor) -> Actions:
    """Return our actions with default settings, those of the naive way, and those of the limit."""
    head, z = model.head, model.standardise(x)
    ladder = model.noise
    assert ladder is not None
    lowest = ladder.sigma_min

    def step() -> None:
        model.zero_grad()
        objectives.csm(model, x[:BATCH], mix=0.3).backward()

    def naive_step() -> None:
        """Compute the same loss naively: the derivative by autograd, and the gradient by autograd again."""
        model.zero_grad()
        sigma, noise = ladder.draw(z[:BATCH]), torch.randn(BATCH, FEATURES)
        noisy = (z[:BATCH] + sigma * noise).requires_grad_()
        context = model.context(z[:BATCH] + ladder.sigma_min * torch.randn(BATCH, FEATURES))
        s = head.projected_score(head.project(context), noisy, sigma)
        ds = torch.autograd.grad(s.sum(), noisy, create_graph=True)[0]
        loss = head.loss_weight(sigma) * (0.5 * s.square() + 0.3 * ds + 0.7 * s * noise / sigma)
        (loss.sum() / BATCH).backward()

    def plain_step() -> None:
        """Run one forward and backward pass of both networks."""
        model.zero_grad()
        projection = head.project(model.context(z[:BATCH]))
        head.projected_score(projection, z[:BATCH], lowest).square().sum().backward()

    @torch.no_grad()
    def one_pass() -> None:
        head.projected_score(head.project(model.context(z)), z, lowest)

    @torch.no_grad()
    def on_a_grid() -> None:
        projection = head.project(model.context(z[:FEW])).flatten(0, 1)
        conditionals = Conditionals(head, projection, model.path(), "quadrature", Accuracy(1e-4, 512))
        uniform_grid(conditionals, z[:FEW].flatten(), _GRID)

    @torch.no_grad()
    def langevin_by_full_passes() -> None:
        """Run the paper's sampler with a full forward pass for each column."""
        steps, levels = _LANGEVIN_STEPS
        drawn = torch.zeros(ROWS, FEATURES)
        for d in range(FEATURES):
            projection = head.project(model.context(drawn)[:, d])
            value = torch.randn(ROWS)
            for level in model.path()[-levels:]:
                for _ in range(steps):
                    value = value + 1e-3 * head.projected_score(projection, value, level) + 0.04 * torch.randn(ROWS)
            drawn[:, d] = value

    return {
        "a training step of 128 rows": {
            "arcsm": (step, 1.0),
            "naive: autograd twice": (naive_step, 1.0),
            "limit: a forward and backward pass": (plain_step, 1.0),
        },
        f"log densities of {ROWS} rows": {
            "arcsm: flow": (lambda: model.log_prob(x, tol=1e-3), 1.0),
            "arcsm: quadrature": (lambda: model.log_prob(x, method="quadrature", tol=1e-3), 1.0),
            f"naive: {_GRID} nodes": (on_a_grid, ROWS / FEW),
            "limit: a forward pass": (one_pass, 1.0),
        },
        f"{ROWS} samples": {
            "arcsm: flow": (lambda: model.sample(ROWS), 1.0),
            "arcsm: fast flow": (lambda: model.sample(ROWS, "fast_flow", steps=4), 1.0),
            "naive: Langevin, full passes": (langevin_by_full_passes, 1.0),
            "limit: a forward pass": (one_pass, 1.0),
        },
    }


Network = tuple[nn.Module, Callable[[nn.Module, Tensor], Tensor], Callable[[nn.Module], object]]


def flows(features: int, rows: int) -> Mapping[str, Network]:
    """Return autoregressive flows with about as many weights as ours: network, log density, samples."""
    zuko = import_zuko()
    torch.manual_seed(0)

    def spline() -> nn.Module:
        transforms: list[nn.Module] = []
        for _ in range(3):
            transforms.append(ReversePermutation(features))
            transforms.append(
                MaskedPiecewiseRationalQuadraticAutoregressiveTransform(
                    features, 128, num_bins=8, tails="linear", tail_bound=5.0, num_blocks=1
                )
            )
        return Flow(CompositeTransform(transforms), StandardNormal([features]))

    def of_zuko(network: nn.Module, x: Tensor) -> Tensor:
        return network().log_prob(x)  # type: ignore[no-any-return]

    def of_nflows(network: nn.Module, x: Tensor) -> Tensor:
        return network.log_prob(x)  # type: ignore[operator, no-any-return]

    def draw_zuko(network: nn.Module) -> object:
        return network().sample((rows,))

    def draw_nflows(network: nn.Module) -> object:
        return network.sample(rows)  # type: ignore[operator]

    return {
        "zuko: NSF": (zuko.flows.NSF(features, transforms=3, hidden_features=(128, 128)), of_zuko, draw_zuko),
        "zuko: MAF": (zuko.flows.MAF(features, transforms=5, hidden_features=(128, 128)), of_zuko, draw_zuko),
        "nflows: NSF": (spline(), of_nflows, draw_nflows),
        "nflows: MAF": (MaskedAutoregressiveFlow(features, 128, 5, 1), of_nflows, draw_nflows),
    }


def images() -> dict[str, tuple[Callable[[], object], float]]:
    """Return how images are drawn, and one pass through our networks."""
    model, data = trained(IMAGE)
    z = model.standardise(data[:IMAGES])
    ways: dict[str, tuple[Callable[[], object], float]] = {
        "arcsm: flow": (lambda: model.sample(IMAGES), 1.0),
        "arcsm: fast flow": (lambda: model.sample(IMAGES, "fast_flow", steps=4), 1.0),
        "limit: a forward pass": (
            torch.no_grad()(lambda: model.head.projected_score(model.head.project(model.context(z)), z, 0.1)), 1.0,
        ),
    }  # fmt: skip
    for name, (network, _, draw) in flows(IMAGE, IMAGES).items():
        ways[name] = (torch.no_grad()(partial(draw, network)), 1.0)
    return ways


def main() -> None:
    torch.set_num_threads(1)
    model, data = trained(FEATURES)
    x = data[:ROWS]
    actions = ours(model, x)
    training, scoring, drawing = actions
    weights = {"arcsm": sum(p.numel() for p in model.parameters())}
    spline = AutoregressiveModel(MADE(FEATURES, 32, (128, 128)), SplineHead(32))
    networks: dict[str, tuple[nn.Module, Callable[..., Tensor], Callable[..., object]]] = {
        "arcsm: SplineHead": (spline, lambda network, x: network.log_prob(x), lambda network: network.sample(ROWS)),
        **flows(FEATURES, ROWS),
    }
    for name, (network, log_prob, draw) in networks.items():
        weights[name] = sum(p.numel() for p in network.parameters())

        def step(network: nn.Module = network, log_prob: Callable[..., Tensor] = log_prob) -> None:
            network.zero_grad()
            (-log_prob(network, x[:BATCH]).mean()).backward()

        actions[training][name] = (step, 1.0)
        actions[scoring][name] = (torch.no_grad()(partial(log_prob, network, x)), 1.0)
        actions[drawing][name] = (torch.no_grad()(partial(draw, network)), 1.0)
    mixture, kernels = GaussianMixture(10, random_state=0).fit(data), KernelDensity(bandwidth=0.2).fit(data)
    actions[scoring]["scikit-learn: GaussianMixture"] = (partial(mixture.score_samples, x.numpy()), 1.0)
    actions[scoring]["scikit-learn: KernelDensity"] = (partial(kernels.score_samples, x.numpy()), 1.0)
    actions[drawing]["scikit-learn: GaussianMixture"] = (partial(mixture.sample, ROWS), 1.0)
    actions[drawing]["scikit-learn: KernelDensity"] = (partial(kernels.sample, ROWS), 1.0)

    actions[f"{IMAGES} samples of {IMAGE} columns"] = images()
    found = {}
    for what, who in actions.items():
        repeats = 1 if "columns" in what else 5
        medians = interleaved_medians({name: call for name, (call, _) in who.items()}, repeats=repeats)
        seconds = {name: medians[name] * scale for name, (_, scale) in who.items()}
        mine = next(value for name, value in seconds.items() if name.startswith("arcsm"))
        found[what] = {
            name: {"milliseconds": round(1e3 * value, 2), "times_ours": float(f"{value / mine:.3g}")}
            for name, value in seconds.items()
        }
    show("peers", {"columns": FEATURES, "weights": weights, **found})


if __name__ == "__main__":
    main()

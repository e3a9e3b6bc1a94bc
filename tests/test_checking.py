"""``arcsm.check``: every part of the package keeps its contract, and each way to break the contract is reported."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import arcsm
from arcsm import (
    MADE,
    AnyOrder,
    CategoricalHead,
    DiscretisedLogisticMixtureHead,
    GaussianHead,
    LocatedHead,
    LogisticMixtureHead,
    MixedHead,
    PartError,
    PixelCNNPP,
    PlainScoreHead,
    ScoreHead,
    SplineHead,
    objectives,
    registry,
    samplers,
)
from arcsm.contexts.base import TrainingTerms
from outside_parts import Perceptron

CONTEXTS: dict[str, Callable[[], arcsm.Context]] = {
    "AnyOrder": lambda: AnyOrder(5, 3, (8, 8), 6),
    "AnyOrder, located": lambda: AnyOrder(4, 5, (8, 8), 6, located=True),
    "AnyOrder, linear features": lambda: AnyOrder(4, 5, (8, 8), 6, levels=(0, 2, 3, 0), linear_features=True),
    "AnyOrder, small sets": lambda: AnyOrder(5, 3, (8, 8), 6, small_sets=2, classes=3),
    "AnyOrder, one feature": lambda: AnyOrder(1, 3, (8,), 6),
    "AnyOrder, order, sinusoids, classes and vectors": lambda: AnyOrder(
        4, 3, (8, 8), 6, condition_features=2, order=(2, 0, 3, 1), classes=3, sinusoids=2, max_frequency=3.0
    ),
    "AnyOrder, targets": lambda: AnyOrder(5, 3, (8, 8), 6, targets=(1, 3), complete_share=0.5),
    "AnyOrder, levels": lambda: AnyOrder(3, 3, (8, 8), 6, levels=(0, 3, 2)),
    "AnyOrder, parent of a feature": lambda: AnyOrder(4, 3, (8, 8), 6, levels=(3, 0, 0, 0), parents=(-1, 0, -1, -1)),
    "MADE": lambda: MADE(4, 3, ()),
    "MADE, one feature": lambda: MADE(1, 3, (8,)),
    "MADE, order, residual, classes, sinusoids": lambda: MADE(
        5, 3, (8, 8), order=(3, 1, 0, 2, 4), residual=True, classes=3, sinusoids=2
    ),
    "MADE, missing values, vectors": lambda: MADE(4, 3, (12,), condition_features=2, missing=True, hide=0.4),
    "PixelCNNPP": lambda: PixelCNNPP((1, 2, 3), 3, nr_filters=4, nr_resnet=1),
    "PixelCNNPP, colours, classes": lambda: PixelCNNPP((3, 2, 2), 3, nr_filters=4, nr_resnet=1, classes=2),
    "PixelCNNPP, dropout, vectors": lambda: PixelCNNPP((1, 2, 2), 3, 4, 1, dropout=0.5, condition_features=2),
}
HEADS: dict[str, Callable[[], arcsm.Head]] = {
    "ScoreHead": lambda: ScoreHead(3, (8, 8)),
    "ScoreHead, sinusoids, residual": lambda: ScoreHead(3, (8, 8), 3, 5.0, residual=True, data_std=0.5),
    "PlainScoreHead": lambda: PlainScoreHead(3, (8, 8)),
    "GaussianHead": lambda: GaussianHead(3),
    "LogisticMixtureHead": lambda: LogisticMixtureHead(3, 4),
    "SplineHead": lambda: SplineHead(3, 4),
    "SplineHead, located": lambda: SplineHead(5, 4, hidden_features=(6, 6), located=True),
    "DiscretisedLogisticMixtureHead": lambda: DiscretisedLogisticMixtureHead(3, 4, levels=7),
    "CategoricalHead": lambda: CategoricalHead(3, 5),
    "LocatedHead": lambda: LocatedHead(ScoreHead(3, (8,), 2)),
    "MixedHead": lambda: MixedHead([ScoreHead(3, (8,)), CategoricalHead(3, 2)], (1, 0, 0)),
}
OBJECTIVES = {name: getattr(objectives, name) for name in objectives.__all__}
SAMPLERS = {name: getattr(samplers, name) for name in ("langevin", "probability_flow", "fast_flow", "inverse_cdf")}


@pytest.mark.parametrize("name", CONTEXTS | HEADS)
def test_every_context_and_head_of_the_package_passes(name: str) -> None:
    arcsm.check((CONTEXTS | HEADS)[name]())


@pytest.fixture
def _condition_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._PARTS, "condition_net", {"Perceptron": Perceptron})


@pytest.mark.usefixtures("_condition_networks")
def test_a_condition_network_and_contexts_with_it_pass() -> None:
    arcsm.check(Perceptron())
    arcsm.check(MADE(4, 3, condition_features=2, classes=3, condition_net=Perceptron()))
    arcsm.check(PixelCNNPP((1, 2, 2), 3, 4, 1, condition_features=2, classes=3, condition_net=Perceptron()))


class AveragesRows(Perceptron):
    """Training couples the rows, as with batch normalisation."""

    def forward(self, condition: Mapping[str, Tensor]) -> Tensor:
        embedded = super().forward(condition)
        return embedded - embedded.mean(0) if self.training else embedded


@pytest.mark.usefixtures("_condition_networks")
def test_a_condition_network_that_couples_rows_in_training_fails() -> None:
    made = MADE(4, 3, condition_features=2, classes=3, condition_net=AveragesRows())
    with pytest.raises(PartError, match="conditions of rows: the contexts of a row in training"):
        arcsm.check(made)


@pytest.mark.parametrize("name", OBJECTIVES | SAMPLERS)
def test_every_objective_and_sampler_of_the_package_passes(name: str) -> None:
    arcsm.check((OBJECTIVES | SAMPLERS)[name])


@pytest.mark.parametrize("seam", ["context", "head", "objective", "sampler"])
def test_every_registered_part_of_the_package_is_among_the_checked(seam: registry.Seam) -> None:
    checked = {"context": CONTEXTS, "head": HEADS, "objective": OBJECTIVES, "sampler": SAMPLERS}[seam]
    own = {name for name, part in registry.parts(seam).items() if part.__module__.startswith(f"arcsm.{seam}s.")}
    assert own == {name.partition(",")[0] for name in checked}


def test_a_passing_check_changes_neither_the_part_nor_the_state_of_torch() -> None:
    made = MADE(4, 3, (8,)).train()
    weights = {name: value.clone() for name, value in made.state_dict().items()}
    state = torch.get_rng_state()
    with torch.no_grad():
        arcsm.check(made, generator=torch.Generator().manual_seed(5))
    assert torch.equal(torch.get_rng_state(), state)
    assert made.training
    assert all(torch.equal(value, weights[name]) for name, value in made.state_dict().items())
    assert all(parameter.dtype == torch.float32 and parameter.grad is None for parameter in made.parameters())


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (MADE, r"expected an instance, got the class MADE; pass MADE\(\.\.\.\)"),
        (nn.Linear(2, 2), "part: expected a Context"),
        (lambda x: x, "part: expected a Context"),
    ],
)
def test_other_things_are_rejected(part: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        arcsm.check(part)


# Contexts with a mistake --------------------------------------------------------------------------------------------


class SeesItselfInTraining(MADE):
    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        return super().forward(x, condition) + 0.1 * self.training * x.unsqueeze(-1)


class MixesRows(MADE):
    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        first = x.reshape(-1, self.features).mean(0)[0]
        position = torch.arange(self.features).unsqueeze(-1)
        return super().forward(x, condition) + first * (position > 0)


class WrongShape(MADE):
    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        return super().forward(x, condition)[..., :-1]


class OnlyMatrices(MADE):
    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        rows, _ = x.shape
        return super().forward(x.view(rows, -1), condition)


class WrongStep(MADE):
    def step(self, state: Any, x_previous: Tensor | None) -> Tensor:
        return super().step(state, x_previous) * (1.0 + 1e-6)


class WrongSelection(MADE):
    def select(self, state: Any, rows: Tensor) -> None:
        super().select(state, rows.sort().values)


class IgnoresItsCondition(MADE):
    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        return super().forward(x, None if condition is None else torch.zeros_like(condition))

    def begin(self, batch_shape: Any, condition: Tensor | None = None) -> Any:
        return super().begin(batch_shape, None if condition is None else torch.zeros_like(condition))


class SpreadsMissingValues(MADE):
    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        return super().forward(x, condition) + 0.0 * x.sum(-1)[..., None, None]


class DetachesItsInput(MADE):
    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        return super().forward(x.detach(), condition)


class UnusedWeight(MADE):
    def __init__(self, features: int, context_features: int = 3) -> None:
        super().__init__(features, context_features, (8,))
        self.unused = nn.Parameter(torch.zeros(2))


class WrongOrder(MADE):
    def __init__(self, features: int, context_features: int = 3) -> None:
        super().__init__(features, context_features, (8,))
        self.order = tuple(range(1, features + 1))


class ForgetsItsOrder(MADE):
    def config(self) -> dict[str, Any]:
        return {**super().config(), "order": None}


class ConfigWithATensor(MADE):
    def config(self) -> dict[str, Any]:
        return {**super().config(), "order": self.permutation}


class NoTypes(MADE):
    def __init__(self, features, context_features=3) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
        super().__init__(features, context_features, (8,))


class Unregistered(MADE):
    pass


class OneOrderInTraining(AnyOrder):
    training_terms = arcsm.Context.training_terms  # type: ignore[assignment]


class NoWeights(AnyOrder):
    def training_terms(self, *arguments: Any) -> TrainingTerms:
        return super().training_terms(*arguments)._replace(weight=None)


class WeightsByValue(AnyOrder):
    """The weights of a row are right, but some values have too much of them."""

    def training_terms(self, *arguments: Any) -> TrainingTerms:
        terms = super().training_terms(*arguments)
        assert terms.weight is not None
        assert terms.position is not None
        return terms._replace(weight=terms.weight * torch.where(terms.position % self.features == 0, 1.5, 0.75))


class EmptySetsInTraining(AnyOrder):
    def training_terms(self, x: Tensor, condition: Any = None, generator: Any = None) -> TrainingTerms:
        return TrainingTerms(self(torch.full_like(x, torch.nan), condition).flatten(0, 1))


class ObservesNothing(AnyOrder):
    def observe_all(self, state: Any, x: Tensor) -> None:
        self.check_input(x)


class GivenItself(AnyOrder):
    def given_others(self, x: Tensor, condition: Any = None) -> Tensor:
        return self(x, condition)


class NeverAbsent(AnyOrder):
    def absent(self, state: Any, d: int) -> Tensor | None:
        return None


class KeepsParentsUnknown(AnyOrder):
    def resolved(self, x: Tensor) -> Tensor:
        return x


class SeesItselfBesideGaps(AnyOrder):
    def training_terms(self, x: Tensor, condition: Any = None, generator: Any = None) -> TrainingTerms:
        terms = super().training_terms(x, condition, generator)
        gap = terms.select(x.isnan().any(-1, keepdim=True).expand_as(x))
        return terms._replace(context=terms.context + torch.where(gap, terms.select(x), 0.0).unsqueeze(1))


torch.manual_seed(0)  # of the weights of the parts with a mistake
BROKEN_CONTEXTS: dict[str, tuple[arcsm.Context, str]] = {
    "own value": (SeesItselfInTraining(4, 3), r"causality: the context of feature 0 depends on feature 0, .*\(deriv"),
    "other rows": (MixesRows(4, 3), r"causality: the contexts of a row depend on other rows \(by"),
    "shape": (WrongShape(4, 3), r"forward: forward of x \(4,\): expected shape \(4, 3\), got \(4, 2\)"),
    "batch shape": (OnlyMatrices(4, 3), "forward: ValueError: not enough values to unpack"),
    "step": (WrongStep(4, 3), "begin and step: step 0, feature 0, against forward: differs by .*e-0"),
    "values not observed": (ObservesNothing(4, 3, (8,), 6), "known values: conditional .* after observe_all, against"),
    "other values": (GivenItself(4, 3, (8,), 6), "known values: given_others of feature 0, against forward"),
    "absent": (
        NeverAbsent(3, 3, (8,), 6, levels=(3, 0, 0), parents=(-1, 0, -1)),
        "known values: absent after observe: other rows without feature 1",
    ),
    "parents unknown": (
        KeepsParentsUnknown(3, 3, (8,), 6, levels=(3, 0, 0), parents=(-1, 0, -1)),
        "known values: resolved: a value of feature 1 implies level 0 of its parent, feature 0",
    ),
    "own value, beside gaps": (SeesItselfBesideGaps(4, 3, (8,), 6), "training terms: the context of value . depends"),
    "selection": (WrongSelection(4, 3), "select: step 2 after select, against forward: differs"),
    "condition": (IgnoresItsCondition(4, 3, condition_features=2), "condition: the contexts do not depend on the cond"),
    "missing values": (SpreadsMissingValues(4, 3, missing=True), "missing values: forward of rows with NaN: contains"),
    "unused weight": (UnusedWeight(4), "gradients: none reaches the parameter unused"),
    "order": (WrongOrder(3), r"attributes: order: expected a tuple, a permutation of range\(3\), got \(1, 2, 3\)"),
    "argument not in the config": (ForgetsItsOrder(3, 3, order=(2, 0, 1)), "config: outputs of the part rebuilt"),
    "config of a tensor": (ConfigWithATensor(3, 3), r"config: config\(\) is not JSON: Object of type Tensor"),
    "annotations": (NoTypes(3), "constructor: the constructor's argument features has no type annotation"),
    "orders in training": (
        OneOrderInTraining(3, 3, (8,), 6),
        "training terms: any_order is True, but training_terms is that of one order; override it",
    ),
    "derivative": (DetachesItsInput(3, 3), "derivative: of the contexts along a direction of x: 0 by autograd, "),
    "no weights of targets": (
        NoWeights(5, 3, (8,), 6, targets=(1, 3)),
        "mean of training terms: the weights of a row: the mean is .*, expected 2 within",
    ),
    "weights by value": (
        WeightsByValue(3, 3, (8,), 6),
        "mean of training terms: the weights of value 0: the mean is 1[.].*, expected 1 within",
    ),
    "sets in training": (
        EmptySetsInTraining(3, 3, (8,), 6),
        "mean of training terms: a function of the contexts of value ., less its mean over all orders: the mean is ",
    ),
    "unregistered": (
        Unregistered(3, 3),
        r"registration: ValueError: context: Unregistered is not registered.*call arcsm\.register",
    ),
}


@pytest.mark.parametrize("name", BROKEN_CONTEXTS)
def test_a_broken_context_is_reported(name: str) -> None:
    context, message = BROKEN_CONTEXTS[name]
    with pytest.raises(PartError, match=f"^{type(context).__name__}: {message}") as error:
        arcsm.check(context)
    assert "\n" not in str(error.value)


# Heads with a mistake -----------------------------------------------------------------------------------------------


class WrongDerivative(GaussianHead):
    def projected_score_and_derivative(self, projection: Tensor, x: Tensor, sigma: Any = None) -> tuple[Tensor, Tensor]:
        s, ds = super().projected_score_and_derivative(projection, x, sigma)
        return s, 1.001 * ds


class WrongScore(GaussianHead):
    def projected_score_and_derivative(self, projection: Tensor, x: Tensor, sigma: Any = None) -> tuple[Tensor, Tensor]:
        s, ds = super().projected_score_and_derivative(projection, x, sigma)
        return s + 0.01, ds


class WrongPreparedScore(GaussianHead):
    projected_score_and_derivative = GaussianHead.projected_score_and_derivative

    def prepare_score(self, sigma: Any) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda projection, x: 1.001 * self.projected_score(projection, x, sigma)


class WrongCDF(GaussianHead):
    def projected_cdf(self, projection: Tensor, x: Tensor, sigma: Any = None) -> Tensor:
        return super().projected_cdf(projection, x, sigma).pow(1.01)


class MassAtAPoint(GaussianHead):
    """One per cent of the mass is at zero, which is in the cdf and cannot be in the density."""

    def projected_log_prob(self, projection: Tensor, x: Tensor, sigma: Any = None) -> Tensor:
        return super().projected_log_prob(projection, x, sigma) + math.log(0.99)

    def projected_cdf(self, projection: Tensor, x: Tensor, sigma: Any = None) -> Tensor:
        return 0.99 * super().projected_cdf(projection, x, sigma) + 0.01 * (x > 0.0)


class NarrowBracket(GaussianHead):
    def bracket(self, projection: Tensor, sigma: Any = None) -> tuple[Tensor, Tensor]:
        low, high = super().bracket(projection, sigma)
        return 0.7 * low + 0.3 * high, 0.3 * low + 0.7 * high


class WrongQuantiles(GaussianHead):
    def projected_icdf(self, projection: Tensor, u: Tensor, sigma: Any = None) -> Tensor:
        return super().projected_icdf(projection, u, sigma) + 10.0


class FarMode(ScoreHead):
    """All mass is around 25, out of the range of integration."""

    def projected_score_and_derivative(self, projection: Tensor, x: Tensor, sigma: Any = None) -> tuple[Tensor, Tensor]:
        s, ds = super().projected_score_and_derivative(projection, x, sigma)
        precision = 1.0 if sigma is None else 1.0 / (1.0 + sigma**2)
        return s + 25.0 * precision, ds


class IgnoresTheNoise(GaussianHead):
    def moments(self, projection: Tensor, sigma: Any = None) -> tuple[Tensor, Tensor]:
        return super().moments(projection)


class TooMuchNoise(GaussianHead):
    def moments(self, projection: Tensor, sigma: Any = None) -> tuple[Tensor, Tensor]:
        mean, var = super().moments(projection, sigma)
        return mean, var if sigma is None else var + sigma**2


class NoiseThatMoves(GaussianHead):
    def moments(self, projection: Tensor, sigma: Any = None) -> tuple[Tensor, Tensor]:
        mean, var = super().moments(projection, sigma)
        return mean + (0.0 if sigma is None else sigma), var


class NegativeWeight(GaussianHead):
    def loss_weight(self, sigma: Tensor) -> Tensor:
        return -sigma


class NoBroadcasting(LogisticMixtureHead):
    def projected_log_prob(self, projection: Tensor, x: Tensor, sigma: Any = None) -> Tensor:
        return super().projected_log_prob(projection.view(len(x), -1), x.flatten(), sigma)


class FalseClaim(ScoreHead):
    normalised = True


BROKEN_HEADS: dict[str, tuple[arcsm.Head, str]] = {
    "derivative": (WrongDerivative(3), "score: ds at sigma=None, against the derivative of s by autograd: differs by"),
    "score": (WrongScore(3), "density: the derivative of log_prob at sigma=None, against the score: differs by 0.01"),
    "prepared score": (WrongPreparedScore(3), r"score: prepare_score at sigma=None, values \(2, N\): differs"),
    "cdf": (WrongCDF(3), "density: the derivative of cdf at sigma=None, against the density: differs"),
    "cdf with a jump": (MassAtAPoint(3), "density: cdf at sigma=None: differs from the integral of the density by 0.0"),
    "bracket": (NarrowBracket(3), "density: bracket at sigma=None: the cdf at its ends differs from 0 and 1 by"),
    "quantiles": (WrongQuantiles(3), "density: projected_icdf of 0.0001 at sigma=None: its cdf differs by"),
    "range": (FarMode(3, (8,)), "score: score at sigma=None: points outwards at x=20, but the mass must lie within 20"),
    "noise": (IgnoresTheNoise(3), "noise: the score is the same at sigma=0.1 and 1.0; use sigma, or raise a ValueE"),
    "width of the noise": (TooMuchNoise(3), "noise: the variance at sigma=0.1 exceeds that at sigma=None by 0.02, not"),
    "mean of the noise": (
        NoiseThatMoves(3),
        "noise: the mean at sigma=0.1 differs from that at sigma=None by 0.1; noise",
    ),
    "loss weight": (NegativeWeight(3), "score: loss_weight at sigma=0.1: expected a positive number"),
    "broadcasting": (NoBroadcasting(3, 2), "broadcasting: "),
    "normalised": (FalseClaim(3, (8,)), "attributes: normalised is True; derive from NormalisedHead"),
}


@pytest.mark.parametrize("name", BROKEN_HEADS)
def test_a_broken_head_is_reported(name: str) -> None:
    head, message = BROKEN_HEADS[name]
    with pytest.raises(PartError, match=f"^{type(head).__name__}: {message}") as error:
        arcsm.check(head)
    assert "\n" not in str(error.value)


# Objectives and samplers with a mistake -----------------------------------------------------------------------------


def loss_for_each_row(model: Any, x: Tensor, condition: Any = None, generator: Any = None) -> Tensor:
    return model.score_alone(x).square().sum(-1)


def loss_without_gradient(model: Any, x: Tensor, condition: Any = None, generator: Any = None) -> Tensor:
    return objectives.csm(model, x, condition=condition, generator=generator).detach()


def loss_of_the_head_alone(model: Any, x: Tensor, condition: Any = None, generator: Any = None) -> Tensor:
    return model.head.project(model.context(x, condition).detach()).square().mean()


def loss_from_the_global_generator(model: Any, x: Tensor, condition: Any = None, generator: Any = None) -> Tensor:
    return objectives.csm(model, x, condition=condition)


def loss_that_changes_the_data(model: Any, x: Tensor, condition: Any = None, generator: Any = None) -> Tensor:
    return objectives.csm(model, x.mul_(1.0).zero_(), condition=condition, generator=generator)


def loss_of_no_model(model: Any, x: Tensor, condition: Any = None, generator: Any = None) -> Tensor:
    raise ValueError("head: needs a spline")


def sum_of_losses(model: Any, x: Tensor, condition: Any = None, generator: Any = None) -> Tensor:
    return len(x) * objectives.csm(model, x, condition=condition, generator=generator)


def values_of_another_shape(conditionals: Any, generator: Any = None) -> Tensor:
    return samplers.inverse_cdf(conditionals, generator)[:-1]


def values_from_the_global_generator(conditionals: Any, generator: Any = None) -> Tensor:
    return samplers.inverse_cdf(conditionals)


def constant_values(conditionals: Any, generator: Any = None) -> Tensor:
    return conditionals.projection.new_zeros(len(conditionals))


def values_that_add_up(conditionals: Any, generator: Any = None) -> Tensor:
    return samplers.normals(conditionals, generator).cumsum(0)


BROKEN_FUNCTIONS: dict[Callable[..., Tensor], str] = {
    loss_for_each_row: r"loss: ScoreHead with a noise ladder: loss: expected shape \(\), got \(16,\)",
    loss_without_gradient: "loss: ScoreHead with a noise ladder: the loss has no gradient",
    loss_of_the_head_alone: "loss: ScoreHead with a noise ladder: no gradient reaches the context",
    loss_from_the_global_generator: "loss: ScoreHead with a noise ladder: two generators with one seed give",
    loss_that_changes_the_data: "loss: ScoreHead with a noise ladder: x was changed in place",
    sum_of_losses: "loss: ScoreHead with a noise ladder: the loss of a batch is the sum of those of its halves",
    loss_of_no_model: "loss: rejects every model: .*needs a spline",
    values_of_another_shape: r"values: ScoreHead with a noise ladder: values: expected shape \(16,\), got \(15,\)",
    values_from_the_global_generator: "values: .*two generators with one seed give different values",
    values_that_add_up: "values: .*values of half of the batch .*: differs by",
    constant_values: "values: .*the values do not depend on the generator",
}


@pytest.mark.parametrize("function", BROKEN_FUNCTIONS, ids=lambda function: function.__name__)
def test_a_broken_objective_or_sampler_is_reported(function: Callable[..., Tensor]) -> None:
    with pytest.raises(PartError, match=f"^{function.__name__}: {BROKEN_FUNCTIONS[function]}"):
        arcsm.check(function)

"""Tests of a part against its contract, the same for the parts of this package and of others."""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Callable
from typing import Any, get_type_hints

import numpy as np
import torch
from torch import Tensor, nn

from arcsm import registry
from arcsm.contexts import MADE, Context
from arcsm.errors import PartError
from arcsm.heads import GaussianHead, Head, NormalisedHead, ScoreHead
from arcsm.heads.base import Sigma
from arcsm.model import AutoregressiveModel
from arcsm.noise import NoiseLadder

_TOLERANCE = 1e-9  # relative, in double precision
_REBUILT_TOLERANCE = 1e-6  # buffers may have been made in single precision
_MASS_TOLERANCE = 2e-3  # of a quadrature, which densities with jumps make inaccurate
_LOST_MASS = 1e-9  # beyond an end of a bracket

_MAX_JACOBIAN_ROWS = 32
_CELLS, _NODES = 1024, 8  # of the quadrature
_SIGMAS: tuple[float | None, ...] = (None, 0.1, 1.0)


def check(part: Context | Head | Callable[..., Tensor], *, generator: torch.Generator | None = None) -> None:
    """Test a context, a head, an objective or a sampler against its contract, as the package tests its own.

    - Context: shapes, causality (by its Jacobian), agreement of :meth:`~arcsm.Context.forward` with
      :meth:`~arcsm.Context.begin` and :meth:`~arcsm.Context.step`, conditions and missing values if it accepts them.
    - Head: broadcasting, :math:`\\partial_x s` against automatic differentiation, and for a normalised head the
      agreement of score, density, distribution function and bracket.
    - Both: gradients of all parameters, the round trip of ``config()``, the signature and the registration.
    - Objective: a finite scalar with gradients, reproducible from its generator.
    - Sampler: one finite value for each conditional, reproducible from its generator.

    The test runs on a copy in double precision with slightly perturbed weights, so that no zero weight hides a mistake.
    The part and torch's global state stay as they are. A small part, with 2 to about 50 features, takes a second.

    Arguments:
        part: An instance of a context or head, or the function itself.
        generator: Source of the test's weights and data, on the CPU. Default: one with a fixed seed.

    Raises:
        PartError: If a property does not hold. The message says which, where and by how much.
        ValueError: If ``part`` is none of the four kinds, or a class in place of an instance.

    Example:
        >>> check(MADE(features=3, context_features=2, hidden_features=(8,)))
    """
    if inspect.isclass(part):
        raise ValueError(f"part: expected an instance, got the class {part.__name__}; pass {part.__name__}(...)")
    kind = type(part) if isinstance(part, nn.Module) else part
    seam = registry.seam_of(kind)
    generator = _seeded(0) if generator is None else generator
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.default_generator.manual_seed(int(torch.randint(2**31, (), generator=generator)))
        for subject, examine in _CHECKS[seam].items():
            try:
                examine(_perturbed(part, generator) if isinstance(part, nn.Module) else part, generator)
            except PartError as error:
                raise PartError(f"{kind.__name__}: {subject}: {error}") from error.__cause__
            except Exception as error:
                raise PartError(f"{kind.__name__}: {subject}: {type(error).__name__}: {error}") from error


def _perturbed(part: nn.Module, generator: torch.Generator) -> nn.Module:
    """Return a copy in double precision on the CPU, in evaluation mode, with noise added to all weights."""
    part = copy.deepcopy(part).cpu().double().eval()
    part.zero_grad()
    with torch.no_grad():
        for parameter in filter(Tensor.is_floating_point, part.parameters()):
            parameter.add_(_normal(generator, *parameter.shape), alpha=0.1)
    return part


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise PartError(message)


def _require_shape(actual: object, shape: tuple[int, ...], what: str) -> None:
    if not isinstance(actual, Tensor):
        raise PartError(f"{what}: expected a tensor, got {type(actual).__name__}")
    _require(tuple(actual.shape) == shape, f"{what}: expected shape {shape}, got {tuple(actual.shape)}")
    _require(bool(actual.isfinite().all()), f"{what}: contains NaN or infinity")


def _require_equal(actual: Tensor, expected: Tensor, what: str, tolerance: float = _TOLERANCE) -> None:
    _require_shape(actual, tuple(expected.shape), what)
    if expected.numel():
        difference = float((actual - expected).detach().abs().max())
        largest = float(expected.detach().abs().max())
        _require(difference <= tolerance * max(1.0, largest), f"{what}: differs by {difference:.2g}")


# Contexts and heads -------------------------------------------------------------------------------------------------


def _check_constructor(part: Context | Head, _: torch.Generator) -> None:
    """Configurations are checked against the signature of the constructor, and the data set some of its arguments."""
    needed = {"context_features", part.data_argument} if isinstance(part, Context) else {"context_features"}
    parameters, hints = inspect.signature(type(part)).parameters, get_type_hints(type(part).__init__)
    for name in sorted(needed - parameters.keys()):
        raise PartError(f"the constructor has no argument {name}")
    for name in parameters:
        _require(name in hints, f"the constructor's argument {name} has no type annotation")


def _check_config(part: Context | Head, _: torch.Generator) -> None:
    try:
        config = json.loads(json.dumps(part.config(), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise PartError(f"config() is not JSON: {error}") from error
    try:
        rebuilt = type(part)(**config).double().eval()
    except Exception as error:
        raise PartError(f"the constructor does not accept config(): {error}") from error
    _require(
        json.loads(json.dumps(rebuilt.config())) == config,
        f"config() changes when the part is rebuilt: from {config} to {rebuilt.config()}",
    )
    own, other = part.state_dict(), rebuilt.state_dict()
    for name in sorted(own.keys() | other.keys()):
        _require(name in own and name in other, f"config() rebuilds other weights: {name} is in one part only")
        shapes = tuple(own[name].shape), tuple(other[name].shape)
        _require(shapes[0] == shapes[1], f"config() rebuilds other weights: {name} is {shapes[0]}, then {shapes[1]}")
    rebuilt.load_state_dict(own)
    outputs = [_outputs(module, _seeded(1)) for module in (part, rebuilt)]
    _require_equal(outputs[1], outputs[0], "outputs of the part rebuilt from config()", _REBUILT_TOLERANCE)


def _outputs(part: Context | Head, generator: torch.Generator) -> Tensor:
    if isinstance(part, Context):
        return part(_normal(generator, 4, part.features), _condition(part, (4,), generator))
    projection, outputs = _projection(part, generator), []
    for sigma in _allowed_sigmas(part):
        x = _values(part, projection, sigma, generator)
        outputs += list(part.projected_score_and_derivative(projection, x, sigma)) if part.has_score else []
        outputs += [part.projected_log_prob(projection, x, sigma)] if isinstance(part, NormalisedHead) else []
    return torch.stack(outputs)


def _check_gradients(part: Context | Head, generator: torch.Generator) -> None:
    if isinstance(part, Context) and part.features == 1:
        return  # its only context is a constant
    outputs = _outputs(part, generator)
    (outputs * _normal(generator, *outputs.shape)).sum().backward()
    for name, parameter in part.named_parameters():
        reached = parameter.grad is not None and bool((parameter.grad != 0.0).any())
        _require(reached or not parameter.requires_grad, f"none reaches the parameter {name}")


def _check_registration(part: object, _: torch.Generator) -> None:
    try:
        registry.check_registered(registry.seam_of(type(part) if isinstance(part, nn.Module) else part), part)
    except ValueError as error:
        raise PartError(str(error)) from error


# Contexts -----------------------------------------------------------------------------------------------------------


def _condition(context: Context, shape: tuple[int, ...], generator: torch.Generator) -> Tensor | None:
    if context.classes:
        return torch.randint(context.classes, shape, generator=generator)
    return _normal(generator, *shape, context.condition_features) if context.condition_features else None


def _check_attributes(context: Context, _: torch.Generator) -> None:
    for name in ("features", "context_features"):
        size = getattr(context, name, None)
        _require(isinstance(size, int) and size > 0, f"{name}: expected a positive integer, got {size!r}")
    features, order = context.features, getattr(context, "order", None)
    _require(
        isinstance(order, tuple) and sorted(order) == list(range(features)),
        f"order: expected a tuple, a permutation of range({features}), got {order!r:.80}",
    )
    _require(not (context.classes and context.condition_features), "classes and condition_features exclude each other")


def _check_batches(context: Context, generator: torch.Generator) -> None:
    features, size = context.features, context.context_features
    for shape in ((), (1,), (0,), (2, 3)):
        x, condition = _normal(generator, *shape, features), _condition(context, shape, generator)
        contexts = context(x, condition)
        _require_shape(contexts, (*shape, features, size), f"forward of x {tuple(x.shape)}")
        if condition is not None:
            condition = condition.reshape(-1, *condition.shape[len(shape) :])
        flat = context(x.reshape(-1, features), condition)
        _require_equal(contexts.reshape(flat.shape), flat, f"forward of x {tuple(x.shape)} and of the same rows, flat")


def _check_causality(context: Context, generator: torch.Generator) -> None:
    for training in (False, True):  # some layers mix rows, and some contexts take faster paths, in training only
        _check_jacobian(context.train(training), generator)


def _check_jacobian(context: Context, generator: torch.Generator) -> None:
    x = _normal(generator, 2, context.features).requires_grad_()
    contexts = context(x, _condition(context, (2,), generator))  # (2, D, C)
    weights = _normal(generator, context.context_features)
    if not contexts.requires_grad:
        return
    count = min(context.features, _MAX_JACOBIAN_ROWS)
    for position in torch.randperm(context.features, generator=generator)[:count].sort().values.tolist():
        d, later = context.order[position], list(context.order[position:])
        total = (contexts[0, d] * weights).sum()
        (influence,) = torch.autograd.grad(total, x, retain_graph=True, allow_unused=True)
        if influence is None:
            continue
        own, other = influence.abs()  # (D,) each
        _require(
            float(other.max()) <= _TOLERANCE,
            f"the contexts of a row depend on other rows (by {float(other.max()):.2g})",
        )
        worst = later[int(own[later].argmax())]
        _require(
            float(own[worst]) <= _TOLERANCE,
            f"the context of feature {d} depends on feature {worst}, which does not come before it in the order "
            f"(derivative {float(own[worst]):.2g})",
        )


def _check_steps(context: Context, generator: torch.Generator) -> None:
    for shape in ((3,), (), (2, 2)):
        x = _normal(generator, *shape, context.features)
        _require_same_steps(context, x, _condition(context, shape, generator))


def _require_same_steps(context: Context, x: Tensor, condition: Tensor | None) -> None:
    """Check :meth:`Context.step` against :meth:`Context.forward`, while a second pass goes on at the same time."""
    expected, shape = context(x, condition), x.shape[:-1]
    state, second = context.begin(shape, condition), context.begin(shape, condition)
    previous: Tensor | None = None
    for position, d in enumerate(context.order):
        contexts = context.step(state, previous)
        _require_equal(contexts, expected[..., d, :], f"step {position}, feature {d}, against forward")
        previous = x[..., d]
        context.step(second, None if position == 0 else torch.zeros_like(previous))


def _check_selection(context: Context, generator: torch.Generator) -> None:
    rows = torch.tensor([2, 0, 2, 1])
    x, condition = _normal(generator, 3, context.features), _condition(context, (3,), generator)
    expected = context(x[rows], None if condition is None else condition[rows])
    state = context.begin((3,), condition)
    middle = (context.features + 1) // 2
    previous: Tensor | None = None
    for position, d in enumerate(context.order):
        if position == middle:
            try:
                context.select(state, rows)
            except NotImplementedError:
                return
            assert previous is not None
            x, previous = x[rows], previous[rows]
        contexts = context.step(state, previous)
        if position >= middle:
            _require_equal(contexts, expected[:, d], f"step {position} after select, against forward")
        previous = x[:, d]


def _check_conditions(context: Context, generator: torch.Generator) -> None:
    shared, other = _condition(context, (), generator), _condition(context, (), generator)
    if shared is None or other is None:
        return
    if context.classes > 1:
        other = (shared + 1) % context.classes
    x = _normal(generator, 3, context.features)
    contexts = context(x, shared)
    expanded = context(x, shared.expand(3, *shared.shape))
    _require_equal(contexts, expanded, "a condition that all rows share, against one for each row")
    _require_same_steps(context, x, shared)
    reached = context.classes == 1 or not torch.allclose(contexts, context(x, other), 0.0, _TOLERANCE)
    _require(reached, "the contexts do not depend on the condition")


def _check_missing_values(context: Context, generator: torch.Generator) -> None:
    if not context.missing:
        return
    x = _normal(generator, 4, context.features)
    x = x.masked_fill(torch.rand(x.shape, generator=generator) < 0.4, torch.nan)
    condition = _condition(context, (4,), generator)
    _require_shape(context(x, condition), (*x.shape, context.context_features), "forward of rows with NaN")
    _require_same_steps(context, x, condition)


# Heads --------------------------------------------------------------------------------------------------------------


def _projection(head: Head, generator: torch.Generator, rows: int = 6) -> Tensor:
    return head.project(_normal(generator, rows, head.context_features))


def _values(head: Head, projection: Tensor, sigma: Sigma, generator: torch.Generator, count: int = 0) -> Tensor:
    """Return values ``(N,)``, or ``(N, count)``, where the conditionals ``(N, P)`` have mass."""
    shape = (len(projection), count) if count else (len(projection),)
    if not isinstance(head, NormalisedHead):
        return 2.0 * _normal(generator, *shape)
    low, high = (end.detach() for end in head.bracket(projection.unsqueeze(1) if count else projection, sigma))
    return low + (high - low) * (0.5 + 0.15 * _normal(generator, *shape)).clamp(0.01, 0.99)


def _allowed_sigmas(head: Head) -> list[float | None]:
    """Return the noise levels that a head does not reject with a ``ValueError``."""
    projection = head.project(torch.zeros(1, head.context_features, dtype=torch.float64))
    evaluate = head.projected_score_and_derivative
    if isinstance(head, NormalisedHead) and not head.has_score:
        evaluate = head.projected_log_prob  # type: ignore[assignment]
    allowed = []
    for sigma in _SIGMAS:
        try:
            evaluate(projection, projection.new_zeros(1), sigma)
        except ValueError:
            continue
        allowed.append(sigma)
    _require(bool(allowed), f"the head rejects every noise level of {_SIGMAS}")
    return allowed


def _check_head_attributes(head: Head, generator: torch.Generator) -> None:
    size = getattr(head, "context_features", None)
    _require(isinstance(size, int) and size > 0, f"context_features: expected a positive integer, got {size!r}")
    is_normalised = isinstance(head, NormalisedHead)
    _require(
        head.normalised == is_normalised, f"normalised is {head.normalised}; derive from NormalisedHead if it holds"
    )
    _require(head.has_score or is_normalised, "a head without a score must be a NormalisedHead")
    context = _normal(generator, 6, head.context_features).requires_grad_()
    projection = head.project(context)
    _require(projection.ndim == 2 and len(projection) == 6, f"project: expected (6, P), got {tuple(projection.shape)}")
    single = head.project(context[0])
    _require_equal(single, projection[0], "project of one context, against the same in a batch")


def _check_broadcasting(head: Head, generator: torch.Generator) -> None:
    projection = _projection(head, generator)
    functions: dict[str, Callable[[Tensor, Tensor, Sigma], Tensor]] = {}
    if head.has_score:
        functions["score"] = lambda p, x, sigma: head.projected_score_and_derivative(p, x, sigma)[0]
        functions["derivative"] = lambda p, x, sigma: head.projected_score_and_derivative(p, x, sigma)[1]
    if isinstance(head, NormalisedHead):
        functions |= {"log_prob": head.projected_log_prob, "cdf": head.projected_cdf}
    for sigma in _allowed_sigmas(head):
        x = _values(head, projection, sigma, generator, count=4)  # (N, K)
        for name, function in functions.items():
            columns = torch.stack([function(projection, column, sigma) for column in x.unbind(1)], 1)
            together = function(projection.unsqueeze(1), x, sigma)
            _require_equal(together, columns, f"{name} of projections (N, 1, P) and values (N, K) at sigma={sigma}")
            _require_equal(
                function(projection[0], x[0, 0], sigma), columns[0, 0], f"{name} of one value, sigma={sigma}"
            )
            if sigma is not None:
                level = torch.full_like(x[:, 0], sigma)
                _require_equal(
                    function(projection, x[:, 0], level), columns[:, 0], f"{name} with sigma as a tensor (N,)"
                )


def _check_score(head: Head, generator: torch.Generator) -> None:
    if not head.has_score:
        return
    projection = _projection(head, generator).detach()
    for sigma in _allowed_sigmas(head):
        x = _values(head, projection, sigma, generator, count=8).requires_grad_()
        s, ds = head.projected_score_and_derivative(projection.unsqueeze(1), x, sigma)
        at = f"at sigma={sigma}"
        _require_equal(ds, _derivative(s, x), f"ds {at}, against the derivative of s by autograd")
        if sigma is not None:
            weight = head.loss_weight(torch.tensor(sigma, dtype=torch.float64))
            _require(float(weight) > 0.0, f"loss_weight {at}: expected a positive number, got {float(weight)}")
        x = x.detach()
        _require_equal(head.projected_score(projection.unsqueeze(1), x, sigma), s, f"projected_score {at}")
        values = x.T[:2].contiguous()
        _require_equal(head.prepare_score(sigma)(projection, values), s.T[:2], f"prepare_score {at}, values (2, N)")
        prepared_both = head.prepare_score_and_derivative(sigma)(projection.unsqueeze(1), x)
        for name, value, expected in zip(("score", "derivative"), prepared_both, (s, ds), strict=True):
            _require_equal(value, expected, f"{name} of prepare_score_and_derivative {at}")


def _derivative(y: Tensor, x: Tensor) -> Tensor:
    """Return the elementwise derivative of ``y`` by ``x``."""
    derivative = torch.autograd.grad(y.sum(), x, retain_graph=True, allow_unused=True)[0] if y.requires_grad else None
    return torch.zeros_like(x) if derivative is None else derivative


def _check_density(head: Head, generator: torch.Generator) -> None:
    """Check that score, log density and distribution function are derivatives of one another."""
    if not isinstance(head, NormalisedHead):
        return
    projection = _projection(head, generator).detach().unsqueeze(1)  # (N, 1, P)
    for sigma in _allowed_sigmas(head):
        x = _values(head, projection[:, 0], sigma, generator, count=8).requires_grad_()
        log_prob, cdf = head.projected_log_prob(projection, x, sigma), head.projected_cdf(projection, x, sigma)
        if head.has_score:
            s = head.projected_score(projection, x, sigma)
            _require_equal(
                _derivative(log_prob, x), s, f"the derivative of log_prob at sigma={sigma}, against the score"
            )
        density = log_prob.detach().exp()
        _require_equal(_derivative(cdf, x), density, f"the derivative of cdf at sigma={sigma}, against the density")
        _check_masses(head, projection, sigma)


def _check_masses(head: NormalisedHead, projection: Tensor, sigma: Sigma) -> None:
    """Check the distribution function against a quadrature of the density between the ends of the bracket."""
    with torch.no_grad():
        low, high = head.bracket(projection, sigma)  # (N, 1)
        _require(bool((low < high).all()), f"bracket at sigma={sigma}: the ends are not in order")
        edges = low + (high - low) * torch.linspace(0.0, 1.0, _CELLS + 1, dtype=low.dtype)  # (N, cells + 1)
        nodes, weights = (torch.from_numpy(array) for array in np.polynomial.legendre.leggauss(_NODES))
        width = edges.diff(dim=1)
        x = edges[:, :-1, None] + width[..., None] * (0.5 + 0.5 * nodes)  # (N, cells, nodes)
        density = head.projected_log_prob(projection, x.flatten(1), sigma).exp().view_as(x)
        cdf = head.projected_cdf(projection, edges, sigma)
        mass = cdf[:, :1] + ((density * weights).sum(-1) * width / 2.0).cumsum(1)
    lost = max(float(cdf[:, 0].abs().max()), float((1.0 - cdf[:, -1]).abs().max()))
    _require(lost <= _LOST_MASS, f"bracket at sigma={sigma}: the cdf at its ends differs from 0 and 1 by {lost:.2g}")
    _require(float(cdf.diff(dim=1).min()) >= -_TOLERANCE, f"cdf at sigma={sigma}: decreases")
    difference = float((cdf[:, 1:] - mass).abs().max())
    _require(
        difference <= _MASS_TOLERANCE,
        f"cdf at sigma={sigma}: differs from the integral of the density by {difference:.2g}",
    )


# Objectives and samplers ----------------------------------------------------------------------------------------------


def _tiny_models() -> dict[str, AutoregressiveModel]:
    return {
        f"{type(head).__name__} {'without' if noise is None else 'with'} a noise ladder": AutoregressiveModel(
            MADE(3, 4, (8,)), head, noise
        ).double()
        for noise in (NoiseLadder(1.0, 0.1, 4), None)
        for head in (ScoreHead(4, (8,)), GaussianHead(4))
    }


def _check_each_model(examine: Callable[[AutoregressiveModel], None]) -> None:
    """Check a function with some models. It may reject some of them with a ``ValueError``, but not all."""
    models, errors = _tiny_models(), []
    for name, model in models.items():
        try:
            examine(model)
        except PartError as error:
            raise PartError(f"{name}: {error}") from error
        except ValueError as error:
            errors.append(f"{name}: {error}")
    _require(len(errors) < len(models), f"rejects every model: {'; '.join(errors)}")


def _check_objective(objective: Callable[..., Tensor], generator: torch.Generator) -> None:
    x = _normal(generator, 16, 3)
    before = x.clone()

    def examine(model: AutoregressiveModel) -> None:
        loss = objective(model, x, condition=None, generator=_seeded(1))
        _require_shape(loss, (), "loss")
        _require(loss.requires_grad, "the loss has no gradient")
        loss.backward()
        for name, part in (("context", model.context), ("head", model.head)):
            reached = any(p.grad is not None and bool((p.grad != 0.0).any()) for p in part.parameters())
            _require(reached, f"no gradient reaches the {name}")
        again = objective(model, x, condition=None, generator=_seeded(1))
        _require(bool(again == loss), f"two generators with one seed give {float(loss)} and {float(again)}")
        _require(torch.equal(x, before), "x was changed in place")

    _check_each_model(examine)


def _check_sampler(sampler: Callable[..., Tensor], generator: torch.Generator) -> None:
    rows = 7
    contexts = _normal(generator, rows, 4)

    def examine(model: AutoregressiveModel) -> None:
        def draw(seed: int) -> Tensor:
            projection = model.head.project(contexts).detach()
            return sampler(model.conditionals_of()(projection), _seeded(seed))

        x = draw(1)
        _require_shape(x, (rows,), "values")
        _require(torch.equal(draw(1), x), "two generators with one seed give different values")
        _require(not torch.equal(draw(2), x), "the values do not depend on the generator")

    _check_each_model(examine)


_Check = Callable[[Any, torch.Generator], None]
_CHECKS: dict[registry.Seam, dict[str, _Check]] = {
    "context": {
        "attributes": _check_attributes,
        "forward": _check_batches,
        "causality": _check_causality,
        "begin and step": _check_steps,
        "select": _check_selection,
        "condition": _check_conditions,
        "missing values": _check_missing_values,
        "gradients": _check_gradients,
        "constructor": _check_constructor,
        "config": _check_config,
        "registration": _check_registration,
    },
    "head": {
        "attributes": _check_head_attributes,
        "broadcasting": _check_broadcasting,
        "score": _check_score,
        "density": _check_density,
        "gradients": _check_gradients,
        "constructor": _check_constructor,
        "config": _check_config,
        "registration": _check_registration,
    },
    "objective": {"loss": _check_objective, "registration": _check_registration},
    "sampler": {"values": _check_sampler, "registration": _check_registration},
}

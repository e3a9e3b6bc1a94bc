"""Building blocks of the objectives: noisy batches, the weighted loss, and differentiable scores."""

from collections.abc import Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from arcsm._runtime.conditions import Condition
from arcsm._runtime.devices import constant
from arcsm._runtime.random import Source, normal_like, uniform_like
from arcsm.contexts.base import TrainingTerms
from arcsm.errors import readable
from arcsm.heads import CategoricalHead, Head, LocatedHead, NormalisedHead, ScoreHead
from arcsm.heads.located import Located
from arcsm.model import AutoregressiveModel
from arcsm.objectives.fused import fused_score_matching, transforms_allow_fusion
from arcsm.objectives.levels import LevelHeads

Weighting = Literal["natural", "sigma2"]


class NoisyBatch(NamedTuple):
    """The ``N`` conditionals of a batch, with the noise of paper, Appendix C.2; ``(N,)`` each, except the contexts."""

    context: Tensor  # (N, C), of x + sigma_L eps
    x: Tensor  # values, 0 if missing
    sigma: Tensor  # noise level of each value
    noise: Tensor  # eps'
    weight: Tensor  # 0 for missing values
    row: Tensor  # index of each value's row

    @property
    def x_tilde(self) -> Tensor:
        """The values with noise, x + sigma eps', whose scores are matched."""
        return self.x + self.sigma * self.noise


def standardised_rows(model: AutoregressiveModel, x: Tensor) -> Tensor:
    """Check rows ``(B, D)``, at least one, and return them in standardised units."""
    if isinstance(x, Tensor) and (x.ndim != 2 or not len(x)):
        raise ValueError(f"x: expected rows (B, {model.features}), at least one, got {tuple(x.shape)}")
    return model.standardise(x)


def noisy_batches(
    model: AutoregressiveModel, z: Tensor, condition: Condition | None, generator: Source
) -> Iterator[tuple[Head | LevelHeads, NoisyBatch]]:
    """Draw noise and noise levels for standardised data ``(B, D)``; yield each head with its conditionals.

    The heads of nominal columns come together.
    """
    assert model.noise is not None
    x_hat = z + model.noise.sigma_min * context_noise(model, normal_like(z, generator))
    noise = normal_like(z, generator)
    sigma = model.noise.draw(z, generator)
    terms = model.training_terms(x_hat, condition, generator)
    x, weight = weighted_values(model, terms, terms.select(z), z.new_ones(()))
    rows = torch.arange(len(z), device=z.device).unsqueeze(-1).expand_as(z)
    batch = NoisyBatch(terms.context, x, terms.select(sigma), terms.select(noise), weight, terms.select(rows))
    for head, its in joined_terms(model, terms, z):
        part = batch if its is None else NoisyBatch(*(part[its] for part in batch))
        if isinstance(head, LevelHeads):
            yield head, part
            continue
        inner, context, x, _ = in_units(head, part.context, part.x, learned=z.requires_grad)
        yield inner, part._replace(context=context, x=x)


def context_noise(model: AutoregressiveModel, noise: Tensor) -> Tensor:
    """Return noise ``(B, D)`` in the units in which contexts get it, without that of nominal columns."""
    discrete, scale = model.discrete, model.context.noise_scale
    noise = noise if isinstance(scale, float) else noise * scale.to(noise)
    return noise.masked_fill(constant(tuple(discrete), torch.bool, noise.device), 0.0) if any(discrete) else noise


def in_units(head: Head, context: Tensor, x: Tensor, learned: bool = True) -> tuple[Head, Tensor, Tensor, Tensor]:
    """Return the head, contexts and values in which noise has its units, and the log of the units, ``(N,)`` or 0.

    They are as they are, but for a :class:`LocatedHead` those of its inner head, whose locations and scales have
    gradients if they are ``learned``.
    """
    if not isinstance(head, LocatedHead):
        return head, context, x, x.new_zeros(())
    base = Located.split(context)
    if not learned:
        base = Located(base.inner.contiguous(), base.location.detach(), base.log_scale.detach())
    return head.inner, base.inner, base.to_units(x), base.log_scale


def terms_by_head(model: AutoregressiveModel, terms: TrainingTerms, z: Tensor) -> Iterator[tuple[Head, Tensor | None]]:
    """Yield each head with the indices of its terms ``(n,)`` for rows ``z (B, D)``; ``None`` for all terms."""
    parts = model.head.parts(model.features)
    if len(parts) == 1:
        yield parts[0].head, None
        return
    features = torch.arange(model.features, device=z.device)
    if terms.position is None:
        first = model.features * torch.arange(len(z), device=z.device)[:, None]
        yield from (
            (head, (first + constant(tuple(sorted(its)), torch.long, z.device)).flatten()) for head, its in parts
        )
        return
    column = terms.select(features.expand_as(z))
    for head, columns in parts:
        yield head, torch.isin(column, constant(tuple(columns), torch.long, z.device)).nonzero()[:, 0]


def joined_terms(
    model: AutoregressiveModel, terms: TrainingTerms, z: Tensor
) -> Iterator[tuple[Head | LevelHeads, Tensor | None]]:
    """Yield the same as :func:`terms_by_head`; on a processor, the heads of several nominal columns come together."""
    parts = model.head.parts(model.features)
    nominal = [number for number, (head, _) in enumerate(parts) if type(head) is CategoricalHead]
    if len(nominal) < 2 or z.device.type != "cpu":
        yield from terms_by_head(model, terms, z)
        return
    number_of = {d: number for number, (_, columns) in enumerate(parts) for d in columns}
    of_column = torch.tensor([number_of[d] for d in range(model.features)], device=z.device)
    number = terms.select(of_column.expand_as(z))
    for k, (head, _) in enumerate(parts):
        if k not in nominal:
            yield head, (number == k).nonzero()[:, 0]
    place = torch.full((len(parts),), -1, device=z.device)
    place[nominal] = torch.arange(len(nominal), device=z.device)
    its = (place[number] >= 0).nonzero()[:, 0]
    heads = [head for head, _ in parts if type(head) is CategoricalHead]
    yield LevelHeads(heads, place[number[its]]), its


def loss_weight(head: Head, sigma: Tensor, weighting: Weighting) -> Tensor:
    """Return the weight of losses at noise levels, :math:`\\omega(\\sigma)`."""
    if weighting not in ("natural", "sigma2"):
        raise ValueError(f'weighting: expected "natural" or "sigma2", got {weighting!r}')
    return head.loss_weight(sigma) if weighting == "natural" else sigma.square()


def negative_log_prob(head: Head | LevelHeads, context: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Return the weighted sum of the negative log probabilities of levels ``(N,)``, for a head without a score."""
    if isinstance(head, LevelHeads):
        return head.negative_log_prob(context, x, weight)
    if not isinstance(head, NormalisedHead) or not head.discrete:
        raise ValueError(f"head: a {type(head).__name__} has no score; train it with mle")
    return -(weight * head.log_prob(context, x)).sum()


def weighted_values(
    model: AutoregressiveModel, terms: TrainingTerms, x: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the values ``x (N,)`` of terms and the weights of their losses; missing values are 0, with weight 0."""
    weight = (weight if terms.weight is None else terms.weight * weight).expand_as(x)
    if not model.context.missing:
        return x, weight
    observed = ~x.isnan()
    return torch.where(observed, x, 0.0), weight * observed


def score_matching_loss(
    head: Head,
    context: Tensor,
    x: Tensor,
    sigma: Tensor | None,
    weight: Tensor,
    derivative: Tensor | float,
    linear: Tensor,
    compiled: bool | None,
) -> Tensor:
    """Return the sum over values of :math:`\\omega\\,(\\tfrac12 s^2 + a\\, \\partial_x s + b\\, s)`.

    Contexts are ``(N, C)``, values and noise levels ``(N,)``, and the coefficients ``weight``, ``derivative`` and
    ``linear`` are ``(N,)`` or ``()``. The second may be a number.
    """
    allowed = not x.requires_grad and transforms_allow_fusion()
    if allowed and isinstance(head, ScoreHead) and head.has_original_score:
        return fused_score_matching(head, context, x, sigma, weight, derivative, linear, compiled=compiled)
    s, ds = head.score_and_derivative(context, x, sigma)
    return (weight * (0.5 * s.square() + derivative * ds + linear * s)).sum()


def scores_at_smallest_noise(
    model: AutoregressiveModel, x: Tensor, condition: Condition | None, generator: Source, joint: bool | None
) -> tuple[Tensor, Tensor]:
    """Return :func:`differentiable_scores` of data plus the smallest noise; joint by default for a normalised head."""
    z = standardised_rows(model, x)
    check_no_missing(z)
    sigma = None if model.noise is None else model.noise.sigma_min
    if sigma is not None:
        z = z + sigma * normal_like(z, generator)
    return differentiable_scores(
        model, z, condition, model.head.normalised if joint is None else joint, sigma, generator
    )


def check_no_missing(x: Tensor) -> None:
    values = readable(x)
    if values is not None and bool(values.isnan().any()):
        raise ValueError("x: contains missing values; use csm, mle, or dsm without sigma, which accept them")


def differentiable_scores(
    model: AutoregressiveModel,
    z: Tensor,
    condition: Condition | None,
    joint: bool,
    sigma: float | None,
    generator: Source,
) -> tuple[Tensor, Tensor]:
    """Return scores ``(B, D)`` and the tensor ``z (B, D)`` by which they can be differentiated.

    The scores are :math:`\\nabla_z \\log q(z)` if ``joint``, which needs a normalised head, or the conditional ones.
    A context that has every order gets a random one for each row.
    """
    if sigma is not None:
        model.check_noise_units("training at one noise level; use csm, or dsm without sigma")
    with torch.enable_grad():
        z = z if z.requires_grad else z.detach().requires_grad_()
        order = uniform_like(z.detach(), generator).argsort(-1) if model.context.any_order else None
        projection = model.head.project(model.contexts(z, condition, order))
        if not joint:
            return model.head.projected_score(projection, z, sigma), z
        if not isinstance(model.head, NormalisedHead):
            raise ValueError(f"joint: the joint score needs a normalised head, got a {type(model.head).__name__}")
        if not model.head.has_score:
            model.head.projected_score(projection, z, sigma)  # raises the error that says why
        log_prob = model.head.projected_log_prob(projection, z, sigma).sum()
        return torch.autograd.grad(log_prob, z, create_graph=True)[0], z

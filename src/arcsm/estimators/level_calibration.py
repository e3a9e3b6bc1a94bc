"""Probabilities of levels: a share of their frequencies in training, and the calibration afterwards.

A softmax that must explain every row memorises those that break a rule. If a share of the frequencies explains them,
it learns the rule.

The training switches off random units (dropout). Without that, the probabilities of frequent levels are too high, and
the biases of a head are corrected until a frequent level has its share of the training rows, on average over sets of
known values.

The noise level smooths the density of numbers after the training; held-out rows do the same for levels. A network that
has seen each row many times is too sure of what it saw, above all of combinations that never or hardly occurred.

References:
    On Calibration of Modern Neural Networks (Guo, Pleiss, Sun and Weinberger, 2017), https://arxiv.org/abs/1706.04599
"""

import math
from collections.abc import Sequence
from functools import partial
from itertools import product

import torch
from torch import Tensor

from arcsm.contexts import AnyOrder
from arcsm.contexts.base import TrainingTerms
from arcsm.heads import CategoricalHead
from arcsm.model import AutoregressiveModel
from arcsm.queries.every_order import every_order

_SETS = 8  # of known values, for each held-out row
_MATCHED_ROWS, _MATCHED_SETS = 2_000, 2  # training rows, and sets for each, with which shares are compared
_LEAST = 1e-30  # probability
_UNCERTAIN_ROWS = 50  # of a level, whose share is corrected by half
_CORRECTIONS = 4  # of the biases, each of which leaves a small part of the difference
_SHARPNESS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_SHARES = (0.0, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15)
_SHARE_IN_TRAINING = 0.1  # of the prior; without it, six development tables lose 0.02 nats a row in the mean
_USUAL_SHARPNESS, _USUAL_SHARE = 1.0, 0.2  # scales of the priors of the log sharpness, normal, and of the share


def mix_levels(model: AutoregressiveModel, rows: Tensor) -> None:
    """Mix the probabilities of levels with a small share of their frequencies among the training rows ``(N, D)``.

    Columns that share a head have a share of the uniform distribution instead.
    """
    for head, places in model.head.parts(model.features):
        if isinstance(head, CategoricalHead):
            head.smooth(share=_SHARE_IN_TRAINING)
            if len(places) == 1:
                head.smooth(prior=0.5 + _level_counts(head, rows[:, places[0]]))


@torch.no_grad()
def calibrate_levels(model: AutoregressiveModel, rows: Tensor, held_out: Tensor, seed: int) -> None:
    """Correct the biases of each head of levels, and smooth its probabilities such that held-out rows are likely.

    Both kinds of rows are ``(N, D)``. The smoothing is the most probable one, given the held-out rows and a weak
    prior. The shares of the levels among the training ``rows`` are what a head of one column is smoothed towards.
    """
    z = model.standardise(held_out)
    generator = torch.Generator(z.device).manual_seed(seed)
    terms = [model.training_terms(z, None, generator) for _ in range(_SETS)]
    some = model.standardise(rows[:_MATCHED_ROWS])
    terms_of_training = [model.training_terms(some, None, generator) for _ in range(_MATCHED_SETS)]
    sizes, sizes_of_some = (_known_values(every_order(model), x) for x in (rows, some))
    columns = torch.arange(z.shape[1], device=z.device).expand_as(z)
    for head, places in model.head.parts(model.features):
        if not isinstance(head, CategoricalHead):
            continue
        of_head = [torch.isin(draw.select(columns), torch.tensor(places, device=z.device)) for draw in terms]
        draws = list(zip(terms, of_head, strict=True))
        contexts = torch.cat([draw.context[chosen] for draw, chosen in draws])
        levels = torch.cat([draw.select(z)[chosen] for draw, chosen in draws])
        weights = torch.cat([draw.weight[chosen] for draw, chosen in draws if draw.weight is not None])
        if len(places) == 1:
            known = rows[:, places[0]]
            counts = _level_counts(head, known)
            head.smooth(prior=0.5 + counts)
            of_column = ~some.isnan() & (columns[:1] == places[0])
            row_weights = _row_weights(terms_of_training, sizes_of_some, sizes, of_column)[~known.isnan()]
            shares = _level_counts(head, known, row_weights).clamp(min=_LEAST)
            _match_shares(head, counts, shares / shares.sum(), terms_of_training, of_column)
        head.smooth(*max(product(_SHARPNESS, _SHARES), key=partial(_log_posterior, head, contexts, levels, weights)))


def _log_posterior(
    head: CategoricalHead, contexts: Tensor, levels: Tensor, weights: Tensor, smoothing: tuple[float, float]
) -> float:
    """Return the log of the posterior density of a smoothing, up to a constant.

    The likelihood is that of the ``levels (n,)`` of held-out rows. Each row has several sets of known values; the mean
    over them counts, with their ``weights (n,)``.
    """
    sharpness, share = smoothing
    head.smooth(sharpness, share)
    log_prior = -0.5 * (math.log(sharpness) / _USUAL_SHARPNESS) ** 2 - share / _USUAL_SHARE
    return float(weights @ head.log_prob(contexts, levels)) / _SETS + log_prior


def _level_counts(head: CategoricalHead, x: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return how many values ``(N,)`` have each level, or the sums of their weights, ``(K,)``; NaN counts nowhere."""
    return torch.bincount(x[~x.isnan()].long(), weights, minlength=head.levels).to(head.prior)


def _known_values(context: AnyOrder, x: Tensor) -> Tensor:
    """Return how many values of each row ``(N, D)`` are known, where a dimension and its parent count as one."""
    return (~x.isnan() & (torch.tensor(context.parents, device=x.device) < 0)).sum(1)


def _row_weights(terms: Sequence[TrainingTerms], sizes: Tensor, sizes_of_all: Tensor, of_column: Tensor) -> Tensor:
    """Return the weights ``(N,)`` that training gives a value of a column in rows, by their numbers of known values.

    The terms of some rows, with numbers ``sizes``, estimate them; ``of_column (n, D)`` says where these have a value.
    """
    sums = torch.zeros(int(sizes_of_all.max()) + 1, dtype=torch.float64, device=sizes.device)
    by_term = sizes[:, None].expand_as(of_column)
    for draw in terms:
        own = draw.select(of_column)
        if draw.weight is not None:
            sums.index_add_(0, draw.select(by_term)[own], draw.weight[own].double())
    rows = torch.bincount(sizes[of_column.any(1)], minlength=len(sums))
    return (sums / rows.clamp(min=1))[sizes_of_all]


def _match_shares(
    head: CategoricalHead, counts: Tensor, shares: Tensor, terms: Sequence[TrainingTerms], of_column: Tensor
) -> None:
    """Correct the biases of a head until its mean probabilities are near the ``shares (K,)`` of the levels.

    The mean is over the terms of the head's column, as ``of_column (n, D)`` says. The shares of rare levels, by their
    ``counts (K,)``, are uncertain, and their probabilities are corrected less.
    """
    draws = [(draw, draw.select(of_column)) for draw in terms]
    contexts = torch.cat([draw.context[own] for draw, own in draws])
    weights = torch.cat([draw.weight[own] for draw, own in draws if draw.weight is not None])
    if not len(contexts):
        return

    def log_means() -> Tensor:
        return torch.log((weights @ head.project(contexts).exp() / weights.sum()).clamp(min=_LEAST))

    before, trusted = log_means(), counts / (counts + _UNCERTAIN_ROWS)
    wanted = torch.lerp(before, shares.log(), trusted)
    wanted = wanted - wanted.logsumexp(0)
    for _ in range(_CORRECTIONS):
        head.logits.bias.add_(wanted - log_means())

"""Calibration of the probabilities of levels.

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
from itertools import product

import torch
from torch import Tensor

from arcsm.contexts.base import TrainingTerms
from arcsm.heads import CategoricalHead
from arcsm.model import AutoregressiveModel

_SETS = 8  # of known values, for each held-out row
_MATCHED_ROWS, _MATCHED_SETS = 2_000, 2  # training rows, and sets for each, with which shares are compared
_LEAST = 1e-30  # probability
_UNCERTAIN_ROWS = 50  # of a level, whose share is corrected by half
_CORRECTIONS = 4  # of the biases, each of which leaves a small part of the difference
_SHARPNESS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.4)
_SHARES = (0.0, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15)


@torch.no_grad()
def calibrate_levels(model: AutoregressiveModel, rows: Tensor, held_out: Tensor, seed: int) -> None:
    """Correct the biases of each head of levels, and smooth its probabilities such that held-out rows are likely.

    Both kinds of rows are ``(N, D)``. Of the smoothings that are no worse than the best by more than a standard error,
    it is the one that changes least. The shares of the levels among the training ``rows`` are what a head of one column
    is smoothed towards.
    """
    z = model.standardise(held_out)
    generator = torch.Generator(z.device).manual_seed(seed)
    terms = [model.training_terms(z, None, generator) for _ in range(_SETS)]
    some = model.standardise(rows[:_MATCHED_ROWS])
    terms_of_training = [model.training_terms(some, None, generator) for _ in range(_MATCHED_SETS)]
    columns = torch.arange(z.shape[1], device=z.device).expand_as(z)
    row = torch.arange(len(z), device=z.device)[:, None].expand_as(z)
    for head, places in model.head.parts(model.features):
        if not isinstance(head, CategoricalHead):
            continue
        of_head = [torch.isin(draw.select(columns), torch.tensor(places, device=z.device)) for draw in terms]
        draws = list(zip(terms, of_head, strict=True))
        contexts = torch.cat([draw.context[chosen] for draw, chosen in draws])
        levels = torch.cat([draw.select(z)[chosen] for draw, chosen in draws])
        weights = torch.cat([draw.weight[chosen] for draw, chosen in draws if draw.weight is not None])
        rows_of_terms = torch.cat([draw.select(row)[chosen] for draw, chosen in draws])
        if len(places) == 1:
            known = rows[:, places[0]]
            counts = torch.bincount(known[~known.isnan()].long(), minlength=head.levels).to(z)
            head.smooth(prior=(counts + 0.5) / (counts + 0.5).sum())
            _match_shares(head, counts, terms_of_training, columns[:1].expand_as(some) == places[0])
        smoothings = sorted(product(_SHARPNESS, _SHARES), key=lambda pair: abs(math.log(pair[0])) + pair[1])
        scores = []
        for sharpness, share in smoothings:
            head.smooth(sharpness, share)
            log_probs = weights * head.log_prob(contexts, levels)
            scores.append(log_probs.new_zeros(len(z)).index_add(0, rows_of_terms, log_probs))
        by_row = torch.stack(scores)  # (S, N)
        worse = by_row[by_row.mean(1).argmax()] - by_row
        tolerated = worse.mean(1) <= worse.std(1, correction=0) / math.sqrt(len(z))
        head.smooth(*smoothings[int(tolerated.nonzero()[0])])


def _match_shares(head: CategoricalHead, counts: Tensor, terms: Sequence[TrainingTerms], of_head: Tensor) -> None:
    """Correct the biases of a head until its mean probabilities are near the shares of the levels, ``counts (K,)``.

    The mean is over the terms of rows that belong to the head; ``of_head (N, D)`` says which do. The shares of rare
    levels are uncertain, and their probabilities are corrected less.
    """
    chosen = [draw.select(of_head) for draw in terms]
    contexts = torch.cat([draw.context[own] for draw, own in zip(terms, chosen, strict=True)])
    weights = torch.cat([draw.weight[own] for draw, own in zip(terms, chosen, strict=True) if draw.weight is not None])
    if not len(contexts):
        return

    def log_means() -> Tensor:
        return torch.log((weights @ head.project(contexts).exp() / weights.sum()).clamp(min=_LEAST))

    before, trusted = log_means(), counts / (counts + _UNCERTAIN_ROWS)
    wanted = torch.lerp(before, head.prior.log(), trusted)
    wanted = wanted - wanted.logsumexp(0)
    for _ in range(_CORRECTIONS):
        head.logits.bias.add_(wanted - log_means())

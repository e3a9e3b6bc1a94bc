"""Calibration of the probabilities of levels by held-out rows.

The noise level smooths the density of numbers after the training; this is the same for levels. A network that has seen
each row many times is too sure of what it saw, above all of combinations that never or hardly occurred.

References:
    On Calibration of Modern Neural Networks (Guo, Pleiss, Sun and Weinberger, 2017), https://arxiv.org/abs/1706.04599
"""

import math
from itertools import product

import torch
from torch import Tensor

from arcsm.heads import CategoricalHead
from arcsm.model import AutoregressiveModel

_SETS = 8  # of known values, for each held-out row
_SHARPNESS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.4)
_SHARES = (0.0, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15)


@torch.no_grad()
def calibrate_levels(model: AutoregressiveModel, rows: Tensor, held_out: Tensor, seed: int) -> None:
    """Smooth the probabilities of each head of levels, such that held-out rows ``(N, D)`` become likely.

    Of the smoothings that are no worse than the best by more than a standard error, it is the one that changes least.
    The shares of the levels among the training ``rows`` are what a head of one column is smoothed towards.
    """
    z = model.standardise(held_out)
    generator = torch.Generator(z.device).manual_seed(seed)
    terms = [model.training_terms(z, None, generator) for _ in range(_SETS)]
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

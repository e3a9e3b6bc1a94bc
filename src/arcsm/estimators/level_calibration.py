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
_SHARPNESS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.4)
_SHARES = (0.0, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15)


@torch.no_grad()
def calibrate_levels(model: AutoregressiveModel, rows: Tensor, held_out: Tensor, seed: int) -> None:
    """Smooth the probabilities of each head of levels, such that held-out rows ``(N, D)`` become likely.

    Of the smoothings that are no worse than the best by more than a standard error, it is the one that changes least.
    The shares of the levels among the training ``rows`` are what a head of one column is smoothed towards.
    """
    z, generator = model.standardise(held_out), torch.Generator().manual_seed(seed)
    terms = [model.training_terms(z, None, generator) for _ in range(_SETS)]
    columns = torch.arange(z.shape[1]).expand_as(z)
    row = torch.arange(len(z))[:, None].expand_as(z)
    for head, its in model.head.parts(model.features):
        if not isinstance(head, CategoricalHead):
            continue
        chosen = [torch.isin(one.select(columns), torch.tensor(its)) for one in terms]
        pairs = list(zip(terms, chosen, strict=True))
        contexts = torch.cat([one.context[keep] for one, keep in pairs])
        levels = torch.cat([one.select(z)[keep] for one, keep in pairs])
        weights = torch.cat([one.weight[keep] for one, keep in pairs if one.weight is not None])
        of_row = torch.cat([one.select(row)[keep] for one, keep in pairs])
        if len(its) == 1:
            known = rows[:, its[0]]
            counts = torch.bincount(known[~known.isnan()].long(), minlength=head.levels).to(z)
            head.smooth(prior=(counts + 0.5) / (counts + 0.5).sum())
        smoothings = sorted(product(_SHARPNESS, _SHARES), key=lambda one: abs(math.log(one[0])) + one[1])
        scores = []
        for sharpness, share in smoothings:
            head.smooth(sharpness, share)
            found = weights * head.log_prob(contexts, levels)
            scores.append(torch.zeros(len(z)).to(found).index_add(0, of_row, found))
        by_row = torch.stack(scores)  # (S, N)
        worse = by_row[by_row.mean(1).argmax()] - by_row
        tolerated = worse.mean(1) <= worse.std(1) / math.sqrt(len(z))
        head.smooth(*smoothings[int(tolerated.nonzero()[0])])

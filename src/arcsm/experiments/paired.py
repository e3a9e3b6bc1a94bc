"""Methods compared on the same test rows, with several seeds each: means, and standard errors of what differs."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from arcsm.experiments.base import over_seeds
from arcsm.metrics import mean_and_standard_error

#: Of one method: for every seed a number for every row, in the order of the rows.
OfEach = Mapping[int, Sequence[float]]


def over_rows(nll_of_each: OfEach) -> dict[str, Any]:
    """Of one method: the mean, with its standard error over the rows, and what each seed has."""
    each = {seed: torch.tensor(rows) for seed, rows in nll_of_each.items()}
    mean, error = mean_and_standard_error(torch.stack([*each.values()]).mean(0))
    of_seeds = [float(rows.mean()) for rows in each.values()]
    return {
        "nll": mean,
        "standard_error": error,
        "nll_of_each": dict(nll_of_each),
        "sd_over_seeds": over_seeds(of_seeds)["sd"],
        "of_each_seed": of_seeds,
    }


def behind(
    methods: Mapping[str, OfEach], candidates: Collection[str] | None = None
) -> tuple[str, dict[str, list[float]], dict[str, list[float]]]:
    """The best of some methods (less is better), or of the candidates among them, and how far all are behind it.

    Any two are compared with the seeds that both have. The standard error of a difference is over the rows, which all
    share, and over the seeds; of one seed alone it does not know what another would change.

    Returns:
        The best, each method's mean difference to it with its standard error, and the difference with each seed.
    """
    each = {method: {seed: torch.tensor(rows) for seed, rows in found.items()} for method, found in methods.items()}

    def apart(method: str, other: str) -> Tensor:
        """Of two methods, ``(seeds, rows)``."""
        ours, theirs = each[method], each[other]
        return torch.stack([ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())])

    among = list(each if candidates is None else candidates)
    best = min(among, key=lambda method: max(float(apart(method, other).mean()) for other in among))
    return (
        best,
        {method: _difference(apart(method, best)) for method in each},
        {method: apart(method, best).mean(1).tolist() for method in each},
    )


def _difference(apart: Tensor) -> list[float]:
    """Mean of differences ``(seeds, rows)`` and its standard error, over rows and, where there are several, seeds."""
    mean, of_rows = mean_and_standard_error(apart.mean(0))
    of_seeds = mean_and_standard_error(apart.mean(1))[1]
    return [mean, math.hypot(of_rows or 0.0, of_seeds or 0.0)]

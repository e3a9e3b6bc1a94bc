"""Counting of evaluations."""

from __future__ import annotations

import pytest
import torch

from arcsm import NoiseLadder
from arcsm.conditionals.conditionals import Conditionals
from arcsm.metrics.evaluations import count_evaluations
from small_models import MakeModel, points


@pytest.mark.parametrize("kind", ["score", "mixture"])
def test_every_evaluation_counts_once(kind: str, make_model: MakeModel) -> None:
    model = make_model(kind, noise=NoiseLadder(1.0, 0.1, 4))
    with count_evaluations(model.head) as count, torch.no_grad():
        projection = model.head.project(model.context(model.standardise(points(model, 40)))[:, 0])
        conditionals = Conditionals(model.head, projection, model.path(), "quadrature")
        x = torch.zeros(40).to(projection)
        conditionals.score(x, 0.1)
        assert (count.scores, count.with_derivative) == (40, 0)
        conditionals.score_and_derivative(x, slice(None), 0.1)
        assert (count.scores, count.with_derivative) == (40, 40)

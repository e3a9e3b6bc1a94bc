"""A share of a batch draws the same random numbers as within the whole batch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from arcsm._runtime.process_group import even_slices
from arcsm._runtime.random import Share, Source, normal_like, rademacher_like, stratified_uniform_like, uniform_like


@pytest.mark.parametrize("draw", [normal_like, uniform_like, rademacher_like, stratified_uniform_like])
def test_shares_of_a_batch_draw_the_numbers_of_the_whole_batch(draw: Callable[[Tensor, Source], Tensor]) -> None:
    x = torch.zeros(11, 3, dtype=torch.float64)
    whole = draw(x, torch.Generator().manual_seed(3))
    parts = [draw(x[part], Share(torch.Generator().manual_seed(3), 11, part.start)) for part in even_slices(11, 4)]
    assert torch.allclose(torch.cat(parts), whole, rtol=0.0, atol=1e-12)
    assert len(whole.unique()) > 1


def test_numbers_that_torch_draws_for_shares_differ() -> None:
    drawn = [torch.rand(4, generator=Share(torch.Generator().manual_seed(seed), 8, first))
             for seed in (1, 2) for first in (0, 4)]  # fmt: skip
    assert len(torch.cat(drawn).unique()) == 16
    again = Share(torch.Generator().manual_seed(2), 8, 4)
    assert torch.equal(torch.rand(4, generator=again), drawn[-1])

from typing import Any

import pytest
import torch

from arcsm import CategoricalHead

CONTEXT = torch.tensor([[1.0, -2.0, 0.5], [0.3, 0.2, -1.0]])
PRIOR = torch.tensor([0.7, 0.2, 0.08, 0.02])


def head() -> CategoricalHead:
    torch.manual_seed(0)
    head = CategoricalHead(3, 4)
    torch.nn.init.normal_(head.logits.weight)
    return head


def test_smoothed_probabilities_lie_between_those_of_the_logits_and_the_prior() -> None:
    smoothed, p = head(), head().project(CONTEXT).exp()
    for sharpness, share in ((1.0, 0.0), (0.4, 0.0), (1.0, 0.3), (1.5, 0.1)):
        smoothed.smooth(sharpness, share, PRIOR)
        drawn = p**sharpness * PRIOR ** (1.0 - sharpness)
        expected = (1.0 - share) * drawn / drawn.sum(-1, keepdim=True) + share * PRIOR
        torch.testing.assert_close(smoothed.project(CONTEXT).exp(), expected)


def test_the_prior_is_all_that_is_left_of_smooth_levels() -> None:
    smoothed = head()
    smoothed.smooth(1e-6, prior=10.0 * PRIOR)
    torch.testing.assert_close(smoothed.project(CONTEXT).exp(), PRIOR.expand(2, -1), rtol=1e-4, atol=0.0)


@pytest.mark.parametrize(
    "arguments",
    [{"sharpness": 0.0}, {"share": 1.0}, {"share": -0.1}, {"prior": torch.ones(3)}, {"prior": torch.zeros(4)}],
)
def test_impossible_smoothings_are_rejected(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(arguments))}: "):
        head().smooth(**arguments)

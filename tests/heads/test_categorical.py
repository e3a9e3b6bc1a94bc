from typing import Any

import pytest
import torch

import arcsm
from arcsm import CategoricalHead
from arcsm.fourier_features import cosine_basis

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


def test_weights_of_ordered_levels_are_cosines_along_them() -> None:
    shape = cosine_basis(6) * (1.0 + torch.arange(6.0)).square()
    products = shape.T @ shape  # cosines are orthogonal, so any weights can be learned
    torch.testing.assert_close(products, torch.diag(products.diagonal()), atol=1e-5, rtol=0.0)
    torch.testing.assert_close(products.diagonal(), torch.tensor([6.0, 3.0, 3.0, 3.0, 3.0, 3.0]))
    ordered, plain = CategoricalHead(3, 6, ordered=True), CategoricalHead(3, 6)
    with torch.no_grad():
        plain.logits.weight.copy_(cosine_basis(6) @ ordered.logits.weight)
        plain.logits.bias.copy_(ordered.logits.bias.normal_())
    torch.testing.assert_close(ordered.project(CONTEXT), plain.project(CONTEXT))
    assert "basis" not in ordered.state_dict()
    arcsm.check(ordered)


@pytest.mark.parametrize(
    "arguments",
    [{"sharpness": 0.0}, {"share": 1.0}, {"prior": torch.ones(3)}, {"prior": torch.zeros(4)}],
)
def test_impossible_smoothings_are_rejected(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(arguments))}: "):
        head().smooth(**arguments)


@pytest.mark.parametrize(("ordered", "objective"), [(False, "csm"), (True, "mle")])
def test_levels_train_in_mixed_precision(ordered: bool, objective: str) -> None:
    numeric = arcsm.ScoreHead(4, (8,)) if objective == "csm" else arcsm.GaussianHead(4)
    parts = arcsm.MixedHead([CategoricalHead(4, 3, ordered), numeric], (0, 1))
    noise = arcsm.NoiseLadder(2.0, 0.1, 5) if objective == "csm" else None
    torch.manual_seed(0)
    model = arcsm.AutoregressiveModel(arcsm.AnyOrder(2, 4, (16,), 16, levels=(3, 0)), parts, noise)
    levels = torch.randint(3, (300, 1)).float()
    x = torch.cat([levels, 2.0 * levels + torch.randn(300, 1)], 1)
    config = arcsm.TrainConfig(
        steps=20, objective=objective, precision="bf16-mixed", device="cpu", batch_size=128, validate_every=10
    )
    losses = [row["valid"] for row in arcsm.fit(model, x, x, config).history]
    assert losses[-1] < losses[0]
    with torch.autocast("cpu", torch.bfloat16):
        in_mixed = model.log_prob(x[:20])
    torch.testing.assert_close(in_mixed, model.log_prob(x[:20]), atol=0.2, rtol=0.0)

"""Maximum likelihood."""

import pytest
import torch

from arcsm import AnyOrder, AutoregressiveModel, CategoricalHead, MixedHead, NoiseLadder, ScoreHead, objectives
from small_objectives import HEADS, build

pytestmark = pytest.mark.usefixtures("double_precision")


@pytest.mark.parametrize("kind", HEADS)
def test_mle_is_the_negative_log_likelihood_and_has_its_gradient(kind: str) -> None:
    model = build(HEADS[kind]())
    model.set_standardisation([0.5, -1.0, 0.0], [2.0, 0.5, 1.0])
    x = torch.randn(5, 3)
    options = {"tol": 1e-9, "max_evaluations": 512}
    loss = objectives.mle(model, x, **options)
    assert torch.allclose(loss, -model.log_prob(x, **options).mean(), atol=1e-8)
    parameter = next(iter(model.head.parameters()))
    analytic = torch.autograd.grad(loss, parameter)[0]
    direction = torch.randn_like(parameter)
    with torch.no_grad():
        parameter.add_(1e-5 * direction)
        up = objectives.mle(model, x, **options)
        parameter.sub_(2e-5 * direction)
        down = objectives.mle(model, x, **options)
        parameter.add_(1e-5 * direction)
    assert float((up - down) / 2e-5) == pytest.approx(float((analytic * direction).sum()), rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("noise", [None, NoiseLadder(1.0, 0.1, 3)])
def test_a_batch_without_values_of_a_score_head_has_the_loss_of_the_rest(noise: NoiseLadder | None) -> None:
    torch.manual_seed(0)
    context = AnyOrder(3, 4, (8,), 8, levels=(0, 0, 2), targets=(2,))
    model = AutoregressiveModel(context, MixedHead([ScoreHead(4, (8,)), CategoricalHead(4, 2)], (0, 0, 1)), noise)
    x = torch.randn(64, 3)
    x[:, 2] = (x[:, 0] > 0.0).float()
    loss = objectives.mle(model, x, generator=torch.Generator().manual_seed(0))
    loss.backward()
    assert 0.3 < loss.item() < 1.2  # about log 2
    assert model.head.heads[1].logits.weight.grad is not None  # type: ignore[union-attr, index]

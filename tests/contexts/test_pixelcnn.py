"""PixelCNN++: which values a context sees, the incremental pass, and training."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from arcsm import AutoregressiveModel, NoiseLadder, PixelCNNPP, ScoreHead, fit
from arcsm.experiments import image_models
from arcsm.training import density
from arcsm.training.config import TrainConfig
from arcsm.training.run_config import ModelConfig, load_config
from incremental_passes import incremental_contexts


def network(shape: tuple[int, int, int], seed: int = 0, **options: Any) -> PixelCNNPP:
    """Return a small network in double precision, with random weights, in evaluation mode."""
    torch.manual_seed(seed)
    made = PixelCNNPP(shape, **{"context_features": 3, "nr_filters": 4, "nr_resnet": 1, **options}).double().eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 1, 5), (1, 6, 1), (2, 5, 3)])
def test_incremental_equals_parallel_for_odd_sizes_and_deep_networks(shape: tuple[int, int, int]) -> None:
    made = network(shape, nr_resnet=2)
    x = torch.randn(2, made.features, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(incremental_contexts(made, x), made(x), rtol=0.0, atol=1e-12)


def test_a_context_depends_on_all_values_before_it_and_no_other() -> None:
    made = network((2, 5, 4), nr_resnet=2)
    x = torch.randn(made.features, dtype=torch.float64)
    weights = torch.randn(made.context_features, dtype=torch.float64)  # no context feature cancels another
    jacobian = torch.autograd.functional.jacobian(lambda v: made(v) @ weights, x).abs()  # (D, D)
    position = torch.argsort(torch.tensor(made.order))
    before = position[None, :] < position[:, None]
    assert bool((jacobian[~before] == 0.0).all())
    assert bool((jacobian[before] > 0.0).all())


def test_the_order_is_by_rows_pixels_and_channels() -> None:
    channels, height, width = 2, 2, 3
    made = network((channels, height, width))
    index = torch.arange(channels * height * width).view(channels, height, width)
    expected = [int(index[k, i, j]) for i in range(height) for j in range(width) for k in range(channels)]
    assert list(made.order) == expected


def test_dropout_is_active_in_training_only() -> None:
    made = network((1, 6, 6), dropout=0.5)
    x = torch.randn(1, 36, dtype=torch.float64)
    with torch.no_grad():
        assert torch.equal(made(x), made(x))
        made.train()
        assert not torch.equal(made(x), made(x))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_shape": (8, 8)}, "image_shape"),
        ({"image_shape": (1, 1 << 13, 1 << 13)}, "image_shape"),
        ({"image_shape": (1, 8, 8), "nr_filters": 0}, "nr_filters=0"),
        ({"image_shape": (1, 8, 8), "dropout": 1.0}, "dropout"),
    ],
)
def test_impossible_arguments_are_rejected_by_name(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PixelCNNPP(**arguments)


def test_a_resumed_run_with_dropout_reaches_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))

    def train(folder: str, outside: int, stop: int | None = None) -> Tensor:
        torch.manual_seed(0)
        context = PixelCNNPP((1, 2, 2), 4, nr_filters=4, nr_resnet=1, dropout=0.5)
        model = AutoregressiveModel(context, ScoreHead(4, (8,)), NoiseLadder(1.0, 0.1, 5))
        torch.manual_seed(outside)  # another state of the global generator each time
        config = TrainConfig(steps=4, batch_size=8, checkpoint_seconds=0.0, device="cpu")
        advance = density.DensityTask.advance

        def killed(trainer: density.DensityTask) -> float:
            if trainer.step == stop:
                raise KeyboardInterrupt
            return advance(trainer)

        with monkeypatch.context() as patch:
            patch.setattr(density.DensityTask, "advance", killed)
            if stop is None:
                fit(model, x, config=config, run=tmp_path / folder, resume=True)
            else:
                with pytest.raises(KeyboardInterrupt):
                    fit(model, x, config=config, run=tmp_path / folder)
        assert torch.initial_seed() == outside
        return torch.cat([p.flatten() for p in model.parameters()])

    whole = train("whole", 1)
    train("killed", 2, stop=2)
    assert torch.equal(train("killed", 3), whole)


def test_a_configuration_takes_the_image_shape_from_the_data() -> None:
    config = ModelConfig(
        context={"kind": "PixelCNNPP", "nr_filters": 4, "nr_resnet": 1, "context_features": 3},
        head={"kind": "ScoreHead", "hidden_features": [4]},
    )
    built = config.build(12, {"image_shape": [3, 2, 2]})
    assert isinstance(built.context, PixelCNNPP)
    assert built.context.image_shape == (3, 2, 2)
    with pytest.raises(ValueError, match="needs images"):
        config.build(12)
    with pytest.raises(ValueError, match="image_shape: unknown key"):
        ModelConfig(context={"kind": "PixelCNNPP", "image_shape": [1, 2, 2]}, head={"kind": "ScoreHead"})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mnist-pixelcnn", "cifar-pixelcnn"])
def test_the_network_of_the_paper_builds_steps_and_samples(name: str) -> None:
    shape = (1, 28, 28) if name.startswith("mnist") else (3, 32, 32)
    config = load_config(name, image_models.LIKE_PAPER_PIXELCNN)
    model = config.model.build(math.prod(shape), {"image_shape": list(shape), "levels": 256})
    assert sum(p.numel() for p in model.parameters()) > 40_000_000
    weights = model.context.state_dict()
    before = {key: value.clone() for key, value in weights.items()}
    x = 2.0 * torch.rand(2, model.features, generator=torch.Generator().manual_seed(0)) - 1.0
    changes = {"steps": 1, "epochs": None, "batch_size": 2, "warmup_steps": 0, "ema": 0.0, "device": "cpu"}
    result = fit(model, x, x, config.train.model_copy(update=changes))
    assert math.isfinite(result.best_loss)
    assert any(not torch.equal(before[key], value) for key, value in model.context.state_dict().items())
    drawn = model.sample(1, generator=torch.Generator().manual_seed(1), steps=2)
    assert drawn.shape == (1, model.features)
    assert bool(drawn.isfinite().all())

"""PixelCNN++: what a context sees, and the incremental pass."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from arcsm import AutoregressiveModel, NoiseLadder, PixelCNNPP, ScoreHead, fit, load, objectives, save
from arcsm.experiments import image_models
from arcsm.training import density
from arcsm.training.config import TrainConfig
from arcsm.training.run_config import ModelConfig, load_config


def network(shape: tuple[int, int, int], seed: int = 0, **options: Any) -> PixelCNNPP:
    """In double precision, small, without dropout."""
    torch.manual_seed(seed)
    made = PixelCNNPP(shape, **{"context_features": 3, "nr_filters": 4, "nr_resnet": 1, **options}).double().eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made


def condition_of(made: PixelCNNPP, rows: int) -> Tensor | None:
    if made.classes:
        return torch.arange(rows) % made.classes
    return torch.randn(rows, made.condition_features, dtype=torch.float64) if made.condition_features else None


def step_by_step(made: PixelCNNPP, x: Tensor, condition: Tensor | None) -> Tensor:
    state = made.begin(x.shape[:-1], condition)
    contexts = x.new_empty(*x.shape, made.context_features)
    previous = None
    for d in made.order:
        contexts[..., d, :] = made.step(state, previous)
        previous = x[..., d]
    return contexts


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)),
    resnets=st.integers(1, 2),
    condition=st.sampled_from(({}, {"classes": 3}, {"condition_features": 2})),
    seed=st.integers(0, 1000),
)
def test_incremental_equals_parallel(
    shape: tuple[int, int, int], resnets: int, condition: dict[str, int], seed: int
) -> None:
    made = network(shape, seed, nr_resnet=resnets, **condition)
    x = torch.randn(2, made.features, dtype=torch.float64)
    given_ = condition_of(made, 2)
    with torch.no_grad():
        torch.testing.assert_close(step_by_step(made, x, given_), made(x, given_), rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("shape", [(1, 5, 7), (3, 8, 8), (2, 9, 6)])
def test_a_context_sees_all_values_before_it_and_no_other(shape: tuple[int, int, int]) -> None:
    made = network(shape, nr_resnet=2)
    x = torch.randn(made.features, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda v: made(v[None])[0], x).abs().sum(1)  # (D, D)
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


def test_single_precision_agrees_to_its_rounding_on_a_colour_image() -> None:
    torch.manual_seed(0)
    made = PixelCNNPP((3, 16, 16), context_features=8, nr_filters=16, nr_resnet=2).eval()
    x = torch.randn(3, made.features)
    with torch.no_grad():
        torch.testing.assert_close(step_by_step(made, x, None), made(x), rtol=0.0, atol=1e-5)


def test_every_weight_learns_something() -> None:
    made = network((2, 8, 8), nr_resnet=2, classes=2)
    made(torch.randn(4, made.features, dtype=torch.float64), torch.tensor([0, 1, 0, 1])).square().sum().backward()
    silent = [name for name, p in made.named_parameters() if p.grad is None or not bool((p.grad != 0.0).any())]
    assert silent == []


def test_a_class_shifts_every_context() -> None:
    made = network((1, 4, 4), classes=2)
    x = torch.randn(1, 16, dtype=torch.float64).expand(2, 16)
    with torch.no_grad():
        first, second = made(x, torch.tensor([0, 1]))
    assert bool(((first - second).abs().amax(-1) > 0.0).all())


def test_dropout_acts_in_training_alone() -> None:
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
        ({"image_shape": (0, 8, 8)}, "image_shape"),
        ({"image_shape": (1, 8, 1 << 20)}, "image_shape"),
        ({"image_shape": (1, 1 << 13, 1 << 13)}, "image_shape"),
        ({"image_shape": (1, 8, 8), "nr_filters": 0}, "nr_filters=0"),
        ({"image_shape": (1, 8, 8), "dropout": 1.0}, "dropout"),
        ({"image_shape": (1, 8, 8), "classes": 2, "condition_features": 2}, "not both"),
    ],
)
def test_impossible_arguments_are_refused_by_name(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PixelCNNPP(**arguments)


def test_wrong_shapes_and_conditions_are_refused() -> None:
    made = network((1, 2, 3), classes=2)
    x = torch.zeros(2, 6, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"x: expected shape \(\*, 6\)"):
        made(torch.zeros(2, 5))
    with pytest.raises(ValueError, match="needs labels below 2"):
        made(x)
    with pytest.raises(ValueError, match="from 0 to 1"):
        made(x, torch.tensor([0, 2]))
    with pytest.raises(ValueError, match="from 0 to 1"):
        made(x, torch.tensor([True, False]))
    with pytest.raises(ValueError, match="one for all"):
        made(x, torch.tensor([0, 1, 0]))
    assert torch.equal(made(x, torch.tensor([0, 1], dtype=torch.uint8)), made(x, torch.tensor([0, 1])))
    assert torch.equal(made(x, torch.tensor(1)), made(x, torch.tensor([1, 1])))
    with pytest.raises(ValueError, match="has none"):
        network((1, 2, 3))(x, torch.tensor([0, 1]))
    state = made.begin((2,), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="expected None"):
        made.step(state, x[:, 0])
    for d in range(6):
        made.step(state, None if d == 0 else x[:, d - 1])
    with pytest.raises(ValueError, match="all 6 features"):
        made.step(state, x[:, 5])


def test_a_model_trains_samples_and_is_kept(tmp_path: Any) -> None:
    torch.manual_seed(0)
    model = AutoregressiveModel(
        PixelCNNPP((1, 4, 4), 4, nr_filters=8, nr_resnet=1), ScoreHead(4, (16,)), NoiseLadder(1.0, 0.1, 5)
    )
    x = torch.randn(256, 1) + 0.3 * torch.randn(256, 16)  # all pixels alike
    test = torch.randn(64, 1) + 0.3 * torch.randn(64, 16)
    before = objectives.csm(model, test, generator=torch.Generator().manual_seed(0)).item()
    fit(model, x, config=TrainConfig(steps=60, batch_size=64, learning_rate=5e-3, ema=0.9, device="cpu"))
    assert objectives.csm(model, test, generator=torch.Generator().manual_seed(0)).item() < before
    save(model, tmp_path / "model.safetensors")
    kept = load(tmp_path / "model.safetensors")
    torch.testing.assert_close(kept.log_prob(test[:2]), model.log_prob(test[:2]), rtol=0.0, atol=1e-5)
    drawn = [m.sample(3, generator=torch.Generator().manual_seed(1)) for m in (model, kept)]
    torch.testing.assert_close(*drawn, rtol=0.0, atol=1e-5)


def test_a_run_with_dropout_goes_on_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(32, 16, generator=torch.Generator().manual_seed(0))

    def train(folder: str, outside: int, stop: int | None = None) -> Tensor:
        torch.manual_seed(0)
        context = PixelCNNPP((1, 4, 4), 4, nr_filters=8, nr_resnet=1, dropout=0.5)
        model = AutoregressiveModel(context, ScoreHead(4, (16,)), NoiseLadder(1.0, 0.1, 5))
        torch.manual_seed(outside)  # torch's own generator stands elsewhere each time
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


def test_dropout_differs_from_step_to_step() -> None:
    model = AutoregressiveModel(
        PixelCNNPP((1, 4, 4), 4, nr_filters=8, nr_resnet=1, dropout=0.5), ScoreHead(4, (16,)), NoiseLadder(1.0, 0.1, 5)
    )
    x = torch.randn(8, 16)
    trainer = density.DensityTask(model, x, None, TrainConfig(steps=4, batch_size=8, device="cpu"))
    found = []
    for trainer.step in (0, 0, 1):
        with trainer.seeded_dropout(0):
            found.append(model.context(x).detach())
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_a_configuration_takes_the_shape_from_the_data() -> None:
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
@pytest.mark.parametrize("name", ["mnist-pixelcnn", "cifar-pixelcnn", "faces-pixelcnn"])
def test_the_network_of_the_paper_builds_steps_and_samples(name: str) -> None:
    shape = (1, 28, 28) if name.startswith("mnist") else (3, 32, 32)
    config = load_config(name, image_models.PAPER_PIXELCNN)
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

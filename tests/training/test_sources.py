"""Training data in all forms: tensors, arrays, data sets and loaders, with conditions or without."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler, TensorDataset

from arcsm import MADE, AutoregressiveModel, FitResult, NoiseLadder, ScoreHead, TrainConfig, fit
from arcsm._runtime import process_group
from arcsm._runtime.conditions import tensors_of
from arcsm._runtime.process_group import Group
from arcsm.data import RowStream, blocks_of
from arcsm.errors import TrainingWarning
from small_runs import before_step, correlated_rows, have_same_weights, interrupt, short_config, small_density

X, HELD_OUT = correlated_rows(), correlated_rows(90, seed=5)
LABELS = torch.arange(300) % 3
VECTORS = torch.randn(300, 2, generator=torch.Generator().manual_seed(2))
KINDS: dict[str, tuple[dict[str, int], Any]] = {
    "none": ({}, None),
    "labels": ({"classes": 3}, LABELS),
    "vectors": ({"condition_features": 2}, VECTORS),
    "both": ({"classes": 3, "condition_features": 2}, {"classes": LABELS, "vector": VECTORS}),
}


class Pairs(Dataset[Any]):
    """Rows, with their conditions if there are any."""

    def __init__(self, kind: str) -> None:
        self.condition = KINDS[kind][1]

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, index: int) -> Any:
        if isinstance(self.condition, dict):
            return X[index], {name: part[index] for name, part in self.condition.items()}
        return X[index] if self.condition is None else (X[index], self.condition[index])


def conditional(kind: str) -> AutoregressiveModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoregressiveModel(MADE(2, 4, (16,), **KINDS[kind][0]), ScoreHead(4, (16,)), NoiseLadder(1.0, 0.1, 5))


def batchless(**changes: Any) -> TrainConfig:
    """Return a short configuration that leaves the batch size to a loader."""
    return TrainConfig(**{"steps": 20, "device": "cpu", "validate_every": 10, **changes})


@pytest.mark.parametrize("kind", KINDS)
def test_a_data_set_or_an_array_trains_like_its_tensors(kind: str) -> None:
    models, condition = [conditional(kind) for _ in range(3)], KINDS[kind][1]
    arrays = {name: part.numpy() for name, part in condition.items()} if kind == "both" else condition
    fit(models[0], X, config=short_config(), condition_train=condition)
    fit(models[1], Pairs(kind), config=short_config())
    fit(models[2], X.numpy(), config=short_config(), condition_train=np.asarray(arrays) if kind == "labels" else arrays)
    assert have_same_weights(models[0], models[1])
    assert have_same_weights(models[0], models[2])


@pytest.mark.parametrize("kind", ["none", "both"])
def test_batches_of_a_loader_are_its_own(kind: str) -> None:
    model, sizes = conditional(kind), []
    loader = DataLoader(Pairs(kind), batch_size=128)

    def spy(model: AutoregressiveModel, x: Tensor, condition: Any, generator: Any) -> Tensor:
        sizes.append(len(x))
        if len(sizes) in (1, 4):  # the first batch of a pass
            torch.testing.assert_close(x, X[:128])
            for found, given in zip(tensors_of(condition), tensors_of(KINDS[kind][1]), strict=True):
                assert torch.equal(found, given[:128])
        return model.score(x, condition=condition)[0].square().sum() / len(x)

    result = fit(model, loader, loader, batchless(epochs=2, validation_rows=100), objective=spy)
    assert sizes[:6] == [128, 128, 44, 128, 128, 44]
    assert sizes[6:] == [100]  # held out
    assert result.steps == 6


def test_an_iterator_has_one_pass() -> None:
    model = small_density()
    with pytest.warns(TrainingWarning, match="x_train ended after 10 of 20 steps"):
        result = fit(model, (batch for batch in X.split(30)), HELD_OUT, batchless())
    assert (result.steps, result.history[-1]["step"]) == (10, 10)
    torch.testing.assert_close(model.shift, X.mean(0))  # the rows of the units are not lost for the training
    with warnings.catch_warnings():
        warnings.simplefilter("error", TrainingWarning)
        assert fit(small_density(), iter(X.split(30)), config=batchless(steps=7)).steps == 7


LOADERS: dict[str, Callable[[], Any]] = {
    "shuffling loader": lambda: DataLoader(TensorDataset(X), 32, shuffle=True),
    "sampler with a generator": lambda: DataLoader(
        TensorDataset(X), 32, sampler=RandomSampler(X, generator=torch.Generator().manual_seed(3))
    ),
    "iterator": lambda: iter(X.repeat(3, 1).split(30)),
}


@pytest.mark.parametrize("name", LOADERS)
def test_a_resumed_run_reads_on_where_it_stopped(name: str, tmp_path: Path) -> None:
    def train(**options: Any) -> tuple[AutoregressiveModel, FitResult]:
        model = small_density()
        often = 60 if options.get("resume") else 0
        return model, fit(model, LOADERS[name](), HELD_OUT, batchless(checkpoint_seconds=often), **options)

    state = torch.get_rng_state()
    whole, expected = train()
    assert torch.equal(torch.get_rng_state(), state)
    with before_step(17, interrupt), pytest.raises(KeyboardInterrupt):
        train(run=tmp_path / "run")
    resumed, result = train(run=tmp_path / "run", resume=True)
    assert have_same_weights(whole, resumed)
    assert result.best_loss == expected.best_loss


def test_persistent_workers_warn_when_a_run_resumes(tmp_path: Path) -> None:
    loader, config = DataLoader(TensorDataset(X), 150, num_workers=1, persistent_workers=True), batchless(steps=1)
    fit(small_density(), loader, config=config, run=tmp_path)
    with pytest.warns(TrainingWarning, match="set persistent_workers=False to resume exactly"):
        fit(small_density(), loader, config=config, run=tmp_path, resume=True)


def test_an_ended_iterator_resumes_as_finished(tmp_path: Path) -> None:
    for resume in (False, True):
        with pytest.warns(TrainingWarning, match="ended after 10 of 20 steps"):
            result = fit(small_density(), iter(X.split(30)), config=batchless(), run=tmp_path / "run", resume=resume)
        assert result.steps == 10
    with pytest.raises(ValueError, match="x_train: ended before step 10, where the run continues"):
        fit(small_density(), iter(X.split(60)), config=batchless(), run=tmp_path / "run", resume=True)


BAD: dict[str, tuple[Any, dict[str, Any], str]] = {
    "a mapping": ({"x": X}, {}, "x_train: expected a tensor, a Dataset or an iterable of batches, got dict"),
    "settings": (TrainConfig(), {}, "x_train: expected rows, got a TrainConfig; give it as config="),
    "a pair": ((X, VECTORS), {}, "x_train: got a tuple of two; pass the conditions apart, or give a list of batches"),
    "another width": (TensorDataset(X[:, :1]), {}, r"x_train: expected a tensor \(N, 2\), got \(300, 1\)"),
    "single rows": (DataLoader(TensorDataset(X), None), {}, "x_train: yields single rows; put it into"),
    "no batch": (iter(()), {}, "x_train: yields no batch"),
    "too many parts": (TensorDataset(X, X, X), {}, r"expected batches x or \(x, condition\), got 3 parts"),
    "mappings": ([{"x": row} for row in X[:9]].__iter__(), {}, r"got a mapping of \['x'\]"),
    "labels for no classes": (TensorDataset(X, LABELS), {}, "but the model has no condition; yield x alone"),
    "batches of another size": (DataLoader(TensorDataset(X), 32), {"batch_size": 64}, "batch_size: 64, but x_train"),
    "no length": (iter(X.split(30)), {"epochs": 1}, "epochs: x_train has no length; give steps instead"),
}


@pytest.mark.parametrize("name", BAD)
def test_other_data_are_rejected(name: str) -> None:
    x, changes, message = BAD[name]
    with pytest.raises(ValueError, match=message) as error:
        fit(small_density(), x, config=batchless(**changes))
    assert "\n" not in str(error.value)


def test_conditions_come_with_the_data_or_apart(tmp_path: Path) -> None:
    data = DataLoader(Pairs("labels"), 32)
    with pytest.raises(ValueError, match="condition_train: expected none; a data set or loader yields"):
        fit(conditional("labels"), data, config=batchless(), condition_train=LABELS)
    with pytest.raises(ValueError, match="condition_valid: expected none; a data set or loader yields"):
        fit(conditional("labels"), data, data, batchless(), condition_valid=LABELS)
    with pytest.raises(ValueError, match="condition: this model needs labels below 3, got None"):
        fit(conditional("labels"), TensorDataset(X), config=batchless())
    np.save(tmp_path / "rows.npy", X.numpy())
    with pytest.raises(ValueError, match="condition_train: streamed rows have no conditions; a torch Dataset may"):
        fit(conditional("labels"), RowStream(blocks_of(tmp_path / "rows.npy")), condition_train=LABELS)


def test_several_processes_cannot_share_a_loader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_group, "_joined", Group(size=2))
    with pytest.raises(ValueError, match="x_train: 2 processes cannot share an iterable of batches"):
        fit(small_density(), DataLoader(TensorDataset(X), 32), config=batchless())

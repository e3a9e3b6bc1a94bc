"""LinearFeatures: the best linear predictor of each unit given any set, as features of contexts."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import arcsm
from arcsm import AnyOrder, AutoregressiveModel, CategoricalHead, GaussianHead, MixedHead, TrainConfig
from arcsm.contexts.linear_features import LinearFeatures, units_of
from arcsm.data import RowStream, blocks_of

LEVELS = (0, 3, 4, 0)
ORDERED = (2,)
CONFIG = TrainConfig(objective="mle", steps=3, device="cpu")


def table(count: int) -> torch.Tensor:
    """Return rows whose second number depends on the first and on a name, and whose ranks depend on both numbers."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 4, dtype=torch.float64, generator=generator)
    x[:, 1] = torch.randint(0, 3, (count,), generator=generator)
    x[:, 3] += x[:, 0] + torch.tensor([-2.0, 0.0, 3.0], dtype=torch.float64)[x[:, 1].long()]
    x[:, 2] = (0.5 * x[:, 0] + 0.5 * x[:, 3] + x[:, 2]).round().clamp(-1, 2) + 1
    return x


def units(x: torch.Tensor) -> np.ndarray:
    names = [(x[:, 1] == level).double() for level in range(3)]
    return torch.stack([x[:, 0], *names, x[:, 2], x[:, 3]], 1).numpy()


def test_numbers_and_ranks_are_one_unit_and_each_level_of_a_name_is_one() -> None:
    assert units_of(LEVELS, ORDERED) == [(0, -1), (1, 0), (1, 1), (1, 2), (2, -1), (3, -1)]
    assert units_of((17, 0, 17), (2,)) == [(1, -1), (2, -1)]  # names of more than 16 levels have none
    assert units_of((17, 0, 17, 2), (0, 3)) == [(0, -1), (1, -1), (3, -1)]
    with pytest.raises(ValueError, match="linear_features: expected a column of numbers"):
        AnyOrder(2, 3, (8, 8), 6, levels=(17, 20), linear_features=True)


def test_features_are_those_of_ridge_regression_given_every_set() -> None:
    x, owners = table(4000), np.array([0, 1, 1, 1, 2, 3])
    features = LinearFeatures(LEVELS, ORDERED)
    features.fit(x)
    values = units(x)
    counts = np.array([np.inf, *values.sum(0)[1:4], np.inf, np.inf])
    trust = 1.0 / (1.0 + 10.0 / counts)
    values = (values - values.mean(0)) / values.std(0)
    matrix = values.T @ values / len(x) * np.outer(trust, trust) * 4000 / 4006
    np.fill_diagonal(matrix, 1.0)
    for size, dimension in itertools.product(range(4), range(4)):
        for chosen in itertools.combinations([d for d in range(4) if d != dimension], size):
            known = torch.zeros(1, 4, dtype=torch.bool)
            known[0, list(chosen)] = True
            inside, own = np.isin(owners, chosen), owners == dimension
            found = features(x, known.expand(len(x), -1))[:, own]
            weights = np.linalg.solve(matrix[inside][:, inside], matrix[inside][:, own])
            np.testing.assert_allclose(found[..., 0], values[:, inside] @ weights, rtol=0.0, atol=1e-7)
            scale = np.sqrt(1.0 - (weights * matrix[inside][:, own]).sum(0)).clip(min=0.05)
            np.testing.assert_allclose(
                found[..., 1].exp(), np.broadcast_to(scale, found.shape[:2]), rtol=0.0, atol=1e-7
            )


def test_each_dimension_can_have_its_own_set() -> None:
    x = table(50)
    features = LinearFeatures(LEVELS, ORDERED)
    features.fit(x)
    sets = torch.rand(50, 4, 4) < 0.5
    found, owners = features.given_each(x, sets), [0, 1, 1, 1, 2, 3]
    for unit, d in enumerate(owners):
        torch.testing.assert_close(found[:, unit], features(x, sets[:, d])[:, unit], rtol=0.0, atol=1e-12)


def test_one_order_of_all_rows_gives_what_an_order_for_each_row_gives() -> None:
    x = table(300)
    features = LinearFeatures(LEVELS, ORDERED)
    features.fit(x)
    known = (torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) >= 0.3).float()
    order = torch.tensor([2, 1, 3, 0])
    each = features.in_order(x.float(), known, order.expand(len(x), -1))
    torch.testing.assert_close(features.in_order(x.float(), known, order), each, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(features.in_order(x, known.double(), order).float(), each, rtol=1e-4, atol=1e-4)


def model_of_table() -> AutoregressiveModel:
    torch.manual_seed(0)
    context = AnyOrder(4, 4, (16, 16), 8, levels=LEVELS, ordered=ORDERED, linear_features=True)
    heads = [GaussianHead(4), CategoricalHead(4, 3), CategoricalHead(4, 4, True)]
    return AutoregressiveModel(context, MixedHead(heads, (0, 1, 2, 0)))


def fitted(**changes: Any) -> AutoregressiveModel:
    """Return a model after three steps, in which its correlations have been estimated."""
    model = model_of_table()
    arcsm.fit(model, table(300).float(), config=CONFIG.model_copy(update=changes))
    return model


def test_steps_equal_the_parallel_pass_with_names_and_missing_values() -> None:
    context = fitted().double().context
    x = table(40).masked_fill(torch.rand(40, 4) < 0.3, torch.nan)
    for order in list(itertools.permutations(range(4)))[::5]:
        expected, state, previous = context(x, order=order), context.begin((40,), order=order), None
        for d in order:
            torch.testing.assert_close(context.step(state, previous), expected[:, d], rtol=0.0, atol=1e-12)
            previous = x[:, d]


def test_ranks_of_unordered_levels_are_part_of_the_configuration() -> None:
    context = AnyOrder(4, 4, (16, 16), 8, levels=LEVELS, ranked=(2,), linear_features=True)
    assert context.linear is not None
    assert context.linear.owners == (0, 1, 1, 1, 2, 3)
    assert model_of_table().context.config()["ranked"] is None  # those of the ordered columns
    rebuilt = AnyOrder(**context.config())
    assert rebuilt.ranked == (2,)
    assert rebuilt.linear is not None
    assert rebuilt.linear.owners == context.linear.owners


def test_half_precision_training_takes_them() -> None:
    assert all(bool(weight.isfinite().all()) for weight in fitted(precision="bf16-mixed").parameters())


def test_a_model_that_keeps_its_units_keeps_its_correlations() -> None:
    model, x, config = fitted(standardise="none"), table(50).float(), CONFIG.model_copy(update={"standardise": "none"})
    linear = model.context.linear
    before = linear.correlation.clone()
    assert linear.has_correlations
    arcsm.fit(model, x, config=config)
    assert torch.equal(linear.correlation, before)
    arcsm.fit(model, x, config=CONFIG)
    assert not torch.equal(linear.correlation, before)


def test_a_model_is_saved_with_its_correlations(tmp_path: Path) -> None:
    model, x = fitted(), table(20).float()
    arcsm.save(model, tmp_path)
    assert torch.equal(arcsm.load(tmp_path).log_prob(x), model.log_prob(x))


def test_rows_of_a_stream_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", table(32).float().numpy())
    stream = RowStream(blocks_of(tmp_path / "rows.npy"))
    with pytest.raises(ValueError, match="leave out linear_features=True"):
        arcsm.fit(model_of_table(), stream, config=CONFIG)

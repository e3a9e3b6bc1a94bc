"""LinearFeatures: the best linear predictor of each unit given any set, as features of contexts."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

import arcsm
from arcsm import AnyOrder, AutoregressiveModel, CategoricalHead, GaussianHead, MixedHead, TrainConfig
from arcsm.contexts.linear_features import LinearFeatures, units_of
from arcsm.data import RowStream, blocks_of

LEVELS = (0, 3, 4, 0)
ORDERED = (2,)


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
    with pytest.raises(ValueError, match="linear_features: expected a column of numbers"):
        AnyOrder(2, 3, (8, 8), 6, levels=(17, 20), linear_features=True)


def test_features_are_those_of_least_squares_given_every_set() -> None:
    x = table(4000)
    features = LinearFeatures(LEVELS, ORDERED)
    features.fit(x)
    shrunk, owners, values = 6 / 4006, [0, 1, 1, 1, 2, 3], units(x)
    values = (values - values.mean(0)) / values.std(0)
    for size, dimension in itertools.product(range(4), range(4)):
        for chosen in itertools.combinations([d for d in range(4) if d != dimension], size):
            known = torch.zeros(1, 4, dtype=torch.bool)
            known[0, list(chosen)] = True
            inputs = values[:, [owner in chosen for owner in owners]]
            targets = values[:, [owner == dimension for owner in owners]]
            found = features(x, known.expand(len(x), -1))[:, [owner == dimension for owner in owners]]
            own = inputs.T @ inputs / len(x) * (1.0 - shrunk) + shrunk * np.eye(inputs.shape[1])
            weights = np.linalg.solve(own, inputs.T @ targets / len(x) * (1.0 - shrunk))
            np.testing.assert_allclose(found[..., 0], inputs @ weights, rtol=0.0, atol=1e-7)
            explained = (weights * (inputs.T @ targets / len(x) * (1.0 - shrunk))).sum(0)
            scale = np.sqrt(1.0 - explained).clip(min=0.05)
            np.testing.assert_allclose(found[..., 1].exp(), np.broadcast_to(scale, targets.shape), rtol=0.0, atol=1e-7)


def test_each_dimension_can_have_its_own_set() -> None:
    x = table(50)
    features = LinearFeatures(LEVELS, ORDERED)
    features.fit(x)
    sets = torch.rand(50, 4, 4) < 0.5
    found, owners = features.given_each(x, sets), [0, 1, 1, 1, 2, 3]
    for unit, d in enumerate(owners):
        torch.testing.assert_close(found[:, unit], features(x, sets[:, d])[:, unit], rtol=0.0, atol=1e-12)


def test_missing_values_are_filled_in_by_the_others() -> None:
    x = table(4000)
    complete, features = LinearFeatures(LEVELS, ORDERED), LinearFeatures(LEVELS, ORDERED)
    complete.fit(x)
    features.fit(x.masked_fill(torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) < 0.2, torch.nan))
    torch.testing.assert_close(features.correlation, complete.correlation, rtol=0.0, atol=0.05)


def model_of_table(linear: bool) -> AutoregressiveModel:
    torch.manual_seed(0)
    context = AnyOrder(4, 4, (16, 16), 8, levels=LEVELS, ordered=ORDERED, linear_features=linear)
    heads = [GaussianHead(4), CategoricalHead(4, 3), CategoricalHead(4, 4, True)]
    return AutoregressiveModel(context, MixedHead(heads, (0, 1, 2, 0)))


@pytest.fixture(scope="module")
def fitted() -> dict[bool, AutoregressiveModel]:
    """Return models of a short training on few rows, without and with linear features."""
    config = TrainConfig(objective="mle", steps=100, learning_rate=3e-3, ema=0.9, device="cpu")
    models = {linear: model_of_table(linear) for linear in (False, True)}
    for model in models.values():
        arcsm.fit(model, table(300).float(), config=config)
    return models


def test_what_one_name_tells_of_a_number_is_learned_at_once(fitted: dict[bool, AutoregressiveModel]) -> None:
    x = table(2300)[300:].float()
    given_name = {
        linear: model.log_prob(x, order=(1, 3, 0, 2), reduce=False)[:, 3].mean() for linear, model in fitted.items()
    }
    assert given_name[True] > given_name[False] + 0.1


def test_steps_equal_the_parallel_pass_with_names_and_missing_values(fitted: dict[bool, AutoregressiveModel]) -> None:
    context = fitted[True].double().context
    x = table(40).masked_fill(torch.rand(40, 4) < 0.3, torch.nan)
    for order in itertools.permutations(range(4)):
        expected, state, previous = context(x, order=order), context.begin((40,), order=order), None
        for d in order:
            torch.testing.assert_close(context.step(state, previous), expected[:, d], rtol=0.0, atol=1e-12)
            previous = x[:, d]


def test_a_model_is_saved_with_its_correlations(fitted: dict[bool, AutoregressiveModel], tmp_path: Path) -> None:
    model, x = fitted[True].float(), table(20).float()
    arcsm.save(model, tmp_path)
    assert torch.equal(arcsm.load(tmp_path).log_prob(x), model.log_prob(x))


def test_rows_of_a_stream_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", table(32).float().numpy())
    stream = RowStream(blocks_of(tmp_path / "rows.npy"))
    with pytest.raises(ValueError, match="leave out linear_features=True"):
        arcsm.fit(model_of_table(linear=True), stream, config=TrainConfig(objective="mle", steps=2, device="cpu"))

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


def test_from_many_rows_they_are_those_of_least_squares() -> None:
    x = table(20_000)
    features = LinearFeatures(LEVELS, ORDERED)
    features.fit(x)
    known = torch.tensor([[True, True, False, False]]).expand(len(x), -1)
    inputs = units(x)[:, :4]
    weights, *_ = np.linalg.lstsq(inputs, x[:, 3].numpy(), rcond=None)
    found = x[:, 3].mean() + x[:, 3].std() * features(x, known)[:, 5, 0]
    np.testing.assert_allclose(found, inputs @ weights, rtol=0.0, atol=0.02)


def test_a_level_that_no_row_has_tells_nothing() -> None:
    x = table(400)
    x = x[x[:, 1] < 2.0]
    features = LinearFeatures(LEVELS, ORDERED)
    features.fit(x)
    row = torch.tensor([[torch.nan, 2.0, torch.nan, torch.nan]], dtype=torch.float64)
    assert features(row, ~row.isnan()).abs().max() < 5.0
    assert features.correlation[3].tolist() == [0.0, 0.0, 0.0, 1.0, 0.0, 0.0]


def test_what_few_rows_of_a_level_tell_is_trusted_less() -> None:
    x = table(2000)
    x = torch.cat([x[x[:, 1] < 2.0][:1000], x[x[:, 1] == 2.0][:2]])
    x[-2:, 3] = 8.0
    features = LinearFeatures(LEVELS, ORDERED)
    features.fit(x)
    row = torch.tensor([[torch.nan, 2.0, torch.nan, torch.nan]], dtype=torch.float64)
    shift = float(x[:, 3].std() * features(row, ~row.isnan())[0, 5, 0])
    assert 0.1 * 8.0 < shift < 0.4 * 8.0  # 2 of 2 + 10 rows, and the other two levels say that it is neither


@pytest.mark.parametrize("rows", [12, 40, 400])
def test_complete_rows_give_correlations_however_few_they_are(rows: int) -> None:
    """They are those of the rows, reduced by the number of units."""
    torch.manual_seed(0)
    x = torch.randn(rows, 8, dtype=torch.float64)
    x[:, 1] += x[:, 0]
    features = LinearFeatures([0] * 8)
    features.fit(x)
    expected = torch.corrcoef(x.T) * (rows / (rows + 8))
    expected.fill_diagonal_(1.0)
    torch.testing.assert_close(features.correlation, expected, rtol=0.0, atol=1e-6)


def test_the_order_of_the_rows_does_not_matter() -> None:
    x = table(30_000)
    x[:, 1] = torch.arange(30_000) % 2
    features = LinearFeatures(LEVELS, ORDERED)
    features.fit(x)
    assert features.deviation[1] == pytest.approx(0.5, abs=0.01)


def test_each_dimension_can_have_its_own_set() -> None:
    x = table(50)
    features = LinearFeatures(LEVELS, ORDERED)
    features.fit(x)
    sets = torch.rand(50, 4, 4) < 0.5
    found, owners = features.given_each(x, sets), [0, 1, 1, 1, 2, 3]
    for unit, d in enumerate(owners):
        torch.testing.assert_close(found[:, unit], features(x, sets[:, d])[:, unit], rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("gaps", [0.0, 0.3])
def test_one_order_of_all_rows_gives_what_an_order_for_each_row_gives(gaps: float) -> None:
    x = table(300)
    features = LinearFeatures(LEVELS, ORDERED)
    features.fit(x)
    known = (torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) >= gaps).float()
    order = torch.tensor([2, 1, 3, 0])
    each = features.in_order(x.float(), known, order.expand(len(x), -1))
    torch.testing.assert_close(features.in_order(x.float(), known, order), each, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(features.in_order(x, known.double(), order).float(), each, rtol=1e-4, atol=1e-4)


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


def test_ranks_of_unordered_levels_are_part_of_the_configuration() -> None:
    context = AnyOrder(4, 4, (16, 16), 8, levels=LEVELS, ranked=(2,), linear_features=True)
    assert context.linear is not None
    assert context.linear.owners == (0, 1, 1, 1, 2, 3)
    assert context.ordered == ()
    assert context.config()["ranked"] == [2]
    assert model_of_table(linear=True).context.config()["ranked"] is None  # those of the ordered columns
    rebuilt = AnyOrder(**context.config())
    assert rebuilt.ranked == (2,)
    assert rebuilt.linear is not None
    assert rebuilt.linear.owners == context.linear.owners


def test_half_precision_training_takes_them() -> None:
    config = TrainConfig(objective="mle", steps=3, device="cpu", precision="bf16-mixed")
    model = model_of_table(linear=True)
    arcsm.fit(model, table(300).float(), config=config)
    assert all(bool(weight.isfinite().all()) for weight in model.parameters())


def test_a_model_that_keeps_its_units_keeps_its_correlations() -> None:
    model, x = model_of_table(linear=True), table(300).float()
    config = TrainConfig(objective="mle", steps=3, device="cpu", standardise="none")
    arcsm.fit(model, x, config=config)
    linear = model.context.linear
    before = linear.correlation.clone()
    assert linear.has_correlations
    arcsm.fit(model, x[:50], config=config)
    assert torch.equal(linear.correlation, before)
    arcsm.fit(model, x[:50], config=config.model_copy(update={"standardise": "columns"}))
    assert not torch.equal(linear.correlation, before)


def test_a_model_is_saved_with_its_correlations(fitted: dict[bool, AutoregressiveModel], tmp_path: Path) -> None:
    model, x = fitted[True].float(), table(20).float()
    arcsm.save(model, tmp_path)
    assert torch.equal(arcsm.load(tmp_path).log_prob(x), model.log_prob(x))


def test_rows_of_a_stream_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", table(32).float().numpy())
    stream = RowStream(blocks_of(tmp_path / "rows.npy"))
    with pytest.raises(ValueError, match="leave out linear_features=True"):
        arcsm.fit(model_of_table(linear=True), stream, config=TrainConfig(objective="mle", steps=2, device="cpu"))

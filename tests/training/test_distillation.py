"""Distillation: the density of a model with scores in closed form, with its levels, units and conditions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

import arcsm
from arcsm import (
    MADE,
    AnyOrder,
    AutoregressiveModel,
    CategoricalHead,
    DistilConfig,
    GaussianHead,
    LocatedHead,
    MixedHead,
    NoiseLadder,
    ScoreHead,
    SplineHead,
    TrainConfig,
    distil,
    fit,
)
from arcsm.errors import TrainingWarning
from arcsm.training import lessons

LADDER = NoiseLadder(2.0, 0.3, 5)
QUICK = DistilConfig(conditionals=6_000, steps=600, hidden_features=(32, 32), report_rows=400, device="cpu")


def rows(count: int, seed: int = 0) -> Tensor:
    """Return a number, another that depends on it in two branches, and a third far from zero."""
    generator = torch.Generator().manual_seed(seed)
    a, noise = torch.randn(2, count, generator=generator)
    sign = torch.where(torch.rand(count, generator=generator) < 0.5, -1.0, 1.0)
    return torch.stack([a, sign * (1.0 + 0.5 * a.square()) + 0.3 * noise, 1e4 + 20.0 * (a + noise)], 1)


@pytest.fixture(scope="module")
def teacher() -> AutoregressiveModel:
    torch.manual_seed(0)
    model = AutoregressiveModel(MADE(3, 8, (32, 32)), ScoreHead(8, (32, 32)), LADDER)
    fit(model, rows(2_000), config=TrainConfig(steps=600, learning_rate=5e-3, device="cpu"))
    return model


def test_the_density_of_the_student_is_that_of_the_teacher(teacher: AutoregressiveModel) -> None:
    train, valid = rows(1_000, 1), rows(1_000, 2)
    student = distil(teacher, train, valid, config=QUICK)
    assert isinstance(student.head, SplineHead)
    assert student.noise is None
    with torch.no_grad():
        lost = teacher.log_prob(valid) - student.log_prob(valid)
    assert float(lost.mean()) < 0.05
    assert float(lost.abs().quantile(0.9)) < 0.3
    found = student.metadata["distillation"]
    assert found["sigma"] == pytest.approx(0.3)
    assert found["loss"]["mean"] == pytest.approx(float(lost[: QUICK.report_rows].mean()), abs=1e-3)
    assert abs(found["kl"]["mean"]) < 4.0 * found["kl"]["standard_error"] + 0.03


def test_the_student_draws_what_the_teacher_draws(teacher: AutoregressiveModel) -> None:
    student = distil(teacher, config=QUICK)
    drawn = [one.sample(4_000, generator=torch.Generator().manual_seed(1)) for one in (teacher, student)]
    for d in range(3):
        ends = torch.cat([part[:, d] for part in drawn]).sort().values
        cdfs = [torch.searchsorted(part[:, d].sort().values, ends, right=True) / len(part) for part in drawn]
        assert float((cdfs[0] - cdfs[1]).abs().max()) < 0.06
    correlation = [torch.corrcoef(part.T)[0, 2] for part in drawn]
    assert float(correlation[1]) == pytest.approx(float(correlation[0]), abs=0.05)


def test_rows_far_out_keep_their_rank(teacher: AutoregressiveModel) -> None:
    student = distil(teacher, config=QUICK)
    far = rows(1, 3).repeat(8, 1)
    far[:, 1] = torch.tensor([2.0, 3.0, 4.0, 6.0, 9.0, 14.0, 20.0, 30.0]) * 2.0
    with torch.no_grad():
        scores = student.log_prob(far)
    assert bool((scores.diff() < 0.0).all())


def test_the_teacher_stays_as_it_is_and_seeds_decide(teacher: AutoregressiveModel) -> None:
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    state, config = torch.get_rng_state(), QUICK.model_copy(update={"steps": 5})
    first, same, other = (
        distil(teacher, config=config.model_copy(update={"seed": seed})).state_dict() for seed in (1, 1, 2)
    )
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())
    assert "distillation" not in teacher.metadata
    assert torch.equal(state, torch.get_rng_state())


def test_a_student_is_saved_and_loaded(teacher: AutoregressiveModel, tmp_path: object) -> None:
    student = distil(teacher, config=QUICK.model_copy(update={"steps": 5}))
    arcsm.save(student, f"{tmp_path}/student.safetensors")
    loaded = arcsm.load(f"{tmp_path}/student.safetensors")
    assert torch.equal(loaded.log_prob(rows(5)), student.log_prob(rows(5)))
    assert loaded.metadata == student.metadata


def test_another_level_is_the_density_with_more_noise(teacher: AutoregressiveModel) -> None:
    student = distil(teacher, level=0, config=QUICK)
    assert student.metadata["distillation"]["sigma"] == pytest.approx(2.0)
    valid = rows(500, 2)
    with torch.no_grad():
        lost = teacher.log_prob(valid, level=0) - student.log_prob(valid)
    assert float(lost.abs().mean()) < 0.1


def test_a_model_without_noise_is_distilled() -> None:
    torch.manual_seed(0)
    model = AutoregressiveModel(MADE(2, 4, (16,)), ScoreHead(4, (16,)))
    student = distil(model, config=QUICK)
    x = torch.randn(200, 2)
    with torch.no_grad():
        assert float((model.log_prob(x) - student.log_prob(x)).abs().mean()) < 0.05
    assert student.metadata["distillation"]["sigma"] is None


def test_closed_forms_that_noise_changes_are_distilled_too() -> None:
    torch.manual_seed(0)
    model = AutoregressiveModel(MADE(2, 4, (16,)), GaussianHead(4), NoiseLadder(1.0, 0.5, 3))
    student = distil(model, config=QUICK)
    x = torch.randn(200, 2)
    with torch.no_grad():
        assert float((model.log_prob(x) - student.log_prob(x)).abs().mean()) < 0.05


def test_a_density_that_the_splines_cannot_have_is_reported(teacher: AutoregressiveModel) -> None:
    hard = QUICK.model_copy(update={"steps": 20, "bins": 2, "hidden_features": (1,)})
    with pytest.warns(TrainingWarning, match="nats a row"):
        distil(teacher, config=hard)


def mixed_teacher(located: bool) -> AutoregressiveModel:
    """Return an untrained model of two numbers and a name, in every order, in double precision."""
    torch.manual_seed(0)
    context = AnyOrder(3, 8 + 2 * located, (16, 16), 16, levels=(0, 0, 3), located=located)
    plain = ScoreHead(8, (16,))
    heads = [LocatedHead(plain) if located else plain, CategoricalHead(8 + 2 * located, levels=3)]
    model = AutoregressiveModel(context, MixedHead(heads, (0, 0, 1)), LADDER)
    generator = torch.Generator().manual_seed(1)
    first = torch.randn(300, generator=generator)
    x = torch.stack([first, first + 0.02 * torch.randn(300, generator=generator), torch.arange(300) % 3.0], 1)
    fit(model, x, config=TrainConfig(steps=100, learning_rate=5e-3, device="cpu"))
    return model.double()


@pytest.mark.parametrize("located", [False, True])
def test_names_keep_their_probabilities_and_numbers_their_lines(located: bool) -> None:
    model = mixed_teacher(located)
    student = distil(model, config=QUICK)
    assert student.shift.dtype == torch.float64
    x = model.sample(300, generator=torch.Generator().manual_seed(2))
    for order in ([0, 1, 2], [2, 1, 0]):
        with torch.no_grad():
            expected = model.log_prob(x, reduce=False, order=order, tol=1e-3)
            found = student.log_prob(x, reduce=False, order=order)
        torch.testing.assert_close(found[:, 2], expected[:, 2], rtol=1e-5, atol=1e-5)
        assert float((expected - found)[:, :2].sum(1).mean()) < 0.1
        assert float((expected - found)[:, :2].abs().mean()) < 0.15


def test_gaps_are_left_out() -> None:
    model = mixed_teacher(located=False)
    x = model.sample(200, generator=torch.Generator().manual_seed(2))
    x[::3, 0], x[1::3, 2] = math.nan, math.nan
    student = distil(model, x, x, config=QUICK)
    with torch.no_grad():
        assert bool(student.log_prob(x).isfinite().all())
    assert math.isfinite(student.metadata["distillation"]["loss"]["mean"])


def test_conditions_are_those_of_the_teacher() -> None:
    torch.manual_seed(0)
    model = AutoregressiveModel(MADE(2, 4, (16,), classes=3), ScoreHead(4, (16,)), LADDER)
    labels = torch.arange(300) % 3
    x = torch.randn(300, 2, generator=torch.Generator().manual_seed(0)) + 2.0 * labels[:, None]
    fit(model, x, config=TrainConfig(steps=100, device="cpu"), condition_train=labels)
    for given in ((), (x, x, labels, labels)):
        student = distil(model, *given, config=QUICK)
        with torch.no_grad():
            lost = model.log_prob(x, condition=labels) - student.log_prob(x, condition=labels)
        assert float(lost.abs().mean()) < 0.1


def test_given_rows_are_used_however_wide_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = list[bool]()
    draw = lessons.TeacherRows.draw
    monkeypatch.setattr(
        lessons.TeacherRows, "draw", lambda rows, n, number: (kinds.append(number % 2 == 1), draw(rows, n, number))[1]
    )
    model = AutoregressiveModel(MADE(100, 4, (16,)), ScoreHead(4, (16,)), LADDER)
    distil(model, torch.randn(50, 100), config=QUICK.model_copy(update={"steps": 2, "conditionals": 3_000}))
    assert kinds == [False, True]


def test_conditions_that_do_not_fit_are_errors_before_the_training() -> None:
    classes = AutoregressiveModel(MADE(2, 4, (16,), classes=3), ScoreHead(4, (16,)), LADDER)
    x, labels, quick = torch.randn(30, 2), np.arange(30) % 3, QUICK.model_copy(update={"steps": 2})
    for arguments, message in (
        ((x,), "condition_train: expected the conditions of rows"),
        ((x, x, labels), "condition_valid: expected the conditions of rows"),
        ((x, None, labels[:20]), "condition_train: expected one for each of 30 rows"),
        ((None, None, torch.tensor(1)), "condition_train: expected one for each"),
        ((None, None, None, labels), "condition_valid: expected rows, too"),
        ((None, None, torch.full((4,), 7)), "condition_train: expected integer labels from 0 to 2"),
    ):
        with pytest.raises(ValueError, match=message):
            distil(classes, *arguments, config=quick)
    distil(classes, x.numpy(), x.numpy(), labels, labels, config=quick)


def test_names_that_do_not_exist_are_errors() -> None:
    x = torch.zeros(4, 3)
    x[0, 2] = 7.0
    with pytest.raises(ValueError, match="x_train: expected whole numbers from 0 to 2 in nominal column 2"):
        distil(mixed_teacher(located=False), x, config=QUICK)


def test_samples_of_images_have_the_bounds_of_the_teacher() -> None:
    torch.manual_seed(0)
    metadata = {"image_shape": [1, 2, 2], "levels": 256}
    model = AutoregressiveModel(MADE(4, 4, (16,)), ScoreHead(4, (16,)), NoiseLadder(1.0, 0.2, 3), metadata=metadata)
    student = distil(model, config=QUICK.model_copy(update={"steps": 50}))
    drawn = student.sample(500, generator=torch.Generator().manual_seed(0))
    assert float(drawn.max()) == pytest.approx(1.8)
    student.metadata["distillation"]["sigma"] = "much"  # as in a stranger's file
    assert float(student.sample(500, generator=torch.Generator().manual_seed(0)).max()) == 1.0


def test_vectors_need_conditions() -> None:
    model = AutoregressiveModel(MADE(2, 4, (16,), condition_features=2), ScoreHead(4, (16,)), LADDER)
    with pytest.raises(ValueError, match="condition_train: expected the conditions"):
        distil(model, config=QUICK)
    student = distil(model, condition_train=torch.randn(50, 2), config=QUICK.model_copy(update={"steps": 3}))
    assert student.log_prob(torch.zeros(2, 2), condition=torch.zeros(2, 2)).shape == (2,)


def test_nothing_to_distil_and_wrong_rows_are_errors(teacher: AutoregressiveModel) -> None:
    with pytest.raises(ValueError, match="closed form already"):
        distil(AutoregressiveModel(MADE(2, 4), GaussianHead(4)), config=QUICK)
    with pytest.raises(ValueError, match=r"x_train: expected rows \(N, 3\)"):
        distil(teacher, torch.zeros(4, 2), config=QUICK)
    with pytest.raises(ValueError, match=r"x_valid: expected rows \(N, 3\)"):
        distil(teacher, x_valid=torch.zeros(0, 3), config=QUICK)
    with pytest.raises(ValueError, match="level"):
        distil(teacher, level=9, config=QUICK)

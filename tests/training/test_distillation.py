"""Distillation: the density of a model with scores in closed form, with its levels, units and conditions."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

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
from small_models import make_model, points, seeded

pytestmark = pytest.mark.filterwarnings("ignore:the density lost")

LADDER = NoiseLadder(2.0, 0.3, 5)
SHORT = DistilConfig(conditionals=300, steps=5, hidden_features=(8,), report_rows=50, device="cpu")
QUICK = SHORT.model_copy(update={"conditionals": 1_000, "steps": 200, "hidden_features": (32,)})
LONG = DistilConfig(conditionals=6_000, steps=600, hidden_features=(32, 32), report_rows=400, device="cpu")


@pytest.mark.parametrize(("kind", "noise", "level", "sigma"), [("score", None, -1, None), ("gaussian", LADDER, 0, 2.0)])
def test_the_density_of_the_student_is_that_of_the_teacher(
    kind: str, noise: NoiseLadder | None, level: int, sigma: float | None
) -> None:
    teacher = make_model(kind, noise=noise, strength=0.5, dtype=torch.float32, shift=(0.0, 1e3), scale=(1.0, 20.0))
    x = points(teacher, 200)
    student = distil(teacher, x_valid=x, level=level, config=QUICK)
    assert isinstance(student.head, SplineHead)
    assert student.noise is None
    with torch.no_grad():
        lost = teacher.log_prob(x, level=level) - student.log_prob(x)
    assert float(lost.abs().mean()) < 0.05
    found = student.metadata["distillation"]
    assert found["sigma"] == (None if sigma is None else pytest.approx(sigma))
    assert found["loss"]["mean"] == pytest.approx(float(lost[: QUICK.report_rows].mean()), abs=1e-3)
    assert abs(found["kl"]["mean"]) < 0.05


def rows(count: int, seed: int = 0) -> Tensor:
    """Return a number, another that depends on it in two branches, and a third far from zero."""
    a, noise = torch.randn(2, count, generator=seeded(seed))
    sign = torch.where(torch.rand(count, generator=seeded(seed + 100)) < 0.5, -1.0, 1.0)
    return torch.stack([a, sign * (1.0 + 0.5 * a.square()) + 0.3 * noise, 1e4 + 20.0 * (a + noise)], 1)


@pytest.mark.slow
def test_a_student_draws_what_a_trained_teacher_draws_and_ranks_outliers() -> None:
    torch.manual_seed(0)
    teacher = AutoregressiveModel(MADE(3, 8, (32, 32)), ScoreHead(8, (32, 32)), LADDER)
    fit(teacher, rows(2_000), config=TrainConfig(steps=600, learning_rate=5e-3, device="cpu"))
    student = distil(teacher, rows(1_000, 1), config=LONG)
    valid = rows(1_000, 2)
    with torch.no_grad():
        lost = teacher.log_prob(valid) - student.log_prob(valid)
    assert float(lost.mean()) < 0.05
    assert float(lost.abs().quantile(0.9)) < 0.3

    drawn = [one.sample(4_000, generator=seeded(1)) for one in (teacher, student)]
    for d in range(3):
        ends = torch.cat([part[:, d] for part in drawn]).sort().values
        cdfs = [torch.searchsorted(part[:, d].sort().values, ends, right=True) / len(part) for part in drawn]
        assert float((cdfs[0] - cdfs[1]).abs().max()) < 0.06
    far = rows(1, 3).repeat(8, 1)
    far[:, 1] = torch.tensor([2.0, 3.0, 4.0, 6.0, 9.0, 14.0, 20.0, 30.0]) * 2.0
    with torch.no_grad():
        scores = student.log_prob(far)
    assert bool((scores.diff() < 0.0).all())


def test_the_teacher_stays_as_it_is_and_seeds_decide(tmp_path: Path) -> None:
    teacher = make_model(noise=LADDER, dtype=torch.float32)
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    state = torch.get_rng_state()
    students = [distil(teacher, config=SHORT.model_copy(update={"seed": seed})) for seed in (1, 1, 2)]
    first, same, other = (student.state_dict() for student in students)
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())
    assert "distillation" not in teacher.metadata
    assert torch.equal(state, torch.get_rng_state())

    arcsm.save(students[0], tmp_path / "student")
    loaded = arcsm.load(tmp_path / "student")
    assert torch.equal(loaded.log_prob(torch.ones(1, 2)), students[0].log_prob(torch.ones(1, 2)))
    assert loaded.metadata == students[0].metadata


def test_a_density_that_the_splines_cannot_have_is_reported() -> None:
    with pytest.warns(TrainingWarning, match="nats a row"):
        distil(make_model(strength=3.0), config=SHORT.model_copy(update={"bins": 2}))


def mixed_teacher(located: bool) -> AutoregressiveModel:
    """Return a model of two numbers and a name, in every order, in double precision."""
    torch.manual_seed(0)
    context = AnyOrder(3, 8 + 2 * located, (16, 16), 16, levels=(0, 0, 3), located=located)
    plain = ScoreHead(8, (16,))
    heads = [LocatedHead(plain) if located else plain, CategoricalHead(8 + 2 * located, levels=3)]
    model = AutoregressiveModel(context, MixedHead(heads, (0, 0, 1)), LADDER)
    first = torch.randn(300, generator=seeded(1))
    near = first + 0.02 * torch.randn(300, generator=seeded(2))
    x = torch.stack([first, near, torch.arange(300) % 3.0], 1)
    fit(model, x, config=TrainConfig(steps=2, device="cpu"))
    return model.double()


@pytest.mark.parametrize("located", [False, True])
def test_names_keep_their_probabilities(located: bool) -> None:
    model = mixed_teacher(located)
    x = model.sample(20, generator=seeded(2))
    student = distil(model, config=SHORT)
    assert student.shift.dtype == torch.float64
    for order in ([0, 1, 2], [2, 1, 0]):
        with torch.no_grad():
            expected = model.log_prob(x, reduce=False, order=order, tol=1e-3)[:, 2]
            found = student.log_prob(x, reduce=False, order=order)[:, 2]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_gaps_are_left_out_and_names_that_do_not_exist_are_errors() -> None:
    model = mixed_teacher(located=False)
    x = torch.randn(60, 3, generator=seeded(2))
    x[:, 2] = torch.arange(60) % 3.0
    x[::3, 0], x[1::3, 2] = math.nan, math.nan
    student = distil(model, x, x, config=SHORT)
    with torch.no_grad():
        assert bool(student.log_prob(x).isfinite().all())
    assert math.isfinite(student.metadata["distillation"]["loss"]["mean"])
    x[0, 2] = 7.0
    with pytest.raises(ValueError, match="x_train: expected whole numbers from 0 to 2 in nominal column 2"):
        distil(model, x, config=SHORT)


def test_conditions_are_those_of_the_teacher() -> None:
    model = make_model("gaussian", noise=LADDER, dtype=torch.float32, classes=3)
    labels = torch.arange(150) % 3
    with torch.no_grad():
        model.context.condition[0].weight.mul_(2.0)
    x = model.sample(150, condition=labels, generator=seeded(1))
    student = distil(model, x, x, labels, labels, config=QUICK)
    with torch.no_grad():
        truth, found = (one.log_prob(x, condition=labels) for one in (model, student))
        others = model.log_prob(x, condition=(labels + 1) % 3)
    assert float((truth - found).abs().mean()) < 0.1 < float((truth - others).abs().mean())
    assert distil(model, config=SHORT).context.classes == 3  # of rows of random classes


def test_conditions_that_do_not_fit_are_errors_before_the_training() -> None:
    classes = AutoregressiveModel(MADE(2, 4, (16,), classes=3), ScoreHead(4, (16,)), LADDER)
    x, labels = torch.randn(30, 2), np.arange(30) % 3
    for arguments, message in (
        ((x,), "condition_train: expected the conditions of rows"),
        ((x, x, labels), "condition_valid: expected the conditions of rows"),
        ((x, None, labels[:20]), "condition_train: expected one for each of 30 rows"),
        ((None, None, torch.tensor(1)), "condition_train: expected one for each"),
        ((None, None, None, labels), "condition_valid: expected rows, too"),
        ((None, None, torch.full((4,), 7)), "condition_train: expected integer labels from 0 to 2"),
    ):
        with pytest.raises(ValueError, match=message):
            distil(classes, *arguments, config=SHORT)


def test_samples_of_images_have_the_bounds_of_the_teacher() -> None:
    torch.manual_seed(0)
    metadata: dict[str, Any] = {"image_shape": [1, 2, 2], "levels": 256}
    model = AutoregressiveModel(MADE(4, 4, (16,)), ScoreHead(4, (16,)), NoiseLadder(1.0, 0.2, 3), metadata=metadata)
    student = distil(model, config=SHORT)
    assert float(student.sample(500, generator=seeded()).max()) == pytest.approx(1.8)
    student.metadata["distillation"]["sigma"] = "much"  # as in a stranger's file
    assert float(student.sample(500, generator=seeded()).max()) == 1.0


def test_nothing_to_distil_and_wrong_rows_are_errors() -> None:
    with pytest.raises(ValueError, match="closed form already"):
        distil(make_model("gaussian"), config=SHORT)
    teacher = make_model(noise=LADDER)
    with pytest.raises(ValueError, match=r"x_train: expected rows \(N, 2\)"):
        distil(teacher, torch.zeros(4, 3), config=SHORT)
    with pytest.raises(ValueError, match=r"x_valid: expected rows \(N, 2\)"):
        distil(teacher, x_valid=torch.zeros(0, 2), config=SHORT)
    with pytest.raises(ValueError, match="level"):
        distil(teacher, level=9, config=SHORT)

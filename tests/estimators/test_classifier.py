"""The classifier: scikit-learn's checks, probabilities of a logistic model, labels, gaps and wrong input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import log_loss
from sklearn.utils.estimator_checks import parametrize_with_checks

from arcsm.estimators import ScoreClassifier
from small_tables import QUICK, mixed_table, use_small_models
from small_targets import ROUGH, use_one_model


@parametrize_with_checks([ScoreClassifier(n_estimators=1, random_state=0)])
def test_the_classifier_passes_the_checks_of_scikit_learn(
    estimator: Any, check: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_one_model(monkeypatch, **{**ROUGH, "max_steps": 400})  # at the rate of few rows
    check(estimator)


def test_probabilities_are_those_of_a_logistic_model(monkeypatch: pytest.MonkeyPatch) -> None:
    use_one_model(monkeypatch)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2000, 2))
    logits = np.stack([0.0 * x[:, 0], 2.0 * x[:, 0], x[:, 1] - 1.0], 1)
    y = np.array(["c", "a", "b"])[(logits + rng.gumbel(size=logits.shape)).argmax(1)]
    classifier = ScoreClassifier(random_state=0).fit(x, y)
    assert classifier.classes_.tolist() == ["a", "b", "c"]
    truth = np.exp(logits)[:, [1, 2, 0]] / np.exp(logits).sum(1, keepdims=True)
    found = classifier.predict_proba(x)
    np.testing.assert_allclose(found.sum(1), 1.0)
    assert abs(found - truth).mean() < 0.03
    np.testing.assert_array_equal(classifier.predict(x), classifier.classes_[found.argmax(1)])
    np.testing.assert_allclose(classifier.predict_log_proba(x[:9]), np.log(found[:9]))
    unknown = classifier.predict_proba([[np.nan, np.nan]])[0]
    np.testing.assert_allclose(unknown, [(y == name).mean() for name in "abc"], atol=0.05)
    rows = pd.DataFrame(x[:9], columns=["0", "1"])  # the same by the parallel pass
    given = [rows.assign(target=pd.Categorical([code] * 9, categories=range(3))) for code in range(3)]
    joint = classifier._joint
    log_probs = [
        joint._contributions(*joint._separate(joint.columns_.encode(one)))[0, :, 2] for one in given
    ]  # the label comes last
    np.testing.assert_allclose(found[:9], np.exp(log_probs).T, rtol=2e-3)


@pytest.mark.parametrize("labels", [[True, False], [7, -2], ["b", "a"], [2.0, 1.0], [pd.Timestamp(1), "x"][1:] * 2])
def test_labels_of_any_type_come_back(labels: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_models(monkeypatch)
    table = mixed_table(80).assign(side=["left", "right"] * 40)
    table.loc[:10, "height"] = np.nan
    y = [labels[n % 2] for n in range(80)]
    classifier = ScoreClassifier(**{**QUICK, "max_steps": 150}).fit(table, pd.Series(y))
    assert classifier.classes_.tolist() == sorted(set(labels))
    assert classifier.predict(table).tolist() == y
    assert classifier.predict_proba(table).shape == (80, len(set(labels)))
    assert classifier.score(table, y) == 1.0


def test_rare_labels_of_many_keep_a_probability(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_models(monkeypatch)
    y = np.concatenate([np.repeat(np.arange(300), 2), np.repeat(np.arange(20), 4)])
    x = np.random.default_rng(0).normal(size=(len(y), 1))
    found = ScoreClassifier(**QUICK).fit(x, y).predict_proba(x[:5])
    assert found.shape == (5, 300)
    assert (found > 0.0).all()
    np.testing.assert_allclose(found.sum(1), 1.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, y: ScoreClassifier(**QUICK).fit(x, None), "requires y to be passed"),
        (
            lambda x, y: ScoreClassifier(**QUICK).fit(x, np.where(y > 0, "a", None)),
            "Input y contains NaN: the label of",
        ),
        (lambda x, y: ScoreClassifier(**QUICK).fit(x, np.where(y > 0, 1.0, np.nan)), "Input y contains NaN"),
        (lambda x, y: ScoreClassifier(**QUICK).fit(x, y + 0.5), "Unknown label type"),
        (lambda x, y: ScoreClassifier(**QUICK).fit(x, y[:-1] > 0), "inconsistent numbers of samples"),
        (lambda x, y: ScoreClassifier(**QUICK).fit(x[:1], y[:1] > 0), "at least 2 samples"),
        (lambda x, y: ScoreClassifier(**QUICK).fit(x, y > 0).predict(x[:, :1]), "X has 1 features"),
    ],
)
def test_wrong_input_raises_a_value_error(
    call: Callable[[Any, Any], Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_small_models(monkeypatch)
    x = np.random.default_rng(0).normal(size=(50, 2))
    with pytest.raises(ValueError, match=message):
        call(x, x[:, 0])


def test_probabilities_are_the_mean_of_several_models_for_few_rows() -> None:
    x, labels = classes(150, 0)
    classifier = ScoreClassifier(max_steps=20, random_state=0).fit(x, labels)
    numbers, _ = classifier.encode_rows(x)
    codes = torch.arange(len(classifier.classes_)).double()
    each = [model.level_probabilities(numbers, x.shape[1], codes).numpy() for model in classifier._members]
    assert len(each) == 3
    assert np.abs(each[0] - each[1]).max() > 1e-3
    np.testing.assert_allclose(classifier.predict_proba(x), np.mean(each, 0), atol=1e-12)
    assert len(ScoreClassifier(n_estimators=1, max_steps=20).fit(x, labels)._members) == 1
    assert len(ScoreClassifier(max_steps=1).fit(*classes(1_000, 0))._members) == 1


@pytest.mark.parametrize("seed", [0, 1])
def test_few_rows_are_not_overfitted(seed: int) -> None:
    """Labels that features say little about: about the log loss of a random forest."""
    x, labels = classes(300, seed)
    test, truth = classes(2_000, 10 + seed)
    found = ScoreClassifier(random_state=seed).fit(x, labels).predict_proba(test)
    forest = RandomForestClassifier(300, min_samples_leaf=5, random_state=0).fit(x, labels)
    assert log_loss(truth, found) < log_loss(truth, forest.predict_proba(test)) + 0.02


def classes(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return normal features ``(N, 6)``, one of which tells which of two labels is more likely."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(rows, 6))
    return x, np.where(random.random(rows) < 1.0 / (1.0 + np.exp(-x[:, 0])), "yes", "no")

"""The classifier: scikit-learn's checks, probabilities of a logistic model, labels, gaps and wrong input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.utils.estimator_checks import parametrize_with_checks

from arcsm.estimators import ScoreClassifier
from small_tables import QUICK, mixed_table, use_small_models
from small_targets import ROUGH, use_one_model


@pytest.mark.slow
@parametrize_with_checks([ScoreClassifier(n_estimators=1, random_state=0)])
def test_the_classifier_passes_the_checks_of_scikit_learn(
    estimator: Any, check: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_one_model(monkeypatch, **{**ROUGH, "max_steps": 400})  # at the rate of few rows
    check(estimator)


@pytest.mark.slow
def test_probabilities_are_those_of_a_logistic_model(monkeypatch: pytest.MonkeyPatch) -> None:
    use_one_model(monkeypatch)
    x, y, truth = logistic_rows(2000)
    classifier = ScoreClassifier(random_state=0).fit(x, y)
    assert abs(classifier.predict_proba(x) - truth).mean() < 0.03
    unknown = classifier.predict_proba([[np.nan, np.nan]])[0]
    np.testing.assert_allclose(unknown, [(y == name).mean() for name in "abc"], atol=0.05)


def test_predictions_agree_with_each_other_and_with_the_parallel_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_models(monkeypatch)
    x, y, _ = logistic_rows(150)
    classifier = ScoreClassifier(**QUICK).fit(x, y)
    assert classifier.classes_.tolist() == ["a", "b", "c"]
    found = classifier.predict_proba(x)
    np.testing.assert_allclose(found.sum(1), 1.0)
    np.testing.assert_array_equal(classifier.predict(x), classifier.classes_[found.argmax(1)])
    np.testing.assert_allclose(classifier.predict_log_proba(x[:9]), np.log(found[:9]))
    rows = pd.DataFrame(x[:9], columns=["0", "1"])
    given = [rows.assign(target=pd.Categorical([code] * 9, categories=range(3))) for code in range(3)]
    joint = classifier._joint
    log_probs = [
        joint._contributions(*joint._separate(joint.columns_.encode(one)))[0, :, 2] for one in given
    ]  # the label comes last
    seen = 1.0 - 1.0 / 152.0  # the rest is the probability of a label that no row has
    np.testing.assert_allclose(seen * found[:9], np.exp(log_probs).T, rtol=1e-5)


@pytest.mark.parametrize("labels", [[True, False], [7, -2], ["b", "a"]])
def test_labels_of_any_type_come_back(labels: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_models(monkeypatch)
    table = mixed_table(80)[["height", "city"]].assign(side=["left", "right"] * 40)
    table.loc[:10, "height"] = np.nan
    y = [labels[n % 2] for n in range(80)]
    classifier = ScoreClassifier(**{**QUICK, "max_steps": 150}).fit(table, pd.Series(y))
    assert classifier.classes_.tolist() == sorted(set(labels))
    assert classifier.predict(table).tolist() == y
    assert classifier.predict_proba(table).shape == (80, len(set(labels)))
    assert classifier.score(table, y) == 1.0


def test_rare_labels_of_many_keep_a_probability(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_models(monkeypatch)
    y = np.concatenate([np.repeat(np.arange(120), 2), np.repeat(np.arange(20), 4)])
    x = np.random.default_rng(0).normal(size=(len(y), 1))
    found = ScoreClassifier(**QUICK).fit(x, y).predict_proba(x[:5])
    assert found.shape == (5, 120)
    assert (found > 0.0).all()
    np.testing.assert_allclose(found.sum(1), 1.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda x, y: ScoreClassifier(**QUICK).fit(x, np.where(y > 0, "a", None)),
            "Input y contains NaN: the label of",
        ),
        (lambda x, y: ScoreClassifier(**QUICK).fit(x, y + 0.5), "Unknown label type"),
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


def test_probabilities_are_the_mean_of_several_models_for_few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_models(monkeypatch)
    x, y, _ = logistic_rows(150)
    labels = np.where(y == "a", "rare", "frequent")
    classifier = ScoreClassifier(max_steps=20, random_state=0).fit(x, labels)
    numbers, _ = classifier.encode_rows(x)
    codes = torch.arange(len(classifier.classes_)).double()
    each = [model.level_probabilities(numbers, x.shape[1], codes).numpy() for model in classifier._members]
    assert len(each) == 3
    assert np.abs(each[0] - each[1]).max() > 1e-3
    np.testing.assert_allclose(classifier.predict_proba(x), np.mean(each, 0), atol=1e-12)
    assert len(ScoreClassifier(n_estimators=1, max_steps=1, random_state=0).fit(x, labels)._members) == 1


def logistic_rows(rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return normal features ``(N, 2)``, labels of a logistic model, and the probabilities of these ``(N, 3)``."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, 2))
    logits = np.stack([2.0 * x[:, 0], x[:, 1] - 1.0, 0.0 * x[:, 0]], 1)
    y = np.array(["a", "b", "c"])[(logits + rng.gumbel(size=logits.shape)).argmax(1)]
    return x, y, np.exp(logits) / np.exp(logits).sum(1, keepdims=True)

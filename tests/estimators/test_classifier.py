"""The classifier: scikit-learn's checks, probabilities of a logistic model, labels, gaps and wrong input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from arcsm.estimators import ScoreClassifier
from small_tables import QUICK, mixed_table, use_small_models
from small_targets import ROUGH, use_one_model


@parametrize_with_checks([ScoreClassifier(random_state=0)])
def test_the_classifier_passes_the_checks_of_scikit_learn(
    estimator: Any, check: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_one_model(monkeypatch, **ROUGH)
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
    rows = pd.DataFrame(x[:9], columns=["0", "1"])  # the same by the density of labels given features
    given = [rows.assign(target=pd.Categorical([code] * 9, categories=range(3))) for code in range(3)]
    density = [classifier.density_.score_samples(one, columns=["target"], given=["0", "1"]) for one in given]
    np.testing.assert_allclose(found[:9], np.exp(density).T, rtol=2e-3)


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

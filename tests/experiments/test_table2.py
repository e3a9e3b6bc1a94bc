"""Table 2: merging of seeds, comparison of methods, divergence, and additions to a record."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from arcsm.errors import NonFiniteError
from arcsm.experiments import autoencoders, table2
from arcsm.implicit.vae import training
from arcsm.implicit.vae.runs import VAERunConfig
from small_experiments import reproduce


def _cell(*nll_of_each: float) -> dict[str, object]:
    mean = sum(nll_of_each) / len(nll_of_each)
    return {"nll_of_each": list(nll_of_each), "nll": mean, "standard_error": 9.0, "images": len(nll_of_each),
            "less_importance_weighted": [mean, 0.0], "upper_less_lower_on_simulated": [2.0 * mean, 0.0]}  # fmt: skip


def test_annealed_likelihoods_are_averaged_over_the_seeds() -> None:
    found = table2.merge_annealed({0: _cell(1.0, 3.0), 4: _cell(3.0, 7.0)})["annealed"]
    assert found["nll"] == pytest.approx(3.5)
    assert found["standard_error"] == pytest.approx(1.5)  # of 2 and 5, the means of the digits over the seeds
    assert found["sd_over_seeds"] == pytest.approx(4.5**0.5)  # of 2 and 5, the means of the seeds over the digits
    assert found["of_each_seed"] == [2.0, 5.0]
    assert found["less_importance_weighted"][0] == pytest.approx(3.5)
    assert found["upper_less_lower_on_simulated"][0] == pytest.approx(7.0)
    assert found["images"] == 2
    assert table2.merge_annealed({}) == {}


def test_faces_are_compared_on_the_seeds_that_both_have() -> None:
    distances = {"a": {0: 700.0, 1: 720.0, 2: 716.0}, "b": {0: 710.0, 2: 720.0}, "c": {0: 690.0}}
    rows = {
        method: {"broke": [], **table2.merge_seeds({s: {"steps": 1, "frechet_distance": d} for s, d in found.items()})}
        for method, found in distances.items()
    }
    rows["c"]["broke"] = [0]
    found = table2.compare_methods(autoencoders.FACES, rows)
    assert found["best"] == "a"
    assert found["distance_behind_the_best"]["b"] == pytest.approx([7.0, 3.0])  # of 10 and 4
    assert found["distance_behind_the_best"]["c"] == [-10.0, 0.0]
    assert found["behind_with_each_seed"]["b"] == [10.0, 4.0]


def with_changes(*changes: str) -> str:
    return f"mnist_changes={json.dumps([*table2.PRESETS['smoke'].mnist_changes, *changes])}"


def rows_of(record: dict[str, Any], column: str = "digits, 2 latents") -> dict[str, Any]:
    return dict(record["metrics"]["columns"][column]["methods"])


@pytest.mark.parametrize("finite", [True, False])
def test_a_diverged_autoencoder_is_measured_if_it_can_be(
    finite: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(trainer: training.VAETask) -> None:
        if trainer.step == 2:
            if not finite:
                for weight in trainer.average.module.parameters():  # type: ignore[union-attr]
                    weight.data.fill_(math.nan)
            raise NonFiniteError("the encoder has collapsed")

    # private: no public configuration makes an encoder collapse
    monkeypatch.setattr(training.VAETask, "check_encoder", check)
    record = reproduce("table2-mnist", tmp_path, with_changes("train.validate_every=1"), "methods=[csm]")
    assert "vae-mnist 2 csm seed 0" in record["metrics"]["diverged"]
    rows = rows_of(record)
    assert set(rows) == ({"csm"} if finite else set())
    for row in rows.values():
        assert row["steps"] == 1
        assert row["annealed"]["images"] == 3
        assert row["broke"] == [0]


def test_methods_and_seeds_are_added_to_a_record_without_training_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[tuple[str, int]] = []
    train = autoencoders.train_vae_run

    def train_and_collect(config: VAERunConfig, *args: Any, **keywords: Any) -> Any:
        trained.append((config.train.method, config.train.seed))
        return train(config, *args, **keywords)

    def run(work: str, *changes: str) -> dict[str, Any]:
        trained.clear()
        return rows_of(reproduce("table2-mnist", tmp_path, *changes, work=work))

    monkeypatch.setattr(autoencoders, "train_vae_run", train_and_collect)
    before = run("first", "methods=[elbo]")
    samples = tmp_path / "results" / "table2-mnist" / before["elbo"]["samples"]
    picture = samples.read_bytes()
    assert trained == [("elbo", 0)]
    samples.unlink()
    after = run("second", "methods=[elbo, stein]", "seeds=2", "repeated=[stein]")
    assert trained == [("stein", 0), ("stein", 1)]
    assert after["elbo"] == before["elbo"]
    assert samples.read_bytes() == picture
    assert run("first", "methods=[elbo]", "test_images=4")["elbo"]["annealed"]["images"] == 4
    assert trained == []  # only measured again
    assert run("first", "methods=[elbo]", with_changes("train.learning_rate=0.1"))["elbo"] != before["elbo"]
    assert trained == [("elbo", 0)]

"""Table 2: merging of seeds, comparison of methods, divergence, and additions to a record."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from arcsm.cli import application
from arcsm.errors import NonFiniteError
from arcsm.experiments import autoencoders, table2
from arcsm.implicit.vae import training
from arcsm.implicit.vae.runs import VAERunConfig
from small_experiments import command, reproduce


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


def test_a_diverged_method_is_not_the_best() -> None:
    likelihoods = (("a", 1.0), ("b", 2.0), ("c", 3.0))
    rows = {name: {"broke": [], **table2.merge_annealed({0: _cell(nll, nll)})} for name, nll in likelihoods}
    rows["a"]["broke"] = [0]
    found = table2.compare_methods(autoencoders.MNIST, rows)
    assert found["best"] == "b"
    assert found["annealed_behind_the_best"]["a"] == [-1.0, 0.0]


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


def test_a_later_seed_that_diverged_is_counted() -> None:
    whole, broken = {"steps": 4, "nll": 2.0, "used_latents": 3}, {"steps": 9, "nll": 1.0, "diverged": "step 9: ..."}
    row = table2.merge_seeds({0: whole, 2: broken})
    assert row["steps"] == 9
    assert row["seeds_measured"] == [0, 2]
    assert row["nll"]["of_each_seed"] == [2.0, 1.0]


def diverge(monkeypatch: pytest.MonkeyPatch, step: int, seed: int | None = None, weights: float | None = None) -> None:
    """Let training diverge at a step, of one seed or of all; overwrite the averaged weights if a value is given."""

    def check(trainer: training.VAETask) -> None:
        if trainer.step == step and seed in (None, trainer.config.seed):
            if weights is not None:
                for weight in trainer.average.module.parameters():  # type: ignore[union-attr]
                    weight.data.fill_(weights)
            raise NonFiniteError("the encoder has collapsed")

    # private: no public configuration makes an encoder collapse
    monkeypatch.setattr(training.VAETask, "check_encoder", check)


def with_changes(*changes: str) -> str:
    return f"mnist_changes={json.dumps([*table2.PRESETS['smoke'].mnist_changes, *changes])}"


VALIDATED = with_changes("train.validate_every=1")


def rows_of(record: dict[str, Any], column: str = "digits, 2 latents") -> dict[str, Any]:
    return dict(record["metrics"]["columns"][column]["methods"])


@pytest.mark.parametrize("step", [1, 2])  # before and after the first validation
def test_a_later_seed_that_diverged_is_listed(step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    diverge(monkeypatch, step, seed=1)
    record = reproduce("table2-mnist", tmp_path, VALIDATED, "methods=[csm, elbo]", "seeds=2", "repeated=[csm]")
    assert record["metrics"]["columns"]["digits, 2 latents"]["best"] == "elbo"
    row = rows_of(record)["csm"]
    assert row["broke"] == [1]
    assert row["seeds"] == [0, 1]
    assert len(row["annealed"]["of_each_seed"]) == step


def test_an_autoencoder_that_cannot_be_measured_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    diverge(monkeypatch, 2, weights=math.nan)
    record = reproduce("table2-mnist", tmp_path, VALIDATED, "methods=[csm, elbo]")
    assert set(record["metrics"]["diverged"]) == {"vae-mnist 2 csm seed 0", "vae-mnist 2 elbo seed 0"}
    assert rows_of(record) == {}


@pytest.mark.parametrize(("step", "measured"), [(2, {"csm"}), (1, set())])
def test_a_diverged_autoencoder_is_measured(
    step: int, measured: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    diverge(monkeypatch, step)
    record = reproduce("table2-mnist", tmp_path, VALIDATED, "methods=[csm]")
    assert "collapsed" in record["metrics"]["diverged"]["vae-mnist 2 csm seed 0"]
    rows = rows_of(record)
    assert set(rows) == measured
    for row in rows.values():
        assert row["steps"] == 1
        assert row["annealed"]["images"] == 3
        assert row["broke"] == [0]


def test_the_record_omits_likelihoods_of_single_digits() -> None:
    rows = {
        name: {"broke": [], **table2.merge_annealed({0: _cell(nll, 3.0)})} for name, nll in (("a", 1.0), ("b", 2.0))
    }
    assert table2.compare_methods(autoencoders.MNIST, rows)["best"] == "a"
    assert all("nll_of_each" not in row["annealed"] for row in rows.values())
    assert table2.compare_methods(autoencoders.MNIST, {}) == {"best": None}


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[VAERunConfig]:
    """Collect the configurations that are trained."""
    configs: list[VAERunConfig] = []
    train = autoencoders.train_vae_run

    def train_and_collect(config: VAERunConfig, *args: Any, **keywords: Any) -> Any:
        configs.append(config)
        return train(config, *args, **keywords)

    monkeypatch.setattr(autoencoders, "train_vae_run", train_and_collect)
    return configs


def test_methods_and_seeds_are_added_to_a_record_without_training_the_others(
    tmp_path: Path, trained: list[VAERunConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "results" / "table2-mnist"
    cells = folder / "smoke-cells.json"

    def run(work: str, *changes: str) -> dict[str, Any]:
        trained.clear()
        return rows_of(reproduce("table2-mnist", tmp_path, *changes, work=work))

    def runs() -> list[tuple[str, int]]:
        return [(config.train.method, config.train.seed) for config in trained]

    before = run("first", "methods=[elbo]")
    samples = folder / before["elbo"]["samples"]
    picture = samples.read_bytes()
    assert runs() == [("elbo", 0)]
    samples.unlink()
    after = run("second", "methods=[elbo, stein]", "seeds=2", "repeated=[stein]")
    assert runs() == [("stein", 0), ("stein", 1)]
    assert after["elbo"] == before["elbo"]
    assert samples.read_bytes() == picture
    kept = json.loads(cells.read_text())
    cells.write_text(json.dumps({name: cell for name, cell in kept.items() if not name.startswith("draw-")}))
    samples.unlink()
    assert run("third", "methods=[elbo]") == before  # trained again to draw samples
    assert runs() == [("elbo", 0)]
    assert samples.read_bytes() == picture
    assert any("stein-seed-1" in name for name in json.loads(cells.read_text()))  # other cells stay
    assert run("third", "methods=[elbo]", "test_images=4")["elbo"]["annealed"]["images"] == 4
    assert runs() == []  # only measured again
    likelihoods = [name for name in json.loads(cells.read_text()) if name.startswith("likelihood-") and "elbo" in name]
    assert len(likelihoods) == 1  # the new one
    assert run("third", "methods=[elbo]", with_changes("train.learning_rate=0.1"))["elbo"] != before["elbo"]
    assert runs() == [("elbo", 0)]
    cells.write_text("{")
    assert application.run(command("table2-mnist", tmp_path, work="fourth")) == 1
    assert f"{cells}: not the cells" in capsys.readouterr().err


def test_encoders_with_a_density_have_a_lower_bound(tmp_path: Path) -> None:
    changes = ("methods=[elbo, stein, csm]", "test_images=200", "samples=500")
    rows = rows_of(reproduce("table2-mnist", tmp_path, *changes))
    for method in ("elbo", "csm"):
        bound = rows[method]["negative_elbo"]
        assert bound["of_each_seed"] == [bound["mean"]]
        assert 0.0 < bound["mean"] - rows[method]["nll"]["mean"] < 10.0  # the encoder's divergence from the posterior
    assert "negative_elbo" not in rows["stein"]


def test_rows_with_masked_encoders_and_other_estimators_are_measured(tmp_path: Path) -> None:
    methods = ("csm, plain, masked encoder", "ssm, autoregressive encoder", "spectral", "spectral, one more eigenvalue")
    rows = rows_of(reproduce("table2-mnist", tmp_path, f"methods={json.dumps(methods)}"))
    assert rows.keys() == set(methods)
    assert "negative_elbo" not in rows[methods[0]]  # no density
    assert "negative_elbo" in rows[methods[1]]
    assert rows["spectral"]["changes"] == ["train.keeps_crossing=false"]
    assert rows[methods[3]]["changes"] == []
    assert rows["spectral"]["particles"] == rows[methods[3]]["particles"]
    assert all(len(row["pressures"]) >= 1 for row in rows.values())


def test_kernels_can_use_the_autoregressive_encoder(tmp_path: Path, trained: list[VAERunConfig]) -> None:
    for encoder, methods in (("implicit", ["stein", "ssm"]), ("autoregressive", ["stein"])):
        trained.clear()
        record = reproduce("table2-faces", tmp_path, "methods=[stein, ssm]", f"kernels_encoder={encoder}")
        assert [(c.train.method, c.model.encoder) for c in trained] == [(method, encoder) for method in methods]
    rows = rows_of(record, "faces")
    assert rows["stein"]["changes"] == ["model.encoder=autoregressive"]
    assert rows["ssm"]["changes"] == []


def test_grids_of_colours_are_png(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", x_train=images[:40], x_test=images[40:])
    data = f"data={{kind: images, path: {tmp_path / 'images.npz'}, key: x_train, test_key: x_test}}"
    changes = [change for change in table2.PRESETS["smoke"].faces_changes if not change.startswith("data=")]
    record = reproduce("table2-faces", tmp_path, "methods=[elbo]", f"faces_changes={json.dumps([*changes, data])}")
    samples = rows_of(record, "faces")["elbo"]["samples"]
    assert samples.endswith(".png")
    with Image.open(tmp_path / "results" / "table2-faces" / samples) as grid:
        assert (grid.format, grid.mode) == ("PNG", "RGB")


def test_training_time_includes_interrupted_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = autoencoders.read_metrics
    monkeypatch.setattr(autoencoders, "read_metrics", lambda run: [{**row, "seconds": 1000.0} for row in read(run)])

    def training_seconds() -> float:
        reproduce("table2-mnist", tmp_path, "methods=[elbo]")
        (cell,) = (tmp_path / "work").glob("*/train-*.json")
        seconds = float(json.loads(cell.read_text())["seconds"])
        cell.unlink()
        (tmp_path / "results" / "table2-mnist" / "smoke-cells.json").unlink()
        return seconds

    assert training_seconds() < 900.0
    assert training_seconds() >= 1000.0  # of the earlier run

"""Table 2: what is made of the likelihoods of several seeds, and how a record is added to."""

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
from arcsm.experiments.paired import behind, over_rows
from arcsm.implicit.vae import training


def _cell(*nll_of_each: float) -> dict[str, object]:
    mean = sum(nll_of_each) / len(nll_of_each)
    return {"nll_of_each": list(nll_of_each), "nll": mean, "standard_error": 9.0, "images": len(nll_of_each),
            "less_importance_weighted": [mean, 0.0], "upper_less_lower_on_simulated": [2.0 * mean, 0.0]}  # fmt: skip


def test_annealed_likelihoods_are_means_over_the_seeds() -> None:
    found = table2._over_annealed({0: _cell(1.0, 3.0), 4: _cell(3.0, 7.0)})["annealed"]
    assert found["nll"] == pytest.approx(3.5)
    assert found["standard_error"] == pytest.approx(1.5)  # of 2 and 5, the digits' means over the seeds
    assert found["sd_over_seeds"] == pytest.approx(4.5**0.5)  # of 2 and 5, the seeds' means over the digits
    assert found["of_each_seed"] == [2.0, 5.0]
    assert found["less_importance_weighted"][0] == pytest.approx(3.5)
    assert found["upper_less_lower_on_simulated"][0] == pytest.approx(7.0)
    assert found["images"] == 2
    assert over_rows({0: (1.0, 3.0)})["sd_over_seeds"] is None
    assert table2._over_annealed({}) == {}


def test_methods_are_held_against_the_best_with_the_seeds_that_both_have() -> None:
    best, differences, of_seeds = behind(
        {
            "best": {0: (1.0, 3.0), 1: (2.0, 2.0), 2: (0.0, 1.0)},
            "without its second seed": {0: (2.0, 4.0), 2: (3.0, 5.0)},
            "first seed alone": {0: (5.0, 5.0)},
        }
    )
    assert best == "best"
    assert differences["best"] == [0.0, 0.0]
    assert of_seeds["without its second seed"] == pytest.approx([1.0, 3.5])
    assert differences["without its second seed"] == pytest.approx(
        [2.25, (0.25**2 + 1.25**2) ** 0.5]  # digits differ by 0.5 after the seeds' mean, seeds by 2.5 after the digits'
    )
    assert of_seeds["first seed alone"] == pytest.approx([3.0])
    assert differences["first seed alone"] == pytest.approx([3.0, 1.0])


def test_a_lucky_single_seed_does_not_beat_the_mean_of_many() -> None:
    many = {0: (91.0, 91.0), 1: (97.0, 97.0), 2: (97.0, 97.0)}  # a mean of 95
    best, differences, _ = behind({"one": {0: (94.0, 94.0)}, "many": many})
    assert best == "many"
    assert differences["one"] == pytest.approx([3.0, 0.0])


def test_what_broke_is_not_the_best() -> None:
    likelihoods = (("a", 1.0), ("b", 2.0), ("c", 3.0))
    rows = {name: {"broke": [], **table2._over_annealed({0: _cell(nll, nll)})} for name, nll in likelihoods}
    rows["a"]["broke"] = [0]
    found = table2._best(autoencoders.MNIST, rows)
    assert found["best"] == "b"
    assert found["annealed_behind_the_best"]["a"] == [-1.0, 0.0]


def test_faces_are_held_against_the_best_with_the_seeds_that_both_have() -> None:
    distances = {"a": {0: 700.0, 1: 720.0, 2: 716.0}, "b": {0: 710.0, 2: 720.0}, "c": {0: 690.0}}
    rows = {
        method: {"broke": [], **table2._over_cells({s: {"steps": 1, "frechet_distance": d} for s, d in found.items()})}
        for method, found in distances.items()
    }
    rows["c"]["broke"] = [0]
    found = table2._best(autoencoders.FACES, rows)
    assert found["best"] == "a"
    assert found["distance_behind_the_best"]["b"] == pytest.approx([7.0, 3.0])  # of 10 and 4
    assert found["distance_behind_the_best"]["c"] == [-10.0, 0.0]
    assert found["behind_with_each_seed"]["b"] == [10.0, 4.0]


def test_a_later_seed_that_broke_is_not_forgotten() -> None:
    whole, broken = {"steps": 4, "nll": 2.0, "used_latents": 3}, {"steps": 9, "nll": 1.0, "diverged": "step 9: ..."}
    row = table2._over_cells({0: whole, 2: broken})
    assert row["steps"] == 9
    assert row["seeds_measured"] == [0, 2]
    assert row["nll"]["of_each_seed"] == [2.0, 1.0]


@pytest.mark.parametrize("step", [1, 2])  # before a first validation, and after one
def test_a_later_seed_that_broke_is_said(step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def check(trainer: training.VAETask) -> None:
        if trainer.step == step and trainer.config.seed == 1:
            raise NonFiniteError("the encoder has collapsed")

    monkeypatch.setattr(training.VAETask, "check_encoder", check)
    changes = [*table2.PRESETS["smoke"].mnist_changes, "train.validate_every=1"]
    command = ["reproduce", "table2-mnist", "--preset", "smoke", "--device", "cpu", "--out", str(tmp_path / "results")]
    command += ["--set", f"mnist_changes={json.dumps(changes)}", "--set", "methods=[csm, elbo]", "--set", "seeds=2"]
    assert application.run([*command, "--set", "repeated=[csm]", "--work", str(tmp_path / "work")]) == 0
    metrics = json.loads((tmp_path / "results" / "table2-mnist" / "smoke.json").read_text())["metrics"]
    column = metrics["columns"]["digits, 2 latents"]
    assert column["best"] == "elbo"
    row = column["methods"]["csm"]
    assert row["broke"] == [1]
    assert row["seeds"] == [0, 1]
    assert len(row["annealed"]["of_each_seed"]) == step


def test_what_broke_beyond_measure_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def check(trainer: training.VAETask) -> None:
        if trainer.step == 2:
            for weight in trainer.average.module.parameters():  # type: ignore[union-attr]
                weight.data.fill_(math.nan)
            raise NonFiniteError("the latents have run away")

    monkeypatch.setattr(training.VAETask, "check_encoder", check)
    changes = [*table2.PRESETS["smoke"].mnist_changes, "train.validate_every=1"]
    command = ["reproduce", "table2-mnist", "--preset", "smoke", "--device", "cpu", "--out", str(tmp_path / "results")]
    command += ["--set", f"mnist_changes={json.dumps(changes)}", "--set", "methods=[csm, elbo]"]
    assert application.run([*command, "--work", str(tmp_path / "work")]) == 0
    metrics = json.loads((tmp_path / "results" / "table2-mnist" / "smoke.json").read_text())["metrics"]
    assert set(metrics["diverged"]) == {"vae-mnist 2 csm seed 0", "vae-mnist 2 elbo seed 0"}
    assert metrics["columns"]["digits, 2 latents"]["methods"] == {}


def test_the_record_has_no_likelihood_of_every_digit() -> None:
    rows = {
        name: {"broke": [], **table2._over_annealed({0: _cell(nll, 3.0)})} for name, nll in (("a", 1.0), ("b", 2.0))
    }
    assert table2._best(autoencoders.MNIST, rows)["best"] == "a"
    assert all("nll_of_each" not in row["annealed"] for row in rows.values())
    assert table2._best(autoencoders.MNIST, {}) == {"best": None}


def test_methods_and_seeds_are_added_to_a_record_without_what_was_trained_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = []
    train = autoencoders.train_vae_run
    monkeypatch.setattr(
        autoencoders, "train_vae_run", lambda config, *args, **kw: _noted(trained, config, train, args, kw)
    )

    def record(work: str, *changes: str) -> dict[str, Any]:
        trained.clear()
        command = ["reproduce", "table2-mnist", "--preset", "smoke", "--device", "cpu", "--force"]
        command += ["--out", str(tmp_path / "results"), "--work", str(tmp_path / work)]
        assert application.run([*command, *(part for change in changes for part in ("--set", change))]) == 0
        folder = tmp_path / "results" / "table2-mnist"
        assert json.loads((folder / "smoke-cells.json").read_text())
        columns = json.loads((folder / "smoke.json").read_text())["metrics"]["columns"]
        return dict(columns["digits, 2 latents"]["methods"])

    before = record("first", "methods=[elbo]")
    picture = (tmp_path / "results" / "table2-mnist" / before["elbo"]["samples"]).read_bytes()
    assert trained == [("elbo", 0)]
    (tmp_path / "results" / "table2-mnist" / before["elbo"]["samples"]).unlink()
    after = record("second", "methods=[elbo, stein]", "seeds=2", "repeated=[stein]")
    assert trained == [("stein", 0), ("stein", 1)]
    assert after["elbo"] == before["elbo"]
    assert (tmp_path / "results" / "table2-mnist" / after["elbo"]["samples"]).read_bytes() == picture
    cells = tmp_path / "results" / "table2-mnist" / "smoke-cells.json"
    kept = json.loads(cells.read_text())
    cells.write_text(json.dumps({name: cell for name, cell in kept.items() if not name.startswith("draw-")}))
    (tmp_path / "results" / "table2-mnist" / before["elbo"]["samples"]).unlink()
    assert record("third", "methods=[elbo]") == before  # trained anew, for its samples alone
    assert trained == [("elbo", 0)]
    assert (tmp_path / "results" / "table2-mnist" / before["elbo"]["samples"]).read_bytes() == picture
    assert any("stein-seed-1" in name for name in json.loads(cells.read_text()))  # what is not asked for stays
    measured = record("third", "methods=[elbo]", "test_images=4")
    assert measured["elbo"]["annealed"]["images"] == 4
    assert trained == []  # measured anew, no more
    files = list(json.loads(cells.read_text()))
    assert (
        len([name for name in files if name.startswith("likelihood-") and "elbo" in name]) == 1
    )  # not those of before
    changes = [*table2.PRESETS["smoke"].mnist_changes, "train.learning_rate=0.1"]
    assert record("third", "methods=[elbo]", f"mnist_changes={json.dumps(changes)}")["elbo"] != before["elbo"]
    assert trained == [("elbo", 0)]
    cells.write_text("{")
    command = ["reproduce", "table2-mnist", "--preset", "smoke", "--force", "--out", str(tmp_path / "results")]
    assert application.run([*command, "--work", str(tmp_path / "fourth")]) == 1
    assert f"{cells}: these are not the cells" in capsys.readouterr().err


def test_an_encoder_that_has_a_density_has_a_lower_bound(tmp_path: Path) -> None:
    command = ["reproduce", "table2-mnist", "--preset", "smoke", "--device", "cpu", "--out", str(tmp_path / "results")]
    changes = ["methods=[elbo, stein, csm]", "test_images=200", "samples=500"]
    command += ["--work", str(tmp_path / "work"), *(part for change in changes for part in ("--set", change))]
    assert application.run(command) == 0
    record = json.loads((tmp_path / "results" / "table2-mnist" / "smoke.json").read_text())
    rows = record["metrics"]["columns"]["digits, 2 latents"]["methods"]
    for method in ("elbo", "csm"):
        bound = rows[method]["negative_elbo"]
        assert bound["of_each_seed"] == [bound["mean"]]
        assert 0.0 < bound["mean"] - rows[method]["nll"]["mean"] < 10.0  # of the encoder from the posterior
    assert "negative_elbo" not in rows["stein"]


def test_kernels_may_have_the_encoder_whose_convolutions_their_samples_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoders = []
    train = autoencoders.train_vae_run

    def noted(config: Any, *args: Any, **kw: Any) -> Any:
        encoders.append((config.train.method, config.model.encoder))
        return train(config, *args, **kw)

    monkeypatch.setattr(autoencoders, "train_vae_run", noted)
    command = ["reproduce", "table2-faces", "--preset", "smoke", "--device", "cpu", "--force"]
    command += ["--out", str(tmp_path / "results"), "--work", str(tmp_path / "work"), "--set", "methods=[stein, ssm]"]
    for encoder, trained in (("implicit", ["stein", "ssm"]), ("autoregressive", ["stein"])):
        encoders.clear()
        assert application.run([*command, "--set", f"kernels_encoder={encoder}"]) == 0
        assert encoders == [(method, encoder) for method in trained]
    rows = json.loads((tmp_path / "results" / "table2-faces" / "smoke.json").read_text())["metrics"]["columns"]["faces"]
    assert rows["methods"]["stein"]["changes"] == ["model.encoder=autoregressive"]
    assert rows["methods"]["ssm"]["changes"] == []


def test_grids_of_colours_are_jpeg(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", x_train=images[:40], x_test=images[40:])
    data = f"data={{kind: images, path: {tmp_path / 'images.npz'}, key: x_train, test_key: x_test}}"
    changes = [change for change in table2.PRESETS["smoke"].faces_changes if not change.startswith("data=")]
    command = ["reproduce", "table2-faces", "--preset", "smoke", "--device", "cpu", "--set", "methods=[elbo]"]
    command += ["--set", f"faces_changes={json.dumps([*changes, data])}", "--out", str(tmp_path / "results")]
    assert application.run([*command, "--work", str(tmp_path / "work")]) == 0
    folder = tmp_path / "results" / "table2-faces"
    row = json.loads((folder / "smoke.json").read_text())["metrics"]["columns"]["faces"]["methods"]["elbo"]
    assert row["samples"].endswith(".jpg")
    with Image.open(folder / row["samples"]) as grid:
        assert (grid.format, grid.mode) == ("JPEG", "RGB")


def test_the_time_of_training_has_that_of_runs_that_were_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged = autoencoders.read_metrics
    monkeypatch.setattr(
        autoencoders, "read_metrics", lambda folder: [{**row, "seconds": 1000.0} for row in logged(folder)]
    )

    def spent() -> float:
        command = ["reproduce", "table2-mnist", "--preset", "smoke", "--device", "cpu", "--set", "methods=[elbo]"]
        command += ["--out", str(tmp_path / "results"), "--work", str(tmp_path / "work"), "--force"]
        assert application.run(command) == 0
        (cell,) = (tmp_path / "work").glob("*/train-*.json")
        seconds = float(json.loads(cell.read_text())["seconds"])
        cell.unlink()
        (tmp_path / "results" / "table2-mnist" / "smoke-cells.json").unlink()
        return seconds

    assert spent() < 900.0
    assert spent() >= 1000.0  # the run of before is there, and it took so long


def test_what_broke_is_measured_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks_at(step: int) -> None:
        def check(trainer: training.VAETask) -> None:
            if trainer.step == step:
                raise NonFiniteError("the encoder has collapsed")

        monkeypatch.setattr(training.VAETask, "check_encoder", check)

    command = ["reproduce", "table2-mnist", "--preset", "smoke", "--device", "cpu", "--force", "--set", "methods=[csm]"]
    changes = [*table2.PRESETS["smoke"].mnist_changes, "train.validate_every=1"]
    command += ["--set", f"mnist_changes={json.dumps(changes)}", "--out", str(tmp_path / "results")]
    for step, measured in ((2, True), (1, False)):
        breaks_at(step)
        assert application.run([*command, "--work", str(tmp_path / f"work {step}")]) == 0
        metrics = json.loads((tmp_path / "results" / "table2-mnist" / "smoke.json").read_text())["metrics"]
        assert "collapsed" in metrics["diverged"]["vae-mnist 2 csm seed 0"]
        rows = metrics["columns"]["digits, 2 latents"]["methods"]
        assert set(rows) == ({"csm"} if measured else set())
        if measured:
            assert rows["csm"]["steps"] == 1
            assert rows["csm"]["annealed"]["images"] == 3
            assert rows["csm"]["broke"] == [0]
        (tmp_path / "results" / "table2-mnist" / "smoke-cells.json").unlink()


def _noted(trained: list[Any], config: Any, train: Any, args: Any, kw: Any) -> Any:
    trained.append((config.train.method, config.train.seed))
    return train(config, *args, **kw)

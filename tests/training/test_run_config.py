"""Run configurations: errors are one line with the path of the key."""

from __future__ import annotations

from pathlib import Path

import pytest

from arcsm.data import TOYS
from arcsm.implicit.vae.runs import VAERunConfig
from arcsm.training import run_config
from arcsm.training.run_config import load_config, parse_config
from small_runs import TOY

TEXT = """
name: tiny
data: {kind: toy, name: rings, rows: 200}
model:
  context: {kind: MADE, hidden_features: [8], context_features: 4}
  head: {kind: ScoreHead, hidden_features: [8]}
  noise: {sigma_max: 1.0, sigma_min: 0.1, levels: 3}
train: {steps: 3, batch_size: 32, device: cpu}
"""


def test_every_preset_builds_a_model_for_its_data() -> None:
    known = run_config.presets()
    assert {"digits", "mnist-made", "table", *(f"toy-{name.replace('_', '-')}" for name in TOYS)} <= known.keys()
    for name in known:
        tree = run_config.load_tree(name)
        assert tree["name"] == name
        if tree.get("kind") == "vae":
            config = run_config.validated(tree, name, VAERunConfig)
            assert config.model.build({"image_shape": [3, 32, 32], "levels": 256}).features == 3072
            continue
        parsed = load_config(name)
        model = parsed.model.build(12, {"image_shape": [3, 2, 2]})
        assert model.context.context_features == model.head.context_features


def test_a_written_configuration_is_read_back() -> None:
    parsed = parse_config(TEXT, "tiny.yaml", ["train.learning_rate=0.5"])
    again = parse_config(run_config.dump_config(parsed), "again")
    assert again == parsed
    assert again.train.learning_rate == 0.5


def test_changed_steps_override_the_epochs_of_a_preset() -> None:
    assert load_config("mnist-made").train.epochs == 20.0
    changed = load_config("mnist-made", ["train.steps=7"]).train
    assert (changed.steps, changed.epochs) == (7, None)
    later = load_config("mnist-made", ["train.steps=7", "train.epochs=2"]).train
    assert later.epochs == 2.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("train.stepz=1", r"^t: train\.stepz: unknown key; did you mean steps\?$"),
        ("train.objective=xyz", r"^t: train\.objective: expected one of csm"),
        (
            "model.head.hiden_features=3",
            r"^t: model\.head\.hiden_features: unknown key; did you mean hidden_features\?$",
        ),
        ("model.head.kind=Nope", r"^t: model\.head\.kind: expected one of ScoreHead.*'Nope'"),
        ("model.noise.levels=x", r"^t: model\.noise\.levels: .*integer"),
        ("data.kind=nope", r"^t: data: .*nope"),
        ("nothing", "expected KEY=VALUE"),
        ("train.epochs=.inf", r"train\.epochs"),
        ("train.mix=7", r"train\.mix"),
        ("train.seed=99999999999999999999", r"train\.seed"),
        ("extra=1", r"^t: extra: unknown key"),
    ],
)
def test_mistakes_are_one_line_with_the_path(change: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        parse_config(TEXT, "t", [change])
    assert "\n" not in str(caught.value)


def test_unknown_presets_and_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="did you mean digits"):
        load_config("digit")
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1, 2")
    with pytest.raises(ValueError, match="not YAML"):
        load_config(str(broken))
    broken.write_text("- just a list")
    with pytest.raises(ValueError, match="expected keys name, data, model and train"):
        load_config(str(broken))
    broken.write_text("a: 2024-13-45")
    with pytest.raises(ValueError, match="not YAML"):
        load_config(str(broken))
    broken.write_text("!!python/object/apply:os.system ['echo hostile']")
    with pytest.raises(ValueError, match="not YAML"):
        load_config(str(broken))


# Mistakes in files ----------------------------------------------------------------------------------------------------


def test_numbers_that_yaml_reads_as_text_are_numbers() -> None:
    model = parse_config(TOY.format(rows=100, steps=2), "tiny").model.build(2)
    assert model.noise is not None
    assert model.noise.sigma_min == 0.05
    assert model.head.config()["data_std"] == 0.5
    assert model.context.config()["residual"] is False


@pytest.mark.parametrize(
    ("content", "message"), [(b"name: caf\xe9\n", "not text in UTF-8"), (b"[" * 5000, "nested too deeply")]
)
def test_files_that_are_not_yaml_are_rejected(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "run.yaml").write_bytes(content)
    with pytest.raises(ValueError, match=rf"run\.yaml: .*{message}") as error:
        load_config(str(tmp_path / "run.yaml"))
    assert "\n" not in str(error.value)


def test_aliases_are_rejected_before_they_unfold() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * 10)}]" for i in range(9)]
    with pytest.raises(ValueError, match=r"^run\.yaml: not YAML: expected a value, got the alias \*a0; .* line 2"):
        parse_config("\n".join(lines), "run.yaml")
    with pytest.raises(ValueError, match=r"^--set train\.seed=\[&a 1, \*a\]: the value is not YAML"):
        load_config("toy-rings", ["train.seed=[&a 1, *a]"])


def test_files_too_large_for_a_configuration_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("# long\n" * 200_000)
    with pytest.raises(ValueError, match=r"run\.yaml: expected a configuration of at most 1 MiB, got a larger file$"):
        load_config(str(tmp_path / "run.yaml"))

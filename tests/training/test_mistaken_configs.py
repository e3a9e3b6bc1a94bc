"""Configurations with mistakes: one line that names the key or the file."""

from __future__ import annotations

from pathlib import Path

import pytest

from arcsm.cli import application
from arcsm.training.run_config import load_config, parse_config
from small_runs import TOY


def run(*arguments: object) -> int:
    return application.run([str(argument) for argument in arguments])


def test_numbers_that_yaml_reads_as_text_are_numbers() -> None:
    config = parse_config(TOY.format(rows=100, steps=2), "tiny")
    model = config.model.build(2)
    assert model.noise is not None
    assert model.noise.sigma_min == 0.05
    assert model.head.config()["data_std"] == 0.5
    assert model.context.config()["residual"] is False
    with pytest.raises(ValueError, match=r"model\.noise\.sigma_min: .* got 'tiny'"):
        parse_config(TOY.format(rows=100, steps=2).replace("5e-2", "tiny"), "tiny")


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ("train.epochs=.inf", "epochs"),
        ("train.mix=.nan", "mix"),
        ("train.mix=7", "mix"),
        ("train.steps=true", "steps"),
        ("train.learning_rate=.inf", "learning_rate"),
        ("train.seed=99999999999999999999", "seed"),
        ("train.precision=64-true", "precision"),
    ],
)
def test_meaningless_values_are_rejected_by_key(change: str, key: str) -> None:
    with pytest.raises(ValueError, match=rf"train\.{key}"):
        load_config("toy-rings", [change])


@pytest.mark.parametrize(
    ("content", "message"), [(b"name: caf\xe9\n", "not text in UTF-8"), (b"[" * 5000, "nested too deeply")]
)
def test_files_that_are_not_yaml_are_rejected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, message: str
) -> None:
    (tmp_path / "run.yaml").write_bytes(content)
    assert run("train", tmp_path / "run.yaml", "--out", tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert message in error
    assert "run.yaml" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("text", ["a: 2024-13-45", "a: 0x_", "a: !!timestamp x", "a: !!bool x"])
def test_meaningless_yaml_is_rejected(text: str) -> None:
    with pytest.raises(ValueError, match=r"^run\.yaml: not YAML: "):
        parse_config(text, "run.yaml")


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

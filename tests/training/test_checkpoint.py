"""Training checkpoints: which ones a run accepts."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest

from arcsm import MADE, AutoregressiveModel, NoiseLadder, ScoreHead, fit, load, serialization
from arcsm.training.checkpoint import STATE_NAME
from small_runs import correlated_rows, short_config, small_density


def test_a_checkpoint_of_another_configuration_is_rejected(tmp_path: Path) -> None:
    fit(small_density(), correlated_rows(), config=short_config(), run=tmp_path)
    with pytest.raises(ValueError, match="a different train configuration"):
        fit(small_density(), correlated_rows(), config=short_config(learning_rate=0.5), run=tmp_path, resume=True)


def test_a_checkpoint_without_later_settings_is_accepted(tmp_path: Path) -> None:
    fit(small_density(), correlated_rows(), config=short_config(), run=tmp_path)
    path = tmp_path / STATE_NAME
    tensors, header = serialization.read_tensors(path, "cpu")
    whole = copy.deepcopy(header)
    for part, name in (("context", "missing"), ("context", "hide"), ("head", "residual")):
        del header["model"][part][name]
    del header["train"]["dequantise"]
    serialization.write_tensors(path, tensors, header)
    assert (
        fit(small_density(), correlated_rows(), config=short_config(), run=tmp_path, resume=True).steps
        == short_config().steps
    )

    whole["model"]["context"]["hide"] = 0.25  # a setting that is written counts, whatever its default
    serialization.write_tensors(path, tensors, whole)
    with pytest.raises(ValueError, match="a different model configuration"):
        fit(small_density(), correlated_rows(), config=short_config(), run=tmp_path, resume=True)


def test_a_truncated_checkpoint_is_rejected(tmp_path: Path) -> None:
    fit(small_density(), correlated_rows(), config=short_config(), run=tmp_path)
    state = tmp_path / STATE_NAME
    state.write_bytes(state.read_bytes()[:-100])
    with pytest.raises(ValueError, match="not a complete safetensors file"):
        fit(small_density(), correlated_rows(), config=short_config(), run=tmp_path, resume=True)


def test_numpy_numbers_are_written_as_numbers(tmp_path: Path) -> None:
    sizes, ladder = (np.int64(16),), NoiseLadder(np.float32(1.0), 0.1, np.int64(5))
    model = AutoregressiveModel(MADE(np.int64(2), np.int64(4), sizes), ScoreHead(np.int64(4), sizes), ladder)
    fit(model, correlated_rows(), config=short_config(steps=2), run=tmp_path)
    assert load(tmp_path).noise == NoiseLadder(1.0, 0.1, 5)


@pytest.mark.parametrize("name", ["step", "seconds", "running", "history", "data", "best", "position", "kinds"])
def test_a_checkpoint_with_any_other_entry_resumes_or_is_rejected_in_one_line(name: str, tmp_path: Path) -> None:
    rows, valid, config = correlated_rows(), correlated_rows(60, 2), short_config(steps=2, validate_every=1)
    fit(small_density(), rows, valid, config=config, run=tmp_path)
    path = tmp_path / STATE_NAME
    tensors, header = serialization.read_tensors(path, "cpu")
    changes = [None, -1, "x", [], {}, True, 10**400, [None], [{"a": 1}], {"step": [], "loss": 0.0, "missed": 0}]
    for value in changes:
        serialization.write_tensors(path, tensors, {**header, name: value})
        try:
            fit(small_density(), rows, valid, config=config, run=tmp_path, resume=True)
        except ValueError as error:
            assert str(error).startswith(f"{path}: "), value  # noqa: PT017 (some changes are harmless)
            assert "\n" not in str(error), value  # noqa: PT017
        else:
            assert value in ([], {}, True, -1), value

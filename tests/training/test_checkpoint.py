"""Training checkpoints: which ones a run accepts."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

from arcsm import fit, serialization
from arcsm.training.checkpoint import STATE_NAME
from small_runs import correlated_rows, short_config, small_density


def test_a_checkpoint_without_later_settings_is_accepted(tmp_path: Path) -> None:
    fit(small_density(), correlated_rows(), config=short_config(), run=tmp_path)
    path = tmp_path / STATE_NAME
    tensors, header = serialization.read_tensors(path, "cpu")
    whole = copy.deepcopy(header)
    for part, name in (("context", "missing"), ("context", "hide"), ("head", "residual")):
        del header["model"][part][name]
    del header["train"]["dequantise"]
    serialization.write_tensors(path, tensors, header)
    resumed = fit(small_density(), correlated_rows(), config=short_config(), run=tmp_path, resume=True)
    assert resumed.steps == short_config().steps

    whole["model"]["context"]["hide"] = 0.25  # a setting that is written counts, whatever its default
    serialization.write_tensors(path, tensors, whole)
    with pytest.raises(ValueError, match="a different model configuration"):
        fit(small_density(), correlated_rows(), config=short_config(), run=tmp_path, resume=True)


def test_a_truncated_checkpoint_and_one_of_another_configuration_are_rejected(tmp_path: Path) -> None:
    fit(small_density(), correlated_rows(), config=short_config(), run=tmp_path)
    with pytest.raises(ValueError, match="a different train configuration"):
        fit(small_density(), correlated_rows(), config=short_config(learning_rate=0.5), run=tmp_path, resume=True)
    state = tmp_path / STATE_NAME
    state.write_bytes(state.read_bytes()[:-100])
    with pytest.raises(ValueError, match="not a complete safetensors file"):
        fit(small_density(), correlated_rows(), config=short_config(), run=tmp_path, resume=True)


@pytest.mark.parametrize("name", ["step", "history", "data", "best"])
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

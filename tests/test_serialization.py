"""Files of tensors with a JSON header, and the states of training; damaged files are in test_checkpoint."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from arcsm import serialization
from arcsm.serialization import (
    load_state,
    read_header,
    read_module,
    read_state,
    read_tensors,
    save_module,
    weights_path,
    write_tensors,
)

WEIGHTS = {"layer.weight": torch.arange(6.0).view(2, 3), "layer.bias": torch.zeros(2)}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "state.safetensors"
    write_tensors(path, WEIGHTS, {"train": {"seed": 0, "ema": 0.9}, "step": 7})
    return path


def test_a_header_comes_back_alone_and_with_its_tensors(file: Path) -> None:
    tensors, header = read_tensors(file)
    assert header == read_header(file) == {"schema_version": 1, "train": {"seed": 0, "ema": 0.9}, "step": 7}
    assert tensors.keys() == WEIGHTS.keys()
    assert all(torch.equal(tensors[name], WEIGHTS[name]) for name in WEIGHTS)


def test_scalars_of_numpy_and_torch_become_numbers(tmp_path: Path) -> None:
    write_tensors(tmp_path / "file.safetensors", {}, {"a": np.float64(0.5), "b": torch.tensor(3), "c": np.int64(2)})
    assert read_header(tmp_path / "file.safetensors") == {"schema_version": 1, "a": 0.5, "b": 3, "c": 2}


@pytest.mark.parametrize("read", [read_tensors, read_header])
def test_the_same_files_are_rejected_with_and_without_their_tensors(read: Any, tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    with pytest.raises(ValueError, match="no such file"):
        read(path)
    path.write_bytes(b"half")
    with pytest.raises(ValueError, match="not a complete safetensors file"):
        read(path)
    safetensors.torch.save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="not one that arcsm wrote"):
        read(path)
    for text, message in (
        ("[" * 100_000, "the configuration is not JSON"),
        ("[]", "the configuration has no schema_version"),
        ('{"schema_version": 2}', r"written by a later arcsm \(schema 2, known 1\); upgrade arcsm"),
    ):
        safetensors.torch.save_file({"weight": torch.zeros(2)}, path, {"arcsm": text})
        with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: {message}") as error:
            read(path)
        assert "\n" not in str(error.value)


def test_a_path_is_a_weights_file_or_a_folder_with_one() -> None:
    assert weights_path("run/best.safetensors") == Path("run/best.safetensors")
    assert weights_path("run") == Path("run/model.safetensors")
    assert weights_path("run.v2") == Path("run.v2/model.safetensors")


@pytest.mark.parametrize(("name", "files"), [("m.safetensors", 1), ("run", 2)])
def test_a_module_comes_back(tmp_path: Path, name: str, files: int) -> None:
    module, other = nn.Linear(3, 2), nn.Linear(3, 2)
    save_module(module, {"kind": "Linear"}, tmp_path / "models" / name)
    tensors, config = read_module(tmp_path / "models" / name)
    load_state(other, tensors, Path(name))
    assert torch.equal(other.weight, module.weight)
    assert config == {"schema_version": 1, "kind": "Linear"}
    assert sum(path.is_file() for path in (tmp_path / "models").rglob("*")) == files


@pytest.mark.parametrize("text", ['{"schema_version": 1, "kind": "Other"}', "{"])
def test_the_header_of_the_weights_counts_beside_another_configuration(tmp_path: Path, text: str) -> None:
    save_module(nn.Linear(3, 2), {"kind": "Linear"}, tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.warns(UserWarning, match=r"config\.json: does not belong to model.safetensors and is ignored"):
        _, config = read_module(tmp_path)
    assert config["kind"] == "Linear"
    save_module(nn.Linear(3, 2), {"kind": "Linear"}, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_module(tmp_path)


BAD_TENSORS: dict[str, tuple[dict[str, Tensor], str]] = {
    "missing": ({"weight": torch.zeros(2, 3)}, "tensor bias is missing"),
    "unknown": ({"weight": torch.zeros(2, 3), "bias": torch.zeros(2), "z": torch.zeros(1)}, "z is not part"),
    "shape": ({"weight": torch.zeros(3, 2), "bias": torch.zeros(2)}, r"expected shape \(2, 3\) .* got \(3, 2\)"),
    "type": ({"weight": torch.zeros(2, 3).int(), "bias": torch.zeros(2)}, "type torch.float32, got .*torch.int32"),
    "too large": (
        {"weight": torch.full((2, 3), 1e300, dtype=torch.float64), "bias": torch.zeros(2)},
        "weight holds NaN or infinity in torch.float32, the type of this model",
    ),
}


@pytest.mark.parametrize("name", BAD_TENSORS)
def test_tensors_that_do_not_fit_a_module_are_named(name: str) -> None:
    tensors, message = BAD_TENSORS[name]
    with pytest.raises(ValueError, match=f"^here: tensor .*{message}|^here: {message}"):
        load_state(nn.Linear(3, 2), tensors, Path("here"))


def unchanged(entry: Any) -> Any:
    return entry


def test_a_state_of_an_older_version_is_completed_with_defaults(file: Path) -> None:
    expected = {"train": {"seed": 0, "ema": 0.9, "added": True}}
    read_state(file, "cpu", expected, {"train": lambda train: {"added": True, **train}})
    with pytest.raises(
        ValueError, match=r"a different train configuration \(train.added|a different train configuration"
    ):
        read_state(file, "cpu", expected, {"train": unchanged})


@pytest.mark.parametrize(
    ("entry", "difference"),
    [
        ({"seed": 1, "ema": 0.9}, r" \(seed: 0 then, 1 now\)"),
        ({"seed": 0, "ema": "a" * 300}, ""),
        (3, ""),
    ],
)
def test_a_state_of_another_configuration_is_rejected(file: Path, entry: Any, difference: str) -> None:
    message = f"was written with a different train configuration{difference}; use another run folder"
    with pytest.raises(ValueError, match=message):
        read_state(file, "cpu", {"train": entry}, {"train": unchanged})


class _Doubles(nn.Module):
    """A module whose configuration rebuilds the same tensors, but not itself."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = 2.0 * rate

    def config(self) -> dict[str, float]:
        return {"rate": self.rate}


def test_a_configuration_that_changes_when_it_is_rebuilt_is_rejected() -> None:
    module = _Doubles(1.0)
    with pytest.raises(ValueError, match=r"model: config\(\): rate is 4.0 once rebuilt, not 2.0"):
        serialization.check_rebuilds(lambda config: _Doubles(config["rate"]), module.config(), module.state_dict())

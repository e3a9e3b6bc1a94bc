"""Sizes of networks have bounds, in constructors and in files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from arcsm import (
    MADE,
    AutoregressiveModel,
    DiscretisedLogisticMixtureHead,
    GaussianHead,
    LogisticMixtureHead,
    NoiseLadder,
    PixelCNNPP,
    ScoreHead,
    load,
)
from arcsm.implicit.networks.trunks import ConvolutionalTrunk

CONFIG: dict[str, Any] = {
    "schema_version": 1,
    "context": {"kind": "MADE", "features": 2, "context_features": 4, "hidden_features": [8]},
    "head": {"kind": "ScoreHead", "context_features": 4, "hidden_features": [8]},
    "noise": {"sigma_max": 1.0, "sigma_min": 0.1, "levels": 5},
    "metadata": {},
}


@pytest.mark.parametrize(
    ("build", "arguments", "message"),
    [
        (MADE, {"features": 1 << 21}, "features=2097152"),
        (MADE, {"features": 2, "hidden_features": (1 << 19, 1 << 19)}, "weights"),
        (MADE, {"features": 2, "hidden_features": "64"}, "hidden_features: expected whole numbers, got '64'"),
        (MADE, {"features": 2, "order": (0.9, 1.0)}, r"order: expected whole numbers, got \(0.9, 1.0\)"),
        (ScoreHead, {"sinusoids": 1, "max_frequency": 0.0}, "max_frequency: expected a positive, finite number"),
        (ConvolutionalTrunk, {"image_shape": (1, 4.5, 4), "channels": (4,)}, "image_shape: expected whole numbers"),
        (PixelCNNPP, {"image_shape": (1, 4)}, r"an image_shape \(channels, height, width\) .*, got \(1, 4\)"),
        (PixelCNNPP, {"image_shape": (1, 0, 4)}, r"sizes from 1 to 16384 .*, got \(1, 0, 4\)"),
        (PixelCNNPP, {"image_shape": (1, 1 << 11, 1 << 11)}, "at most 2097152 values"),
        (PixelCNNPP, {"image_shape": (1, 4, 4), "nr_resnet": 16_000}, "nr_resnet=16000"),
        (ScoreHead, {"hidden_features": [1] * 400_000}, "at most 256 hidden_features, got 400000"),
        (GaussianHead, {"context_features": 10**9}, "context_features=1000000000"),
        (LogisticMixtureHead, {"components": 1 << 20, "context_features": 1 << 20}, "weights"),
        (DiscretisedLogisticMixtureHead, {"levels": 10**9}, "levels=1000000000"),
        (ScoreHead, {"data_std": 1e308}, "at most 1e.15, got data_std=1e.308"),
        (NoiseLadder, {"sigma_max": 1e308, "sigma_min": 0.1}, "sigmas from 1e-15 to 1e.15"),
        (NoiseLadder, {"sigma_max": 1.0, "sigma_min": 0.1, "levels": 10**5}, "levels from 1 to 10000, got 100000"),
    ],
)
def test_sizes_beyond_their_bounds_are_rejected_in_one_short_line(
    build: Any, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        build(**arguments)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 200


@pytest.mark.parametrize(
    ("part", "sizes"),
    [
        ("context", {"hidden_features": [512, 512]}),
        ("head", {"hidden_features": [512, 512]}),
        ("context", {"kind": "PixelCNNPP", "image_shape": [1, 1, 2], "features": None, "hidden_features": None}),
    ],
)
def test_a_model_is_built_only_if_the_tensors_of_its_file_fit(
    part: str, sizes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merged = {key: value for key, value in {**CONFIG[part], **sizes}.items() if value is not None}
    path, devices = tmp_path / "model.safetensors", []
    tensors = {"shift": torch.zeros(2), "scale": torch.ones(2)}
    safetensors.torch.save_file(tensors, path, metadata={"arcsm": json.dumps({**CONFIG, part: merged})})
    original = AutoregressiveModel.from_config.__func__  # type: ignore[attr-defined]

    def from_config(cls: type[AutoregressiveModel], config: Any) -> AutoregressiveModel:
        devices.append(torch.get_default_device().type)
        return original(cls, config)

    monkeypatch.setattr(AutoregressiveModel, "from_config", classmethod(from_config))
    with pytest.raises(ValueError, match=r"model.safetensors: tensor .* (is missing|expected shape)"):
        load(path)
    assert devices == ["meta"]

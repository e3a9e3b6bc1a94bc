"""Small data in the place of the real sets."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from arcsm.metrics import frechet
from small_experiments import write_mnist, write_tables


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with small data in the formats of MNIST, ADBench and UCI."""
    folder = tmp_path_factory.mktemp("data")
    write_mnist(folder / "mnist")
    write_tables(folder)
    return folder


@pytest.fixture
def small_data(data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Use the small data as the data folder."""
    monkeypatch.setenv("ARCSM_DATA", str(data_folder))
    return data_folder


@pytest.fixture
def plain_features(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Fréchet distances compare means of colours instead of the features of a large network."""
    monkeypatch.setattr(frechet, "_lite_network", nn.Identity)
    monkeypatch.setattr(frechet.LiteFeatures, "num_features", 3)
    monkeypatch.setattr(frechet.LiteFeatures, "forward", lambda self, images: images.double().mean((2, 3)))

"""Small data in the place of the real sets."""

from __future__ import annotations

from pathlib import Path

import pytest

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

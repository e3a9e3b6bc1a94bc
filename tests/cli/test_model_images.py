"""Images in commands that use a trained model: resized images and names of any bytes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from arcsm import (
    MADE,
    AutoregressiveModel,
    NoiseLadder,
    ScoreHead,
    save,
)
from arcsm._runtime.files import atomic_path
from arcsm.cli import application
from small_runs import ON_DATA


def run(*arguments: object) -> int:
    return application.run([str(argument) for argument in arguments])


def picture(seed: int, shape: tuple[int, ...] = (8, 8)) -> Any:
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def test_a_run_that_resized_its_images_resizes_those_to_score(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for index in range(20):
        Image.fromarray(picture(index, (16, 16 + 4 * (index % 2)))).save(tmp_path / "images" / f"{index:02d}.png")
    (tmp_path / "run.yaml").write_text(ON_DATA % f"{{kind: images, path: {tmp_path / 'images'}, size: 4}}")
    assert run("train", tmp_path / "run.yaml", "--out", tmp_path / "out") == 0
    assert run("score", tmp_path / "out", tmp_path / "images", "--out", tmp_path / "s.csv") == 0
    assert len((tmp_path / "s.csv").read_text().splitlines()) == 21


def test_file_names_of_any_bytes_and_lengths_are_written(tmp_path: Path) -> None:
    picture = Image.fromarray(np.zeros((1, 2), np.uint8))
    (tmp_path / "images").mkdir()
    picture.save(tmp_path / "images" / "a.png")
    os.rename(tmp_path / "images" / "a.png", os.fsencode(tmp_path / "images") + b"/\xff\xfe.png")
    made, head = MADE(2, 4, (8,)), ScoreHead(4, (8,))
    metadata = {"image_shape": [1, 1, 2], "levels": 256}
    save(AutoregressiveModel(made, head, NoiseLadder(1.0, 0.1, 4), metadata=metadata), tmp_path / "run")
    assert run("score", tmp_path / "run", tmp_path / "images", "--out", tmp_path / "s.csv") == 0
    assert "\\xff\\xfe.png" in (tmp_path / "s.csv").read_text()
    long = tmp_path / f"{'x' * 240}.csv"
    with atomic_path(long) as temporary:
        temporary.write_text("1")
    assert long.read_text() == "1"

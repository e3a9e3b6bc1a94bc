"""Fuzz the readers of files: each must return, or raise a one-line ValueError.

python -m fuzz TARGET [SECONDS]      (needs the extra "fuzz"; targets: config, table, images, model)
"""

from __future__ import annotations

import io
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import atheris
import numpy as np
import pandas as pd
import torch
from PIL import Image

with atheris.instrument_imports(include=["arcsm"]):
    import arcsm
    from arcsm import MADE, AutoregressiveModel, NoiseLadder, ScoreHead
    from arcsm.data import blocks_of, read_frame, read_images, read_table
    from arcsm.training.run_config import parse_config, presets

Seeds = Iterator[bytes]
_FOLDER = Path(tempfile.mkdtemp(prefix="arcsm-fuzz-"))
_SUFFIXES = (".csv", ".npy", ".npz", ".parquet", ".csv.gz")


def config(data: bytes) -> None:
    """Parse a configuration."""
    parse_config(data.decode("utf-8", "replace"), "fuzz")


def config_seeds() -> Seeds:
    return (path.read_bytes() for path in presets().values())


def table(data: bytes) -> None:
    """Read a table; the first byte selects the format."""
    if not data:
        return
    path = _FOLDER / f"table{_SUFFIXES[data[0] % len(_SUFFIXES)]}"
    path.write_bytes(data[1:])
    readers: list[Callable[[Path], object]] = [read_table, read_frame]
    if path.suffix in (".npy", ".parquet"):
        readers.append(blocks_of)
    for reader in readers:
        expected(lambda reader=reader: reader(path))


def table_seeds() -> Seeds:
    frame = pd.DataFrame({"a": [1.0, 2.0, 3.0], "b": [1, 2, 3]})
    values = frame.to_numpy()
    array, archive, parquet = io.BytesIO(), io.BytesIO(), io.BytesIO()
    np.save(array, values)
    np.savez(archive, X=values)
    frame.to_parquet(parquet)
    contents = (frame.to_csv(index=False).encode(), array.getvalue(), archive.getvalue(), parquet.getvalue())
    return (bytes([kind]) + content for kind, content in enumerate(contents))


def images(data: bytes) -> None:
    """Read an image; the first byte selects the format."""
    if not data:
        return
    path = _FOLDER / ("image.png", "image.jpg", "image.bmp")[data[0] % 3]
    path.write_bytes(data[1:])
    expected(lambda: read_images(path))


def images_seeds() -> Seeds:
    picture = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    for kind, name in enumerate(("PNG", "JPEG", "BMP")):
        content = io.BytesIO()
        picture.save(content, format=name)
        yield bytes([kind]) + content.getvalue()


def model(data: bytes) -> None:
    """Load the weights of a model."""
    path = _FOLDER / "model.safetensors"
    path.write_bytes(data)
    arcsm.load(path)


def model_seeds() -> Seeds:
    built = AutoregressiveModel(MADE(2, 2, (4,)), ScoreHead(2, (4,)), NoiseLadder(1.0, 0.1, 2))
    arcsm.save(built, _FOLDER / "seed.safetensors")
    yield (_FOLDER / "seed.safetensors").read_bytes()


TARGETS: dict[str, tuple[Callable[[bytes], None], Callable[[], Seeds]]] = {
    "config": (config, config_seeds),
    "table": (table, table_seeds),
    "images": (images, images_seeds),
    "model": (model, model_seeds),
}


def expected(call: Callable[[], object]) -> None:
    """Accept one-line ValueErrors; any other error ends the fuzzing."""
    try:
        call()
    except ValueError as error:
        if len(str(error).splitlines()) > 1:
            raise AssertionError(f"an error of more than one line: {error!r}") from error


def main() -> None:
    """Run libFuzzer on a target for some seconds, starting from valid files."""
    name, seconds = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "60"
    target, seeds = TARGETS[name]
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    corpus = _FOLDER / "corpus"
    corpus.mkdir()
    for number, content in enumerate(seeds()):
        (corpus / str(number)).write_bytes(content)
    options = [f"-max_total_time={seconds}", "-rss_limit_mb=4096", "-max_len=20000", f"-artifact_prefix={os.getcwd()}/"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], lambda data: expected(lambda: target(data)))
    atheris.Fuzz()


if __name__ == "__main__":
    main()

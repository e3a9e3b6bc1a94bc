"""What is fuzzed: how a user's command reads each kind of file, and valid files to begin with."""

import gzip
import io
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow
import torch
from PIL import Image
from pyarrow import parquet

from arcsm import MADE, AutoregressiveModel, GaussianHead, LogisticMixtureHead, NoiseLadder, PixelCNNPP, ScoreHead, save
from arcsm.cli import application
from arcsm.cli.fitted_tables import FittedTable
from arcsm.cli.kinds import kind_at, kind_in_config
from arcsm.cli.table_inputs import TableInput
from arcsm.data import FrameFile, ReadOptions, blocks_of, read_array, read_frame, read_idx, read_images, read_table
from arcsm.data.table import TableFile
from arcsm.estimators import ScoreDensity, ScoreOutlierDetector
from arcsm.implicit import VAEConfig
from arcsm.implicit.networks.vae import save_vae
from arcsm.training.run_config import dump_config, parse_tree, presets, validated
from fuzz import mutators

Seeds = Iterator[bytes]
_MOST_VALUES = 200  # of a row, and levels of a ladder, with which a model is also used
_OWN_ERRORS = (ValueError, TypeError)


@dataclass(frozen=True)
class Target:
    """A kind of file.

    Attributes:
        read: Reads a file, given its content and its path.
        seeds: Yields valid files, given a folder to write to.
        suffix: The end of the file's name.
        mutate: Changes a file, as atheris calls it. Default: libFuzzer's own changes.
    """

    read: Callable[[bytes, Path], None]
    seeds: Callable[[Path], Seeds]
    suffix: str = ""
    mutate: Callable[[bytes, int, int], bytes] | None = None


def each(path: Path, *calls: Callable[[Path], object]) -> None:
    """Call all readers of a file; the last error counts, and one that is not of this package at once."""
    failure: Exception | None = None
    for call in calls:
        try:
            call(path)
        except _OWN_ERRORS as error:
            failure = error
            if "\n" in str(error).strip():
                break
    if failure is not None:
        raise failure


# Models -------------------------------------------------------------------------------------------------------------


def read_model(_: bytes, path: Path) -> None:
    """Load a model and, if it is small, use it as the commands do."""
    model = kind_at(path).load(path, "cpu")
    ladder = getattr(model, "noise", None)
    if model.features > _MOST_VALUES or (isinstance(ladder, NoiseLadder) and ladder.levels > _MOST_VALUES):
        return
    commands: list[list[Any]] = [["info", path], ["sample", path, "-n", 1, "--out", path.with_name("samples.csv")]]
    commands.append(["sample", path, "-n", 1, "--out", path.with_name("samples.png")])
    np.save(path.with_name("rows.npy"), np.zeros((1, model.features)))
    commands.append(["score", path, path.with_name("rows.npy"), "--out", path.with_name("scores.csv")])
    stderr, sys.stderr = sys.stderr, open(os.devnull, "w")  # noqa: SIM115
    try:
        for command in commands:
            application.run([str(word) for word in command])
    finally:
        sys.stderr.close()
        sys.stderr = stderr


def model_seeds(folder: Path) -> Seeds:
    ladder, image = NoiseLadder(1.0, 0.1, 2), {"image_shape": [1, 2, 2], "levels": 256}
    models = [
        AutoregressiveModel(MADE(2, 2, (4,)), ScoreHead(2, (4,)), ladder, metadata={"columns": ["a", "b"]}),
        AutoregressiveModel(MADE(4, 2, (4,)), LogisticMixtureHead(2, 2), metadata={**image, "resized": True}),
        AutoregressiveModel(MADE(2, 2, (4,), classes=2, condition_features=1), GaussianHead(2), ladder),
        AutoregressiveModel(PixelCNNPP((1, 2, 2), 2, 2, 1), GaussianHead(2), None, metadata=image),
    ]
    path = folder / "model.safetensors"
    for model in models:
        save(model, path)
        yield path.read_bytes()
    save_vae(VAEConfig(latents=2, hidden_features=(4,), units=2).build(image), path)
    yield path.read_bytes()


def read_fitted(_: bytes, path: Path) -> None:
    """Read a fitted table and use it as the commands do; these exit with an error of one line at most."""
    FittedTable.read(path)
    table, out = path.with_name("table.csv"), path.with_name("out.csv")
    frame()[["number", "name"]].to_csv(table, index=False)
    stderr, sys.stderr = sys.stderr, open(os.devnull, "w")  # noqa: SIM115
    try:
        for command in (["detect", table], ["impute", table], ["synthesize", "-n", 2], ["score", table]):
            application.run([str(word) for word in (*command, "--model", path, "--out", out)])
    finally:
        sys.stderr.close()
        sys.stderr = stderr


def fitted_seeds(folder: Path) -> Seeds:
    table, path = folder / "table.csv", folder / "fitted.safetensors"
    rows = pd.concat([frame()[["number", "name"]]] * 3, ignore_index=True)
    rows.to_csv(table, index=False)
    file = FrameFile(table)
    read = file.read()
    small: dict[str, Any] = {"max_steps": 1, "n_estimators": 1, "hidden_features": (2,), "random_state": 0}
    density, detector = ScoreDensity(**small).fit(read), ScoreOutlierDetector(**small).fit(read)
    for models in ((density, detector), (density, None), (None, detector)):
        FittedTable.of_file(file, read, *models).write(path)
        yield path.read_bytes()


# Configurations -----------------------------------------------------------------------------------------------------


def read_config(content: bytes, _: Path) -> None:
    """Parse a configuration and, if it is small, build its model."""
    tree = parse_tree(content.decode("utf-8", "replace"), "fuzz")
    config: Any = validated(tree, "fuzz", kind_in_config(tree).config)
    dump_config(config)
    if max(_numbers(config.model.model_dump()), default=0) <= _MOST_VALUES:
        metadata = {"image_shape": (1, 4, 4), "levels": 16}
        config.model.build(*(() if config.model_fields.get("kind") else (16,)), metadata)


def _numbers(tree: Any) -> Iterator[float]:
    if isinstance(tree, dict | list | tuple):
        for inner in tree.values() if isinstance(tree, dict) else tree:
            yield from _numbers(inner)
    elif isinstance(tree, int | float):
        yield abs(tree)


def config_seeds(_: Path) -> Seeds:
    for path in presets().values():
        yield path.read_bytes()


# Tables -------------------------------------------------------------------------------------------------------------


def table_of(path: Path) -> None:
    file = FrameFile(path)
    rows = file.read(set_aside=True)
    file.forms.written(rows, as_text=True)


def all_raw_rows(path: Path) -> None:
    for _ in TableFile(path).raw_parts(2):
        pass


def all_blocks(path: Path) -> None:
    blocks = blocks_of(path)
    for block in range(min(len(blocks.ends), 20)):
        blocks.read(block)


def read_csv(content: bytes, path: Path) -> None:
    """Read a CSV file in one of several ways, by its first byte, with options by its second."""
    way, flags, content = *content[:2].ljust(2, b"\0"), content[2:]
    path = path.with_name("table.csv.gz" if flags & 1 else "table.tsv" if flags & 2 else "table.csv")
    path.unlink(missing_ok=True)
    path.write_bytes(gzip.compress(content, 1) if flags & 4 else content)
    ids = tuple(content[:20].decode("latin-1").split(",")[:1]) if flags & 8 else ()
    options = ReadOptions(";" if flags & 16 else None, "," if flags & 32 else None, None, ("x",), ids=ids)
    ways = (table_of, read_table, all_raw_rows, lambda path: read_frame(path, options=options))
    ways[way % len(ways)](path)


def read_npy(_: bytes, path: Path) -> None:
    each(path, read_table, read_frame, all_blocks, read_array, read_images)


def read_npz(_: bytes, path: Path) -> None:
    each(path, read_table, read_frame, read_images)


def read_parquet(_: bytes, path: Path) -> None:
    each(path, read_table, table_of, all_blocks, all_raw_rows)


def read_xlsx(content: bytes, path: Path) -> None:
    """Read a spreadsheet, which the package does not support, by its name, and without one from standard input."""
    stdin, sys.stdin = sys.stdin, SimpleNamespace(buffer=io.BytesIO(content))  # type: ignore[assignment]
    try:
        table = TableInput(Path("-"))
    finally:
        sys.stdin = stdin
    each(path, read_table, lambda _: read_table(table.path))


def frame() -> pd.DataFrame:
    columns = {
        "number": [1.5, None, -3e8, 4.0],
        "whole": [1, 2, 3, 4],
        "truth": [True, False, True, True],
        "name": ["a", "b,", '"c"', "é"],
        "day": pd.date_range("2020-01-01", periods=4),
        "price": ["$1,234.50", "$2.00", "$3.00", "$-4.00"],
    }
    return pd.DataFrame(columns)


def csv_seeds(_: Path) -> Seeds:
    for way in range(4):
        for names in (["number", "name"], ["whole", "day"], ["truth", "price"]):
            part = frame()[names]
            yield bytes([way, 0]) + part.to_csv(index=False).encode()
            yield bytes([way, 5]) + part.to_csv().encode()
            yield bytes([way, 16 + 32]) + part.to_csv(sep=";", decimal=",", index=False).encode()
        yield bytes([way, 8]) + b"1,2\n3,4\n5,6\n"
        yield bytes([way, 2]) + part.to_csv(sep="\t", index=False).encode("utf-16")
        yield bytes([way, 1]) + gzip.compress(part.to_csv().encode())


def arrays() -> dict[str, np.ndarray]:
    return {
        "X": np.arange(12.0).reshape(4, 3),
        "y": np.arange(4),
        "half": np.ones((2, 2), np.float16, order="F"),
        "images": np.arange(48, dtype=np.uint8).reshape(1, 4, 4, 3),
        "one": np.arange(3, dtype=">i4"),
    }


def npy_seeds(_: Path) -> Seeds:
    for array in arrays().values():
        content = io.BytesIO()
        np.save(content, array)
        yield content.getvalue()


def npz_seeds(_: Path) -> Seeds:
    for write in (np.savez, np.savez_compressed):
        for names in (["X"], ["X", "y"], ["images", "half"]):
            content = io.BytesIO()
            write(content, **{name: arrays()[name] for name in names})
            yield content.getvalue()


def parquet_seeds(folder: Path) -> Seeds:
    path, plain = folder / "a.parquet", frame()
    tables = [
        pyarrow.Table.from_pandas(plain[["number", "whole"]]),
        pyarrow.Table.from_pandas(plain),
        pyarrow.table({"lists": [["x"], ["y", "z"]], "places": [{"a": 1, "b": "c"}] * 2}),
        pyarrow.table({"codes": pyarrow.array(["x", "y", "x"]).dictionary_encode(), "bytes": [b"\xff", b"", None]}),
    ]
    for table in tables:
        for options in ({"compression": "none"}, {"compression": "zstd"}, {"use_dictionary": False}):
            parquet.write_table(table, path, **options)
            yield path.read_bytes()


def xlsx_seeds(_: Path) -> Seeds:
    yield mutators.zipped({"[Content_Types].xml": b"<Types/>", "xl/worksheets/sheet1.xml": b"<worksheet/>"})
    yield mutators.zipped({"X.npy": next(npy_seeds(Path())), "xl/workbook.xml": b"<workbook/>"})


# Images -------------------------------------------------------------------------------------------------------------

_FORMATS = ("png", "jpeg", "gif", "bmp", "tiff", "webp", "ppm")


def read_image(_: bytes, path: Path) -> None:
    each(path, read_images, lambda path: read_images(path, channels=1, size=8))


def image_seeds(_: Path) -> Seeds:
    colour = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
    pictures = [Image.fromarray(colour), Image.fromarray(colour[..., 0]), Image.fromarray(colour).convert("P")]
    for format in _FORMATS:
        for picture in pictures[: 2 if format in ("jpeg", "ppm") else 3]:
            content = io.BytesIO()
            picture.save(content, format=format)
            yield content.getvalue()
    content = io.BytesIO()
    Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 999).save(content, format="png")
    yield content.getvalue()
    exif = Image.Exif()
    exif[0x0112] = 6  # the orientation
    content = io.BytesIO()
    pictures[0].save(content, format="jpeg", exif=exif)
    yield content.getvalue()


def read_numbers(content: bytes, path: Path) -> None:
    """Read an IDX file, as it is and gzipped."""
    read_idx(path)
    if content[:2] != b"\x1f\x8b":
        path.write_bytes(gzip.compress(content, 1))
        read_idx(path)


def idx_seeds(_: Path) -> Seeds:
    for code, array in ((8, np.arange(8, dtype=np.uint8)), (13, np.arange(2, dtype=">f4")), (12, np.ones(2, ">i4"))):
        content = bytes([0, 0, code, 1]) + len(array).to_bytes(4, "big") + array.tobytes()
        yield content
        yield gzip.compress(content)
    yield bytes([0, 0, 8, 3]) + b"".join(size.to_bytes(4, "big") for size in (2, 2, 2)) + bytes(8)


TARGETS: dict[str, Target] = {
    "model": Target(read_model, model_seeds, ".safetensors", mutators.model),
    "fitted": Target(read_fitted, fitted_seeds, ".safetensors", mutators.model),
    "config": Target(read_config, config_seeds, ".yaml"),
    "csv": Target(read_csv, csv_seeds, ".csv"),
    "npy": Target(read_npy, npy_seeds, ".npy"),
    "npz": Target(read_npz, npz_seeds, ".npz", mutators.archive),
    "parquet": Target(read_parquet, parquet_seeds, ".parquet", mutators.parquet),
    "image": Target(read_image, image_seeds, ".png", mutators.image),
    "idx": Target(read_numbers, idx_seeds, "", mutators.gzipped),
    "xlsx": Target(read_xlsx, xlsx_seeds, ".xlsx", mutators.archive),
}

torch.set_num_threads(1)

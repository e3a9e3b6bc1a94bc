"""Data sets as configurations name them, split into training, validation and test rows."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from arcsm._runtime import process_group
from arcsm._runtime.random import dequantised
from arcsm.data.checks import check_precision
from arcsm.data.image_sets import digits, mnist, torchvision_images
from arcsm.data.images import read_images
from arcsm.data.pixels import ImageSet, scale_images
from arcsm.data.streams import RowStream, blocks_of, is_large
from arcsm.data.table import read_table
from arcsm.data.toys import toy

_MAX_SAMPLE_ROWS = 10_000  # of a stream


@dataclass(frozen=True)
class Dataset:
    """Rows for training, validation and test."""

    train: Tensor | RowStream  # (N, D) in data units
    valid: Tensor  # for early stopping
    test: Tensor  # for results
    dequantise: float = 0.0  # width of the uniform noise that makes the values continuous; 0 for continuous data
    metadata: dict[str, Any] = field(default_factory=dict)  # image shape and grey levels, or column names
    labels: dict[str, Tensor] = field(default_factory=dict)  # classes, if known, of the rows of train, valid and test

    def train_rows(self, count: int | None = None) -> Tensor:
        """Return at most ``count`` training rows in memory; of a stream, at most 10,000 from a random place."""
        if isinstance(self.train, RowStream):
            return self.train.first(min(count or _MAX_SAMPLE_ROWS, _MAX_SAMPLE_ROWS))
        return self.train[:count]

    def dequantised(self, rows: Tensor, seed: int) -> Tensor:
        """Return rows with uniform dequantisation noise."""
        return dequantised(rows, self.dequantise, torch.Generator().manual_seed(seed))


class _Data(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    validation: float = Field(0.1, gt=0, lt=0.5, description="fraction of the training rows held out for validation")
    test: float = Field(0.1, ge=0, lt=0.5, description="fraction held out for results if the data have no test set")


class DigitsData(_Data):
    """scikit-learn's 1,797 digits of 8x8 pixels."""

    kind: Literal["digits"]


class ToyData(_Data):
    """A two-dimensional distribution of :mod:`arcsm.data.toys`."""

    kind: Literal["toy"]
    name: str
    rows: int = Field(50_000, ge=10)


class TableData(_Data):
    """A table of numbers: CSV, Parquet, NPY or NPZ.

    ``stream`` reads an NPY or Parquet file a part at a time (:mod:`arcsm.data.streams`). Default: if it exceeds 1 GiB.
    """

    kind: Literal["table"]
    path: str
    key: str | None = None
    dequantise: float = Field(0.0, ge=0)
    stream: bool | None = None


class ImageData(_Data):
    """A folder of images, or an array of images in an NPY or NPZ file, whose test set ``test_key`` names.

    A relative path that does not exist is looked up in the data folder. ``skip_bad`` leaves out the images of a folder
    that cannot be read or differ in size from most, with a warning that names them.
    """

    kind: Literal["images"]
    path: str
    channels: Literal[1, 3] | None = None
    size: int | None = Field(None, ge=1)
    key: str | None = None
    test_key: str | None = None
    skip_bad: bool = False


class NamedImageData(_Data):
    """MNIST, CIFAR-10, SVHN or CelebA, in the layout of torchvision (MNIST also as bare IDX files).

    ``path`` may also be an NPZ file of the arrays ``x_train``, ``x_test`` and, with labels, ``y_train`` and ``y_test``.
    Default: the folder ``KIND`` in the data folder, or ``KIND.npz`` if there is no such folder.
    """

    kind: Literal["mnist", "cifar10", "svhn", "celeba"]
    path: str | None = None
    download: bool = False
    size: int | None = Field(None, ge=1)


DataConfig = Annotated[DigitsData | ToyData | TableData | ImageData | NamedImageData, Field(discriminator="kind")]


def named_images_path(kind: str, path: str | None = None) -> Path:
    """Return the folder or NPZ file of a named image set."""
    if path is not None:
        return Path(path)
    folder, archive = data_folder() / kind, data_folder() / f"{kind}.npz"
    return archive if archive.is_file() and not folder.is_dir() else folder


def data_folder() -> Path:
    """Return the folder of named data sets: the environment variable ``ARCSM_DATA``, or ``./data``."""
    return Path(os.environ.get("ARCSM_DATA", "data"))


def load_dataset(config: DataConfig, seed: int = 0) -> Dataset:
    """Load and split the data of a run."""
    match config:
        case DigitsData():
            return _images(digits(), None, config, seed)
        case ToyData():
            rows = toy(config.name).sample(config.rows, torch.Generator().manual_seed(seed))
            return _split(rows, None, config, seed, {"columns": ["x", "y"], "toy": config.name})
        case TableData():
            return _table(config, seed)
        case ImageData():
            return _image_file(config, seed)
        case NamedImageData():
            return _named_images(config, seed)


def _table(config: TableData, seed: int) -> Dataset:
    if is_large(config.path) if config.stream is None else config.stream:
        if config.key is not None:
            raise ValueError(f"data.key: not supported for streamed files, got {config.key!r}")
        first = process_group.group().first
        stream = RowStream(blocks_of(config.path), config.validation, config.test, seed, progress=first)
        return Dataset(stream, stream.valid, stream.test, config.dequantise, {"columns": list(stream.blocks.columns)})
    table = read_table(config.path, config.key)
    check_precision(table.values, table.columns, config.path)
    values = torch.tensor(table.values, dtype=torch.get_default_dtype())
    return _split(values, None, config, seed, {"columns": list(table.columns)}, config.dequantise)


def _image_file(config: ImageData, seed: int) -> Dataset:
    path = Path(config.path)
    path = path if path.exists() or not (data_folder() / path).exists() else data_folder() / path
    train = read_images(path, config.channels, config.size, config.key, skip_bad=config.skip_bad)
    test = None if config.test_key is None else read_images(path, config.channels, config.size, config.test_key)
    return _images(train, test, config, seed)


def _named_images(config: NamedImageData, seed: int) -> Dataset:
    folder = named_images_path(config.kind, config.path)
    if folder.suffix == ".npz":
        train, test = (read_images(folder, size=config.size, key=key) for key in ("x_train", "x_test"))
    elif config.kind == "mnist":
        train, test = (mnist(folder, split, config.download, config.size) for split in ("train", "test"))
    else:
        train, test = (
            torchvision_images(config.kind, folder, split, config.download, config.size) for split in ("train", "test")
        )
    return _images(train, test, config, seed)


def _images(train: ImageSet, test: ImageSet | None, config: _Data, seed: int) -> Dataset:
    """Split images into rows of values in [-1, 1), in the order channel, row, column."""
    shape = list(train.pixels.shape[1:])
    if test is not None and list(test.pixels.shape[1:]) != shape:
        raise ValueError(f"data: training images are {shape}, but test images are {list(test.pixels.shape[1:])}")
    metadata: dict[str, Any] = {"image_shape": shape, "levels": train.levels}
    if getattr(config, "size", None) is not None:
        metadata["resized"] = True  # images to be scored are resized as well
    rows = scale_images(train.pixels, train.levels).flatten(1)
    held_out = None if test is None else scale_images(test.pixels, test.levels).flatten(1)
    dataset = _split(rows, held_out, config, seed, metadata, 2.0 / train.levels, train.labels)
    if test is not None and test.labels is not None:
        dataset.labels["test"] = test.labels
    return dataset


def _split(
    rows: Tensor,
    test: Tensor | None,
    config: _Data,
    seed: int,
    metadata: dict[str, Any],
    dequantise: float = 0.0,
    labels: Tensor | None = None,
) -> Dataset:
    """Split rows and labels at random; ``test`` is the test set, if the data have one."""
    count = len(rows)
    n_valid, n_test = round(count * config.validation), 0 if test is not None else round(count * config.test)
    if min(n_valid, count - n_valid - n_test) < 1:
        raise ValueError(f"data: {count} rows are too few to hold out {config.validation:.0%} for validation")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    parts = {"train": order[n_valid + n_test :], "valid": order[:n_valid], "test": order[n_valid : n_valid + n_test]}
    part_labels = {part: labels[places] for part, places in parts.items() if labels is not None and len(places)}
    test = rows[parts["test"]] if test is None else test
    return Dataset(rows[parts["train"]], rows[parts["valid"]], test, dequantise, metadata, part_labels)

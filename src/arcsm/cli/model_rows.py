"""Rows that commands read for a trained model, and the scores and samples that they write."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from arcsm._runtime.process_group import Group
from arcsm._runtime.progress import track
from arcsm._runtime.random import dequantised
from arcsm.data import ImageSet, frame_writer, read_images, scale_images, write_table
from arcsm.data.checks import missing_columns
from arcsm.data.column_types import default_names
from arcsm.data.images import IMAGE_SUFFIXES, save_images
from arcsm.data.metadata import grey_levels
from arcsm.data.numpy_files import read_array, split_key
from arcsm.data.pixels import unstretch_images
from arcsm.data.read_options import ReadOptions
from arcsm.data.table import TableFile
from arcsm.errors import AccuracyWarning, SkippedWarning, warn
from arcsm.implicit.networks.vae import VAE
from arcsm.model import AutoregressiveModel
from arcsm.reports.pictures import to_pixels
from arcsm.training.runs import class_labels

#: Columns that :func:`score_frame` makes.
SCORE_COLUMNS = ("row", "log_prob", "least_likely_column", "its_log_prob")

_PART_ROWS = 20_000  # of a table
_BATCH_ELEMENTS = 65_536  # rows times features
_MAX_STANDARD_DEVIATIONS = 1e6  # from the mean; single precision reaches no farther


def column_names(model: AutoregressiveModel | VAE) -> tuple[str, ...]:
    """Return the names of a model's columns."""
    return tuple(model.metadata.get("columns") or default_names(model.features))


class RowSource:
    """The rows of a table, an image, an array or a folder of images, in a model's units and column order.

    Images are read and dequantised once. Tables are read in parts, each time they are needed.

    Arguments:
        model: The model.
        path: A table, an image, an array or a folder.
        seed: Seed of the dequantisation of images.
        skip_bad: Skip images that cannot be read or have another size.
        options: How to read a CSV file, and which columns label its rows.
        source: The name of a table in messages. Default: its path.

    Attributes:
        names: File names of the images; ``None`` for tables.
        file: The file of a table; ``None`` for images.
    """

    def __init__(
        self,
        model: AutoregressiveModel,
        path: Path,
        seed: int,
        skip_bad: bool = False,
        options: ReadOptions | None = None,
        source: str | None = None,
    ) -> None:
        self.model, self.options = model, options or ReadOptions()
        self.names: list[str] | None = None
        self.file: TableFile | None = None
        self._has_warned = False
        self._images: Tensor | None = None
        if _are_images(path, model.metadata.get("image_shape") is not None):
            images = images_for(model, path, skip_bad)
            self._images = continuous_images(images, seed)
            self.names = None if images.names is None else [_as_utf8(name) for name in images.names]
        else:
            self.file = TableFile(path, None, self.options, source=source)

    def parts(self) -> Iterator[Tensor]:
        """Yield the rows, ``(n, D)`` each."""
        if self.file is None:
            if self._images is not None:
                yield self._images
            return
        file = self.file
        for frame in file.parts(_PART_ROWS):
            file.check_named(list(frame.columns))
            left_out = [name for name in (*self.options.ignore, *self.options.ids) if name in frame.columns]
            given = frame.drop(columns=left_out)
            chosen = _in_model_order(self.model, given, file.source)
            extra = [str(name) for name in given.columns if name not in chosen.columns]
            if extra and not self._has_warned:
                warn(
                    f"{file.source}: the model has no such columns, so they do not count: {', '.join(extra)}",
                    SkippedWarning,
                )
                self._has_warned = True
            values = file.numbers(chosen)
            rows = torch.from_numpy(np.array(values)).to(self.model.shift.dtype)  # (n, D)
            if not bool(rows.isfinite().all()):
                row, column = (~rows.isfinite()).nonzero()[0].tolist()
                cell = f"{file.locate(frame.index[row])}, column {chosen.columns[column]!r}"
                raise ValueError(f"{file.source}: {cell}: {values[row, column]:g} is too large for single precision")
            yield rows

    def copied_parts(self, whole: bool) -> Iterator[pd.DataFrame]:
        """Yield the columns of a table that are copied to the results: all, or those that label its rows."""
        if self.file is not None:
            for raw in self.file.raw_parts(_PART_ROWS):
                yield raw if whole else self.file.labels(raw, self.options.ids)


def _as_utf8(name: str) -> str:
    """Return a file name, which may hold any bytes, as text that can be written."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _are_images(path: Path, model_has_images: bool) -> bool:
    """Return whether a path holds images: a folder, an image, or an array of integers for a model of images.

    An array of floats holds rows, such as samples of the model.
    """
    suffix = split_key(path)[0].suffix.lower()
    if path.is_dir() or suffix in IMAGE_SUFFIXES:
        return True
    return model_has_images and suffix in (".npy", ".npz") and not np.issubdtype(read_array(path).dtype, np.floating)


def _in_model_order(model: AutoregressiveModel, frame: pd.DataFrame, path: str) -> pd.DataFrame:
    """Select the model's columns by name; by position if the table or the model has no names."""
    names, available = column_names(model), tuple(frame.columns)
    if set(names) <= set(available):
        return frame[list(names)]
    if len(available) != model.features:
        raise ValueError(f"{path}: expected {model.features} columns, got {len(available)}")
    if "columns" in model.metadata and available != default_names(len(available)):
        missing = missing_columns([name for name in names if name not in available])
        others = ", ".join(name for name in available if name not in names)
        raise ValueError(f"{path}: {missing}; it has {others} instead")
    return frame


def images_for(model: AutoregressiveModel, path: Path, skip_bad: bool = False) -> ImageSet:
    """Read images of the model's shape."""
    shape = model.metadata.get("image_shape")
    if shape is None:
        raise ValueError(f"{path}: contains images, but this is a table model with {model.features} columns")
    side = int(shape[1]) if model.metadata.get("resized") else None
    size = (int(shape[1]), int(shape[2])) if skip_bad and side is None else None
    images = read_images(path, channels=int(shape[0]), size=side, shape=size, skip_bad=skip_bad)
    if list(images.pixels.shape[1:]) != list(shape):
        actual = "x".join(map(str, images.pixels.shape[1:]))
        raise ValueError(f"{path}: expected images of {'x'.join(map(str, shape))}, got {actual}")
    levels = grey_levels(model.metadata)
    if images.levels == levels:
        return images
    return ImageSet(unstretch_images(images.pixels, levels), levels=levels, names=images.names)


def continuous_images(images: ImageSet, seed: int) -> Tensor:
    """Return images as uniformly dequantised rows ``(N, D)`` in [-1, 1)."""
    rows = scale_images(images.pixels, images.levels).flatten(1)
    return dequantised(rows, 2.0 / images.levels, torch.Generator().manual_seed(seed))


def shared_class(model: AutoregressiveModel, label: int | None) -> Tensor | None:
    """Return the class of all rows as a tensor; ``None`` for a model without classes."""
    if label is None and class_labels(model, 1) is not None:
        raise ValueError("--class: this model has classes; give the class of the rows")
    labels = class_labels(model, 1, label)
    return None if labels is None else labels[0]


@torch.no_grad()
def log_probs(
    model: AutoregressiveModel,
    rows: Tensor,
    method: str | None = None,
    condition: Tensor | None = None,
    progress: bool = False,
) -> Tensor:
    """Return the terms of the log density in nats, ``(N, D)``, computed in batches.

    Values more than a million standard deviations from the mean, beyond the reach of single precision, are scored as if
    they lay at that distance, with a warning.
    """
    rows = _clamp_outliers(model, rows)
    parts = [torch.empty(0, model.features)]
    batches = rows.split(max(1, _BATCH_ELEMENTS // model.features)) if len(rows) else ()
    with track("scoring", len(rows), progress) as work:
        for part in work.over(batches, len):
            terms = model.log_prob(part.to(model.shift.device), condition=condition, reduce=False, method=method)
            parts.append(terms.cpu())
    return torch.cat(parts)


def _clamp_outliers(model: AutoregressiveModel, rows: Tensor) -> Tensor:
    shift, scale = model.shift.to(rows), model.scale.to(rows)
    reach = _MAX_STANDARD_DEVIATIONS * scale
    clamped = torch.clamp(rows, shift - reach, shift + reach)
    if bool((changed := (clamped != rows).any(1)).any()):
        warn(
            f"{int(changed.sum())} rows have values more than {_MAX_STANDARD_DEVIATIONS:.0e} standard deviations from "
            "the mean, and are scored as if these lay at that distance",
            AccuracyWarning,
        )
    return clamped


def score_frame(
    terms: Tensor,
    first: int = 0,
    data: pd.DataFrame | None = None,
    files: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Return the number, the log density and the least likely dimension of each row from terms ``(N, D)``.

    Rows are counted from 1, after ``first`` earlier ones. Dimensions are numbered from 0 unless they have ``names``.
    The columns of ``data`` come before the scores, the names of ``files`` after them.
    """
    worst = terms.argmin(1).numpy()
    labels = worst if names is None else np.array(names, dtype=object)[worst]
    columns = (first + 1 + np.arange(len(terms)), terms.sum(1).numpy(), labels, terms.amin(1).numpy())
    scores = pd.DataFrame(dict(zip(SCORE_COLUMNS, columns, strict=True)))
    if files is not None:
        scores["file"] = list(files)
    if data is not None and "row" in data.columns:  # the label of the file
        scores = scores.drop(columns="row")
    return scores if data is None else pd.concat([data, scores], axis=1)


@contextmanager
def score_writer(
    out: Path, like: TableFile | None = None, no_formulas: bool = False
) -> Iterator[Callable[[pd.DataFrame], None]]:
    """Provide a function that appends scores to a CSV, Parquet or NPY file, which appears once it is complete.

    An NPY file holds the columns of :data:`SCORE_COLUMNS` as float64. Copied columns in a Parquet file have the types
    that they have in the Parquet file ``like``.
    """
    if out.suffix != ".npy":
        with frame_writer(out, like if out.suffix == ".parquet" else None, no_formulas) as write:
            yield write
        return
    parts: list[np.ndarray] = []
    out.parent.mkdir(parents=True, exist_ok=True)
    yield lambda frame: parts.append(frame[list(SCORE_COLUMNS)].to_numpy(dtype=np.float64))
    write_table(out, np.concatenate(parts))


def sample_share(
    model: AutoregressiveModel,
    n: int,
    sampler: str | None,
    labels: Tensor | None,
    seed: int,
    denoise: bool,
    group: Group,
) -> Tensor:
    """Draw ``n`` samples, an equal share in each process with its own seed, and collect them in the first process."""
    if n < group.size:
        raise ValueError(f"-n {n}: expected at least one for each of {group.size} devices")
    share = group.share(n)
    generator = torch.Generator(model.shift.device).manual_seed(seed + 0x9E3779B97F4A7C15 * group.rank % 2**63)
    condition, count = None if labels is None else labels[share], share.stop - share.start
    rows = model.sample(count, sampler, generator, condition, progress=group.first, denoise=denoise)
    return group.collect(rows.cpu())


def write_images(folder: Path, rows: Tensor, metadata: Mapping[str, Any]) -> None:
    """Write each row as a numbered PNG file."""
    pixels = to_pixels(rows, metadata)
    folder.mkdir(parents=True, exist_ok=True)
    for index, image in enumerate(pixels):
        save_images(folder / f"{index:0{len(str(len(pixels) - 1))}d}.png", image[None], padding=0)

"""Rows in files, as a model takes them; and what a model says of them or draws, in files again."""

from __future__ import annotations

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
from arcsm._runtime.random import dequantised
from arcsm.data import ImageSet, frame_parts, frame_writer, read_images, scale_images, write_table
from arcsm.data.arrays import check_finite, frame_numbers, named_array, read_array, row_place
from arcsm.data.csv_files import default_columns
from arcsm.data.frames import as_numbers, check_not_taken, parts_as_written
from arcsm.data.images import IMAGE_SUFFIXES, save_images
from arcsm.data.pixels import unscale_images, unstretch_images
from arcsm.errors import AccuracyWarning, warn
from arcsm.implicit.networks.vae import VAE
from arcsm.model import AutoregressiveModel
from arcsm.training.runs import class_labels

_AT_ONCE = 20_000  # rows of a table
_REACH = 1e6  # standard deviations


def columns_of(model: AutoregressiveModel | VAE) -> tuple[str, ...]:
    """The names of a model's columns."""
    names = model.metadata.get("columns")
    return tuple(names) if names else tuple(f"x{d}" for d in range(model.features))


# Reading ------------------------------------------------------------------------------------------------------------


class RowSource:
    """Rows of a file or folder as a model takes them, part by part and as often as they are needed.

    Images are read once and dequantised; tables in parts, each time.

    Arguments:
        model: The model.
        path: A table, an image, an array or a folder of images.
        seed: Of the noise that makes images continuous.
        skip_bad: Leave out images that cannot be read.

    Attributes:
        names: Of the files of images.

    Raises:
        ValueError: in one line, for what cannot be read or is not of the model's columns or shape.
    """

    def __init__(self, model: AutoregressiveModel, path: Path, seed: int, skip_bad: bool = False) -> None:
        self.model, self.path = model, path
        self.names: list[str] | None = None
        self._images: Tensor | None = None
        if _are_images(path, model.metadata.get("image_shape") is not None):
            images = images_for(model, path, skip_bad)
            self._images = continuous_images(images, seed)
            self.names = None if images.names is None else [_in_utf8(name) for name in images.names]

    def parts(self) -> Iterator[Tensor]:
        """The rows, ``(n, D)``."""
        if self._images is not None:
            yield self._images
            return
        first = 0
        for frame in frame_parts(self.path, None, _AT_ONCE, columns_of(self.model)):
            chosen = _in_order(self.model, frame, self.path)
            numbers = pd.DataFrame({name: as_numbers(chosen[name], self.path, first) for name in chosen.columns})
            values = frame_numbers(numbers, self.path, first)
            check_finite(values, tuple(chosen.columns), self.path, row_place, first)
            rows = torch.from_numpy(np.array(values)).to(self.model.shift.dtype)
            if not bool(rows.isfinite().all()):
                row, column = (int(place) for place in (~rows.isfinite()).nonzero()[0])
                raise ValueError(
                    f"{self.path}: {row_place(first + row)}, column {chosen.columns[column]!r}: "
                    f"{values[row, column]:g} is too large for single precision"
                )
            first += len(frame)
            yield rows

    def own_columns(self) -> Iterator[pd.DataFrame]:
        """The columns of a table as they are, in the same parts."""
        return parts_as_written(self.path, _AT_ONCE)

    def check_not_taken(self, taken: Sequence[str]) -> None:
        """See :func:`arcsm.data.frames.check_not_taken`."""
        check_not_taken(self.path, taken)


def _in_utf8(name: str) -> str:
    """A file's name as text that can be written, whatever bytes it is made of."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _are_images(path: Path, of_images: bool) -> bool:
    """Whether a path is of images: a folder, an image or, for a model of images, an array of whole numbers.

    An array of others is of rows, such as samples of the model.
    """
    suffix = named_array(path)[0].suffix.lower()
    if path.is_dir() or suffix in IMAGE_SUFFIXES:
        return True
    return of_images and suffix in (".npy", ".npz") and not np.issubdtype(read_array(path).dtype, np.floating)


def _in_order(model: AutoregressiveModel, frame: pd.DataFrame, path: Path) -> pd.DataFrame:
    """The columns in the model's order: by name, where the table has all of the model's names."""
    names, own = columns_of(model), list(frame.columns)
    if len(own) == len(set(own)) and set(names) <= set(own):
        return frame[list(names)]
    if len(own) != model.features:
        raise ValueError(f"{path}: expected {model.features} columns, got {len(own)}")
    if "columns" in model.metadata and own != list(default_columns(len(own))):  # the table has names of its own
        missing, more = (", ".join(sorted(a - b)) for a, b in ((set(names), set(own)), (set(own), set(names))))
        raise ValueError(f"{path}: columns {missing} are missing; it has {more} instead")
    return frame


def images_for(model: AutoregressiveModel, path: Path, skip_bad: bool = False) -> ImageSet:
    """Images of the shape that the model is of.

    Raises:
        ValueError: for images of another shape, or a model of tables.
    """
    shape = model.metadata.get("image_shape")
    if shape is None:
        raise ValueError(f"{path}: images, but this model is of tables with {model.features} columns")
    side = int(shape[1]) if model.metadata.get("resized") else None
    size = (int(shape[1]), int(shape[2])) if skip_bad and side is None else None
    images = read_images(path, channels=int(shape[0]), size=side, shape=size, skip_bad=skip_bad)
    if list(images.pixels.shape[1:]) != list(shape):
        got = "x".join(str(size) for size in images.pixels.shape[1:])
        raise ValueError(f"{path}: expected images of {'x'.join(map(str, shape))}, got {got}")
    levels = int(model.metadata["levels"])
    if images.levels == levels:
        return images
    return ImageSet(unstretch_images(images.pixels, levels), levels=levels, names=images.names)


def continuous_images(images: ImageSet, seed: int) -> Tensor:
    """Images as rows ``(N, D)`` in [-1, 1), with the uniform noise that makes grey values continuous."""
    rows = scale_images(images.pixels, images.levels).flatten(1)
    return dequantised(rows, 2.0 / images.levels, torch.Generator().manual_seed(seed))


def shared_class(model: AutoregressiveModel, label: int | None) -> Tensor | None:
    """The label that all rows share, for a model with classes.

    Raises:
        ValueError: where a model with classes is given none, or one without is given one.
    """
    if label is None and class_labels(model, 1) is not None:
        raise ValueError("--class: this model has classes; say which one the rows are of")
    labels = class_labels(model, 1, label)
    return None if labels is None else labels[0]


# Scores -------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def log_probs(
    model: AutoregressiveModel,
    rows: Tensor,
    method: str | None = None,
    condition: Tensor | None = None,
    advance: Callable[[int], object] = lambda _: None,
) -> Tensor:
    """Terms of the log density, ``(N, D)``, some rows at a time; ``advance`` is told how many.

    Warns:
        AccuracyWarning: for values farther out than single precision reaches, which count as if they were where it
            still does: a million standard deviations from the mean.
    """
    rows = _within_reach(model, rows)
    parts = [torch.empty(0, model.features)]
    for part in rows.split(max(1, 65536 // model.features)) if len(rows) else ():
        terms = model.log_prob(part.to(model.shift.device), condition=condition, reduce=False, method=method)
        parts.append(terms.cpu())
        advance(len(part))
    return torch.cat(parts)


def _within_reach(model: AutoregressiveModel, rows: Tensor) -> Tensor:
    shift, scale = model.shift.to(rows), model.scale.to(rows)
    near = torch.clamp(rows, shift - _REACH * scale, shift + _REACH * scale)
    if bool((far := (near != rows).any(1)).any()):
        warn(
            f"{int(far.sum())} rows have values more than {_REACH:.0e} standard deviations out, and are judged as if "
            "these were that far out",
            AccuracyWarning,
        )
    return near


#: What :func:`score_frame` calls its columns.
SCORES = ("row", "log_prob", "least_likely_column", "its_log_prob")


def score_frame(
    terms: Tensor,
    first: int = 0,
    before: pd.DataFrame | None = None,
    files: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
) -> pd.DataFrame:
    """A line for each row: its number, its log density, and the dimension that surprises most.

    Arguments:
        terms: Of the log densities, ``(N, D)``.
        first: Number of the first row.
        before: Columns of the rows to stand before.
        files: Names of files to stand behind.
        names: Of the dimensions; without, their numbers from 0.
    """
    worst = terms.argmin(1).numpy()
    named = worst if names is None else np.array(names, dtype=object)[worst]
    columns = (first + np.arange(len(terms)), terms.sum(1).numpy(), named, terms.amin(1).numpy())
    found = pd.DataFrame(dict(zip(SCORES, columns, strict=True)))
    if files is not None:
        found["file"] = list(files)
    return found if before is None else pd.concat([before, found], axis=1)


@contextmanager
def score_writer(out: Path) -> Iterator[Callable[[pd.DataFrame], None]]:
    """Write lines part by part, all of them or nothing; in ``.npy`` whole numbers become others, too.

    Raises:
        ValueError: for another suffix than ``.csv``, ``.parquet`` and ``.npy``.
    """
    if out.suffix != ".npy":
        with frame_writer(out) as write:
            yield write
        return
    parts: list[np.ndarray] = []
    out.parent.mkdir(parents=True, exist_ok=True)
    yield lambda frame: parts.append(frame[list(SCORES)].to_numpy(dtype=np.float64))
    write_table(out, np.concatenate(parts))


# Samples ------------------------------------------------------------------------------------------------------------


def sample_share(
    model: AutoregressiveModel,
    n: int,
    sampler: str | None,
    labels: Tensor | None,
    seed: int,
    denoise: bool,
    group: Group,
) -> Tensor:
    """``n`` samples, each process drawing its share from a seed of its own; the first process gets them all.

    Raises:
        ValueError: for fewer of them than processes.
    """
    if n < group.size:
        raise ValueError(f"-n {n}: expected at least one for each of {group.size} devices")
    share = group.share(n)
    generator = torch.Generator(model.shift.device).manual_seed(seed + 0x9E3779B97F4A7C15 * group.rank % 2**63)
    rows = model.sample(
        share.stop - share.start,
        sampler,
        generator,
        None if labels is None else labels[share],
        progress=group.first,
        denoise=denoise,
    )
    return group.collect(rows.cpu())


def write_images(folder: Path, rows: Tensor, metadata: Mapping[str, Any]) -> None:
    """A PNG for each row, numbered."""
    pixels = unscale_images(rows.clamp(-1.0, 1.0), metadata["levels"], stretch=True).view(-1, *metadata["image_shape"])
    folder.mkdir(parents=True, exist_ok=True)
    for index, image in enumerate(pixels):
        save_images(folder / f"{index:0{len(str(len(pixels) - 1))}d}.png", image[None], padding=0)

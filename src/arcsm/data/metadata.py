"""What the metadata of a model say about its columns or images."""

import math
from collections.abc import Mapping
from numbers import Integral
from typing import Any

from arcsm.data.checks import check_column_names
from arcsm.data.pixels import check_levels

_EIGHT_BIT_LEVELS = 256


def check_metadata(metadata: Mapping[str, Any], features: int | None = None) -> None:
    """Check the entries that this package reads: ``columns``, ``image_shape`` and ``levels``. All are optional.

    Arguments:
        metadata: The metadata of a model, which may come from anybody's file.
        features: The number of dimensions of the model. Default: that of the image.

    Raises:
        ValueError: If ``columns`` are not as many different texts as there are dimensions, ``image_shape`` is not
            (channels, height, width) of an image with as many values, or ``levels`` is not in 2..256.
    """
    if "columns" in metadata:
        columns = metadata["columns"]
        if not isinstance(columns, list | tuple) or not all(map(_is_text, columns)):
            raise ValueError(f"metadata: columns: expected a list of texts, got {columns!r:.60}")
        check_column_names(columns, len(columns) if features is None else features)
    if "image_shape" in metadata:
        shape = metadata["image_shape"]
        if not _is_shape(shape) or features not in (None, math.prod(shape)):
            count = "" if features is None else f" with {features} values"
            raise ValueError(f"metadata: image_shape: expected (channels, height, width){count}, got {shape!r:.60}")
        check_levels(grey_levels(metadata))


def grey_levels(metadata: Mapping[str, Any]) -> int:
    """Return the number of grey values of a channel of a model's images, by default those of 8 bits."""
    levels = metadata.get("levels", _EIGHT_BIT_LEVELS)
    return int(levels) if isinstance(levels, Integral) else levels  # it may be an integer of numpy


def _is_text(name: object) -> bool:
    """Return whether a name is text that a file can hold."""
    try:
        return isinstance(name, str) and bool(name.encode())
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can hold
        return False


def _is_shape(shape: object) -> bool:
    """Return whether a value is a list of three positive sizes."""
    if not isinstance(shape, list | tuple) or len(shape) != 3:
        return False
    return all(isinstance(size, Integral) and not isinstance(size, bool) and int(size) > 0 for size in shape)

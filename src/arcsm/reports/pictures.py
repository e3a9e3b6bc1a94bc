"""Pictures of samples and images."""

import io
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from arcsm.data.images import image_grid
from arcsm.data.metadata import grey_levels
from arcsm.data.pixels import unscale_images


def to_pixels(rows: Tensor, metadata: Mapping[str, Any]) -> Tensor:
    """Return rows in [-1, 1] as grey values from 0 to 255, uint8 ``(N, C, H, W)``."""
    return unscale_images(rows.clamp(-1.0, 1.0), grey_levels(metadata), stretch=True).view(-1, *metadata["image_shape"])


def sample_picture(rows: Tensor, metadata: Mapping[str, Any], columns: int | None = None) -> bytes:
    """Return rows of an image model as a PNG of a grid, with a number of columns or nearly square."""
    buffer, zoom = io.BytesIO(), max(1, 48 // int(metadata["image_shape"][-1]))
    image_grid(to_pixels(rows, metadata), columns, zoom=zoom).save(buffer, format="PNG")
    return buffer.getvalue()

"""Sets of images of one size, and the scaling between grey values and real numbers."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images of one size.

    Attributes:
        pixels: uint8, shape ``(n, C, H, W)``, values in 0..levels-1.
        labels: int64, shape ``(n,)``, or None.
        names: One name for each image (its file, relative to the folder), or None.
        levels: Number of grey values of a channel.
    """

    pixels: Tensor
    labels: Tensor | None = None
    names: tuple[str, ...] | None = None
    levels: int = 256

    def __post_init__(self) -> None:
        check_pixels(self.pixels)
        _check_range(self.pixels, self.levels)
        n = len(self.pixels)
        if self.labels is not None and (self.labels.shape != (n,) or self.labels.dtype != torch.int64):
            raise ValueError(
                f"labels: expected int64 of shape ({n},), got {self.labels.dtype} of shape {tuple(self.labels.shape)}"
            )
        if self.names is not None and len(self.names) != n:
            raise ValueError(f"names: expected {n} names, got {len(self.names)}")

    def __len__(self) -> int:
        return len(self.pixels)


def scale_images(pixels: Tensor, levels: int = 256) -> Tensor:
    """Map grey values 0..levels-1 to float32 in [-1, 1): ``2 pixels / levels - 1``, the lower edge of each cell.

    Noise that is uniform on ``[0, 2 / levels)`` then fills the cells; this is uniform dequantisation (Theis, van den
    Oord and Bethge, A note on the evaluation of generative models, 2016, section 3.1). :func:`unscale_images` undoes
    both.

    Raises:
        ValueError: If ``pixels`` is not uint8 or holds a value of ``levels`` or more, or ``levels`` is not in 2..256.

    Example:
        >>> scale_images(torch.tensor([0, 128, 255], dtype=torch.uint8)).tolist()
        [-1.0, 0.0, 0.9921875]
    """
    _check_range(pixels, levels)
    return (2 * pixels.double() / levels - 1).to(torch.float32)


def unscale_images(x: Tensor, levels: int = 256, stretch: bool = False) -> Tensor:
    """Return the grey values, uint8, of the cells that hold ``x``: ``floor((x + 1) levels / 2)``.

    A value less than 2^-24, the rounding of float32, below an edge counts as on it, so that the function inverts
    :func:`scale_images` for all ``levels``.

    Arguments:
        x: Values of any shape; those outside [-1, 1) are clamped.
        levels: Number of grey values, 2..256.
        stretch: Spread 0..levels-1 over 0..255, for display.

    Raises:
        ValueError: If ``x`` is not of floating point or holds NaN, or ``levels`` is not in 2..256.
    """
    check_levels(levels)
    if not x.is_floating_point():
        raise ValueError(f"x: expected floating-point values, got {x.dtype}")
    if bool(x.isnan().any()):
        raise ValueError(f"x: expected numbers, got {int(x.isnan().sum())} NaN")
    cells = torch.floor((x.double() + 1 + 2.0**-24) * (levels / 2)).clamp(0, levels - 1).to(torch.uint8)
    return stretch_images(cells, levels) if stretch else cells


def stretch_images(pixels: Tensor, levels: int) -> Tensor:
    """Spread grey values 0..levels-1 over 0..255, rounded, uint8."""
    _check_range(pixels, levels)
    return (pixels.double() * (255 / (levels - 1))).round().to(torch.uint8)


def unstretch_images(pixels: Tensor, levels: int) -> Tensor:
    """Round grey values 0..255 to the nearest of 0..levels-1; the inverse of :func:`stretch_images`."""
    check_levels(levels)
    _check_range(pixels, 256)
    return (pixels.double() * ((levels - 1) / 255)).round().to(torch.uint8)


def check_pixels(pixels: Tensor) -> None:
    """Check that pixels are uint8 of shape ``(n, C, H, W)``, in grey or colour."""
    if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[1] not in (1, 3) or pixels.numel() == 0:
        raise ValueError(
            f"pixels: expected uint8 of shape (n, C, H, W) with C 1 or 3, got {pixels.dtype} of shape "
            f"{tuple(pixels.shape)}"
        )


def _check_range(pixels: Tensor, levels: int) -> None:
    check_levels(levels)
    if pixels.dtype != torch.uint8:
        raise ValueError(f"pixels: expected uint8, got {pixels.dtype}")
    if pixels.numel() and int(pixels.max()) >= levels:
        raise ValueError(f"pixels: expected values below levels={levels}, got {int(pixels.max())}")


def check_levels(levels: int) -> None:
    """Check a number of grey values: those of at most 8 bits."""
    if not isinstance(levels, int) or not 2 <= levels <= 256:
        raise ValueError(f"levels: expected an integer from 2 to 256, got {levels!r}")

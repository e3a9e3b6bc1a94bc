"""Random numbers for rows of a batch; a share of a batch gets the same numbers as within the whole batch.

A batch that is shared among processes, or processed in parts, is therefore trained on with the noise of the undivided
batch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

_EDGE = 1e-7  # single precision distinguishes 1 - _EDGE from 1
_GOLDEN_RATIO = (5.0**0.5 - 1.0) / 2.0


@dataclass(frozen=True)
class Share:
    """Consecutive rows of a batch, with the randomness of the whole batch."""

    generator: torch.Generator  #: for the whole batch; each share needs its own, all in the same state
    whole: int  #: number of rows of the whole batch
    first: int  #: index of the share's first row


Source = torch.Generator | Share | None


def fold_in(seed: int, purpose: int, step: int) -> int:
    """Return the seed for one purpose at one step of a run, so that a resumed run draws the same numbers."""
    return (seed * 0x9E3779B97F4A7C15 + purpose * 0xC2B2AE3D27D4EB4F + step * 0x165667B19E3779F9) % 2**63


def normal_like(x: Tensor, source: Source) -> Tensor:
    """Draw standard normal numbers with the shape, dtype and device of rows ``(B, ...)``."""
    return _draw_rows(x, source, partial(torch.randn, dtype=x.dtype))


def uniform_like(x: Tensor, source: Source) -> Tensor:
    """Draw numbers in [0, 1) with the shape, dtype and device of rows ``(B, ...)``."""
    return _draw_rows(x, source, partial(torch.rand, dtype=x.dtype))


def open_uniform_like(x: Tensor, source: Source) -> Tensor:
    """Draw numbers in the open interval (0, 1), where quantiles are finite, for rows ``(B, ...)``."""
    return uniform_like(x, source).clamp(_EDGE, 1.0 - _EDGE)


def dequantised(x: Tensor, width: Tensor | float, source: Source) -> Tensor:
    """Add uniform noise that fills the cells of quantised values (Theis et al., 2016, Section 3.1).

    ``x`` are lower edges of cells, ``(N, D)``, and ``width`` their widths, ``()`` or ``(D,)``; 0 for continuous values.
    """
    width = torch.as_tensor(width, dtype=x.dtype, device=x.device)
    if not bool((width > 0.0).any()):
        return x
    return x + width * uniform_like(x, source)


def rademacher_like(x: Tensor, source: Source) -> Tensor:
    """Draw -1 or 1 with the shape, dtype and device of rows ``(B, ...)``."""
    return _draw_rows(x, source, partial(torch.randint, 0, 2)).to(x.dtype) * 2.0 - 1.0


def stratified_uniform_like(x: Tensor, source: Source) -> Tensor:
    """Draw numbers in [0, 1), in double precision, that cover the interval evenly over the whole batch ``(B, ...)``.

    They are a Weyl sequence with a random start: each is uniform, but their mean varies far less than that of
    independent numbers.
    """
    generator = source.generator if isinstance(source, Share) else source
    start = torch.rand((), generator=generator, device=x.device, dtype=torch.float64)
    index = torch.arange(x.numel(), device=x.device, dtype=torch.float64)
    if isinstance(source, Share) and len(x):
        index += source.first * (x.numel() // len(x))
    return ((index * _GOLDEN_RATIO + start) % 1.0).reshape(x.shape)


def _draw_rows(x: Tensor, source: Source, draw: Callable[..., Tensor]) -> Tensor:
    if not isinstance(source, Share):
        return draw(x.shape, generator=source, device=x.device)
    whole = draw((source.whole, *x.shape[1:]), generator=source.generator, device=x.device)
    return whole[source.first : source.first + len(x)]

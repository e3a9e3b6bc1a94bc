"""Random numbers for the rows of a batch, or for some of them: a share gets what it would get within the whole batch.

So a batch that is shared among processes, or taken in parts, is trained on with the noise of the undivided one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_LEAST_SHARE = 1e-7  # single precision tells 1 less this from 1
_GOLDEN_RATIO = (5.0**0.5 - 1.0) / 2.0


@dataclass(frozen=True)
class Share:
    """Some rows of a batch.

    Attributes:
        generator: Source of the whole batch's randomness; each share needs its own, all in the same state.
        whole: Rows of the whole batch.
        first: The first row of the share.
    """

    generator: torch.Generator
    whole: int
    first: int


Source = torch.Generator | Share | None


def fold_in(seed: int, purpose: int, step: int) -> int:
    """The seed of what is drawn for a purpose at a step of a run with a seed: so a resumed run draws the same."""
    return (seed * 0x9E3779B97F4A7C15 + purpose * 0xC2B2AE3D27D4EB4F + step * 0x165667B19E3779F9) % 2**63


def normal_like(x: Tensor, source: Source) -> Tensor:
    """Standard normal numbers of the shape, type and device of rows ``(B, ...)``."""
    return _drawn(
        x, source, lambda shape, generator: torch.randn(shape, generator=generator, device=x.device, dtype=x.dtype)
    )


def uniform_like(x: Tensor, source: Source) -> Tensor:
    """Numbers in [0, 1) of the shape, type and device of rows ``(B, ...)``."""
    return _drawn(
        x, source, lambda shape, generator: torch.rand(shape, generator=generator, device=x.device, dtype=x.dtype)
    )


def open_uniform_like(x: Tensor, source: Source) -> Tensor:
    """Numbers inside (0, 1), whose quantiles are finite, of the shape, type and device of rows ``(B, ...)``."""
    return uniform_like(x, source).clamp(_LEAST_SHARE, 1.0 - _LEAST_SHARE)


def dequantised(x: Tensor, width: Tensor | float, source: Source) -> Tensor:
    """Lower edges of cells, ``(N, D)``, with uniform noise that fills the cells (Theis et al., 2016, Section 3.1).

    Arguments:
        x: Rows.
        width: Of the cells, ``()`` or ``(D,)``; 0 where values are continuous already.
        source: Of the noise; nothing is drawn from it where no width is positive.
    """
    width = torch.as_tensor(width, dtype=x.dtype, device=x.device)
    if not bool((width > 0.0).any()):
        return x
    return x + width * uniform_like(x, source)


def rademacher_like(x: Tensor, source: Source) -> Tensor:
    """-1 or 1, of the shape, type and device of rows ``(B, ...)``."""
    bits = _drawn(x, source, lambda shape, generator: torch.randint(0, 2, shape, generator=generator, device=x.device))
    return bits.to(x.dtype) * 2.0 - 1.0


def stratified_uniform_like(x: Tensor, source: Source) -> Tensor:
    """Numbers in [0, 1), in double precision, that cover it evenly over the whole batch ``(B, ...)``.

    They are a Weyl sequence with a random start: each is uniform, and together they have none of the variance that
    independent draws would add to a mean over them.
    """
    generator = source.generator if isinstance(source, Share) else source
    start = torch.rand((), generator=generator, device=x.device, dtype=torch.float64)
    index = torch.arange(x.numel(), device=x.device, dtype=torch.float64)
    if isinstance(source, Share) and len(x):
        index += source.first * (x.numel() // len(x))
    return ((index * _GOLDEN_RATIO + start) % 1.0).reshape(x.shape)


def _drawn(x: Tensor, source: Source, draw: Callable[[Sequence[int], torch.Generator | None], Tensor]) -> Tensor:
    if not isinstance(source, Share):
        return draw(x.shape, source)
    return draw((source.whole, *x.shape[1:]), source.generator)[source.first : source.first + len(x)]

"""Random numbers for rows of a batch; a share of a batch gets the same numbers as within the whole batch.

A batch that is shared among processes, or processed in parts, is therefore trained on with the noise of the undivided
batch, and a sample does not depend on the number of rows drawn at a time.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Self

import torch
from torch import Tensor

from arcsm._runtime.batching import ROWS, even_slices, slices_of
from arcsm._runtime.devices import widest_float

_ACCELERATOR_BLOCK = 1 << 14  # small blocks would leave an accelerator idle

_EDGE = 1e-7  # single precision distinguishes 1 - _EDGE from 1
_GOLDEN_RATIO = (5.0**0.5 - 1.0) / 2.0


class Share(torch.Generator):
    """Consecutive rows of a batch, with the randomness of the whole batch.

    The functions of this module draw the numbers of the whole batch and return those of the share. Torch's functions
    accept a share too, but then the numbers depend on how the batch is divided.

    Attributes:
        generator: Source for the whole batch. All shares need it in the same state.
        whole: Number of rows of the whole batch.
        first: Index of the share's first row.
    """

    generator: torch.Generator
    whole: int
    first: int

    def __new__(cls, generator: torch.Generator, whole: int, first: int) -> Self:
        share = super().__new__(cls, generator.device)  # type: ignore[call-arg]
        share.generator, share.whole, share.first = generator, whole, first
        seed = torch.randint(1 << 62, (), generator=generator.clone_state(), device=generator.device)
        share.manual_seed(fold_in(int(seed), 0, first))
        return share


class GivenUniforms(torch.Generator):
    """Uniform numbers that are given once, and a generator of all others.

    Torch's functions get independent numbers.

    Attributes:
        generator: Source of the others.
        u: What the first call of :func:`uniform_like` returns; later calls draw.
    """

    generator: torch.Generator | None
    u: Tensor | None

    def __new__(cls, generator: torch.Generator | None, u: Tensor) -> Self:
        given = super().__new__(cls, u.device)  # type: ignore[call-arg]
        given.generator, given.u = generator, u
        seed = torch.randint(1 << 62, (), generator=generator, device=None if generator is None else generator.device)
        given.manual_seed(int(seed))
        return given


Source = torch.Generator | None


def blocks_of(n: int, size: int, device: torch.device) -> list[list[slice]]:
    """Divide ``n`` rows into blocks, which draw their numbers one after another, and each into slices of ``size``.

    Blocks do not depend on the size. A slice is never larger than a block.
    """
    blocks = []
    for block in slices_of(n, ROWS if device.type == "cpu" else _ACCELERATOR_BLOCK):
        parts = even_slices(block.stop - block.start, size)
        blocks.append([slice(block.start + part.start, block.start + part.stop) for part in parts])
    return blocks


def shares_of(block: Sequence[slice], generator: Source, device: torch.device) -> Iterator[tuple[slice, Source]]:
    """Yield each slice of a block with its randomness, which does not depend on how the block is divided.

    Afterwards, the state of the generator is as if the block had not been divided.
    """
    if len(block) == 1:
        yield block[0], generator
        return
    source = _default_generator(device) if generator is None else generator
    state, start, stop = source.get_state(), block[0].start, block[-1].stop
    for part in block:
        source.set_state(state)
        yield part, Share(source, stop - start, part.start - start)


def _default_generator(device: torch.device) -> torch.Generator:
    """Return torch's global generator of a device, or else one seeded from that of the CPU."""
    if device.type == "cpu":
        return torch.default_generator
    generators = getattr(torch.get_device_module(device), "default_generators", ())
    if device.index is not None and device.index < len(generators):
        return generators[device.index]
    return torch.Generator(device).manual_seed(int(torch.randint(1 << 62, ())))


def fold_in(seed: int, purpose: int, step: int) -> int:
    """Return the seed for one purpose at one step of a run, so that a resumed run draws the same numbers."""
    return (seed * 0x9E3779B97F4A7C15 + purpose * 0xC2B2AE3D27D4EB4F + step * 0x165667B19E3779F9) % 2**63


def normal_like(x: Tensor, source: Source) -> Tensor:
    """Draw standard normal numbers with the shape, dtype and device of rows ``(B, ...)``."""
    return _draw_rows(x, source, partial(torch.randn, dtype=x.dtype))


def uniform_like(x: Tensor, source: Source) -> Tensor:
    """Draw numbers in [0, 1) with the shape, dtype and device of rows ``(B, ...)``."""
    if isinstance(source, GivenUniforms) and source.u is not None:
        u, source.u = source.u, None
        return u.to(x).reshape(x.shape)
    return _draw_rows(x, source, partial(torch.rand, dtype=x.dtype))


def open_uniform_like(x: Tensor, source: Source) -> Tensor:
    """Draw numbers in the open interval (0, 1), where quantiles are finite, for rows ``(B, ...)``."""
    return uniform_like(x, source).clamp(_EDGE, 1.0 - _EDGE)


def dequantised(x: Tensor, width: Tensor | float, source: Source) -> Tensor:
    """Add uniform noise that fills the cells of quantised values (Theis et al., 2016, Section 3.1).

    ``x`` are lower edges of cells, ``(N, D)``, and ``width`` their widths, ``()`` or ``(D,)``; 0 for continuous values.
    """
    width = width if isinstance(width, Tensor) else torch.as_tensor(width, dtype=x.dtype)
    if width.device.type == "cpu" and not bool((width > 0.0).any()):  # another device would have to be waited for
        return x
    return x + width.to(x) * uniform_like(x, source)


def rademacher_like(x: Tensor, source: Source) -> Tensor:
    """Draw -1 or 1 with the shape, dtype and device of rows ``(B, ...)``."""
    return _draw_rows(x, source, partial(torch.randint, 0, 2)).to(x.dtype) * 2.0 - 1.0


def stratified_uniform_like(x: Tensor, source: Source) -> Tensor:
    """Draw numbers in [0, 1), in double precision if possible, that cover it evenly over the whole batch ``(B, ...)``.

    They are a Weyl sequence with a random start: each is uniform, but their mean varies far less than that of
    independent numbers.
    """
    generator = source.generator if isinstance(source, Share) else source
    dtype = widest_float(x.device)
    start = torch.rand((), generator=generator, device=x.device, dtype=dtype)
    index = torch.arange(x.numel(), device=x.device, dtype=dtype)
    if isinstance(source, Share) and len(x):
        index += source.first * (x.numel() // len(x))
    return ((index * _GOLDEN_RATIO + start) % 1.0).reshape(x.shape)


def latin_hypercube(shape: Sequence[int], like: Tensor, source: Source) -> Tensor:
    """Draw numbers in [0, 1), ``(B, n, D)``; the ``n`` of each row and dimension cover the interval evenly.

    Each is uniform, and means over the ``n`` vary less than those of independent numbers.

    References:
        A comparison of three methods for selecting values of input variables (McKay, Beckman and Conover, 1979)
    """
    generator = source.generator if isinstance(source, Share) else source
    first, second = (torch.rand(*shape, generator=generator, device=like.device, dtype=like.dtype) for _ in range(2))
    return (first.argsort(1).to(like) + second) / shape[1]


def _draw_rows(x: Tensor, source: Source, draw: Callable[..., Tensor]) -> Tensor:
    source = source.generator if isinstance(source, GivenUniforms) else source
    if not isinstance(source, Share):
        return draw(x.shape, generator=source, device=x.device)
    whole = draw((source.whole, *x.shape[1:]), generator=source.generator, device=x.device)
    return whole[source.first : source.first + len(x)]

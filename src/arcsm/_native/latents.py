"""``chain.c``: latents that come one after the other, and the way back, called on tensors."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from arcsm._native.build import library
from arcsm._native.memory import address, addresses, each_share, memory, shares

_FEWEST = 256  # rows that are worth a thread
_MOST_NODES = 16  # as in chain.c


class Chained(NamedTuple):
    u: Tensor  #: ``(N, D)``
    kept: list[Tensor]  #: the hidden units of the rows of each thread, as C has them


def chain(fixed: Tensor, noise: Tensor, of_noise: Tensor, of_latents: Tensor, output: Tensor) -> Chained:
    """Compute :func:`arcsm.implicit.networks.autoregressive_map.autoregressive_map`, which documents the arguments.

    Raises:
        CompilationError: where there is no compiler for it.
        TypeError: for tensors that are not of single precision on the processor.
        ValueError: for tensors whose shapes do not belong together.
    """
    _check([fixed, noise, of_noise, of_latents, output])
    fixed, noise, *weights = (t.contiguous() for t in (fixed, noise, of_noise, of_latents, output))
    u, sizes, parts = torch.empty_like(noise), _sizes(*fixed.shape[1:]), shares(len(noise), _FEWEST)
    spaces = [sizes.memory(sizes.space) for _ in parts]
    kept = [sizes.memory(sizes.kept(part)) for part in parts]

    def part_of(number: int) -> None:
        part = parts[number]
        given = fixed[part], noise[part], u[part], kept[number], spaces[number]
        library().chain(_rows(part), *sizes.longs, addresses(weights), *map(address, given))

    each_share(part_of, len(parts))
    return Chained(u, kept)


def chain_back(
    by_u: Tensor, noise: Tensor, of_noise: Tensor, of_latents: Tensor, output: Tensor, chained: Chained
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients by all arguments of :func:`chain`, in their order, from that by ``u``; on as many threads.

    Raises:
        TypeError: for tensors that are not of single precision on the processor.
        ValueError: for tensors whose shapes do not belong together.
    """
    by_fixed, by_noise = noise.new_empty(*noise.shape, output.shape[-1]), torch.empty_like(noise)
    _check([by_fixed, noise, of_noise, of_latents, output], by_u, chained.u)
    by_u, u, noise, *weights = (t.contiguous() for t in (by_u, chained.u, noise, of_noise, of_latents, output))
    sizes, size = _sizes(*by_fixed.shape[1:]), -(-len(noise) // max(len(chained.kept), 1))
    parts = [slice(begin, min(begin + size, len(noise))) for begin in range(0, len(noise), max(size, 1))]
    sound = all(kept.data_ptr() % sizes.alignment == 0 for kept in chained.kept)
    if not sound or [sizes.kept(part) for part in parts] != [kept.numel() for kept in chained.kept if kept.numel()]:
        raise ValueError("chained: expected what chain gave for the same rows")
    spaces = [sizes.memory(sizes.space) for _ in parts]
    by_weights = [[torch.zeros_like(weight) for weight in weights] for _ in parts]

    def part_of(number: int) -> None:
        part = parts[number]
        given = noise[part], u[part], by_u[part], by_fixed[part], by_noise[part]
        last = chained.kept[number], spaces[number]
        library().chain_back(
            _rows(part),
            *sizes.longs,
            addresses(weights),
            *map(address, given),
            addresses(by_weights[number]),
            *map(address, last),
        )

    each_share(part_of, len(parts))
    sums = [torch.stack(each).sum(0) for each in zip(*by_weights, strict=True)] or [
        torch.zeros_like(w) for w in weights
    ]
    return by_fixed, by_noise, sums[0], sums[1], sums[2]


def chain_moments(
    fixed: Tensor,
    u: Tensor,
    of_noise: Tensor,
    of_latents: Tensor,
    output: Tensor,
    nodes: Sequence[float],
    shares_of_nodes: Sequence[float],
) -> tuple[Tensor, Tensor]:
    """Mean and variance of every latent given the earlier ones of ``u``, over its noise, ``(N, D)`` each.

    Arguments:
        fixed: As in :func:`chain`, like all the weights.
        u: Latents, ``(N, D)``.
        nodes: Of a quadrature over the noise, at most 16.
        shares_of_nodes: Its weights.

    Raises:
        CompilationError: where there is no compiler for it.
        TypeError: for tensors that are not of single precision on the processor.
        ValueError: for tensors whose shapes do not belong together, or another number of nodes.
    """
    _check([fixed, u, of_noise, of_latents, output])
    if len(nodes) != len(shares_of_nodes) or not 1 <= len(nodes) <= _MOST_NODES:
        raise ValueError(f"nodes: expected 1 to {_MOST_NODES} with a share each, got {len(nodes)}")
    fixed, u, *weights = (t.contiguous() for t in (fixed, u, of_noise, of_latents, output))
    mean, variance = torch.empty_like(u), torch.empty_like(u)
    sizes, parts = _sizes(*fixed.shape[1:]), shares(len(u), _FEWEST)
    spaces = [sizes.memory(sizes.space) for _ in parts]
    quadrature = [(ctypes.c_float * len(nodes))(*values) for values in (nodes, shares_of_nodes)]

    def part_of(number: int) -> None:
        part = parts[number]
        found = mean[part], variance[part], spaces[number]
        given = *map(address, (fixed[part], u[part])), ctypes.c_long(len(nodes)), *quadrature
        library().chain_moments(_rows(part), *sizes.longs, addresses(weights), *given, *map(address, found))

    each_share(part_of, len(parts))
    return mean, variance


def _check(tensors: list[Tensor], *like_noise: Tensor) -> None:
    """C would read and write wherever wrong sizes lead it."""
    if any(t.dtype != torch.float32 or t.device.type != "cpu" for t in (*tensors, *like_noise)):
        raise TypeError("chain: expected float32 tensors on the processor")
    n, d, u = tensors[0].shape if tensors[0].ndim == 3 else (0, 0, 0)
    wanted = ((n, d, u), (n, d), (d, u), (d, d, u), (d, u), *[(n, d)] * len(like_noise))
    found = [tuple(t.shape) for t in (*tensors, *like_noise)]
    if d < 1 or u < 1 or found != list(wanted):
        raise ValueError(f"chain: these shapes do not belong together: {', '.join(map(str, found))}")


def _rows(part: slice) -> ctypes.c_long:
    return ctypes.c_long(part.stop - part.start)


class _Sizes(NamedTuple):
    longs: tuple[ctypes.c_long, ctypes.c_long]  # latents, units
    space: int  # bytes
    alignment: int

    def kept(self, part: slice) -> int:
        """Bytes of the hidden units of some rows."""
        return int(library().chain_kept(_rows(part), *self.longs))

    def memory(self, size: int) -> Tensor:
        return memory(size, self.alignment)


@lru_cache
def _sizes(latents: int, units: int) -> _Sizes:
    longs = ctypes.c_long(latents), ctypes.c_long(units)
    return _Sizes(longs, int(library().chain_space(*longs)), int(library().vector_alignment()))

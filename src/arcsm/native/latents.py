"""``chain.c``: latents that come one after the other, and the way back, called on tensors."""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from arcsm.native.build import available, library
from arcsm.native.memory import address, addresses, memory


class Chained(NamedTuple):
    u: Tensor  #: ``(N, D)``
    kept: Tensor  #: the hidden units, as C has them


def can_chain() -> bool:
    """Whether there is a C compiler for it; finding out takes a second, the first time."""
    return available("chain")


def chain(fixed: Tensor, noise: Tensor, of_noise: Tensor, of_latents: Tensor, output: Tensor) -> Chained:
    """:math:`u_d = \\epsilon_d + w_d^\\top \\tanh(f_d + v_d \\epsilon_d + B_d u_{<d})`, in single precision.

    Arguments:
        fixed: :math:`f`, ``(N, D, U)``.
        noise: :math:`\\epsilon`, ``(N, D)``.
        of_noise: :math:`v`, ``(D, U)``.
        of_latents: :math:`B`, ``(D, D, U)``, of which what is earlier than d is used.
        output: :math:`w`, ``(D, U)``.

    Raises:
        CompilationError: where there is no compiler for it.
        TypeError: for tensors that are not of single precision on the processor.
        ValueError: for tensors whose shapes do not belong together.
    """
    _check(fixed, noise, of_noise, of_latents, output)
    fixed, noise, *weights = (t.contiguous() for t in (fixed, noise, of_noise, of_latents, output))
    u, sizes = torch.empty_like(noise), _sizes(*fixed.shape[1:])
    space = sizes.space()  # a name holds it until C is done
    kept = memory(int(_code().chain_kept(len(fixed), *sizes.longs)), sizes.alignment)
    _code().chain(
        ctypes.c_long(len(fixed)),
        *sizes.longs,
        addresses(weights),
        *map(address, (fixed, noise, u, kept, space)),
    )
    return Chained(u, kept)


def chain_back(
    by_u: Tensor, noise: Tensor, of_noise: Tensor, of_latents: Tensor, output: Tensor, chained: Chained
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients by all arguments of :func:`chain`, in their order, from that by ``u``."""
    fixed = noise.new_empty(*noise.shape, output.shape[1])
    _check(fixed, noise, of_noise, of_latents, output)
    by_u, noise, *weights = (t.contiguous() for t in (by_u, noise, of_noise, of_latents, output))
    by_noise, sizes = torch.empty_like(noise), _sizes(*fixed.shape[1:])
    space = sizes.space()
    by_weights = [torch.zeros_like(weight) for weight in weights]
    _code().chain_back(
        ctypes.c_long(len(noise)),
        *sizes.longs,
        addresses(weights),
        *map(address, (noise, chained.u, by_u, fixed, by_noise)),
        addresses(by_weights),
        *map(address, (chained.kept, space)),
    )
    return fixed, by_noise, by_weights[0], by_weights[1], by_weights[2]


def _check(fixed: Tensor, noise: Tensor, of_noise: Tensor, of_latents: Tensor, output: Tensor) -> None:
    """C would read and write wherever wrong sizes lead it."""
    tensors = (fixed, noise, of_noise, of_latents, output)
    if any(t.dtype != torch.float32 or t.device.type != "cpu" for t in tensors):
        raise TypeError("chain: expected float32 tensors on the processor")
    n, d, u = fixed.shape if fixed.ndim == 3 else (0, 0, 0)
    wanted = ((n, d, u), (n, d), (d, u), (d, d, u), (d, u))
    if d < 1 or u < 1 or any(tuple(t.shape) != shape for t, shape in zip(tensors, wanted, strict=True)):
        raise ValueError(
            f"chain: these shapes do not belong together: {', '.join(str(tuple(t.shape)) for t in tensors)}"
        )


class _Sizes(NamedTuple):
    longs: tuple[ctypes.c_long, ctypes.c_long]
    bytes: int
    alignment: int

    def space(self) -> Tensor:
        return memory(self.bytes, self.alignment)


@lru_cache
def _sizes(latents: int, units: int) -> _Sizes:
    longs = ctypes.c_long(latents), ctypes.c_long(units)
    return _Sizes(longs, int(_code().chain_space(*longs)), int(_code().walk_alignment()))


def _code() -> ctypes.CDLL:
    code = library("chain")
    code.chain.restype = code.chain_back.restype = None
    code.chain_space.restype = code.chain_kept.restype = code.walk_alignment.restype = ctypes.c_size_t
    return code

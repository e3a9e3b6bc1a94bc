"""Bindings of ``latent_chain.c``: autoregressive latents and their gradients.

All functions raise a CompilationError if the C code cannot be compiled, a TypeError if a tensor is not in single
precision on a processor, and a ValueError if shapes do not match.
"""

import ctypes
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from arcsm._native.build import library
from arcsm._native.memory import address, addresses, alignment, allocate, check_shapes, on_threads, share_rows
from arcsm._runtime.batching import slices_of

_MIN_ROWS_PER_THREAD = 256
_MAX_NODES = 16  # MAX_NODES of latent_chain.c


class LatentChain(NamedTuple):
    u: Tensor  #: latents, ``(N, D)``
    hidden: list[Tensor]  #: hidden units of each thread's rows, in the layout of C


def latent_chain_forward(
    fixed: Tensor, noise: Tensor, noise_weight: Tensor, latent_weight: Tensor, output_weight: Tensor
) -> LatentChain:
    """Compute the latents of :mod:`arcsm.implicit.networks.autoregressive_map`, which documents the arguments."""
    _check((fixed, noise, noise_weight, latent_weight, output_weight))
    fixed, noise, *weights = (t.contiguous() for t in (fixed, noise, noise_weight, latent_weight, output_weight))
    u, parts, sizes = torch.empty_like(noise), share_rows(len(noise), _MIN_ROWS_PER_THREAD), fixed.shape[1:]
    hidden = [allocate(_hidden_bytes(part, sizes)) for part in parts]
    arguments = [map(address, (fixed[part], noise[part], u[part], h)) for part, h in zip(parts, hidden, strict=True)]
    _call(library().latent_chain_forward, parts, sizes, weights, arguments)
    return LatentChain(u, hidden)


def latent_chain_backward(
    grad: Tensor, noise: Tensor, noise_weight: Tensor, latent_weight: Tensor, output_weight: Tensor, chain: LatentChain
) -> tuple[Tensor, ...]:
    """Return the gradients with respect to all arguments of :func:`latent_chain_forward`, on as many threads."""
    grad_fixed, grad_noise = noise.new_empty(*noise.shape, output_weight.shape[-1]), torch.empty_like(noise)
    tensors = noise, noise_weight, latent_weight, output_weight
    _check((grad_fixed, *tensors), grad, chain.u)
    grad, u, noise, *weights = (t.contiguous() for t in (grad, chain.u, *tensors))
    sizes, size = grad_fixed.shape[1:], -(-len(noise) // max(len(chain.hidden), 1))
    parts = list(slices_of(len(noise), max(size, 1)))
    aligned = all(hidden.data_ptr() % alignment() == 0 for hidden in chain.hidden)
    bytes_of_parts = [hidden.numel() for hidden in chain.hidden if hidden.numel()]
    if not aligned or [_hidden_bytes(part, sizes) for part in parts] != bytes_of_parts:
        raise ValueError("chain: expected the result of latent_chain_forward for the same rows")
    grad_weights = [weight.new_zeros(len(parts), *weight.shape) for weight in weights]  # of each thread
    arguments = [
        (
            *map(address, (noise[part], u[part], grad[part], grad_fixed[part], grad_noise[part])),
            addresses([gradient[number] for gradient in grad_weights]),
            address(chain.hidden[number]),
        )
        for number, part in enumerate(parts)
    ]
    _call(library().latent_chain_backward, parts, sizes, weights, arguments)
    return grad_fixed, grad_noise, *(gradient.sum(0) for gradient in grad_weights)


def latent_chain_moments(
    fixed: Tensor,
    u: Tensor,
    noise_weight: Tensor,
    latent_weight: Tensor,
    output_weight: Tensor,
    nodes: Sequence[float],
    node_weights: Sequence[float],
) -> tuple[Tensor, Tensor]:
    """Return mean and variance of every latent given the earlier ones in ``u``, over its noise, ``(N, D)`` each.

    ``nodes``, at most 16, and ``node_weights`` are those of a quadrature over the noise.
    """
    _check((fixed, u, noise_weight, latent_weight, output_weight))
    if len(nodes) != len(node_weights) or not 1 <= len(nodes) <= _MAX_NODES:
        raise ValueError(f"nodes: expected 1 to {_MAX_NODES} with a weight each, got {len(nodes)}")
    fixed, u, *weights = (t.contiguous() for t in (fixed, u, noise_weight, latent_weight, output_weight))
    mean, variance = torch.empty_like(u), torch.empty_like(u)
    parts, sizes = share_rows(len(u), _MIN_ROWS_PER_THREAD), fixed.shape[1:]
    floats = ctypes.c_float * len(nodes)
    quadrature = ctypes.c_long(len(nodes)), floats(*nodes), floats(*node_weights)
    arguments = [
        (*map(address, (fixed[part], u[part])), *quadrature, *map(address, (mean[part], variance[part])))
        for part in parts
    ]
    _call(library().latent_chain_moments, parts, sizes, weights, arguments)
    return mean, variance


def _check(tensors: tuple[Tensor, ...], *shaped_like_noise: Tensor) -> None:
    n, d, u = tensors[0].shape if tensors[0].ndim == 3 else (0, 0, 0)
    expected = [(n, d, u), (n, d), (d, u), (d, d, u), (d, u), *[(n, d)] * len(shaped_like_noise)]
    tensors = (*tensors, *shaped_like_noise)
    check_shapes("latent_chain", tensors, d > 0 and u > 0 and [tuple(t.shape) for t in tensors] == expected)


def _longs(part: slice, sizes: Sequence[int]) -> tuple[ctypes.c_long, ...]:
    """Return the numbers of rows, latents and units for C."""
    return ctypes.c_long(part.stop - part.start), *map(ctypes.c_long, sizes)


def _hidden_bytes(part: slice, sizes: Sequence[int]) -> int:
    return int(library().latent_chain_hidden_bytes(*_longs(part, sizes)))


def _call(
    function: Callable[..., None],
    parts: Sequence[slice],
    sizes: Sequence[int],
    weights: Sequence[Tensor],
    arguments: Sequence[Iterable[object]],
) -> None:
    """Call a C function for each part of the rows on a thread of its own, with workspaces allocated here."""
    size = int(library().latent_chain_workspace_bytes(*map(ctypes.c_long, sizes)))
    workspaces = [allocate(size) for _ in parts]

    def run(number: int) -> None:
        longs, workspace = _longs(parts[number], sizes), address(workspaces[number])
        function(*longs, addresses(weights), *arguments[number], workspace)

    on_threads(run, len(parts))

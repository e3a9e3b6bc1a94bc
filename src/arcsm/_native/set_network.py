"""Bindings of ``set_network.c``: contexts given one set for each row, and their gradients."""

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from arcsm._native.build import library
from arcsm._native.interface import SetNetwork, SetNetworkGradients
from arcsm._native.memory import address, addresses, allocate, check_shapes

_TILE_ROWS = 128


class SetWeights(NamedTuple):
    """The weights of a network of sets; see ``set_network`` of set_network.h."""

    slowly: float
    smallest: float
    first_weight: Tensor  #: (H, E)
    first_bias: Tensor  #: (H,)
    linear_weight: Tensor  #: (H, E)
    output_weight: Tensor  #: (D, H, C)
    output_bias: Tensor  #: (D, C)
    layers: tuple[Tensor, ...]  #: weight (H, H) and bias (H,) of each residual layer, one after another

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return *self[2:7], *self.layers

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """The sizes E, H, D and C."""
        (units, inputs), (dimensions, _, outputs) = self.first_weight.shape, self.output_weight.shape
        return inputs, units, dimensions, outputs

    def contiguous(self) -> "SetWeights":
        return self.replaced([t.detach().contiguous() for t in self.tensors])

    def replaced(self, tensors: Sequence[Tensor]) -> "SetWeights":
        """Return the same with other tensors."""
        first_weight, first_bias, linear_weight, output_weight, output_bias, *layers = tensors
        return self._replace(
            first_weight=first_weight, first_bias=first_bias, linear_weight=linear_weight, output_weight=output_weight,
            output_bias=output_bias, layers=tuple(layers),
        )  # fmt: skip

    def structure(self) -> SetNetwork:
        """Return the structure for C, which the tensors must outlive; they are contiguous."""
        self.check()
        inputs, units, dimensions, outputs = self.sizes
        return SetNetwork(
            inputs, units, len(self.layers) // 2, dimensions, outputs, self.slowly, self.smallest,
            address(self.first_weight), address(self.first_bias), address(self.linear_weight),
            addresses(self.layers[0::2]), addresses(self.layers[1::2]), address(self.output_weight),
            address(self.output_bias),
        )  # fmt: skip

    def check(self) -> None:
        tensors = self.tensors
        fits = self.first_weight.ndim == 2 and self.output_weight.ndim == 3
        if fits:
            inputs, units, dimensions, outputs = self.sizes
            shapes = (units, inputs), (units,), (units, inputs), (dimensions, units, outputs), (dimensions, outputs)
            deeper = ((units, units), (units,)) * (len(self.layers) // 2)
            fits = [tuple(t.shape) for t in tensors] == [*shapes, *deeper] and min(self.sizes) > 0
        check_shapes("set_network", tensors, fits)


class HiddenLayers(NamedTuple):
    """What the forward pass leaves to the backward pass."""

    tile: int
    memory: Tensor


def set_network_forward(
    weights: SetWeights,
    sums: Tensor,
    sizes: Tensor,
    terms: Tensor | None = None,
    dropout: Sequence[Tensor] = (),
) -> tuple[Tensor, HiddenLayers]:
    """Return the contexts ``(B, D, C)`` given sums ``(B, E)`` over sets of some ``sizes (B,)``.

    Errors are those of :mod:`arcsm._native.latent_chain`.

    Arguments:
        weights: The network.
        sums: Sums of the vectors of the values.
        sizes: The numbers of these values.
        terms: What is added to the first and the last hidden layer, ``(B, 2 H)``.
        dropout: Factors of the units of each residual layer, ``(B, H)``.
    """
    weights, sums, sizes = weights.contiguous(), sums.contiguous(), sizes.contiguous()
    network, (inputs, units, dimensions, outputs) = weights.structure(), weights.sizes
    terms, dropout = None if terms is None else terms.contiguous(), [factors.contiguous() for factors in dropout]
    rows, given = len(sums), [*dropout, *([] if terms is None else [terms])]
    matching = sums.shape == (rows, inputs) and sizes.shape == (rows,)
    matching &= terms is None or terms.shape == (rows, 2 * units)
    matching &= not dropout or [t.shape for t in dropout] == [(rows, units)] * (len(weights.layers) // 2)
    check_shapes("set_network", (sums, sizes, *given), matching)
    code = library()
    step = int(code.vector_step())
    tile = max(step, min(_TILE_ROWS, -(-rows // step) * step))
    contexts = sums.new_empty(rows, dimensions, outputs)
    saved = allocate(-(-rows // tile) * int(code.set_network_layer_bytes(ctypes.byref(network), ctypes.c_long(tile))))
    workspace = _workspace(network, tile)
    code.set_network_forward(
        ctypes.byref(network), ctypes.c_long(tile), ctypes.c_long(rows), address(sums), address(sizes),
        None if terms is None else address(terms), addresses(dropout) if dropout else None,
        *map(address, (contexts, saved, workspace)),
    )  # fmt: skip
    return contexts, HiddenLayers(tile, saved)


def set_network_backward(
    weights: SetWeights, grad: Tensor, hidden: HiddenLayers, with_terms: bool
) -> tuple[list[Tensor], Tensor, Tensor | None]:
    """Return the gradients of the weights, the sums ``(B, E)`` and the terms ``(B, 2 H)``, if there are any.

    That of the contexts is ``grad (B, D, C)``.
    """
    weights, grad = weights.contiguous(), grad.contiguous()
    network, (inputs, units, dimensions, outputs) = weights.structure(), weights.sizes
    rows = len(grad)
    check_shapes("set_network", (grad,), grad.shape == (rows, dimensions, outputs))
    gradients = weights.replaced([torch.zeros_like(t) for t in weights.tensors])
    grad_sums = grad.new_empty(rows, inputs)
    grad_terms = grad.new_empty(rows, 2 * units) if with_terms else None
    to = SetNetworkGradients(
        address(gradients.first_weight), address(gradients.first_bias), address(gradients.linear_weight),
        addresses(gradients.layers[0::2]), addresses(gradients.layers[1::2]), address(gradients.output_weight),
        address(gradients.output_bias),
    )  # fmt: skip
    workspace = _workspace(network, hidden.tile)
    library().set_network_backward(
        ctypes.byref(network), ctypes.c_long(hidden.tile), ctypes.c_long(rows), address(grad), address(hidden.memory),
        ctypes.byref(to), address(grad_sums), None if grad_terms is None else address(grad_terms), address(workspace),
    )  # fmt: skip
    return list(gradients.tensors), grad_sums, grad_terms


def _workspace(network: SetNetwork, tile: int) -> Tensor:
    return allocate(int(library().set_network_workspace_bytes(ctypes.byref(network), ctypes.c_long(tile))))

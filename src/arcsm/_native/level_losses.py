"""Bindings of ``level_losses.c``: negative log probabilities of levels, and their gradients."""

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from arcsm._native.build import library
from arcsm._native.interface import LevelHead
from arcsm._native.memory import address, addresses, allocate, check_shapes


class LevelWeights(NamedTuple):
    """The softmax of a nominal column; see ``level_head`` of level_losses.c."""

    sharpness: float
    share: float
    weight: Tensor  #: (K, C)
    bias: Tensor  #: (K,)
    prior: Tensor  #: (K,)


def level_losses(
    heads: Sequence[LevelWeights], number: Tensor, context: Tensor, x: Tensor, weight: Tensor
) -> tuple[float, Tensor, list[Tensor]]:
    """Return the weighted sum of minus the log probabilities of levels ``x (N,)``, and its gradients.

    They are those of the contexts, ``(N, C)``, and of weight and bias of each head, one after another. Errors are those
    of :mod:`arcsm._native.latent_chain`.

    Arguments:
        heads: The heads.
        number: The head of each level, int64 ``(N,)``.
        context: Contexts ``(N, C)``.
        x: Numbers of levels.
        weight: Weights of the losses, ``(N,)``.
    """
    heads = [LevelWeights(*one[:2], *(t.detach().contiguous() for t in one[2:])) for one in heads]
    context, x, weight, number = (t.detach().contiguous() for t in (context, x, weight, number))
    rows, features = context.shape
    sizes = [len(one.bias) for one in heads]
    matching = x.shape == weight.shape == number.shape == (rows,) and number.dtype == torch.int64
    matching &= all(
        one.weight.shape == (k, features) and one.prior.shape == (k,) for one, k in zip(heads, sizes, strict=True)
    )
    matching &= not rows or bool(((number >= 0) & (number < len(heads))).all())
    weights = [t for one in heads for t in one[2:]]
    check_shapes("level_losses", (context, x, weight, *weights), matching and min(sizes, default=0) > 0)
    structures = (LevelHead * len(heads))(
        *(LevelHead(k, one.sharpness, one.share, *map(address, one[2:])) for k, one in zip(sizes, heads, strict=True))
    )
    gradients = [torch.zeros_like(t) for one in heads for t in (one.weight, one.bias)]
    grad_context = torch.empty_like(context)
    code, count = library(), ctypes.c_long(len(heads))
    workspace = allocate(int(code.level_losses_workspace_bytes(structures, count, ctypes.c_long(features))))
    loss = code.level_losses(
        structures, count, ctypes.c_long(features), ctypes.c_long(rows), *map(address, (context, number, x, weight)),
        address(grad_context), addresses(gradients[0::2]), addresses(gradients[1::2]), address(workspace),
    )  # fmt: skip
    return float(loss), grad_context, gradients

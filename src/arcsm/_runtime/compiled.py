"""Functions that C computes together with their first derivatives, and torch with further ones."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor


class Compiled(ABC):
    """One call of such a function of some tensors. It keeps what the backward pass needs."""

    @abstractmethod
    def forward(self, *tensors: Tensor) -> Tensor:
        """Return the result, computed in C."""

    @abstractmethod
    def backward(self, grad: Tensor, *tensors: Tensor) -> list[Tensor | None]:
        """Return the gradient of each tensor, given that of the result, computed in C; ``None`` for zero."""

    @abstractmethod
    def in_torch(self, *tensors: Tensor) -> Tensor:
        """Return the result as a function that torch can differentiate any number of times."""


def call(function: Compiled, *tensors: Tensor) -> Tensor:
    """Return the result of a function, through which gradients of any order flow to the tensors."""
    result: Tensor = _Call.apply(function, *tensors)
    return result


class _Call(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, function: Compiled, *tensors: Tensor) -> Tensor:  # a separate setup_context is slower
        ctx.function = function
        ctx.save_for_backward(*tensors)
        return function.forward(*tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        tensors, needed = ctx.saved_tensors, ctx.needs_input_grad[1:]
        if not torch.is_grad_enabled():
            found = ctx.function.backward(grad, *tensors)
            return None, *(one if wanted else None for one, wanted in zip(found, needed, strict=True))
        result = ctx.function.in_torch(*tensors)
        wanted = [tensor for tensor, needs in zip(tensors, needed, strict=True) if needs]
        gradients = iter(torch.autograd.grad(result, wanted, grad, create_graph=True, materialize_grads=True))
        return None, *(next(gradients) if needs else None for needs in needed)

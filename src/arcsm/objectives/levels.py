"""The likelihood of levels, of all nominal columns together."""

from collections.abc import Sequence

from torch import Tensor

from arcsm._native import LevelWeights, available, level_losses, may_train, supports
from arcsm._runtime.compiled import Compiled, call
from arcsm.heads import CategoricalHead


class LevelHeads:
    """The heads of nominal columns, and the number of that of each term, ``(N,)``.

    With a few heads, torch takes longer to call its functions than to compute; C needs one call for all.
    """

    def __init__(self, heads: Sequence[CategoricalHead], number: Tensor) -> None:
        self.heads, self.number = heads, number

    def negative_log_prob(self, context: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """Return the weighted sum of the negative log probabilities of levels ``(N,)`` given contexts ``(N, C)``."""
        plain = not (x.requires_grad or weight.requires_grad) and may_train()
        parameters = [t for head in self.heads for t in head.softmax_parameters()]
        priors = [head.prior for head in self.heads]
        if plain and supports(context, x, weight, *parameters, *priors) and available():
            return call(_Losses(self, x, weight), context, *parameters)
        return self.in_torch(context, x, weight)

    def in_torch(self, context: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """Return the same, computed by torch."""
        loss = context.new_zeros(())
        for k, head in enumerate(self.heads):
            its = (self.number == k).nonzero()[:, 0]
            loss = loss - (weight[its] * head.log_prob(context[its], x[its])).sum()
        return loss


class _Losses(Compiled):
    """The loss as a function of contexts and of weights and biases of the heads."""

    def __init__(self, heads: LevelHeads, x: Tensor, weight: Tensor) -> None:
        self.heads, self.x, self.weight = heads, x, weight

    def forward(self, *tensors: Tensor) -> Tensor:
        context, *parameters = tensors
        pairs = zip(self.heads.heads, parameters[0::2], parameters[1::2], strict=True)
        weights = [
            LevelWeights(float(head.sharpness), float(head.share), weight, bias, head.prior)
            for head, weight, bias in pairs
        ]
        loss, by_context, gradients = level_losses(weights, self.heads.number, context, self.x, self.weight)
        self.gradients = [by_context, *gradients]
        return context.new_tensor(loss)

    def backward(self, grad: Tensor, *tensors: Tensor) -> list[Tensor | None]:
        return [grad * gradient for gradient in self.gradients]

    def in_torch(self, *tensors: Tensor) -> Tensor:
        context, *parameters = tensors
        loss = context.new_zeros(())
        for k, head in enumerate(self.heads.heads):
            its = (self.heads.number == k).nonzero()[:, 0]
            log_prob = head.log_prob_by(context[its], self.x[its], *parameters[2 * k : 2 * k + 2])
            loss = loss - (self.weight[its] * log_prob).sum()
        return loss

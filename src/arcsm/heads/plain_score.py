"""The paper's conditional score network as it stands: a shallow perceptron, and nothing around it."""

import itertools
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arcsm._runtime.sizes import check_layers, check_size, whole_numbers
from arcsm.heads.base import Head, ScoreAndDerivative, Sigma


class PlainScoreHead(Head):
    """A perceptron on :math:`[c_d, x_d]` (paper, Section 4.1 and Appendix C.4), to reproduce the paper.

    .. math:: s_\\sigma(c, x) = F(c, x, \\log \\sigma)

    :class:`ScoreHead` is the better choice for everything else: it starts from a Gaussian, sees sines and cosines of
    :math:`x`, and its tails are Gaussian for any weights. Here nothing makes scores point inwards far from the data,
    where training does not see them. So the normaliser may be infinite (paper, Definition 1, condition 2): a model
    with this head draws samples by Langevin dynamics and has no likelihood, as in the paper.

    The paper does not say how the network knows the noise level; here its logarithm is one more input.

    Arguments:
        context_features: Size :math:`C` of the contexts.
        hidden_features: Units of each hidden layer, at least one layer.
        activation: ``"silu"``, :math:`z / (1 + e^{-z})`, or ``"tanh"``. With activations whose slope jumps, such as
            ReLU, the gradient of composite score matching would be biased.

    Raises:
        ValueError: If a size is below one.

    Example:
        >>> head = PlainScoreHead(context_features=4, hidden_features=(8,))
        >>> s, ds = head.score_and_derivative(torch.zeros(5, 4), torch.zeros(5), sigma=0.1)
        >>> s.shape, ds.shape
        (torch.Size([5]), torch.Size([5]))
    """

    def __init__(
        self,
        context_features: int = 16,
        hidden_features: Sequence[int] = (64,),
        activation: Literal["silu", "tanh"] = "silu",
    ) -> None:
        super().__init__()
        hidden_features = whole_numbers("hidden_features", hidden_features)
        check_size("PlainScoreHead", context_features=context_features)
        if not hidden_features:
            raise ValueError("hidden_features: expected at least one layer, got ()")
        check_layers("PlainScoreHead", context_features + 2, hidden_features, 1)
        if activation not in ("silu", "tanh"):
            raise ValueError(f'activation: expected "silu" or "tanh", got {activation!r:.60}')
        self.context_features, self.hidden_features, self.activation = context_features, hidden_features, activation
        self.first = nn.Linear(context_features + 2, hidden_features[0])  # of the context, the value and the level
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise((*hidden_features, 1)))

    def project(self, context: Tensor) -> Tensor:
        """Return the context's contribution to the first hidden layer, ``(*, C)`` to ``(*, H)``."""
        return F.linear(context, self.first.weight[:, : self.context_features], self.first.bias)

    def projected_score_and_derivative(self, projection: Tensor, x: Tensor, sigma: Sigma = None) -> ScoreAndDerivative:
        of_value, of_level = self.first.weight[:, self.context_features :].unbind(1)
        z = projection + x.unsqueeze(-1) * of_value
        if sigma is not None:
            level = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).log()
            z = z + level.unsqueeze(-1) * of_level
        dz = of_value.expand_as(z)
        for layer in (layer for layer in self.layers if isinstance(layer, nn.Linear)):
            if self.activation == "tanh":
                h = torch.tanh(z)
                slope = 1.0 - h.square()
            else:
                gate = torch.sigmoid(z)
                h = z * gate
                slope = gate + h * (1.0 - gate)
            dh = dz * slope
            z, dz = layer(h), F.linear(dh, layer.weight)
        return z[..., 0], dz[..., 0]

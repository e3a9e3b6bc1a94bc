"""Scores that are learned from samples as they come: of the joint distribution, or of its conditionals."""

from __future__ import annotations

import itertools
from abc import abstractmethod
from typing import Literal

import torch
from torch import Tensor, nn

from arcsm import objectives
from arcsm.fields import sliced_score_matching
from arcsm.implicit.entropy import EntropyGradient
from arcsm.model import AutoregressiveModel


class _Learned(EntropyGradient):
    """An estimator that takes a gradient step at each update."""

    def __init__(self, network: nn.Module, learning_rate: float) -> None:
        if not learning_rate > 0.0:
            raise ValueError(f"learning_rate: expected a positive number, got {learning_rate}")
        self.network = network
        self.optimiser = torch.optim.RMSprop(network.parameters(), learning_rate)

    def update(self, z: Tensor, condition: Tensor | None = None) -> float:
        """A step on the loss of the samples.

        Raises:
            ValueError: where the loss is not finite; no step is made then.
        """
        self._check(z, condition)
        loss = self._loss(*_flat(z.detach(), condition))
        if not bool(loss.isfinite()):
            raise ValueError("z: the loss of its score is not finite; use a smaller learning rate of the sampler")
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        return float(loss.detach())

    def score(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        return self._score(*_flat(z, condition)).view_as(z)

    @abstractmethod
    def _loss(self, z: Tensor, condition: Tensor | None) -> Tensor:
        """Of samples ``(N, D)`` and conditions ``(N, F)``."""

    @abstractmethod
    def _score(self, z: Tensor, condition: Tensor | None) -> Tensor:
        """``(N, D)``."""


class AutoregressiveScore(_Learned):
    """The scores of the conditionals, by an :class:`AutoregressiveModel`: "CSM" and "SSM-AR" of the paper.

    .. math:: \\nabla_\\phi H = -\\sum_d \\mathbb{E} \\Big[ \\frac{\\partial}{\\partial z_d}
        \\log q_\\phi(z_d \\mid z_{<d}, x)\\, \\nabla_\\phi g_{\\phi,d}(\\epsilon_{\\le d}, x) \\Big]

    (paper, Eq. 26). That the score of :math:`z_d` by the values before it plays no part holds for samplers that are
    autoregressive themselves, :math:`z_d = h_d(\\epsilon_d, z_{<d}, x)` with :math:`\\epsilon_d` a single number: given
    :math:`\\epsilon_{<d}` its mean is zero. For other samplers use :class:`JointScore`.

    Arguments:
        model: Of the latents in the order in which the sampler makes them, conditioned on the inputs.
        objective: ``"csm"`` (composite score matching) or ``"ssm"`` (sliced).
        learning_rate: Of RMSProp (paper, Appendix D.4: 2e-4).
        mix: Of the objective, for a model with a noise ladder; see :func:`arcsm.objectives.csm`.
        slices: Of ``"ssm"``.

    Raises:
        ValueError: for an unknown objective.
    """

    def __init__(
        self,
        model: AutoregressiveModel,
        objective: Literal["csm", "ssm"] = "csm",
        learning_rate: float = 2e-4,
        mix: float | Literal["auto"] = 1.0,
        slices: int = 1,
    ) -> None:
        if objective not in ("csm", "ssm"):
            raise ValueError(f'objective: expected "csm" or "ssm", got {objective!r}')
        super().__init__(model, learning_rate)
        self.model, self.objective, self.mix, self.slices = model, objective, mix, slices

    def _loss(self, z: Tensor, condition: Tensor | None) -> Tensor:
        if self.objective == "csm":
            return objectives.csm(self.model, z, self.mix, condition)
        return objectives.ssm(self.model, z, self.slices, condition=condition, joint=False)

    def _score(self, z: Tensor, condition: Tensor | None) -> Tensor:
        return self.model.score(z, condition=condition)[0]


class JointScore(_Learned):
    """The score of the joint distribution, by a plain network and sliced score matching: "SSM" of the paper.

    References:
        Sliced Score Matching (Song, Garg, Shi and Ermon, 2019), https://arxiv.org/abs/1905.07088

    Arguments:
        network: ``network(z, condition)``, ``(N, D)`` and ``(N, F)`` (or ``None``) to ``(N, D)``, for example a
            :class:`ScoreNetwork`.
        learning_rate: Of RMSProp.
        slices: Projections of each sample; Gaussian, with the square of the score in closed form.
    """

    def __init__(self, network: nn.Module, learning_rate: float = 1e-3, slices: int = 1) -> None:
        super().__init__(network, learning_rate)
        self.slices = slices

    def _loss(self, z: Tensor, condition: Tensor | None) -> Tensor:
        z = z.requires_grad_()
        return sliced_score_matching(self.network(z, condition), z, self.slices, "gaussian", True)

    def _score(self, z: Tensor, condition: Tensor | None) -> Tensor:
        return self.network(z, condition)  # type: ignore[no-any-return]


class ScoreNetwork(nn.Module):
    """A perceptron for the joint score: inputs and latents side by side, tanh between its layers.

    Arguments:
        features: Size :math:`D` of the latents.
        condition_features: Size :math:`F` of the inputs; 0 for none.
        hidden_features: Units of each hidden layer.

    Example:
        >>> ScoreNetwork(3, condition_features=2)(torch.zeros(5, 3), torch.zeros(5, 2)).shape
        torch.Size([5, 3])
    """

    def __init__(
        self, features: int, condition_features: int = 0, hidden_features: tuple[int, ...] = (256, 256)
    ) -> None:
        super().__init__()
        sizes = (condition_features + features, *hidden_features, features)
        layers = [layer for a, b in itertools.pairwise(sizes) for layer in (nn.Linear(a, b), nn.Tanh())]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.layers(z if condition is None else torch.cat([condition, z], -1))  # type: ignore[no-any-return]


def _flat(z: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Samples ``(B, K, D)`` as ``(B * K, D)``, each with its condition."""
    rows = None if condition is None else condition.repeat_interleave(z.shape[1], 0)
    return z.reshape(-1, z.shape[-1]), rows

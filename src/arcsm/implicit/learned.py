"""Scores that are learned from samples as they come: of the joint distribution, or of its conditionals."""

from __future__ import annotations

import copy
import itertools
from abc import abstractmethod
from typing import Any, Literal

import torch
from torch import Tensor, nn

from arcsm import objectives
from arcsm.fields import sliced_score_matching
from arcsm.implicit.entropy import EntropyGradient
from arcsm.model import AutoregressiveModel


class _Learned(EntropyGradient):
    """An estimator that takes a gradient step at each update."""

    def __init__(self, network: nn.Module, learning_rate: float, slices: int) -> None:
        if not learning_rate > 0.0:
            raise ValueError(f"learning_rate: expected a positive number, got {learning_rate}")
        if slices < 1:
            raise ValueError(f"slices: expected at least 1, got {slices}")
        self.network, self.slices = network, slices
        self.optimiser = torch.optim.RMSprop(network.parameters(), learning_rate)

    @torch.enable_grad()
    def update(self, z: Tensor, condition: Tensor | None = None, generator: torch.Generator | None = None) -> float:
        """A step on the loss of the samples.

        Raises:
            ValueError: where the loss or a gradient is not finite; no step is made then.
        """
        self._check(z, condition)
        self.network.train()
        loss = self._loss(*_flat(z.detach(), None if condition is None else condition.detach()), generator)
        self.optimiser.zero_grad()
        loss.backward()
        norm = nn.utils.get_total_norm(p.grad for p in self.network.parameters() if p.grad is not None)
        if not bool(loss.isfinite() & norm.isfinite()):
            raise ValueError(
                f"{type(self).__name__}: loss {float(loss.detach()):g}, gradient {float(norm):g}; samples or weights "
                "have grown too large: use a smaller learning rate"
            )
        self.optimiser.step()
        return float(loss.detach())

    def score(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        self.network.eval()
        return self._score(*_flat(z, condition)).view_as(z)

    def state_dict(self) -> dict[str, Any]:
        """What it has learned, and its optimiser, to go on from."""
        return {"network": self.network.state_dict(), "optimiser": self.optimiser.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave."""
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(copy.deepcopy(state["optimiser"]))  # torch would share its averages

    @abstractmethod
    def _loss(self, z: Tensor, condition: Tensor | None, generator: torch.Generator | None) -> Tensor:
        """Of samples ``(N, D)`` and conditions ``(N, F)``."""

    @abstractmethod
    def _score(self, z: Tensor, condition: Tensor | None) -> Tensor:
        """``(N, D)``."""


class AutoregressiveScore(_Learned):
    """The scores of the conditionals, by an :class:`AutoregressiveModel`: "CSM" and "SSM-AR" of the paper.

    .. math:: \\nabla_\\phi H = -\\sum_d \\mathbb{E} \\Big[ \\frac{\\partial}{\\partial z_d}
        \\log q_\\phi(z_d \\mid z_{<d}, x)\\, \\nabla_\\phi g_{\\phi,d}(\\epsilon_{\\le d}, x) \\Big]

    (paper, after Eq. 26). That the derivatives of :math:`\\log q_\\phi(z_d \\mid z_{<d}, x)` by the values before play
    no part holds for samplers that are autoregressive themselves: :math:`z_d = h_d(\\epsilon_d, z_{<d}, x)`, the noise
    of every dimension independent of that of the others and seen by later ones through :math:`z_{<d}` alone. Given
    what comes before, those derivatives then have mean zero. For other samplers use :class:`JointScore`.

    A model with a noise ladder gives the gradient of another entropy, that of :math:`z` with the smallest noise on it:
    easier to learn, and right as long as that noise is far below the width of every :math:`q(z \\mid x)`.

    Arguments:
        model: Of the latents in the order in which the sampler makes them, conditioned on the inputs.
        objective: ``"csm"`` (composite score matching) or ``"ssm"`` (sliced, Gaussian projections, the square in
            closed form).
        learning_rate: Of RMSProp; by default the paper's on MNIST (Appendix D.4), 2e-4 for CSM and 1e-3 for SSM.
        mix: Of CSM, for a model with a noise ladder; see :func:`arcsm.objectives.csm`.
        slices: Projections of each sample, of SSM.

    Raises:
        ValueError: for an unknown objective, or a mix other than 1 without a ladder.
    """

    def __init__(
        self,
        model: AutoregressiveModel,
        objective: Literal["csm", "ssm"] = "csm",
        learning_rate: float | None = None,
        mix: float | Literal["auto"] = 1.0,
        slices: int = 1,
    ) -> None:
        if objective not in ("csm", "ssm"):
            raise ValueError(f'objective: expected "csm" or "ssm", got {objective!r}')
        if mix != 1.0 and (model.noise is None or objective == "ssm"):
            raise ValueError(f"mix: only 1 is possible without a noise ladder and for ssm, got {mix}")
        default = 2e-4 if objective == "csm" else 1e-3
        super().__init__(model, default if learning_rate is None else learning_rate, slices)
        self.model, self.objective, self.mix = model, objective, mix

    def _loss(self, z: Tensor, condition: Tensor | None, generator: torch.Generator | None) -> Tensor:
        if self.objective == "csm":
            return objectives.csm(self.model, z, self.mix, condition, generator)
        return objectives.ssm(self.model, z, self.slices, "gaussian", True, condition, generator, joint=False)

    @torch.no_grad()
    def _score(self, z: Tensor, condition: Tensor | None) -> Tensor:
        if self.model.noise is not None:
            z = z + self.model.noise.sigma_min * self.model.scale * torch.randn_like(z)
        return self.model.score(z, condition=condition)[0]


class JointScore(_Learned):
    """The score of the joint distribution, by a plain network and sliced score matching: "SSM" of the paper.

    References:
        Sliced Score Matching (Song, Garg, Shi and Ermon, 2019), https://arxiv.org/abs/1905.07088

    Arguments:
        network: ``network(z, condition)``, ``(N, D)`` and ``(N, F)`` (or ``None``) to ``(N, D)``, for example a
            :class:`ScoreNetwork`.
        learning_rate: Of RMSProp (paper, Appendix D.4).
        slices: Projections of each sample; Gaussian, with the square of the score in closed form.
    """

    def __init__(self, network: nn.Module, learning_rate: float = 1e-3, slices: int = 1) -> None:
        super().__init__(network, learning_rate, slices)

    def _loss(self, z: Tensor, condition: Tensor | None, generator: torch.Generator | None) -> Tensor:
        z = z.requires_grad_()
        return sliced_score_matching(self.network(z, condition), z, self.slices, "gaussian", True, generator)

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

"""Scores that are learned from samples as they come: of the joint distribution, or of its conditionals."""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from typing import Any, Literal

import torch
from torch import Tensor, nn

from arcsm import objectives
from arcsm.errors import NonFiniteError, TrainingWarning, warn
from arcsm.implicit.entropy.gradients import EntropyGradient
from arcsm.implicit.networks.trunks import DenseTrunk, Trunk
from arcsm.model import AutoregressiveModel
from arcsm.objectives.score_matching import sliced_score_matching

_ENOUGH = 32  # samples to tell a width from
_FAR = 5.0  # times wider or narrower than expected: a network that starts there takes very long


class _Learned(EntropyGradient):
    """An estimator that takes a gradient step at each update.

    Attributes:
        network: What is trained.
        embed: What is trained along, of the conditions.
        trained: Both; move them with ``trained.to(device)`` before the first update.
        optimizer: RMSprop; its learning rate may be changed by any of torch's schedulers.
        looked_at_scale: Whether the width of samples has been looked at, which the first update does.
    """

    def __init__(self, network: nn.Module, learning_rate: float, slices: int, embed: nn.Module | None) -> None:
        if not learning_rate > 0.0:
            raise ValueError(f"learning_rate: expected a positive number, got {learning_rate}")
        if slices < 1:
            raise ValueError(f"slices: expected at least 1, got {slices}")
        self.network, self.slices = network, slices
        self.embed = nn.Identity() if embed is None else embed
        self.trained = nn.ModuleList([network, self.embed])
        self.optimizer = torch.optim.RMSprop(self.trained.parameters(), learning_rate, foreach=True)
        self.looked_at_scale = False

    @torch.enable_grad()
    def update(self, z: Tensor, condition: Tensor | None = None, generator: torch.Generator | None = None) -> float:
        """A step on the loss of the samples.

        Raises:
            NonFiniteError: (a ``ValueError``) where the loss or a gradient is not finite; no step is made then.
        """
        self._check(z, condition)
        if not self.looked_at_scale:
            self._look_at_scale(z)
            self.looked_at_scale = True
        self.trained.train()
        loss = self._loss(*self._rows(z.detach(), condition), generator)
        self.optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.get_total_norm(p.grad for p in self.trained.parameters() if p.grad is not None)
        if not bool(loss.isfinite() & norm.isfinite()):
            raise NonFiniteError(
                f"{type(self).__name__}: loss {float(loss.detach()):g}, gradient {float(norm):g}; samples or weights "
                "have grown too large: use a smaller learning rate"
            )
        self.optimizer.step()
        return float(loss.detach())

    @torch.no_grad()
    def score(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        was_training = self.trained.training
        self.trained.eval()
        try:
            return self._score(*self._rows(z, condition)).view_as(z)
        finally:
            self.trained.train(was_training)

    def _look_at_scale(self, z: Tensor) -> None:
        """Say so where samples are far wider or narrower than what a score network starts with."""
        width = z.detach().flatten(0, 1).std(0, correction=0) / self._expected_width()
        off = (width.log().abs() > math.log(_FAR)) & (width > 0.0)
        if len(z) * z.shape[1] >= _ENOUGH and bool(off.any()):
            latent = int(off.int().argmax())
            warn(
                f"samples vary by {float(width[latent]):.2g} times what the scores start with (dimension {latent}): "
                "they would take very long to learn. Use EncoderUnits or ConditionalUnits, samples in other units, or, "
                "for an AutoregressiveModel, its set_standardisation",
                TrainingWarning,
            )

    def _expected_width(self) -> Tensor | float:
        return 1.0

    def _rows(self, z: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Samples ``(B, K, D)`` as ``(B * K, D)``, each with what the network sees of its condition."""
        if condition is not None:
            condition = self.embed(condition.detach())
            if condition.ndim != 2:
                raise ValueError(f"condition: expected (B, F), got {tuple(condition.shape)}")
            condition = condition.repeat_interleave(z.shape[1], 0) if z.shape[1] != 1 else condition
        return z.reshape(-1, z.shape[-1]), condition

    def state_dict(self) -> dict[str, Any]:
        return {"trained": self.trained.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.trained.load_state_dict(state["trained"])
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))  # torch would share its averages

    @abstractmethod
    def _loss(self, z: Tensor, condition: Tensor | None, generator: torch.Generator | None) -> Tensor:
        """Of samples ``(N, D)`` and conditions ``(N, F)``."""

    @abstractmethod
    def _score(self, z: Tensor, condition: Tensor | None) -> Tensor:
        """``(N, D)``."""


class AutoregressiveScore(_Learned):
    """The scores of the conditionals, by an :class:`AutoregressiveModel`: "CSM" and "SSM-AR" of the paper.

    The entropy of a sampler :math:`z_d = h_{\\phi,d}(\\epsilon_d, z_{<d}, x)`, which all values before made into
    :math:`g_{\\phi,d}(\\epsilon_{\\le d}, x)`, is a sum over its conditionals (paper, Eq. 24),

    .. math:: H(q_\\phi(\\cdot \\mid x)) = \\sum_d \\mathbb{E}\\, H_d(q_\\phi(\\cdot \\mid z_{<d}, x)), \\qquad
        H_d = -\\mathbb{E}_{\\epsilon_d} \\log q_\\phi(g_{\\phi,d}(\\epsilon_{\\le d}, x) \\mid z_{<d}, x)

    whose gradients need the scores of the conditionals alone (Eq. 25 to 30, where the line before Eq. 30 has lost its
    minus sign and the derivative of :math:`g`):

    .. math:: \\nabla_\\phi H = -\\sum_d \\mathbb{E} \\Big[ \\frac{\\partial}{\\partial z_d}
        \\log q_\\phi(z_d \\mid z_{<d}, x)\\Big|_{z_d = g_{\\phi,d}(\\epsilon_{\\le d}, x)}\\,
        \\nabla_\\phi g_{\\phi,d}(\\epsilon_{\\le d}, x) \\Big]

    That the derivatives of :math:`\\log q_\\phi(z_d \\mid z_{<d}, x)` by the values before play
    no part holds for samplers that are autoregressive themselves: :math:`z_d = h_d(\\epsilon_d, z_{<d}, x)`, the noise
    of every dimension independent of that of the others and seen by later ones through :math:`z_{<d}` alone. Given
    what comes before, those derivatives then have mean zero. For other samplers use :class:`JointScore`.

    A model with a noise ladder learns the conditionals of :math:`z` with the smallest noise :math:`\\sigma` on it,
    which is easier. For one latent that gives the gradient of the entropy of the noisy latent. For more it gives
    neither that nor the other: a noisy latent depends on the earlier ones as they were without noise, which the noisy
    ones do not tell. The bias is of the order of :math:`\\sigma^2` over the squared width of :math:`q(z \\mid x)`.

    Arguments:
        model: Of the latents in the order in which the sampler makes them, conditioned on the inputs.
        objective: ``"csm"`` (composite score matching) or ``"ssm"`` (sliced, Gaussian projections, the square in
            closed form).
        learning_rate: Of RMSProp; by default the paper's on MNIST (Appendix D.4), 2e-4 for CSM and 1e-3 for SSM.
        mix: Of CSM, for a model with a noise ladder; see :func:`arcsm.objectives.csm`.
        slices: Projections of each sample, of SSM.
        embed: A network of the inputs, trained along, whose output is the condition of the model.

    Raises:
        ValueError: for an unknown objective, or a mix other than 1 without a ladder.
    """

    of_conditionals = True

    def __init__(
        self,
        model: AutoregressiveModel,
        objective: Literal["csm", "ssm"] = "csm",
        learning_rate: float | None = None,
        mix: float | Literal["auto"] = 1.0,
        slices: int = 1,
        embed: nn.Module | None = None,
    ) -> None:
        if objective not in ("csm", "ssm"):
            raise ValueError(f'objective: expected "csm" or "ssm", got {objective!r}')
        if mix != 1.0 and (model.noise is None or objective == "ssm"):
            raise ValueError(f"mix: only 1 is possible without a noise ladder and for ssm, got {mix}")
        default = 2e-4 if objective == "csm" else 1e-3
        super().__init__(model, default if learning_rate is None else learning_rate, slices, embed)
        self.model, self.objective, self.mix = model, objective, mix

    def _loss(self, z: Tensor, condition: Tensor | None, generator: torch.Generator | None) -> Tensor:
        if self.objective == "csm":
            return objectives.csm(self.model, z, self.mix, condition, generator)
        return objectives.ssm(self.model, z, self.slices, "gaussian", True, condition, generator, joint=False)

    def _expected_width(self) -> Tensor:
        return self.model.scale

    def _score(self, z: Tensor, condition: Tensor | None) -> Tensor:
        if self.model.noise is not None and z.shape[-1] == self.model.features:  # the model refuses others
            z = z + self.model.noise.sigma_min * self.model.scale * torch.randn_like(z)
        return self.model.score_alone(z, condition=condition)


class JointScore(_Learned):
    """The score of the joint distribution, by a plain network and sliced score matching: "SSM" of the paper.

    References:
        Sliced Score Matching (Song, Garg, Shi and Ermon, 2019), https://arxiv.org/abs/1905.07088

    Arguments:
        network: ``network(z, condition)``, ``(N, D)`` and ``(N, F)`` (or ``None``) to ``(N, D)``, for example a
            :class:`ScoreNetwork`.
        learning_rate: Of RMSProp (paper, Appendix D.4).
        slices: Projections of each sample; Gaussian, with the square of the score in closed form.
        embed: A network of the inputs, trained along, whose output the network sees in their place.
    """

    def __init__(
        self, network: nn.Module, learning_rate: float = 1e-3, slices: int = 1, embed: nn.Module | None = None
    ) -> None:
        super().__init__(network, learning_rate, slices, embed)

    def _loss(self, z: Tensor, condition: Tensor | None, generator: torch.Generator | None) -> Tensor:
        z = z.requires_grad_()
        return sliced_score_matching(self.network(z, condition), z, self.slices, "gaussian", True, generator)

    def _score(self, z: Tensor, condition: Tensor | None) -> Tensor:
        return self.network(z, condition)  # type: ignore[no-any-return]


class ScoreNetwork(nn.Module):
    """A network for the joint score: of inputs, with latents as the extras of its trunk.

    Arguments:
        features: Size :math:`D` of the latents.
        condition_features: Size :math:`F` of the inputs; 0 for none.
        hidden_features: Units of each hidden layer of a perceptron, tanh after each.
        trunk: In place of the perceptron, for inputs that ask for another network; its extras are the latents.

    Raises:
        ValueError: for a trunk of other extras.

    Example:
        >>> ScoreNetwork(3, condition_features=2)(torch.zeros(5, 3), torch.zeros(5, 2)).shape
        torch.Size([5, 3])
    """

    def __init__(
        self,
        features: int,
        condition_features: int = 0,
        hidden_features: tuple[int, ...] = (256, 256),
        trunk: Trunk | None = None,
    ) -> None:
        super().__init__()
        self.trunk = DenseTrunk(condition_features, hidden_features, features) if trunk is None else trunk
        if self.trunk.extra_features != features:
            raise ValueError(f"trunk: expected one with {features} extras, got {self.trunk.extra_features}")
        self.output = nn.Linear(self.trunk.out_features, features)

    def forward(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        inputs = z.new_zeros(len(z), 0) if condition is None else condition
        if z.shape[1:] != (self.output.out_features,) or len(inputs) != len(z):
            raise ValueError(
                f"z, condition: expected (B, {self.output.out_features}) and one condition for each row, got "
                f"{tuple(z.shape)} and {None if condition is None else tuple(condition.shape)}"
            )
        if isinstance(self.trunk, DenseTrunk) and inputs.shape[1:] != (self.trunk.features,):
            raise ValueError(
                f"condition: expected (B, {self.trunk.features}), got "
                f"{None if condition is None else tuple(condition.shape)}"
            )
        if z.dtype != self.output.weight.dtype:
            raise ValueError(f"z: expected {self.output.weight.dtype}, which the network has, got {z.dtype}")
        return self.output(self.trunk(inputs, z.unsqueeze(1)).squeeze(1))  # type: ignore[no-any-return]

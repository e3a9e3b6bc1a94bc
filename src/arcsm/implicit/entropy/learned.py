"""Scores learned online from samples: of the joint distribution, or of its conditionals."""

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

_MIN_SAMPLES_FOR_WIDTH = 32
_MAX_WIDTH_RATIO = 5.0  # a score network that starts farther off learns very slowly


class LearnedScore(EntropyGradient):
    """An estimator that takes one gradient step at each update.

    Attributes:
        embed: Network of the conditions, trained jointly.
        trained: Both; move them with ``trained.to(device)`` before the first update.
        optimizer: RMSprop; any of torch's schedulers may change its learning rate.
    """

    def __init__(
        self, network: nn.Module, learning_rate: float = 1e-3, slices: int = 1, embed: nn.Module | None = None
    ) -> None:
        if not learning_rate > 0.0:
            raise ValueError(f"learning_rate: expected a positive number, got {learning_rate}")
        if slices < 1:
            raise ValueError(f"slices: expected at least 1, got {slices}")
        self.network, self.slices = network, slices
        self.embed = nn.Identity() if embed is None else embed
        self.trained = nn.ModuleList([network, self.embed])
        self.optimizer = torch.optim.RMSprop(self.trained.parameters(), learning_rate, foreach=True)
        self.width_checked = False  # becomes true at the first update

    @torch.enable_grad()
    def update(self, z: Tensor, condition: Tensor | None = None, generator: torch.Generator | None = None) -> float:
        """Take a gradient step; if the loss or a gradient is not finite, raise :class:`NonFiniteError` instead."""
        self._check(z, condition)
        if not self.width_checked:
            self._check_width(z)
            self.width_checked = True
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

    def _check_width(self, z: Tensor) -> None:
        ratio = z.detach().flatten(0, 1).std(0, correction=0) / self._initial_width()
        off = (ratio.log().abs() > math.log(_MAX_WIDTH_RATIO)) & (ratio > 0.0)
        if len(z) * z.shape[1] >= _MIN_SAMPLES_FOR_WIDTH and bool(off.any()):
            latent = int(off.int().argmax())
            warn(
                f"samples of dimension {latent} are {float(ratio[latent]):.2g} times as wide as the initial score "
                "expects and would be learned very slowly. Use EncoderUnits or ConditionalUnits, or set_standardisation"
                " of an AutoregressiveModel",
                TrainingWarning,
            )

    def _initial_width(self) -> Tensor | float:
        return 1.0

    def _rows(self, z: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return samples ``(B * K, D)`` and the embedded condition of each."""
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
        """Return the loss of samples ``(N, D)`` and conditions ``(N, F)``, a scalar."""

    @abstractmethod
    def _score(self, z: Tensor, condition: Tensor | None) -> Tensor:
        """Return the score of samples ``(N, D)`` and conditions ``(N, F)``, ``(N, D)``."""


class AutoregressiveScore(LearnedScore):
    """Conditional scores learned by an :class:`AutoregressiveModel`: the paper's "CSM" and "SSM-AR".

    The entropy of a sampler :math:`z_d = h_{\\phi,d}(\\epsilon_d, z_{<d}, x) = g_{\\phi,d}(\\epsilon_{\\le d}, x)` is
    the sum of its conditionals' entropies (paper, Eq. 24). Its gradient needs only the conditional scores (Eq. 25 to
    30; the line before Eq. 30 lacks a minus sign and the derivative of :math:`g`):

    .. math:: \\nabla_\\phi H = -\\sum_d \\mathbb{E} \\Big[ \\frac{\\partial}{\\partial z_d}
        \\log q_\\phi(z_d \\mid z_{<d}, x)\\Big|_{z_d = g_{\\phi,d}(\\epsilon_{\\le d}, x)}\\,
        \\nabla_\\phi g_{\\phi,d}(\\epsilon_{\\le d}, x) \\Big]

    This omits the derivatives of :math:`\\log q_\\phi(z_d \\mid z_{<d}, x)` by the earlier latents, which have mean
    zero only if the sampler is autoregressive too: each :math:`\\epsilon_d` is independent of the others, and later
    latents depend on it through :math:`z_{\\le d}` alone. For other samplers use :class:`JointScore`.

    A model with a noise ladder learns the conditionals of :math:`z` plus noise of the smallest :math:`\\sigma`, which
    is easier. For one latent this gives the entropy gradient of the noisy latent. For several latents it is biased for
    either entropy, because a latent depends on the earlier ones without their noise. The bias is of the order of
    :math:`\\sigma^2` over the squared width of :math:`q(z \\mid x)`.

    Arguments:
        model: Model of the latents in the sampler's order, conditioned on the inputs.
        objective: ``"csm"`` (composite score matching) or ``"ssm"`` (sliced, Gaussian projections, the square in
            closed form).
        learning_rate: Learning rate of RMSProp. The paper has 2e-4 for CSM and 1e-3 for SSM, in the long trainings of
            large networks on MNIST (Appendix D.4).
        mix: Weight of CSM for a model with a noise ladder, otherwise 1; see :func:`arcsm.objectives.csm`.
        slices: Projections of each sample, for SSM.
        embed: Network that maps inputs to the model's condition, trained jointly.
    """

    estimates_conditionals = True

    def __init__(
        self,
        model: AutoregressiveModel,
        objective: Literal["csm", "ssm"] = "csm",
        learning_rate: float = 2e-3,
        mix: float | Literal["auto"] = 1.0,
        slices: int = 1,
        embed: nn.Module | None = None,
    ) -> None:
        if objective not in ("csm", "ssm"):
            raise ValueError(f'objective: expected "csm" or "ssm", got {objective!r}')
        if mix != 1.0 and (model.noise is None or objective == "ssm"):
            raise ValueError(f"mix: expected 1 for ssm and for a model without a noise ladder, got {mix}")
        super().__init__(model, learning_rate, slices, embed)
        self.model, self.objective, self.mix = model, objective, mix

    def _loss(self, z: Tensor, condition: Tensor | None, generator: torch.Generator | None) -> Tensor:
        if self.objective == "csm":
            return objectives.csm(self.model, z, self.mix, condition, generator)
        return objectives.ssm(self.model, z, self.slices, "gaussian", True, condition, generator, joint=False)

    def _initial_width(self) -> Tensor:
        return self.model.scale

    def _score(self, z: Tensor, condition: Tensor | None) -> Tensor:
        if self.model.noise is not None and z.shape[-1] == self.model.features:  # the model rejects other sizes
            self.model.check_noise_units("entropy gradient")
            z = z + self.model.noise.sigma_min * self.model.scale * torch.randn_like(z)
        return self.model.score_alone(z, condition=condition)


class JointScore(LearnedScore):
    """The joint score learned by a plain network and sliced score matching: the paper's "SSM".

    References:
        Sliced Score Matching (Song, Garg, Shi and Ermon, 2019), https://arxiv.org/abs/1905.07088

    Arguments:
        network: Map from ``z`` ``(N, D)`` and condition ``(N, F)`` (or ``None``) to scores ``(N, D)``, for example a
            :class:`ScoreNetwork`.
        learning_rate: Learning rate of RMSProp (paper, Appendix D.4).
        slices: Gaussian projections of each sample; the square of the score is in closed form.
        embed: Network that maps inputs to the condition, trained jointly.
    """

    def _loss(self, z: Tensor, condition: Tensor | None, generator: torch.Generator | None) -> Tensor:
        z = z.requires_grad_()
        return sliced_score_matching(self.network(z, condition), z, self.slices, "gaussian", True, generator)

    def _score(self, z: Tensor, condition: Tensor | None) -> Tensor:
        return self.network(z, condition)  # type: ignore[no-any-return]


class ScoreNetwork(nn.Module):
    """A network for the joint score: a trunk over the inputs, with the latents as its extra features.

    Arguments:
        features: Size :math:`D` of the latents.
        condition_features: Size :math:`F` of the inputs; 0 for none.
        hidden_features: Units of each hidden layer of a perceptron with tanh.
        trunk: Network to use instead of the perceptron; its :math:`D` extra features are the latents.

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
            raise ValueError(f"trunk: expected {features} extra features, got {self.trunk.extra_features}")
        self.output = nn.Linear(self.trunk.out_features, features)

    def forward(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        inputs = z.new_zeros(len(z), 0) if condition is None else condition
        shape = None if condition is None else tuple(condition.shape)
        if z.shape[1:] != (self.output.out_features,) or len(inputs) != len(z):
            raise ValueError(
                f"z, condition: expected (B, {self.output.out_features}) and one condition for each row, got "
                f"{tuple(z.shape)} and {shape}"
            )
        if isinstance(self.trunk, DenseTrunk) and inputs.shape[1:] != (self.trunk.features,):
            raise ValueError(f"condition: expected (B, {self.trunk.features}), got {shape}")
        if z.dtype != self.output.weight.dtype:
            raise ValueError(f"z: expected {self.output.weight.dtype}, the network's dtype, got {z.dtype}")
        return self.output(self.trunk(inputs, z.unsqueeze(1)).squeeze(1))  # type: ignore[no-any-return]

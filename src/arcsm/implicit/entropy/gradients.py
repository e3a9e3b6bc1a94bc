"""What all estimators of an entropy gradient share, and the one in closed form.

An implicit distribution :math:`q_\\phi(z \\mid x)` is a sampler :math:`z = g_\\phi(\\epsilon, x)`. Its entropy has no
formula, but its gradient needs only the score of :math:`q` at the samples:

.. math:: \\nabla_\\phi H[q_\\phi(\\cdot \\mid x)] = -\\mathbb{E}_\\epsilon \\big[
    \\nabla_z \\log q_\\phi(z \\mid x)^\\top\\, \\nabla_\\phi g_\\phi(\\epsilon, x) \\big]

so that an estimate of the score, held fixed, makes a surrogate whose gradient is that of the entropy. (By the chain
rule there is another term, :math:`\\mathbb{E}[\\nabla_\\phi \\log q_\\phi(z \\mid x)]` at fixed :math:`z`. It is zero:
densities have mass one whatever :math:`\\phi`. For the conditionals of an autoregressive sampler that is Eq. 25 to 30
of the paper; see :class:`~arcsm.implicit.AutoregressiveScore`.) It takes a density that falls to zero at the edge of
its support: a uniform distribution has score zero inside, and all that its entropy knows of :math:`\\phi` is in the
edges, which no score sees. A sampler with less noise than latents, or with atoms, has no density at all.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from arcsm.errors import NonFiniteError, all_finite

_HALF_LOG_2_PI_E = 0.5 * math.log(2.0 * math.pi * math.e)


class EntropyGradient(ABC):
    """An estimator of :math:`\\nabla_\\phi H[q_\\phi(\\cdot \\mid x)]` from reparameterised samples.

    Samples are ``(B, K, D)``: ``K`` of them for each of ``B`` inputs, in nats throughout. A training loop asks for two
    things at each step: :meth:`update` on samples (which only learned estimators need), and :meth:`surrogate` on fresh
    ones, to be *added* to what is maximised.

    Example:
        >>> from arcsm.implicit import Stein
        >>> torch.manual_seed(0)
        <torch._C.Generator object at ...>
        >>> width = torch.ones(1, dtype=torch.float64, requires_grad=True)
        >>> z = width * torch.randn(1, 200, 1, dtype=torch.float64)  # entropy log(width) + constant, slope 1 / width
        >>> Stein().surrogate(z).backward()
        >>> bool(0.8 < width.grad < 1.2)
        True
    """

    #: Samples for each input below which there is no estimate.
    least_samples: int = 1
    #: Whether its scores are those of conditionals, :math:`\\partial_{z_d} \\log q(z_d \\mid z_{<d}, x)`.
    of_conditionals: bool = False

    def update(
        self, z: Tensor, condition: Tensor | None = None, generator: torch.Generator | None = None
    ) -> float | None:
        """Learn from samples ``(B, K, D)`` of inputs ``(B, F)``; no gradient flows to either.

        Arguments:
            z: Samples, ``(B, K, D)``.
            condition: The inputs that they are for, ``(B, F)``, or ``None``.
            generator: Source of the randomness of the loss.

        Returns:
            The loss before the step, or ``None`` for an estimator that does not learn.
        """
        self._check(z, condition)
        return None

    @property
    def learns(self) -> bool:
        """Whether :meth:`update` does anything."""
        return type(self).update is not EntropyGradient.update

    def surrogate(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """A scalar whose gradient by whatever made ``z`` is an estimate of that of the mean entropy.

        Its value means nothing.

        Arguments:
            z: Reparameterised samples, ``(B, K, D)``.
            condition: The inputs that they are for, ``(B, F)``, or ``None``.

        Raises:
            ValueError: for samples of another shape or too few of them; for samples that no gradient can reach whatever
                made them.
            NonFiniteError: (a ``ValueError``) for NaN or infinity, in the samples or in their score.
        """
        self._check(z, condition)
        score = self.score(z.detach(), None if condition is None else condition.detach()).detach()
        if score.shape != z.shape:
            raise ValueError(
                f"{type(self).__name__}: expected scores of shape {tuple(z.shape)}, got {tuple(score.shape)}"
            )
        if not all_finite(score):
            raise NonFiniteError(f"{type(self).__name__}: the score of the samples is NaN or infinite")
        if torch.is_grad_enabled() and not z.requires_grad:
            raise ValueError("z: no gradient reaches what made the samples; draw them outside of torch.no_grad()")
        return -(score * z).sum(-1).mean()

    @abstractmethod
    def score(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """The estimated score at the samples, ``(B, K, D)``."""

    @torch.no_grad()
    def pressure(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """How hard the estimate pushes samples apart, as a share of what the true entropy does, ``(D,)``.

        .. math:: c_d = -\\operatorname{Cov}[s_d, z_d \\mid x]

        It is 1 for the true score of any density that falls to zero (Stein's identity), also for scores of conditionals
        of a sampler that is autoregressive. A learned score that lags behind has less, and the sampler that is trained
        with it becomes too narrow: more steps of the score, or scores in the sampler's own units
        (:class:`EncoderUnits`, :class:`ConditionalUnits`), are what helps. That it is 1 does not prove a score right.

        Arguments:
            z: Samples, ``(B, K, D)`` with at least two of each input; thousands in all, for two digits.
            condition: The inputs that they are for, ``(B, F)``, or ``None``.

        Raises:
            ValueError: for samples of another shape or too few of them.
            NonFiniteError: (a ``ValueError``) for NaN or infinity.

        Example:
            >>> gaussian = GaussianEntropy(lambda condition: (torch.zeros(1, 2), torch.tensor([[0.0, 0.5]])))
            >>> z = torch.randn(100, 100, 2, generator=torch.Generator().manual_seed(0))
            >>> [round(c, 1) for c in gaussian.pressure(z).tolist()]  # of unit width: the second is too flat
            [1.0, 0.4]
        """
        self._check(z, condition)
        if z.shape[1] < 2:
            raise ValueError(f"z: expected samples (B, K, D) with K at least 2, got {tuple(z.shape)}")
        centred = z - z.mean(1, keepdim=True)
        return -(self.score(z, condition) * centred).sum(1).mean(0) / (z.shape[1] - 1)

    def _check(self, z: Tensor, condition: Tensor | None) -> None:
        if not isinstance(z, Tensor) or z.ndim != 3 or z.shape[1] < self.least_samples or z.numel() == 0:
            got = tuple(z.shape) if isinstance(z, Tensor) else type(z).__name__
            raise ValueError(f"z: expected samples (B, K, D) with K at least {self.least_samples}, got {got}")
        if not z.is_floating_point():
            raise ValueError(f"z: expected floating point numbers, got {z.dtype}")
        if not all_finite(z):
            raise NonFiniteError("z: holds NaN or infinity; a smaller learning rate of the sampler may help")
        if condition is None:
            return
        if len(condition) != len(z):
            raise ValueError(f"condition: expected one for each of the {len(z)} inputs, got {len(condition)}")
        if not all_finite(condition):
            raise NonFiniteError("condition: holds NaN or infinity")

    def state_dict(self) -> dict[str, Any]:
        """All that it has learned, to go on from; nothing for an estimator that does not learn."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave.

        Raises:
            ValueError: for the state of another estimator.
        """
        if state.keys() != self.state_dict().keys():
            raise ValueError(f"state: expected that of {type(self).__name__}, got {sorted(state)}")


class GaussianEntropy(EntropyGradient):
    """The entropy of an explicit Gaussian, in closed form ("ELBO" in the paper): no estimate at all.

    .. math:: H = \\sum_d \\big[ \\log \\sigma_d(x) + \\tfrac12 \\log 2 \\pi e \\big]

    Arguments:
        parameters: The inputs ``(B, F)`` to means and log standard deviations, ``(B, D)`` each.

    Example:
        >>> log_std = torch.zeros(1, 2, requires_grad=True)
        >>> gaussian = GaussianEntropy(lambda condition: (torch.zeros(1, 2), log_std))
        >>> gaussian.surrogate(torch.zeros(1, 5, 2)).backward()
        >>> log_std.grad
        tensor([[1., 1.]])
    """

    of_conditionals = True  # its dimensions are independent

    def __init__(self, parameters: Callable[[Tensor | None], tuple[Tensor, Tensor]]) -> None:
        self.parameters = parameters

    def surrogate(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """The mean entropy in nats, whatever the samples."""
        self._check(z, condition)
        log_std = self.parameters(condition)[1]
        if log_std.shape[-1] != z.shape[-1] or log_std.shape[0] not in (1, len(z)):
            raise ValueError(
                f"parameters: expected log standard deviations for z {tuple(z.shape)}, got {tuple(log_std.shape)}"
            )
        if not all_finite(log_std.detach()):
            raise NonFiniteError("parameters: the log standard deviations hold NaN or infinity")
        return (log_std + _HALF_LOG_2_PI_E).sum(-1).mean()

    def score(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        mean, log_std = (t.unsqueeze(1) for t in self.parameters(condition))
        return (mean - z) * torch.exp(-2.0 * log_std)


class RescaledEntropy(EntropyGradient):
    """Another estimator, of the score in other units than those of the sampler; subclasses say in which.

    Arguments:
        inner: The estimator for the samples in these units.
    """

    def __init__(self, inner: EntropyGradient) -> None:
        self.inner = inner
        self.least_samples, self.of_conditionals = inner.least_samples, inner.of_conditionals

    @property
    def learns(self) -> bool:
        return self.inner.learns

    @abstractmethod
    def rescale(self, z: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """Samples in the other units, ``(B, K, D)``, and the logarithm of one such unit, ``(B, 1, D)`` or more."""

    def update(
        self, z: Tensor, condition: Tensor | None = None, generator: torch.Generator | None = None
    ) -> float | None:
        self._check(z, condition)
        with torch.no_grad():
            rescaled = self.rescale(z, condition)[0]
        return self.inner.update(rescaled, condition, generator)

    @torch.no_grad()
    def score(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        rescaled, log_unit = self.rescale(z, condition)
        if not all_finite(rescaled):
            raise NonFiniteError(
                "z: is NaN or infinite in units of the sampler; a smaller learning rate of it may help"
            )
        return self.inner.score(rescaled, condition) * torch.exp(-log_unit)

    def state_dict(self) -> dict[str, Any]:
        return self.inner.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.inner.load_state_dict(state)


class EncoderUnits(RescaledEntropy):
    """Another estimator, of the score in units of the sampler's own: :math:`u = (z - m(x)) / e^{\\ell(x)}`.

    .. math:: \\nabla_{z_d} \\log q(z \\mid x) = e^{-\\ell_d(x)}\\, \\nabla_{u_d} \\log q(u \\mid x)

    What is left to learn has about unit width for every input, wherever the sampler puts it: a score network no
    longer has to find that out. (The entropy of :math:`u` with the exact one of the scales,
    :math:`H[u \\mid x] + \\sum_d \\ell_d(x)`, would do too in theory. In practice an error of the score then drives the
    width of :math:`u` and the scale apart, which change nothing together, until :math:`u` is too narrow to be learned.
    Here the same error moves both alike.)

    Arguments:
        inner: The estimator for :math:`u`.
        location_scale: The inputs ``(B, F)`` to locations and log scales, ``(B, D)`` each, those of the sampler itself
            or any others.

    Example:
        >>> inner = GaussianEntropy(lambda condition: (torch.zeros(1, 2), torch.zeros(1, 2)))  # the score of u is -u
        >>> whitened = EncoderUnits(inner, lambda condition: (torch.full((1, 2), 5.0), torch.full((1, 2), 0.5).log()))
        >>> whitened.score(torch.tensor([[[5.5, 4.0]]]))
        tensor([[[-2.,  4.]]])
    """

    def __init__(
        self, inner: EntropyGradient, location_scale: Callable[[Tensor | None], tuple[Tensor, Tensor]]
    ) -> None:
        super().__init__(inner)
        self.location_scale = location_scale

    def rescale(self, z: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        location, log_scale = (t.unsqueeze(1) for t in self.location_scale(condition))
        return (z - location) * torch.exp(-log_scale), log_scale


class ConditionalUnits(RescaledEntropy):
    """Another estimator, of the scores of conditionals, each in units of its own.

    .. math:: w_d = \\frac{z_d - \\mu_d(z_{<d}, x)}{\\sigma_d(z_{<d}, x)}, \\qquad
        \\nabla_{z_d} \\log q(z_d \\mid z_{<d}, x) = \\frac{1}{\\sigma_d}\\, \\nabla_{w_d} \\log q(w_d \\mid w_{<d}, x)

    With the moments of the conditionals, every :math:`w_d` has mean zero and variance one whatever comes before it: a
    score head that starts as that of a standard normal starts with the right pressure
    (:meth:`EntropyGradient.pressure`), and only the shape beyond two moments is left to learn. Any other
    :math:`\\mu` and :math:`\\sigma` are right too, only harder to learn with.

    Arguments:
        inner: The estimator for :math:`w`, of scores of conditionals (:class:`AutoregressiveScore`, or one of your own
            that says so by :attr:`of_conditionals`).
        moments: Samples ``(B, K, D)`` and inputs ``(B, F)`` to means and log standard deviations of conditionals,
            ``(B, K, D)`` each, the d-th of what comes before it alone.

    Raises:
        ValueError: for an estimator of a joint score: the units of a latent depend on those before it, whose joint
            scores would have more terms.

    Example:
        >>> inner = GaussianEntropy(lambda condition: (torch.zeros(1, 2), torch.zeros(1, 2)))  # the score of w is -w
        >>> def moments(z, condition):  # the second around twice the first
        ...     return torch.stack([torch.zeros_like(z[..., 0]), 2.0 * z[..., 0]], -1), torch.full_like(z, 0.5).log()
        >>> ConditionalUnits(inner, moments).score(torch.tensor([[[1.0, 2.5]]]))
        tensor([[[-4., -2.]]])
    """

    def __init__(
        self,
        inner: EntropyGradient,
        moments: Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]],
    ) -> None:
        if not inner.of_conditionals:
            raise ValueError(f"inner: expected scores of conditionals, got {type(inner).__name__}; see EncoderUnits")
        super().__init__(inner)
        self.moments = moments

    def rescale(self, z: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        mean, log_std = self.moments(z, condition)
        return (z - mean) * torch.exp(-log_std), log_std

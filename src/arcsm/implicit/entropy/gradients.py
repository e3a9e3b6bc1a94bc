"""The base class of entropy gradient estimators, the Gaussian in closed form, and changes of units.

An implicit distribution :math:`q_\\phi(z \\mid x)` is a sampler :math:`z = g_\\phi(\\epsilon, x)` without a tractable
density. The gradient of its entropy needs only the score of :math:`q` at the samples (paper, Section 6):

.. math:: \\nabla_\\phi H[q_\\phi(\\cdot \\mid x)] = -\\mathbb{E}_\\epsilon \\big[
    \\nabla_z \\log q_\\phi(z \\mid x)^\\top\\, \\nabla_\\phi g_\\phi(\\epsilon, x) \\big]

The chain rule's other term, :math:`\\mathbb{E}[\\nabla_\\phi \\log q_\\phi(z \\mid x)]` at fixed :math:`z`, is zero
because every density integrates to one. The identity needs a density that falls to zero at the edge of its support.
The score of a uniform distribution is zero inside, so it misses that the entropy depends on the edges. A sampler with
atoms, or with fewer noise variables than latents, has no density.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from arcsm.errors import NonFiniteError, all_finite

#: Maps inputs ``(B, F)`` to locations and log scales, ``(B, D)`` each.
LocationScale = Callable[[Tensor | None], tuple[Tensor, Tensor]]

_HALF_LOG_2_PI_E = 0.5 * math.log(2.0 * math.pi * math.e)


class EntropyGradient(ABC):
    """Estimate :math:`\\nabla_\\phi H[q_\\phi(\\cdot \\mid x)]` from reparameterised samples.

    Samples ``z`` are ``(B, K, D)``: ``K`` for each of ``B`` inputs ``condition``, ``(B, F)`` or ``None``. Entropies are
    in nats. At each step a training loop calls :meth:`update` on samples (only learned estimators need it), then *adds*
    the :meth:`surrogate` of fresh samples to the objective that it maximises.

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

    min_samples: int = 1  #: Smallest number of samples for each input.
    #: Whether scores are those of the conditionals, :math:`\\partial_{z_d} \\log q(z_d \\mid z_{<d}, x)`.
    estimates_conditionals: bool = False

    def update(
        self, z: Tensor, condition: Tensor | None = None, generator: torch.Generator | None = None
    ) -> float | None:
        """Learn from samples; return the loss before the step, or ``None`` if the estimator does not learn.

        No gradient flows to the samples or the condition. The generator is the source of randomness for the loss.
        """
        self._check(z, condition)
        return None

    @property
    def learns(self) -> bool:
        """Whether :meth:`update` has an effect."""
        return type(self).update is not EntropyGradient.update

    def surrogate(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return a scalar whose gradient estimates that of the mean entropy; its value is meaningless.

        Raises:
            ValueError: If the samples have another shape, are too few, or are detached from the sampler.
            NonFiniteError: (a ``ValueError``) If the samples or their score hold NaN or infinity.
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
            raise ValueError("z: the samples are detached from the sampler; draw them outside torch.no_grad()")
        return -(score * z).sum(-1).mean()

    @abstractmethod
    def score(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the estimated score at the samples, ``(B, K, D)``."""

    @torch.no_grad()
    def entropy_ratio(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the ratio of estimated to true entropy gradients with respect to each latent's scale, ``(D,)``.

        .. math:: c_d = -\\operatorname{Cov}[s_d, z_d \\mid x]

        By Stein's identity the ratio is 1 for the true score of any density that falls to zero, and for the true
        conditional scores of an autoregressive sampler. It is below 1 for a learned score that lags behind, and a
        sampler trained with that score becomes too narrow. More updates of the score help, and so do scores in the
        sampler's units (:class:`EncoderUnits`, :class:`ConditionalUnits`). A wrong score may also have ratio 1.

        Two significant digits take thousands of samples in all, at least two for each input. Errors are those of
        :meth:`surrogate`, but detached samples will do.

        Example:
            >>> gaussian = GaussianEntropy(lambda condition: (torch.zeros(1, 2), torch.tensor([[0.0, 0.5]])))
            >>> z = torch.randn(100, 100, 2, generator=torch.Generator().manual_seed(0))
            >>> [round(c, 1) for c in gaussian.entropy_ratio(z).tolist()]  # of unit width: the second is too flat
            [1.0, 0.4]
        """
        self._check(z, condition)
        if z.shape[1] < 2:
            raise ValueError(f"z: expected samples (B, K, D) with K at least 2, got {tuple(z.shape)}")
        centred = z - z.mean(1, keepdim=True)
        return -(self.score(z, condition) * centred).sum(1).mean(0) / (z.shape[1] - 1)

    def _check(self, z: Tensor, condition: Tensor | None) -> None:
        if not isinstance(z, Tensor) or z.ndim != 3 or z.shape[1] < self.min_samples or z.numel() == 0:
            got = tuple(z.shape) if isinstance(z, Tensor) else type(z).__name__
            raise ValueError(f"z: expected samples (B, K, D) with K at least {self.min_samples}, got {got}")
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
        """Return everything learned so far; empty if the estimator does not learn."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` of the same kind of estimator returned."""
        if state.keys() != self.state_dict().keys():
            raise ValueError(f"state: expected that of {type(self).__name__}, got {sorted(state)}")


class GaussianEntropy(EntropyGradient):
    """The entropy of an explicit Gaussian in closed form: the paper's "ELBO" (Appendix D.1).

    .. math:: H = \\sum_d \\big[ \\log \\sigma_d(x) + \\tfrac12 \\log 2 \\pi e \\big]

    The ``parameters`` map inputs ``(B, F)`` to means and log standard deviations, ``(B, D)`` each.

    Example:
        >>> log_std = torch.zeros(1, 2, requires_grad=True)
        >>> gaussian = GaussianEntropy(lambda condition: (torch.zeros(1, 2), log_std))
        >>> gaussian.surrogate(torch.zeros(1, 5, 2)).backward()
        >>> log_std.grad
        tensor([[1., 1.]])
    """

    estimates_conditionals = True  # its dimensions are independent

    def __init__(self, parameters: LocationScale) -> None:
        self.parameters = parameters

    def surrogate(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the mean entropy in nats, which does not depend on the samples."""
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
    """Estimate scores, by the estimator ``inner``, in units other than the sampler's; subclasses define the units."""

    def __init__(self, inner: EntropyGradient) -> None:
        self.inner = inner
        self.min_samples, self.estimates_conditionals = inner.min_samples, inner.estimates_conditionals

    @property
    def learns(self) -> bool:
        return self.inner.learns

    @abstractmethod
    def rescale(self, z: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return samples in the new units, ``(B, K, D)``, and the log of each unit, broadcastable to that shape."""

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
                "z: is NaN or infinite in the sampler's units; a smaller learning rate of the sampler may help"
            )
        return self.inner.score(rescaled, condition) * torch.exp(-log_unit)

    def state_dict(self) -> dict[str, Any]:
        return self.inner.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.inner.load_state_dict(state)


class EncoderUnits(RescaledEntropy):
    """Estimate the score in the sampler's own units, :math:`u = (z - m(x)) / e^{\\ell(x)}`.

    .. math:: \\nabla_{z_d} \\log q(z \\mid x) = e^{-\\ell_d(x)}\\, \\nabla_{u_d} \\log q(u \\mid x)

    The score network sees samples of about unit width for every input, so it need not learn where the sampler puts
    them. (In theory one could estimate only :math:`H[u \\mid x]` and add :math:`\\sum_d \\ell_d(x)` in closed form. In
    practice an error of the score then drives the width of :math:`u` and the scale in opposite directions, until
    :math:`u` is too narrow to be learned. Here the same error moves both in the same direction.)

    Arguments:
        inner: Estimator for :math:`u`.
        location_scale: The sampler's map from inputs to locations and log scales, or any other.

    Example:
        >>> inner = GaussianEntropy(lambda condition: (torch.zeros(1, 2), torch.zeros(1, 2)))  # the score of u is -u
        >>> rescaled = EncoderUnits(inner, lambda condition: (torch.full((1, 2), 5.0), torch.full((1, 2), 0.5).log()))
        >>> rescaled.score(torch.tensor([[[5.5, 4.0]]]))
        tensor([[[-2.,  4.]]])
    """

    def __init__(self, inner: EntropyGradient, location_scale: LocationScale) -> None:
        super().__init__(inner)
        self.location_scale = location_scale

    def rescale(self, z: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        location, log_scale = (t.unsqueeze(1) for t in self.location_scale(condition))
        return (z - location) * torch.exp(-log_scale), log_scale


class ConditionalUnits(RescaledEntropy):
    """Estimate the scores of conditionals, each standardised by its own mean and standard deviation.

    .. math:: w_d = \\frac{z_d - \\mu_d(z_{<d}, x)}{\\sigma_d(z_{<d}, x)}, \\qquad
        \\nabla_{z_d} \\log q(z_d \\mid z_{<d}, x) = \\frac{1}{\\sigma_d}\\, \\nabla_{w_d} \\log q(w_d \\mid w_{<d}, x)

    With the true moments, every :math:`w_d` has mean zero and variance one given the earlier ones. A score head that
    starts at the standard normal then starts with an :meth:`~EntropyGradient.entropy_ratio` of 1 and has only the shape
    beyond two moments to learn. Other :math:`\\mu` and :math:`\\sigma` are valid too, but harder to learn with.

    Arguments:
        inner: Estimator for :math:`w` of conditional scores: :class:`AutoregressiveScore`, or your own with
            :attr:`estimates_conditionals`. A joint score would transform with further terms, because the units of a
            latent depend on earlier latents.
        moments: Map from samples ``(B, K, D)`` and inputs ``(B, F)`` to means and log standard deviations of the
            conditionals, ``(B, K, D)`` each. The d-th may depend on earlier latents only.

    Example:
        >>> inner = GaussianEntropy(lambda condition: (torch.zeros(1, 2), torch.zeros(1, 2)))  # the score of w is -w
        >>> def moments(z, condition):  # the second around twice the first
        ...     return torch.stack([torch.zeros_like(z[..., 0]), 2.0 * z[..., 0]], -1), torch.full_like(z, 0.5).log()
        >>> ConditionalUnits(inner, moments).score(torch.tensor([[[1.0, 2.5]]]))
        tensor([[[-4., -2.]]])
    """

    def __init__(
        self, inner: EntropyGradient, moments: Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]]
    ) -> None:
        if not inner.estimates_conditionals:
            raise ValueError(f"inner: expected scores of conditionals, got {type(inner).__name__}; see EncoderUnits")
        super().__init__(inner)
        self.moments = moments

    def rescale(self, z: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        mean, log_std = self.moments(z, condition)
        return (z - mean) * torch.exp(-log_std), log_std

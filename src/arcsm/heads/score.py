"""The paper's conditional score network: a small network shared by all dimensions, with no normaliser."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arcsm._runtime.memory import Workspace
from arcsm.fourier_features import fourier_frequencies
from arcsm.heads.base import Head, Sigma

#: Up to this many widths sqrt(sigma^2 + data_std^2) from zero the network has its full say ...
FLAT_SPAN = 10.0
#: ... and from here on none: the score is exactly that of a Gaussian.
FULL_SPAN = 20.0

#: Numbers that tell the network the noise level.
EMBEDDING_FEATURES = 5


def _leaves(x: Tensor, half: float) -> bool:
    """Whether any value is not within ``half`` of zero."""
    return x.numel() > 0 and not (torch.linalg.vector_norm(x, math.inf).item() <= half)  # not a number leaves, too


class Scales(NamedTuple):
    """The scalars around the network at a noise level, each ``()`` or ``(*)``."""

    width: Tensor  # sqrt(sigma^2 + data_std^2)
    gain: Tensor  # k(sigma), the size of the correction
    damping: Tensor  # sigma / data_std, zero without noise


class Level(NamedTuple):
    """The network at a noise level, as far as it depends on nothing else.

    Attributes:
        scales: Width, gain and damping.
        width: Again, as a number.
        projection: The level's share of the first hidden layer, ``(H,)``.
        of_value: What the first hidden layer makes of a value, ``(H,)``.
        of_waves: And of its waves, blurred, ``(2 J, H)``.
        output: Weights of the output times the gain, ``(H,)``.
        offset: Its bias, the same, for a last layer that is not centred.
    """

    scales: Scales
    width: float
    projection: Tensor
    of_value: Tensor
    of_waves: Tensor
    output: Tensor
    offset: float


class ScoreHead(Head):
    """A score network on :math:`h_d = [c_d, x_d]` (paper, Section 4.1, the CSN) that always normalises.

    .. math:: s_\\sigma(c, x) = -\\frac{x}{\\sigma^2 + \\tau^2} + k(\\sigma)\\, w(x)\\, F(c, x, \\sigma), \\qquad
        k(\\sigma) = \\frac{\\tau}{\\sigma \\sqrt{\\sigma^2 + \\tau^2}}

    with :math:`\\tau` = ``data_std``. :math:`F` is a perceptron with a bounded last hidden layer, and the smooth
    window :math:`w` is 1 within 10 widths :math:`\\sqrt{\\sigma^2 + \\tau^2}` of zero and 0 beyond 20. So both tails
    are Gaussian whatever the weights, and the normaliser is finite (paper, Definition 1, condition 2). The gain
    :math:`k` makes the target of :math:`F` of order one at every noise level (1/:math:`\\tau` without noise).

    The derivative :math:`\\partial_x s` is carried beside the value in the same pass: no double backward.

    Arguments:
        context_features: Size :math:`C` of the contexts.
        hidden_features: Units of each hidden layer, at least one layer.
        sinusoids: Number of frequencies at which :math:`\\sin` and :math:`\\cos` of :math:`x` enter the network
            beside :math:`x` itself; they let conditionals be sharp. 0 for the paper's plain :math:`[c_d, x_d]`.
        max_frequency: The largest of them, in radians per ``data_std``; about ``1 / sigma_min``.
        residual: Add each hidden layer to the one before it; all hidden layers then have one width.
        data_std: Standard deviation of the data that the head sees; 1 for standardised data.

    Raises:
        ValueError: for sizes below one, residual layers of different widths, or scales that are not positive.

    Example:
        >>> head = ScoreHead(context_features=4, hidden_features=(8, 8))
        >>> s, ds = head.score_and_derivative(torch.zeros(5, 4), torch.zeros(5), sigma=0.1)
        >>> s.shape, ds.shape
        (torch.Size([5]), torch.Size([5]))
    """

    frequencies: Tensor

    def __init__(
        self,
        context_features: int = 16,
        hidden_features: Sequence[int] = (64, 64),
        sinusoids: int = 0,
        max_frequency: float = 20.0,
        residual: bool = False,
        data_std: float = 1.0,
    ) -> None:
        super().__init__()
        hidden_features = tuple(int(size) for size in hidden_features)
        if context_features < 1 or not hidden_features or min(hidden_features) < 1 or sinusoids < 0:
            raise ValueError(
                f"ScoreHead: expected sizes of at least 1, got context_features={context_features}, "
                f"hidden_features={hidden_features}, sinusoids={sinusoids}"
            )
        if residual and len(set(hidden_features)) > 1:
            raise ValueError(f"hidden_features: residual layers need one width, got {hidden_features}")
        if not 0.0 < data_std < math.inf:
            raise ValueError(f"ScoreHead: expected a positive scale, got data_std={data_std}")
        self.context_features, self.hidden_features = context_features, hidden_features
        self.sinusoids, self.max_frequency = sinusoids, float(max_frequency)
        self.residual, self.data_std = residual, float(data_std)
        waves = fourier_frequencies(sinusoids, self.max_frequency) / self.data_std
        self.register_buffer("frequencies", waves.to(torch.get_default_dtype()), persistent=False)

        inputs = context_features + EMBEDDING_FEATURES + 1 + 2 * sinusoids
        sizes = (inputs, *hidden_features)
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        self.output = nn.Linear(hidden_features[-1], 1)
        with torch.no_grad():  # start from the base Gaussian, with the output layer small
            self.output.weight.mul_(0.1)
            self.output.bias.zero_()

    def config(self) -> dict[str, Any]:
        return {
            "context_features": self.context_features,
            "hidden_features": list(self.hidden_features),
            "sinusoids": self.sinusoids,
            "max_frequency": self.max_frequency,
            "residual": self.residual,
            "data_std": self.data_std,
        }

    # The pieces around the network ------------------------------------------------------------------------------

    def scales(self, sigma: Sigma, like: Tensor) -> Scales:
        """Width, gain and damping at a noise level."""
        if sigma is None:
            one = like.new_ones(())
            return Scales(one * self.data_std, one / self.data_std, like.new_zeros(()))
        sigma = torch.as_tensor(sigma, dtype=like.dtype, device=like.device)
        width = torch.sqrt(sigma.square() + self.data_std**2)
        return Scales(width, self.data_std / (sigma * width), sigma / self.data_std)

    def loss_weight(self, sigma: Tensor) -> Tensor:
        """The natural weight :math:`1 / k(\\sigma)^2`, under which the loss is a plain regression of :math:`F`."""
        return self.scales(sigma, sigma).gain.pow(-2)

    def embedding(self, scales: Scales) -> Tensor:
        """What the network is told of the noise level, ``(*, E)``: zero without noise."""
        most = min(1e6, torch.finfo(scales.damping.dtype).max)
        log = torch.log1p(scales.damping.clamp(min=1e-6).reciprocal().clamp(max=most))  # log(1 + tau / sigma)
        noisy = (scales.damping > 0).to(log.dtype)
        features = (log, torch.sin(log), torch.cos(log), torch.sin(2.0 * log), torch.cos(2.0 * log))
        return torch.stack(features, -1) * noisy.unsqueeze(-1)

    def value_features(self, x: Tensor, scales: Scales) -> tuple[Tensor, Tensor]:
        """What the network is told of :math:`x`, and its derivative by :math:`x`, each ``(*, 1 + 2 J)``."""
        x, width = torch.broadcast_tensors(x, scales.width)
        linear, slope = (x / width).unsqueeze(-1), (1.0 / width).unsqueeze(-1)
        if not self.sinusoids:
            return linear, slope
        angle = x.unsqueeze(-1) * self.frequencies  # (*, J)
        # noise blurs a wave of frequency f by exp(-(f sigma)^2 / 2); so does an envelope for what lies far outside
        blur = torch.exp(-0.5 * (self.frequencies * self.data_std * scales.damping.unsqueeze(-1)).square())
        envelope = torch.exp(-0.5 * (linear / 4.0).square())
        sine, cosine = torch.sin(angle) * blur, torch.cos(angle) * blur
        decay = -(linear / 16.0) * slope
        features = torch.cat([linear, sine * envelope, cosine * envelope], -1)
        slopes = [slope, (self.frequencies * cosine + decay * sine) * envelope]
        slopes.append((decay * cosine - self.frequencies * sine) * envelope)
        return features, torch.cat(slopes, -1)

    def window(self, x: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
        """The window :math:`w(x)`, twice continuously differentiable, and its derivative, each ``(*)``."""
        t = ((x.abs() / width - FLAT_SPAN) / (FULL_SPAN - FLAT_SPAN)).clamp(0.0, 1.0)
        value = 1.0 - t**3 * (10.0 - 15.0 * t + 6.0 * t.square())
        slope = -30.0 * (t * (1.0 - t)).square() / ((FULL_SPAN - FLAT_SPAN) * width) * torch.sign(x)
        return value, slope

    def support(self, sigma: Sigma, like: Tensor) -> Tensor:
        """Half-width of the interval around zero outside which the conditional is exactly Gaussian, ``()``."""
        return FULL_SPAN * self.scales(sigma, like).width

    def beyond(self, sigma: Sigma, x: Tensor) -> tuple[Tensor, Tensor]:
        """Score and derivative at values ``x`` outside the support, where the network has no say, each ``(*)``."""
        precision = self.scales(sigma, x).width.pow(-2)
        return -x * precision, -precision.expand_as(x)

    # The network ------------------------------------------------------------------------------------------------

    def layers(self) -> list[nn.Linear]:
        """The hidden layers, the first one first."""
        return [layer for layer in self.hidden if isinstance(layer, nn.Linear)]

    def _split_input_weight(self) -> tuple[Tensor, Tensor, Tensor]:
        """Columns of the first layer for the context, the noise level and the value."""
        value = 1 + 2 * self.sinusoids
        split = torch.split(self.layers()[0].weight, [self.context_features, EMBEDDING_FEATURES, value], 1)
        return split[0], split[1], split[2]

    def project(self, context: Tensor) -> Tensor:
        """The context's share of the first hidden layer, ``(*, C)`` to ``(*, H)``."""
        return F.linear(context, self._split_input_weight()[0], self.layers()[0].bias)

    def projected_score(self, projection: Tensor, x: Tensor, sigma: Sigma = None) -> Tensor:
        scales = self.scales(sigma, x)
        _, on_noise, on_value = self._split_input_weight()
        features, _ = self.value_features(x, scales)
        z = projection + F.linear(self.embedding(scales), on_noise) + F.linear(features, on_value)  # (*, H)
        hidden = z.new_zeros(())
        for layer in self.layers()[1:]:
            update = F.silu(z)
            hidden = hidden + update if self.residual and hidden.ndim > 0 else update
            z = layer(hidden)
        correction = self.output(torch.sigmoid(z) - 0.5).squeeze(-1)
        window, _ = self.window(x, scales.width)
        return scales.gain * window * correction - x / scales.width.square()

    @property
    def is_plain(self) -> bool:
        """Whether its scores are those of this class, which are also computed in faster ways."""
        return (
            type(self).projected_score_and_derivative is ScoreHead.projected_score_and_derivative
            and type(self).projected_score is ScoreHead.projected_score
        )

    @torch.no_grad()
    def prepare_score(self, sigma: Sigma) -> Callable[[Tensor, Tensor], Tensor]:
        if isinstance(sigma, Tensor) or not self.is_plain:
            return super().prepare_score(sigma)
        level = self._level(sigma)
        deeper = [(layer.weight, layer.bias) for layer in self.layers()[1:]]

        def score(projection: Tensor, x: Tensor) -> Tensor:
            z = torch.addcmul(projection + level.projection, x.unsqueeze(-1), level.of_value)
            if self.sinusoids:
                sine, cosine, envelope = self._waves(x, level)
                z.view(-1, z.shape[-1]).addmm_(
                    torch.cat([sine, cosine], -1).mul_(envelope).flatten(0, -2), level.of_waves
                )
            hidden = None
            for weight, bias in deeper:
                update = F.silu(z, inplace=True)
                hidden = hidden + update if self.residual and hidden is not None else update
                z = F.linear(hidden, weight, bias)
            correction = torch.matmul(torch.sigmoid_(z), level.output).add_(level.offset)
            if _leaves(x, FLAT_SPAN * level.width):
                correction = correction * self.window(x, level.scales.width)[0]
            return correction.sub_(x, alpha=level.width**-2)

        return score

    @torch.no_grad()
    def prepare_score_and_derivative(
        self, sigma: Sigma, workspace: Workspace | None = None
    ) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
        if isinstance(sigma, Tensor) or not self.is_plain:
            return super().prepare_score_and_derivative(sigma, workspace)
        level = self._level(sigma)
        one = level.of_value.new_ones(())
        space = Workspace() if workspace is None else workspace

        @torch.no_grad()
        def score_and_derivative(projection: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
            z, dz = self._first_layer(projection, x, level, space)
            before: tuple[Tensor, Tensor] | None = None
            for number, layer in enumerate(self.layers()[1:]):
                gate = torch.sigmoid(z, out=space.empty("gate", z.shape, z))
                hidden = z.mul_(gate)  # SiLU
                dhidden = dz.mul_(gate.lerp_(one, hidden))  # its slope: g + z g (1 - g)
                if self.residual and before is not None:
                    hidden, dhidden = hidden.add_(before[0]), dhidden.add_(before[1])
                before = hidden, dhidden
                shape, turn = (len(z), layer.out_features), number % 2  # what is added to the next one but one may go
                z = torch.addmm(layer.bias, hidden, layer.weight.T, out=space.empty(f"next {turn}", shape, z))
                dz = torch.mm(dhidden, layer.weight.T, out=space.empty(f"slope {turn}", shape, z))
            gate = torch.sigmoid_(z)
            correction = torch.mv(gate, level.output).add_(level.offset).view(x.shape)
            slope = torch.mv(dz.mul_(gate.addcmul_(gate, gate, value=-1.0)), level.output).view(x.shape)
            if _leaves(x, FLAT_SPAN * level.width):
                window, dwindow = self.window(x, level.scales.width)
                slope = slope * window + dwindow * correction
                correction = correction * window
            return correction.sub_(x, alpha=level.width**-2), slope.sub_(level.width**-2)

        return score_and_derivative

    def _first_layer(self, projection: Tensor, x: Tensor, level: Level, space: Workspace) -> tuple[Tensor, Tensor]:
        """What the first hidden layer makes of values ``x``, and its derivative, ``(x.numel(), H)`` each."""
        given = torch.add(projection, level.projection, out=space.empty("given", projection.shape, projection))
        shape = (*x.shape, projection.shape[-1])
        z = torch.addcmul(given, x.unsqueeze(-1), level.of_value, out=space.empty("first", shape, given)).flatten(0, -2)
        dz = space.empty("first slope", z.shape, z).copy_(level.of_value)
        if self.sinusoids:
            for target, waves in zip((z, dz), self._waves_with_slopes(x, level), strict=True):
                target.addmm_(waves.flatten(0, -2), level.of_waves)
        return z, dz

    def _level(self, sigma: float | None) -> Level:
        """What is the same for all conditionals and values at a noise level."""
        scales = self.scales(sigma, self.output.weight)
        _, on_noise, on_value = self._split_input_weight()
        blur = torch.exp(-0.5 * (self.frequencies * self.data_std * scales.damping).square())
        gain, width = float(scales.gain), float(scales.width)
        return Level(
            scales=scales,
            width=width,
            projection=F.linear(self.embedding(scales), on_noise),
            of_value=on_value[:, 0] / width,
            of_waves=(on_value[:, 1:] * torch.cat([blur, blur])).T,
            output=self.output.weight[0] * gain,
            offset=gain * float(self.output.bias - 0.5 * self.output.weight.sum()),
        )

    def _waves(self, x: Tensor, level: Level) -> tuple[Tensor, Tensor, Tensor]:
        """Sine and cosine of every frequency, ``(*, J)``, and their envelope ``(*, 1)``, without the level's blur."""
        angle = x.unsqueeze(-1) * self.frequencies
        envelope = torch.exp(x.square() * (-0.5 / (4.0 * level.width) ** 2)).unsqueeze(-1)
        return torch.sin(angle), torch.cos(angle), envelope

    def _waves_with_slopes(self, x: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        """FourierFeatures under their envelope and their derivatives, ``(*, 2 J)`` each."""
        sine, cosine, envelope = self._waves(x, level)
        waves = torch.cat([sine, cosine], -1)
        slopes = torch.cat([cosine.mul_(self.frequencies), sine.mul_(self.frequencies).neg_()], -1)
        slopes.addcmul_(waves, x.unsqueeze(-1), value=-1.0 / (4.0 * level.width) ** 2)
        return waves.mul_(envelope), slopes.mul_(envelope)

    def projected_score_and_derivative(
        self, projection: Tensor, x: Tensor, sigma: Sigma = None
    ) -> tuple[Tensor, Tensor]:
        scales = self.scales(sigma, x)
        _, on_noise, on_value = self._split_input_weight()
        features, slopes = self.value_features(x, scales)
        z = projection + F.linear(self.embedding(scales), on_noise) + F.linear(features, on_value)  # (*, H)
        dz = F.linear(slopes, on_value)
        hidden = dhidden = z.new_zeros(())
        for layer in self.layers()[1:]:
            gate = torch.sigmoid(z)
            update = z * gate  # SiLU
            dupdate = dz * torch.addcmul(gate, update, 1.0 - gate)
            residual = self.residual and hidden.ndim > 0
            hidden, dhidden = (hidden + update, dhidden + dupdate) if residual else (update, dupdate)
            z, dz = layer(hidden), F.linear(dhidden, layer.weight)
        gate = torch.sigmoid(z)
        correction = self.output(gate - 0.5).squeeze(-1)
        slope = F.linear(dz * torch.addcmul(gate, gate, gate, value=-1.0), self.output.weight).squeeze(-1)
        window, dwindow = self.window(x, scales.width)
        score = scales.gain * window * correction - x / scales.width.square()
        derivative = scales.gain * (window * slope + dwindow * correction) - scales.width.pow(-2)
        return score, derivative

"""The paper's conditional score network: a small unnormalised network shared by all dimensions."""

import inspect
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arcsm._native import LevelConstants, ScoreLevels
from arcsm._runtime.memory import Workspace
from arcsm._runtime.sizes import check_layers, check_size, whole_numbers
from arcsm.fourier_features import fourier_frequencies
from arcsm.heads.base import Head, ScoreAndDerivative, Sigma

WINDOW_FLAT_WIDTHS = 10.0  #: The window on the network is 1 up to this many widths sqrt(sigma^2 + data_std^2) from zero
WINDOW_END_WIDTHS = 20.0  #: and 0 from this many widths on, where the score is exactly that of a Gaussian.

_MAX_DATA_STD = 1e15  # its square and that of its inverse are numbers in single precision

ENVELOPE_WIDTHS = 4.0  #: Standard deviation of the envelope of the Fourier features, in widths.

EMBEDDING_FEATURES = 5  #: Number of inputs that encode the noise level.


class Scales(NamedTuple):
    """The scalars that surround the network at a noise level, each ``()`` or ``(*)``."""

    width: Tensor  # sqrt(sigma^2 + data_std^2)
    gain: Tensor  # k(sigma), the size of the correction
    damping: Tensor  # sigma / data_std, zero without noise


class Level(NamedTuple):
    """What the network computes from a noise level: the constants of its inputs, and its weights.

    If all points share one level, blur and gain are multiplied into the weights.
    """

    width: Tensor  # as in Scales
    precision: Tensor  # 1 / width^2
    envelope_width: Tensor  # standard deviation of the envelope of the Fourier features
    window_start: Tensor  # distance from zero up to which the window is 1
    noise_projection: Tensor  # (*, H) contribution of the noise level to the first hidden layer
    value_weight: Tensor  # (*, H) weight of x in the first hidden layer
    fourier_weight: Tensor  # (2 J, H) weights of its Fourier features
    blur: Tensor | None  # (*, J) factors of the Fourier features; None if they are in fourier_weight
    layers: list[tuple[Tensor, Tensor]]  # weight and bias of each hidden layer after the first
    output_weight: Tensor  # (H,)
    output_bias: Tensor  # (), for activations from 0 to 1 in place of -0.5 to 0.5
    gain: Tensor | None  # (*) factor of the output; None if it is in output_weight and output_bias


class ScoreHead(Head):
    """A score network on :math:`h_d = [c_d, x_d]` (paper, Section 4.1, the CSN) that always normalises.

    .. math:: s_\\sigma(c, x) = -\\frac{x}{\\sigma^2 + \\tau^2} + k(\\sigma)\\, w(x)\\, F(c, x, \\sigma), \\qquad
        k(\\sigma) = \\frac{\\tau}{\\sigma \\sqrt{\\sigma^2 + \\tau^2}}

    Here :math:`\\tau` is ``data_std`` and :math:`F` is a perceptron with a bounded last hidden layer. The smooth window
    :math:`w` is 1 within 10 widths :math:`\\sqrt{\\sigma^2 + \\tau^2}` of zero and 0 beyond 20. Both tails are Gaussian
    for any weights, so the normaliser is finite (paper, Definition 1, condition 2). The gain :math:`k` keeps the
    regression target of :math:`F` of order one at every noise level (:math:`k = 1/\\tau` without noise).

    The derivative :math:`\\partial_x s` is computed in forward mode beside the value, without a double backward pass.

    A subclass may replace the network by overriding :meth:`projected_score_and_derivative`. The mass of its
    conditionals must lie within 20 widths of zero, because integration extrapolates scores linearly from there on.

    Arguments:
        context_features: Size :math:`C` of the contexts.
        hidden_features: Units of each hidden layer, at least one layer.
        sinusoids: Number :math:`J` of frequencies whose sine and cosine of :math:`x` enter the network beside
            :math:`x`; they allow sharp conditionals. 0 is the paper's plain :math:`[c_d, x_d]`: the network is nearly
            linear in :math:`x` at first, so that conditionals stay close to Gaussians for thousands of steps. That
            suits few rows. With thousands, 4 to 8 frequencies soon learn several humps.
        max_frequency: The largest frequency, in radians per ``data_std``; about ``1 / sigma_min``.
        residual: Add each hidden layer to the previous one; all hidden layers then need the same width.
        data_std: Standard deviation of the data; 1 for standardised data.

    Raises:
        ValueError: If a size is below one, residual layers differ in width, or a scale is not positive and finite.

    Example:
        >>> head = ScoreHead(context_features=4, hidden_features=(8, 8))
        >>> s, ds = head.score_and_derivative(torch.zeros(5, 4), torch.zeros(5), sigma=0.1)
        >>> s.shape, ds.shape
        (torch.Size([5]), torch.Size([5]))
    """

    has_density = True
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
        hidden_features = whole_numbers("hidden_features", hidden_features)
        check_size("ScoreHead", context_features=context_features)
        check_size("ScoreHead", least=0, sinusoids=sinusoids)
        if not hidden_features:
            raise ValueError("hidden_features: expected at least one layer, got ()")
        check_layers("ScoreHead", context_features + EMBEDDING_FEATURES + 1 + 2 * sinusoids, hidden_features, 1)
        if residual and len(set(hidden_features)) > 1:
            raise ValueError(f"hidden_features: residual layers need one width, got {hidden_features}")
        if not 1.0 / _MAX_DATA_STD <= data_std <= _MAX_DATA_STD:
            raise ValueError(
                f"ScoreHead: expected a positive scale, at most {_MAX_DATA_STD:g}, got data_std={data_std}"
            )
        self.context_features, self.hidden_features = context_features, hidden_features
        self.sinusoids, self.max_frequency = sinusoids, float(max_frequency)
        self.residual, self.data_std = residual, float(data_std)
        frequencies = fourier_frequencies(sinusoids, self.max_frequency) / self.data_std
        self.register_buffer("frequencies", frequencies.to(torch.get_default_dtype()), persistent=False)

        sizes = (context_features + EMBEDDING_FEATURES + 1 + 2 * sinusoids, *hidden_features)
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        self.output = nn.Linear(hidden_features[-1], 1)
        with torch.no_grad():  # start near the base Gaussian, with a small output layer
            self.output.weight.mul_(0.1)
            self.output.bias.zero_()

    def scales(self, sigma: Sigma, like: Tensor) -> Scales:
        """Return width, gain and damping at a noise level, with the type and device of ``like``."""
        if sigma is None:
            one = like.new_ones(())
            return Scales(one * self.data_std, one / self.data_std, like.new_zeros(()))
        if isinstance(sigma, float | int):  # filling a tensor there takes less time than sending one
            sigma = like.new_full((), sigma)
        sigma = torch.as_tensor(sigma, dtype=like.dtype, device=like.device)
        width = torch.sqrt(sigma.square() + self.data_std**2)
        return Scales(width, self.data_std / (sigma * width), sigma / self.data_std)

    def loss_weight(self, sigma: Tensor) -> Tensor:
        """Return the natural weight :math:`1 / k(\\sigma)^2`, which makes the loss a plain regression of :math:`F`."""
        return self.scales(sigma, sigma).gain.pow(-2)

    def embedding(self, scales: Scales) -> Tensor:
        """Encode the noise level as inputs of the network, ``(*, 5)``; zero without noise."""
        largest = min(1e6, torch.finfo(scales.damping.dtype).max)
        log = torch.log1p(scales.damping.clamp(min=1e-6).reciprocal().clamp(max=largest))  # log(1 + tau / sigma)
        noisy = (scales.damping > 0).to(log.dtype)
        features = (log, torch.sin(log), torch.cos(log), torch.sin(2.0 * log), torch.cos(2.0 * log))
        return torch.stack(features, -1) * noisy.unsqueeze(-1)

    def fourier_features(
        self, x: Tensor, envelope_width: Tensor, blur: Tensor | None, tangent: bool = True, in_place: bool = False
    ) -> tuple[Tensor, Any]:
        """Return blurred sines and cosines under their envelope and their derivatives by x, ``(*, 2 J)`` each."""
        multiply = Tensor.mul_ if in_place else Tensor.mul
        x, width = x.unsqueeze(-1), envelope_width.unsqueeze(-1)
        angle, distance = x * self.frequencies, x / width
        sine, cosine, envelope = torch.sin(angle), torch.cos(angle), torch.exp(-0.5 * distance.square())
        if blur is not None:
            sine, cosine = sine * blur, cosine * blur
        features, slopes = torch.cat([sine, cosine], -1), None
        if tangent:
            slopes = torch.cat([multiply(cosine, self.frequencies), multiply(sine, -self.frequencies)], -1)
            decay = distance * (-1.0 / width)  # log-derivative of the envelope
            slopes = multiply(torch.addcmul(slopes, features, decay, out=slopes if in_place else None), envelope)
        return multiply(features, envelope), slopes

    def blur(self, damping: Tensor) -> Tensor:
        """Return the factor :math:`\\exp(-(f \\sigma)^2 / 2)` by which noise attenuates each frequency, ``(*, J)``."""
        return torch.exp(-0.5 * (self.frequencies * self.data_std * damping).square())

    def window(self, x: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
        """Return the window :math:`w(x)`, twice continuously differentiable, and its derivative, each ``(*)``."""
        t = ((x.abs() / width - WINDOW_FLAT_WIDTHS) / (WINDOW_END_WIDTHS - WINDOW_FLAT_WIDTHS)).clamp(0.0, 1.0)
        value = 1.0 - t**3 * (10.0 - 15.0 * t + 6.0 * t.square())
        slope = -30.0 * (t * (1.0 - t)).square() / ((WINDOW_END_WIDTHS - WINDOW_FLAT_WIDTHS) * width) * torch.sign(x)
        return value, slope

    def base_width(self, sigma: float | None) -> float:
        """Return the standard deviation of the base Gaussian, the conditional without the network's correction."""
        return math.hypot(sigma or 0.0, self.data_std)

    def tail_start(self, sigma: float | None) -> float:
        """Return the distance from zero beyond which the conditional is exactly Gaussian."""
        return WINDOW_END_WIDTHS * self.base_width(sigma)

    def tail_score_and_derivative(self, sigma: Sigma, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return score and derivative at values in the tails, each ``(*)``, without evaluating the network."""
        precision = self.scales(sigma, x).width.pow(-2)
        return -x * precision, -precision.expand_as(x)

    def layers(self) -> list[tuple[Tensor, Tensor]]:
        return [(layer.weight, layer.bias) for layer in self.hidden if isinstance(layer, nn.Linear)]

    def _split_input_weight(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the columns of the first layer that read the context, the noise level and the value."""
        columns = [self.context_features, EMBEDDING_FEATURES, 1 + 2 * self.sinusoids]
        context, noise, value = torch.split(self.layers()[0][0], columns, 1)
        return context, noise, value

    def project(self, context: Tensor) -> Tensor:
        """Return the context's contribution to the first hidden layer, ``(*, C)`` to ``(*, H)``."""
        return F.linear(context, self._split_input_weight()[0], self.layers()[0][1])

    def _level(self, sigma: Sigma, like: Tensor) -> Level:
        scales = self.scales(sigma, like)
        _, noise_weight, value_weight = self._split_input_weight()
        fourier_weight, blur = value_weight[:, 1:].T, self.blur(scales.damping.unsqueeze(-1))
        output_weight, output_bias, gain = self.output.weight[0], self.output.bias[0], scales.gain
        output_bias = output_bias - 0.5 * output_weight.sum()
        one_level = scales.width.ndim == 0
        if one_level:
            fourier_weight = fourier_weight * torch.cat([blur, blur]).unsqueeze(-1)
            output_weight, output_bias = gain * output_weight, gain * output_bias
        return Level(
            width=scales.width,
            precision=scales.width.pow(-2),
            envelope_width=ENVELOPE_WIDTHS * scales.width,
            window_start=WINDOW_FLAT_WIDTHS * scales.width,
            noise_projection=F.linear(self.embedding(scales), noise_weight),
            value_weight=value_weight[:, 0] / scales.width.unsqueeze(-1),
            fourier_weight=fourier_weight,
            blur=None if one_level else blur,
            layers=self.layers()[1:],
            output_weight=output_weight,
            output_bias=output_bias,
            gain=None if one_level else gain,
        )

    def _forward(
        self, level: Level, projection: Tensor, x: Tensor, tangent: bool, workspace: Workspace | None = None
    ) -> tuple[Tensor, Any]:
        """Return the score and, with ``tangent``, its derivative by x (else ``None``), each ``(*)``.

        With a workspace, results replace what they are computed from. There are no gradients then, and the window is
        left out if all values lie where it is 1.
        """
        inner = x
        if workspace is None or not _all_within(level.window_start, x):  # the network is not used beyond the window
            end = (WINDOW_END_WIDTHS / WINDOW_FLAT_WIDTHS) * level.window_start
            inner = torch.minimum(torch.maximum(x, -end), end)
        z, dz = self._first_layer(level, projection, inner, tangent, workspace)
        z, dz = self._hidden_layers(level.layers, z, dz, workspace)  # (N, H)
        # under autocast, hidden layers come in half precision; the sum over their units does not
        gate, slope = torch.sigmoid(z, out=_replace(z, workspace)).to(level.output_weight.dtype), None
        correction = (torch.mv(gate, level.output_weight) + level.output_bias).view(x.shape)  # k F
        if dz is not None:
            gate_slope = torch.addcmul(gate, gate, gate, value=-1.0, out=_replace(gate, workspace))
            dh = torch.mul(dz, gate_slope, out=_replace(dz, workspace))
            slope = torch.mv(dh, level.output_weight).view(x.shape)  # k F'
        if level.gain is not None:
            correction, slope = level.gain * correction, None if slope is None else level.gain * slope
        if inner is not x:
            window, dwindow = self.window(x, level.width)
            slope = None if slope is None else window * slope + dwindow * correction
            correction = window * correction
        correction = torch.addcmul(correction, x, level.precision, value=-1.0)
        return correction, None if slope is None else slope - level.precision

    def _first_layer(
        self, level: Level, projection: Tensor, x: Tensor, tangent: bool, workspace: Workspace | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the pre-activations of the first hidden layer and their derivatives by x, ``(N, H)``."""
        shape = (*x.shape, projection.shape[-1])
        shared, z, dz = projection + level.noise_projection, None, None
        if workspace is not None:
            z = workspace.empty("z", shape, shared)
        z = torch.addcmul(shared, x.unsqueeze(-1), level.value_weight, out=z).reshape(-1, shape[-1])
        if tangent:
            dz = level.value_weight.expand(shape)
            dz = (dz if workspace is None else workspace.empty("dz", shape, z).copy_(dz)).reshape(z.shape)
        if self.sinusoids:
            in_place = workspace is not None
            features, slopes = self.fourier_features(x, level.envelope_width, level.blur, tangent, in_place)
            features, weight = features.view(-1, len(level.fourier_weight)), level.fourier_weight
            z = torch.addmm(z, features, weight, out=_replace(z, workspace))
            if dz is not None:
                dz = torch.addmm(dz, slopes.view(features.shape), weight, out=_replace(dz, workspace))
        return z, dz

    def projected_score(self, projection: Tensor, x: Tensor, sigma: Sigma = None) -> Tensor:
        return self._forward_with_gradients(projection, x, sigma, tangent=False)[0]

    def projected_score_and_derivative(self, projection: Tensor, x: Tensor, sigma: Sigma = None) -> ScoreAndDerivative:
        return self._forward_with_gradients(projection, x, sigma, tangent=True)

    def _forward_with_gradients(self, projection: Tensor, x: Tensor, sigma: Sigma, tangent: bool) -> tuple[Tensor, Any]:
        level = self._level(sigma, x)
        x, *_ = torch.broadcast_tensors(x, projection[..., 0], level.width)
        return self._forward(level, projection, x, tangent)

    def _hidden_layers(
        self, layers: list[tuple[Tensor, Tensor]], z: Tensor, dz: Tensor | None, workspace: Workspace | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Map pre-activations ``z (*, H)`` of the first hidden layer to those of the last one.

        Their derivatives ``dz`` by x come along unless they are ``None``. With a workspace, everything is computed in
        place, ``z`` is two-dimensional, and there are no gradients.
        """
        h = dh = None
        for index, (weight, bias) in enumerate(layers):
            below, dbelow = h, dh
            h, dh = _silu(z, dz, workspace)
            if self.residual and below is not None:
                h = torch.add(below, h, out=_replace(h, workspace))
                dh = None if dh is None else torch.add(dbelow, dh, out=_replace(dh, workspace))
            if workspace is None or dh is None:
                z, dz = F.linear(h, weight, bias), None if dh is None else F.linear(dh, weight)
            else:  # a layer needs only the one below it, so every other layer can have the same memory
                shape, place = (len(h), len(weight)), index % 2
                z = torch.addmm(bias, h, weight.T, out=workspace.empty(f"z {place}", shape, h))
                dz = torch.mm(dh, weight.T, out=workspace.empty(f"dz {place}", shape, h))
        return z, dz

    # The same at one noise level, without gradients -------------------------------------------------------------

    @property
    def has_original_score(self) -> bool:
        """Whether the score is that of this class, so that prepared and fused passes may compute it."""
        return all(getattr(type(self), name) is getattr(ScoreHead, name) for name in _SCORE_METHODS)

    @torch.no_grad()
    def prepare_score(self, sigma: Sigma) -> Callable[[Tensor, Tensor], Tensor]:
        if isinstance(sigma, Tensor) or not self.has_original_score:
            return super().prepare_score(sigma)
        level, workspace = self._level(sigma, self.output.weight), Workspace()
        return torch.no_grad()(lambda projection, x: self._forward(level, projection, x, False, workspace)[0])

    @torch.no_grad()
    def prepare_score_and_derivative(
        self, sigma: Sigma, workspace: Workspace | None = None
    ) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
        if isinstance(sigma, Tensor) or not self.has_original_score:
            return super().prepare_score_and_derivative(sigma, workspace)
        level, workspace = self._level(sigma, self.output.weight), workspace or Workspace()
        return torch.no_grad()(lambda projection, x: self._forward(level, projection, x, True, workspace))

    def native_levels(self) -> ScoreLevels:
        """Return the score in C and in single precision, for noise levels and a head with its original score."""

        def constants(sigma: float) -> LevelConstants:
            level = self._level(sigma, self.output.weight)
            start = level.window_start.item()
            return LevelConstants(
                width=level.width.item(),
                envelope_width=level.envelope_width.item(),
                window_start=start,
                window_end=start * WINDOW_END_WIDTHS / WINDOW_FLAT_WIDTHS,
                output_bias=level.output_bias.item(),
                bias=level.noise_projection,
                weight=torch.cat([level.fourier_weight.T, level.value_weight[:, None]], 1),
                output_weight=level.output_weight,
            )

        return ScoreLevels(
            self.frequencies, self.layers()[1:], self.hidden_features[0], self.residual, torch.no_grad()(constants)
        )


#: Methods that determine the score. Prepared and fused passes bypass some of them, so a subclass that overrides any is
#: evaluated and trained without those passes.
_SCORE_METHODS = [
    name
    for name, method in vars(ScoreHead).items()
    if inspect.isfunction(method) and name not in ("__init__", "loss_weight")
]


def _replace(tensor: Tensor, workspace: Workspace | None) -> Tensor | None:
    """Return the place of a result: that of the tensor, or with gradients, and so without a workspace, a new one."""
    return None if workspace is None else tensor


def _all_within(bound: Tensor, x: Tensor) -> bool:
    """Return whether all values lie within a distance ``()`` from zero; not-a-number does not.

    An accelerator would have to be waited for, so there the answer is no.
    """
    if x.device.type != "cpu":
        return False
    return x.numel() == 0 or torch.linalg.vector_norm(x, math.inf).item() <= bound.item()


def _silu(z: Tensor, dz: Tensor | None, workspace: Workspace | None) -> tuple[Tensor, Tensor | None]:
    """Return the activations :math:`h = z g`, :math:`g` the logistic function of :math:`z`, and their derivatives."""
    if dz is None:
        return F.silu(z, inplace=not torch.is_grad_enabled()), None
    if workspace is None:
        gate = torch.sigmoid(z)
        h = z * gate
        return h, dz * torch.addcmul(gate, h, 1.0 - gate)  # h' = g + h (1 - g)
    gate = torch.sigmoid(z, out=workspace.empty("gate", z.shape, z))
    h = z.mul_(gate)
    return h, dz.mul_(gate.lerp_(gate.new_ones(()), h))  # the same in one pass

"""Score matching of a :class:`~arcsm.heads.ScoreHead`, loss and all gradients in one walk over the points.

Autograd would keep every hidden layer of every point (a batch of B rows has B*D points) and go over them twice for the
derivative inside the loss. Here the points are walked in chunks that a processor's cache can hold. Each chunk runs
forward with values and derivatives side by side, and straight backward; what stays is the gradient by the contexts (as
large as the contexts themselves) and by the weights. Beyond a chunk, memory does not grow with B*D*H.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from arcsm import _native
from arcsm._runtime.memory import keep_freed_memory
from arcsm.errors import warn
from arcsm.heads.base import Sigma
from arcsm.heads.score import EMBEDDING_FEATURES, ScoreHead

CHUNK = 2048  # points at a time: hidden layers of 64 units then take half a megabyte each
_NATIVE_CHUNK = 2**15  # in C, which walks tiles of its own, shared by the threads
_DEVICE_CHUNK = 2**18  # on an accelerator, where small pieces leave it idle


def fused_score_matching(
    head: ScoreHead,
    context: Tensor,
    x: Tensor,
    sigma: Sigma,
    weight: Tensor,
    derivative: Tensor,
    linear: Tensor,
    compiled: bool | None = None,
    chunk: int | None = None,
) -> Tensor:
    """The sum over points of :math:`\\omega\\,(\\tfrac12 s^2 + a\\, \\partial_x s + b\\, s)`.

    Arguments:
        head: The score network.
        context: ``(N, C)``.
        x: ``(N,)`` values; no gradient flows to them.
        sigma: Noise level, a number, ``(N,)`` or ``None``.
        weight: :math:`\\omega`, ``(N,)`` or ``()``.
        derivative: :math:`a`, ``(N,)`` or ``()``; where all are zero the derivative is never computed.
        linear: :math:`b`, ``(N,)`` or ``()``.
        compiled: Whether to run machine code: in C on the processor (:mod:`arcsm._native`; single precision only), by
            ``torch.compile`` elsewhere; where that fails, it warns once and walks without. ``None``: in C on the
            processor if a compiler is found, without otherwise.
        chunk: Largest number of points at a time; by default what suits the device.

    Returns:
        The sum, ``()``, with gradients for ``context`` and the head's parameters.

    Raises:
        ValueError: for contexts that do not belong to the values or to the head.
    """
    if context.shape != (len(x), head.context_features):
        raise ValueError(f"context: expected {(len(x), head.context_features)}, got {tuple(context.shape)}")
    keep_freed_memory()
    if sigma is not None:
        sigma = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).expand(x.shape)
    tangent = bool(derivative.count_nonzero())
    points, constant = _points(head, x, sigma, weight, derivative, linear)
    walk_chunk, usual = _way(head, x, compiled)
    walk = _Walk(head, walk_chunk, usual if chunk is None else chunk, tangent, x, sigma, points)
    return constant + _FusedScoreMatching.apply(walk, context, *_parameters(head))


def _way(head: ScoreHead, x: Tensor, compiled: bool | None) -> tuple[Callable[..., Any], int]:
    """How to walk a chunk, and how many points to take at a time."""
    if x.device.type != "cpu":
        return _compiled_chunk() if compiled else _chunk, _DEVICE_CHUNK
    if compiled is False or not _native.takes(x, *head.parameters()):
        return _chunk, CHUNK
    if _native.available():
        return _native_chunk, _NATIVE_CHUNK
    if compiled:
        _say_that_it_is_not_compiled()
    return _chunk, CHUNK


@lru_cache
def _say_that_it_is_not_compiled() -> None:
    """Once."""
    try:
        _native.library()
    except _native.CompilationError as error:
        warn(f"compilation does not work here, going on without it: {error}", UserWarning)


class _Points(NamedTuple):
    """The loss of a point in terms of the network's correction F and its slope F' alone, each ``(N,)``.

    .. math:: \\omega\\, s\\,(\\tfrac12 s + b) + \\text{by_correction}\\, F + \\text{by_slope}\\, F' + \\text{const},
        \\qquad s = \\text{pull} + \\text{gain}\\, F
    """

    gain: Tensor
    pull: Tensor
    weight: Tensor
    linear: Tensor
    by_correction: Tensor
    by_slope: Tensor

    def part(self, rows: slice) -> _Points:
        return _Points(*(column[rows] for column in self))


def _points(
    head: ScoreHead, x: Tensor, sigma: Tensor | None, weight: Tensor, derivative: Tensor, linear: Tensor
) -> tuple[_Points, Tensor]:
    """The coefficients of all points, and the part of the loss that the network has no say in."""
    scales = head.scales(sigma, x)
    window, dwindow = head.window(x, scales.width)
    weight, derivative, linear = (t.to(x).expand(x.shape) for t in (weight, derivative, linear))
    outer = weight * derivative
    gain, pull, precision = scales.gain * window, -x / scales.width.square(), scales.width.pow(-2)
    columns = _Points(gain, pull, weight, linear, outer * scales.gain * dwindow, outer * gain)
    return columns, -(outer * precision).sum()


class _Walk(NamedTuple):
    """What the walk needs beside the tensors that gradients are for."""

    head: ScoreHead
    chunk: Callable[..., tuple[Tensor, Tensor, list[Tensor]]]
    size: int
    tangent: bool
    x: Tensor
    sigma: Tensor | None
    points: _Points


def _parameters(head: ScoreHead) -> list[Tensor]:
    """Weight and bias of each hidden layer, then of the output."""
    return [p for layer in (*head.layers(), head.output) for p in (layer.weight, layer.bias)]


class _FusedScoreMatching(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, walk: _Walk, context: Tensor, *parameters: Tensor) -> Tensor:
        network = _network(walk.head, parameters, walk.sigma is not None)
        total = context.new_zeros((), dtype=torch.float64)
        by_parameters = [torch.zeros_like(p) for p in network.parameters()]
        by_context = torch.empty_like(context)
        for part in _even(len(walk.x), walk.size):
            sigma = None if walk.sigma is None else walk.sigma[part]
            loss, by_context[part], gradients = walk.chunk(
                walk.head, network, context[part], walk.x[part], sigma, walk.points.part(part), walk.tangent
            )
            total += loss
            for sum_, gradient in zip(by_parameters, gradients, strict=True):
                sum_ += gradient
        if walk.sigma is None:  # the embedding of no noise is zero, and its columns were left out
            columns = by_parameters[0].split([context.shape[1], network.on_value.shape[0]], 1)
            none = columns[0].new_zeros(len(columns[0]), EMBEDDING_FEATURES)
            by_parameters[0] = torch.cat([columns[0], none, columns[1]], 1)
        ctx.save_for_backward(by_context, *by_parameters)
        return total.to(context.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_loss: Tensor) -> tuple[Any, ...]:
        return None, *[by_loss * gradient for gradient in ctx.saved_tensors]


class _Network(NamedTuple):
    """The head's weights as the walk wants them."""

    layers: list[tuple[Tensor, Tensor]]  # weight and bias of each hidden layer
    output: tuple[Tensor, Tensor]
    on_value: Tensor  # (V, H) what the first layer does with the features of x, rows contiguous

    def parameters(self) -> list[Tensor]:
        return [p for layer in (*self.layers, self.output) for p in layer]


def _network(head: ScoreHead, parameters: tuple[Tensor, ...], noisy: bool) -> _Network:
    (weight, bias), *deeper, output = zip(parameters[0::2], parameters[1::2], strict=True)
    values = weight.shape[1] - head.context_features - EMBEDDING_FEATURES
    if not noisy:
        weight = torch.cat([weight[:, : head.context_features], weight[:, -values:]], 1)
    return _Network([(weight, bias), *deeper], output, weight[:, -values:].T.contiguous())


class _Layer(NamedTuple):
    """What the way back needs of a hidden layer, each ``(n, H)``; the second and fourth only with derivatives."""

    h: Tensor  # activations
    dh: Tensor | None  # their derivatives by x
    slope: Tensor  # f'(z) of the activation function
    curve: Tensor | None  # f''(z) dz


def _chunk(
    head: ScoreHead,
    network: _Network,
    context: Tensor,  # (n, C)
    x: Tensor,  # (n,)
    sigma: Tensor | None,  # (n,)
    points: _Points,  # (n,) each
    tangent: bool,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Loss of a chunk, its gradient by the contexts ``(n, C)``, and by each weight and bias.

    ``z`` are the sums of a layer and ``h`` its activations; ``dz`` and ``dh``, their derivatives by x, exist only
    with ``tangent``.
    """
    layers = network.layers
    inputs, slopes = _inputs(head, context, x, sigma)
    saved: list[_Layer] = []
    h, dh = inputs, None
    for index, (weight, bias) in enumerate(layers):
        z, dz = torch.addmm(bias, h, weight.T), None
        if tangent:
            dz = _times(slopes, network.on_value) if dh is None else dh @ weight.T
        if index == len(layers) - 1:
            saved.append(_bounded(z, dz))
        else:
            saved.append(_silu(z, dz, saved[-1] if head.residual and saved else None))
        h, dh = saved[-1].h, saved[-1].dh

    loss, gradients, by_h, by_dh = _top(network, saved[-1], points)
    for index in reversed(range(len(layers))):
        layer, (weight, _) = saved[index], layers[index]
        by_z, by_dz = by_h * layer.slope, None
        if by_dh is not None and layer.curve is not None:
            by_z, by_dz = by_z.addcmul_(by_dh, layer.curve), by_dh * layer.slope
        gradients.append(by_z.sum(0))
        if index == 0:
            break
        below = saved[index - 1]
        by_weight = by_z.T @ below.h
        if by_dz is not None and below.dh is not None:
            by_weight = torch.addmm(by_weight, by_dz.T, below.dh)
        gradients.append(by_weight)
        residual = head.residual and index < len(layers) - 1
        by_h = torch.addmm(by_h, by_z, weight) if residual else by_z @ weight
        if by_dh is not None and by_dz is not None:
            by_dh = torch.addmm(by_dh, by_dz, weight) if residual else by_dz @ weight
    # with so few inputs a product is several times faster the other way round, its thin side first
    by_weight = inputs.T @ by_z
    if by_dz is not None:
        by_weight[inputs.shape[1] - slopes.shape[1] :] += slopes.T @ by_dz
    gradients.append(by_weight.T)
    by_context = layers[0][0][:, : context.shape[1]].T @ by_z.T
    return loss, by_context.T, gradients[::-1]


def _inputs(head: ScoreHead, context: Tensor, x: Tensor, sigma: Tensor | None) -> tuple[Tensor, Tensor]:
    """What the first layer reads, ``(n, I)``, and the derivative by x of its last columns, ``(n, V)``."""
    others, slopes = _other_inputs(head, x, sigma)
    return torch.cat([context, others], -1), slopes


def _other_inputs(head: ScoreHead, x: Tensor, sigma: Tensor | None) -> tuple[Tensor, Tensor]:
    """The noise level and the value as the first layer reads them, and the derivative of the latter, ``(n, V)``."""
    scales = head.scales(sigma, x)
    features, slopes = head.value_features(x, scales)
    return features if sigma is None else torch.cat([head.embedding(scales), features], -1), slopes


def _times(slopes: Tensor, on_value: Tensor) -> Tensor:
    return slopes * on_value if len(on_value) == 1 else slopes @ on_value


def _silu(z: Tensor, dz: Tensor | None, below: _Layer | None) -> _Layer:
    """A hidden layer :math:`h = z g`, :math:`g` the logistic function of :math:`z`, added to the one below."""
    gate = torch.sigmoid(z)
    rest = 1.0 - gate
    h = z * gate
    slope = torch.addcmul(gate, h, rest)  # f' = g + h (1 - g)
    dh = curve = None
    if dz is not None:
        dh = slope * dz
        curve = torch.sub(2.0 * slope, h).mul_(rest).mul_(dz)  # f'' = (1 - g) (2 f' - h)
    if below is not None:
        h = h + below.h
        dh = None if dh is None or below.dh is None else dh + below.dh
    return _Layer(h, dh, slope, curve)


def _bounded(z: Tensor, dz: Tensor | None) -> _Layer:
    """The last hidden layer; its activation :math:`g - 1/2` leaves the half to the output's bias."""
    gate = torch.sigmoid(z)
    slope = torch.addcmul(gate, gate, gate, value=-1.0)  # f' = g (1 - g)
    if dz is None:
        return _Layer(gate, None, slope, None)
    dh = slope * dz
    return _Layer(gate, dh, slope, dh * (1.0 - 2.0 * gate))  # f'' = f' (1 - 2 g)


def _top(network: _Network, top: _Layer, points: _Points) -> tuple[Tensor, list[Tensor], Tensor, Tensor | None]:
    """The loss, its gradients by the output's bias and weight, and by the last activations, ``(n, H)`` each."""
    weight, bias = network.output[0][0], network.output[1]  # (H,), (1,)
    correction = top.h @ weight + (bias - 0.5 * weight.sum())
    score = torch.addcmul(points.pull, points.gain, correction)
    loss = points.weight * score * (0.5 * score + points.linear)
    by_correction = points.weight * points.gain * (score + points.linear)
    if top.dh is None:
        by_weight = by_correction @ top.h
    else:
        loss = loss + points.by_correction * correction + points.by_slope * (top.dh @ weight)
        by_correction = by_correction + points.by_correction
        by_weight = by_correction @ top.h + points.by_slope @ top.dh
    by_bias = by_correction.sum()
    by_dh = None if top.dh is None else points.by_slope[:, None] * weight
    return loss.sum(), [by_bias[None], (by_weight - 0.5 * by_bias)[None]], by_correction[:, None] * weight, by_dh


def _native_chunk(
    head: ScoreHead,
    network: _Network,
    context: Tensor,
    x: Tensor,
    sigma: Tensor | None,
    points: _Points,
    tangent: bool,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """The same as :func:`_chunk`, in C."""
    others, slopes = _other_inputs(head, x, sigma)
    loss, by_context, gradients = _native.walk(
        context.to(x.dtype), others, slopes, torch.stack(points), network.parameters(), head.residual, tangent
    )
    return torch.tensor(loss, dtype=torch.float64), by_context, gradients


def _even(count: int, largest: int) -> list[slice]:
    """Slices of even size, none larger than asked for."""
    size = -(-count // -(-count // largest)) if count else 1
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


@lru_cache
def _compiled_chunk() -> Callable[..., Any]:
    """The chunk by ``torch.compile``, or the plain one (with one warning) where that fails on this machine."""
    compiled = torch.compile(_chunk, dynamic=False)
    broken = False

    def chunk(*arguments: Any) -> Any:
        nonlocal broken
        if not broken:
            try:
                return compiled(*arguments)
            except torch.OutOfMemoryError:
                raise
            except (torch._dynamo.exc.TorchDynamoException, RuntimeError) as error:
                broken = True
                cause = str(error).strip().splitlines()[0]
                warn(f"torch.compile does not work here, going on without it: {cause}", UserWarning)
        return _chunk(*arguments)

    return chunk

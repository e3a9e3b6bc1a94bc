"""Score matching of a :class:`~arcsm.heads.ScoreHead`, loss and all gradients in one walk over the points.

Autograd would keep every hidden layer of every point (a batch of B rows has B*D points) and go over them twice for the
derivative inside the loss. Here the points are walked in chunks that fit a processor's cache. Each chunk runs forward
with values and derivatives side by side, and straight backward; what stays is the gradient by the contexts (as large
as the contexts themselves) and by the weights. Memory does not grow with B*D*H.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from arcsm.heads.base import Sigma
from arcsm.heads.score import ScoreHead

CHUNK = 4096  # points at a time; hidden layers of 64 units then take about a megabyte each


def fused_score_matching(
    head: ScoreHead,
    context: Tensor,
    x: Tensor,
    sigma: Sigma,
    weight: Tensor,
    derivative: Tensor,
    linear: Tensor,
    compiled: bool = False,
    chunk: int = CHUNK,
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
        compiled: Compile the walk of one chunk with ``torch.compile``.
        chunk: Points at a time.

    Returns:
        The sum, ``()``, with gradients for ``context`` and the head's parameters.
    """
    columns = [torch.as_tensor(t, dtype=x.dtype, device=x.device).expand(x.shape) for t in (weight, derivative, linear)]
    tangent = bool(torch.as_tensor(derivative).count_nonzero())
    walk = _compiled_walk() if compiled else _walk
    return _FusedScoreMatching.apply(head, walk, chunk, tangent, context, x, sigma, *columns, *_weights(head))


def _weights(head: ScoreHead) -> list[Tensor]:
    """Weight and bias of each hidden layer, then of the output."""
    return [p for layer in (*head.layers(), head.output) for p in (layer.weight, layer.bias)]


class _FusedScoreMatching(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        head: ScoreHead,
        walk: Callable[..., Any],
        chunk: int,
        tangent: bool,
        context: Tensor,
        x: Tensor,
        sigma: Sigma,
        weight: Tensor,
        derivative: Tensor,
        linear: Tensor,
        *weights: Tensor,
    ) -> Tensor:
        needs_context = ctx.needs_input_grad[4]
        sigmas = sigma.expand(x.shape) if isinstance(sigma, Tensor) else None
        total = x.new_zeros((), dtype=torch.float64)
        gradients = [torch.zeros_like(w) for w in weights]
        by_context = torch.empty_like(context) if needs_context else None
        for start in range(0, len(x), chunk):
            part = slice(start, start + chunk)
            scales = head.scales(sigma if sigmas is None else sigmas[part], x)
            features, slopes = head.value_features(x[part], scales)
            embedding = head.embedding(scales).expand(len(features), -1)
            inputs = torch.cat([context[part], embedding, features], -1)
            window, dwindow = head.window(x[part], scales.width)
            loss, by_inputs, by_weights = walk(
                inputs, slopes, x[part], scales.width, scales.gain, window, dwindow,
                weight[part], derivative[part], linear[part], weights, head.residual, tangent,
            )  # fmt: skip
            total += loss
            for gradient, new in zip(gradients, by_weights, strict=True):
                gradient += new
            if by_context is not None:
                by_context[part] = by_inputs @ weights[0][:, : context.shape[-1]]
        ctx.save_for_backward(by_context, *gradients)
        return total.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_loss: Tensor) -> tuple[Any, ...]:
        by_context, *gradients = ctx.saved_tensors
        by_context = None if by_context is None else by_loss * by_context
        return (*[None] * 4, by_context, *[None] * 5, *[by_loss * gradient for gradient in gradients])


def _walk(
    inputs: Tensor,  # (n, I) context, noise embedding, value features
    slopes: Tensor,  # (n, M) derivatives of the value features
    x: Tensor,  # (n,)
    width: Tensor,  # () or (n,)
    gain: Tensor,
    window: Tensor,
    dwindow: Tensor,
    weight: Tensor,
    derivative: Tensor,
    linear: Tensor,
    weights: tuple[Tensor, ...],
    residual: bool,
    tangent: bool,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Loss of a chunk, its gradient by the first layer's sums ``(n, H)``, and by each weight and bias.

    A tensor with a leading axis of size two holds values and their derivatives by x, one after the other, so that
    one matrix product serves both; without ``tangent`` the axis has size one.
    """
    layers = list(zip(weights[0::2], weights[1::2], strict=True))
    hidden_layers, (out_weight, out_bias) = layers[:-1], layers[-1]
    values = slopes.shape[-1]

    # Forward: z are sums, h activations; slot 0 holds values, slot 1 derivatives.
    first_weight, first_bias = hidden_layers[0]
    z = torch.addmm(first_bias, inputs, first_weight.T).unsqueeze(0)
    if tangent:
        on_value = first_weight[:, -values:].T
        tangents = slopes * on_value if values == 1 else slopes @ on_value
        z = torch.stack([z[0], tangents])
    saved: list[tuple[Tensor, ...]] = []  # a layer: h below, z', h' and h'' by z
    below = inputs.unsqueeze(0)
    for index, (layer_weight, layer_bias) in enumerate(hidden_layers):
        if index > 0:
            z = (below.flatten(0, 1) @ layer_weight.T).unflatten(0, (-1, len(inputs)))
            z[0] += layer_bias
        gate = torch.sigmoid(z[0])
        gate_slope = gate * (1.0 - gate)
        last = index == len(hidden_layers) - 1
        h = gate - 0.5 if last else z[0] * gate
        slope = gate_slope if last else torch.addcmul(gate, z[0], gate_slope)
        if tangent:
            curve = gate_slope * (1.0 - 2.0 * gate)
            curve = curve if last else torch.addcmul(2.0 * gate_slope, z[0], curve)
            h = torch.stack([h, slope * z[1]])
            saved.append((below, slope, curve * z[1]))
        else:
            h = h.unsqueeze(0)
            saved.append((below, slope))
        below = h + below if residual and index > 0 and not last else h

    correction = below[0] @ out_weight[0] + out_bias
    score = gain * window * correction - x / width.square()
    loss = score * (0.5 * score + linear)
    by_correction = gain * window * weight * (score + linear)
    by_slope = by_correction
    if tangent:
        slope = below[1] @ out_weight[0]
        loss = loss + derivative * (gain * (window * slope + dwindow * correction) - width.pow(-2))
        by_correction = by_correction + gain * dwindow * weight * derivative
        by_slope = gain * window * weight * derivative

    # Backward, the same layers in reverse.
    tops = torch.stack([by_correction, by_slope]) if tangent else by_correction.unsqueeze(0)  # (2 or 1, n)
    by_weights = [by_correction.sum().unsqueeze(0), (tops.flatten() @ below.flatten(0, 1)).unsqueeze(0)]
    by_h = tops.unsqueeze(-1) * out_weight[0]
    skip: Tensor | None = None
    for index in reversed(range(len(hidden_layers))):
        below, slope, *curve_terms = saved[index]
        if tangent:
            by_z = by_h * slope
            by_z[0].addcmul_(by_h[1], curve_terms[0])
        else:
            by_z = by_h * slope
        by_weights.append(by_z[0].sum(0))
        if index == 0:
            first = by_z[0].T @ inputs
            if tangent:
                first[:, -values:] += by_z[1].T @ slopes
            by_weights.append(first)
            break
        flat = by_z.flatten(0, 1)
        by_weights.append(flat.T @ below.flatten(0, 1))
        last = index == len(hidden_layers) - 1
        skip = by_h if residual and not last else None
        by_h = (flat @ hidden_layers[index][0]).unflatten(0, (-1, len(inputs)))
        if skip is not None:
            by_h = by_h + skip
    return (weight * loss).sum(), by_z[0], by_weights[::-1]


@lru_cache(maxsize=1)
def _compiled_walk() -> Callable[..., Any]:
    """The compiled walk, or the plain one (with one warning) where compilation fails on this machine."""
    compiled = torch.compile(_walk, dynamic=False)
    broken = False

    def walk(*arguments: Any) -> Any:
        nonlocal broken
        if not broken:
            try:
                return compiled(*arguments)
            except (torch._dynamo.exc.TorchDynamoException, RuntimeError) as error:
                broken = True
                cause = str(error).strip().splitlines()[0]
                warnings.warn(f"torch.compile does not work here, going on without it: {cause}", stacklevel=2)
        return _walk(*arguments)

    return walk

"""Score matching of a :class:`~arcsm.heads.ScoreHead`: the loss and all gradients in one fused pass.

Autograd would keep every hidden layer of every point (a batch of B rows has B*D points) and pass over them twice for
the derivative inside the loss. Here the points are processed in chunks that fit into a processor's cache. Each chunk
runs forward, values and derivatives side by side, and then backward at once. Only the contexts, the weights and their
gradients are kept, so memory beyond one chunk does not grow with B*D*H. The gradients are differentiable in turn:
autograd then differentiates the pass in plain torch, again in chunks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from arcsm import _native
from arcsm._runtime.batching import even_slices
from arcsm._runtime.devices import widest_float
from arcsm._runtime.memory import keep_freed_memory
from arcsm.errors import warn
from arcsm.heads.base import Sigma
from arcsm.heads.score import (
    EMBEDDING_FEATURES,
    ENVELOPE_WIDTHS,
    WINDOW_END_WIDTHS,
    WINDOW_FLAT_WIDTHS,
    ScoreHead,
)

CHUNK_POINTS = 2048  #: points per chunk in torch on a processor: half a megabyte for each hidden layer of 64 units
_NATIVE_CHUNK_POINTS = 2**15  # in C, which splits a chunk into cache-sized tiles and shares it among threads
_ACCELERATOR_CHUNK_POINTS = 2**18  # small chunks would leave an accelerator idle


def fused_score_matching(
    head: ScoreHead,
    context: Tensor,
    x: Tensor,
    sigma: Sigma,
    weight: Tensor,
    derivative: Tensor | float,
    linear: Tensor,
    compiled: bool | None = None,
    chunk_points: int | None = None,
) -> Tensor:
    """Return the sum over points of :math:`\\omega\\,(\\tfrac12 s^2 + a\\, \\partial_x s + b\\, s)`, ``()``.

    Gradients of any order flow to ``context (N, C)`` and to the parameters of the head, not to the values ``x (N,)``.
    The noise level ``sigma`` is a number, ``(N,)`` or ``None``.

    Arguments:
        weight: :math:`\\omega`, ``(N,)`` or ``()``.
        derivative: :math:`a`, a number, ``(N,)`` or ``()``. If it is zero everywhere, the derivative is not computed;
            of a tensor, this is known on a processor alone.
        linear: :math:`b`, ``(N,)`` or ``()``.
        compiled: Whether to run compiled code: C on a processor (:mod:`arcsm._native`, single precision only),
            ``torch.compile`` elsewhere. If compilation fails, it warns once and runs plain torch. ``None`` uses C on a
            processor if there is a C compiler, and plain torch otherwise.
        chunk_points: Maximum number of points per chunk. Default: suited to the device.
    """
    if context.shape != (len(x), head.context_features):
        raise ValueError(f"context: expected {(len(x), head.context_features)}, got {tuple(context.shape)}")
    keep_freed_memory()
    if sigma is not None:
        sigma = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).expand(x.shape)
    if isinstance(derivative, Tensor):
        tangent = derivative.device.type != "cpu" or bool(derivative.count_nonzero())
    else:
        tangent, derivative = derivative != 0.0, x.new_full((), derivative)
    weight, derivative, linear = (t.to(x).expand(x.shape) for t in (weight, derivative, linear))
    forward_backward, default_points = _choose_implementation(head, x, compiled)
    size = default_points if chunk_points is None else chunk_points
    batch = _Batch(head, _Values(x, sigma, weight, derivative, linear), tangent, forward_backward, size)
    parameters = [p for layer in (*head.layers(), (head.output.weight, head.output.bias)) for p in layer]
    loss, *_ = _FusedScoreMatching.apply(batch, context, *parameters)
    return batch.constant + loss


def transforms_allow_fusion() -> bool:
    """Return whether no transform of ``torch.func`` is active, or a single ``grad`` or ``vjp``."""
    if torch.compiler.is_compiling():
        return True
    active = [transform.key() for transform in torch._C._functorch.get_interpreter_stack() or ()]
    return active in ([], [torch._C._functorch.TransformType.Grad])


def _choose_implementation(head: ScoreHead, x: Tensor, compiled: bool | None) -> tuple[Callable[..., Any] | None, int]:
    """Return the function that processes a chunk, ``None`` for C, and the maximum number of points per chunk."""
    if x.device.type != "cpu":
        return _compiled_forward_backward() if compiled else _forward_backward, _ACCELERATOR_CHUNK_POINTS
    if compiled is not False and _native.supports(x, *head.parameters()):
        if _native.available():
            return None, _NATIVE_CHUNK_POINTS
        if compiled:
            _warn_not_compiled()
    return _forward_backward, CHUNK_POINTS


@lru_cache  # warns once
def _warn_not_compiled() -> None:
    try:
        _native.library()
    except _native.CompilationError as error:
        warn(f"compilation failed, continuing without it: {error}")


class _Points(NamedTuple):
    """Values, and their losses as functions of the network's correction F and its derivative F', each ``(N,)``.

    .. math:: \\omega\\, s\\,(\\tfrac12 s + b) + \\text{correction_weight}\\, F + \\text{slope_weight}\\, F'
        + \\text{const}, \\qquad s = \\text{base_score} + \\text{gain}\\, F
    """

    x: Tensor
    sigma: Tensor | None
    gain: Tensor
    base_score: Tensor
    weight: Tensor  # omega
    linear: Tensor  # b
    correction_weight: Tensor
    slope_weight: Tensor

    def rows(self, rows: slice) -> _Points:
        return _Points(*(None if column is None else column[rows] for column in self))  # type: ignore[arg-type]


class _Values(NamedTuple):
    """The arguments of :func:`fused_score_matching` for each value, ``(N,)``."""

    x: Tensor
    sigma: Tensor | None
    weight: Tensor
    derivative: Tensor
    linear: Tensor


def _points(head: ScoreHead, values: _Values) -> tuple[_Points, Tensor]:
    """Return all points, and the part of the loss that does not depend on the network."""
    x, sigma, weight, derivative, linear = values
    scales = head.scales(sigma, x)
    window, dwindow = head.window(x, scales.width)
    outer, gain = weight * derivative, scales.gain * window
    base_score = -x / scales.width.square()
    points = _Points(x, sigma, gain, base_score, weight, linear, outer * scales.gain * dwindow, outer * gain)
    return points, -(outer * scales.width.pow(-2)).sum()


@dataclass
class _Batch:
    """All values of a loss, and how they are processed."""

    head: ScoreHead
    values: _Values
    tangent: bool  # whether the loss contains derivatives of the score
    forward_backward: Callable[..., tuple[Tensor, Tensor, list[Tensor]]] | None  # None for C
    chunk_points: int

    @property
    def noisy(self) -> bool:
        return self.values.sigma is not None

    @property
    def points(self) -> _Points:
        return self._points_and_constant[0]

    @cached_property
    def _points_and_constant(self) -> tuple[_Points, Tensor]:
        return _points(self.head, self.values)

    @cached_property
    def compiled(self) -> _native.ScorePoints:
        """The points as C reads them."""
        head = self.head
        widths = ENVELOPE_WIDTHS, WINDOW_FLAT_WIDTHS, WINDOW_END_WIDTHS
        return _native.score_points(_native.PointConstants(head.frequencies, head.data_std, *widths), *self.values)

    @property
    def constant(self) -> Tensor | float:
        """The part of the loss that does not depend on the network."""
        return self._points_and_constant[1] if self.forward_backward else self.compiled.constant

    def chunks(self, largest: int) -> list[slice]:
        return even_slices(len(self.values.x), largest)

    def evaluate(self, network: _Network, context: Tensor, rows: slice) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Return what :func:`_forward_backward` does for a chunk of the points."""
        if self.forward_backward:
            return self.forward_backward(self.head, network, context, self.points.rows(rows), self.tangent)
        points, parameters = self.compiled, network.parameters()
        loss, grad_context, gradients = _native.score_matching_forward_backward(
            context.to(points.features.dtype), points.features[rows], points.slopes[rows], points.coefficients[:, rows],
            parameters, self.head.residual, self.tangent,
        )  # fmt: skip
        return torch.tensor(loss, dtype=torch.float64), grad_context, gradients


class _FusedScoreMatching(torch.autograd.Function):
    """The loss, followed by its gradients, which can be differentiated too."""

    @staticmethod
    def forward(batch: _Batch, context: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        network = _network(parameters, context.shape[1], batch.noisy)
        total = context.new_zeros((), dtype=widest_float(context.device))
        grad_context = torch.empty_like(context)
        grad_parameters = [torch.zeros_like(p) for p in network.parameters()]
        for rows in batch.chunks(batch.chunk_points):
            loss, grad_context[rows], gradients = batch.evaluate(network, context[rows], rows)
            total += loss
            for total_gradient, gradient in zip(grad_parameters, gradients, strict=True):
                total_gradient += gradient
        return total.to(context.dtype), grad_context, *_with_noise_columns(grad_parameters, network, context)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.batch, *tensors = inputs
        _, *gradients = output
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, *gradients)

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None, *grad_gradients: Tensor | None) -> tuple[Any, ...]:
        saved = ctx.saved_tensors
        inputs, gradients = saved[: len(saved) // 2], saved[len(saved) // 2 :]
        first = [None] * len(inputs) if grad_loss is None else [grad_loss * gradient for gradient in gradients]
        if all(vector is None for vector in grad_gradients):
            return None, *first
        second = _hessian_vector_product(ctx.batch, inputs, grad_gradients)
        return None, *(b if a is None else a + b for a, b in zip(first, second, strict=True))


def _hessian_vector_product(
    batch: _Batch, inputs: tuple[Tensor, ...], vectors: tuple[Tensor | None, ...]
) -> list[Tensor]:
    """Differentiate the inner product of the gradients and some vectors by the context and the parameters.

    The result can be differentiated again if autograd wants a graph of it.
    """
    context, *parameters = (_differentiable(tensor) for tensor in inputs)
    context_products, parameter_products = [], [torch.zeros_like(p) for p in parameters]
    create_graph = torch.is_grad_enabled()
    for rows in batch.chunks(CHUNK_POINTS):
        with torch.enable_grad():
            part = context[rows]
            network = _network(tuple(parameters), context.shape[1], batch.noisy)
            _, grad_context, grad_parameters = _forward_backward(
                batch.head, network, part, batch.points.rows(rows), batch.tangent
            )
            gradients = [grad_context, *_with_noise_columns(grad_parameters, network, part)]
        weights = [vectors[0] if vectors[0] is None else vectors[0][rows], *vectors[1:]]
        pairs = [(gradient, weight) for gradient, weight in zip(gradients, weights, strict=True) if weight is not None]
        outputs, grad_outputs = zip(*pairs, strict=True)
        product, *others = torch.autograd.grad(
            outputs, [part, *parameters], grad_outputs, create_graph=create_graph, materialize_grads=True
        )
        context_products.append(product)
        parameter_products = [total + other for total, other in zip(parameter_products, others, strict=True)]
    return [torch.cat(context_products) if context_products else torch.zeros_like(context), *parameter_products]


def _differentiable(tensor: Tensor) -> Tensor:
    """Return a tensor that requires gradients, cut from its history unless autograd wants a graph."""
    return tensor if torch.is_grad_enabled() and tensor.requires_grad else tensor.detach().requires_grad_()


def _with_noise_columns(gradients: list[Tensor], network: _Network, context: Tensor) -> list[Tensor]:
    """Return the gradients with respect to the head's parameters, given a network's; columns left out get zeros."""
    weight, *others = gradients
    features, values = context.shape[1], len(network.value_weight)
    if weight.shape[1] > features + values:
        return gradients
    of_context, of_value = weight.split([features, values], 1)
    return [torch.cat([of_context, weight.new_zeros(len(weight), EMBEDDING_FEATURES), of_value], 1), *others]


class _Network(NamedTuple):
    """The head's weights, without the columns of the noise level if there is no noise: its embedding is zero."""

    layers: list[tuple[Tensor, Tensor]]  # weight and bias of each hidden layer
    output: tuple[Tensor, Tensor]
    value_weight: Tensor  # (V, H) weights of the features of x in the first layer, contiguous

    def parameters(self) -> list[Tensor]:
        return [p for layer in (*self.layers, self.output) for p in layer]


def _network(parameters: tuple[Tensor, ...], context_features: int, noisy: bool) -> _Network:
    (weight, bias), *deeper, output = zip(parameters[0::2], parameters[1::2], strict=True)
    value_weight = weight[:, context_features + EMBEDDING_FEATURES :]
    if not noisy:
        weight = torch.cat([weight[:, :context_features], value_weight], 1)
    return _Network([(weight, bias), *deeper], output, value_weight.T.contiguous())


class _Layer(NamedTuple):
    """What the backward pass needs from a hidden layer, each ``(n, H)``; ``dh`` and ``curve`` only with derivatives."""

    h: Tensor  # activations
    dh: Tensor | None  # their derivatives by x
    slope: Tensor  # f'(z) of the activation function f
    curve: Tensor | None  # f''(z) dz


def _forward_backward(
    head: ScoreHead, network: _Network, context: Tensor, points: _Points, tangent: bool
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Return the loss of a chunk, its gradient with respect to the contexts, ``(n, C)``, and to weights and biases.

    ``z`` are the pre-activations of a layer and ``h`` its activations; ``dz`` and ``dh``, their derivatives by x, exist
    only with ``tangent``. ``grad_z`` is the gradient of the loss by ``z``, and so on.
    """
    layers = network.layers
    features, slopes = _noise_and_value_features(head, points)
    inputs = torch.cat([context, features], -1)  # (n, I)
    saved: list[_Layer] = []
    h, dh = inputs, None
    for index, (weight, bias) in enumerate(layers):
        z, dz = torch.addmm(bias, h, weight.T), None
        if tangent and dh is not None:
            dz = dh @ weight.T
        elif tangent:
            value_weight = network.value_weight
            dz = slopes * value_weight if len(value_weight) == 1 else slopes @ value_weight
        if index == len(layers) - 1:
            saved.append(_last_activation(z, dz))
        else:
            saved.append(_silu(z, dz, saved[-1] if head.residual and saved else None))
        h, dh = saved[-1].h, saved[-1].dh

    loss, gradients, grad_h, grad_dh = _output_layer(network, saved[-1], points)
    for index in reversed(range(len(layers))):
        layer, (weight, _) = saved[index], layers[index]
        grad_z, grad_dz = grad_h * layer.slope, None
        if grad_dh is not None and layer.curve is not None:
            grad_z, grad_dz = grad_z.addcmul_(grad_dh, layer.curve), grad_dh * layer.slope
        gradients.append(grad_z.sum(0))
        if index == 0:
            break
        below = saved[index - 1]
        grad_weight = grad_z.T @ below.h
        if grad_dz is not None and below.dh is not None:
            grad_weight = torch.addmm(grad_weight, grad_dz.T, below.dh)
        gradients.append(grad_weight)
        residual = head.residual and index < len(layers) - 1
        grad_h = torch.addmm(grad_h, grad_z, weight) if residual else grad_z @ weight
        if grad_dh is not None and grad_dz is not None:
            grad_dh = torch.addmm(grad_dh, grad_dz, weight) if residual else grad_dz @ weight
    # with so few inputs, a product is several times faster transposed, the thin matrix first
    grad_weight = inputs.T @ grad_z
    if grad_dz is not None:
        grad_weight[inputs.shape[1] - slopes.shape[1] :] += slopes.T @ grad_dz
    gradients.append(grad_weight.T)
    grad_context = layers[0][0][:, : context.shape[1]].T @ grad_z.T
    return loss, grad_context.T, gradients[::-1]


def _noise_and_value_features(head: ScoreHead, points: _Points) -> tuple[Tensor, Tensor]:
    """Return the inputs of the first layer beside the context, and the derivative of the last ones by x, ``(n, V)``.

    The last ones are the value in widths and its Fourier features.
    """
    scales = head.scales(points.sigma, points.x)
    x, width = torch.broadcast_tensors(points.x, scales.width)
    features, slopes = (x / width).unsqueeze(-1), (1.0 / width).unsqueeze(-1)
    if head.sinusoids:
        fourier, fourier_slopes = head.fourier_features(
            x, ENVELOPE_WIDTHS * width, head.blur(scales.damping.unsqueeze(-1))
        )
        features, slopes = torch.cat([features, fourier], -1), torch.cat([slopes, fourier_slopes], -1)
    return features if points.sigma is None else torch.cat([head.embedding(scales), features], -1), slopes


def _silu(z: Tensor, dz: Tensor | None, below: _Layer | None) -> _Layer:
    """Return a hidden layer :math:`h = z g`, with :math:`g` the logistic function of :math:`z`, plus the one below."""
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


def _last_activation(z: Tensor, dz: Tensor | None) -> _Layer:
    """Return the last hidden layer. Its activation is :math:`g - 1/2`; the output's bias takes care of the half."""
    gate = torch.sigmoid(z)
    slope = torch.addcmul(gate, gate, gate, value=-1.0)  # f' = g (1 - g)
    if dz is None:
        return _Layer(gate, None, slope, None)
    dh = slope * dz
    return _Layer(gate, dh, slope, dh * (1.0 - 2.0 * gate))  # f'' = f' (1 - 2 g)


def _output_layer(
    network: _Network, last: _Layer, points: _Points
) -> tuple[Tensor, list[Tensor], Tensor, Tensor | None]:
    """Return the loss and its gradients with respect to the output's bias and weight, ``h`` and ``dh``, ``(n, H)``."""
    weight, bias = network.output[0][0], network.output[1]  # (H,), (1,)
    correction = last.h @ weight + (bias - 0.5 * weight.sum())
    score = torch.addcmul(points.base_score, points.gain, correction)
    loss = points.weight * score * (0.5 * score + points.linear)
    grad_correction = points.weight * points.gain * (score + points.linear)
    if last.dh is None:
        grad_weight = grad_correction @ last.h
    else:
        loss = loss + points.correction_weight * correction + points.slope_weight * (last.dh @ weight)
        grad_correction = grad_correction + points.correction_weight
        grad_weight = grad_correction @ last.h + points.slope_weight @ last.dh
    grad_dh = None if last.dh is None else points.slope_weight[:, None] * weight
    grad_bias = grad_correction.sum()
    gradients = [grad_bias[None], (grad_weight - 0.5 * grad_bias)[None]]
    return loss.sum(), gradients, grad_correction[:, None] * weight, grad_dh


@lru_cache
def _compiled_forward_backward() -> Callable[..., Any]:
    """Return the pass compiled by ``torch.compile``; if that fails, it warns once and runs the plain pass."""
    compiled = torch.compile(_forward_backward, dynamic=False)
    failed = False

    def forward_backward(*arguments: Any) -> Any:
        nonlocal failed
        if not failed:
            try:
                return compiled(*arguments)
            except torch.OutOfMemoryError:
                raise
            except (torch._dynamo.exc.TorchDynamoException, RuntimeError) as error:
                failed = True
                warn(f"torch.compile failed, continuing without it: {str(error).strip().splitlines()[0]}")
        return _forward_backward(*arguments)

    return forward_backward

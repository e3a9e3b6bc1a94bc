"""Fused score matching: the loss and gradients of autograd, in bounded memory."""

import shutil
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from arcsm import MADE, AutoregressiveModel, NoiseLadder, ScoreHead, _native, objectives
from arcsm._native import build
from arcsm.heads.base import Sigma
from arcsm.heads.score import Scales
from arcsm.objectives import fused
from arcsm.objectives.fused import fused_score_matching

FLOAT64 = torch.float64
HEADS: tuple[dict[str, Any], ...] = (
    {"hidden_features": (8,)},
    {"hidden_features": (8, 6)},
    {"hidden_features": (7, 7), "residual": True, "data_std": 0.6},
    {"hidden_features": (8, 8, 8, 8), "residual": True, "sinusoids": 3},
    {"hidden_features": (8, 6, 4), "sinusoids": 2, "max_frequency": 5.0},
)
MIXES = ("csm", "dsm", "mixed")
POINTS = 37

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="needs a C compiler, and none is on the path"
)


def score_head(dtype: torch.dtype = FLOAT64, **arguments: Any) -> ScoreHead:
    """Return a score head with large random weights, so that every term of a gradient matters."""
    head = ScoreHead(context_features=3, **arguments).to(dtype)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_().mul_(2.0 / parameter.shape[-1] ** 0.5)
    return head


def random_batch(n: int = POINTS, mix: str = "mixed", dtype: torch.dtype = FLOAT64) -> dict[str, Tensor]:
    """Return arguments of the loss, with values inside the head's window, on its slope and beyond it."""
    x = torch.randn(n, dtype=dtype)
    x[: n // 4] *= 12.0
    a = {"csm": torch.ones(n), "dsm": torch.zeros(n), "mixed": torch.rand(n)}[mix].to(dtype)
    return {
        "context": torch.randn(n, 3, dtype=dtype),
        "x": x,
        "weight": torch.rand(n, dtype=dtype) + 0.1,
        "derivative": a,
        "linear": (1.0 - a) * torch.randn(n, dtype=dtype),
    }


def noise_level(kind: str, n: int = POINTS) -> Sigma:
    return {"none": None, "number": 0.3}.get(kind, torch.rand(n, dtype=FLOAT64) + 0.1)


def double_backward(
    head: ScoreHead,
    context: Tensor,
    x: Tensor,
    sigma: Sigma,
    weight: Tensor,
    derivative: Tensor,
    linear: Tensor,
) -> Tensor:
    """Return the same loss with the derivative of the score by autograd."""
    x = x.detach().requires_grad_()
    s = head.projected_score(head.project(context), x, sigma)
    (ds,) = torch.autograd.grad(s.sum(), x, create_graph=True)
    return (weight * (0.5 * s.square() + derivative * ds + linear * s)).sum()


def loss_and_gradients(loss: Tensor, head: ScoreHead, context: Tensor) -> list[Tensor]:
    parameters = list(head.parameters())
    gradients = torch.autograd.grad(loss, [context, *parameters], allow_unused=True)
    return [loss.detach(), *(torch.zeros(()) if g is None else g for g in gradients)]


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("sigma_kind", ["none", "number", "tensor"])
@pytest.mark.parametrize("arguments", HEADS, ids=range(len(HEADS)))
def test_loss_and_gradients_equal_double_backward(arguments: dict[str, Any], sigma_kind: str, mix: str) -> None:
    head, sigma, batch = score_head(**arguments), noise_level(sigma_kind), random_batch(mix=mix)
    context = batch.pop("context").requires_grad_()
    expected = loss_and_gradients(double_backward(head, context, sigma=sigma, **batch), head, context)
    result = loss_and_gradients(fused_score_matching(head, context, sigma=sigma, **batch), head, context)
    torch.testing.assert_close(result, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("chunk", [1, 5, 36, 37, 1000])
def test_result_does_not_depend_on_the_chunk_size(chunk: int) -> None:
    head, batch = score_head(hidden_features=(8, 8), residual=True, sinusoids=2), random_batch()
    context, sigma = batch.pop("context").requires_grad_(), noise_level("tensor")
    results = [
        loss_and_gradients(fused_score_matching(head, context, sigma=sigma, chunk_points=size, **batch), head, context)
        for size in (chunk, 4096)
    ]
    for result, reference in zip(*results, strict=True):
        torch.testing.assert_close(result, reference, rtol=1e-11, atol=1e-11)


def test_scalar_coefficients_apply_to_every_point() -> None:
    head, batch = score_head(hidden_features=(8, 8)), random_batch()
    context, x = batch["context"], batch["x"]
    numbers = [torch.tensor(value, dtype=FLOAT64) for value in (0.7, 0.4, -0.2)]
    columns = [number.expand(POINTS) for number in numbers]
    torch.testing.assert_close(
        fused_score_matching(head, context, x, 0.3, *numbers), fused_score_matching(head, context, x, 0.3, *columns)
    )


def test_pass_without_derivatives_gives_the_same_loss() -> None:
    head, batch = score_head(hidden_features=(8, 8)), random_batch(mix="dsm")
    context = batch["context"].requires_grad_()
    without_derivative = loss_and_gradients(fused_score_matching(head, sigma=0.3, **batch), head, context)
    batch["derivative"] = batch["derivative"].clone()
    batch["derivative"][0] = 1e-300  # forces the full pass
    with_derivative = loss_and_gradients(fused_score_matching(head, sigma=0.3, **batch), head, context)
    for without, full in zip(without_derivative, with_derivative, strict=True):
        torch.testing.assert_close(without, full, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("factor", [-2.5, 0.0, 1e-3])
def test_gradients_scale_with_a_factor_on_the_loss(factor: float) -> None:
    head, batch = score_head(hidden_features=(8, 8)), random_batch()
    context = batch["context"].requires_grad_()
    plain = loss_and_gradients(fused_score_matching(head, sigma=0.3, **batch), head, context)[1:]
    scaled = loss_and_gradients(factor * fused_score_matching(head, sigma=0.3, **batch), head, context)[1:]
    for result, reference in zip(scaled, plain, strict=True):
        torch.testing.assert_close(result, factor * reference)


def test_gradient_reaches_the_context_network() -> None:
    head, batch = score_head(hidden_features=(8, 8)), random_batch()
    inputs, network = torch.randn(POINTS, 5, dtype=FLOAT64), torch.nn.Linear(5, 3).double()
    del batch["context"]
    gradients = [
        torch.autograd.grad(loss(head, network(inputs), sigma=0.3, **batch), list(network.parameters()))
        for loss in (fused_score_matching, double_backward)
    ]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-10, atol=1e-10)


def test_parameters_have_gradients_if_contexts_have_none() -> None:
    head, batch = score_head(hidden_features=(8,)), random_batch()
    fused_score_matching(head, sigma=0.3, **batch).backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        assert bool((parameter.grad != 0.0).any()), name
    assert batch["context"].grad is None


def test_no_grad_works_and_inputs_stay_unchanged() -> None:
    head, batch = score_head(hidden_features=(8, 8)), random_batch()
    copies = {name: value.clone() for name, value in batch.items()}
    with torch.no_grad():
        loss = fused_score_matching(head, sigma=0.3, **batch)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, double_backward(head, sigma=0.3, **batch).detach())
    for name, value in batch.items():
        assert torch.equal(value, copies[name]), name


def hessian_vector_product(loss: Tensor, head: ScoreHead, context: Tensor) -> list[Tensor]:
    """Return the product of the Hessian by contexts and parameters with fixed random vectors."""
    inputs, generator = [context, *head.parameters()], torch.Generator().manual_seed(0)
    gradients = torch.autograd.grad(loss, inputs, create_graph=True, materialize_grads=True)
    product = sum((g * torch.randn(g.shape, dtype=FLOAT64, generator=generator)).sum() for g in gradients)
    return list(torch.autograd.grad(product, inputs, materialize_grads=True))


@pytest.mark.parametrize("compiled", [None, False, True])
@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("sigma_kind", ["none", "tensor"])
@pytest.mark.parametrize("arguments", HEADS, ids=range(len(HEADS)))
def test_second_derivatives_equal_those_of_double_backward(
    arguments: dict[str, Any], sigma_kind: str, mix: str, compiled: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused, "CHUNK_POINTS", 10)
    head, sigma, batch = score_head(**arguments), noise_level(sigma_kind), random_batch(mix=mix)
    context = batch.pop("context").requires_grad_()
    expected = hessian_vector_product(double_backward(head, context, sigma=sigma, **batch), head, context)
    loss = fused_score_matching(head, context, sigma=sigma, compiled=compiled, **batch)
    torch.testing.assert_close(hessian_vector_product(loss, head, context), expected, rtol=1e-9, atol=1e-9)


@needs_compiler
@pytest.mark.usefixtures("runs_in_c")
def test_second_derivatives_of_c_equal_those_of_torch() -> None:
    head, batch = score_head(torch.float32, hidden_features=(8, 8)), random_batch(dtype=torch.float32)
    context = batch.pop("context").requires_grad_()
    result, expected = (
        hessian_vector_product(fused_score_matching(head, context, sigma=0.3, compiled=c, **batch), head, context)
        for c in (True, False)
    )
    torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("function", [torch.square, torch.exp])
def test_derivatives_of_any_order_pass_gradcheck(function: Callable[[Tensor], Tensor]) -> None:
    head, batch = score_head(hidden_features=(4,)), random_batch(3)
    context, weight = batch.pop("context").requires_grad_(), head.hidden[0].weight

    def gradient(context: Tensor, _: Tensor) -> Tensor:
        loss = function(0.1 * fused_score_matching(head, context, sigma=0.3, **batch))
        return torch.autograd.grad(loss, weight, create_graph=True)[0]

    assert torch.autograd.gradgradcheck(gradient, (context, weight))


@pytest.mark.parametrize("vectorize", [False, True])
def test_hessians_by_every_method_agree(vectorize: bool) -> None:
    head, batch = score_head(hidden_features=(8,)), random_batch()
    inner = torch.autograd.functional.hessian

    def loss(weight: Tensor, function: Callable[..., Tensor] = fused_score_matching) -> Tensor:
        module = _Loss(head, function, batch)
        return torch.func.functional_call(module, {"head.output.weight": weight}, ())

    weight = head.output.weight.detach()
    expected = inner(partial(loss, function=double_backward), weight)
    torch.testing.assert_close(inner(loss, weight, vectorize=vectorize), expected)
    weight.requires_grad_()
    gradient = torch.func.grad(loss)(weight)[0]
    rows = [torch.autograd.grad(row, weight, retain_graph=True)[0] for row in gradient]
    torch.testing.assert_close(torch.stack(rows)[None], expected)


class _Loss(torch.nn.Module):
    def __init__(self, head: ScoreHead, function: Callable[..., Tensor], batch: dict[str, Tensor]) -> None:
        super().__init__()
        self.head, self.function, self.batch = head, function, batch

    def forward(self) -> Tensor:
        return self.function(self.head, sigma=0.3, **self.batch)


class _NotFused(ScoreHead):
    def scales(self, sigma: Sigma, like: Tensor) -> Scales:
        return super().scales(sigma, like)


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize("by_values", [False, True])
@pytest.mark.parametrize("compiled", [None, False, True])
@pytest.mark.parametrize("objective", [objectives.csm, objectives.dsm, partial(objectives.csm, mix="auto")])
def test_gradient_penalties_equal_those_without_fusion(
    objective: Callable[..., Tensor], compiled: bool | None, by_values: bool
) -> None:
    context, x = MADE(3, 4, (8,)), torch.randn(12, 3).requires_grad_(by_values)
    heads = ScoreHead(4, (8, 8)), _NotFused(4, (8, 8))
    heads[1].load_state_dict(heads[0].state_dict())
    penalties = []
    for head in heads:
        model = AutoregressiveModel(context, head, NoiseLadder(1.0, 0.1, 4))
        loss = objective(model, x, generator=torch.Generator().manual_seed(0), compiled=compiled)
        inputs = [x] if by_values else list(model.parameters())
        penalty = sum(g.square().sum() for g in torch.autograd.grad(loss, inputs, create_graph=True))
        penalties.append(torch.autograd.grad(penalty, list(model.parameters()), materialize_grads=True))
    torch.testing.assert_close(*penalties)


def test_empty_batch_has_zero_loss_and_gradients() -> None:
    head, batch = score_head(hidden_features=(8,)), random_batch(0)
    loss = fused_score_matching(head, sigma=0.3, **batch)
    loss.backward()
    assert loss.item() == 0.0
    assert all(bool((p.grad == 0.0).all()) for p in head.parameters() if p.grad is not None)


def test_single_precision_follows_double() -> None:
    head, batch = score_head(hidden_features=(8, 8)), random_batch(500)
    context = batch.pop("context")
    double = fused_score_matching(head, context, sigma=0.3, **batch)
    single = fused_score_matching(head.float(), context.float(), sigma=0.3, **{k: v.float() for k, v in batch.items()})
    assert single.dtype == torch.float32
    assert single.item() == pytest.approx(double.item(), rel=1e-5)


@pytest.mark.parametrize("mix", MIXES)
def test_backward_pass_saves_no_hidden_layers(mix: str) -> None:
    width, saved_sizes = 64, []

    def record(tensor: Tensor) -> Tensor:
        saved_sizes.append(tensor.numel())
        return tensor

    head = score_head(hidden_features=(width, width), sinusoids=2)
    weights = sum(parameter.numel() for parameter in head.parameters())
    for n in (500, 5000):
        batch = random_batch(n, mix)
        batch["context"].requires_grad_()
        saved_sizes.clear()
        with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
            fused_score_matching(head, sigma=0.3, **batch)
        assert sum(saved_sizes) == 2 * (batch["context"].numel() + weights)  # themselves and their gradients


def test_no_tensor_is_as_large_as_a_hidden_layer_of_all_points() -> None:
    """Compare the largest tensor that any operation creates at two numbers of points."""

    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            for tensor in tree_leaves(result):
                if isinstance(tensor, Tensor):
                    self.size = max(self.size, tensor.numel())
            return result

    head = score_head(hidden_features=(64, 64))
    sizes = []
    for n in (2000, 4000):
        batch = random_batch(n)
        batch["context"].requires_grad_()
        with Largest() as largest:
            fused_score_matching(head, sigma=0.3, chunk_points=100, **batch).backward()
        sizes.append(largest.size)
    assert sizes[0] < 2000 * 64
    assert sizes[1] == max(sizes[0], 4000 * 3)  # the contexts and their gradient


@pytest.fixture
def runs_in_c(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail a test that does not run in C, or that warns."""
    calls, compiled = [], _native.score_matching_forward_backward

    def counted(*arguments: Any) -> Any:
        calls.append(len(arguments[0]))
        return compiled(*arguments)

    monkeypatch.setattr(_native, "score_matching_forward_backward", counted)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
    assert calls


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CC", "no-such-compiler")
    forget_compilation()
    yield
    forget_compilation()


def forget_compilation() -> None:
    build._compiled_library.cache_clear()
    fused._warn_not_compiled.cache_clear()


@needs_compiler
@pytest.mark.usefixtures("runs_in_c")
@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("sigma_kind", ["none", "number"])
@pytest.mark.parametrize("sizes", [(64, 64), (17, 30), (1,), (5, 40, 6)])
@pytest.mark.parametrize("sinusoids", [0, 2])
def test_c_equals_torch_to_single_precision(sizes: tuple[int, ...], sinusoids: int, sigma_kind: str, mix: str) -> None:
    head, batch = score_head(hidden_features=sizes, sinusoids=sinusoids), random_batch(300, mix)
    assert_as_accurate_as_torch(head, batch, noise_level(sigma_kind))


@needs_compiler
@pytest.mark.usefixtures("runs_in_c")
@pytest.mark.parametrize("layers", [1, 2, 3, 4])
def test_c_supports_residual_layers(layers: int) -> None:
    head = score_head(hidden_features=(20,) * layers, residual=True, sinusoids=1)
    assert_as_accurate_as_torch(head, random_batch(300), 0.3)


@needs_compiler
@pytest.mark.usefixtures("runs_in_c")
@pytest.mark.parametrize("count", [0, 1, 63, 64, 129, 1500, 5000])
def test_c_shares_any_number_of_points_among_threads(count: int) -> None:
    """Loss and gradients of all points are sums over two parts of them."""
    head, batch = score_head(torch.float32, hidden_features=(9, 9)), random_batch(5000, dtype=torch.float32)
    parts = [{name: value[part] for name, value in batch.items()} for part in (slice(count), slice(count, None))]
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        (loss, context, *parameters), *of_parts = (in_c(head, points) for points in (batch, *parts))
    finally:
        torch.set_num_threads(threads)
    losses, contexts, *gradients = zip(*of_parts, strict=True)
    pairs = zip((loss, context, *parameters), (sum(losses), torch.cat(contexts), *map(sum, gradients)), strict=True)
    for whole, summed in pairs:
        torch.testing.assert_close(summed, whole, rtol=0.0, atol=1e-5 * whole.abs().max().item())


def in_c(head: ScoreHead, batch: dict[str, Tensor]) -> list[Tensor]:
    """Return the loss and its gradients by the contexts and by the parameters, computed in C."""
    context = batch["context"].clone().requires_grad_()
    loss = fused_score_matching(head, sigma=0.3, compiled=True, **batch | {"context": context})
    return loss_and_gradients(loss, head, context)


def assert_as_accurate_as_torch(head: ScoreHead, batch: dict[str, Tensor], sigma: Sigma) -> None:
    """Compare with double precision: C must be about as accurate as single precision in torch."""
    results = []
    for dtype, compiled in ((FLOAT64, False), (torch.float32, False), (torch.float32, True)):
        head, cast = head.to(dtype), {name: value.to(dtype) for name, value in batch.items()}
        context = cast.pop("context").requires_grad_()
        loss = fused_score_matching(head, context, sigma=sigma, compiled=compiled, **cast)
        results.append(loss_and_gradients(loss, head, context))
    for exact, reference, result in zip(*results, strict=True):
        allowed = max(4.0 * (reference - exact).abs().max().item(), 1e-5 * exact.abs().max().item())
        torch.testing.assert_close(result.double(), exact, rtol=0.0, atol=allowed)


@needs_compiler
@pytest.mark.usefixtures("runs_in_c")
def test_c_reads_rows_with_any_stride() -> None:
    head, batch = score_head(torch.float32, hidden_features=(8, 8)), random_batch(200, dtype=torch.float32)
    wide = torch.randn(200, 6)
    batch |= {"context": wide[:, ::2], "x": wide[:, 1], "weight": torch.ones(()).expand(200)}
    result, reference = (fused_score_matching(head, sigma=0.3, compiled=c, **batch) for c in (True, False))
    torch.testing.assert_close(result, reference)


@needs_compiler
@pytest.mark.usefixtures("runs_in_c")
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("sizes", [(8,), (8, 8)])
def test_c_propagates_nan_and_infinity(sizes: tuple[int, ...], value: float) -> None:
    head, batch = score_head(torch.float32, hidden_features=sizes), random_batch(200, dtype=torch.float32)
    batch["context"][150, 1] = value
    reference, result = (fused_score_matching(head, sigma=0.3, compiled=c, **batch) for c in (False, True))
    assert reference.isfinite() == result.isfinite()
    batch["x"][7] = float("nan")
    assert fused_score_matching(head, sigma=0.3, compiled=True, **batch).isnan()


@needs_compiler
@pytest.mark.usefixtures("runs_in_c")
def test_c_reads_half_precision_contexts_and_returns_their_gradient() -> None:
    head, batch = score_head(torch.float32, hidden_features=(8, 8)), random_batch(dtype=torch.float32)
    context = batch.pop("context").bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        fused_score_matching(head, context, sigma=0.3, compiled=True, **batch).backward()
    expected = context.detach().float().requires_grad_()
    fused_score_matching(head, expected, sigma=0.3, compiled=False, **batch).backward()
    assert context.grad is not None
    assert expected.grad is not None
    torch.testing.assert_close(context.grad, expected.grad.bfloat16(), rtol=1e-2, atol=1e-2)


@needs_compiler
def test_tensor_subclasses_run_in_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "score_matching_forward_backward", None)
    head = score_head(torch.float32, hidden_features=(8, 8))
    x = torch.randn(5).as_subclass(type("Traced", (Tensor,), {}))
    assert (
        fused._choose_implementation(head, x, True)
        == fused._choose_implementation(head, x, None)
        == (fused._forward_backward, fused.CHUNK_POINTS)
    )
    assert fused._choose_implementation(head, torch.randn(5), None)[0] is None  # C


@needs_compiler
@pytest.mark.usefixtures("runs_in_c")
def test_c_is_the_default_if_available() -> None:
    head, batch = score_head(torch.float32, hidden_features=(8, 8)), random_batch(dtype=torch.float32)
    fused_score_matching(head, sigma=0.3, **batch)


def test_double_precision_runs_in_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "score_matching_forward_backward", None)
    head, batch = score_head(hidden_features=(8,)), random_batch()
    compiled, reference = (fused_score_matching(head, sigma=0.3, compiled=c, **batch) for c in (True, False))
    assert torch.equal(compiled, reference)


@pytest.mark.usefixtures("no_compiler")
def test_failed_compilation_warns_once_and_falls_back_to_torch() -> None:
    head, batch = score_head(torch.float32, hidden_features=(8,)), random_batch(dtype=torch.float32)
    expected = fused_score_matching(head, sigma=0.3, compiled=False, **batch)
    with pytest.warns(UserWarning, match="no C compiler: looked for no-such-compiler$") as caught:
        results = [fused_score_matching(head, sigma=0.3, compiled=True, chunk_points=10, **batch) for _ in range(2)]
    assert len(caught) == 1
    assert caught[0].filename == __file__
    torch.testing.assert_close(results, [expected, expected])


@pytest.mark.usefixtures("no_compiler")
def test_default_without_a_compiler_is_silent() -> None:
    head, batch = score_head(torch.float32, hidden_features=(8,)), random_batch(dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        results, expected = (fused_score_matching(head, sigma=0.3, compiled=c, **batch) for c in (None, False))
    assert torch.equal(results, expected)


def test_failed_torch_compile_warns_once_and_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """``torch.compile`` is for accelerators; here the processor stands in for one."""

    def broken(*_: Any, **__: Any) -> Any:
        def compiled(*_: Any) -> Any:
            raise RuntimeError("no compiler\nand a long story")

        return compiled

    head, batch = score_head(hidden_features=(8,)), random_batch()
    expected = fused_score_matching(head, sigma=0.3, **batch)
    monkeypatch.setattr(torch, "compile", broken)
    chunk = fused._compiled_forward_backward.__wrapped__()
    monkeypatch.setattr(fused, "_choose_implementation", lambda *_: (chunk, 10))
    with pytest.warns(UserWarning, match="no compiler$") as caught:
        results = [fused_score_matching(head, sigma=0.3, **batch) for _ in range(2)]
    assert len(caught) == 1  # although there were eight chunks
    torch.testing.assert_close(results, [expected, expected])


@pytest.mark.parametrize("shape", [(POINTS, 2), (POINTS, 4), (POINTS + 1, 3), (1, 3), (POINTS,)])
@pytest.mark.parametrize("dtype", [torch.float32, FLOAT64])
def test_contexts_of_another_shape_are_rejected(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    head, batch = score_head(dtype, hidden_features=(8,)), random_batch(dtype=dtype)
    with pytest.raises(ValueError, match=r"context: expected \(37, 3\), got"):
        fused_score_matching(head, **batch | {"context": torch.zeros(shape, dtype=dtype)}, sigma=0.3)

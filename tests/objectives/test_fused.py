"""Fused score matching: the loss and gradients of autograd, in bounded memory."""

import shutil
import warnings
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor

from arcsm import ScoreHead, _native
from arcsm._native import build
from arcsm.heads.base import Sigma
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
@pytest.mark.parametrize("sigma_kind", ["none", "tensor"])
@pytest.mark.parametrize("arguments", HEADS, ids=range(len(HEADS)))
def test_loss_and_gradients_equal_double_backward(arguments: dict[str, Any], sigma_kind: str, mix: str) -> None:
    head, sigma, batch = score_head(**arguments), noise_level(sigma_kind), random_batch(mix=mix)
    context = batch.pop("context").requires_grad_()
    expected = loss_and_gradients(double_backward(head, context, sigma=sigma, **batch), head, context)
    for chunk in (10, 1000):
        loss = fused_score_matching(head, context, sigma=sigma, chunk_points=chunk, **batch)
        result = loss_and_gradients(loss, head, context)
        torch.testing.assert_close(result, expected, rtol=1e-10, atol=1e-10)


def hessian_vector_product(loss: Tensor, head: ScoreHead, context: Tensor) -> list[Tensor]:
    """Return the product of the Hessian by contexts and parameters with fixed random vectors."""
    inputs, generator = [context, *head.parameters()], torch.Generator().manual_seed(0)
    gradients = torch.autograd.grad(loss, inputs, create_graph=True, materialize_grads=True)
    product = sum((g * torch.randn(g.shape, dtype=FLOAT64, generator=generator)).sum() for g in gradients)
    return list(torch.autograd.grad(product, inputs, materialize_grads=True))


@pytest.mark.parametrize("mix", ["dsm", "mixed"])
@pytest.mark.parametrize("arguments", HEADS, ids=range(len(HEADS)))
def test_second_derivatives_equal_those_of_double_backward(
    arguments: dict[str, Any], mix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused, "CHUNK_POINTS", 10)
    head, sigma, batch = score_head(**arguments), noise_level("tensor"), random_batch(mix=mix)
    context = batch.pop("context").requires_grad_()
    expected = hessian_vector_product(double_backward(head, context, sigma=sigma, **batch), head, context)
    loss = fused_score_matching(head, context, sigma=sigma, **batch)
    torch.testing.assert_close(hessian_vector_product(loss, head, context), expected, rtol=1e-9, atol=1e-9)


def test_empty_batch_has_zero_loss_and_gradients() -> None:
    head, batch = score_head(hidden_features=(8,)), random_batch(0)
    loss = fused_score_matching(head, sigma=0.3, **batch)
    loss.backward()
    assert loss.item() == 0.0
    assert all(bool((p.grad == 0.0).all()) for p in head.parameters() if p.grad is not None)


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
    monkeypatch.setattr(build, "_compiled_library", lru_cache(build._compiled_library.__wrapped__))
    fused._warn_not_compiled.cache_clear()
    yield
    fused._warn_not_compiled.cache_clear()


@needs_compiler
@pytest.mark.usefixtures("runs_in_c")
@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize(
    ("sizes", "sinusoids", "residual", "sigma"),
    [
        ((17, 30), 2, False, None),
        ((1,), 0, False, 0.3),
        ((5, 40, 6), 0, False, 0.3),
        ((20,), 1, True, 0.3),
        ((20, 20, 20), 1, True, None),
    ],
)
def test_c_equals_torch_to_single_precision(
    sizes: tuple[int, ...], sinusoids: int, residual: bool, sigma: float | None, mix: str
) -> None:
    """Compare with double precision: C must be about as accurate as single precision in torch."""
    head, batch = score_head(hidden_features=sizes, sinusoids=sinusoids, residual=residual), random_batch(131, mix)
    results = []
    for dtype, compiled in ((FLOAT64, False), (torch.float32, False), (torch.float32, None)):
        head, cast = head.to(dtype), {name: value.to(dtype) for name, value in batch.items()}
        context = cast.pop("context").requires_grad_()
        loss = fused_score_matching(head, context, sigma=sigma, compiled=compiled, **cast)
        results.append(loss_and_gradients(loss, head, context))
    for exact, reference, result in zip(*results, strict=True):
        allowed = max(4.0 * (reference - exact).abs().max().item(), 1e-5 * exact.abs().max().item())
        torch.testing.assert_close(result.double(), exact, rtol=0.0, atol=allowed)


@needs_compiler
@pytest.mark.usefixtures("runs_in_c")
@pytest.mark.parametrize("count", [0, 1, 64, 129, 1000])
def test_c_shares_any_number_of_points_among_threads(count: int) -> None:
    """Loss and gradients of all points are sums over two parts of them."""
    head, batch = score_head(torch.float32, hidden_features=(9, 9)), random_batch(1000, dtype=torch.float32)
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
def test_c_propagates_nan_and_infinity(value: float) -> None:
    head, batch = score_head(torch.float32, hidden_features=(8, 8)), random_batch(200, dtype=torch.float32)
    batch["context"][150, 1] = value
    reference, result = (fused_score_matching(head, sigma=0.3, compiled=c, **batch) for c in (False, True))
    assert reference.isfinite() == result.isfinite()
    batch["x"][7] = float("nan")
    assert fused_score_matching(head, sigma=0.3, compiled=True, **batch).isnan()


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


@pytest.mark.parametrize("shape", [(POINTS, 2), (1, 3), (POINTS,)])
@pytest.mark.parametrize("dtype", [torch.float32, FLOAT64])
def test_contexts_of_another_shape_are_rejected(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    head, batch = score_head(dtype, hidden_features=(8,)), random_batch(dtype=dtype)
    with pytest.raises(ValueError, match=r"context: expected \(37, 3\), got"):
        fused_score_matching(head, **batch | {"context": torch.zeros(shape, dtype=dtype)}, sigma=0.3)

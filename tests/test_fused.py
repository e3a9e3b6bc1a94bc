"""The fused score matching loss: autograd's own loss and gradients, in bounded memory."""

import shutil
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

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


def score_head(dtype: torch.dtype = FLOAT64, **arguments: Any) -> ScoreHead:
    """A score head whose weights are all drawn anew, so that no term of a gradient is small by chance."""
    head = ScoreHead(context_features=3, **arguments).to(dtype)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_().mul_(2.0 / parameter.shape[-1] ** 0.5)
    return head


def points(n: int = POINTS, mix: str = "mixed", dtype: torch.dtype = FLOAT64) -> dict[str, Tensor]:
    """Arguments of the loss; some values lie where the head's window falls, some beyond it."""
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


def sigma_of(kind: str, n: int = POINTS) -> Sigma:
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
    """The same loss with the derivative of the score by autograd."""
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
    head, sigma, given = score_head(**arguments), sigma_of(sigma_kind), points(mix=mix)
    context = given.pop("context").requires_grad_()
    wanted = loss_and_gradients(double_backward(head, context, sigma=sigma, **given), head, context)
    got = loss_and_gradients(fused_score_matching(head, context, sigma=sigma, **given), head, context)
    for ours, reference in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("chunk", [1, 5, 36, 37, 1000])
def test_result_does_not_depend_on_the_chunk(chunk: int) -> None:
    head, given = score_head(hidden_features=(8, 8), residual=True, sinusoids=2), points()
    context, sigma = given.pop("context").requires_grad_(), sigma_of("tensor")
    results = [
        loss_and_gradients(fused_score_matching(head, context, sigma=sigma, chunk=size, **given), head, context)
        for size in (chunk, 4096)
    ]
    for ours, reference in zip(*results, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-11, atol=1e-11)


def test_numbers_stand_for_the_same_value_at_every_point() -> None:
    head, given = score_head(hidden_features=(8, 8)), points()
    context, x = given["context"], given["x"]
    numbers = [torch.tensor(value, dtype=FLOAT64) for value in (0.7, 0.4, -0.2)]
    columns = [number.expand(POINTS) for number in numbers]
    torch.testing.assert_close(
        fused_score_matching(head, context, x, 0.3, *numbers), fused_score_matching(head, context, x, 0.3, *columns)
    )


def test_without_the_derivative_its_pass_is_left_out_and_the_loss_is_the_same() -> None:
    head, given = score_head(hidden_features=(8, 8)), points(mix="dsm")
    context = given["context"].requires_grad_()
    off = loss_and_gradients(fused_score_matching(head, sigma=0.3, **given), head, context)
    given["derivative"] = given["derivative"].clone()
    given["derivative"][0] = 1e-300  # forces the full pass
    on = loss_and_gradients(fused_score_matching(head, sigma=0.3, **given), head, context)
    for without, full in zip(off, on, strict=True):
        torch.testing.assert_close(without, full, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("factor", [-2.5, 0.0, 1e-3])
def test_gradients_scale_with_the_factor_behind_the_loss(factor: float) -> None:
    head, given = score_head(hidden_features=(8, 8)), points()
    context = given["context"].requires_grad_()
    plain = loss_and_gradients(fused_score_matching(head, sigma=0.3, **given), head, context)[1:]
    scaled = loss_and_gradients(factor * fused_score_matching(head, sigma=0.3, **given), head, context)[1:]
    for ours, reference in zip(scaled, plain, strict=True):
        torch.testing.assert_close(ours, factor * reference)


def test_gradient_flows_on_into_the_network_that_made_the_contexts() -> None:
    head, given = score_head(hidden_features=(8, 8)), points()
    inputs, network = torch.randn(POINTS, 5, dtype=FLOAT64), torch.nn.Linear(5, 3).double()
    del given["context"]
    gradients = [
        torch.autograd.grad(loss(head, network(inputs), sigma=0.3, **given), list(network.parameters()))
        for loss in (fused_score_matching, double_backward)
    ]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-10, atol=1e-10)


def test_parameters_learn_where_the_contexts_do_not() -> None:
    head, given = score_head(hidden_features=(8,)), points()
    fused_score_matching(head, sigma=0.3, **given).backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        assert bool((parameter.grad != 0.0).any()), name
    assert given["context"].grad is None


def test_works_without_gradients_and_leaves_the_inputs_alone() -> None:
    head, given = score_head(hidden_features=(8, 8)), points()
    copies = {name: value.clone() for name, value in given.items()}
    with torch.no_grad():
        loss = fused_score_matching(head, sigma=0.3, **given)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, double_backward(head, sigma=0.3, **given).detach())
    for name, value in given.items():
        assert torch.equal(value, copies[name]), name


def test_second_derivatives_are_refused_rather_than_wrong() -> None:
    head, given = score_head(hidden_features=(8,)), points()
    context, factor = given["context"].requires_grad_(), torch.ones((), dtype=FLOAT64, requires_grad=True)
    loss = factor * fused_score_matching(head, sigma=0.3, **given)
    (gradient,) = torch.autograd.grad(loss, context, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_no_points_give_no_loss_and_no_gradient() -> None:
    head, given = score_head(hidden_features=(8,)), points(0)
    loss = fused_score_matching(head, sigma=0.3, **given)
    loss.backward()
    assert loss.item() == 0.0
    assert all(bool((p.grad == 0.0).all()) for p in head.parameters() if p.grad is not None)


def test_single_precision_follows_double() -> None:
    head, given = score_head(hidden_features=(8, 8)), points(500)
    context = given.pop("context")
    double = fused_score_matching(head, context, sigma=0.3, **given)
    single = fused_score_matching(head.float(), context.float(), sigma=0.3, **{k: v.float() for k, v in given.items()})
    assert single.dtype == torch.float32
    assert single.item() == pytest.approx(double.item(), rel=1e-5)


@pytest.mark.parametrize("mix", MIXES)
def test_what_is_kept_for_the_backward_pass_has_no_hidden_layer_in_it(mix: str) -> None:
    width, kept = 64, []

    def remember(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    head = score_head(hidden_features=(width, width), sinusoids=2)
    weights = sum(parameter.numel() for parameter in head.parameters())
    for n in (500, 5000):
        given = points(n, mix)
        given["context"].requires_grad_()
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
            fused_score_matching(head, sigma=0.3, **given)
        assert sum(kept) == given["context"].numel() + weights


def test_no_tensor_is_as_large_as_a_hidden_layer_of_all_points() -> None:
    """The largest tensor that any operation makes while the loss is computed, by the number of points."""

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
        given = points(n)
        given["context"].requires_grad_()
        with Largest() as largest:
            fused_score_matching(head, sigma=0.3, chunk=100, **given).backward()
        sizes.append(largest.size)
    assert sizes[0] < 2000 * 64
    assert sizes[1] == max(sizes[0], 4000 * 3)  # the contexts and their gradient


needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="needs a C compiler, and none is on the path"
)


@pytest.fixture
def in_c(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """That the test walked in C, and without a warning."""
    calls, walk = [], _native.walk

    def counted(*arguments: Any) -> Any:
        calls.append(len(arguments[0]))
        return walk(*arguments)

    monkeypatch.setattr(_native, "walk", counted)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
    assert calls


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CC", "no-such-compiler")
    forget_compiled()
    yield
    forget_compiled()


def forget_compiled() -> None:
    build._attempt.cache_clear()
    fused._say_that_it_is_not_compiled.cache_clear()


@needs_compiler
@pytest.mark.usefixtures("in_c")
@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("sigma_kind", ["none", "number"])
@pytest.mark.parametrize("sizes", [(64, 64), (17, 30), (1,), (5, 40, 6)])
@pytest.mark.parametrize("sinusoids", [0, 2])
def test_in_c_it_is_the_same_to_single_precision(
    sizes: tuple[int, ...], sinusoids: int, sigma_kind: str, mix: str
) -> None:
    head, given = score_head(hidden_features=sizes, sinusoids=sinusoids), points(300, mix)
    assert_as_exact_as_torch(head, given, sigma_of(sigma_kind))


@needs_compiler
@pytest.mark.usefixtures("in_c")
@pytest.mark.parametrize("layers", [1, 2, 3, 4])
def test_in_c_with_residual_layers(layers: int) -> None:
    head = score_head(hidden_features=(20,) * layers, residual=True, sinusoids=1)
    assert_as_exact_as_torch(head, points(300), 0.3)


@needs_compiler
@pytest.mark.usefixtures("in_c")
@pytest.mark.parametrize("count", [1, 63, 64, 129, 1500, 5000])
def test_in_c_with_any_number_of_points_on_several_threads(count: int) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert_as_exact_as_torch(score_head(hidden_features=(9, 9)), points(count), 0.3)
    finally:
        torch.set_num_threads(threads)


def assert_as_exact_as_torch(head: ScoreHead, given: dict[str, Tensor], sigma: Sigma) -> None:
    """Held against double precision, where C may not be much further off than single precision in torch."""
    found = []
    for dtype, compiled in ((FLOAT64, False), (torch.float32, False), (torch.float32, True)):
        head, cast = head.to(dtype), {name: value.to(dtype) for name, value in given.items()}
        context = cast.pop("context").requires_grad_()
        loss = fused_score_matching(head, context, sigma=sigma, compiled=compiled, **cast)
        found.append(loss_and_gradients(loss, head, context))
    for exact, in_torch, ours in zip(*found, strict=True):
        allowed = max(4.0 * (in_torch - exact).abs().max().item(), 1e-5 * exact.abs().max().item())
        torch.testing.assert_close(ours.double(), exact, rtol=0.0, atol=allowed)


@needs_compiler
@pytest.mark.usefixtures("in_c")
def test_in_c_rows_may_lie_anywhere() -> None:
    head, given = score_head(torch.float32, hidden_features=(8, 8)), points(200, dtype=torch.float32)
    wide = torch.randn(200, 6)
    given |= {"context": wide[:, ::2], "x": wide[:, 1], "weight": torch.ones(()).expand(200)}
    ours, in_torch = (fused_score_matching(head, sigma=0.3, compiled=c, **given) for c in (True, False))
    torch.testing.assert_close(ours, in_torch)


@needs_compiler
@pytest.mark.usefixtures("in_c")
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("sizes", [(8,), (8, 8)])
def test_in_c_what_is_not_a_number_stays_so(sizes: tuple[int, ...], value: float) -> None:
    head, given = score_head(torch.float32, hidden_features=sizes), points(200, dtype=torch.float32)
    given["context"][150, 1] = value
    in_torch, ours = (fused_score_matching(head, sigma=0.3, compiled=c, **given) for c in (False, True))
    assert in_torch.isfinite() == ours.isfinite()
    given["x"][7] = float("nan")
    assert fused_score_matching(head, sigma=0.3, compiled=True, **given).isnan()


@needs_compiler
@pytest.mark.usefixtures("in_c")
def test_in_c_contexts_of_half_precision_are_read_and_have_a_gradient() -> None:
    head, given = score_head(torch.float32, hidden_features=(8, 8)), points(dtype=torch.float32)
    context = given.pop("context").bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        fused_score_matching(head, context, sigma=0.3, compiled=True, **given).backward()
    wanted = context.detach().float().requires_grad_()
    fused_score_matching(head, wanted, sigma=0.3, compiled=False, **given).backward()
    assert context.grad is not None
    assert wanted.grad is not None
    torch.testing.assert_close(context.grad, wanted.grad.bfloat16(), rtol=1e-2, atol=1e-2)


@needs_compiler
def test_what_stands_in_for_tensors_does_not_walk_in_c(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "walk", None)
    head = score_head(torch.float32, hidden_features=(8, 8))
    x = torch.randn(5).as_subclass(type("Traced", (Tensor,), {}))
    assert fused._way(head, x, True) == fused._way(head, x, None) == (fused._chunk, fused.CHUNK)
    assert fused._way(head, torch.randn(5), None)[0] is fused._native_chunk


@needs_compiler
@pytest.mark.usefixtures("in_c")
def test_by_itself_it_walks_in_c_where_that_is_possible() -> None:
    head, given = score_head(torch.float32, hidden_features=(8, 8)), points(dtype=torch.float32)
    fused_score_matching(head, sigma=0.3, **given)


def test_doubles_do_not_walk_in_c(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "walk", None)
    head, given = score_head(hidden_features=(8,)), points()
    compiled, in_torch = (fused_score_matching(head, sigma=0.3, compiled=c, **given) for c in (True, False))
    assert torch.equal(compiled, in_torch)


@pytest.mark.usefixtures("no_compiler")
def test_where_compilation_fails_it_goes_on_without_and_says_so_once() -> None:
    head, given = score_head(torch.float32, hidden_features=(8,)), points(dtype=torch.float32)
    wanted = fused_score_matching(head, sigma=0.3, compiled=False, **given)
    with pytest.warns(UserWarning, match="no C compiler: looked for no-such-compiler$") as caught:
        found = [fused_score_matching(head, sigma=0.3, compiled=True, chunk=10, **given) for _ in range(2)]
    assert len(caught) == 1
    assert caught[0].filename == __file__
    torch.testing.assert_close(found, [wanted, wanted])


@pytest.mark.usefixtures("no_compiler")
def test_without_a_compiler_and_without_being_asked_it_says_nothing() -> None:
    head, given = score_head(torch.float32, hidden_features=(8,)), points(dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found, wanted = (fused_score_matching(head, sigma=0.3, compiled=c, **given) for c in (None, False))
    assert torch.equal(found, wanted)


def test_where_torch_cannot_compile_it_goes_on_without_and_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """On an accelerator; here the way there is taken on the processor."""

    def broken(*_: Any, **__: Any) -> Any:
        def walk(*_: Any) -> Any:
            raise RuntimeError("no compiler\nand a long story")

        return walk

    head, given = score_head(hidden_features=(8,)), points()
    wanted = fused_score_matching(head, sigma=0.3, **given)
    monkeypatch.setattr(torch, "compile", broken)
    chunk = fused._compiled_chunk.__wrapped__()
    monkeypatch.setattr(fused, "_way", lambda *_: (chunk, 10))
    with pytest.warns(UserWarning, match="no compiler$") as caught:
        found = [fused_score_matching(head, sigma=0.3, **given) for _ in range(2)]
    assert len(caught) == 1  # although there were eight chunks
    torch.testing.assert_close(found, [wanted, wanted])


@pytest.mark.parametrize("shape", [(POINTS, 2), (POINTS, 4), (POINTS + 1, 3), (1, 3), (POINTS,)])
@pytest.mark.parametrize("dtype", [torch.float32, FLOAT64])
def test_contexts_of_another_shape_are_refused(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    head, given = score_head(dtype, hidden_features=(8,)), points(dtype=dtype)
    with pytest.raises(ValueError, match=r"context: expected \(37, 3\), got"):
        fused_score_matching(head, **given | {"context": torch.zeros(shape, dtype=dtype)}, sigma=0.3)

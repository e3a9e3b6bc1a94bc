"""Latent chains in C against the same in torch and double precision."""

import shutil

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from arcsm import _native
from arcsm._native import build
from arcsm.implicit import AutoregressiveEncoder, DenseTrunk
from arcsm.implicit.networks.autoregressive_map import autoregressive_map, conditional_moments

COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C compiler, and none is on the path")


def random_chain(rows: int, count: int, units: int) -> list[Tensor]:
    """Return random arguments of :func:`arcsm._native.latent_chain_forward`."""
    shapes = [(rows, count, units), (rows, count), (count, units), (count, count, units), (count, units)]
    fixed, noise, noise_weight, latent_weight, output_weight = (torch.randn(shape) for shape in shapes)
    return [fixed, noise, noise_weight, latent_weight / count**0.5, output_weight / units]


def chain_and_gradients(inputs: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    inputs = [t.to(dtype).requires_grad_() for t in inputs]
    u = autoregressive_map(*inputs)
    downstream = torch.linspace(-1.0, 1.0, u.numel(), dtype=dtype).view_as(u)
    return [u.detach(), *torch.autograd.grad((u * downstream).sum(), inputs)]


@pytest.mark.parametrize(("rows", "count", "units"), [(1, 1, 1), (5, 3, 7), (64, 8, 32), (129, 16, 32), (300, 4, 33)])
def test_latents_and_gradients_match_double_precision(
    rows: int, count: int, units: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference is double precision, which runs in torch."""
    inputs, calls, chain = random_chain(rows, count, units), [], _native.latent_chain_forward
    exact = chain_and_gradients(inputs, torch.float64)
    monkeypatch.setattr(
        _native, "latent_chain_forward", lambda *tensors: calls.append(len(tensors[0])) or chain(*tensors)
    )
    for expected, result in zip(exact, chain_and_gradients(inputs, torch.float32), strict=True):
        torch.testing.assert_close(
            result.double(), expected, rtol=0.0, atol=5e-6 * max(1.0, expected.abs().max().item())
        )
    assert calls == [rows]


@pytest.mark.parametrize(("rows", "count", "units"), [(1, 1, 1), (5, 3, 7), (129, 16, 32), (600, 4, 33), (0, 3, 4)])
def test_moments_match_double_precision(rows: int, count: int, units: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference is double precision, which runs in torch."""
    fixed, u, noise_weight, latent_weight, output_weight = random_chain(rows, count, units)
    inputs = [fixed, u, noise_weight, latent_weight, 5.0 * output_weight]
    calls, moments = [], _native.latent_chain_moments
    exact = conditional_moments(*(t.double() for t in inputs))
    monkeypatch.setattr(_native, "latent_chain_moments", lambda *args: calls.append(len(args[0])) or moments(*args))
    for expected, result in zip(exact, conditional_moments(*inputs), strict=True):
        assert result.shape == (rows, count)
        torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-5)
    assert calls == [rows]


def test_moments_reject_shapes_that_do_not_match() -> None:
    inputs = random_chain(5, 3, 4)
    with pytest.raises(ValueError, match="shapes do not match"):
        _native.latent_chain_moments(inputs[0], inputs[1][:4], *inputs[2:], [0.0], [1.0])
    for nodes, weights in (([], []), ([0.0] * 17, [0.1] * 17), ([0.0, 1.0], [1.0])):
        with pytest.raises(ValueError, match="nodes: expected 1 to 16 with a weight each"):
            _native.latent_chain_moments(*inputs, nodes, weights)


def test_rows_may_have_any_stride() -> None:
    fixed, noise, *weights = random_chain(10, 3, 4)
    spread = torch.randn(10, 6)
    spread[:, ::2] = noise
    expected = _native.latent_chain_forward(fixed, noise, *weights).u
    assert torch.equal(
        _native.latent_chain_forward(fixed.transpose(0, 1).contiguous().transpose(0, 1), spread[:, ::2], *weights).u,
        expected,
    )


def test_small_sums_keep_their_relative_accuracy() -> None:
    fixed = torch.logspace(-6.0, 0.5, 50).unsqueeze(-1).unsqueeze(-1)
    zero, one = torch.zeros(50, 1), torch.ones(1, 1)
    result = _native.latent_chain_forward(fixed, zero, one, one.unsqueeze(0), one).u
    torch.testing.assert_close(result.double(), fixed.double().tanh().squeeze(-1), rtol=1e-6, atol=0.0)


def test_threads_share_many_rows() -> None:
    inputs, threads = random_chain(3000, 3, 4), torch.get_num_threads()
    result = []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            result.append(chain_and_gradients(inputs, torch.float32))
            assert len(_native.latent_chain_forward(*inputs).hidden) == count
    finally:
        torch.set_num_threads(threads)
    for one, several in zip(*result, strict=True):
        torch.testing.assert_close(several, one, rtol=1e-5, atol=1e-5 * one.abs().max().item())


def test_no_rows_give_zero_gradients() -> None:
    assert [t.shape for t in chain_and_gradients(random_chain(0, 3, 4), torch.float32)] == [
        (0, 3), (0, 3, 4), (0, 3), (3, 4), (3, 3, 4), (3, 4),
    ]  # fmt: skip


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinity_stay_in_their_row(value: float) -> None:
    inputs = random_chain(70, 4, 5)
    inputs[1][66, 1] = value
    u = _native.latent_chain_forward(*inputs).u
    wrong = ~u.isfinite()
    assert wrong[66].tolist() == [False, True, True, True] if value != value else bool(wrong[66, 1])
    assert not bool(wrong[torch.arange(70) != 66].any())


def test_fake_and_traced_tensors_run_in_torch() -> None:
    encoder = AutoregressiveEncoder(DenseTrunk(5, (16,)), 3)
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert encoder(torch.randn(4, 5), torch.randn(4, 7, 3)).shape == (4, 7, 3)
    exported = torch.export.export(encoder, (torch.randn(4, 5), torch.randn(4, 7, 3))).module()
    x, noise = torch.randn(4, 5), torch.randn(4, 7, 3)
    with torch.no_grad():
        torch.testing.assert_close(exported(x, noise), encoder(x, noise))


@pytest.mark.parametrize(
    "wrong", ["grad_u of another shape", "grad_u of doubles", "u of fewer rows", "hidden of fewer rows"]
)
def test_backward_rejects_arguments_that_do_not_match(wrong: str) -> None:
    inputs = random_chain(150, 3, 4)
    there, grad_u = _native.latent_chain_forward(*inputs), torch.ones(150, 3)
    _native.latent_chain_backward(grad_u, *inputs[1:], there)
    fewer = _native.latent_chain_forward(inputs[0][:50], inputs[1][:50], *inputs[2:])
    arguments = {
        "grad_u of another shape": (torch.ones(1, 1), there),
        "grad_u of doubles": (grad_u.double(), there),
        "u of fewer rows": (grad_u, _native.LatentChain(fewer.u, there.hidden)),
        "hidden of fewer rows": (grad_u, _native.LatentChain(there.u, fewer.hidden)),
    }[wrong]
    with pytest.raises((ValueError, TypeError), match=r"expected|match"):
        _native.latent_chain_backward(arguments[0], *inputs[1:], arguments[1])


@pytest.mark.parametrize("place", range(5))
def test_forward_rejects_shapes_that_do_not_match(place: int) -> None:
    inputs = random_chain(5, 3, 7)
    _native.latent_chain_forward(*inputs)
    with pytest.raises(ValueError, match="shapes do not match"):
        _native.latent_chain_forward(*inputs[:place], inputs[place][:-1], *inputs[place + 1 :])
    with pytest.raises(TypeError, match="float32"):
        _native.latent_chain_forward(*inputs[:place], inputs[place].double(), *inputs[place + 1 :])


@pytest.mark.usefixtures("fresh_compilation")
def test_latents_are_the_same_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = random_chain(20, 5, 6)
    in_c = chain_and_gradients(inputs, torch.float32)
    monkeypatch.setenv("CC", "no-such-compiler")
    build._compiled_library.cache_clear()
    for expected, result in zip(in_c, chain_and_gradients(inputs, torch.float32), strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)

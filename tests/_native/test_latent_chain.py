"""Latent chains in C against the same in torch and double precision."""

import pytest
import torch
from torch import Tensor

from arcsm import _native
from arcsm.implicit.networks.autoregressive_map import autoregressive_map, conditional_moments


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


@pytest.mark.parametrize(("rows", "count", "units"), [(0, 3, 4), (1, 1, 1), (5, 3, 7), (129, 4, 33)])
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
            result.double(), expected, rtol=0.0, atol=5e-6 * max([1.0, *expected.abs().flatten().tolist()])
        )
    assert calls == [rows]


@pytest.mark.parametrize(("rows", "count", "units"), [(0, 3, 4), (1, 1, 1), (5, 3, 7), (129, 4, 33)])
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


def test_threads_share_many_rows() -> None:
    inputs, threads = random_chain(1000, 3, 4), torch.get_num_threads()
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


def test_arguments_that_do_not_match_are_errors() -> None:
    inputs = random_chain(150, 3, 4)
    there, grad_u = _native.latent_chain_forward(*inputs), torch.ones(150, 3)
    fewer = _native.latent_chain_forward(inputs[0][:50], inputs[1][:50], *inputs[2:])
    _native.latent_chain_backward(grad_u, *inputs[1:], there)
    for chain in (_native.LatentChain(fewer.u, there.hidden), _native.LatentChain(there.u, fewer.hidden)):
        with pytest.raises(ValueError, match=r"expected|match"):
            _native.latent_chain_backward(grad_u, *inputs[1:], chain)
    with pytest.raises(ValueError, match="shapes do not match"):
        _native.latent_chain_forward(inputs[0][:-1], *inputs[1:])
    with pytest.raises(TypeError, match="float32"):
        _native.latent_chain_forward(inputs[0].double(), *inputs[1:])
    with pytest.raises(ValueError, match="shapes do not match"):
        _native.latent_chain_moments(inputs[0], inputs[1][:4], *inputs[2:], [0.0], [1.0])
    with pytest.raises(ValueError, match="nodes: expected 1 to 16 with a weight each"):
        _native.latent_chain_moments(*inputs, [0.0] * 17, [0.1] * 17)

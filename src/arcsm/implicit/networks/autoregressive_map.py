"""The map from noise to latents of an autoregressive encoder, and the moments of its conditionals.

In the encoder's units (paper, Appendix D.2, :math:`z_d = h_{\\phi,d}(\\epsilon_d, z_{<d}, x)`)

.. math:: u_d = \\epsilon_d + w_d^\\top \\tanh(f_d + v_d \\epsilon_d + B_d u_{<d})

Both functions run in C where possible (:mod:`arcsm._native`). Their arguments are the inputs' share :math:`f` of the
pre-activations, ``(N, D, U)``, the noise :math:`\\epsilon` or the latents :math:`u`, ``(N, D)``, and the weights
:math:`v` ``(D, U)``, :math:`B` ``(D, D, U)`` (only the entries for earlier latents are used) and :math:`w`
``(D, U)``.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from arcsm import _native

_nodes, _weights = np.polynomial.hermite_e.hermegauss(8)
_NODES, _WEIGHTS = _nodes.tolist(), (_weights / _weights.sum()).tolist()  # of expectations over a normal variable


def autoregressive_map(
    from_input: Tensor, noise: Tensor, noise_weight: Tensor, latent_weight: Tensor, output_weight: Tensor
) -> Tensor:
    """Return the latents :math:`u`, ``(N, D)``.

    The result is differentiable once. A second derivative is missing, and torch does not always raise an error for it.
    """
    if _native.supports(from_input, noise, noise_weight, latent_weight, output_weight) and _native.available():
        return _NativeMap.apply(from_input, noise, noise_weight, latent_weight, output_weight)  # type: ignore[no-any-return]
    rows = (from_input + noise.unsqueeze(-1) * noise_weight).transpose(0, 1)  # (D, N, U)
    return TorchMap.apply(rows, noise, latent_weight, output_weight)  # type: ignore[no-any-return]


@torch.no_grad()
def conditional_moments(
    from_input: Tensor, u: Tensor, noise_weight: Tensor, latent_weight: Tensor, output_weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Return mean and variance of each :math:`u_d` given the earlier ones, ``(N, D)``, by Gauss-Hermite quadrature."""
    if _native.supports(from_input, u, noise_weight, latent_weight, output_weight) and _native.available():
        return _native.latent_chain_moments(from_input, u, noise_weight, latent_weight, output_weight, _NODES, _WEIGHTS)
    earlier = u.new_ones(latent_weight.shape[:2]).tril(-1).unsqueeze(-1)
    inner = from_input.transpose(0, 1) + u @ (earlier * latent_weight)  # (D, N, U)
    column = output_weight.unsqueeze(-1)
    values = torch.stack(
        [node + (torch.tanh_(inner + node * noise_weight.unsqueeze(1)) @ column).squeeze(-1) for node in _NODES]
    )  # (nodes, D, N)
    weight = values.new_tensor(_WEIGHTS)
    mean = torch.tensordot(weight, values, 1)
    variance = torch.tensordot(weight, (values - mean).square(), 1)
    return mean.T, variance.T


class _NativeMap(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, from_input: Tensor, noise: Tensor, noise_weight: Tensor, latent_weight: Tensor, output_weight: Tensor
    ) -> Tensor:
        chain = _native.latent_chain_forward(from_input, noise, noise_weight, latent_weight, output_weight)
        ctx.save_for_backward(noise, noise_weight, latent_weight, output_weight, chain.u, *chain.hidden)
        return chain.u

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        noise, noise_weight, latent_weight, output_weight, u, *hidden = ctx.saved_tensors
        return _native.latent_chain_backward(
            grad, noise, noise_weight, latent_weight, output_weight, _native.LatentChain(u, hidden)
        )


class TorchMap(torch.autograd.Function):
    """A loop over the latents without the overhead of autograd: one product sums each weight's gradient over all."""

    @staticmethod
    def forward(ctx: Any, inner: Tensor, noise: Tensor, latent_weight: Tensor, output_weight: Tensor) -> Tensor:
        """Return ``u (N, D)`` from pre-activations ``(D, N, U)``, noise ``(N, D)`` and both weights."""
        hidden, u = torch.empty_like(inner, memory_format=torch.contiguous_format), torch.empty_like(noise)
        for d in range(len(inner)):
            torch.addmm(inner[d], u[:, :d], latent_weight[d, :d], out=hidden[d]) if d else hidden[d].copy_(inner[d])
            u[:, d] = torch.addmv(noise[:, d], hidden[d].tanh_(), output_weight[d])
        ctx.save_for_backward(hidden, u, latent_weight, output_weight)
        return u

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        hidden, u, latent_weight, output_weight = ctx.saved_tensors
        grad_u, grad_inner = grad.clone(), torch.empty_like(hidden)
        for d in reversed(range(len(hidden))):
            torch.mul(1.0 - hidden[d].square(), torch.outer(grad_u[:, d], output_weight[d]), out=grad_inner[d])
            if d:
                grad_u[:, :d].addmm_(grad_inner[d], latent_weight[d, :d].T)
        grad_latent_weight = torch.einsum("nj,dnu->dju", u, grad_inner)
        earlier = torch.ones(u.shape[1], u.shape[1], dtype=torch.bool, device=u.device).tril(-1)
        grad_latent_weight = grad_latent_weight * earlier.unsqueeze(-1)
        return grad_inner, grad_u, grad_latent_weight, torch.einsum("nd,dnu->du", grad_u, hidden)

"""Kernel estimators of the score, from the samples of one input at a time.

Both use the kernel :math:`k(a, b) = \\exp(-\\lVert a - b \\rVert^2 / 2 h^2)`, where :math:`h` is the median distance
between the samples of an input. They are the paper's baselines "Stein" and "Spectral" (Section 6).
"""

import torch
from torch import Tensor

from arcsm.errors import NonFiniteError
from arcsm.implicit.entropy.gradients import EntropyGradient


class Stein(EntropyGradient):
    """The Stein gradient estimator: regression on Stein's identity with the ridge :math:`\\eta > 0`, ``eta``.

    .. math:: \\hat s = -(K + \\eta I)^{-1} \\langle \\nabla, K \\rangle, \\qquad
        \\langle \\nabla, K \\rangle_i = \\sum_j \\nabla_{z_j} k(z_i, z_j)

    References:
        Gradient Estimators for Implicit Models (Li and Turner, 2018), https://arxiv.org/abs/1705.07107
    """

    min_samples = 2

    def __init__(self, eta: float = 1e-3) -> None:
        if not eta > 0.0:
            raise ValueError(f"eta: expected a positive number, got {eta}")
        self.eta = eta

    def score(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        kernel, width = _kernel_and_width(z)
        ridge = self.eta * torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
        return -torch.linalg.solve(kernel + ridge, _summed_gradients(kernel, z, width))


class Spectral(EntropyGradient):
    """The spectral Stein gradient estimator: an expansion of the score in eigenfunctions of the kernel.

    .. math:: \\hat s(z) = \\sum_{j \\le J} \\beta_j \\psi_j(z), \\quad
        \\psi_j(z) = \\tfrac{\\sqrt M}{\\lambda_j} \\sum_m u_{jm}\\, k(z, z_m), \\quad
        \\beta_j = -\\tfrac1M \\sum_m \\nabla \\psi_j(z_m)

    :math:`\\lambda_j, u_j` are the eigenvalues and eigenvectors of the kernel matrix of the :math:`M` samples.

    References:
        A Spectral Approach to Gradient Estimation for Implicit Distributions (Shi, Sun and Zhu, 2018),
        https://arxiv.org/abs/1806.02925

    Arguments:
        share: Fraction, in (0, 1], of the total of all eigenvalues above rounding error that the leading ones in use
            make up.
        keeps_crossing: Whether to use one eigenvalue more, with which they exceed that share. Without it, as in the
            authors' code, entropy gradients are smaller.
    """

    min_samples = 2

    def __init__(self, share: float = 0.99, keeps_crossing: bool = True) -> None:
        if not 0.0 < share <= 1.0:
            raise ValueError(f"share: expected a number in (0, 1], got {share}")
        self.share, self.keeps_crossing = share, keeps_crossing

    def score(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        kernel, width = _kernel_and_width(z)
        try:
            values, vectors = torch.linalg.eigh(kernel)  # ascending, (B, M) and (B, M, M)
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
            raise NonFiniteError("z: the kernel matrix has no eigenvalues; samples may be too far apart") from error
        resolved = values > torch.finfo(z.dtype).eps * z.shape[1] * values[:, -1:]
        values = torch.where(resolved, values, 1.0)
        summands = torch.where(resolved, values, 0.0)
        rest, up_to_it = (1.0 - self.share) * summands.sum(1, keepdim=True), summands.cumsum(1)
        used = resolved & (up_to_it > rest if self.keeps_crossing else up_to_it - summands >= rest)
        used[:, -1] = True
        # at the samples psi_j is sqrt(M) u_j, so all factors of M cancel
        beta = -(vectors.transpose(1, 2) @ _summed_gradients(kernel, z, width)) / values.unsqueeze(-1)  # (B, J, D)
        return vectors @ (used.to(beta).unsqueeze(-1) * beta)


def _kernel_and_width(z: Tensor) -> tuple[Tensor, Tensor]:
    """Return the kernel matrix of each input's samples, ``(B, K, K)``, and its width, ``(B, 1, 1)``."""
    if z.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"z: kernels need single or double precision, got {z.dtype}")
    distances = torch.cdist(z, z, compute_mode="donot_use_mm_for_euclid_dist")
    rows, columns = torch.triu_indices(z.shape[1], z.shape[1], 1, device=z.device)
    median = distances[:, rows, columns].median(1).values
    if not bool((median > 0.0).all()):
        raise NonFiniteError("z: half of the samples of an input coincide; the sampler has collapsed")
    width = median[:, None, None]
    return torch.exp(-0.5 * (distances / width).square()), width


def _summed_gradients(kernel: Tensor, z: Tensor, width: Tensor) -> Tensor:
    """Return :math:`\\sum_j \\nabla_{z_j} k(z_i, z_j) = \\sum_j k(z_i, z_j) (z_i - z_j) / h^2`, ``(B, K, D)``."""
    z = z - z.mean(1, keepdim=True)  # a large mean would cancel in single precision
    return (kernel.sum(2, keepdim=True) * z - kernel @ z) / width.square()

"""Choices of the denoise command: the noise model, the method, and the files to write."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from arcsm._runtime.files import check_writable
from arcsm.denoise import Corruption, GaussianNoise, SaltAndPepper, langevin, particle_filter, posterior, tweedie
from arcsm.model import AutoregressiveModel

Noise = Literal["gaussian", "salt-and-pepper"]
Denoiser = Literal["tweedie", "posterior", "particles", "langevin"]


def restored_paths(images: Path, names: Sequence[str], out: Path) -> list[Path]:
    """Return the PNG files to write, one for each noisy image."""
    targets = [(out / name).with_suffix(".png") for name in names]
    if len(set(targets)) < len(targets):
        raise ValueError(f"{images}: expected names that differ by more than their suffix, since all become .png")
    if any(target.resolve().is_relative_to(images.resolve()) for target in targets):
        raise ValueError(f"--out {out}: expected a folder outside of {images}")
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out}: expected a folder, got a file")
    check_writable(out / "0.png")
    existing = next((target for target in targets if target.exists()), None)
    if existing is not None:
        raise ValueError(f"{existing}: exists already; give another --out")
    return targets


def make_corruption(
    model: AutoregressiveModel, noise: Noise, sigma: float | None, probability: float | None, levels: int
) -> Corruption:
    """Return the noise model for images in [-1, 1) whose values lie in the middle of their level."""
    options = {"--sigma": sigma, "--probability": probability}
    needed, other = ("--sigma", "--probability") if noise == "gaussian" else ("--probability", "--sigma")
    if options[needed] is None or options[other] is not None:
        raise ValueError(f"--noise {noise}: expected {needed} and no {other}")
    if sigma is not None:
        return GaussianNoise(sigma)
    smallest = model.noise.sigma_min * float(model.scale.max()) if model.noise else 0.0
    return SaltAndPepper.of_images(float(probability or 0.0), levels, smallest)


def restored(
    model: AutoregressiveModel,
    rows: Tensor,
    corruption: Corruption,
    method: Denoiser | None,
    condition: Tensor | None,
    generator: torch.Generator,
    progress: bool = False,
) -> Tensor:
    """Return the restored rows, ``(N, D)``; by default by ``tweedie`` for Gaussian noise, else by ``posterior``."""
    method = method or ("tweedie" if isinstance(corruption, GaussianNoise) else "posterior")
    if method == "posterior":
        return posterior(model, rows, corruption, condition=condition, tol=1e-3, progress=progress)
    if method == "particles":
        return particle_filter(
            model, rows, corruption, generator=generator, condition=condition, progress=progress
        ).mean()
    if method == "langevin":
        suspect, first = None, 0
        if isinstance(corruption, SaltAndPepper):
            suspect = corruption.is_extreme(rows)
        elif isinstance(corruption, GaussianNoise):  # start at the level whose noise is that of the rows
            levels = [level * float(model.scale.max()) for level in model.path()]
            first = min(sum(level > corruption.sigma for level in levels), max(len(levels) - 1, 0))
        return langevin(model, rows, suspect, first, generator=generator, condition=condition, progress=progress)
    if not isinstance(corruption, GaussianNoise):
        raise ValueError("--method tweedie: expected gaussian noise; use posterior, particles or langevin")
    return tweedie(model, rows, corruption.sigma, condition, progress=progress)

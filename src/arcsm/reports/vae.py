"""The report of an autoencoder's run, a self-contained HTML page."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from arcsm._runtime.files import write_text
from arcsm._runtime.progress import track
from arcsm.data.datasets import Dataset, load_dataset
from arcsm.errors import NonFiniteError
from arcsm.implicit.evidence.annealing import Annealing, bidirectional_bounds
from arcsm.implicit.evidence.bounds import bounds, elbo, importance_bound
from arcsm.implicit.networks.encoders import LocationScaleEncoder
from arcsm.implicit.networks.vae import VAE
from arcsm.implicit.vae.runs import VAERunConfig
from arcsm.implicit.vae.training import used_latents
from arcsm.metrics import mean_and_standard_error
from arcsm.reports import plots
from arcsm.reports.numbers import LikelihoodRow
from arcsm.reports.pictures import sample_picture
from arcsm.reports.run import page_values, render
from arcsm.training.log import read_metrics
from arcsm.training.runs import Run, warn_if_data_changed

_IMAGES, _SAMPLES = 200, 1_000  # test images and latents per image; a tenth of both for convolutional decoders
_ELBO_SAMPLES = 20  # latents per image
_ANNEALING = Annealing(temperatures=100, chains=4)  # for dense decoders, which are fast
_SIMULATED_IMAGES = 50  # for annealed bounds from both sides
_TRAVERSED_LATENTS = 8
_SHOWN_IMAGES = 32
_TRAVERSAL_STANDARD_DEVIATIONS = 2.5  # of the prior, to both sides
_TRAVERSAL_STEPS = 8


@dataclass(frozen=True)
class VAENumbers:
    """The numbers of the page."""

    log_likelihood: list[LikelihoodRow]  # in nats per image, the best estimate first
    images: int
    samples: int  # latents per image, for the importance weighted bound
    #: Mean difference of upper and lower annealed bounds on sampled images, and its standard error.
    annealing_gap: tuple[float, float | None] | None
    used_latents: int  # that carry information about the image


def write_vae_report(
    run: Run[VAERunConfig, VAE], path: Path, samples: int = 64, seed: int = 0, progress: bool = False
) -> VAENumbers:
    """Sample, reconstruct and traverse the autoencoder of a run, estimate its likelihood, and write the page."""
    dataset = load_dataset(run.config.data, run.config.train.seed)
    warn_if_data_changed(run.folder, dataset)
    with track("report", 3, progress) as advance:
        numbers = _numbers(run.model, dataset, seed, progress)
        advance()
        pictures = _pictures(run.model, dataset, samples, seed)
        advance()
        history = read_metrics(run.folder)
        page = render(
            "vae.html",
            **page_values(run, dataset),
            latents=run.model.latents,
            numbers=numbers,
            pressure=history[-1].get("pressure") if history else None,
            pictures=[
                (title, plots.as_data_uri(sample_picture(rows, dataset.metadata, columns)))
                for title, rows, columns in pictures
            ],
            paired=True,
        )
        write_text(path, page)
        advance()
    return numbers


def _numbers(vae: VAE, dataset: Dataset, seed: int, progress: bool) -> VAENumbers:
    if not len(dataset.test):
        raise ValueError("data: no test images, which a report needs; set data.test")
    share = 1 if vae.parts.networks == "dense" else 10
    images, samples = min(len(dataset.test), _IMAGES // share), _SAMPLES // share
    generator = torch.Generator(vae.device).manual_seed(seed)
    x = vae.prepare(dataset.test[:images].to(vae.device), generator)
    if vae.parts.networks == "dense":
        important, annealed = bounds(vae, x, samples, _ANNEALING, generator, progress)
        lower, upper = bidirectional_bounds(vae, _SIMULATED_IMAGES, _ANNEALING, generator=generator)
        annealing_gap = mean_and_standard_error(upper - lower)
        by_annealing = [LikelihoodRow("annealed importance sampling", *mean_and_standard_error(annealed), ours=True)]
    else:
        important, annealing_gap, by_annealing = importance_bound(vae, x, samples, generator=generator), None, []
    weighted = LikelihoodRow("importance weighted bound", *mean_and_standard_error(important), ours=not by_annealing)
    estimates = [*by_annealing, weighted]
    if isinstance(vae.encoder, LocationScaleEncoder):
        with suppress(NonFiniteError):  # a broken encoder has none
            bound = mean_and_standard_error(elbo(vae, x, _ELBO_SAMPLES, generator))
            estimates.append(LikelihoodRow("evidence lower bound", *bound))
    return VAENumbers(estimates, images, samples, annealing_gap, used_latents(vae, x, generator))


@torch.no_grad()
def _pictures(vae: VAE, dataset: Dataset, samples: int, seed: int) -> list[tuple[str, Tensor, int | None]]:
    """Return titles, rows of images and the numbers of columns of their grids."""
    generator = torch.Generator(vae.device).manual_seed(seed)
    real = dataset.test[:_SHOWN_IMAGES].to(vae.device)
    x, reach = vae.prepare(real, generator), _TRAVERSAL_STANDARD_DEVIATIONS
    varied = f"Each row varies one latent from -{reach} to {reach}"
    return [
        ("Samples (mean images of latents from the prior)", vae.sample(samples, generator).cpu(), None),
        ("Held-out images", real.cpu(), None),
        ("Reconstructed, each from one latent", vae.reconstruct(x, generator).cpu(), None),
        (varied, traversals(vae, x[:1], generator).cpu(), _TRAVERSAL_STEPS),
    ]


@torch.no_grad()
def traversals(vae: VAE, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Return rows of images, in which each of the first latents of one input varies over the range of the prior."""
    start, reach = vae.encode(x, 1, generator)[0, 0], _TRAVERSAL_STANDARD_DEVIATIONS
    z = start.repeat(min(_TRAVERSED_LATENTS, vae.latents), _TRAVERSAL_STEPS, 1)
    for latent in range(len(z)):
        z[latent, :, latent] = torch.linspace(-reach, reach, _TRAVERSAL_STEPS, device=start.device)
    return vae.as_rows(vae.decoder.mean(z.flatten(0, 1)))

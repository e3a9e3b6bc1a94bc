"""One self-contained HTML page about a run of an autoencoder: pictures, a likelihood, the curve, the configuration."""

from __future__ import annotations

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
from arcsm.implicit.vae.runs import VAERun
from arcsm.implicit.vae.training import used_latents
from arcsm.metrics import mean_and_standard_error
from arcsm.reports import plots
from arcsm.reports.run import LikelihoodRow, render, sample_picture
from arcsm.training.log import read_metrics
from arcsm.training.run_config import dump_config
from arcsm.training.runs import warn_of_other_data

_IMAGES, _SAMPLES = 200, 1_000  # of the likelihood of a page; a convolutional decoder gets a tenth of both
_ELBO = "evidence lower bound"
_ELBO_SAMPLES = 20  # of each image
_ANNEALING = Annealing(temperatures=100, chains=4)  # of the same images, where the decoder is quick
_SIMULATED = 50  # images that the model draws, on which annealing is checked from both sides
_SHOWN = 8  # images that are reconstructed, and latents that are traversed
_REACH = 2.5  # of a traversal, in standard deviations of the prior
_STEPS = 8


@dataclass(frozen=True)
class VAENumbers:
    """The numbers of the page.

    Attributes:
        log_likelihood: Nats an image, by each estimate.
        images: How many there are.
        samples: Latents of each, of the importance weighted bound.
        apart: By how much annealed bounds from above and from below differ on images that the model draws, and the
            standard error of that; ``None`` where there was no annealing.
        used_latents: How many say something of the image.
    """

    log_likelihood: list[LikelihoodRow]
    images: int
    samples: int
    apart: tuple[float, float | None] | None
    used_latents: int


def write_vae_report(run: VAERun, path: Path, samples: int = 64, seed: int = 0, progress: bool = False) -> VAENumbers:
    """Sample, reconstruct, traverse and measure an autoencoder, and write the page.

    Arguments:
        run: The run.
        path: The page.
        samples: Number of samples shown.
        seed: Seed of all randomness.
        progress: Show a progress bar (on a terminal).
    """
    dataset = load_dataset(run.config.data, run.config.train.seed)
    warn_of_other_data(run.folder, dataset)
    with track("report", 3, progress) as advance:
        numbers = _numbers(run.model, dataset, seed, progress)
        advance()
        pictures = _pictures(run.model, dataset, samples, seed)
        advance()
        history = read_metrics(run.folder)
        page = render(
            "vae.html",
            name=run.config.name,
            about=run.config.about,
            rows=len(dataset.train),
            features=run.model.features,
            latents=run.model.latents,
            parameters=sum(p.numel() for p in run.model.parameters()),
            steps=int(history[-1]["step"]) if history else 0,
            seconds=history[-1]["seconds"] if history else 0.0,
            numbers=numbers,
            pressure=history[-1].get("pressure") if history else None,
            pictures=[
                (title, plots.as_data_uri(sample_picture(rows, dataset.metadata, columns)))
                for title, rows, columns in pictures
            ],
            paired=True,
            curve=plots.as_data_uri(plots.as_png(plots.training_curve(history))) if history else None,
            config=dump_config(run.config),
        )
        write_text(path, page)
        advance()
    return numbers


def _numbers(vae: VAE, dataset: Dataset, seed: int, progress: bool) -> VAENumbers:
    if not len(dataset.test):
        raise ValueError("data: no test images, which the page needs; set data.test")
    share = 1 if vae.parts.networks == "dense" else 10
    images, samples = min(len(dataset.test), _IMAGES // share), _SAMPLES // share
    generator = torch.Generator(vae.device).manual_seed(seed)
    x = vae.prepare(dataset.test[:images].to(vae.device), generator)
    if vae.parts.networks == "dense":
        important, annealed = bounds(vae, x, samples, _ANNEALING, generator, progress)
        lower, upper = bidirectional_bounds(vae, _SIMULATED, _ANNEALING, generator=generator)
        apart = mean_and_standard_error(upper - lower)
        by_annealing = [LikelihoodRow("annealed importance sampling", *mean_and_standard_error(annealed), ours=True)]
    else:
        important, apart, by_annealing = importance_bound(vae, x, samples, generator=generator), None, []
    found = [LikelihoodRow("importance weighted bound", *mean_and_standard_error(important), ours=True), *by_annealing]
    if isinstance(vae.encoder, LocationScaleEncoder):
        with suppress(NonFiniteError):  # an encoder that broke has none, and the rest is still of interest
            found.append(
                LikelihoodRow(_ELBO, *mean_and_standard_error(elbo(vae, x, _ELBO_SAMPLES, generator)), ours=True)
            )
    return VAENumbers(found, images, samples, apart, used_latents(vae, x, generator))


@torch.no_grad()
def _pictures(vae: VAE, dataset: Dataset, samples: int, seed: int) -> list[tuple[str, Tensor, int | None]]:
    """Titles, rows of images and columns of their grids: samples, held-out images, reconstructions, traversals."""
    generator = torch.Generator(vae.device).manual_seed(seed)
    real = dataset.test[: _SHOWN * 4].to(vae.device)
    x = vae.prepare(real, generator)
    return [
        ("Samples (expected images of latents from the prior)", vae.sample(samples, generator).cpu(), None),
        ("Held-out images", real.cpu(), None),
        ("Reconstructed, each from one latent", vae.reconstruct(x, generator).cpu(), None),
        (f"Each row moves one latent from -{_REACH} to {_REACH}", traversals(vae, x[:1], generator).cpu(), _STEPS),
    ]


@torch.no_grad()
def traversals(vae: VAE, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Rows of images: from the latents of one input, each of the first ones moved along the prior's range in turn."""
    start = vae.encode(x, 1, generator)[0, 0]
    places = torch.linspace(-_REACH, _REACH, _STEPS, device=start.device)
    z = start.repeat(min(_SHOWN, vae.latents), _STEPS, 1)
    for latent in range(len(z)):
        z[latent, :, latent] = places
    return vae.as_rows(vae.decoder.mean(z.flatten(0, 1)))

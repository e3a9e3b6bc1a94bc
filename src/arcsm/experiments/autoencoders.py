"""One autoencoder of Table 2: how it is built, trained and measured.

Likelihoods are estimated in two ways on the same binary test digits: by importance sampling from a distribution
fitted to the posterior of each digit, and by annealing from there.
"""

import base64
import json
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from filelock import FileLock
from pydantic import Field
from torch import Tensor

import arcsm
from arcsm.data.datasets import Dataset, load_dataset
from arcsm.data.images import image_grid
from arcsm.errors import NonFiniteError
from arcsm.experiments.base import Count, Result, Settings, Study, parameter_count
from arcsm.experiments.records import digest
from arcsm.implicit.evidence.annealing import Annealing, bidirectional_bounds
from arcsm.implicit.evidence.bounds import bounds, elbo
from arcsm.implicit.networks.vae import VAE
from arcsm.implicit.vae.runs import VAERunConfig, load_vae_run, train_vae_run
from arcsm.implicit.vae.training import used_latents
from arcsm.metrics import mean_and_standard_error
from arcsm.metrics.frechet import Frechet
from arcsm.reports.pictures import to_pixels
from arcsm.training.log import read_metrics
from arcsm.training.loop import TrainingDiverged
from arcsm.training.run_config import load_tree, validated
from arcsm.training.runs import is_finished

ENCODERS: Mapping[str, str] = {
    "elbo": "gaussian",
    "stein": "implicit",
    "spectral": "implicit",
    "ssm": "implicit",
    "ssm-ar": "autoregressive",
    "csm": "autoregressive",
}
_KERNELS = ("stein", "spectral")
_WHITENED, _CENTRED = "train.whitened=true", "train.centred=true"
_STANDARDISED = "train.whitened=conditionals"
_RATE = "train.score_learning_rate={rate}"  # the autoencoder's, as for the scores of the other methods
_NARROW = ("model.units=8", "train.context_features=4")  # a quarter and a half of the defaults
_NOISE = ("train.score_noise={sigma_max: 1.0, sigma_min: 0.1}", "train.mix=auto")
#: Our variants of the paper's six methods: changes of the method whose name comes first.
OURS: Mapping[str, tuple[str, ...]] = {
    "csm, whitened": (_WHITENED, _RATE),
    "csm, whitened, centred": (_WHITENED, _CENTRED, _RATE),
    "csm, rate of the others": (_RATE,),
    "csm, plain": ("train.plain_scores=true",),
    "csm, plain, rate of the others": ("train.plain_scores=true", _RATE),
    "csm, masked encoder": ("model.encoder=masked",),
    "csm, plain, masked encoder": ("model.encoder=masked", "train.plain_scores=true"),
    "csm, 5 score steps": ("train.score_steps=5",),
    "csm, warm start": ("train.warm_start=2000",),
    "csm, centred": (_CENTRED,),
    "csm, noise": _NOISE,
    "csm, whitened, 5 score steps": (_WHITENED, _RATE, "train.score_steps=5"),
    "csm, standardised": (_STANDARDISED, _RATE),
    "csm, standardised, half the entropy": (_STANDARDISED, _RATE, "train.entropy_weight=0.5"),
    "csm, standardised, centred": (_STANDARDISED, _CENTRED, _RATE),
    "csm, whitened, noise": (_WHITENED, _RATE, *_NOISE),
    "csm, whitened, narrow": (_WHITENED, _RATE, *_NARROW),
    "csm, standardised, narrow": (_STANDARDISED, _RATE, *_NARROW),
    "ssm-ar, standardised": (_STANDARDISED,),
    "ssm, whitened": ("model.encoder=autoregressive", _WHITENED),
    "ssm, autoregressive encoder": ("model.encoder=autoregressive",),  # csm's: the estimator alone differs
    "spectral, one more eigenvalue": (),
}
MNIST, FACES = "vae-mnist", "vae-faces"
_REVISION = "ReLU, prior of all particles"  # of faces and of kernels, whose older runs had neither
_BINARISATION_SEED = 101  # of the binary test digits, the same for all autoencoders
_GRID = 64
_ELBO_SAMPLES = 10  # latents of each digit
_ADDED_SETTINGS: Mapping[str, Any] = {
    "entropy_weight": 1.0,
    "keeps_crossing": True,
    "plain_scores": False,
}  # absent from older runs, with their defaults

#: Settings that each measure depends on.
LOWER_BOUND_SETTINGS = ("test_images",)
LIKELIHOOD_SETTINGS = ("test_images", "samples", "simulated_images", "temperatures", "chains", "leapfrog")
FRECHET_SETTINGS = ("frechet_images",)


class Table2(Settings):
    """Networks and learning rates are those of the presets ``vae-mnist`` and ``vae-faces``."""

    # the basis of each cell holds what it depends on, except for the first seed
    cell_selection: ClassVar[frozenset[str]] = frozenset({
        "seeds", "repeated", "methods", "latents", "faces", "mnist_changes", "faces_changes", "kernels_encoder",
        *LIKELIHOOD_SETTINGS, *FRECHET_SETTINGS,
    })  # fmt: skip
    records_cells: ClassVar[bool] = True
    methods: tuple[str, ...] = Field((*ENCODERS, "csm, whitened", "csm, standardised"), min_length=1)
    repeated: tuple[str, ...] = ("csm", "ssm", "elbo", "csm, standardised")  # with all seeds; others: the first only
    latents: tuple[Count, ...] = (8, 16)  # of digits; () for none
    faces: bool = True
    mnist_changes: tuple[str, ...] = ()
    faces_changes: tuple[str, ...] = ()
    # for Stein and Spectral on faces; in the autoregressive one, all samples of a face share the convolutions
    kernels_encoder: Literal["implicit", "autoregressive"] = "implicit"
    test_images: int = Field(10_000, ge=2)
    samples: int = Field(2_000, ge=1)  # latents of each image, for the importance weighted bound
    simulated_images: int = Field(128, ge=2)  # for the gap between the bounds
    temperatures: Count = 200
    chains: Count = 8
    leapfrog: Count = 5
    frechet_images: int = Field(2_000, ge=2)


@dataclass(frozen=True)
class Autoencoder:
    """One autoencoder: its place in the table, and the seed of its training."""

    preset: str  # MNIST or FACES
    method: str
    latents: int | None  # None for the preset's
    seed: int

    @property
    def name(self) -> str:
        size = "" if self.latents is None else f" {self.latents}"
        return f"{self.preset}{size} {self.method} seed {self.seed}"

    def config(self, run: Study[Table2]) -> VAERunConfig:
        base = self.method.partition(",")[0]
        changes = [f"train.method={base}", f"model.encoder={ENCODERS[base]}", f"train.seed={self.seed}",
                   f"train.device={run.device.type}", *self.changes(run)]  # fmt: skip
        if self.latents is not None:
            changes.append(f"model.latents={self.latents}")
        return validated(load_tree(self.preset, [*self.shared_changes(run), *changes]), self.preset, VAERunConfig)

    def shared_changes(self, run: Study[Table2]) -> tuple[str, ...]:
        return run.settings.mnist_changes if self.preset == MNIST else run.settings.faces_changes

    def changes(self, run: Study[Table2]) -> list[str]:
        """Return the changes of the method. On faces, csm's score learning rate is twice the other, as in the paper."""
        rate = load_tree(self.preset, self.shared_changes(run))["train"]["learning_rate"]
        if self.method == "csm":
            return [f"train.score_learning_rate={2.0 * rate}"] if self.preset == FACES else []
        base = self.method.partition(",")[0]
        if base in _KERNELS:
            encoder = run.settings.kernels_encoder if self.preset == FACES else ENCODERS[base]
            other = [f"model.encoder={encoder}"] if encoder != ENCODERS[base] else []
            return [*other, *(["train.keeps_crossing=false"] if self.method == "spectral" else [])]
        return [change.replace("{rate}", str(rate)) for change in OURS.get(self.method, ())]

    def described(self, run: Study[Table2]) -> Result:
        config = self.config(run)
        particles = {"particles": config.train.particles} if config.train.method in _KERNELS else {}
        channels = {"channels": list(config.model.channels)} if self.preset == FACES else {}
        return {"changes": self.changes(run), **particles, **channels}

    def folder(self, run: Study[Table2]) -> Path:
        """Return the folder of the run. Settings that were added later count only if they are not at their default."""
        config = self.config(run).model_dump(mode="json")
        for name, default in _ADDED_SETTINGS.items():
            if config["train"][name] == default:
                del config["train"][name]
        is_revised = self.preset == FACES or self.method.partition(",")[0] in _KERNELS
        return run.work / f"{self.preset}-{digest([config, arcsm.__version__, *([_REVISION] if is_revised else [])])}"


def compute_part(
    run: Study[Table2],
    part: str,
    cells: list[Autoencoder],
    compute: Callable[[Study[Table2], Autoencoder], Result],
    diverged: Collection[str] = (),
    settings: Collection[str] = (),
) -> dict[str, Result]:
    """Compute one part of the work for each autoencoder; return the results by name.

    A part depends on the autoencoder's configuration and on ``settings``. If an autoencoder has diverged and the part
    cannot be computed, its result is empty.
    """
    values = {name: getattr(run.settings, name) for name in settings}

    def result(cell: Autoencoder) -> Result:
        return _result_if_finite(partial(compute, run, cell)) if cell.name in diverged else compute(run, cell)

    named = {f"{part} {cell.name}": cell for cell in cells}
    basis = {name: [cell.folder(run).name, values] for name, cell in named.items()}
    results = run.compute_all({name: partial(result, cell) for name, cell in named.items()}, basis)
    return {cell.name: results[name] for name, cell in named.items()}


def _result_if_finite(compute: Callable[[], Result]) -> Result:
    """Return a result; an empty one if it is not finite or raises a ValueError."""
    try:
        result = compute()
        json.dumps(result, allow_nan=False)
    except ValueError:
        return {}
    return result


def train(run: Study[Table2], cell: Autoencoder) -> Result:
    """Train; if training diverges, return the reason and the last logged state."""
    log = read_metrics(cell.folder(run))
    run.earlier_seconds += log[-1]["seconds"] if log else 0.0  # of an interrupted run
    try:
        train_vae_run(cell.config(run), cell.folder(run), resume=True, progress=True)
    except TrainingDiverged as error:
        return {"diverged": str(error), **_result_if_finite(partial(_training_summary, run, cell))}
    return _training_summary(run, cell)


def _training_summary(run: Study[Table2], cell: Autoencoder) -> Result:
    """Return what training logged; raise a ValueError if it diverged before the first validation."""
    history = read_metrics(cell.folder(run))
    if not history:
        raise ValueError(f"{cell.name}: was never validated")
    last = history[-1]
    return {
        "steps": int(last["step"]),
        "milliseconds_a_step": 1e3 * last["seconds"] / last["step"],
        "validation": last["valid"],
        "weights": parameter_count(_load_vae(run, cell)),
        "curve": [[row["step"], row["valid"]] for row in history],
        "pressures": [[row["step"], row["pressure"]] for row in history],
    }


def pressure(run: Study[Table2], cell: Autoencoder) -> Result:
    """Return the pressure at the end of training; see :meth:`EntropyGradient.entropy_ratio`."""
    _load_vae(run, cell)
    return {"pressure": read_metrics(cell.folder(run))[-1]["pressure"]}


def _load_vae(run: Study[Table2], cell: Autoencoder) -> VAE:
    """Return the trained autoencoder; train it again if only its measures were kept."""
    folder = cell.folder(run)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):  # another process may train it
        if not is_finished(folder):
            with suppress(TrainingDiverged):  # again
                train_vae_run(cell.config(run), folder, resume=True, progress=True)
    return load_vae_run(folder, str(run.device)).model


def _dataset(run: Study[Table2], cell: Autoencoder) -> Dataset:
    config = cell.config(run)
    return load_dataset(config.data, config.train.seed)


def _test_digits(run: Study[Table2], cell: Autoencoder, vae: VAE, count: int) -> Tensor:
    """Return random binary test digits, always the same. (The first of the test set are easier than the rest.)"""
    rows, generator = _dataset(run, cell).test, torch.Generator().manual_seed(_BINARISATION_SEED)
    chosen = torch.randperm(len(rows), generator=generator)[:count]
    return vae.prepare(rows[chosen], generator).to(run.device)


def likelihood(run: Study[Table2], cell: Autoencoder) -> Result:
    """Estimate likelihoods of test digits in nats by importance sampling and by annealing from the same proposals.

    Also measure the gap between lower and upper bound on digits that the model drew.
    """
    settings, vae = run.settings, _load_vae(run, cell)
    annealing = Annealing(settings.temperatures, settings.chains, settings.leapfrog)
    x = _test_digits(run, cell, vae, settings.test_images)
    generator = run.generator(cell.seed, 1)
    start = time.monotonic()
    important, annealed = bounds(vae, x, settings.samples, annealing, generator, progress=True)
    seconds = time.monotonic() - start
    lower, upper = bidirectional_bounds(vae, settings.simulated_images, annealing, generator=generator)
    mean, error = mean_and_standard_error(-important)
    annealed_mean, annealed_error = mean_and_standard_error(-annealed)
    return {
        "nll": mean,
        "nll_standard_error": error,
        "used_latents": used_latents(vae, x[:256], generator),
        "seconds_measuring": round(seconds, 1),
        "annealed": {
            "nll": annealed_mean,
            "standard_error": annealed_error,
            "nll_of_each": (-annealed).tolist(),
            "images": len(x),
            "step_sizes": "of a pilot chain",
            "less_importance_weighted": list(mean_and_standard_error(annealed - important)),
            "upper_less_lower_on_simulated": list(mean_and_standard_error(upper - lower)),
        },
    }


def lower_bound(run: Study[Table2], cell: Autoencoder) -> Result:
    """Return the negative evidence lower bound of the same digits in nats, if the encoder has a density."""
    if cell.config(run).model.encoder in ("implicit", "masked"):
        return {}
    vae = _load_vae(run, cell)
    x = _test_digits(run, cell, vae, run.settings.test_images)
    with suppress(NonFiniteError):  # a diverged encoder has none
        return {"negative_elbo": -float(elbo(vae, x, _ELBO_SAMPLES, run.generator(cell.seed, 5)).mean())}
    return {}


def frechet(run: Study[Table2], cell: Autoencoder) -> Result:
    """Measure the Fréchet distance of samples to held-out images."""
    vae, dataset, count = _load_vae(run, cell), _dataset(run, cell), run.settings.frechet_images
    drawn = vae.sample(count, run.generator(cell.seed, 3)).cpu()
    samples, real, train = (
        to_pixels(rows, dataset.metadata) for rows in (drawn, dataset.test[:count], dataset.train_rows(count))
    )
    frechet_to_real = Frechet(real, run.device, progress=True)
    return {
        "frechet_distance": frechet_to_real.distance(samples),
        "frechet_network": frechet_to_real.network,
        "frechet_images": [len(real), len(samples)],
        "frechet_distance_of_training_images": frechet_to_real.distance(train),
    }


def draw(run: Study[Table2], cell: Autoencoder) -> Result:
    """Return a grid of expected images in base64, keyed by file suffix."""
    vae, file = _load_vae(run, cell), BytesIO()
    rows = vae.sample(_GRID, run.generator(cell.seed, 4)).cpu()
    grid = image_grid(to_pixels(rows, _dataset(run, cell).metadata))
    grid.save(file, format="PNG", optimize=True)
    return {"png": base64.b64encode(file.getvalue()).decode("ascii")}

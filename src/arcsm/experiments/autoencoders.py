"""One autoencoder of Table 2: how it is built and trained, and what is measured of it; each part is done once.

The likelihood of each is measured in two ways on the same binary test digits: by importance sampling from a
distribution fitted to the posterior of each digit, and by annealing from there.
"""

from __future__ import annotations

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
from arcsm.data.pixels import unscale_images
from arcsm.errors import NonFiniteError
from arcsm.experiments.base import Count, Settings, Study, digest
from arcsm.implicit.evidence.annealing import Annealing, bidirectional_bounds
from arcsm.implicit.evidence.bounds import bounds, elbo
from arcsm.implicit.networks.vae import VAE
from arcsm.implicit.vae.runs import VAERunConfig, load_vae_run, train_vae_run
from arcsm.implicit.vae.training import used_latents
from arcsm.metrics import mean_and_standard_error
from arcsm.metrics.frechet import Frechet
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
_RATE = "train.score_learning_rate={rate}"  # that of the autoencoder, which the scores of the other methods have
_NARROW = ("model.units=8", "train.context_features=4")  # a quarter and a half of what they are
_NOISE = ("train.score_noise={sigma_max: 1.0, sigma_min: 0.1}", "train.mix=auto")
#: Ours beside the paper's six: what is changed of the method whose name comes first.
OURS: Mapping[str, tuple[str, ...]] = {
    "csm, whitened": (_WHITENED, _RATE),
    "csm, whitened, centred": (_WHITENED, _CENTRED, _RATE),
    "csm, rate of the others": (_RATE,),
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
}
MNIST, FACES = "vae-mnist", "vae-faces"
_TEST_BITS = 101  # seed of the binary test digits, the same for all
_SHOWN = 64
_ELBO_SAMPLES = 10  # latents of each digit
_LATER: Mapping[str, Any] = {"entropy_weight": 1.0}  # settings that runs of before do not have, with their defaults
Result = dict[str, Any]


#: The settings of the measures.
LOWER_BOUND_SETTINGS = ("test_images",)
LIKELIHOOD_SETTINGS = ("test_images", "samples", "simulated_images", "temperatures", "chains", "leapfrog")
FRECHET_SETTINGS = ("frechet_images",)


class Table2(Settings):
    """Networks and rates are those of the presets ``vae-mnist`` and ``vae-faces``."""

    # none but the first seed: how an autoencoder is built and trained is in the basis of each of its cells, how it is
    # measured in that of the cells of measures
    lists_cells: ClassVar[frozenset[str]] = frozenset({
        "seeds", "repeated", "methods", "latents", "faces", "mnist_changes", "faces_changes", "kernels_encoder",
        *LIKELIHOOD_SETTINGS, *FRECHET_SETTINGS,
    })  # fmt: skip
    keeps_cells: ClassVar[bool] = True

    methods: tuple[str, ...] = Field((*ENCODERS, "csm, whitened", "csm, standardised"), min_length=1)
    # for all seeds; the others for the first alone
    repeated: tuple[str, ...] = ("csm", "ssm", "elbo", "csm, standardised")
    latents: tuple[Count, ...] = (8, 16)  # of digits; () for none
    faces: bool = True
    mnist_changes: tuple[str, ...] = ()
    faces_changes: tuple[str, ...] = ()
    # of Stein and Spectral on faces: all samples of a face share the convolutions of the autoregressive one
    kernels_encoder: Literal["implicit", "autoregressive"] = "implicit"
    test_images: int = Field(10_000, ge=2)
    samples: int = Field(2_000, ge=1)  # latents of each, for the importance weighted bound
    simulated_images: int = Field(128, ge=2)  # of the check from both sides
    temperatures: Count = 200
    chains: Count = 8
    leapfrog: Count = 5
    frechet_images: int = Field(2_000, ge=2)


@dataclass(frozen=True)
class Autoencoder:
    """One autoencoder.

    Attributes:
        preset: ``vae-mnist`` or ``vae-faces``.
        method: The paper's or ours, by its name in the table.
        latents: How many; ``None`` for those of the preset.
        seed: Of its training.
    """

    preset: str
    method: str
    latents: int | None
    seed: int

    @property
    def name(self) -> str:
        size = "" if self.latents is None else f" {self.latents}"
        return f"{self.preset}{size} {self.method} seed {self.seed}"

    def config(self, run: Study[Table2]) -> VAERunConfig:
        """How it is built and trained."""
        base = self.method.partition(",")[0]
        own = [f"train.method={base}", f"model.encoder={ENCODERS[base]}", f"train.seed={self.seed}",
               f"train.device={run.device.type}", *self.changes(run)]  # fmt: skip
        if self.latents is not None:
            own.append(f"model.latents={self.latents}")
        return validated(load_tree(self.preset, [*self.shared(run), *own]), self.preset, VAERunConfig)

    def shared(self, run: Study[Table2]) -> tuple[str, ...]:
        """What is changed of the preset for all methods alike."""
        return run.settings.mnist_changes if self.preset == MNIST else run.settings.faces_changes

    def changes(self, run: Study[Table2]) -> list[str]:
        """What is changed of the method; on faces, the rate of csm's scores has the paper's ratio to that of the
        autoencoder."""
        rate = load_tree(self.preset, self.shared(run))["train"]["learning_rate"]
        if self.method == "csm":
            return [f"train.score_learning_rate={2.0 * rate}"] if self.preset == FACES else []
        if self.method in _KERNELS and self.preset == FACES and run.settings.kernels_encoder != ENCODERS[self.method]:
            return [f"model.encoder={run.settings.kernels_encoder}"]
        return [change.replace("{rate}", str(rate)) for change in OURS.get(self.method, ())]

    def described(self, run: Study[Table2]) -> Result:
        """What a record says of how it was built and trained."""
        config = self.config(run)
        found: Result = {"changes": self.changes(run)}
        if self.method in _KERNELS:
            found["particles"] = config.train.particles
        if self.preset == FACES:
            found["channels"] = list(config.model.channels)
        return found

    def folder(self, run: Study[Table2]) -> Path:
        """Its name stands for all settings; one that came later is left out where it changes nothing."""
        described = self.config(run).model_dump(mode="json")
        for later, default in _LATER.items():
            if described["train"][later] == default:
                del described["train"][later]
        return run.work / f"{self.preset}-{digest([described, arcsm.__version__])}"


def each(
    run: Study[Table2],
    part: str,
    cells: list[Autoencoder],
    compute: Callable[[Study[Table2], Autoencoder], Result],
    broken: Collection[str] = (),
    settings: Collection[str] = (),
) -> dict[str, Result]:
    """A part of the work for each autoencoder, by its name; done again where one is built or trained otherwise, or
    where some settings are others.

    Of those that are broken there is nothing where it cannot be done.
    """
    chosen = {name: getattr(run.settings, name) for name in settings}

    def computed(cell: Autoencoder) -> Result:
        return _if_finite(partial(compute, run, cell)) if cell.name in broken else compute(run, cell)

    found = run.each(
        {f"{part} {cell.name}": partial(computed, cell) for cell in cells},
        {f"{part} {cell.name}": [cell.folder(run).name, chosen] for cell in cells},
    )
    return {cell.name: found[f"{part} {cell.name}"] for cell in cells}


def _if_finite(compute: Callable[[], Result]) -> Result:
    """What is found, or nothing where it is no number or an error."""
    try:
        found = compute()
        json.dumps(found, allow_nan=False)
    except ValueError:
        return {}
    return found


def train(run: Study[Table2], cell: Autoencoder) -> Result:
    """How it was trained; where that broke, why, and what it was like when it was last looked at."""
    log = read_metrics(cell.folder(run))
    run.earlier += log[-1]["seconds"] if log else 0.0  # of a run that was stopped
    try:
        train_vae_run(cell.config(run), cell.folder(run), resume=True, progress=True)
    except TrainingDiverged as error:
        return {"diverged": str(error), **_if_finite(partial(_trained, run, cell))}
    return _trained(run, cell)


def _trained(run: Study[Table2], cell: Autoencoder) -> Result:
    """What training logged; ``ValueError`` where it broke before it was looked at."""
    history = read_metrics(cell.folder(run))
    if not history:
        raise ValueError(f"{cell.name}: was never validated")
    last = history[-1]
    return {
        "steps": int(last["step"]),
        "milliseconds_a_step": 1e3 * last["seconds"] / last["step"],
        "validation": last["valid"],
        "weights": sum(p.numel() for p in _vae(run, cell).parameters()),
        "curve": [[row["step"], row["valid"]] for row in history],
    }


def pressure(run: Study[Table2], cell: Autoencoder) -> Result:
    """With which share of the true entropy's pressure it ended; see :meth:`EntropyGradient.entropy_ratio`."""
    _vae(run, cell)
    return {"pressure": read_metrics(cell.folder(run))[-1]["pressure"]}


def _vae(run: Study[Table2], cell: Autoencoder) -> VAE:
    """The trained one; trained once more where only what was measured of it was kept."""
    folder = cell.folder(run)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):  # another run may want the same
        if not is_finished(folder):
            with suppress(TrainingDiverged):  # as it did before
                train_vae_run(cell.config(run), folder, resume=True, progress=True)
    return load_vae_run(folder, str(run.device)).model


def _dataset(run: Study[Table2], cell: Autoencoder) -> Dataset:
    config = cell.config(run)
    return load_dataset(config.data, config.train.seed)


def _test_digits(run: Study[Table2], cell: Autoencoder, vae: VAE, count: int) -> Tensor:
    """Some test digits, always the same (the first of them are easier than the rest), made binary once and for all."""
    rows, generator = _dataset(run, cell).test, torch.Generator().manual_seed(_TEST_BITS)
    chosen = torch.randperm(len(rows), generator=generator)[:count]
    return vae.prepare(rows[chosen], generator).to(run.device)


def likelihood(run: Study[Table2], cell: Autoencoder) -> Result:
    """Of test digits in nats, by importance sampling and by annealing from the same proposals, with standard errors
    over the digits; and how far lower and upper bound are apart on digits that the model drew."""
    settings, vae = run.settings, _vae(run, cell)
    annealing = Annealing(settings.temperatures, settings.chains, settings.leapfrog)
    x = _test_digits(run, cell, vae, settings.test_images)
    generator = run.generator(cell.seed, 1)
    begun = time.monotonic()
    important, annealed = bounds(vae, x, settings.samples, annealing, generator, progress=True)
    seconds = time.monotonic() - begun
    lower, upper = bidirectional_bounds(vae, settings.simulated_images, annealing, generator=generator)
    (mean, error), (its_mean, its_error) = mean_and_standard_error(-important), mean_and_standard_error(-annealed)
    return {
        "nll": mean,
        "nll_standard_error": error,
        "used_latents": used_latents(vae, x[:256], generator),
        "seconds_measuring": round(seconds, 1),
        "annealed": {
            "nll": its_mean,
            "standard_error": its_error,
            "nll_of_each": (-annealed).tolist(),
            "images": len(x),
            "step_sizes": "of a pilot chain",
            "less_importance_weighted": list(mean_and_standard_error(annealed - important)),
            "upper_less_lower_on_simulated": list(mean_and_standard_error(upper - lower)),
        },
    }


def lower_bound(run: Study[Table2], cell: Autoencoder) -> Result:
    """The negative evidence lower bound of the same digits in nats, where the encoder has a density."""
    if cell.config(run).model.encoder == "implicit":
        return {}
    vae = _vae(run, cell)
    x = _test_digits(run, cell, vae, run.settings.test_images)
    with suppress(NonFiniteError):  # an encoder that broke has none
        return {"negative_elbo": -float(elbo(vae, x, _ELBO_SAMPLES, run.generator(cell.seed, 5)).mean())}
    return {}


def frechet(run: Study[Table2], cell: Autoencoder) -> Result:
    """The Fréchet distance of samples to held-out images."""
    vae, dataset, count = _vae(run, cell), _dataset(run, cell), run.settings.frechet_images
    real = _pixels(dataset.test[:count], dataset)
    to_real = Frechet(real, run.device, progress=True)
    drawn = _pixels(vae.sample(count, run.generator(cell.seed, 3)).cpu(), dataset)
    return {
        "frechet_distance": to_real.distance(drawn),
        "frechet_network": to_real.network,
        "frechet_images": [len(real), len(drawn)],
        "frechet_distance_of_training_images": to_real.distance(_pixels(dataset.train_rows(count), dataset)),
    }


def _pixels(rows: Tensor, dataset: Dataset) -> Tensor:
    levels, shape = dataset.metadata["levels"], dataset.metadata["image_shape"]
    return unscale_images(rows.clamp(-1.0, 1.0), levels, stretch=True).view(-1, *shape)


def draw(run: Study[Table2], cell: Autoencoder) -> Result:
    """A grid of expected images, as the text of a file, by the end of its name: PNG, or JPEG of colours."""
    vae, file = _vae(run, cell), BytesIO()
    rows = vae.sample(_SHOWN, run.generator(cell.seed, 4)).cpu()
    grid = image_grid(_pixels(rows, _dataset(run, cell)))
    suffix, kind = ("png", "PNG") if grid.mode == "L" else ("jpg", "JPEG")
    grid.save(file, format=kind, optimize=True, quality=90)
    return {suffix: base64.b64encode(file.getvalue()).decode("ascii")}

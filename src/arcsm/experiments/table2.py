"""Table 2 and Figures 6, 13 to 18: autoencoders whose encoders are trained by six estimators of the entropy gradient.

All share the decoder, the optimiser and the steps. The likelihood of each is measured in two ways on the same binary
test digits: by importance sampling from a distribution fitted to the posterior of each digit, and by annealing.
"""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from pydantic import Field
from torch import Tensor

import arcsm
from arcsm.config import load_tree, validated
from arcsm.data.datasets import Dataset, load_dataset
from arcsm.data.images import image_grid
from arcsm.data.pixels import unscale_images
from arcsm.experiments.base import Preset, Settings, Study, digest, over_seeds, result_path, study
from arcsm.experiments.paired import behind, over_rows
from arcsm.files import atomic_path
from arcsm.frechet import Frechet
from arcsm.implicit.encoders import GaussianEncoder
from arcsm.implicit.evidence import Annealing, annealed_bound, elbo, fit_proposal, gap, importance_bound
from arcsm.implicit.runs import VAERunConfig, load_vae_run, train_vae_run
from arcsm.implicit.training import used_latents
from arcsm.implicit.vae import VAE
from arcsm.metrics import summary
from arcsm.progress import track
from arcsm.runs import is_finished
from arcsm.training import TrainingDiverged
from arcsm.training_log import read_metrics

#: The paper's Table 2: nats of MNIST by annealing with 8 and 16 latents, Fréchet (Inception) distance of CelebA.
QUOTED: Mapping[str, tuple[float, float, float]] = {
    "elbo": (96.74, 91.82, 66.31),
    "stein": (96.90, 88.86, 108.84),
    "spectral": (96.85, 88.76, 121.51),
    "ssm": (95.61, 88.44, 62.50),
    "ssm-ar": (95.85, 88.98, 66.88),
    "csm": (95.02, 88.42, 62.20),
}
ENCODERS: Mapping[str, str] = {
    "elbo": "gaussian",
    "stein": "implicit",
    "spectral": "implicit",
    "ssm": "implicit",
    "ssm-ar": "autoregressive",
    "csm": "autoregressive",
}
_WHITENED, _CENTRED = "train.whitened=true", "train.centred=true"
_STANDARDISED = "train.whitened=conditionals"
_RATE = "train.score_learning_rate={rate}"  # that of the autoencoder, which the scores of the other methods have
_NOISE = ("train.score_noise={sigma_max: 1.0, sigma_min: 0.1}", "train.mix=auto")
#: Ours beside the paper's six: what is changed of csm.
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
}
MNIST, FACES = "vae-mnist", "vae-faces"
_TEST_BITS = 101  # seed of the binary test digits, the same for all
_SHOWN = 64
_LATER: Mapping[str, Any] = {"entropy_weight": 1.0}  # settings that runs of before do not have, with their defaults
_ACROSS = 7  # pictures in a row, at most
Result = dict[str, Any]


class Table2(Settings):
    """Networks and rates are those of the presets ``vae-mnist`` and ``vae-faces``."""

    lists_cells: ClassVar[frozenset[str]] = frozenset({"seeds", "repeated", "methods", "latents", "faces"})
    keeps_cells: ClassVar[bool] = True

    methods: tuple[str, ...] = Field((*QUOTED, "csm, whitened, centred"), min_length=1)
    # for all seeds; the others for the first alone
    repeated: tuple[str, ...] = ("csm", "ssm", "elbo", "csm, whitened, centred")
    latents: tuple[int, ...] = (8, 16)  # of digits; () for none
    faces: bool = True
    mnist_changes: tuple[str, ...] = ()
    faces_changes: tuple[str, ...] = ()
    test_images: int = Field(10_000, ge=2)  # of the importance weighted bound
    samples: int = Field(2_000, ge=1)  # latents of each
    annealed_images: int = Field(200, ge=2)
    simulated_images: int = Field(64, ge=2)  # of the check from both sides
    temperatures: int = 200
    chains: int = 16
    leapfrog: int = 5
    frechet_images: int = Field(2_000, ge=2)


_TINY = ("train.steps=2", "train.batch_size=4", "train.validation_rows=2", "train.validation_samples=2",
         "train.particles=3", "train.score_hidden=[8]", "train.head_hidden=[8]")  # fmt: skip
PRESETS: Mapping[Preset, Table2] = {
    "smoke": Table2(
        methods=("elbo", "stein", "csm"), repeated=(), latents=(2,), test_images=3, samples=4, annealed_images=2,
        simulated_images=2, temperatures=3, chains=2, leapfrog=1, frechet_images=4,
        mnist_changes=(*_TINY, "data={kind: digits}", "model.hidden_features=[8]"),
        faces_changes=(*_TINY, "data={kind: digits}", "model.channels=[4, 4]"),
    ),
    "cpu": Table2(
        seeds=2,
        mnist_changes=("train.steps=12000",),
        faces_changes=("train.steps=600", "train.batch_size=64", "model.channels=[32, 64, 128, 256]",
                       "train.validate_every=200"),
        test_images=2_000, samples=1_000, annealed_images=100, simulated_images=32, frechet_images=1_000,
    ),
    "paper": Table2(
        seeds=3, temperatures=1_000, leapfrog=10, annealed_images=10_000, frechet_images=10_000,
        mnist_changes=("train.ema=0", "train.particles=100"), faces_changes=("train.ema=0",),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One autoencoder."""

    preset: str
    method: str
    latents: int | None  # None: those of the preset
    seed: int

    @property
    def name(self) -> str:
        size = "" if self.latents is None else f" {self.latents}"
        return f"{self.preset}{size} {self.method} seed {self.seed}"

    def config(self, run: Study[Table2]) -> VAERunConfig:
        """How it is built and trained."""
        base = "csm" if self.method in OURS else self.method
        own = [f"train.method={base}", f"model.encoder={ENCODERS[base]}", f"train.seed={self.seed}",
               f"train.device={run.device.type}", *self.changes(run)]  # fmt: skip
        if self.latents is not None:
            own.append(f"model.latents={self.latents}")
        return validated(load_tree(self.preset, [*self.shared(run), *own]), self.preset, VAERunConfig)

    def shared(self, run: Study[Table2]) -> tuple[str, ...]:
        """What is changed of the preset for all methods alike."""
        return run.settings.mnist_changes if self.preset == MNIST else run.settings.faces_changes

    def changes(self, run: Study[Table2]) -> list[str]:
        """What is changed of csm; on faces, the rate of its scores has the paper's ratio to that of the autoencoder."""
        rate = load_tree(self.preset, self.shared(run))["train"]["learning_rate"]
        if self.method == "csm":
            return [f"train.score_learning_rate={2.0 * rate}"] if self.preset == FACES else []
        return [change.replace("{rate}", str(rate)) for change in OURS.get(self.method, ())]

    def folder(self, run: Study[Table2]) -> Path:
        """Its name stands for all settings; one that came later is left out where it changes nothing."""
        described = self.config(run).model_dump(mode="json")
        for later, default in _LATER.items():
            if described["train"][later] == default:
                del described["train"][later]
        return run.work / f"{self.preset}-{digest([described, arcsm.__version__])}"


def body(run: Study[Table2]) -> Result:
    """Train every autoencoder, measure it and draw from it; each is a cell, so that a stopped run goes on."""
    settings = run.settings
    unknown = {*settings.methods, *settings.repeated} - QUOTED.keys() - OURS.keys()
    if unknown:
        raise ValueError(f"methods: unknown {', '.join(sorted(unknown))}; known: {', '.join((*QUOTED, *OURS))}")
    sets = [(MNIST, latents) for latents in settings.latents] + [(FACES, None)] * settings.faces
    cells = {
        (preset, latents, method): [Cell(preset, method, latents, seed) for seed in _seeds(settings, method)]
        for preset, latents in sets
        for method in settings.methods
    }
    every = [cell for group in cells.values() for cell in group]
    training = _each(run, "train", every, _train)
    diverged = {cell.name: training[cell.name]["diverged"] for cell in every if "diverged" in training[cell.name]}
    every = [cell for cell in every if "steps" in training[cell.name]]  # that left a model, broken or not
    digits, faces = ([cell for cell in every if cell.preset == preset] for preset in (MNIST, FACES))
    pressures = _each(run, "pressure", every, _pressure, diverged)
    measured = _each(run, "measure", digits, _likelihood, diverged) | _each(run, "measure", faces, _frechet, diverged)
    annealed = _each(run, "anneal", digits, _annealed, diverged)
    every = [cell for cell in every if pressures[cell.name] and measured[cell.name] and annealed.get(cell.name) != {}]
    drawn = _each(run, "draw", [cell for cell in every if cell.seed == settings.first_seed], _drawn)
    columns: dict[str, Result] = {}
    for preset, latents in sets:
        rows = {}
        for method in settings.methods:
            group = [cell for cell in cells[preset, latents, method] if cell in every]
            if not group or group[0].seed != settings.first_seed:
                continue  # said under "diverged"
            rows[method] = {
                **_over_cells([training[cell.name] | pressures[cell.name] | measured[cell.name] for cell in group]),
                **_over_annealed({cell.seed: annealed[cell.name]["annealed"] for cell in group if cell in digits}),
                "changes": group[0].changes(run),
                "samples": _picture(run, group[0], drawn[group[0].name]),
            }
        columns[_column(preset, latents)] = {"methods": rows, **_best(preset, rows)}
    return {
        "columns": columns,
        "diverged": diverged,
        "quoted": {method: list(values) for method, values in QUOTED.items() if method in settings.methods},
        "figure": run.figure(_figure(run, columns, {key: drawn.get(group[0].name) for key, group in cells.items()})),
    }


def _each(
    run: Study[Table2],
    part: str,
    cells: list[Cell],
    compute: Callable[[Study[Table2], Cell], Result],
    broken: Collection[str] = (),
) -> dict[str, Result]:
    """A part of the work for each autoencoder, by its name; done again where one is built or trained otherwise.

    Of those that are broken there is nothing where it cannot be done.
    """

    def computed(cell: Cell) -> Result:
        return _if_finite(partial(compute, run, cell)) if cell.name in broken else compute(run, cell)

    found = run.each(
        {f"{part} {cell.name}": partial(computed, cell) for cell in cells},
        {f"{part} {cell.name}": cell.folder(run).name for cell in cells},
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


def _seeds(settings: Table2, method: str) -> list[int]:
    return list(settings.all_seeds()) if method in settings.repeated else [settings.first_seed]


def _column(preset: str, latents: int | None) -> str:
    return "faces" if preset == FACES else f"digits, {latents} latents"


# Cells --------------------------------------------------------------------------------------------------------------


def _train(run: Study[Table2], cell: Cell) -> Result:
    """How it was trained; where that broke, why, and what it was like when it was last looked at."""
    try:
        train_vae_run(cell.config(run), cell.folder(run), resume=True, progress=True)
    except TrainingDiverged as error:
        return {"diverged": str(error), **_if_finite(partial(_trained, run, cell))}
    return _trained(run, cell)


def _trained(run: Study[Table2], cell: Cell) -> Result:
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


def _pressure(run: Study[Table2], cell: Cell) -> Result:
    """With which share of the true entropy's pressure it ended; see :meth:`EntropyGradient.pressure`."""
    _vae(run, cell)
    return {"pressure": read_metrics(cell.folder(run))[-1]["pressure"]}


def _vae(run: Study[Table2], cell: Cell) -> VAE:
    """The trained one; trained once more where only what was measured of it was kept."""
    if not is_finished(cell.folder(run)):
        with suppress(TrainingDiverged):  # as it did before
            train_vae_run(cell.config(run), cell.folder(run), resume=True, progress=True)
    return load_vae_run(cell.folder(run), str(run.device)).model


def _dataset(run: Study[Table2], cell: Cell) -> Dataset:
    config = cell.config(run)
    return load_dataset(config.data, config.train.seed)


def _test_digits(run: Study[Table2], cell: Cell, vae: VAE, count: int) -> Tensor:
    """Some test digits, always the same (the first of them are easier than the rest), made binary once and for all."""
    rows, generator = _dataset(run, cell).test, torch.Generator().manual_seed(_TEST_BITS)
    chosen = torch.randperm(len(rows), generator=generator)[:count]
    return vae.prepare(rows[chosen], generator).to(run.device)


def _likelihood(run: Study[Table2], cell: Cell) -> Result:
    """By importance sampling, in nats, with the standard error over the digits."""
    settings, vae = run.settings, _vae(run, cell)
    x = _test_digits(run, cell, vae, settings.test_images)
    generator = run.generator(cell.seed, 1)
    found = []
    with track("likelihood", len(x), True) as advance:
        for part in x.split(50):
            found.append(importance_bound(vae, part, settings.samples, generator=generator))
            advance(len(part))
    mean, error = summary(-torch.cat(found))
    explicit = isinstance(vae.encoder, GaussianEncoder)
    return {
        "nll": mean,
        "nll_standard_error": error,
        "negative_elbo": -float(elbo(vae, x, generator=generator).mean()) if explicit else None,
        "used_latents": used_latents(vae, x[:256], generator),
    }


def _annealed(run: Study[Table2], cell: Cell) -> Result:
    """By annealing, on fewer digits; and how far lower and upper bound are apart on digits that the model drew."""
    settings, vae = run.settings, _vae(run, cell)
    annealing = Annealing(settings.temperatures, settings.chains, settings.leapfrog)
    x = _test_digits(run, cell, vae, settings.annealed_images)
    generator = run.generator(cell.seed, 2)
    begun = time.monotonic()
    annealed, important = [], []
    for part in x.split(50):
        proposal = fit_proposal(vae, part, generator=generator)
        annealed.append(annealed_bound(vae, part, annealing, proposal, generator, progress=True))
        important.append(importance_bound(vae, part, settings.samples, proposal, generator))
    seconds = time.monotonic() - begun
    mean, error = summary(-torch.cat(annealed))
    lower, upper = gap(vae, settings.simulated_images, annealing, generator=generator)
    difference, its_error = summary(torch.cat(annealed) - torch.cat(important))
    apart, apart_error = summary(upper - lower)
    return {
        "annealed": {
            "nll": mean,
            "standard_error": error,
            "nll_of_each": (-torch.cat(annealed)).tolist(),
            "images": len(x),
            "seconds": round(seconds, 1),
            "less_importance_weighted": [difference, its_error],
            "upper_less_lower_on_simulated": [apart, apart_error],
        }
    }


def _frechet(run: Study[Table2], cell: Cell) -> Result:
    """The Fréchet distance of samples to held-out images."""
    vae, dataset, count = _vae(run, cell), _dataset(run, cell), run.settings.frechet_images
    real = _pixels(dataset.test[:count], dataset)
    frechet = Frechet(real, run.device, progress=True)
    drawn = _pixels(vae.sample(count, run.generator(cell.seed, 3)).cpu(), dataset)
    return {
        "frechet_distance": frechet.distance(drawn),
        "frechet_network": frechet.network,
        "frechet_images": [len(real), len(drawn)],
        "frechet_distance_of_training_images": frechet.distance(_pixels(dataset.train_rows(count), dataset)),
    }


def _pixels(rows: Tensor, dataset: Dataset) -> Tensor:
    levels, shape = dataset.metadata["levels"], dataset.metadata["image_shape"]
    return unscale_images(rows.clamp(-1.0, 1.0), levels, stretch=True).view(-1, *shape)


# Over the cells -----------------------------------------------------------------------------------------------------


def _over_cells(found: list[Result]) -> Result:
    """Of the seeds of one method: what is a number as mean and deviation, what is not from the first."""
    merged = dict(found[0])
    for key in ("nll", "frechet_distance", "validation", "milliseconds_a_step", "pressure"):
        if key in merged:
            merged[key] = {**over_seeds([cell[key] for cell in found]), "of_each_seed": [cell[key] for cell in found]}
    return merged


def _over_annealed(found: Mapping[int, Result]) -> Result:
    """Of the seeds of one method: what :func:`over_rows` says, and means of how far bounds are apart."""
    if not found:
        return {}
    merged = {**next(iter(found.values())), **over_rows({seed: cell["nll_of_each"] for seed, cell in found.items()})}
    for key in ("less_importance_weighted", "upper_less_lower_on_simulated"):
        merged[key] = torch.tensor([cell[key] for cell in found.values()]).mean(0).tolist()
    return {"annealed": merged}


def _best(preset: str, rows: Mapping[str, Result]) -> Result:
    """Who is the best of those that did not break: of digits by annealing, as in the paper, with how far behind others
    are."""
    if not rows:
        return {"best": None}
    whole = [method for method, row in rows.items() if "diverged" not in row] or list(rows)
    if preset != MNIST:
        return {"best": min(whole, key=lambda method: rows[method]["frechet_distance"]["of_each_seed"][0])}
    each = {method: row["annealed"].pop("nll_of_each") for method, row in rows.items()}
    best, differences, of_seeds = behind(each, whole)
    return {"best": best, "annealed_behind_the_best": differences, "behind_with_each_seed": of_seeds}


# Pictures -----------------------------------------------------------------------------------------------------------


def _drawn(run: Study[Table2], cell: Cell) -> Result:
    """A grid of expected images, as the text of a PNG file."""
    vae, file = _vae(run, cell), BytesIO()
    rows = vae.sample(_SHOWN, run.generator(cell.seed, 4)).cpu()
    image_grid(_pixels(rows, _dataset(run, cell))).save(file, format="PNG", optimize=True)
    return {"png": base64.b64encode(file.getvalue()).decode("ascii")}


def _picture(run: Study[Table2], cell: Cell, drawn: Result) -> str:
    """Put a grid beside the record (Figures 6 and 13 to 18); returns its name."""
    slug = re.sub("[^a-z0-9]+", "-", f"{cell.preset} {cell.latents or ''} {cell.method}")
    path = result_path(run.out, run.name, run.preset).with_name(f"{run.preset}-{slug}.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_bytes(base64.b64decode(drawn["png"]))
    return path.name


def _figure(run: Study[Table2], columns: Mapping[str, Result], drawn: Mapping[Any, Result | None]) -> Figure:
    """Samples of every method for every set, which begins a row."""
    methods = run.settings.methods
    sets = list(dict.fromkeys((preset, latents) for preset, latents, _ in drawn))
    down = -(-len(methods) // _ACROSS)
    across = -(-len(methods) // down)
    figure = Figure(figsize=(1.9 * across, 2.5 * down * len(sets)), layout="constrained")
    panels = figure.subplots(down * len(sets), across, squeeze=False)
    for (preset, latents), own in zip(sets, panels.reshape(len(sets), -1), strict=True):
        found = columns[_column(preset, latents)]["methods"]
        own[0].set_ylabel(_column(preset, latents), fontsize=8)
        for axes in own[len(methods) :]:
            axes.remove()
        for axes, method in zip(own, methods, strict=False):
            axes.set(xticks=[], yticks=[])
            axes.set_title(f"{_in_lines(method)}\n{_value(preset, found.get(method))}", fontsize=8)
            grid = drawn[preset, latents, method]
            if grid is not None:
                png = BytesIO(base64.b64decode(grid["png"]))
                axes.imshow(np.asarray(Image.open(png).convert("RGB")), interpolation="nearest")
    return figure


def _value(preset: str, row: Result | None) -> str:
    if row is None:
        return "diverged"
    if preset == MNIST:
        return f"{row['annealed']['nll']:.2f} nats"
    return f"Fréchet {row['frechet_distance']['mean']:.3g}"


def _in_lines(method: str) -> str:
    return method.replace(", ", ",\n")


def _part(**update: Any) -> Mapping[Preset, Table2]:
    return {preset: settings.model_copy(update=update) for preset, settings in PRESETS.items()}


def _of_latents(count: int) -> Mapping[Preset, Table2]:
    """One column of the paper's table, with all of its steps, and three seeds of what it claims of csm, and of ours.

    Half of the chains for more temperatures: bounds that are closer, for less time a digit.
    """
    whole = {"mnist_changes": (), "annealed_images": 1_000, "temperatures": 300, "chains": 8,
             "methods": (*QUOTED, "csm, standardised"),
             "seeds": 3, "repeated": ("csm", "ssm", "elbo", "csm, standardised")}  # fmt: skip
    presets = _part(faces=False, latents=(count,))
    return {preset: part.model_copy(update=whole if preset == "cpu" else {}) for preset, part in presets.items()}


def _ablation() -> Mapping[Preset, Table2]:
    """What of ours makes csm better, where it lags behind the most; there bounds are loose, so more temperatures."""
    presets = _part(faces=False, seeds=1, methods=("csm", *OURS))
    own: dict[str, dict[str, Any]] = {"smoke": {}, "paper": {"latents": (16,)},
           "cpu": {"latents": (16,), "annealed_images": 500, "temperatures": 800, "chains": 4}}  # fmt: skip
    return {preset: part.model_copy(update=own[preset]) for preset, part in presets.items()}


_ABOUT = "autoencoders by six estimators of the entropy gradient"
TABLE2 = study("table2", f"{_ABOUT} (Table 2, Figures 6 and 13 to 18)", PRESETS, body)
TABLE2_MNIST = study("table2-mnist", f"digits: {_ABOUT} (part of table2)", _part(faces=False), body)
TABLE2_MNIST_8, TABLE2_MNIST_16 = (
    study(f"table2-mnist-{count}", f"digits, {count} latents, all steps: {_ABOUT} (part of table2)",
          _of_latents(count), body) for count in (8, 16)
)  # fmt: skip
TABLE2_FACES = study("table2-faces", f"faces: {_ABOUT} (part of table2)", _part(latents=(), seeds=1), body)
TABLE2_ABLATION = study(
    "table2-ablation", "digits, 16 latents: what makes csm better (part of table2)", _ablation(), body
)

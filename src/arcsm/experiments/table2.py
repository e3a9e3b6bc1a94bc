"""Table 2 and Figures 6, 13 to 18: autoencoders whose encoders are trained by six estimators of the entropy gradient.

All share the decoder, the optimizer and the steps; :mod:`arcsm.experiments.autoencoders` trains and measures each.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from io import BytesIO
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image

from arcsm._runtime.files import atomic_path
from arcsm.experiments import autoencoders
from arcsm.experiments.autoencoders import (
    ENCODERS,
    FACES,
    FRECHET_SETTINGS,
    LIKELIHOOD_SETTINGS,
    LOWER_BOUND_SETTINGS,
    MNIST,
    OURS,
    Autoencoder,
    Result,
    Table2,
)
from arcsm.experiments.base import Preset, Study, over_seeds, study
from arcsm.experiments.paired import behind, over_rows
from arcsm.experiments.records import result_path

#: The paper's Table 2: nats of MNIST by annealing with 8 and 16 latents, Fréchet (Inception) distance of CelebA.
QUOTED: Mapping[str, tuple[float, float, float]] = {
    "elbo": (96.74, 91.82, 66.31),
    "stein": (96.90, 88.86, 108.84),
    "spectral": (96.85, 88.76, 121.51),
    "ssm": (95.61, 88.44, 62.50),
    "ssm-ar": (95.85, 88.98, 66.88),
    "csm": (95.02, 88.42, 62.20),
}
_ACROSS = 7  # pictures in a row, at most
_TINY = ("train.steps=2", "train.batch_size=4", "train.validation_rows=2", "train.validation_samples=2",
         "train.particles=3", "train.score_hidden=[8]", "train.head_hidden=[8]")  # fmt: skip
PRESETS: Mapping[Preset, Table2] = {
    "smoke": Table2(
        methods=("elbo", "stein", "csm"), repeated=(), latents=(2,), test_images=3, samples=4,
        simulated_images=2, temperatures=3, chains=2, leapfrog=1, frechet_images=4,
        mnist_changes=(*_TINY, "data={kind: digits}", "model.hidden_features=[8]"),
        faces_changes=(*_TINY, "data={kind: digits}", "model.channels=[4, 4]"),
    ),
    "cpu": Table2(
        seeds=3,
        faces_changes=("train.steps=2000", "train.batch_size=64", "model.channels=[32, 64, 128, 256]",
                       "train.validate_every=500", "train.particles=100"),
        kernels_encoder="autoregressive",
        test_images=2_000, samples=1_000, temperatures=60, frechet_images=1_000,
    ),
    "paper": Table2(
        seeds=3, temperatures=1_000, chains=16, leapfrog=10, frechet_images=10_000,
        mnist_changes=("train.ema=0", "train.particles=100"), faces_changes=("train.ema=0",),
    ),
}  # fmt: skip


def body(run: Study[Table2]) -> Result:
    """Train every autoencoder, measure it and draw from it; each is a cell, so that a stopped run goes on."""
    settings = run.settings
    unknown = {*settings.methods, *settings.repeated} - ENCODERS.keys() - OURS.keys()
    if unknown:
        raise ValueError(f"methods: unknown {', '.join(sorted(unknown))}; known: {', '.join((*ENCODERS, *OURS))}")
    sets = [(MNIST, latents) for latents in settings.latents] + [(FACES, None)] * settings.faces
    cells = {
        (preset, latents, method): [Autoencoder(preset, method, latents, seed) for seed in _seeds(settings, method)]
        for preset, latents in sets
        for method in settings.methods
    }
    every = [cell for group in cells.values() for cell in group]
    training = autoencoders.each(run, "train", every, autoencoders.train)
    diverged = {cell.name: training[cell.name]["diverged"] for cell in every if "diverged" in training[cell.name]}
    every = [cell for cell in every if "steps" in training[cell.name]]  # that left a model, broken or not
    digits, faces = ([cell for cell in every if cell.preset == preset] for preset in (MNIST, FACES))
    pressures = autoencoders.each(run, "pressure", every, autoencoders.pressure, diverged)
    measured = {
        **autoencoders.each(run, "likelihood", digits, autoencoders.likelihood, diverged, LIKELIHOOD_SETTINGS),
        **autoencoders.each(run, "measure", faces, autoencoders.frechet, diverged, FRECHET_SETTINGS),
    }
    every = [cell for cell in every if pressures[cell.name] and measured[cell.name]]
    digits = [cell for cell in digits if cell in every]
    lower = autoencoders.each(run, "elbo", digits, autoencoders.lower_bound, diverged, LOWER_BOUND_SETTINGS)
    first = [cell for cell in every if cell.seed == settings.first_seed]
    drawn = autoencoders.each(run, "draw", first, autoencoders.draw)
    columns: dict[str, Result] = {}
    for preset, latents in sets:
        rows = {}
        for method in settings.methods:
            asked = cells[preset, latents, method]
            group = [cell for cell in asked if cell in every]
            if not group or group[0].seed != settings.first_seed:
                continue  # said under "diverged"
            rows[method] = {
                **_over_cells({cell.seed: _of(cell, training, pressures, measured, lower) for cell in group}),
                **_over_annealed({cell.seed: measured[cell.name]["annealed"] for cell in group if cell in digits}),
                **group[0].described(run),
                "seeds": [cell.seed for cell in asked],
                "broke": [cell.seed for cell in asked if cell.name in diverged],
                "samples": _picture(run, group[0], drawn[group[0].name]),
            }
        columns[_column(preset, latents)] = {"methods": rows, **_best(preset, rows)}
    return {
        "columns": columns,
        "diverged": diverged,
        "quoted": {method: list(values) for method, values in QUOTED.items() if method in settings.methods},
        "figure": run.figure(_figure(run, columns, {key: drawn.get(group[0].name) for key, group in cells.items()})),
    }


def _seeds(settings: Table2, method: str) -> list[int]:
    return list(settings.all_seeds()) if method in settings.repeated else [settings.first_seed]


def _column(preset: str, latents: int | None) -> str:
    return "faces" if preset == FACES else f"digits, {latents} latents"


def _of(cell: Autoencoder, *parts: Mapping[str, Result]) -> Result:
    """All that the parts of the work have found of one autoencoder."""
    return {key: value for part in parts for key, value in part.get(cell.name, {}).items()}


# Over the cells -----------------------------------------------------------------------------------------------------


def _over_cells(found: Mapping[int, Result]) -> Result:
    """Of the seeds of one method: what is a number as mean and deviation, what is not from the first."""
    cells = list(found.values())
    merged = {key: value for key, value in cells[0].items() if key != "diverged"}
    for key in ("nll", "frechet_distance", "validation", "milliseconds_a_step", "pressure", "negative_elbo"):
        if all(isinstance(cell.get(key), float) for cell in cells):
            merged[key] = {**over_seeds([cell[key] for cell in cells]), "of_each_seed": [cell[key] for cell in cells]}
    merged["steps"] = max(cell["steps"] for cell in cells)
    merged["seeds_measured"] = list(found)
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
    """The best of those of which no seed broke, and how far behind others are: of digits by annealing, as in the
    paper, of faces by the Fréchet distance."""
    if not rows:
        return {"best": None}
    whole = [method for method, row in rows.items() if not row["broke"]] or list(rows)
    if preset != MNIST:
        distances = {
            method: {
                seed: (value,)
                for seed, value in zip(row["seeds_measured"], row["frechet_distance"]["of_each_seed"], strict=True)
            }
            for method, row in rows.items()
        }
        best, differences, of_seeds = behind(distances, whole)
        return {"best": best, "distance_behind_the_best": differences, "behind_with_each_seed": of_seeds}
    each = {method: row["annealed"].pop("nll_of_each") for method, row in rows.items()}
    best, differences, of_seeds = behind(each, whole)
    return {"best": best, "annealed_behind_the_best": differences, "behind_with_each_seed": of_seeds}


# Pictures -----------------------------------------------------------------------------------------------------------


def _picture(run: Study[Table2], cell: Autoencoder, drawn: Result) -> str:
    """Put a grid beside the record (Figures 6 and 13 to 18); returns its name."""
    slug = re.sub("[^a-z0-9]+", "-", f"{cell.preset} {cell.latents or ''} {cell.method}")
    ((suffix, text),) = drawn.items()
    path = result_path(run.out, run.name, run.preset).with_name(f"{run.preset}-{slug}.{suffix}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_bytes(base64.b64decode(text))
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
                (text,) = grid.values()
                picture = Image.open(BytesIO(base64.b64decode(text)))
                axes.imshow(np.asarray(picture.convert("RGB")), interpolation="nearest")
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


def _ablation() -> Mapping[Preset, Table2]:
    """What of ours makes csm better, where it lags behind the most."""
    presets = _part(faces=False, seeds=1, methods=("csm", *OURS))
    own: Mapping[Preset, dict[str, Any]] = {
        "smoke": {},
        "cpu": {"latents": (16,), "mnist_changes": ("train.steps=12000",), "test_images": 500},
        "paper": {"latents": (16,)},
    }
    return {preset: part.model_copy(update=own[preset]) for preset, part in presets.items()}


_ABOUT = "autoencoders by six estimators of the entropy gradient"
TABLE2 = study("table2", f"{_ABOUT} (Table 2, Figures 6 and 13 to 18)", PRESETS, body)
TABLE2_MNIST = study("table2-mnist", f"digits: {_ABOUT} (part of table2)", _part(faces=False), body)
TABLE2_MNIST_8, TABLE2_MNIST_16 = (
    study(f"table2-mnist-{count}", f"digits, {count} latents: {_ABOUT} (part of table2)",
          _part(faces=False, latents=(count,)), body) for count in (8, 16)
)  # fmt: skip
TABLE2_FACES = study("table2-faces", f"faces: {_ABOUT} (part of table2)", _part(latents=(), seeds=1), body)
TABLE2_ABLATION = study(
    "table2-ablation", "digits, 16 latents: what makes csm better (part of table2)", _ablation(), body
)

"""Table 2 and Figures 6, 13 to 18: autoencoders whose encoders are trained by six estimators of the entropy gradient.

All share the decoder, the optimizer and the number of steps. :mod:`arcsm.experiments.autoencoders` trains and measures
each one.
"""

import base64
import re
from collections.abc import Mapping
from functools import partial
from io import BytesIO
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from arcsm.data.images import open_image
from arcsm.experiments import autoencoders
from arcsm.experiments.autoencoders import ENCODERS, FACES, MNIST, OURS, Autoencoder, Table2
from arcsm.experiments.base import Preset, Result, Study, check_names, study
from arcsm.experiments.comparisons import compare_with_best, mean_and_sd, summarise_rows
from arcsm.reports.plots import as_png, column_panels

#: The paper's Table 2: nats of MNIST by annealing with 8 and 16 latents, FID of CelebA.
QUOTED: Mapping[str, tuple[float, float, float]] = {
    "elbo": (96.74, 91.82, 66.31),
    "stein": (96.90, 88.86, 108.84),
    "spectral": (96.85, 88.76, 121.51),
    "ssm": (95.61, 88.44, 62.50),
    "ssm-ar": (95.85, 88.98, 66.88),
    "csm": (95.02, 88.42, 62.20),
}
_MAX_COLUMNS = 7  # of the figure
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
    """Train every autoencoder, measure it and draw from it."""
    settings = run.settings
    check_names("methods", [*settings.methods, *settings.repeated], (*ENCODERS, *OURS))
    sets = [(MNIST, latents) for latents in settings.latents] + [(FACES, None)] * settings.faces
    groups = {
        (preset, latents, method): [
            Autoencoder(preset, method, latents, seed)
            for seed in (settings.seed_range if method in settings.repeated else [settings.first_seed])
        ]
        for preset, latents in sets
        for method in settings.methods
    }
    cells = [cell for group in groups.values() for cell in group]
    compute = partial(autoencoders.compute_part, run)
    training = compute("train", cells, autoencoders.train)
    diverged = {cell.name: training[cell.name]["diverged"] for cell in cells if "diverged" in training[cell.name]}
    cells = [cell for cell in cells if "steps" in training[cell.name]]  # training left a model, even if it diverged
    digits, faces = ([cell for cell in cells if cell.preset == preset] for preset in (MNIST, FACES))
    pressures = compute("pressure", cells, autoencoders.pressure, diverged)
    measures = {
        **compute("likelihood", digits, autoencoders.likelihood, diverged, autoencoders.LIKELIHOOD_SETTINGS),
        **compute("measure", faces, autoencoders.frechet, diverged, autoencoders.FRECHET_SETTINGS),
    }
    cells = [cell for cell in cells if pressures[cell.name] and measures[cell.name]]
    digits = [cell for cell in digits if cell in cells]
    bounds = compute("elbo", digits, autoencoders.lower_bound, diverged, autoencoders.LOWER_BOUND_SETTINGS)
    pictures = compute("draw", [cell for cell in cells if cell.seed == settings.first_seed], autoencoders.draw)

    def merged_parts(cell: Autoencoder) -> Result:
        parts = (training, pressures, measures, bounds)
        return {key: value for part in parts for key, value in part.get(cell.name, {}).items()}

    columns: dict[str, Result] = {}
    for preset, latents in sets:
        rows = {}
        for method in settings.methods:
            planned = groups[preset, latents, method]
            group = [cell for cell in planned if cell in cells]
            if not group or group[0].seed != settings.first_seed:
                continue  # listed under "diverged"
            rows[method] = {
                **merge_seeds({cell.seed: merged_parts(cell) for cell in group}),
                **merge_annealed({cell.seed: measures[cell.name]["annealed"] for cell in group if cell in digits}),
                **group[0].described(run),
                "seeds": [cell.seed for cell in planned],
                "broke": [cell.seed for cell in planned if cell.name in diverged],
                "samples": _write_grid(run, group[0], pictures[group[0].name]),
            }
        columns[_column(preset, latents)] = {"methods": rows, **compare_methods(preset, rows)}
    grids = {key: pictures.get(group[0].name) for key, group in groups.items()}
    return {
        "columns": columns,
        "diverged": diverged,
        "quoted": {method: list(values) for method, values in QUOTED.items() if method in settings.methods},
        "figure": run.figure(_figure(run, columns, grids)),
        "pressures": run.picture("pressures", as_png(_pressure_figure(columns))),
    }


def _column(preset: str, latents: int | None) -> str:
    return "faces" if preset == FACES else f"digits, {latents} latents"


def merge_seeds(results: Mapping[int, Result]) -> Result:
    """Merge the seeds of one method: means and deviations of numbers, and other values of the first seed."""
    cells = list(results.values())
    merged = {key: value for key, value in cells[0].items() if key != "diverged"}
    for key in ("nll", "frechet_distance", "validation", "milliseconds_a_step", "pressure", "negative_elbo"):
        if all(isinstance(cell.get(key), float) for cell in cells):
            merged[key] = {**mean_and_sd([cell[key] for cell in cells]), "of_each_seed": [cell[key] for cell in cells]}
    merged["steps"] = max(cell["steps"] for cell in cells)
    merged["seeds_measured"] = list(results)
    return merged


def merge_annealed(results: Mapping[int, Result]) -> Result:
    """Merge the annealed likelihoods of the seeds of one method; empty without results."""
    if not results:
        return {}
    losses = {seed: cell["nll_of_each"] for seed, cell in results.items()}
    merged = {**next(iter(results.values())), **summarise_rows(losses)}
    for key in ("less_importance_weighted", "upper_less_lower_on_simulated"):
        merged[key] = torch.tensor([cell[key] for cell in results.values()]).mean(0).tolist()
    return {"annealed": merged}


def compare_methods(preset: str, rows: Mapping[str, Result]) -> Result:
    """Compare all methods with the best: digits by annealed likelihood, as in the paper, faces by Fréchet distance.

    The best method is one without a diverged seed, if there is one.
    """
    if not rows:
        return {"best": None}
    losses: dict[str, Mapping[int, Any]] = {}
    for method, row in rows.items():
        if preset == MNIST:
            losses[method] = row["annealed"].pop("nll_of_each")
        else:
            distances = zip(row["seeds_measured"], row["frechet_distance"]["of_each_seed"], strict=True)
            losses[method] = {seed: (distance,) for seed, distance in distances}
    candidates = [method for method, row in rows.items() if not row["broke"]] or list(rows)
    best, differences, by_seed = compare_with_best(losses, candidates)
    key = "annealed_behind_the_best" if preset == MNIST else "distance_behind_the_best"
    return {"best": best, key: differences, "behind_with_each_seed": by_seed}


def _write_grid(run: Study[Table2], cell: Autoencoder, picture: Result) -> str:
    """Write a grid of samples (Figures 6 and 13 to 18)."""
    slug = re.sub("[^a-z0-9]+", "-", f"{cell.preset} {cell.latents or ''} {cell.method}")
    ((suffix, text),) = picture.items()
    return run.picture(slug, base64.b64decode(text), suffix)


def _figure(run: Study[Table2], columns: Mapping[str, Result], grids: Mapping[Any, Result | None]) -> Figure:
    methods = run.settings.methods
    sets = list(dict.fromkeys((preset, latents) for preset, latents, _ in grids))
    down = -(-len(methods) // _MAX_COLUMNS)
    across = -(-len(methods) // down)
    figure = Figure(figsize=(1.9 * across, 2.5 * down * len(sets)), layout="constrained")
    panels = figure.subplots(down * len(sets), across, squeeze=False)
    for (preset, latents), block in zip(sets, panels.reshape(len(sets), -1), strict=True):
        rows = columns[_column(preset, latents)]["methods"]
        block[0].set_ylabel(_column(preset, latents), fontsize=8)
        for axes in block[len(methods) :]:
            axes.remove()
        for axes, method in zip(block, methods, strict=False):
            axes.set(xticks=[], yticks=[])
            axes.set_title(method.replace(", ", ",\n") + f"\n{_value(preset, rows.get(method))}", fontsize=8)
            grid = grids[preset, latents, method]
            if grid is not None:
                (text,) = grid.values()
                picture = open_image(BytesIO(base64.b64decode(text)))
                axes.imshow(np.asarray(picture.convert("RGB")), interpolation="nearest")
    return figure


def _pressure_figure(columns: Mapping[str, Result]) -> Figure:
    """Return the pressure of each method during training: estimated over true entropy gradient, which should be one."""
    figure, panels = column_panels(list(columns), 4.4, 3.2)
    for axes, column in zip(panels, columns.values(), strict=True):
        axes.set_ylabel("pressure", fontsize=8)
        curves = {method: row["pressures"] for method, row in column["methods"].items() if "pressures" in row}
        for method, curve in curves.items():
            axes.plot(*np.array(curve, dtype=float).T, "o-", markersize=2, linewidth=1.0, label=method)
        axes.set(xscale="log", xlabel="step", yscale="symlog")
        if curves:
            axes.legend(frameon=False, fontsize=6)
    return figure


def _value(preset: str, row: Result | None) -> str:
    if row is None:
        return "diverged"
    if preset == MNIST:
        return f"{row['annealed']['nll']:.2f} nats"
    return f"Fréchet {row['frechet_distance']['mean']:.3g}"


def _part(changes: Mapping[str, dict[str, Any]] | None = None, **update: Any) -> Mapping[Preset, Table2]:
    """Return the presets with the same updates, and with changes of single presets."""
    changes = changes or {}
    return {name: settings.model_copy(update=update | changes.get(name, {})) for name, settings in PRESETS.items()}


#: Our variants are compared on the task where csm lags most.
_ABLATION: Mapping[str, dict[str, Any]] = {
    "cpu": {"latents": (16,), "mnist_changes": ("train.steps=12000",), "test_images": 500},
    "paper": {"latents": (16,)},
}
_ABOUT = "autoencoders by six estimators of the entropy gradient"
_PARTS: Mapping[str, tuple[str, Mapping[Preset, Table2]]] = {
    "mnist": (f"digits: {_ABOUT}", _part(faces=False)),
    "mnist-8": (f"digits, 8 latents: {_ABOUT}", _part(faces=False, latents=(8,))),
    "mnist-16": (f"digits, 16 latents: {_ABOUT}", _part(faces=False, latents=(16,))),
    "faces": (f"faces: {_ABOUT}", _part(latents=(), seeds=1)),
    "ablation": (
        "digits, 16 latents: what makes csm better",
        _part(_ABLATION, faces=False, seeds=1, methods=("csm", "ssm", "spectral", *OURS)),
    ),
}
EXPERIMENTS = [study("table2", f"{_ABOUT} (Table 2, Figures 6 and 13 to 18)", PRESETS, body)] + [
    study(f"table2-{part}", f"{about} (part of table2)", presets, body) for part, (about, presets) in _PARTS.items()
]

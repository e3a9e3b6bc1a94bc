"""Held-out likelihood of tables from the UCI repository: ours, flows, mixtures and kernels.

Random tenths are held out, three times. All methods see the same rows, standardised by those that they are fitted to,
and made continuous by the same noise where values repeat each other, so that all are densities of the same thing;
columns of hardly more than one value are left out. Ours maps skewed columns, which is part of it; the others get them
as they are.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from pydantic import Field
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KernelDensity
from torch import Tensor

from arcsm._runtime.random import dequantised
from arcsm.data.datasets import data_folder
from arcsm.data.table import read_table
from arcsm.estimators import ScoreDensity
from arcsm.estimators.column_types import detect_grid
from arcsm.estimators.ensemble_config import EnsembleConfig
from arcsm.experiments.base import Count, Positive, Preset, Settings, Study, over_seeds, study
from arcsm.experiments.peers import import_zuko
from arcsm.experiments.ranks import critical_difference, mean_ranks
from arcsm.metrics import mean_and_standard_error
from arcsm.objectives import mle
from arcsm.reports.plots import BLUE, GREY, open_frame

OURS = "arcsm"
FLOWS = ("MAF", "NSF", "MAF, mixture")
METHODS = (OURS, *FLOWS, "GMM", "KDE")
#: How one of our models, in place of an ensemble, may learn in the same time.
CSM, MLE, BOTH = "csm", "mle", "csm, then mle"
_ONE_VALUE = 0.99  # share of a column's rows with one value, from which on the column is left out
_RATES = {MLE: 2e-3, BOTH: 2e-4}  # of learning by likelihood
_LIKELIHOOD_BATCH = 64  # a row costs hundreds of evaluations
_VALIDATED = 200  # rows, while learning by likelihood
_REPEATED = 0.05  # share of values that others repeat, from which on a column gets noise
Array = NDArray[np.float64]
Result = dict[str, Any]


class UCI(Settings):
    """Flows get the processor seconds that ours took on the same rows."""

    lists_cells: ClassVar[frozenset[str]] = frozenset({"seeds", "methods", "tables", "ways"})

    methods: tuple[str, ...] = Field(METHODS, min_length=1)
    ways: tuple[str, ...] = (CSM, MLE, BOTH)  # of learning, of the first seed
    tables: tuple[str, ...] = ("concrete", "elevators", "energy", "parkinsons", "protein", "sml", "wine")
    most_rows: int = Field(50_000, ge=20)
    max_steps: Count | None = None  # of ours; by default its own
    flow_rate: Positive = 1e-3
    flow_hidden: tuple[Count, ...] = (128, 128)
    components: tuple[Count, ...] = (1, 2, 4, 8, 16, 32, 64)  # of the mixture, chosen by BIC
    bandwidths: tuple[Positive, ...] = (0.05, 0.1, 0.2, 0.3, 0.5, 0.8)  # of the kernels, chosen by cross-validation
    kernel_rows: Count = 5_000


PRESETS: Mapping[Preset, UCI] = {
    "smoke": UCI(tables=("wine",), methods=(OURS, "NSF", "GMM", "KDE"), most_rows=80, max_steps=3, flow_hidden=(8,),
                 components=(1, 2), bandwidths=(0.5,)),
    "cpu": UCI(seeds=3),
    "paper": UCI(seeds=3, most_rows=1_000_000),
}  # fmt: skip


def body(run: Study[UCI]) -> Result:
    """Every method on every table with every seed; ours first, whose seconds the flows get."""
    settings = run.settings
    for name, given, known in (("methods", settings.methods, METHODS), ("ways", settings.ways, (CSM, MLE, BOTH))):
        unknown = set(given) - set(known)
        if unknown:
            raise ValueError(f"{name}: unknown {', '.join(sorted(unknown))}; known: {', '.join(known)}")
    keys = [(table, seed) for table in settings.tables for seed in settings.all_seeds()]
    ours = run.each({f"{table} {OURS} seed {seed}": partial(_ours, run, table, seed) for table, seed in keys})
    others = run.each(
        {
            f"{table} {method} seed {seed}": partial(
                _peer, run, table, method, seed, ours[f"{table} {OURS} seed {seed}"]["fit_seconds"]
            )
            for table, seed in keys
            for method in settings.methods
            if method != OURS
        }
    )
    first = settings.first_seed
    ways = run.each(
        {
            f"{table} one model by {way} seed {first}": partial(
                _one_model, run, table, way, first, ours[f"{table} {OURS} seed {first}"]["fit_seconds"]
            )
            for table in settings.tables
            for way in settings.ways
        }
    )
    found = ours | others
    tables: dict[str, Result] = {}
    for table in settings.tables:
        methods = {}
        for method in (OURS, *(method for method in settings.methods if method != OURS)):
            cells = [found[f"{table} {method} seed {seed}"] for seed in settings.all_seeds()]
            methods[method] = {
                "log_likelihood": over_seeds([cell["log_likelihood"] for cell in cells]),
                "standard_error": float(np.mean([cell["standard_error"] for cell in cells])),
                "fit_seconds": float(np.mean([cell["fit_seconds"] for cell in cells])),
            }
        of_first = found[f"{table} {OURS} seed {first}"]
        tables[table] = {
            "rows": of_first["rows"],
            "columns": of_first["columns"],
            "methods": methods,
            "one_model": {way: ways[f"{table} one model by {way} seed {first}"] for way in settings.ways},
        }
    return {"tables": tables, "ranks": _ranks(tables), "figure": run.figure(_figure(tables))}


def _ranks(tables: Mapping[str, Result]) -> Result:
    """Mean ranks of the methods by log likelihood, and by how much they must differ to be told apart."""
    cells = [found["methods"] for found in tables.values()]
    ranks = mean_ranks(np.array([[cell["log_likelihood"]["mean"] for cell in found.values()] for found in cells]))
    return {
        "methods": dict(zip(cells[0], ranks.tolist(), strict=True)),
        "critical_difference": critical_difference(len(ranks), len(cells)),
    }


def _step(column: Array) -> float:
    """The width of a column's steps: of its grid, or else the smallest gap between values that others repeat."""
    grid, levels = detect_grid(column), np.unique(column)
    if grid is not None:
        return grid.spacing
    if 1.0 - len(levels) / len(column) < _REPEATED or len(levels) < 2:
        return 0.0
    gaps = np.diff(levels)
    return float(gaps[gaps > 1e-7 * (levels[-1] - levels[0])].min())


def _split(settings: UCI, table: str, seed: int) -> tuple[Array, Array]:
    """ConditionalUnits rows to fit and to judge, with the uniform noise of their steps."""
    values = read_table(data_folder() / "uci" / f"{table}.csv.gz").values.astype(np.float64)
    random = np.random.default_rng(seed)
    values = values[random.permutation(len(values))[: settings.most_rows]]
    steps = np.array([_step(column) for column in values.T])
    kept = np.array([np.unique(column, return_counts=True)[1].max() < _ONE_VALUE * len(column) for column in values.T])
    values = (values + steps * (random.random(values.shape) - 0.5))[:, kept]
    held_out = max(1, len(values) // 10)
    fitted, judged = values[held_out:], values[:held_out]
    mean, std = fitted.mean(0), fitted.std(0)
    return (fitted - mean) / std, (judged - mean) / std


def _ours(run: Study[UCI], table: str, seed: int) -> Result:
    fitted, judged = _split(run.settings, table, seed)
    steps = "auto" if run.settings.max_steps is None else run.settings.max_steps
    begun = time.process_time()
    density = ScoreDensity(max_steps=steps, random_state=seed, device=run.device.type, verbose=True).fit(fitted)
    seconds = time.process_time() - begun
    return _result(density.score_samples(judged), seconds, fitted)


def _peer(run: Study[UCI], table: str, method: str, seed: int, seconds: float) -> Result:
    fitted, judged = _split(run.settings, table, seed)
    begun = time.process_time()
    fit: Callable[..., Callable[[Array], Array]] = {"GMM": _mixture, "KDE": _kernels}.get(method, _flow)
    density = fit(run.settings, fitted, seed, method, seconds)
    spent = time.process_time() - begun
    return _result(density(judged), spent, fitted)


def _result(log_density: Array, seconds: float, fitted: Array) -> Result:
    mean, error = mean_and_standard_error(torch.from_numpy(np.asarray(log_density)))
    return {"log_likelihood": mean, "standard_error": error, "fit_seconds": seconds, "rows": len(fitted),
            "columns": fitted.shape[1]}  # fmt: skip


# Ours, learned otherwise --------------------------------------------------------------------------------------------


def _one_model(run: Study[UCI], table: str, way: str, seed: int, seconds: float) -> Result:
    """One model in place of an ensemble: by scores, by likelihood, or by one and then the other.

    By likelihood at the smallest noise, through the quadrature, which then normalises the density too, until as many
    processor seconds have passed as the ensemble took; scores alone take their own number of steps. The plan is that of
    the ensemble's first candidate, or what scores would choose.
    """
    fitted, judged = _split(run.settings, table, seed)
    begun = time.process_time()
    asked = run.settings.max_steps
    steps = {CSM: asked or "auto", MLE: 1, BOTH: asked or _half_of_the_steps(len(fitted))}[way]
    kind = _FirstPlan if way == MLE else ScoreDensity
    density = kind(1, steps, random_state=seed, device=run.device.type, verbose=True).fit(fitted)
    if way == CSM:
        return _result(density.score_samples(judged), time.process_time() - begun, fitted)
    _by_likelihood(density, fitted, _RATES[way], seed, begun + seconds)
    spent = time.process_time() - begun
    numbers = torch.from_numpy(density.columns_.encode(judged)[:, density.columns_.modelled])
    assert density.ensemble_ is not None
    terms = density.ensemble_.log_conditionals(density.ensemble_.clip(numbers), method="quadrature")[0]
    return _result((terms.numpy() + density.columns_.log_slopes(numbers.numpy())).sum(1), spent, fitted)


class _FirstPlan(ScoreDensity):
    """Without a choice between plans, which nothing is known of before training."""

    def _configs(self, rows: int, modelled: Tensor) -> list[EnsembleConfig]:
        return super()._configs(rows, modelled)[:1]


def _half_of_the_steps(rows: int) -> int:
    return EnsembleConfig.for_table(rows, 1, False).max_steps // 2


def _by_likelihood(density: ScoreDensity, rows: Array, rate: float, seed: int, until: float) -> None:
    """Go on with the model of a fitted estimator by maximum likelihood; the weights of its best validation are kept."""
    ensemble = density.ensemble_
    assert ensemble is not None
    ensemble.level = ensemble.config.levels - 1
    model = ensemble.members[0].float().train()
    numbers = torch.from_numpy(density.columns_.encode(rows)[:, density.columns_.modelled])
    numbers = numbers - 0.5 * torch.tensor(density.columns_.widths, dtype=numbers.dtype)
    valid = numbers[density.held_out_rows_[:_VALIDATED]].to(model.shift)
    train = numbers[np.setdiff1d(np.arange(len(rows)), density.held_out_rows_)].to(model.shift)
    widths = torch.tensor(density.columns_.widths).to(model.shift)
    generator = torch.Generator(model.shift.device).manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), rate)
    best, weights, step = math.inf, None, 0
    while time.process_time() < until or step == 0:
        if step % 20 == 0:
            with torch.no_grad():
                held = float(mle(model, dequantised(valid, widths, generator), generator=generator))
            if held < best:
                best, weights = held, {name: value.clone() for name, value in model.state_dict().items()}
        x = train[
            torch.randint(len(train), (min(_LIKELIHOOD_BATCH, len(train)),), generator=generator, device=train.device)
        ]
        optimizer.zero_grad()
        mle(model, dequantised(x, widths, generator), generator=generator).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        step += 1
    if weights is not None:
        model.load_state_dict(weights)
    model.double().eval()


# Peers --------------------------------------------------------------------------------------------------------------


def _mixture(settings: UCI, rows: Array, seed: int, *_: Any) -> Callable[[Array], Array]:
    """Gaussians with full covariances, as many as BIC says."""
    counts = [count for count in settings.components if count * rows.shape[1] < len(rows)] or [1]
    models = [GaussianMixture(count, random_state=seed, reg_covar=1e-4).fit(rows) for count in counts]
    return min(models, key=lambda model: model.bic(rows)).score_samples  # type: ignore[no-any-return]


def _kernels(settings: UCI, rows: Array, seed: int, *_: Any) -> Callable[[Array], Array]:
    """Gaussian kernels, their width by cross-validation, on at most so many rows."""
    some = rows[: settings.kernel_rows]
    search = GridSearchCV(KernelDensity(), {"bandwidth": list(settings.bandwidths)}, cv=3).fit(some)
    return search.best_estimator_.score_samples  # type: ignore[no-any-return]


def _flow(settings: UCI, rows: Array, seed: int, method: str, seconds: float) -> Callable[[Array], Array]:
    """A flow of zuko, trained for as many seconds as ours, the weights of its best validation kept."""
    zuko = import_zuko()
    kinds: dict[str, Callable[..., Any]] = {
        "MAF": partial(zuko.flows.MAF, transforms=5),
        "NSF": partial(zuko.flows.NSF, transforms=3, bins=8),
        "MAF, mixture": partial(_maf_mixture, zuko),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        flow = kinds[method](rows.shape[1], hidden_features=settings.flow_hidden)
        held_out = max(1, len(rows) // 10)
        valid, train = (torch.from_numpy(part).float() for part in (rows[:held_out], rows[held_out:]))
        optimizer = torch.optim.Adam(flow.parameters(), settings.flow_rate)
        best, weights, begun, step = math.inf, None, time.process_time(), 0
        while time.process_time() - begun < seconds or step == 0:
            x = train[torch.randint(len(train), (min(512, len(train)),))]
            loss = -flow().log_prob(x).mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(flow.parameters(), 10.0)
            optimizer.step()
            step += 1
            if step % 100 == 0 or step == 1:
                with torch.no_grad():
                    held = -float(flow().log_prob(valid).mean())
                if held < best:
                    best, weights = held, {name: value.clone() for name, value in flow.state_dict().items()}
    if weights is not None:
        flow.load_state_dict(weights)

    def log_density(judged: Array) -> Array:
        with torch.no_grad():
            found: Tensor = flow().log_prob(torch.from_numpy(judged).float())
        return found.double().numpy()

    return log_density


def _maf_mixture(zuko: Any, features: int, hidden_features: tuple[int, ...]) -> Any:
    """Masked autoregressive transforms over a mixture of Gaussians."""
    base = zuko.flows.GMM(features, components=8)
    transforms = zuko.flows.MAF(features, transforms=5, hidden_features=hidden_features).transform
    return zuko.flows.Flow(transforms, base)


def _figure(tables: Mapping[str, Result]) -> Figure:
    """Log likelihood of every method less ours, a panel for each table."""
    across = min(4, len(tables) + 1)
    down = -(-(len(tables) + 1) // across)
    figure = Figure(figsize=(2.8 * across, 2.5 * down), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False).flatten().tolist()
    _show_ranks(panels[len(tables)], _ranks(tables))
    for axes in panels[len(tables) + 1 :]:
        axes.set_visible(False)
    for axes, (table, found) in zip(panels, tables.items(), strict=False):
        names = list(found["methods"])
        values = [found["methods"][name]["log_likelihood"]["mean"] for name in names]
        errors = [found["methods"][name]["standard_error"] for name in names]
        colours = [BLUE if name == OURS else GREY for name in names]
        axes.barh(names, np.array(values) - values[0], xerr=errors, color=colours)
        axes.invert_yaxis()
        axes.set_title(f"{table} ({found['rows']:,} x {found['columns']})", fontsize=8)
        axes.set_xlabel("nats a row, less ours", fontsize=7)
        axes.tick_params(labelsize=7)
        open_frame(axes)
    return figure


def _show_ranks(axes: Axes, ranks: Result) -> None:
    """Mean ranks, and how far those that are not told apart from the best may lie."""
    order = sorted(ranks["methods"], key=ranks["methods"].get)
    values = [ranks["methods"][name] for name in order]
    axes.barh(order, values, color=[BLUE if name == OURS else GREY for name in order])
    axes.invert_yaxis()
    if ranks["critical_difference"] is not None:
        axes.axvspan(values[0], values[0] + ranks["critical_difference"], color=BLUE, alpha=0.12)
    axes.set_title("all tables", fontsize=8)
    axes.set_xlabel("mean rank (shaded: not told apart)", fontsize=7)
    axes.tick_params(labelsize=7)
    open_frame(axes)


UCI_TABLES = study("uci", "held-out likelihood of UCI tables: ours, flows, mixtures, kernels", PRESETS, body)

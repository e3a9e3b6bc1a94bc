"""Held-out likelihood of tables from the UCI repository: ours, flows, mixtures and kernels.

A random tenth is held out, with several seeds. All methods see the same rows, standardised by the fitted rows, and
with the same noise on values that repeat, so that all are densities of the same variables. Nearly constant columns are
left out. Ours transforms skewed columns as part of the method.
"""

import copy
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from matplotlib.figure import Figure
from pydantic import Field
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KernelDensity
from torch import Tensor, nn

from arcsm._runtime.random import dequantised
from arcsm.data.datasets import data_folder
from arcsm.data.table import read_table
from arcsm.estimators import ScoreDensity
from arcsm.estimators.column_inference import detect_grid
from arcsm.estimators.table_config import TableConfig
from arcsm.experiments.base import Count, Positive, Preset, Result, Settings, Study, check_names, seeded, study
from arcsm.experiments.comparisons import Array, critical_difference, draw_ranks, mean_and_sd, mean_ranks
from arcsm.experiments.peers import import_zuko
from arcsm.metrics import mean_and_standard_error
from arcsm.objectives import mle
from arcsm.reports.plots import BLUE, GREY, column_panels
from arcsm.training.optimization import Muon

OURS = "arcsm"
FLOWS = ("MAF", "NSF", "MAF, mixture", "NSF, Muon")
METHODS = (OURS, *FLOWS, "GMM", "KDE")
CSM, ADAMW, MLE, BOTH = "csm", "csm, AdamW", "mle", "csm, then mle"  # ways to train one model
WAYS = (CSM, ADAMW, MLE, BOTH)
_MAX_CONSTANT_SHARE = 0.99  # of a column's rows with the same value
_RATES = {MLE: 2e-3, BOTH: 2e-4}  # of maximum likelihood
_MUON_RATE = 4e-3  # of a flow; better than 1e-3 on held-out training rows of concrete
_MLE_BATCH = 64  # a row costs hundreds of evaluations
_VALIDATION_ROWS = 200  # of maximum likelihood
_MIN_REPEATED_SHARE = 0.05  # of repeated values, from which on a column gets noise


class UCI(Settings):
    """Flows get as much processor time as ours on the same rows, but not too little."""

    cell_selection: ClassVar[frozenset[str]] = frozenset({"seeds", "methods", "tables", "ways"})
    records_cells: ClassVar[bool] = True
    methods: tuple[str, ...] = Field(METHODS, min_length=1)
    ways: tuple[str, ...] = WAYS  # with the first seed
    tables: tuple[str, ...] = ("concrete", "elevators", "energy", "parkinsons", "protein", "sml", "wine")
    most_rows: int = Field(50_000, ge=20)
    max_steps: Count | None = None  # of ours; default: its own
    least_flow_seconds: float = Field(120.0, ge=0.0, allow_inf_nan=False)
    flow_rate: Positive = 1e-3
    flow_hidden: tuple[Count, ...] = (128, 128)
    components: tuple[Count, ...] = (1, 2, 4, 8, 16, 32, 64)  # of the mixture, chosen by BIC
    bandwidths: tuple[Positive, ...] = (0.05, 0.1, 0.2, 0.3, 0.5, 0.8)  # of the kernels, chosen by cross-validation
    kernel_rows: Count = 5_000


PRESETS: Mapping[Preset, UCI] = {
    "smoke": UCI(tables=("wine",), methods=(OURS, "NSF", "NSF, Muon", "GMM", "KDE"), most_rows=80, max_steps=3,
                 flow_hidden=(8,), components=(1, 2), bandwidths=(0.5,), least_flow_seconds=0.0),
    "cpu": UCI(seeds=3),
    "paper": UCI(seeds=3, most_rows=1_000_000),
}  # fmt: skip


def body(run: Study[UCI]) -> Result:
    """Fit every method to every table with every seed; ours first, because the flows get its time."""
    settings, first = run.settings, run.settings.first_seed
    check_names("methods", settings.methods, METHODS)
    check_names("ways", settings.ways, WAYS)
    peers = [method for method in settings.methods if method != OURS]
    cells = run.compute_seeds({(table, OURS): partial(_ours, run, table) for table in settings.tables})
    for method in peers:
        functions = {(t, method): partial(_peer, run, t, method, ours=cells[t, OURS]) for t in settings.tables}
        cells |= run.compute_seeds(functions)
    pairs = {(t, way): f"{t} one model by {way} seed {first}" for t in settings.tables for way in settings.ways}
    train = partial(_one_model, run, seed=first)
    single = run.compute_all({n: partial(train, t, way, ours=cells[t, OURS][0]) for (t, way), n in pairs.items()})
    tables: dict[str, Result] = {}
    for table in settings.tables:
        methods: dict[str, Result] = {}
        for method in (OURS, *peers):
            by_seed = cells[table, method]
            methods[method] = {"log_likelihood": mean_and_sd([cell["log_likelihood"] for cell in by_seed])}
            for key in ("standard_error", "fit_seconds"):
                methods[method][key] = float(np.mean([cell[key] for cell in by_seed]))
        sizes = {key: cells[table, OURS][0][key] for key in ("rows", "columns")}
        ways = {way: single[pairs[table, way]] for way in settings.ways}
        tables[table] = {**sizes, "methods": methods, "one_model": ways}
    ranks = _ranks(tables)
    return {"tables": tables, "ranks": ranks, "figure": run.figure(_figure(tables, ranks))}


def _ranks(tables: Mapping[str, Result]) -> Result:
    cells = [table["methods"] for table in tables.values()]
    ranks = mean_ranks(np.array([[cell["log_likelihood"]["mean"] for cell in methods.values()] for methods in cells]))
    return {
        "methods": dict(zip(cells[0], ranks.tolist(), strict=True)),
        "critical_difference": critical_difference(len(ranks), len(cells)),
    }


def _spacing(column: Array) -> float:
    """Return the spacing of a column's grid, or else the smallest gap between its values if they repeat; or zero."""
    grid, levels = detect_grid(column), np.unique(column)
    if grid is not None:
        return grid.spacing
    if 1.0 - len(levels) / len(column) < _MIN_REPEATED_SHARE or len(levels) < 2:
        return 0.0
    gaps = np.diff(levels)
    return float(gaps[gaps > 1e-7 * (levels[-1] - levels[0])].min())


def read_uci(table: str) -> Array:
    """Return the rows of a table, from the data folder."""
    return read_table(data_folder() / "uci" / f"{table}.csv.gz").values.astype(np.float64)


def split_rows(values: Array, most_rows: int, seed: int) -> tuple[Array, Array]:
    """Return standardised rows to fit and to test, with uniform noise where values repeat."""
    random = np.random.default_rng(seed)
    values = values[random.permutation(len(values))[:most_rows]]
    spacing = np.array([_spacing(column) for column in values.T])
    most_frequent = np.array([np.unique(column, return_counts=True)[1].max() for column in values.T])
    varied = most_frequent < _MAX_CONSTANT_SHARE * len(values)
    values = (values + spacing * (random.random(values.shape) - 0.5))[:, varied]
    held_out = max(1, len(values) // 10)
    train, test = values[held_out:], values[:held_out]
    mean, std = train.mean(0), train.std(0)
    return (train - mean) / std, (test - mean) / std


def _split(settings: UCI, table: str, seed: int) -> tuple[Array, Array]:
    return split_rows(read_uci(table), settings.most_rows, seed)


def _ours(run: Study[UCI], table: str, seed: int) -> Result:
    train, test = _split(run.settings, table, seed)
    steps = "auto" if run.settings.max_steps is None else run.settings.max_steps
    start = time.process_time()
    density = ScoreDensity(max_steps=steps, random_state=seed, device=run.device.type, verbose=True).fit(train)
    seconds = time.process_time() - start
    return _result(density.score_samples(test), seconds, train)


def _peer(run: Study[UCI], table: str, method: str, seed: int, ours: list[Result]) -> Result:
    train, test = _split(run.settings, table, seed)
    seconds = max(ours[seed - run.settings.first_seed]["fit_seconds"], run.settings.least_flow_seconds)
    start = time.process_time()
    fit: Callable[..., Callable[[Array], Array]] = {"GMM": _mixture, "KDE": _kernels}.get(method, _flow)
    density = fit(run.settings, train, seed, method, seconds)
    spent = time.process_time() - start
    return _result(density(test), spent, train)


def _result(log_density: Array, seconds: float, train: Array) -> Result:
    mean, error = mean_and_standard_error(torch.from_numpy(np.asarray(log_density)))
    return {"log_likelihood": mean, "standard_error": error, "fit_seconds": seconds, "rows": len(train),
            "columns": train.shape[1]}  # fmt: skip


def _one_model(run: Study[UCI], table: str, way: str, seed: int, ours: Result) -> Result:
    """Train the model of one order: by scores, with or without Muon, by likelihood, or by scores and then likelihood.

    Maximum likelihood uses the quadrature at the smallest noise, which then also normalises the density, and as much
    processor time as the default. For likelihood alone the configuration is the first, otherwise the best by scores.
    """
    train, test = _split(run.settings, table, seed)
    start = time.process_time()
    max_steps = run.settings.max_steps
    half = TableConfig.for_table(len(train), 1, False).max_steps // 2
    own_steps = max_steps or "auto"
    steps = {CSM: own_steps, ADAMW: own_steps, MLE: 1, BOTH: max_steps or half}[way]
    kind = {MLE: _FirstCandidate, ADAMW: _WithoutMuon}.get(way, ScoreDensity)
    density = kind(1, steps, random_state=seed, device=run.device.type, verbose=True).fit(train)
    if way in (CSM, ADAMW):
        return _result(density.score_samples(test), time.process_time() - start, train)
    _train_by_likelihood(density, train, _RATES[way], seed, start + ours["fit_seconds"])
    spent = time.process_time() - start
    numbers = torch.from_numpy(density.columns_.encode(test)[:, density.columns_.modelled])
    assert density.model_ is not None
    terms = replace(density.model_, method="quadrature").log_conditionals(density.model_.clip(numbers))[0]
    return _result((terms.numpy() + density.columns_.log_slopes(numbers.numpy())).sum(1), spent, train)


class _FirstCandidate(ScoreDensity):  # without scores there is nothing to choose by
    def _configs(self, rows: int, modelled: Tensor, targets: int | None) -> list[TableConfig]:
        return super()._configs(rows, modelled, targets)[:1]


class _WithoutMuon(ScoreDensity):  # at the same learning rate
    def _configs(self, rows: int, modelled: Tensor, targets: int | None) -> list[TableConfig]:
        return [replace(config, optimizer="adamw") for config in super()._configs(rows, modelled, targets)]


def _train_by_likelihood(density: ScoreDensity, rows: Array, rate: float, seed: int, until: float) -> None:
    """Train the model of a fitted estimator further by maximum likelihood; keep the weights of the best validation."""
    table_model = density.model_
    assert table_model is not None
    table_model.level = table_model.config.noise_levels - 1
    model = table_model.model.float().train()
    numbers = torch.from_numpy(density.columns_.encode(rows)[:, density.columns_.modelled])
    steps = torch.tensor(table_model.columns.widths, dtype=numbers.dtype)
    numbers = table_model.columns.inputs(numbers) - 0.5 * steps
    valid = numbers[density.held_out_rows_[:_VALIDATION_ROWS]].to(model.shift)
    train = numbers[np.setdiff1d(np.arange(len(rows)), density.held_out_rows_)].to(model.shift)
    widths = steps.to(model.shift)
    generator = torch.Generator(model.shift.device).manual_seed(seed)

    def loss(x: Tensor) -> Tensor:
        return mle(model, dequantised(x, widths, generator), generator=generator)

    shape = (min(_MLE_BATCH, len(train)),)
    optimizer = torch.optim.Adam(model.parameters(), rate)
    best, weights, step = math.inf, None, 0
    while time.process_time() < until or step == 0:
        if step % 20 == 0:
            with torch.no_grad():
                held_out = float(loss(valid))
            if held_out < best:
                best, weights = held_out, copy.deepcopy(model.state_dict())
        chosen = torch.randint(len(train), shape, generator=generator, device=train.device)
        _make_step(model, optimizer, loss(train[chosen]))
        step += 1
    if weights is not None:
        model.load_state_dict(weights)
    model.double().eval()


def _make_step(network: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), 10.0)
    optimizer.step()


def _mixture(settings: UCI, rows: Array, seed: int, *_: Any) -> Callable[[Array], Array]:
    counts = [count for count in settings.components if count * rows.shape[1] < len(rows)] or [1]
    models = [GaussianMixture(count, random_state=seed, reg_covar=1e-4).fit(rows) for count in counts]
    return min(models, key=lambda model: model.bic(rows)).score_samples  # type: ignore[no-any-return]


def _kernels(settings: UCI, rows: Array, seed: int, *_: Any) -> Callable[[Array], Array]:
    search = GridSearchCV(KernelDensity(), {"bandwidth": list(settings.bandwidths)}, cv=3)
    search.fit(rows[: settings.kernel_rows])
    return search.best_estimator_.score_samples  # type: ignore[no-any-return]


def _flow(settings: UCI, rows: Array, seed: int, method: str, seconds: float) -> Callable[[Array], Array]:
    """Train a flow of zuko for some seconds; keep the weights of the best validation."""
    zuko = import_zuko()

    def maf_mixture(features: int, hidden_features: tuple[int, ...]) -> Any:
        transforms = zuko.flows.MAF(features, transforms=5, hidden_features=hidden_features).transform
        return zuko.flows.Flow(transforms, zuko.flows.GMM(features, components=8))

    kinds: dict[str, Callable[..., Any]] = {
        "MAF": partial(zuko.flows.MAF, transforms=5),
        "NSF": partial(zuko.flows.NSF, transforms=3, bins=8),
        "MAF, mixture": maf_mixture,
    }
    kinds["NSF, Muon"] = kinds["NSF"]
    with seeded(seed):
        flow = kinds[method](rows.shape[1], hidden_features=settings.flow_hidden)
        held_out = max(1, len(rows) // 10)
        valid, train = (torch.from_numpy(part).float() for part in (rows[:held_out], rows[held_out:]))
        optimizer = _by_muon(flow) if "Muon" in method else torch.optim.Adam(flow.parameters(), settings.flow_rate)
        best, weights, start, step = math.inf, None, time.process_time(), 0
        while time.process_time() - start < seconds or step == 0:
            x = train[torch.randint(len(train), (min(512, len(train)),))]
            _make_step(flow, optimizer, -flow().log_prob(x).mean())
            step += 1
            if step % 100 == 0 or step == 1:
                with torch.no_grad():
                    held = -float(flow().log_prob(valid).mean())
                if held < best:
                    best, weights = held, copy.deepcopy(flow.state_dict())
    if weights is not None:
        flow.load_state_dict(weights)

    def log_density(test: Array) -> Array:
        with torch.no_grad():
            found: Tensor = flow().log_prob(torch.from_numpy(test).float())
        return found.double().numpy()

    return log_density


def _by_muon(flow: nn.Module) -> Muon:
    """Return the optimizer of our densities for a flow: all matrices but the last of each network, masked or not."""
    networks = [module for module in flow.modules() if isinstance(module, nn.Sequential)]
    layers = [[layer for layer in network if isinstance(layer, nn.Linear)][:-1] for network in networks]
    matrices = [layer.weight for network in layers for layer in network]
    chosen = set(matrices)
    others = [weight for weight in flow.parameters() if weight not in chosen]
    return Muon([{"params": others}, {"params": matrices, "matrices": True}], _MUON_RATE, weight_decay=0.0)


def _figure(tables: Mapping[str, Result], ranks: Result) -> Figure:
    titles = [f"{name} ({table['rows']:,} x {table['columns']})" for name, table in tables.items()]
    figure, panels = column_panels([*titles, "all tables"], 2.8, 2.5)
    for axes, table in zip(panels, tables.values(), strict=False):
        methods = table["methods"]
        values = np.array([cell["log_likelihood"]["mean"] for cell in methods.values()])
        errors = [cell["standard_error"] for cell in methods.values()]
        axes.barh(list(methods), values - values[0], xerr=errors, color=[BLUE if m == OURS else GREY for m in methods])
        axes.invert_yaxis()
        axes.set_xlabel("nats a row, relative to ours", fontsize=7)
    draw_ranks(panels[-1], ranks["methods"], ranks["critical_difference"], OURS, 7)
    return figure


UCI_TABLES = study("uci", "held-out likelihood of UCI tables: ours, flows, mixtures, kernels", PRESETS, body)

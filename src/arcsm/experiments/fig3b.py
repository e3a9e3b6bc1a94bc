"""Figure 3b: a two-dimensional set by MADE with mixtures of logistics and by AR-CSM with fewer parameters."""

import math
from collections.abc import Mapping
from functools import partial
from statistics import fmean

import torch
from matplotlib.figure import Figure
from pydantic import Field
from torch import Tensor

from arcsm import MADE, AutoregressiveModel, LogisticMixtureHead, NoiseLadder, ScoreHead, TrainConfig, fit
from arcsm.experiments.base import Count, Positive, Preset, Result, Settings, Study, parameter_count, seeded, study
from arcsm.experiments.comparisons import mean_and_sd
from arcsm.experiments.toys import PAPER, ToyRows, distances, toy_rows
from arcsm.metrics import mean_and_standard_error
from arcsm.reports.plots import scatter
from arcsm.training.run_config import RunConfig, load_config


class Fig3b(Settings):
    """The paper gives neither the set nor sizes: all of this is ours.

    Every model is a density of the set with noise ``sigma``, so that likelihoods can be compared.
    """

    toy: str = "checkerboard"
    rows: Count = 50_000
    test_rows: Count = 5_000
    sigma: Positive = 0.05
    components: tuple[Count, ...] = Field((1, 2, 5, 10, 20, 50), min_length=1)
    baseline_hidden: Count = 128
    hidden: Count = 64
    head_hidden: Count = 32
    steps: Count = 4_000
    batch: Count = 512
    learning_rates: tuple[Positive, ...] = Field((2e-3, 1e-2), min_length=1)  # the best on validation rows, first seed
    valid_rows: Count = 2_000


PRESETS: Mapping[Preset, Fig3b] = {
    "smoke": Fig3b(rows=256, test_rows=64, components=(1, 2), baseline_hidden=32, hidden=8, head_hidden=8, steps=4),
    "cpu": Fig3b(seeds=3),
    "paper": Fig3b(seeds=5, steps=20_000),
}

AR_CSM = "AR-CSM"
PAPER_MODEL = "AR-CSM, paper"  # score network and training of the preset toy-paper; no likelihood


def body(run: Study[Fig3b]) -> Result:
    """Train every model, and compare likelihoods and samples with held-out rows."""
    settings = run.settings
    names = [AR_CSM, *(f"MLE, n = {n}" for n in settings.components)]
    sizes = {name: parameter_count(_build(settings, name)) for name in (*names, PAPER_MODEL)}
    ours, fewest = max(sizes[AR_CSM], sizes[PAPER_MODEL]), min(sizes[name] for name in names[1:])
    if ours >= fewest:
        raise ValueError(f"hidden, head_hidden: AR-CSM has {ours} parameters, not strictly fewer than {fewest}")
    rates = run.tune(
        names,
        settings.learning_rates,
        lambda name, rate: _train(run, name, settings.first_seed, rate),
        lambda cell: cell["valid_nll"],
    )
    rates[PAPER_MODEL] = {"learning_rate": _paper_config(settings).train.learning_rate}  # the paper's
    order = [AR_CSM, PAPER_MODEL, *names[1:]]
    trained = {name: partial(_train, run, name, learning_rate=rates[name]["learning_rate"]) for name in order}
    cells = run.compute_seeds(trained)
    table: Result = {}
    for name, results in cells.items():
        keys = [key for key in results[0] if key not in ("samples", "parameters", "valid_nll")]
        table[name] = {key: mean_and_sd([result[key] for result in results]) for key in keys}
        table[name] |= {"parameters": results[0]["parameters"], **rates[name]}
    samples = {name: torch.tensor(results[0]["samples"]) for name, results in cells.items()}
    figure = _figure(_rows(run, settings.first_seed), samples, table)
    return {"models": table, **_reference(run), "figure": run.figure(figure)}


def _rows(run: Study[Fig3b], seed: int) -> ToyRows:
    settings = run.settings
    return toy_rows(settings.toy, settings.rows, settings.test_rows, settings.sigma, seed)


def _reference(run: Study[Fig3b]) -> Result:
    """Return the true likelihood, and the distances between samples of the set: those of a perfect model."""
    nll, found = [], []
    for seed in run.settings.seed_range:
        rows = _rows(run, seed)
        truth = rows.true_log_prob(rows.test)
        nll.append(float("nan") if truth is None else -float(truth.mean()))
        count, generator = len(rows.test), torch.Generator().manual_seed(1_000_003 * seed + 7)
        for first in range(0, min(5 * count, len(rows.train) - count + 1), count):
            found.append(distances(rows.add_noise(rows.train[first : first + count], generator), rows.test))
    means = {key: fmean(each[key] for each in found) for key in found[0]}
    return {"true_nll": fmean(nll) if math.isfinite(sum(nll)) else None, "data_against_data": means}


def _build(settings: Fig3b, name: str) -> AutoregressiveModel:
    if name == PAPER_MODEL:
        return _paper_config(settings).model.build(2)
    if name == AR_CSM:
        hidden = (settings.head_hidden,) * 3
        scores = ScoreHead(8, hidden, sinusoids=8, max_frequency=1.0 / settings.sigma, residual=True)
        made = MADE(2, 8, (settings.hidden, settings.hidden))
        return AutoregressiveModel(made, scores, NoiseLadder(2.0, settings.sigma, 20))
    components, width = int(name.rsplit(" ", 1)[1]), settings.baseline_hidden
    head = LogisticMixtureHead(3 * components, components=components)
    return AutoregressiveModel(MADE(2, 3 * components, (width, width)), head)


def _paper_config(settings: Fig3b, *changes: str) -> RunConfig:
    sizes = [
        f"model.context.hidden_features=[{settings.hidden}, {settings.hidden}]",
        "model.context.context_features=8",
        f"model.head.hidden_features=[{settings.head_hidden}, {settings.head_hidden}]",
        f"model.noise.sigma_min={settings.sigma}",
    ]
    return load_config(PAPER, [*sizes, *changes])


def _train(run: Study[Fig3b], name: str, seed: int, learning_rate: float) -> Result:
    settings, rows = run.settings, _rows(run, seed)
    scores = name in (AR_CSM, PAPER_MODEL)
    with seeded(seed):
        model = _build(settings, name)
    shared: Result = {"steps": settings.steps, "batch_size": settings.batch, "seed": seed, "device": str(run.device)}
    shared |= {"learning_rate": learning_rate, "standardise": "none"}
    if name == PAPER_MODEL:
        config = _paper_config(settings, *(f"train.{key}={value}" for key, value in shared.items())).train
    else:
        config = TrainConfig(objective="csm" if scores else "mle", mix="auto", **shared)
    # the mixtures see fresh noise in every pass over the rows, as the scores do in every step
    passes = -(-settings.steps * settings.batch // settings.rows)
    generator = torch.Generator().manual_seed(9_000_001 + seed)
    train = rows.train if scores else rows.add_noise(rows.train.repeat(passes, 1), generator)
    result = fit(model, train, config=config)
    return _measure(run, model, rows, seed, scores, result.seconds)


@torch.no_grad()
def _measure(
    run: Study[Fig3b], model: AutoregressiveModel, rows: ToyRows, seed: int, scores: bool, seconds: float
) -> Result:
    test = rows.test.to(run.device)
    found: Result = {"seconds": seconds, "parameters": parameter_count(model)}
    if model.head.has_density:
        found["nll"], found["standard_error"] = mean_and_standard_error(-model.log_prob(test))
        valid = rows.sample(run.settings.valid_rows, torch.Generator().manual_seed(1_000_003 * seed + 11))
        found["valid_nll"] = -float(model.log_prob(valid.to(run.device)).mean())
    if scores and model.head.has_density:
        found["nll_quadrature"] = float(-model.log_prob(test, method="quadrature").mean())
    samples = model.sample(len(test), generator=run.generator(seed, 5)).cpu()
    found |= distances(samples, rows.test)
    return {**found, "samples": [[round(v, 4) for v in row] for row in samples[:4000].tolist()]}


def _figure(rows: ToyRows, samples: Mapping[str, Tensor], table: Mapping[str, Result]) -> Figure:
    columns = (len(samples) + 2) // 2
    figure = Figure(figsize=(2.5 * columns, 5.4), layout="constrained")
    scatter(figure.add_subplot(2, columns, 1), rows.test, "data\n", like=rows.test)
    for index, (name, drawn) in enumerate(samples.items()):
        nats = f"{table[name]['nll']['mean']:.3f} nats, " if "nll" in table[name] else ""
        title = f"{name}\n{nats}{table[name]['parameters']:,} parameters"
        scatter(figure.add_subplot(2, columns, index + 2), drawn, title, like=rows.test)
    return figure


FIG3B = study("fig3b", "MADE with mixtures of logistics against AR-CSM on a 2-D set (paper, Figure 3b)", PRESETS, body)

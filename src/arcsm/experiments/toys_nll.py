"""Held-out likelihood on the nine toy sets: score models against flows trained by maximum likelihood."""

import time
from collections.abc import Callable, Mapping
from functools import partial
from statistics import fmean
from typing import ClassVar

import torch
from matplotlib.figure import Figure
from pydantic import Field
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from arcsm import MADE, AutoregressiveModel, NoiseLadder, ScoreHead, TrainConfig, fit
from arcsm.data.toys import TOYS
from arcsm.experiments.base import Count, Positive, Preset, Result, Settings, Study, parameter_count, seeded, study
from arcsm.experiments.comparisons import confidence_interval
from arcsm.experiments.descent import descend
from arcsm.experiments.peers import import_zuko
from arcsm.experiments.toys import ToyRows, toy_rows
from arcsm.objectives import mle
from arcsm.reports.plots import BLUE, GREY, ORANGE, open_panels
from arcsm.training.optimization import averaging


class ToyScores(Settings):
    """The score model for toy sets and its training."""

    cell_selection: ClassVar[frozenset[str]] = frozenset({"seeds", "toys"})
    toys: tuple[str, ...] = tuple(TOYS)
    train: Count = 50_000  # rows that batches are drawn from
    hidden: tuple[Count, ...] = (120, 120)  # of the MADE
    context_features: Count = 16
    sinusoids: int = Field(8, ge=0)  # of values, in the MADE and in the head
    max_frequency: Positive = 10.0  # 5 and 20, tried on s_curve and ring_and_blob, differ little
    head_hidden: tuple[Count, ...] = (64, 64, 64)
    sigma_max: Positive = 2.0
    sigma_min: Positive = 0.05  # noise of the modelled density, in standardised units
    levels: Count = 30
    steps: Count = 8000
    batch: Count = 512
    learning_rate: Positive = 1.6e-2  # of 2e-3, 4e-3, 8e-3, 1.6e-2 and 3e-2 on pinwheel and s_curve, first seed
    ema: float = Field(0.999, ge=0, lt=1)


class ToysNll(ToyScores):
    """The flows are zuko's, autoregressive, with about as many parameters as ours (33,000, with masked weights).

    Training times differ; the record gives them for every method.
    """

    hidden: tuple[Count, ...] = (104, 104)
    head_hidden: tuple[Count, ...] = (64, 64, 64, 64)  # one more layer, a narrower MADE: better on pinwheel and s_curve
    steps: Count = 10_000
    learning_rate: Positive = 5e-3  # or 1e-2: chosen on s_curve, ring_and_blob and two_moons, seed 3 (not recorded)
    test: Count = 2000  # held-out rows
    truth_rows: Count = 500  # the first of them, for the true density (slow on the spirals) and gaps to it
    flow_steps: Count = 30  # of the likelihood by the flow through the ladder
    mle_steps: int = Field(100, ge=0)  # of the fine-tuning; 0 for none
    mle_batch: Count = 64  # a row costs hundreds of evaluations
    mle_learning_rate: Positive = 2e-4
    mle_ema: float = Field(0.98, ge=0, lt=1)
    nsf_transforms: Count = 3
    nsf_hidden: tuple[Count, ...] = (80, 80)
    nsf_bins: Count = 8
    nsf_steps: Count = 4500
    maf_transforms: Count = 5
    maf_hidden: tuple[Count, ...] = (76, 76)
    maf_steps: Count = 6000
    flows_learning_rate: Positive = 4e-3  # of 1e-3 and 4e-3, the spline flow on the same two sets


PRESETS: Mapping[Preset, ToysNll] = {
    "smoke": ToysNll(
        toys=("eight_gaussians",), train=500, hidden=(16,), context_features=4, head_hidden=(16, 16), levels=10,
        steps=20, batch=64, test=40, truth_rows=20, flow_steps=5, mle_steps=2, mle_batch=8, nsf_transforms=1,
        nsf_hidden=(16,), nsf_steps=10, maf_transforms=2, maf_hidden=(16,), maf_steps=10,
    ),
    "cpu": ToysNll(seeds=3, mle_steps=50, maf_steps=4000),
    "paper": ToysNll(
        seeds=5, train=200_000, steps=40_000, test=10_000, truth_rows=2000, flow_steps=60, mle_steps=1000,
        mle_batch=256, nsf_steps=45_000, maf_steps=60_000,
    ),
}  # fmt: skip

FLOW, QUADRATURE, TUNED = "scores, flow", "scores, quadrature", "scores then mle"
NSF, MAF = "neural spline flow", "MAF"
_TOLERANCE = 0.01  # nats that count as no difference


def body(run: Study[ToysNll]) -> Result:
    """Compare all methods on every toy set by likelihoods of standardised rows with the smallest noise."""
    import_zuko()  # fail before training if it is missing
    parts: dict[str, Callable[[Study[ToysNll], str, int], Result]] = {
        "truth": _truth, "scores": _scores, NSF: partial(_flow, kind=NSF), MAF: partial(_flow, kind=MAF),
    }  # fmt: skip
    keyed = {(toy, name): partial(part, run, toy) for toy in run.settings.toys for name, part in parts.items()}
    cells = run.compute_seeds(keyed, lambda key, seed: f"{key[0]} seed {seed} {key[1]}")
    toys = {toy: _table({name: cells[toy, name] for name in parts}) for toy in run.settings.toys}
    return {
        "unit": "nats, standardised data with the smallest noise",
        "gap": f"NLL minus the truth's on the first {run.settings.truth_rows} test rows, the same for both",
        "toys": toys,
        "summary": _summary(toys),
        "figure": run.figure(_figure(toys)),
    }


def train_scores(settings: ToyScores, rows: ToyRows, seed: int, device: torch.device) -> AutoregressiveModel:
    """Train a score model of the noisy rows with the minimum-variance mix of CSM and DSM."""
    with seeded(seed):
        contexts, sinusoids, frequency = settings.context_features, settings.sinusoids, settings.max_frequency
        model = AutoregressiveModel(
            MADE(2, contexts, settings.hidden, sinusoids=sinusoids, max_frequency=frequency),
            ScoreHead(contexts, settings.head_hidden, sinusoids, max_frequency=frequency, residual=True),
            NoiseLadder(settings.sigma_max, settings.sigma_min, settings.levels),
        )
    config = TrainConfig(
        mix="auto", steps=settings.steps, batch_size=settings.batch, learning_rate=settings.learning_rate,
        ema=settings.ema, standardise="none", seed=seed, device=str(device),
    )  # fmt: skip
    fit(model, rows.train, config=config)  # adds the noise itself
    return model


def _scores(run: Study[ToysNll], toy: str, seed: int) -> Result:
    settings, rows = run.settings, _rows(run.settings, toy, seed)
    start = time.monotonic()
    model = train_scores(settings, rows, seed, run.device)
    seconds, size = time.monotonic() - start, parameter_count(model)
    flow = partial(model.log_prob, method="flow", steps=settings.flow_steps)
    quadrature = partial(model.log_prob, method="quadrature")
    methods = {FLOW: flow, QUADRATURE: quadrature}
    results = {name: _evaluate(run, log_prob, rows, seconds, size) for name, log_prob in methods.items()}
    if settings.mle_steps:
        start = time.monotonic()
        config = TrainConfig(
            objective="mle", steps=settings.mle_steps, batch_size=settings.mle_batch, warmup_steps=10,
            learning_rate=settings.mle_learning_rate, ema=settings.mle_ema, standardise="none", seed=seed,
            device=str(run.device),
        )  # fmt: skip
        fit(
            model, rows.train, config=config, objective=mle
        )  # by name, it would warn that it tunes one level of several
        seconds += time.monotonic() - start
        results[TUNED] = _evaluate(run, quadrature, rows, seconds, size)
    return results


def _flow(run: Study[ToysNll], toy: str, seed: int, kind: str) -> Result:
    """Train a flow by maximum likelihood, with fresh noise on each batch and an average of its weights."""
    settings, rows = run.settings, _rows(run.settings, toy, seed)
    flows = import_zuko().flows
    with seeded(seed):
        if kind == NSF:
            network = flows.NSF(
                2, transforms=settings.nsf_transforms, hidden_features=settings.nsf_hidden, bins=settings.nsf_bins
            )
        else:
            network = flows.MAF(2, transforms=settings.maf_transforms, hidden_features=settings.maf_hidden)
        network = network.to(run.device)
    steps = settings.nsf_steps if kind == NSF else settings.maf_steps
    start = time.monotonic()
    generator = torch.Generator().manual_seed(seed)
    average = AveragedModel(network, multi_avg_fn=averaging(settings.ema))

    def loss() -> Tensor:
        chosen = torch.randint(len(rows.train), (settings.batch,), generator=generator)
        x = rows.add_noise(rows.train[chosen], generator).to(run.device)
        return -network().log_prob(x).mean()

    for _ in descend(network, loss, steps, settings.flows_learning_rate, clip=10.0):
        average.update_parameters(network)
    seconds = time.monotonic() - start
    return {kind: _evaluate(run, lambda x: average.module().log_prob(x), rows, seconds, parameter_count(network))}


def _rows(settings: ToysNll, toy: str, seed: int) -> ToyRows:
    return toy_rows(toy, settings.train, settings.test, settings.sigma_min, seed)


def _truth(run: Study[ToysNll], toy: str, seed: int) -> Result:
    rows = _rows(run.settings, toy, seed)
    log_prob = rows.true_log_prob(rows.test[: run.settings.truth_rows])
    if log_prob is None:
        raise ValueError(f"toys: the true density of {toy} is unknown")
    return {"nll": -float(log_prob.mean())}


@torch.no_grad()
def _evaluate(
    run: Study[ToysNll], log_prob: Callable[[Tensor], Tensor], rows: ToyRows, seconds: float, size: int
) -> Result:
    """Return the NLL on all test rows, and on the first of them for the gap to the truth."""
    nll = -log_prob(rows.test.to(run.device)).double()
    first = float(nll[: run.settings.truth_rows].mean())
    return {"nll": float(nll.mean()), "nll_first": first, "seconds": round(seconds, 1), "parameters": size}


def _table(cells: Mapping[str, list[Result]]) -> Result:
    truth = [cell["nll"] for cell in cells["truth"]]
    results = {m: [cell[m] for cell in cells[part]] for part in ("scores", NSF, MAF) for m in cells[part][0]}
    methods = {method: _over_seeds(each, truth, results[NSF]) for method, each in results.items()}
    return {"truth_nll": fmean(truth), "methods": methods}


def _over_seeds(results: list[Result], truth: list[float], spline_flow: list[Result]) -> Result:
    """Return means, and the lead over the spline flow on the same rows, seed by seed."""
    gaps = [result["nll_first"] - nll for result, nll in zip(results, truth, strict=True)]
    leads = [other["nll"] - result["nll"] for other, result in zip(spline_flow, results, strict=True)]
    return {
        "nll": fmean(result["nll"] for result in results),
        "gap": fmean(gaps),
        "gap_per_seed": gaps,
        "lead_over_spline_flow": confidence_interval(leads),
        "training_seconds": round(fmean(result["seconds"] for result in results), 1),
        "parameters": results[0]["parameters"],
    }


def _summary(toys: Mapping[str, Result]) -> Result:
    counts: Result = {"toys": len(toys)}
    for method in (FLOW, QUADRATURE, TUNED):
        if not all(method in toy["methods"] for toy in toys.values()):
            continue
        leads = [toy["methods"][method]["lead_over_spline_flow"] for toy in toys.values()]
        certain = [lead for lead in leads if lead["half_width"] is not None]
        upper_ends = [lead["mean"] + lead["half_width"] for lead in certain]
        counts[method] = {
            "better_than_spline_flow": sum(lead["mean"] > 0.0 for lead in leads),
            f"within_{_TOLERANCE}_of_it_or_better": sum(lead["mean"] >= -_TOLERANCE for lead in leads),
            "better_with_95_percent_confidence": sum(lead["mean"] > lead["half_width"] for lead in certain),
            f"worse_by_{_TOLERANCE}_with_95_percent_confidence": sum(e < -_TOLERANCE for e in upper_ends),
        }
    methods = next(iter(toys.values()))["methods"]
    mean_gap = {name: fmean(toy["methods"][name]["gap"] for toy in toys.values()) for name in methods}
    return {**counts, "mean_gap": mean_gap}


_MARKERS: Mapping[str, tuple[str, str, str]] = {  # colour, marker, filling
    FLOW: (BLUE, "o", BLUE),
    QUADRATURE: (BLUE, "s", "white"),
    TUNED: (BLUE, "D", BLUE),
    NSF: (ORANGE, "o", ORANGE),
    MAF: (GREY, "^", GREY),
}


def _figure(toys: Mapping[str, Result]) -> Figure:
    figure, [axes] = open_panels(8.0, 1.6 + 0.55 * len(toys))
    names = [name for name in _MARKERS if any(name in toy["methods"] for toy in toys.values())]
    for index, name in enumerate(names):
        colour, marker, filling = _MARKERS[name]
        rows = [row + 0.14 * (index - 0.5 * (len(names) - 1)) for row in range(len(toys))]
        for row, toy in zip(rows, toys.values(), strict=True):
            seeds = toy["methods"][name]["gap_per_seed"]
            axes.plot([min(seeds), max(seeds)], [row, row], color=colour, linewidth=1.0)
        gaps = [toy["methods"][name]["gap"] for toy in toys.values()]
        axes.plot(gaps, rows, marker, color=colour, markerfacecolor=filling, markersize=5, label=name)
    axes.axvline(0.0, color=GREY, linewidth=0.8)
    axes.set_xscale("symlog", linthresh=_TOLERANCE, linscale=0.6)
    low, high = axes.get_xlim()
    ticks = [tick for tick in (-0.1, -0.01, 0.0, 0.01, 0.1, 1.0, 10.0) if low <= tick <= high]
    axes.set_xticks(ticks, [f"{tick:g}".replace("-", "−") for tick in ticks])
    for row in range(1, len(toys)):
        axes.axhline(row - 0.5, color=GREY, linewidth=0.4, alpha=0.5)
    axes.set_yticks(range(len(toys)), [toy.replace("_", " ") for toy in toys])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(toys) - 0.5, -0.5)
    axes.set_xlabel(f"NLL − truth, nats (linear up to {_TOLERANCE:g}; mean and range over the seeds)")
    figure.legend(*axes.get_legend_handles_labels(), frameon=False, fontsize=9, ncols=5, loc="outside upper center")
    return figure


TOYS_NLL = study(
    "toys-nll", "held-out likelihood on nine toy sets against a neural spline flow and a MAF", PRESETS, body
)

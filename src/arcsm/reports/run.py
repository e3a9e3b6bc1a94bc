"""The report of a density's run, a self-contained HTML page."""

from pathlib import Path
from typing import Any

import jinja2
import torch
from torch import Tensor

import arcsm
from arcsm import metrics
from arcsm._runtime.files import write_text
from arcsm._runtime.progress import track
from arcsm.data.datasets import Dataset, load_dataset
from arcsm.model import AutoregressiveModel
from arcsm.reports import plots
from arcsm.reports.numbers import LikelihoodRow, ReportNumbers
from arcsm.reports.pictures import sample_picture
from arcsm.training.log import read_metrics
from arcsm.training.run_config import RunConfig, dump_config
from arcsm.training.runs import Run, class_labels, warn_if_data_changed

_MAX_TEST_ROWS = 1000
_MAX_PIT_VALUES = 20_000
_MAX_BASELINE_DIMENSIONS = 100  # the baseline has full covariances
_TABLE_SAMPLES = 2000

DensityRun = Run[RunConfig, AutoregressiveModel]


def write_report(
    run: DensityRun, path: Path, samples: int = 64, sampler: str | None = None, seed: int = 0, progress: bool = False
) -> ReportNumbers | None:
    """Sample and score the model of a run, test its calibration, and write the page.

    The page shows ``samples`` images, drawn by a sampler of :mod:`arcsm.samplers`. A model whose head has no density
    has no numbers, for which ``None`` is returned. ``progress`` shows a bar on a terminal.
    """
    dataset = load_dataset(run.config.data, run.config.train.seed)
    warn_if_data_changed(run.folder, dataset)
    with track("report", 7, progress) as work:
        numbers, calibration = None, None
        with work.part(4):
            if run.model.head.has_density:
                numbers, u = _numbers(run, dataset, seed)
                calibration = plots.embedded(plots.pit_histogram(u, numbers.pit))
        generator = torch.Generator(run.model.shift.device).manual_seed(seed)
        images = "image_shape" in dataset.metadata
        count = samples if images else _TABLE_SAMPLES
        labels = class_labels(run.model, count)
        with work.part(2):
            sampled = run.model.sample(count, sampler, generator, labels, denoise=images).cpu()
        with work.part(1):
            pictures = _pictures(run, dataset, sampled, samples, seed)
            page = render(
                "report.html",
                **page_values(run, dataset),
                sigma_min=None if run.model.noise is None else run.model.noise.sigma_min,
                dequantise=dataset.dequantise,
                numbers=numbers,
                pictures=pictures,
                panels=[] if pictures else plots.marginals(dataset.test, sampled, dataset.metadata["columns"]),
                paired=images,
                pit=calibration,
            )
            write_text(path, page)
    return numbers


def _numbers(run: DensityRun, dataset: Dataset, seed: int) -> tuple[ReportNumbers, Tensor]:
    model, device = run.model, run.model.shift.device
    if len(dataset.test) < 2:
        raise ValueError(f"data.test: a report needs at least 2 test rows, but this run has {len(dataset.test)}")
    test = dataset.dequantised(dataset.test[:_MAX_TEST_ROWS], seed + 1)
    noisy = metrics.add_smallest_noise(model, test, seed + 2)
    conditional = class_labels(model, 1) is not None
    labels = dataset.labels["test"][: len(test)].to(device) if conditional else None
    with track("numbers", 4) as advance, torch.no_grad():
        clean_mean, clean_error = metrics.mean_and_standard_error(model.log_prob(test.to(device), condition=labels))
        advance()
        noisy_mean, noisy_error = metrics.mean_and_standard_error(model.log_prob(noisy.to(device), condition=labels))
        advance()
        rows = max(1, min(len(noisy), _MAX_PIT_VALUES // model.features))
        u = model.cdf(noisy[:rows].to(device), condition=None if labels is None else labels[:rows]).cpu()
    table = [LikelihoodRow(f"this run, by {run.config.train.objective}", clean_mean, clean_error, ours=True)]
    if model.features <= _MAX_BASELINE_DIMENSIONS:
        train = dataset.dequantised(dataset.train_rows(), seed + 3)
        valid = dataset.dequantised(dataset.valid, seed + 4)
        scores = metrics.gaussian_mixture_scores(train, valid, test, seed)
        table += [LikelihoodRow(name, value, None) for name, value in scores.items()]
    at_noise = None if model.noise is None else LikelihoodRow("with the smallest noise", noisy_mean, noisy_error, True)
    return ReportNumbers(table, at_noise, metrics.pit_uniformity(u)), u


def _pictures(run: DensityRun, dataset: Dataset, sampled: Tensor, samples: int, seed: int) -> list[tuple[str, str]]:
    """Return titles and pictures (data URIs) of images, or of a plane, beside real rows."""
    if "image_shape" in dataset.metadata:
        real = dataset.dequantised(dataset.test[:samples], seed)
        title = "Samples" if run.model.noise is None else "Samples (smallest noise removed)"
        return [
            (name, plots.as_data_uri(sample_picture(rows, dataset.metadata)))
            for name, rows in ((title, sampled), ("Held-out data", real))
        ]
    if run.model.features != 2 or not run.model.head.has_density:
        return []
    device, columns = run.model.shift.device, dataset.metadata["columns"]
    with torch.no_grad():
        figure = plots.plane(dataset.test, sampled, lambda x: run.model.log_prob(x.to(device), tol=1e-3), columns)
    return [("Data, samples and model density", plots.embedded(figure))]


def page_values(run: Run[Any, Any], dataset: Dataset) -> dict[str, Any]:
    """Return the template values that the reports of all kinds of runs share."""
    history = read_metrics(run.folder)
    return {
        "name": run.config.name,
        "about": run.config.about,
        "parameters": sum(p.numel() for p in run.model.parameters()),
        "rows": len(dataset.train),
        "features": run.model.features,
        "steps": int(history[-1]["step"]) if history else 0,
        "seconds": history[-1]["seconds"] if history else 0.0,
        "curve": plots.embedded(plots.training_curve(history)) if history else None,
        "config": dump_config(run.config),
    }


def render(template: str, **values: Any) -> str:
    """Return the page of one of the package's templates."""
    loader = jinja2.PackageLoader("arcsm.reports", "templates")
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return environment.get_template(template).render(version=arcsm.__version__, **values)

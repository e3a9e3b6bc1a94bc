"""Run benchmarks one after another; write their numbers to benchmarks/results, and ratios to benchmarks/README.md.

python -m benchmarks [NAME ...] [--runs RUN ...]

Without a name, all benchmarks run, except those whose data, device or trained runs are missing. The numbers of other
benchmarks stay as they are, and so do those of trained runs that are not named.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

PAGE, RESULTS = Path(__file__).with_name("README.md"), Path(__file__).with_name("results")

ABOUT = {
    "csm_step": (
        "One CSM step of a score head on 64 x 784 points: loss and all gradients. `double_backward` is plain autograd. "
        "`forward_mode` carries the derivative beside the value. `fused_compiled` is what `arcsm.objectives.csm` runs "
        "if there is a C compiler, `fused` if there is none. `matrix_products` are the products that each of them "
        "needs, alone. Extra memory is the peak resident memory of a fresh process during one step, less the resident "
        "memory before it."
    ),
    "made": (
        "A forward and a backward pass of a MADE on 64 rows of 3,072 columns, as in `cifar-made`. `masked_weights` "
        "multiplies every mask into its weight. Ours multiplies only the blocks that the mask leaves "
        "(`arcsm.contexts.masked_products`). `matrix_products` are the dense products of the layers into preallocated "
        "memory. Ours makes half of these products, so it can be faster."
    ),
    "sampling": (
        "Sampling 64 rows of 784 dimensions from a MADE of 3 x 1024 units. The naive way is a full forward pass for "
        "each dimension and, for the whole sampler, the paper's 200 Langevin steps a dimension. The probability flow "
        "takes the steps that its tolerance asks for, the fast flow four."
    ),
    "pixelcnn": (
        "Contexts of 16 images of 32 x 32 x 3 by PixelCNN++ with 32 filters and 2 residual blocks a scale, one value "
        "at a time. The naive way is a full forward pass for each of the 1,024 pixels (the median of seven passes, "
        "times 1,024)."
    ),
    "precision": (
        "One training step (CSM, loss and all gradients) of the preset `cifar-pixelcnn` on 16 images: in single "
        "precision, with the score network in C (`train.compiled`), and in bfloat16 where autocast allows it "
        "(`train.precision=bf16-mixed`). The cosine compares the gradient with that of single precision."
    ),
    "autoencoder": (
        "One training step of a dense autoencoder on 128 digits by each estimator of the entropy gradient: a step of "
        "the scores, if any, and one of the autoencoder. Kernels see 20 samples of each digit. A narrow model has 8 "
        "units in the encoder and a context of 4 for each latent, in place of 32 and 8. `latents_alone` draws the "
        "latents of an autoregressive encoder and computes their gradient, in C and in torch."
    ),
    "evidence": (
        "Annealing 256 images that an autoencoder of 16 latents drew, with 8 chains. `reached` is the number of "
        "temperatures (10, 20, 40, ...) until the lower and the upper bound of the likelihood are within 0.1 nats, "
        "standard error included; the seconds are those of a lower bound with so many temperatures. Annealing starts "
        "from the prior, as usual, or from proposals fitted to each image, fitting included. The two autoencoders were "
        "trained with scores by CSM as in the paper, and in units of every conditional; `pressure` is the fraction of "
        "the entropy gradient that each recovered."
    ),
    "log_prob": (
        "Log densities of trained score heads by adaptive quadrature at the smallest noise (tolerance 1e-4). The naive "
        "way is a uniform grid over the same support, doubled until its largest error is below 1e-4 or ours. The grid "
        "evaluates scores alone, ours scores and slopes. Best of three runs of ours and two of the grid."
    ),
    "peers": (
        "A training step, log densities and samples of a model of 21 pixels: ours with default settings; the naive way "
        "(autograd twice; a uniform grid of 2,049 nodes on 16 rows, scaled up; the paper's Langevin sampler with a "
        "full forward pass for each column); flows of zuko and nflows with about as many weights; mixtures and kernels "
        "of scikit-learn; and the limit, one pass through both networks. Samples of 784 pixels likewise, each call but "
        "the first two timed once. For what such models learn, see [the results](../docs/results/index.md)."
    ),
    "processes": (
        "Training steps of the preset `cifar-pixelcnn` on 32 images, one thread a process: peak extra memory of the "
        "run, seconds a step, and the largest difference of the weights from those of the first line."
    ),
    "tables": (
        "Fitting an outlier detector to a table and scoring 10,000 rows, on all cores: ours with default settings, and "
        "four detectors of PyOD (extra `bench`)."
    ),
    "flow": (
        "Log densities through the ladder (tolerance 1e-3) of a trained model of 21 pixels. `plain` is the classical "
        "Runge-Kutta method of fourth order in torch, with equal steps in log sigma, as few as give our error against "
        "double precision. `matrix_products` are the products of our evaluations, alone."
    ),
    "gpu": (
        "Training steps of the presets in single precision and in bfloat16, beside the matrix products that they make "
        "at the rate of one large product on the same card; log densities and samples of untrained models beside flows "
        "of zuko. With `--device cpu --small`, it tries itself out."
    ),
    "quadrature": (
        "Errors of the log density of trained score heads with 64 to 512 evaluations of the score, in nats, against a "
        "uniform grid of 20,001 nodes: the largest error of 200 conditionals of held-out rows, the share that reached "
        "the tolerance of 1e-5, and of those the share whose error is below ten times its estimate. `RUN` is a folder "
        "written by `arcsm train`. `most_modes` is the largest number of modes of any conditional, within 12 nats of "
        "the highest. `evaluations_of_the_worst_for_1e-4` is the number of evaluations that the hardest conditional "
        "needs for a true error of 1e-4 nats (in steps of 16). `evaluations_of_the_worst_by_the_best_placement` is the "
        "number of nodes that the same rule would need if all its errors and the second derivatives were known "
        "beforehand, with cells of equal error that do not compensate each other."
    ),
}

_BY_DOUBLE, _BY_PRODUCTS = "times_faster_than_double_backward", "times_the_matrix_products"
_BY_PASSES = "times_faster_than_a_forward_pass_for_each_pixel"
_PRODUCTS, _PASS = "bare matrix products", "one forward pass"


class Row(NamedTuple):
    """A row of the table at the top: paths of ratios in the numbers of a benchmark, and what the limit is."""

    benchmark: str
    what: str
    naive: str
    limit: str = ""
    limit_is: str = ""


ROWS = (
    Row("csm_step", "a step of CSM, compiled", f"{_BY_DOUBLE}/fused_compiled", f"{_BY_PRODUCTS}/fused_compiled",
        _PRODUCTS),
    Row("csm_step", "the same, not compiled", f"{_BY_DOUBLE}/fused", f"{_BY_PRODUCTS}/fused", _PRODUCTS),
    Row("made", "contexts of MADE, forward and backward", "times_faster_than_masked_weights", _BY_PRODUCTS, _PRODUCTS),
    Row("sampling", "contexts of samples by MADE", "contexts_times_faster", "contexts_times_one_forward_pass", _PASS),
    Row("sampling", "the samples themselves", "sample_times_faster"),
    Row("sampling", "samples by the fast flow, 4 steps", "fast_sample_times_faster"),
    Row("pixelcnn", "contexts of samples by PixelCNN++", _BY_PASSES, "times_one_forward_pass", _PASS),
    Row("log_prob", "log densities by quadrature, 21 dimensions", "features_21/times_faster"),
    Row("log_prob", "the same, 784 dimensions", "features_784/times_faster"),
    Row("evidence", "likelihoods of an autoencoder, to 0.1 nats", "csm/times_faster"),
    Row("flow", "log densities by the flow, 21 dimensions", "times_faster_than_plain", _BY_PRODUCTS, _PRODUCTS),
)  # fmt: skip
#: Flows beside which the actions of the benchmark of peers are put, in columns of their own.
_FLOWS = ("zuko: NSF", "zuko: MAF", "nflows: NSF", "nflows: MAF")

INTRODUCTION = """# Benchmarks

How many times faster than the naive way, and how many times as long as flows and the limit: medians of one run, on one
thread unless it says otherwise. `python -m benchmarks` runs the scripts and writes this page and the numbers in
`benchmarks/results`. Absolute times depend on the machine.
"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("names", nargs="*", choices=[*ABOUT, []], default=[], metavar="NAME", help=", ".join(ABOUT))
    parser.add_argument("--runs", nargs="*", default=[], metavar="RUN", help="trained runs, for quadrature")
    given = parser.parse_args()
    if "quadrature" in given.names and not given.runs:
        parser.error("quadrature needs --runs RUN ...")
    if "gpu" in given.names and not torch.cuda.is_available():
        parser.error("gpu: needs a CUDA device; try it out with python -m benchmarks.gpu --device cpu --small")
    lacking = {"quadrature": not given.runs, "gpu": not torch.cuda.is_available()}
    left_out = {name for name, lacks in lacking.items() if lacks}
    names = given.names or [name for name in ABOUT if name not in left_out]
    for name in names:
        print(f"running {name} ...", file=sys.stderr)
        runs = given.runs if name == "quadrature" else []
        command = [sys.executable, "-m", f"benchmarks.{name}", *runs]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        earlier = numbers_of(name) if runs else {}
        RESULTS.mkdir(exist_ok=True)
        numbers = json.dumps({**earlier, **json.loads(done.stdout)}, indent=2)
        (RESULTS / f"{name}.json").write_text(f"{numbers}\n", encoding="utf-8")
        PAGE.write_text(rendered(), encoding="utf-8")  # after each benchmark: a stopped run keeps its numbers


def rendered() -> str:
    """Return the page."""
    known = {name: numbers for name in ABOUT if (numbers := numbers_of(name))}
    parts = [INTRODUCTION, table(known)]
    for name in known:
        about = textwrap.fill(ABOUT[name], 116, break_on_hyphens=False)
        typed = f"python -m benchmarks.{name}{' RUN ...' if name == 'quadrature' else ''}"
        parts.append(f"## {name}\n\n{about}\n\n`{typed}`, [numbers](results/{name}.json)\n")
    return "\n".join(parts)


def table(numbers: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the table at the top: ratios to the naive way, to flows and to the limit."""
    flows = " | ".join(f"times {name}" for name in _FLOWS)
    rows = [f"| | times faster than the naive way | {flows} | times the limit |"]
    rows.append("|---|---|" + "---|" * len(_FLOWS) + "---|")
    rows += rows_of_peers(numbers.get("peers", {}))
    for row in ROWS:
        if row.benchmark not in numbers:
            continue
        found = numbers[row.benchmark]
        limit = f"{shown(value_at(found, row.limit))} ({row.limit_is})" if row.limit else "–"
        naive = shown(value_at(found, row.naive))
        rows.append(f"| [{row.what}](#{row.benchmark}) | {naive} |{' – |' * len(_FLOWS)} {limit} |")
    return "\n".join(rows) + "\n"


def rows_of_peers(numbers: Mapping[str, Any]) -> list[str]:
    """Return a row for each action and each of our methods, relative to the flows."""
    rows = []
    for action, who in numbers.items():
        if action in ("benchmark", "machine", "columns", "weights"):
            continue
        times = {name: float(one["milliseconds"]) for name, one in who.items()}
        naive = next((value for name, value in times.items() if name.startswith("naive")), None)
        limit = next((name for name in times if name.startswith("limit")), "")
        for name in [name for name in times if name.startswith("arcsm")]:
            of_flows = "".join(f" {shown(times[name] / times[flow]) if flow in times else '–'} |" for flow in _FLOWS)
            method = name.removeprefix("arcsm").lstrip(": ")
            faster = "–" if naive is None or method == "SplineHead" else shown(naive / times[name])
            beyond = f"{shown(times[name] / times[limit])} ({limit.removeprefix('limit: a ')})" if limit else "–"
            named = action if "columns" in action else f"{numbers['columns']} columns: {action}"
            what = f"{named}{f', {method}' if method else ''}"
            rows.append(f"| [{what}](#peers) | {faster} |{of_flows} {beyond} |")
    return rows


def value_at(tree: Any, path: str) -> float:
    """Return the number at a path."""
    for key in path.split("/"):
        tree = tree[key]
    return float(tree)


def shown(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def numbers_of(name: str) -> dict[str, Any]:
    """Return the numbers of a benchmark that has run."""
    path = RESULTS / f"{name}.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


if __name__ == "__main__":
    main()

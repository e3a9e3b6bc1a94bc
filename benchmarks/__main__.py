"""Run benchmarks, one after the other, and write their numbers to benchmarks/README.md.

python -m benchmarks [NAME ...] [--runs RUN ...]

Without a name: all. The sections of those that are not run stay as they are.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).with_name("README.md")

ABOUT = {
    "csm_step": "One CSM step of a score head on 64 x 784 points: loss and all gradients. `double_backward` is plain "
    "autograd, `forward_mode` carries the derivative beside the value, `fused` is what `arcsm.objectives.csm` runs, "
    "`matrix_products` are the products that any of them needs and nothing else. Extra memory is the peak of the "
    "resident memory of a fresh process during one step beyond what was resident before it.",
    "sampling": "Sampling 64 rows of 784 dimensions from a MADE of 3 x 1024 units. Naive is a full forward pass for "
    "each dimension and, for the whole sampler, 200 Langevin steps a dimension as the paper's sampler takes.",
    "pixelcnn": "Contexts of 16 images of 32 x 32 x 3 by PixelCNN++ with 32 filters and 2 residual blocks a scale, one "
    "value at a time, against a full forward pass for each of the 1,024 pixels (the median of seven, times 1,024).",
    "precision": "One training step (CSM, loss and all gradients) of the preset `cifar-pixelcnn` on 16 images: single "
    "precision, with the score network's walk compiled (`train.compiled`), and in bfloat16 where autocast allows it "
    "(`train.precision=bf16-mixed`), with the cosine of the gradient with that of single precision.",
    "autoencoder": "One training step of a dense autoencoder on 128 digits (a step of the scores, where there are any, "
    "and one of the autoencoder) by each estimator of the entropy gradient; kernels with 20 samples of each digit.",
    "log_prob": "Log densities of trained score heads by adaptive quadrature at the smallest noise (tolerance 1e-4), "
    "against a uniform grid over the same support, doubled until its largest error is below 1e-4 or ours. Scores alone "
    "on the grid, scores and slopes for ours; the best of three runs of ours and of two of the grid.",
    "tables": "Fitting an outlier detector to a table and scoring 10,000 rows, on all cores: ours with default "
    "settings, and four of PyOD's (extra `bench`).",
    "flow": "Log densities through the ladder (tolerance 1e-3, double precision) of a trained model of 21 pixels. "
    "`plain` evaluates the head for the whole batch at once and inverts every step to 1e-6; `matrix_products` are "
    "those of our evaluations and nothing else.",
    "quadrature": "Errors of the log density of trained score heads with 64 to 512 evaluations of the score, in nats, "
    "against a uniform grid of 20,001 nodes: the largest of 200 conditionals of held-out rows, the share that reached "
    "the tolerance of 1e-5, and of those the share whose error is below ten times its estimate. `RUN` is a folder "
    "that `arcsm train` made. `most_modes` is the largest number of modes, within 12 nats of the highest, of any of "
    "the conditionals: a mode and the way to the next take a dozen evaluations or more.",
}

INTRODUCTION = """# Benchmarks

Each script compares ours, the naive way and the limit in one run, on one thread, and prints JSON.
`python -m benchmarks` runs them all and writes this page. Ratios within a run are what counts; absolute times depend on
the machine.
"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("names", nargs="*", choices=[*ABOUT, []], default=[], metavar="NAME", help=", ".join(ABOUT))
    parser.add_argument("--runs", nargs="*", default=[], metavar="RUN", help="trained runs, for quadrature")
    given = parser.parse_args()
    if "quadrature" in given.names and not given.runs:
        parser.error("quadrature needs --runs RUN ...")
    names = given.names or [name for name in ABOUT if name != "quadrature" or given.runs]
    sections = kept()
    for name in names:
        print(f"running {name} ...", file=sys.stderr)
        runs = given.runs if name == "quadrature" else []
        command = [sys.executable, "-m", f"benchmarks.{name}", *runs]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        shown = f"python -m benchmarks.{name}{' RUN ...' if runs else ''}"
        numbers = json.dumps(json.loads(done.stdout), indent=2)
        sections[name] = f"{ABOUT[name]}\n\n`{shown}`\n\n```json\n{numbers}\n```\n"
        body = [f"## {known}\n\n{sections[known]}" for known in ABOUT if known in sections]
        PAGE.write_text("\n".join([INTRODUCTION, *body]), encoding="utf-8")  # a stopped run keeps what it has


def kept() -> dict[str, str]:
    """The sections of the page as it is."""
    parts = re.split(r"^## (\w+)\n\n", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE) if PAGE.exists() else []
    return {name: text.rstrip() + "\n" for name, text in zip(parts[1::2], parts[2::2], strict=True)}


if __name__ == "__main__":
    main()

"""Run benchmarks, one after the other, and write their numbers to benchmarks/README.md.

python -m benchmarks [NAME ...] [--runs RUN ...]

Without a name: all. The sections of those that are not run stay as they are, and so do the numbers of trained runs
that are not named.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PAGE = Path(__file__).with_name("README.md")

ABOUT = {
    "csm_step": "One CSM step of a score head on 64 x 784 points: loss and all gradients. `double_backward` is plain "
    "autograd, `forward_mode` carries the derivative beside the value, `fused_compiled` is what `arcsm.objectives.csm` "
    "runs where there is a C compiler and `fused` where there is none, `matrix_products` are the products that any of "
    "them needs and nothing else. Extra memory is the peak of the resident memory of a fresh process during one step "
    "beyond what was resident before it.",
    "made": "A forward and a backward pass of a MADE on 64 rows of 3,072 columns, as `cifar-made` has it. "
    "`masked_weights` multiplies every mask into its weight; ours leaves out what lies above the staircase of the mask "
    "(`arcsm.contexts.masked_products`); `matrix_products` are the dense products of the layers, into memory that is "
    "there, "
    "so ours, which makes half of them, can take less.",
    "sampling": "Sampling 64 rows of 784 dimensions from a MADE of 3 x 1024 units. Naive is a full forward pass for "
    "each dimension and, for the whole sampler, 200 Langevin steps a dimension as the paper's sampler takes. "
    "The probability flow takes the nine steps of the ladder, the fast flow four.",
    "pixelcnn": "Contexts of 16 images of 32 x 32 x 3 by PixelCNN++ with 32 filters and 2 residual blocks a scale, one "
    "value at a time, against a full forward pass for each of the 1,024 pixels (the median of seven, times 1,024).",
    "precision": "One training step (CSM, loss and all gradients) of the preset `cifar-pixelcnn` on 16 images: single "
    "precision, with the walk of the score network in C (`train.compiled`), and in bfloat16 where autocast allows it "
    "(`train.precision=bf16-mixed`), with the cosine of the gradient with that of single precision.",
    "autoencoder": "One training step of a dense autoencoder on 128 digits (a step of the scores, where there are any, "
    "and one of the autoencoder) by each estimator of the entropy gradient; kernels with 20 samples of each digit. "
    "Where it is narrow, a latent has 8 units in the encoder and a context of 4, in place of 32 and 8. "
    "`latents_alone` are those of an autoregressive encoder, drawn one after the other, and the way back, in "
    "C and in torch.",
    "evidence": "Annealing 256 images that an autoencoder of 16 latents drew, with 8 chains: how many temperatures "
    "(10, 20, 40, ...) it takes until the lower and the upper bound of their likelihood are within 0.1 nats, standard "
    "error included (`reached`), and the seconds of a lower bound with so many. From the prior, as usual, and from "
    "proposals that are fitted to each image, whose fitting counts. Two autoencoders, with what share of the "
    "entropy's pressure they were trained: scores by CSM as in the paper, and in units of every conditional.",
    "log_prob": "Log densities of trained score heads by adaptive quadrature at the smallest noise (tolerance 1e-4), "
    "against a uniform grid over the same support, doubled until its largest error is below 1e-4 or ours. Scores alone "
    "on the grid, scores and slopes for ours; the best of three runs of ours and of two of the grid.",
    "peers": "A training step, log densities and samples of a model of 21 pixels: ours with default settings, the "
    "naive way (autograd twice; a uniform grid of 2,049 nodes, 16 rows scaled up; the paper's Langevin sampler with a "
    "full forward pass for each column), flows of zuko and nflows with about as many weights, mixtures and kernels of "
    "scikit-learn, and the limit, one pass through both networks. What these models learn is another matter: "
    "docs/results/index.md.",
    "processes": "Training steps of the preset `cifar-pixelcnn` on 32 images, one thread a process: extra memory at "
    "the peak of the run, seconds a step, and the largest difference of the weights from those of the first line.",
    "tables": "Fitting an outlier detector to a table and scoring 10,000 rows, on all cores: ours with default "
    "settings, and four of PyOD's (extra `bench`).",
    "flow": "Log densities through the ladder (tolerance 1e-3, double precision) of a trained model of 21 pixels. "
    "`plain` evaluates the head for the whole batch at once and inverts every step to 1e-6; `matrix_products` are "
    "those of our evaluations and nothing else.",
    "quadrature": "Errors of the log density of trained score heads with 64 to 512 evaluations of the score, in nats, "
    "against a uniform grid of 20,001 nodes: the largest of 200 conditionals of held-out rows, the share that reached "
    "the tolerance of 1e-5, and of those the share whose error is below ten times its estimate. `RUN` is a folder "
    "that `arcsm train` made. `most_modes` is the largest number of modes, within 12 nats of the highest, of any of "
    "the conditionals: a mode and the way to the next take a dozen evaluations or more. "
    "`evaluations_of_the_worst_for_1e-4` is how many the conditional that needs most needs for a true error of 1e-4 "
    "nats (in steps of 16), and `evaluations_of_the_worst_by_the_best_placement` how many nodes the same rule would "
    "take there if all its errors and the second derivatives were known beforehand, with cells of equal error and "
    "none making up for another.",
}

#: What stands in the table at the top: of which benchmark, what, and where in its numbers it is to be found how many
#: times faster than the naive way ours is, and how many times what it cannot do without it takes.
_BY_DOUBLE, _BY_PRODUCTS = "times_faster_than_double_backward", "times_the_matrix_products"
_BY_PASSES = "times_faster_than_a_forward_pass_for_each_pixel"
SUMMARY: tuple[tuple[str, str, str, str], ...] = (
    ("csm_step", "a step of CSM, compiled", f"{_BY_DOUBLE}/fused_compiled", f"{_BY_PRODUCTS}/fused_compiled"),
    ("csm_step", "the same, not compiled", f"{_BY_DOUBLE}/fused", f"{_BY_PRODUCTS}/fused"),
    ("made", "MADE's contexts in training, forward and backward", "times_faster_than_masked_weights", _BY_PRODUCTS),
    ("sampling", "contexts of samples by MADE", "contexts_times_faster", "contexts_times_one_forward_pass"),
    ("sampling", "the samples themselves", "sample_times_faster", ""),
    ("sampling", "samples by the fast flow, 4 steps", "fast_sample_times_faster", ""),
    ("pixelcnn", "contexts of samples by PixelCNN++", _BY_PASSES, "times_one_forward_pass"),
    ("log_prob", "log densities by quadrature, 21 dimensions", "features_21/times_faster", ""),
    ("log_prob", "the same, 784 dimensions", "features_784/times_faster", ""),
    ("evidence", "likelihoods of an autoencoder, to 0.1 nats", "csm/times_faster", ""),
    ("flow", "log densities by the flow, 21 dimensions", "times_faster_than_plain", _BY_PRODUCTS),
)
_PRODUCTS = ("csm_step", "made", "flow")  # whose limit are bare matrix products; of the others it is one forward pass

INTRODUCTION = """# Benchmarks

Each script compares ours with the naive way, the limit or its peers in one run, on one thread where it does not say
otherwise, and prints JSON.
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
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        typed = f"python -m benchmarks.{name}{' RUN ...' if runs else ''}"
        earlier = numbers_of(sections[name]) if runs and name in sections else {}
        numbers = json.dumps({**earlier, **json.loads(done.stdout)}, indent=2)
        sections[name] = f"{ABOUT[name]}\n\n`{typed}`\n\n```json\n{numbers}\n```\n"
        body = [f"## {known}\n\n{sections[known]}" for known in ABOUT if known in sections]
        page = "\n".join([INTRODUCTION, *summary(sections), *body])
        PAGE.write_text(page, encoding="utf-8")  # a stopped run keeps what it has


def summary(sections: Mapping[str, str]) -> list[str]:
    """Tables of ratios: ours by the naive way and by the limit, and the peers by ours."""
    numbers = {name: numbers_of(text) for name, text in sections.items()}
    rows = ["| ours | times faster than the naive way | times the limit | which is |", "|---|---|---|---|"]
    for name, what, faster, limit in SUMMARY:
        if name in numbers:
            bound = ("bare matrix products" if name in _PRODUCTS else "one forward pass") if limit else "–"
            ratio = shown(numbers[name], limit) if limit else "–"
            rows.append(f"| [{what}](#{name}) | {shown(numbers[name], faster)} | {ratio} | {bound} |")
    tables = ["\n".join(rows) + "\n"]
    if "peers" in numbers:
        tables.append(peers(numbers["peers"]))
    return tables


def shown(tree: Any, path: str) -> str:
    """A number at a path, rounded."""
    for key in path.split("/"):
        tree = tree[key]
    return f"{tree:,.0f}" if tree >= 100 else f"{tree:.3g}"


def peers(numbers: Mapping[str, Any]) -> str:
    """A table of what each peer takes, in times of ours."""
    actions = {what: who for what, who in numbers.items() if what not in ("benchmark", "machine", "columns", "weights")}
    order = ("arcsm", "naive", "limit")  # and then the peers
    names = list(dict.fromkeys(name for who in actions.values() for name in who))
    names.sort(key=lambda name: next((place for place, kind in enumerate(order) if name.startswith(kind)), len(order)))
    rows = [f"| [{numbers['columns']} columns, in times of ours](#peers) | {' | '.join(actions)} |"]
    rows.append("|---|" + "---|" * len(actions))
    for name in names:
        cells = [shown(who[name], "times_ours") if name in who else "–" for who in actions.values()]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def numbers_of(section: str) -> dict[str, Any]:
    """The numbers in a section of the page."""
    return dict(json.loads(section.split("```json\n")[1].split("```")[0]))


def kept() -> dict[str, str]:
    """The sections of the page as it is."""
    parts = re.split(r"^## (\w+)\n\n", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE) if PAGE.exists() else []
    return {name: text.rstrip() + "\n" for name, text in zip(parts[1::2], parts[2::2], strict=True)}


if __name__ == "__main__":
    main()

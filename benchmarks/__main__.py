"""Run all benchmarks, one after the other, and write their numbers to benchmarks/README.md.

python -m benchmarks
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).with_name("README.md")

ABOUT = {
    "csm_step": "One CSM step of a score head on 64 x 784 points: loss and all gradients. `double_backward` is plain "
    "autograd, `forward_mode` carries the derivative beside the value, `fused` is what `arcsm.objectives.csm` runs, "
    "`matrix_products` are the products that any of them needs and nothing else. Extra memory is the growth of the "
    "peak of the resident memory of a fresh process over one step; 0 means that what the process had was enough.",
    "sampling": "Sampling 64 rows of 784 dimensions from a MADE of 3 x 1024 units. Naive is a full forward pass for "
    "each dimension and, for the whole sampler, 200 Langevin steps a dimension as the paper's sampler takes.",
    "log_prob": "Log densities of trained score heads by adaptive quadrature at the smallest noise, against a uniform "
    "grid over the same support with as many nodes as it needs for the same largest error.",
}

INTRODUCTION = """# Benchmarks

Each script compares ours, the naive way and the limit in one run, on one thread, by medians, and prints JSON.
`python -m benchmarks` runs them all and writes this page. Ratios within a run are what counts; absolute times depend on
the machine.
"""


def main() -> None:
    parts = [INTRODUCTION]
    for name, about in ABOUT.items():
        print(f"running {name} ...", file=sys.stderr)
        done = subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], capture_output=True, text=True, check=True)
        numbers = json.loads(done.stdout)
        parts.append(
            f"## {name}\n\n{about}\n\n`python -m benchmarks.{name}`\n\n```json\n{json.dumps(numbers, indent=2)}\n```\n"
        )
        PAGE.write_text("\n".join(parts), encoding="utf-8")  # after each, so that a stopped run keeps what it has


if __name__ == "__main__":
    main()
